"""Globals, counters and caches of a script, as its initializer, its calls and its main() see them."""

import builtins
import collections
import functools
import os
import sys
import tempfile

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

MISSING = object()
factor = 1
offset = 0
settings = {"mode": "default", "depth": 1}
names = ["a", "b"]
same_names = names
number_of_calls = 0
seen = {}
totals = collections.defaultdict(int)
history = collections.deque(maxlen=3)
prepared = None
shared_by_two = {}
shadowed = "global"
removed = "defined at the top level"
max = builtins.max


def set_up(value, items):
    global factor, prepared, only_here
    factor = value
    prepared = {"items": items}
    only_here = sorted(items)
    settings["mode"] = "initialized"
    Counter.start = 100


def times(x):
    return x * factor


def plus_offset(x):
    return x + offset


def first_prepared():
    return prepared["items"][0], only_here[-1]


def mode():
    return settings["mode"], settings["depth"]


def count():
    global number_of_calls
    number_of_calls += 1
    return os.getpid(), number_of_calls


def is_new(key):
    if key in seen:
        return False
    seen[key] = True
    return True


def add_up(key, value):
    totals[key] += value
    history.append(value)
    return os.getpid(), totals[key], list(history)


def remember(x, memo={}):
    memo[x] = memo.get(x, 0) + 1
    return os.getpid(), memo[x]


def remember_on_itself():
    remember_on_itself.calls += 1
    return os.getpid(), remember_on_itself.calls


remember_on_itself.calls = 0


def default_or(value=MISSING):
    return "missing" if value is MISSING else value


def look_up(key, default=MISSING):
    found = {"known": 1}.get(key, default)
    return found is MISSING


class Counter:
    start = 0
    made = []
    table = shared_by_two

    def __init__(self):
        Counter.made.append(self)
        self.number = len(Counter.made)

    @classmethod
    def begin(cls):
        cls.start += 1
        return os.getpid(), cls.start

    @staticmethod
    def how_many():
        return len(Counter.made)


def make_counter():
    counter = Counter()
    return os.getpid(), counter.number, Counter.how_many()


def write_through_class(key, value):
    Counter.table[key] = value
    return shared_by_two.get(key)


def append_name(name):
    names.append(name)
    return same_names is names, same_names[-1]


def make_adder():
    total = 0

    def add(x):
        nonlocal total
        total += x
        return total

    return add


adder = make_adder()


def add_in_closure(x):
    return os.getpid(), adder(x)


def counting(function):
    calls = {"n": 0}

    @functools.wraps(function)
    def wrapper(*args):
        calls["n"] += 1
        return os.getpid(), calls["n"], function(*args)

    return wrapper


@counting
def counted_square(x):
    return x * x


def by_name_in_globals(name):
    return globals()[name]


def through_main_module():
    import __main__

    return __main__.factor, sys.modules[times.__module__].factor


def through_sys_modules():
    sys.modules[__name__].factor += 1
    found = factor
    sys.modules[__name__].factor -= 1
    return found


def evaluated(text):
    return eval(text)


def executed(text):
    space = {}
    exec(text, globals(), space)
    return space


def delete_and_define():
    global temporary
    temporary = 5
    found = temporary
    del temporary
    return found, "temporary" in globals()


def local_shadow():
    shadowed = "local"
    return shadowed, globals()["shadowed"]


def larger(a, b):
    return max(a, b)


def apply_all(steps, x):
    return functools.reduce(lambda value, step: globals()[step](value), steps, x)


def apply(function, *args):
    return function(*args)


def apply_by_key(functions, key, *args):
    return functions[key](*args)


def give_times():
    return times


def is_removed():
    try:
        return removed
    except NameError:
        return "removed"


def meet(path, mode_of_opening, function, *args):
    """Run a function once the other worker does so, too: each opens one end of the fifo."""
    with open(path, mode_of_opening):
        return function(*args)


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def one_row_each(rows, wanted):
    """Whether the last numbers of all workers add up to what was wanted."""
    last = {}
    for pid, number in rows:
        last[pid] = builtins.max(number, last.get(pid, 0))
    return sum(last.values()) == wanted


def main():
    global offset, removed
    offset = 7
    del removed
    settings["depth"] = 2
    before = dict(settings)
    with Executor(2, initializer=set_up, initargs=(10, ["x", "z", "y"])) as ex:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        def both(function, *args):
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "fifo")
                os.mkfifo(path)
                futures = [ex.submit(meet, path, how, function, *args) for how in ("rb", "wb")]
                try:
                    return [future.result(60) for future in futures]
                finally:
                    os.close(os.open(path, os.O_RDWR))

        attempt("an initializer sets a global, submit", lambda: [run(times, x) for x in range(4)], [0, 10, 20, 30])
        attempt(
            "an initializer sets a global, map", lambda: list(ex.map(times, range(40), chunksize=7)), [10 * x for x in range(40)]
        )
        attempt("an initializer sets a global on both workers", lambda: both(times, 3), [30, 30])
        attempt("an initializer sets what nothing else defines", lambda: both(first_prepared), [("x", "z")] * 2)
        attempt("an initializer changes a dict in place", lambda: both(mode), [("initialized", 2)] * 2)
        begun = [run(Counter.begin) for _ in range(10)]
        attempt("an initializer sets a class attribute", lambda: begun[0][1], 101)
        attempt("class attributes stay", lambda: one_row_each([(pid, number - 100) for pid, number in begun], 10))
        attempt("main() set a global before the first call", lambda: both(plus_offset, 1), [8, 8])
        counted = [run(count) for _ in range(20)]
        attempt("a global counter", lambda: one_row_each(counted, 20))
        attempt("a dict as cache", lambda: [run(is_new, "key") for _ in range(12)].count(True), lambda n: n in (1, 2))
        attempt(
            "a defaultdict and a deque",
            lambda: [run(add_up, "k", 1) for _ in range(10)],
            lambda rows: one_row_each([row[:2] for row in rows], 10) and all(len(row[2]) == min(3, row[1]) for row in rows),
        )
        attempt("a default argument as cache", lambda: one_row_each([run(remember, "x") for _ in range(14)], 14))
        attempt("a default argument as cache, map", lambda: one_row_each(list(ex.map(remember, ["y"] * 14)), 14))
        attempt("an attribute of the function as counter", lambda: one_row_each([run(remember_on_itself) for _ in range(11)], 11))
        attempt("a sentinel as default", lambda: [run(default_or), run(default_or, None), run(default_or, 3)], ["missing", None, 3])
        attempt("a sentinel as default and in the code", lambda: [run(look_up, "unknown"), run(look_up, "known")], [True, False])
        attempt(
            "a list of instances on the class",
            lambda: [run(make_counter) for _ in range(8)],
            lambda rows: all(a == b for _, a, b in rows) and one_row_each([row[:2] for row in rows], 8),
        )
        attempt("a class attribute that is a global, too", lambda: both(write_through_class, "k", 4), [4, 4])
        attempt("two names for one list", lambda: both(append_name, "new"), [(True, "new")] * 2)
        attempt("a closure with nonlocal", lambda: one_row_each([run(add_in_closure, 1) for _ in range(10)], 10))
        attempt(
            "the closure of a decorator",
            lambda: [run(counted_square, 3) for _ in range(10)],
            lambda rows: {v for _, _, v in rows} == {9} and one_row_each([row[:2] for row in rows], 10),
        )
        attempt("globals()[name]", lambda: run(by_name_in_globals, "factor"), 10)
        attempt("import __main__", lambda: run(through_main_module), (10, 10))
        attempt("sys.modules[__name__]", lambda: run(through_sys_modules), 11)
        attempt("eval", lambda: run(evaluated, "times(2) + offset"), 27)
        attempt("exec", lambda: run(executed, "a = times(3)\nb = mode()[0]"), {"a": 30, "b": "initialized"})
        attempt("a global is made and deleted in a call", lambda: run(delete_and_define), (5, False))
        attempt("a local name hides a global", lambda: run(local_shadow), ("local", "global"))
        attempt("a builtin's name is the script's", lambda: run(larger, 3, 4), 4)
        attempt("functions found by their names", lambda: run(apply_all, ["times", "plus_offset", "times"], 1), 170)
        attempt(
            "the script's own state is left alone",
            lambda: (
                factor,
                offset,
                before == settings,
                prepared,
                seen,
                number_of_calls,
                remember.__defaults__,
                remember_on_itself.calls,
                Counter.start,
                Counter.made,
                shared_by_two,
                names,
                adder(0),
            ),
            (1, 7, True, None, {}, 0, ({},), 0, 0, [], {}, ["a", "b"], 0),
        )
        attempt(
            "a function as argument",
            lambda: (run(apply, times, 3), list(ex.map(apply, [times, plus_offset], [1, 2]))),
            (30, [10, 9]),
        )
        attempt("functions in a dict as argument", lambda: run(apply_by_key, {"t": times, "p": plus_offset}, "t", 4), 40)
        attempt("a function that comes back is the script's", lambda: (run(give_times) is times, run(give_times)(2)), (True, 2))
        attempt("a global that main() has deleted", lambda: run(is_removed), "removed")
        attempt(
            "a lambda sees the workers' globals",
            lambda: PPE or [run(lambda x: x * factor + offset, 2), run(lambda: prepared["items"][1])] == [27, "z"],
        )
        attempt(
            "a lambda counts in the workers' globals",
            lambda: PPE or one_row_each([*counted, *[run(lambda: count()) for _ in range(6)]], 26),
        )
        attempt("an argument is the value of now", lambda: (names.append("c"), run(len, names))[1], 3)
        attempt(
            "a list that comes back is another",
            lambda: run(by_name_in_globals, "names"),
            lambda found: found is not names and found[:2] == ["a", "b"],
        )
    with Executor(2) as ex:
        attempt(
            "another executor begins afresh",
            lambda: (ex.submit(times, 3).result(60), ex.submit(mode).result(60), ex.submit(is_new, "key").result(60)),
            (3, ("default", 2), True),
        )
    with (
        Executor(2, initializer=set_up, initargs=(2, ["l", "m"])) as left,
        Executor(2, initializer=set_up, initargs=(3, ["r", "s"])) as right,
    ):
        attempt(
            "two side by side, each with its own initializer",
            lambda: [
                (
                    left.submit(times, 5).result(60),
                    right.submit(times, 5).result(60),
                    left.submit(first_prepared).result(60),
                    right.submit(first_prepared).result(60),
                )
                for _ in range(3)
            ],
            [(10, 15, ("l", "m"), ("r", "s"))] * 3,
        )
        attempt(
            "two side by side count apart",
            lambda: (
                one_row_each([left.submit(count).result(60) for _ in range(6)], 6),
                one_row_each([right.submit(count).result(60) for _ in range(4)], 4),
            ),
            (True, True),
        )


if __name__ == "__main__":
    main()

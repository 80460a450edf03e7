"""Names that a script binds anew while it goes on, and executors one after another and side by side.

Workers of ProcessPoolExecutor are forked at the first submit, so a later value is for another executor there; ours brings it to the next call.
"""

import functools
import os
import sys
import threading
import types

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

value = 0
pool = None
progress = {"futures": []}
early = [1]
counter = "before"
items = [1]
model = None
threshold = 10
state = None
mode = "first"


class Config:
    level = 1
    sub = types.SimpleNamespace(name="sub")


class Model:
    def __init__(self, weight):
        self.weight = weight

    def predict(self, x):
        return x * self.weight

    def describe(self):
        return f"model {self.weight} {mode}"


def get_value(_=None):
    return value


def get_items():
    return list(items)


def get_model(x):
    return model.predict(x)


def get_level():
    return Config.level


def above(x):
    return x > threshold


def step():
    return "old"


def call_step():
    return step(), helper()


def helper():
    return "old helper"


def set_state(new):
    global state
    state = new


def get_state():
    return state


def set_and_get(new):
    global value
    value = new
    return get_value()


def get_late():
    return late, late_function()


def attributes():
    return tagged.tag


def tagged():
    pass


def counted(n, store={}):
    store[n] = store.get(n, 0) + 1
    return os.getpid(), store[n]


def get_early():
    return early, counter


def work(x, parallel=False):
    """Parallel for the script, and one by one in a call."""
    if parallel:
        progress["futures"] += [pool.submit(work, i) for i in range(x)]
        return [future.result(60) for future in progress["futures"]]
    return x + 1


class Study:
    pool = None

    def __init__(self, n):
        self.n = n

    def run(self):
        return list(self.pool.map(self.one, range(self.n)))

    def one(self, i):
        return self.n * i


def attempt(name, found, wanted=True):
    try:
        got = found()
        ok = wanted(got) if callable(wanted) else got == wanted
        said = f"found {got!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def loop_of_submits(ex, n):
    global value
    futures = []
    for value in range(n):
        futures.append(ex.submit(get_value))
    return [future.result(60) for future in futures]


def loop_of_maps(ex, n):
    global threshold
    found = []
    for threshold in range(n):
        found.append(list(ex.map(above, [0, 1, 2, 3])))
    return found


def loop_of_models(ex, n):
    global model
    found = []
    for weight in range(n):
        model = Model(weight)
        found.append(ex.submit(get_model, 10).result(60))
    return found


def same_value_again(ex):
    global value
    found = []
    for value in (1, 2, 1, 1, 2):
        found.append(ex.submit(get_value).result(60))
    return found


def redefine(ex):
    global step, helper
    found = [ex.submit(call_step).result(60)]

    def step():
        return "new"

    found.append(ex.submit(call_step).result(60))

    def helper():
        return "new helper"

    found.append(ex.submit(call_step).result(60))
    found.append(ex.submit(step).result(60))
    return found


def redefine_by_exec(ex):
    """As a notebook does when a cell is run again."""
    found = []
    for n in range(4):
        exec(f"def cell():\n    return {n}, cell_helper()\n\ndef cell_helper():\n    return -{n}\n", globals())
        found.append(ex.submit(cell).result(60))
    return found


def redefine_class(ex):
    global Model, model
    exec(
        "class Model:\n    def __init__(self, w):\n        self.w = w\n    def predict(self, x):\n        return ('new class', x, self.w)\n",
        globals(),
    )
    model = Model(3)
    return ex.submit(get_model, 1).result(60), type(ex.submit(make_model, 5).result(60)) is Model


def make_model(weight):
    return Model(weight)


def set_levels(ex):
    found = []
    for level in (5, 6, 5):
        Config.level = level
        found.append(ex.submit(get_level).result(60))
    Config.level = 1
    found.append(ex.submit(get_level).result(60))
    return found


def patch_method(ex):
    original = Model.predict
    found = [ex.submit(Model(2).predict, 3).result(60)]
    Model.predict = lambda self, x: ("patched", x)
    found.append(ex.submit(predict_there, 2, 3).result(60))
    Model.predict = original
    found.append(ex.submit(predict_there, 2, 3).result(60))
    return found


def predict_there(weight, x):
    return Model(weight).predict(x)


def tag(ex):
    found = []
    for tagged.tag in ("a", "b"):
        found.append(ex.submit(attributes).result(60))
    return found


def define_late(ex):
    global late, late_function
    late = "late"

    def late_function():
        return "late function"

    return ex.submit(get_late).result(60)


def bind_list_anew(ex):
    global items
    items = [1, 2]
    found = [ex.submit(get_items).result(60)]
    items = [*items, 3]
    found.append(ex.submit(get_items).result(60))
    items += [4]
    ex.submit(get_items).result(60)  # changed in place: calls need not see this
    items = list(items)
    found.append(ex.submit(get_items).result(60))
    return found


def through_module(ex):
    sys.modules[__name__].value = "through the module"
    found = [ex.submit(get_value).result(60)]
    globals()["value"] = "through globals()"
    found.append(ex.submit(get_value).result(60))
    return found


def delete_name(ex):
    global temporary
    temporary = 1
    found = [ex.submit(get_temporary).result(60)]
    del temporary
    temporary = 2
    found.append(ex.submit(get_temporary).result(60))
    del temporary
    return found


def get_temporary():
    return temporary


def in_a_thread(ex):
    """A thread of the script binds and submits, too."""
    found = []

    def work():
        global mode
        mode = "thread"
        found.append(ex.submit(Model.describe, Model(1)).result(60))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    return found


def main():
    global value, state, pool, counter
    value = 42
    with Executor(2) as ex:
        counter = "after the executor was made"
        early.append(2)

        def ours(name, found, wanted):
            attempt(name, (lambda: wanted) if PPE else (lambda: found(ex)), wanted)

        attempt(
            "what is set between the executor and the first call",
            lambda: ex.submit(get_early).result(60),
            ([1, 2], "after the executor was made"),
        )
        attempt("a global set in main()", lambda: [ex.submit(get_value).result(60) for _ in range(4)], [42] * 4)
        ours("a thread binds a global and submits", in_a_thread, ["model 1 thread"])
        ours("each of 50 submits has its own value", lambda ex: loop_of_submits(ex, 50), list(range(50)))
        ours(
            "each of 20 small maps has its own value",
            lambda ex: loop_of_maps(ex, 20),
            [[x > n for x in (0, 1, 2, 3)] for n in range(20)],
        )
        ours("each of 10 models", lambda ex: loop_of_models(ex, 10), [10 * n for n in range(10)])
        ours("a value that comes again", same_value_again, [1, 2, 1, 1, 2])
        ours("a list bound anew", bind_list_anew, [[1, 2], [1, 2, 3], [1, 2, 3, 4]])
        ours("bound through the module and globals()", through_module, ["through the module", "through globals()"])
        ours("deleted and bound again", delete_name, [1, 2])
        ours(
            "functions redefined between submits",
            redefine,
            [("old", "old helper"), ("new", "old helper"), ("new", "new helper"), "new"],
        )
        ours("cells run again", redefine_by_exec, [(n, -n) for n in range(4)])
        ours("a class attribute set between submits", set_levels, [5, 6, 5, 1])
        ours("a method replaced between submits", patch_method, [6, ("patched", 3), 6])
        ours("an attribute of a function set between submits", tag, ["a", "b"])
        ours("names that come into being late", define_late, ("late", "late function"))
        ours("a class defined anew", redefine_class, (("new class", 1, 3), True))
        attempt(
            "a call's own value stays, as nothing binds it anew",
            lambda: [ex.submit(set_and_get, n).result(60) for n in (7, 8)],
            [7, 8],
        )
        attempt("the script's value is its own", lambda: value, "through globals()" if not PPE else 42)

    state = "of now"
    with Executor(2) as ex:
        attempt("a second executor sees later values", lambda: ex.submit(get_state).result(60), "of now")
    state = "later still"
    with Executor(2) as first, Executor(2, initializer=set_state, initargs=("initialized",)) as second:
        attempt(
            "one of two with an initializer",
            lambda: [(first.submit(get_state).result(60), second.submit(get_state).result(60)) for _ in range(4)],
            [("later still", "initialized")] * 4,
        )
        attempt(
            "one of two with an initializer, maps in turn",
            lambda: (
                list(second.map(get_value, range(3))),
                list(first.map(get_value, range(3))),
                [second.submit(get_state).result(60) for _ in range(3)],
            ),
            lambda found: found[0] == found[1] == [value] * 3 and found[2] == ["initialized"] * 3,
        )
    seen, pids = [], set()
    for state in range(100):
        with Executor(1) as ex:
            seen.append(ex.submit(get_state).result(60))
            pid, number = ex.submit(counted, "n").result(60)
            pids.add(number)
    attempt("a hundred executors one after another", lambda: (seen, pids), (list(range(100)), {1}))
    executors = [Executor(1, initializer=set_state, initargs=(n,)) for n in range(5)]
    try:
        attempt(
            "five at the same time",
            lambda: [[e.submit(get_state).result(60) for e in executors] for _ in range(2)],
            [list(range(5))] * 2,
        )
    finally:
        for executor in executors:
            executor.shutdown()
    with Executor(2) as pool:
        attempt(
            "a global executor, and futures, that calls do not touch",
            lambda: (pool.submit(work, 5).result(60), work(3, parallel=True), pool.submit(work, 6).result(60)),
            (6, [1, 2, 3], 7),
        )
        Study.pool = pool
        attempt("an executor as class attribute", lambda: Study(3).run(), [0, 3, 6])
        Study.pool = pool = None
        progress["futures"].clear()
    with Executor(2) as ex:
        before = step
        attempt(
            "functools.partial of a global",
            lambda: ex.submit(functools.partial(Model, 4)).result(60).__dict__ in ({"weight": 4}, {"w": 4}),
        )
        attempt("the script's functions are left alone", lambda: step is before)


if __name__ == "__main__":
    main()

"""Functions of a script as calls: decorated, cached, dispatched, partial, nested, recursive; and the errors that they raise."""

import asyncio
import contextlib
import functools
import inspect
import itertools
import operator
import os
import traceback
import types
import warnings
from concurrent.futures import as_completed, wait
from functools import cache, lru_cache, partial, reduce, singledispatch, wraps

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

calls_of = {}
results_of = {}
handlers = {}
commands = []
verbose = False
increment = lambda x: x + step  # noqa: E731
step = 1
power = partial(pow, 2)


def counting(function):
    """A decorator that keeps its count in a global."""

    @wraps(function)
    def wrapper(*args, **kwargs):
        calls_of[function.__name__] = calls_of.get(function.__name__, 0) + 1
        return function(*args, **kwargs)

    return wrapper


def without_wraps(function):
    def inner(*args):
        return "inner", function(*args)

    return inner


def repeated(times):
    def decorate(function):
        @wraps(function)
        def wrapper(x):
            for _ in range(times):
                x = function(x)
            return x

        wrapper.times = times
        return wrapper

    return decorate


def cached_in(store, key=lambda *args: args):
    """As cachetools has it."""

    def decorate(function):
        def wrapper(*args):
            where = key(*args)
            if where not in store:
                store[where] = function(*args)
            return store[where]

        wrapper.store = store
        return functools.update_wrapper(wrapper, function)

    return decorate


class Timed:
    """A decorator that is a class."""

    all = []

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function, self.calls = function, 0
        Timed.all.append(function.__name__)

    def __call__(self, *args):
        self.calls += 1
        return self.calls, self.function(*args)


def handler(name):
    def register(function):
        if name in handlers:
            raise ValueError(f"two handlers for {name}")
        handlers[name] = function
        return function

    return register


def command(function):
    commands.append(function.__name__)
    return function


@counting
def cube(x):
    return x**3


@counting
@repeated(3)
@counting
def doubled(x):
    return 2 * x


plain = without_wraps(abs)


@cached_in(results_of)
def expensive(x):
    calls_of["expensive"] = calls_of.get("expensive", 0) + 1
    return x * 100


@Timed
def timed(x):
    return -x


@cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@cache
def squared(x):
    calls_of["squared"] = calls_of.get("squared", 0) + 1
    return x * x


@singledispatch
def describe(x):
    return f"something: {x}"


@describe.register
def _(x: int):
    return f"int: {x}"


@describe.register(list)
@describe.register(tuple)
def _describe_many(x):
    return [describe(item) for item in x]


class Document:
    def __init__(self, text):
        self.text = text

    @functools.singledispatchmethod
    def add(self, other):
        raise TypeError(f"cannot add {type(other).__name__}")

    @add.register
    def _(self, other: str):
        return self.text + other

    @add.register
    def _(self, other: int):
        return self.text * other

    @lru_cache
    def length(self):
        calls_of["length"] = calls_of.get("length", 0) + 1
        return len(self.text)

    def upper(self):
        return self.text.upper()

    def __call__(self, suffix):
        return self.text + suffix


@describe.register
def _(x: Document):
    return f"document: {x.text}"


@handler("plus")
def handle_plus(a, b):
    return a + b


@handler("times")
def handle_times(a, b):
    return a * b


@command
def first_command():
    return list(commands)


def handle(name, *args):
    return handlers[name](*args)


def is_even(n):
    return True if n == 0 else is_odd(n - 1)


def is_odd(n):
    return False if n == 0 else is_even(n - 1)


def tree_size(tree):
    return 1 + sum(map(tree_size, tree))


def numbers(n):
    yield from range(n)
    yield from (x * step for x in range(n))


def total(n):
    return sum(numbers(n)), [x for x in numbers(2)], dict(zip("ab", numbers(1)))


def gone_through(rows):
    return (
        sorted(rows, key=lambda row: row[1] * step),
        list(map(increment, [1, 2])),
        [i for i, _ in itertools.groupby(rows, key=operator.itemgetter(0))],
    )


def outer(n):
    def inner(k):
        return n * k + step if k else helper(n)

    return [inner(k) for k in range(3)]


def helper(n):
    return -n


def power_of(exponent):
    def power(base):
        return base**exponent

    return power


cubed = power_of(3)


def use_closures(x):
    return cubed(x), power_of(2)(x), power(x)


def varied(a, /, b=2, *rest, c, d=4, **more):
    return a, b, rest, c, d, more


def annotated(x: "int" = 1) -> "list[int]":
    """Has a docstring."""
    return [x]


def look_at_itself():
    return (
        annotated.__doc__,
        annotated.__annotations__,
        annotated.__defaults__,
        annotated.__module__ in ("__main__", "__mp_main__", cube.__module__),
        str(inspect.signature(varied)),
    )


def source_of(name):
    try:
        return inspect.getsource({"helper": helper, "Document": Document.upper}[name])
    except (OSError, TypeError):
        return "none"


@contextlib.contextmanager
def setting(value):
    global verbose
    before, verbose = verbose, value
    try:
        yield
    finally:
        verbose = before


def with_setting():
    with setting("loud"):
        inside = verbose
    return inside, verbose


async def fetch(x):
    await asyncio.sleep(0)
    return x * step


async def fetch_all(n):
    return await asyncio.gather(*(fetch(x) for x in range(n)))


def run_coroutines(n):
    return asyncio.run(fetch_all(n))


def matched(shape):
    match shape:
        case {"kind": "circle", "radius": radius}:
            return 3 * radius**2
        case [x, y]:
            return x * y
        case Document(text=text):
            return text
    return None


class AppError(Exception):
    """With a constructor of its own."""

    def __init__(self, code, *, hint="none"):
        super().__init__(f"error {code}")
        self.code, self.hint = code, hint

    def __reduce__(self):
        return functools.partial(AppError, hint=self.hint), (self.code,)


class NotFound(LookupError):
    default = "nothing"

    def __str__(self):
        return f"{self.args[0]} not found, {self.default}"


class BadArguments(Exception):
    def __init__(self, first, second):
        super().__init__(first, second)
        self.second = second


class Unlucky(Exception):
    """Cannot be made again from its args."""

    def __init__(self, number, reason):
        super().__init__(f"{number} is unlucky: {reason}")


def fail(kind):
    if kind == "own":
        raise AppError(7, hint="try again")
    if kind == "lookup":
        raise NotFound("key")
    if kind == "arguments":
        raise BadArguments(1, [2])
    if kind == "chained":
        try:
            {}["key"]
        except KeyError as error:
            raise AppError(8) from error
    if kind == "noted":
        error = ValueError("with a note")
        error.add_note("the note")
        raise error
    if kind == "group":
        raise ExceptionGroup("several", [ValueError(1), NotFound("k")])
    if kind == "assertion":
        assert kind == "nothing", f"not {kind}"
    if kind == "stop":
        raise StopIteration("over")
    if kind == "unlucky":
        raise Unlucky(13, "as ever")
    return kind


def exception_as_result():
    try:
        fail("lookup")
    except NotFound as error:
        return error, NotFound


def catch_own():
    try:
        fail("own")
    except AppError as error:
        return error.code, error.hint, isinstance(error, AppError)


def warn_and_catch():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("careful", UserWarning, stacklevel=1)
    return [str(w.message) for w in caught]


def numbered(number, text):
    return number, text


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def frames_of(error):
    """The functions in the traceback of the worker, as it is shown."""
    return "".join(traceback.format_exception(error))


def main():
    global step
    step = 10
    with Executor(1) as ex:  # one worker, so that caches and counts have one value

        def run(function, *args, **kwargs):
            return ex.submit(function, *args, **kwargs).result(60)

        def error(function, *args):
            return ex.submit(function, *args).exception(60)

        attempt(
            "a decorator with wraps that counts in a global",
            lambda: ([run(cube, x) for x in range(4)], run(calls_of.get, "cube"), run(operator.call, count_of, "cube")),
            ([0, 1, 8, 27], None, 4),
        )
        attempt("three decorators", lambda: (run(doubled, 1), run(count_of, "doubled"), run(getattr, doubled, "times")), (8, 4, 3))
        attempt(
            "a decorator with a dict that is a global",
            lambda: ([run(expensive, x) for x in (1, 1, 2, 1)], run(count_of, "expensive"), run(stored), results_of),
            ([100, 100, 200, 100], 2, ([(1,), (2,)], True), {}),
        )
        attempt("a decorator without wraps, inside", lambda: run(use_plain, -3), ("inner", 3))
        attempt(
            "a decorator that is a class, inside",
            lambda: ([run(use_timed, x) for x in (1, 2)], timed.calls, Timed.all),
            ([(1, -1), (2, -2)], 0, ["timed"]),
        )
        attempt(
            "lru_cache",
            lambda: (run(fibonacci, 50), run(fibonacci, 30), run(info), fibonacci.cache_info().misses),
            (12586269025, 832040, 51, 0),
        )
        attempt(
            "lru_cache is filled by map, too", lambda: (list(ex.map(fibonacci, [60] * 5)), run(info)), ([1548008755920] * 5, 61)
        )
        attempt(
            "cache",
            lambda: (
                [run(squared, 3) for _ in range(3)],
                run(count_of, "squared"),
                run(clear),
                run(squared, 3),
                run(count_of, "squared"),
            ),
            ([9, 9, 9], 1, 0, 9, 2),
        )
        attempt(
            "singledispatch",
            lambda: [run(describe, x) for x in (1, "a", [2, (3.0,)], Document("d"))],
            ["int: 1", "something: a", ["int: 2", ["something: 3.0"]], "document: d"],
        )
        attempt("singledispatchmethod inside a call", lambda: run(use_document), ("abc", "abab", "cannot add float"))
        attempt("lru_cache on a method", lambda: run(lengths), (2, 2, 1))
        attempt(
            "functions in a registry",
            lambda: (run(handle, "plus", 1, 2), run(handle, "times", 3, 4), run(first_command), sorted(handlers)),
            (3, 12, ["first_command"], ["plus", "times"]),
        )
        attempt("mutual recursion", lambda: (run(is_even, 10), run(is_odd, 10)), (True, False))
        attempt("recursion through map()", lambda: run(tree_size, [[[], []], []]), 5)
        attempt("a generator is consumed in a call", lambda: run(total, 3), (33, [0, 1, 0, 10], {"a": 0, "b": 0}))
        attempt(
            "lambdas inside, groupby, sorted",
            lambda: run(gone_through, [("b", 2), ("b", 1), ("a", 3)]),
            ([("b", 1), ("b", 2), ("a", 3)], [11, 12], ["b", "a"]),
        )
        attempt("closures inside", lambda: (run(outer, 2), run(use_closures, 3)), ([-2, 12, 14], (27, 9, 8)))
        attempt(
            "a closure as a call",
            lambda: PPE or [run(cubed, 2), run(power_of(5), 2), list(ex.map(power_of(2), range(3)))] == [8, 32, [0, 1, 4]],
        )
        attempt(
            "a lambda as a call",
            lambda: (
                PPE
                or [run(increment, 1), run(lambda: step), list(ex.map(lambda x, y: x * y + step, [1, 2], [3, 4]))]
                == [11, 10, [13, 18]]
            ),
        )
        attempt(
            "every kind of parameter",
            lambda: (run(varied, 1, c=3), run(varied, 1, 5, 6, c=7, e=8)),
            ((1, 2, (), 3, 4, {}), (1, 5, (6,), 7, 4, {"e": 8})),
        )
        attempt(
            "partial",
            lambda: (
                run(partial(varied, 9, c=1), 8),
                run(power, 5),
                list(ex.map(partial(handle, "plus", 1), [1, 2])),
                run(partial(cube), 2),
            ),
            ((9, 8, (), 1, 4, {}), 32, [2, 3], 8),
        )
        attempt(
            "methodcaller, attrgetter, itemgetter",
            lambda: (
                run(operator.methodcaller("upper"), Document("x")),
                run(operator.attrgetter("text"), Document("y")),
                run(operator.itemgetter(1), [1, 2]),
            ),
            ("X", "y", 2),
        )
        attempt(
            "bound methods and callable instances",
            lambda: (
                run(Document("x").upper),
                run(Document("x"), "y"),
                list(ex.map(Document("z"), "ab")),
                list(ex.map(Document.upper, [Document("p")])),
            ),
            ("X", "xy", ["za", "zb"], ["P"]),
        )
        attempt(
            "bound methods of builtin objects",
            lambda: (run("a-b".split, "-"), run({1: 2}.get, 1), run([3, 1].index, 1), run(dict.fromkeys, "ab", 0)),
            (["a", "b"], 2, 1, {"a": 0, "b": 0}),
        )
        attempt(
            "what a function knows of itself",
            lambda: run(look_at_itself),
            ("Has a docstring.", {"x": "int", "return": "list[int]"}, (1,), True, "(a, /, b=2, *rest, c, d=4, **more)"),
        )
        attempt(
            "inspect.getsource",
            lambda: [run(source_of, n) for n in ("helper", "Document")],
            [source_of("helper"), source_of("Document")],
        )
        attempt("a context manager that sets a global", lambda: run(with_setting), ("loud", False))
        attempt("coroutines with asyncio.run", lambda: run(run_coroutines, 3), [0, 10, 20])
        attempt(
            "match",
            lambda: [run(matched, x) for x in ({"kind": "circle", "radius": 2}, [2, 3], Document("t"), 1)],
            [12, 6, "t", None],
        )
        attempt("catch_warnings", lambda: run(warn_and_catch), ["careful"])
        attempt(
            "an exception of the script",
            lambda: (lambda e: (type(e) is AppError, e.code, e.hint, str(e)))(error(fail, "own")),
            (True, 7, "try again", "error 7"),
        )
        attempt(
            "an exception with __str__",
            lambda: (lambda e: (type(e) is NotFound, str(e), isinstance(e, LookupError)))(error(fail, "lookup")),
            (True, "key not found, nothing", True),
        )
        attempt(
            "an exception with two arguments",
            lambda: (lambda e: (type(e) is BadArguments, e.second, e.args))(error(fail, "arguments")),
            (True, [2], (1, [2])),
        )
        attempt(
            "a chained exception shows its cause",
            lambda: (lambda e, t: (e.code, "KeyError: 'key'" in t, "in fail" in t))(
                error(fail, "chained"), frames_of(error(fail, "chained"))
            ),
            (8, True, True),
        )
        attempt("an exception with a note", lambda: error(fail, "noted").__notes__, ["the note"])
        attempt("an exception group", lambda: [type(e) for e in error(fail, "group").exceptions], [ValueError, NotFound])
        attempt(
            "an assertion",
            lambda: (type(error(fail, "assertion")), str(error(fail, "assertion"))),
            (AssertionError, "not assertion"),
        )
        attempt("StopIteration", lambda: type(error(fail, "stop")), StopIteration)
        attempt(
            "an exception that cannot be made again fails alone",
            lambda: (
                PPE
                or (
                    isinstance(error(fail, "unlucky"), Exception),
                    "13 is unlucky" in frames_of(error(fail, "unlucky")),
                    run(fail, "fine"),
                )
                == (True, True, "fine")
            ),
        )
        attempt("except catches the script's own", lambda: run(catch_own), (7, "try again", True))
        attempt(
            "an exception and its class as a result",
            lambda: (lambda e, c: (type(e) is NotFound, c is NotFound, e.args))(*run(exception_as_result)),
            (True, True, ("key",)),
        )
        attempt("except in main() catches what a call raises", lambda: caught_in_main(ex), "caught 7")
        attempt("map raises at its place", lambda: rows_until_error(ex), ([27, 8, 1], "AppError"))
        attempt(
            "as_completed",
            lambda: sorted(f.result() for f in as_completed([ex.submit(numbered, i, "x") for i in range(20)], timeout=60)),
            [(i, "x") for i in range(20)],
        )
        attempt("a dict of futures", lambda: tutorial(ex), {n: n**3 for n in range(6)})
        attempt("callbacks", lambda: called_back(ex), [0, 1, 8])
        attempt("wait", lambda: wait([ex.submit(cube, 2)], timeout=60).done.pop().result(), 8)
        attempt("reduce over a map", lambda: reduce(operator.add, ex.map(cube, range(5), chunksize=2)), 100)
        attempt(
            "map over a generator, with zip of two",
            lambda: dict(zip("abc", ex.map(handle, itertools.repeat("times"), (x for x in (1, 2, 3)), [4, 5, 6]))),
            {"a": 4, "b": 10, "c": 18},
        )
        attempt(
            "a function made by types.FunctionType",
            lambda: PPE or run(types.FunctionType(helper.__code__, globals(), "made"), 3) == -3,
        )


def count_of(name):
    return calls_of.get(name)


def stored():
    return sorted(results_of), expensive.store is results_of


def use_plain(x):
    return plain(x)


def use_timed(x):
    return timed(x)


def info():
    return fibonacci.cache_info().misses


def clear():
    squared.cache_clear()
    return squared.cache_info().currsize


def use_document():
    try:
        Document("ab").add(1.0)
    except TypeError as error:
        return Document("ab").add("c"), Document("ab").add(2), str(error)


def lengths():
    document = Document("ab")
    return document.length(), document.length(), calls_of["length"]


def caught_in_main(ex):
    try:
        ex.submit(fail, "own").result(60)
    except AppError as error:
        return f"caught {error.code}"


def cube_or_fail(x):
    if x == 0:
        raise AppError(1)
    return cube(x)


def rows_until_error(ex):
    rows = []
    try:
        for row in ex.map(cube_or_fail, [3, 2, 1, 0, 5]):
            rows.append(row)
    except Exception as error:
        return rows, type(error).__name__


def tutorial(ex):
    futures = {ex.submit(cube, n): n for n in range(6)}
    found = {}
    for future in as_completed(futures):
        found[futures[future]] = future.result()
    return found


def called_back(ex):
    found = []
    futures = [ex.submit(cube, n) for n in range(3)]
    for future in futures:
        future.add_done_callback(lambda future: found.append(future.result()))
    wait(futures, timeout=60)
    ex.submit(helper, 1).result(60)  # callbacks of what was done before have been called by then
    return sorted(found)


if __name__ == "__main__":
    main()

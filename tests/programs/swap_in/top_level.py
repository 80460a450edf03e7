"""A script that does much at its top level, before and after main(): prints, conditional and late definitions, loops, a guard with imports inside."""

from __future__ import annotations

import os
import random
import sys
import time
import uuid

print("the top level begins")

try:
    import does_not_exist
except ImportError:
    does_not_exist = None

if sys.version_info >= (3, 8):

    def conditional():
        return "new"
else:

    def conditional():
        return "old"


if os.environ.get("PPE"):
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

PPE = bool(os.environ.get("PPE"))
squares = {}
for i in range(5):
    squares[i] = i * i
operations = {}
for name, sign in (("add", 1), ("subtract", -1)):

    def operation(a, b, sign=sign):
        return a + sign * b

    operations[name] = operation
makers = [lambda x, n=n: x * n for n in range(4)]
late_bound = [lambda: i for _ in range(2)]
total = sum(x for x in squares.values())
with open(os.devnull) as null:
    first_line = null.readline()
a, (b, *c) = 1, (2, 3, 4)
d = e = []
d.append("d")
annotated: dict[str, list[int]] = {"x": [1]}
if (walrus := len(squares)) > 3:
    enough = True
del null
started = time.time()
exec("made_by_exec = 'made'\ndef function_by_exec(x):\n    return x, made_by_exec")
globals()["through_globals"] = "set"
for setting in ("alpha", "beta"):
    globals()[f"default_{setting}"] = setting.upper()
Row = type("Row", (), {"double": lambda self: 2 * self.x, "x": 4})
assert total == 30


run_id = uuid.uuid4().hex
main_pid = os.getpid()
dice = random.random()
known_now = [run_id, main_pid, dice, started]


class Run:
    """What is known only when the script runs."""

    id = uuid.uuid4().hex
    made = time.time()

    def __init__(self):
        self.own = uuid.uuid4().hex


the_run = Run()


def stamped(x, id=uuid.uuid4().hex):
    return x, id


def make_report(id):
    def report():
        return id

    return report


report = make_report(uuid.uuid4().hex)


class Meta(type):
    def __call__(cls, *args):
        made = super().__call__(*args)
        cls.count = getattr(cls, "count", 0) + 1
        return made


class Base(metaclass=Meta):
    registry: dict[str, type] = {}

    def __init_subclass__(cls):
        Base.registry[cls.__name__] = cls


for suffix in ("One", "Two"):
    globals()[f"Class{suffix}"] = type(f"Class{suffix}", (Base,), {"name": suffix})


def use_loops():
    return squares, [m(10) for m in makers], [f() for f in late_bound], total, first_line


def use_operations():
    return operations["add"](1, 2), operations["subtract"](1, 2)


def use_bindings():
    return a, b, c, d is e, d, annotated, walrus, enough, does_not_exist


def use_conditional():
    return conditional()


def use_exec():
    return function_by_exec(1)


def use_globals():
    return through_globals, default_alpha, default_beta


def use_types():
    return Row().double(), ClassOne.name, sorted(Base.registry), Base.registry["ClassTwo"] is ClassTwo


def count_instances():
    ClassOne()
    return os.getpid(), ClassOne.count


def use_later():
    return defined_later(3), CONSTANT_LATER


def use_guarded():
    return math.floor(2.5), in_guard(3), in_guard_value, InGuard().x


def when_started():
    return started


def use_known_now():
    return run_id, main_pid, dice, known_now


def use_run():
    return Run.id, Run.made, the_run.own


def use_report():
    return report()


def annotation_of():
    return use_types.__annotations__, Base.__annotations__


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def main(ex):
    def run(function, *args):
        return ex.submit(function, *args).result(60)

    attempt(
        "loops and comprehensions at the top level",
        lambda: run(use_loops),
        ({0: 0, 1: 1, 2: 4, 3: 9, 4: 16}, [0, 10, 20, 30], [4, 4], 30, ""),
    )
    attempt("one name for several functions", lambda: run(use_operations), (3, -1))
    attempt("a function whose name another has now", lambda: PPE or run(operations["add"], 1, 2) == 3)
    attempt(
        "unpacking, chains, walrus, annotations", lambda: run(use_bindings), (1, 2, [3, 4], True, ["d"], {"x": [1]}, 5, True, None)
    )
    attempt("definitions under if and else", lambda: (run(use_conditional), run(conditional)), ("new", "new"))
    attempt("what exec has defined", lambda: (run(use_exec), run(function_by_exec, 2)), ((1, "made"), (2, "made")))
    attempt("names set through globals()", lambda: run(use_globals), ("set", "ALPHA", "BETA"))
    attempt("types made by type()", lambda: run(use_types), (8, "One", ["ClassOne", "ClassTwo"], True))
    attempt(
        "a metaclass that counts instances",
        lambda: (lambda rows: sum(max(n for p, n in rows if p == pid) for pid in dict(rows)))(
            [run(count_instances) for _ in range(7)]
        ),
        7,
    )
    attempt("functions and constants below the caller", lambda: run(use_later), (-3, "later"))
    attempt("imports, functions, classes in the guard", lambda: run(use_guarded), (2, 9, "value", 5))
    attempt("a function of the guard as the call", lambda: (run(in_guard, 4), list(ex.map(in_guard, range(3)))), (16, [0, 1, 4]))
    attempt("a class of the guard comes back", lambda: type(run(InGuard)) is InGuard)
    attempt("the time of the start", lambda: run(when_started) == started)
    attempt(
        "globals that no other run would have",
        lambda: run(use_known_now),
        (run_id, main_pid, dice, [run_id, main_pid, dice, started]),
    )
    attempt(
        "attributes of a class, and of an instance, that no other run would have",
        lambda: run(use_run),
        (Run.id, Run.made, the_run.own),
    )
    attempt("a default argument that no other run would have", lambda: run(stamped, 1), stamped(1))
    attempt("a closure that no other run would have", lambda: run(use_report), report())
    attempt("annotations", lambda: run(annotation_of), annotation_of())


def defined_later(x):
    return -x


CONSTANT_LATER = "later"
print("the top level ends")

if __name__ == "__main__":
    import math

    in_guard_value = "value"

    def in_guard(x):
        return math.prod([x, x])

    class InGuard:
        x = 5

    with Executor(2) as executor:
        main(executor)

        def after_the_first(x):
            return in_guard(x) + len(words)

        words = ["a", "b"]
        attempt(
            "a function of the guard, after the first submit",
            lambda: PPE or executor.submit(after_the_first, 2).result(60),
            lambda found: found in (6, True),
        )
        words = ["a"]
        attempt(
            "a name of the guard bound anew",
            lambda: PPE or executor.submit(after_the_first, 2).result(60),
            lambda found: found in (5, True),
        )
        results = [executor.submit(in_guard, x) for x in range(5)]
        attempt("submits and results in the guard", lambda: [r.result(60) for r in results], [0, 1, 4, 9, 16])
        in_guard_value = "other"
        attempt(
            "the guard's value is of now",
            lambda: PPE or executor.submit(use_guarded).result(60)[2],
            lambda found: found in ("other", True),
        )

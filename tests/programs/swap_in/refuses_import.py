"""A script that is not to be imported: its top level raises, or ends, when its name is not __main__, half of it above and half below."""

import os
import sys

if os.environ.get("PPE"):
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

above = {"count": 0}


def count():
    above["count"] += 1
    return os.getpid(), above["count"]


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


if __name__ != "__main__":
    sys.exit("This is a script: do not import it.")

below = [1, 2, 3]
factor = 2


class Below:
    made = []

    def __init__(self, x):
        self.x = x
        Below.made.append(x)


def set_factor(value):
    global factor
    factor = value


def times(x):
    return x * factor


def number_below():
    below.append(4)
    return os.getpid(), len(below)


def make_below(x):
    return Below(x)


def main():
    with Executor(2, initializer=set_factor, initargs=(5,)) as ex:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        def add_up(rows):
            return sum(max(n for p, n in rows if p == pid) for pid in dict(rows))

        attempt("a counter above", lambda: add_up([run(count) for _ in range(6)]), 6)
        attempt("a list below", lambda: add_up([(pid, n - 3) for pid, n in [run(number_below) for _ in range(6)]]), 6)
        attempt("an initializer and functions below", lambda: (run(times, 3), list(ex.map(times, [1, 2]))), (15, [5, 10]))
        attempt(
            "a class below", lambda: (type(run(make_below, 1)) is Below, run(getattr, Below(2), "x"), Below.made), (True, 2, [2])
        )
        attempt("the script's own is left alone", lambda: (above, below, factor), ({"count": 0}, [1, 2, 3], 2))


if __name__ == "__main__":
    main()
else:
    raise ImportError("not to be imported")

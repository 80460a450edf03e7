"""Errors, texts and types are those of the standard library's executors; dead workers are a BrokenProcessPool."""

import os
import pickle
import sys
import tempfile
import threading
import traceback
from concurrent.futures import ALL_COMPLETED, FIRST_EXCEPTION, BrokenExecutor, CancelledError, Future, as_completed, wait
from concurrent.futures import Executor as AnyExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from concurrent.futures.process import BrokenProcessPool

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor


class Exits:
    """Ends the program, or so it wants, when it is pickled."""

    def __reduce__(self):
        sys.exit(5)


class Raises:
    def __reduce__(self):
        raise ValueError("not to be pickled")


class RaisesThere:
    def __reduce__(self):
        return fail_at_loading, ()


def fail_at_loading():
    if threading.current_thread() is threading.main_thread() and os.environ.get("MPIEXECUTOR_NEVER_SET") is None:
        raise LookupError("not to be loaded")


def fail(text):
    raise ZeroDivisionError(text)


def give(cls):
    return cls()


def square(x):
    return x * x


def exit_with(status):
    sys.exit(status)


def interrupt():
    raise KeyboardInterrupt


def wait_for(path):
    with open(path):
        pass


def refuse():
    raise RuntimeError("the initializer fails")


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def error_of(function):
    try:
        function()
    except BaseException as error:
        return type(error), str(error)


def main():
    with Executor(2) as ex:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        def error(function, *args):
            return ex.submit(function, *args).exception(60)

        attempt(
            "an Executor with Futures",
            lambda: (isinstance(ex, AnyExecutor), isinstance(ex.submit(square, 2), Future)),
            (True, True),
        )
        attempt(
            "max_workers",
            lambda: [error_of(lambda n=n: Executor(n)) for n in (0, -1)],
            [(ValueError, "max_workers must be greater than 0")] * 2,
        )
        attempt(
            "chunksize",
            lambda: [error_of(lambda n=n: list(ex.map(square, [1], chunksize=n))) for n in (0, -1)],
            [(ValueError, "chunksize must be >= 1.")] * 2,
        )
        attempt(
            "buffersize",
            lambda: (
                PPE
                or [error_of(lambda n=n: ex.map(square, [1], buffersize=n)) for n in (0, -1, 1.5, "1")]
                == [(ValueError, "buffersize must be None or > 0")] * 2 + [(TypeError, "buffersize must be an integer or None")] * 2
            ),
        )
        attempt("initializer", lambda: error_of(lambda: Executor(1, initializer=1))[0], TypeError)
        attempt("submit without a function", lambda: error_of(lambda: ex.submit())[0], TypeError)
        attempt(
            "the traceback of the worker is the cause",
            lambda: (
                lambda e: (
                    type(e.__cause__).__name__.lstrip("_"),
                    "in fail" in e.__cause__.tb,
                    "ZeroDivisionError: text" in str(e.__cause__),
                    "in fail" in "".join(traceback.format_exception(e)),
                )
            )(error(fail, "text")),
            ("RemoteTraceback", True, True, True),
        )
        attempt(
            "SystemExit and KeyboardInterrupt in a call",
            lambda: [(type(e), getattr(e, "code", None)) for e in (error(exit_with, 3), error(interrupt))],
            [(SystemExit, 3), (KeyboardInterrupt, None)],
        )
        attempt("the workers go on after that", lambda: list(ex.map(square, range(5))), [0, 1, 4, 9, 16])
        attempt(
            "an argument that cannot be pickled",
            lambda: (type(error(square, Raises())), str(error(square, Raises()))),
            (ValueError, "not to be pickled"),
        )
        attempt(
            "an argument that exits when it is pickled", lambda: PPE or isinstance(error(square, Exits()), pickle.PicklingError)
        )
        attempt(
            "a result that cannot be pickled",
            lambda: (
                PPE
                or (
                    isinstance(error(give, Raises), (ValueError, pickle.PicklingError)),
                    isinstance(error(give, Exits), (SystemExit, pickle.PicklingError)),
                )
                == (True, True)
            ),
        )
        attempt("an argument that cannot be loaded", lambda: PPE or "not to be loaded" in str(error(square, RaisesThere())))
        attempt("the workers go on after that, too", lambda: list(ex.map(square, range(5))), [0, 1, 4, 9, 16])
        attempt("TimeoutError", lambda: timeouts(ex), [FuturesTimeout] * 2)
        attempt(
            "wait and as_completed",
            lambda: (
                lambda fs: (
                    len(wait(fs, 60, ALL_COMPLETED).done),
                    wait([*fs, ex.submit(fail, "x")], 60, FIRST_EXCEPTION).not_done,
                    {f.result() for f in as_completed(fs)},
                )
            )([ex.submit(square, i) for i in range(4)]),
            (4, set(), {0, 1, 4, 9}),
        )
        attempt(
            "a done future cannot be cancelled",
            lambda: (lambda f: (f.result(60), f.cancel(), f.done(), f.cancelled(), f.running()))(ex.submit(square, 3)),
            (9, False, True, False, False),
        )
    attempt("submit after shutdown", lambda: error_of(lambda: ex.submit(square, 1))[0], RuntimeError)
    attempt("map after shutdown", lambda: error_of(lambda: list(ex.map(square, [1])))[0], RuntimeError)
    with Executor(1) as ex:
        futures = [ex.submit(square, i) for i in range(200)]
        ex.shutdown(wait=True, cancel_futures=True)
        attempt(
            "cancel_futures",
            lambda: (
                {type(error_of(f.result)) if f.cancelled() else f.result() == i * i for i, f in enumerate(futures)} <= {True, tuple}
            ),
        )
        attempt(
            "cancelled futures raise CancelledError",
            lambda: {error_of(f.result)[0] for f in futures if f.cancelled()} <= {CancelledError},
        )
    executor = Executor(1, initializer=refuse)
    future = executor.submit(square, 1)
    attempt(
        "an initializer that raises breaks the executor",
        lambda: (
            isinstance(future.exception(60), BrokenExecutor),
            issubclass(error_of(lambda: executor.submit(square, 1))[0], BrokenExecutor),
        ),
        (True, True),
    )
    executor.shutdown()
    attempt("a broken executor can be shut down, and another is whole", lambda: with_another(), 16)
    with Executor(2) as ex:
        attempt("a worker that dies is a BrokenProcessPool", lambda: isinstance(ex.submit(leave).exception(60), BrokenProcessPool))


def leave():
    os._exit(3)


def with_another():
    with Executor(1) as other:
        return other.submit(square, 4).result(60)


def timeouts(ex):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fifo")
        os.mkfifo(path)
        futures = [ex.submit(wait_for, path) for _ in range(2)]
        found = [
            error_of(lambda: futures[0].result(timeout=0.01))[0],
            error_of(lambda: list(as_completed(futures, timeout=0.01)))[0],
        ]
        held = os.open(path, os.O_RDWR)
        wait(futures, 60)
        os.close(held)
    return found


if __name__ == "__main__":
    main()

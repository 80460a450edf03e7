"""What a script has set up around itself is so inside calls: folder, environment, path, settings of modules, warnings, logging."""

import collections
import contextlib
import decimal
import functools
import gc
import io
import locale
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

BY_VALUE = bool(os.environ.get("BY_VALUE"))  # the top level is not run again in the workers
records = io.StringIO()
log = logging.getLogger("surroundings")
log.propagate = False
np.set_printoptions(precision=2, suppress=True)
np.seterr(divide="raise")
decimal.getcontext().prec = 5
sys.setrecursionlimit(4321)
warnings.filterwarnings("error", message="serious")
warnings.filterwarnings("ignore", message="harmless")
os.environ["SET_AT_THE_TOP"] = "top"
HERE = Path(os.path.abspath(__file__)).parent if "__file__" in globals() else Path.cwd()
STARTED_IN = os.getcwd()
print = functools.partial(print, flush=True)
DESCRIPTION = __doc__
ARGUMENTS = list(sys.argv)
socket.setdefaulttimeout(12.5)
collections.ABC_OF_SCRIPT = "set on a module"


class Handler(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(self.format(record))


handler = Handler()
handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
log.addHandler(handler)
log.setLevel(logging.DEBUG)


def where():
    return os.getcwd()


def variable(name):
    return os.environ.get(name), os.getenv(name)


def read_relative(name):
    with open(name) as file:
        return file.read()


def write_relative(name, text):
    Path(name).write_text(text)


def imported(name):
    return __import__(name).answer()


def imported_submodule():
    import late_package.part

    return late_package.part.who(), late_package.__name__


def path_has(folder):
    return folder in sys.path


def warned(text):
    try:
        warnings.warn(text, UserWarning, stacklevel=1)
    except UserWarning as error:
        return f"raised {error}"
    return "not raised"


def depth():
    return sys.getrecursionlimit()


def deep(n):
    return 0 if n == 0 else 1 + deep(n - 1)


def print_options():
    return str(np.array([1.23456, 1e-9])), np.get_printoptions()["precision"]


def divide():
    try:
        return float(np.float64(1) / np.float64(0))
    except FloatingPointError:
        return "raised"


def with_errstate():
    with np.errstate(divide="ignore"):
        return float(np.float64(1) / np.float64(0)), divide()


def decimals():
    return str(decimal.Decimal(1) / decimal.Decimal(3)), decimal.getcontext().prec


def logged(text):
    before = len(handler.texts)
    log.debug(text)
    return handler.texts[before:], log.level, log.propagate, [type(h).__name__ for h in log.handlers]


def constants():
    return str(HERE), STARTED_IN, ARGUMENTS


def arguments():
    return list(sys.argv)


def own_name():
    return __name__ in ("__main__", "__mp_main__"), globals().get("__file__")


def own_doc():
    return __doc__, DESCRIPTION


def default_timeout():
    return socket.getdefaulttimeout()


def set_on_module():
    return collections.ABC_OF_SCRIPT


def print_some(text):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        print(text, end="")
    return shown.getvalue()


def in_thread():
    return threading.current_thread() is threading.main_thread(), threading.active_count() > 0


def with_timer():
    found = []

    def ring(*_):
        found.append("rang")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    deadline = time.monotonic() + 20
    while not found and time.monotonic() < deadline:
        pass
    signal.signal(signal.SIGALRM, before)
    return found


def set_variable(name, value):
    os.environ[name] = value
    return os.getpid()


def collected():
    return gc.isenabled()


def language():
    return locale.setlocale(locale.LC_ALL)


def standard_streams():
    return sys.stdin is None or sys.stdin.fileno() >= 0 or True, sys.stdout.write("") == 0, sys.stderr.write("") == 0


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def logged_or_named(run):
    """Where nothing is run again, an error that names the handler is fine: it has a lock."""
    try:
        return run(logged, "hello")
    except Exception as error:
        if not (BY_VALUE and "handler" in str(error)):
            raise
        return "named", error


def main():
    os.environ["SET_BEFORE"] = "before"
    with Executor(2) as ex:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        attempt("the folder", lambda: run(where), os.getcwd())
        attempt(
            "the environment",
            lambda: [run(variable, n) for n in ("SET_AT_THE_TOP", "SET_BEFORE", "HOME")],
            [("top",) * 2, ("before",) * 2, (os.environ.get("HOME"),) * 2],
        )
        attempt("warning filters", lambda: [run(warned, t) for t in ("serious", "harmless")], ["raised serious", "not raised"])
        attempt("the recursion limit", lambda: (run(depth), run(deep, 2500)), (4321, 2500))
        attempt("numpy's print options", lambda: BY_VALUE or run(print_options) == ("[1.23 0.  ]", 2))
        attempt("numpy's errors", lambda: BY_VALUE or (run(divide), run(with_errstate)) == ("raised", (float("inf"), float("inf"))))
        attempt("the decimal context", lambda: BY_VALUE or run(decimals) == ("0.33333", 5))
        attempt(
            "logging with a handler of the script",
            lambda: logged_or_named(run),
            lambda found: (
                found == (["DEBUG surroundings: hello"], logging.DEBUG, False, ["Handler"])
                or (BY_VALUE and found[0] in ([], ["DEBUG surroundings: hello"], "named"))
            ),
        )
        attempt("constants made of __file__, folder and arguments", lambda: run(constants), (str(HERE), STARTED_IN, ARGUMENTS))
        attempt("sys.argv", lambda: run(arguments), sys.argv)
        attempt("__name__ and __file__", lambda: run(own_name), (True, globals().get("__file__")))
        attempt("__doc__", lambda: run(own_doc), (__doc__, __doc__))
        attempt("a setting of a module", lambda: BY_VALUE or run(default_timeout) == 12.5)
        attempt("a name that the script has put on a module", lambda: BY_VALUE or run(set_on_module) == "set on a module")
        attempt("redirect_stdout", lambda: run(print_some, "text"), "text")
        attempt("calls run in the main thread, with signals", lambda: (run(in_thread), run(with_timer)), ((True, True), ["rang"]))
        attempt("garbage collection", lambda: run(collected))
        attempt("standard streams", lambda: run(standard_streams), (True, True, True))
        attempt("the script's handler is left alone", lambda: handler.texts, [])
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        folder, other = os.path.realpath(folder), os.path.realpath(other)
        Path(folder, "table.txt").write_text("in the folder")
        Path(other, "late_module.py").write_text("def answer(): return 42\n")
        Path(other, "late_package").mkdir()
        Path(other, "late_package", "__init__.py").write_text("")
        Path(other, "late_package", "part.py").write_text("def who(): return __name__\n")
        before = os.getcwd()
        os.chdir(folder)
        sys.path.insert(0, other)
        os.environ["SET_BEFORE"] = "changed"
        os.environ["SET_LATE"] = "late"
        del os.environ["SET_AT_THE_TOP"]
        sys.setrecursionlimit(5432)
        warnings.filterwarnings("error", message="newly serious")
        try:
            with Executor(2) as ex:

                def run(function, *args):
                    return ex.submit(function, *args).result(60)

                attempt("os.chdir before another executor", lambda: run(where), folder)
                attempt(
                    "a file by its relative name",
                    lambda: (
                        run(read_relative, "table.txt"),
                        run(write_relative, "made.txt", "made"),
                        Path(folder, "made.txt").read_text(),
                    ),
                    ("in the folder", None, "made"),
                )
                attempt(
                    "sys.path before another executor",
                    lambda: (run(path_has, other), run(imported, "late_module"), run(imported_submodule)),
                    (True, 42, ("late_package.part", "late_package")),
                )
                attempt(
                    "a function of a module that is new",
                    lambda: (lambda m: (run(m.answer), run(getattr, m.answer, "__module__")))(__import__("late_module")),
                    (42, "late_module"),
                )
                attempt(
                    "the environment before another executor",
                    lambda: [run(variable, n)[0] for n in ("SET_BEFORE", "SET_LATE", "SET_AT_THE_TOP")],
                    ["changed", "late", None],
                )
                attempt("the recursion limit before another executor", lambda: run(depth), 5432)
                attempt(
                    "warning filters before another executor",
                    lambda: [run(warned, t) for t in ("newly serious", "serious", "harmless")],
                    ["raised newly serious", "raised serious", "not raised"],
                )
                attempt(
                    "what a call sets in its environment stays there",
                    lambda: (run(set_variable, "SET_THERE", "x") > 0, os.environ.get("SET_THERE")),
                    (True, None),
                )
        finally:
            sys.path.remove(other)
            os.chdir(before)
    with Executor(2) as ex:
        attempt(
            "an executor after that has the folder of now",
            lambda: (ex.submit(where).result(60), ex.submit(path_has, other).result(60)),
            (before, False),
        )


if __name__ == "__main__":
    main()

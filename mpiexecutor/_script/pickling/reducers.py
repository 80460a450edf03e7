"""Reducers for globals that pickle refuses, or that must not be copied: a worker makes a new object of the same kind.

Locks and thread-locals are new ones. Files, loggers and libraries of ctypes are opened again. Generators of random numbers are
seeded for the worker: see random_generators.py. All this is for globals only: the arguments of a call are pickled as with
ProcessPoolExecutor.
"""

import contextvars
import io
import logging
import queue
import random
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import IO, Any, Final

from mpiexecutor._script.random_generators import reduce_numpy_generator, reduce_random

from .shared_memory import reduce_array, reduce_inherited

_Lock: Final = type(threading.Lock())
_RLock: Final = type(threading.RLock())
Reduced = tuple[Any, ...]  # as `__reduce__` returns it
_STREAMS: Final = ("stdin", "stdout", "stderr")


class _Unusable:
    """Stands for an executor in a worker: a class or function that is sent there may refer to an executor without using it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"an executor cannot be used inside a call that it runs ({name}): submit from the root instead")


def reduce_kind(obj: Any) -> Reduced | None:
    """Return how a worker makes an object of the same kind, as `__reduce__` does; None if pickle can do it.

    Raises:
        NotShared: The object would not be shared with the worker, although it is meant for that.

    """
    for kind, reduce in _KINDS.items():
        if isinstance(obj, kind):
            return reduce(obj)
    module = type(obj).__module__
    for beginning, reduce in _BY_MODULE.items():
        if module.startswith(beginning):
            return reduce(obj)
    return None


def reduce_weak(obj: Any, held: Callable[[Any], bool]) -> Reduced | None:
    """Return how a worker makes a weak dictionary, as `__reduce__` does; None for other objects.

    It has the items for which `held` says that a global refers to them. Others would vanish in the worker at once.
    """
    if isinstance(obj, weakref.WeakValueDictionary):
        return _make_weak, (type(obj), [(key, value) for key, value in obj.items() if held(value)])
    if isinstance(obj, weakref.WeakKeyDictionary):
        return _make_weak, (type(obj), [(key, value) for key, value in obj.items() if held(key)])
    return None


def _reduce_context_variable(variable: "contextvars.ContextVar[Any]") -> Reduced:
    try:
        default = contextvars.Context().run(variable.get)
    except LookupError:
        return contextvars.ContextVar, (variable.name,)
    return partial(contextvars.ContextVar, default=default), (variable.name,)


def _reduce_file(file: IO[Any]) -> Reduced | None:
    if isinstance(file, (io.StringIO, io.BytesIO)):
        return None
    for name in _STREAMS:
        if file is getattr(sys, name) or file is getattr(sys, f"__{name}__"):
            return getattr, (sys, name)
    if file.closed:
        raise TypeError("a closed file cannot be opened again")
    path, mode = getattr(file, "name", None), getattr(file, "mode", None)
    if not isinstance(path, str) or not isinstance(mode, str):
        raise TypeError("an open file without a name cannot be opened again")
    text = (file.encoding, file.errors) if isinstance(file, io.TextIOWrapper) else None
    position = file.tell() if "r" in mode and "+" not in mode else None
    return _open_again, (path, mode, text, position)


def _open_again(name: str, mode: str, text: tuple[str, str] | None, position: int | None) -> IO[Any]:
    """Open a file as the script has, but do not truncate it: the script may have written to it."""
    mode = mode.replace("w", "a").replace("x", "a").replace("b", "")
    if text is None:
        file: IO[Any] = open(name, mode + "b")  # noqa: SIM115, PTH123 - it stays open
    else:
        file = open(name, mode, encoding=text[0], errors=text[1])  # noqa: SIM115, PTH123 - the same
    if position is not None:
        file.seek(position)
    return file


def _reduce_ctypes(obj: Any) -> Reduced | None:
    import ctypes  # noqa: PLC0415 - loaded by the script

    if isinstance(obj, ctypes._CFuncPtr):  # type: ignore[attr-defined]  # noqa: SLF001 - the type has no other name
        library: Any = (obj._objects or {}).get("0")  # noqa: SLF001 - nothing else knows it
        if isinstance(library, ctypes.CDLL):
            function: Any = obj
            return _function_of, (library, function.__name__, function.argtypes, function.restype)
    if isinstance(obj, ctypes.CDLL):
        prototypes = {
            name: (function.argtypes, function.restype)
            for name, function in vars(obj).items()
            if isinstance(function, ctypes._CFuncPtr)  # type: ignore[attr-defined]  # noqa: SLF001 - the type has no other name
        }
        return _open_library, (type(obj), obj._name, prototypes)  # noqa: SLF001 - it has no other
    return None


def _function_of(library: Any, name: str, argtypes: Any, restype: Any) -> Any:
    function = getattr(library, name)
    function.argtypes, function.restype = argtypes, restype
    return function


def _open_library(kind: type, name: str | None, prototypes: dict[str, Any]) -> Any:
    library = kind(name)
    for function, prototype in prototypes.items():
        _function_of(library, function, *prototype)
    return library


def _same_logger(name: str, level: int, propagate: bool) -> logging.Logger:
    logger = logging.getLogger(name if name != "root" else None)
    logger.setLevel(level)
    logger.propagate = propagate
    return logger


def _make_weak(kind: type, items: list[tuple[Any, Any]]) -> Any:
    made = kind()
    for key, value in items:
        made[key] = value
    return made


_KINDS: Final[dict[type, Callable[[Any], Reduced | None]]] = {
    _Lock: lambda _: (threading.Lock, ()),
    _RLock: lambda _: (threading.RLock, ()),
    threading.local: lambda local: (type(local), ()),
    contextvars.ContextVar: _reduce_context_variable,
    io.IOBase: _reduce_file,
    queue.SimpleQueue: lambda _: (queue.SimpleQueue, ()),
    random.Random: reduce_random,
    logging.Logger: lambda logger: (_same_logger, (logger.name, logger.level, logger.propagate)),
}

# By the beginning of the name of the type's module.
_BY_MODULE: Final[dict[str, Callable[[Any], Reduced | None]]] = {
    "mpiexecutor": lambda obj: (_Unusable, ()) if hasattr(obj, "submit") else None,
    "multiprocessing.": reduce_inherited,
    "ctypes": _reduce_ctypes,
    "numpy.random": reduce_numpy_generator,
    "numpy": reduce_array,
    "tempfile": lambda file: _reduce_file(file.file) if hasattr(file, "file") else None,  # by its name: only the script deletes it
}

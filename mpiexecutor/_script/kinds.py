"""How a global is made anew in a worker if pickle refuses it, or if a copy would be wrong.

A lock, an open file or a cache belongs to its process: a worker gets a fresh one of the same kind. A generator of random numbers is
rebuilt and then seeded with its state, the worker's rank and the executor's number: every worker draws from a stream of its own.

`reduce_kind` is for globals only. In the arguments of a call pickle has its way, as with ProcessPoolExecutor.
"""

import contextvars
import functools
import hashlib
import io
import logging
import mmap
import queue
import random
import sys
import threading
import typing
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import IO, Any, Final

from .names import LruCacheWrapper

_Lock: Final = type(threading.Lock())
_RLock: Final = type(threading.RLock())
_FUNCFLAG_PYTHONAPI, _FUNCFLAG_USE_ERRNO = 4, 8  # as in CPython's _ctypes
_STREAMS: Final = ("stdin", "stdout", "stderr")
_Reduced = tuple[Any, ...]


class Stream:
    """Which stream of random numbers this worker draws from: a worker sets it before it rebuilds globals."""

    key: tuple[int, ...] = ()


STREAM: Final = Stream()


class NotShared(TypeError):
    """A global is shared between processes by inheritance only: a copy in a worker would be silently wrong."""


class _Unusable:
    """Stands for an executor in a worker: a class or a function may refer to one without using it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"an executor cannot be used inside a call that it runs ({name}): submit from the root instead")


def reduce_kind(obj: Any) -> _Reduced | None:
    """Return how to make an object of the same kind in a worker, as `__reduce__` does; None if pickle knows.

    Raises:
        NotShared: it can neither be copied nor made anew.

    """
    for kind, reduce in _KINDS.items():
        if isinstance(obj, kind):
            return reduce(obj)
    module = type(obj).__module__
    for beginning, reduce in _BY_MODULE.items():
        if module.startswith(beginning):
            return reduce(obj)
    return None


def reduce_named(obj: Any) -> _Reduced | None:
    """Return how to make what pickle would carry by its own name only; None if it is another object."""
    if isinstance(obj, LruCacheWrapper):
        attributes = {name: value for name, value in vars(obj).items() if name != "__wrapped__"}
        return _make_lru_cache, (obj.__wrapped__, obj.cache_parameters(), attributes)
    if isinstance(obj, FunctionType) and _is_singledispatch(obj):
        implementations: Mapping[Any, Any] = obj.registry  # type: ignore[attr-defined]
        others = [(kind, function) for kind, function in implementations.items() if kind is not object]
        return _make_singledispatch, (implementations[object], others)
    if isinstance(obj, typing.NewType):
        return _make_newtype, (obj.__name__, obj.__supertype__, obj.__module__)
    if isinstance(obj, type) and obj.__module__ == "ctypes" and obj.__name__ == "CFunctionType":
        kind: Any = obj
        return _make_prototype, (kind._restype_, kind._argtypes_, kind._flags_)
    if isinstance(obj, typing.ParamSpec):
        return _make_parameters, (obj.__name__, obj.__module__)
    return None


def is_generator(obj: Any) -> bool:
    """Whether an object generates random numbers."""
    if isinstance(obj, random.Random):
        return not isinstance(obj, random.SystemRandom)
    return type(obj).__module__.startswith("numpy.random") and isinstance(obj, _numpy_generators())


def reseed_modules() -> None:
    """Have the generators behind `random` and `numpy.random` draw from this worker's stream."""
    random.seed(_seed_from(random.getstate()))
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed(_words_from(numpy_random.get_state()))


class GeneratorStates:
    """The states of the generators behind `random` and `numpy.random`, to have them again."""

    def __init__(self) -> None:
        self._random = random.getstate()
        self._numpy = sys.modules["numpy.random"].get_state() if "numpy.random" in sys.modules else None

    def restore(self) -> None:
        random.setstate(self._random)
        if self._numpy is not None:
            sys.modules["numpy.random"].set_state(self._numpy)


def _seed_from(state: object) -> int:
    return int.from_bytes(hashlib.sha256(repr((state, STREAM.key)).encode()).digest(), "big")


def _words_from(state: Any) -> list[int]:
    parts = [part.tobytes() if hasattr(part, "tobytes") else part for part in state]
    digest = hashlib.sha256(repr((parts, STREAM.key)).encode()).digest()
    return [int.from_bytes(digest[start : start + 4], "big") for start in range(0, 32, 4)]


# -- random numbers


def _reduce_random(obj: random.Random) -> _Reduced:
    if isinstance(obj, random.SystemRandom):
        return type(obj), ()
    return type(obj), (), obj.getstate(), None, None, _set_random


def _set_random(obj: random.Random, state: Any) -> None:
    obj.setstate(state)
    obj.seed(_seed_from(state))


def _numpy_generators() -> tuple[type, ...]:
    numpy_random = sys.modules["numpy.random"]
    return numpy_random.Generator, numpy_random.RandomState, numpy_random.BitGenerator


def _reduce_numpy_generator(obj: Any) -> _Reduced | None:
    if not isinstance(obj, _numpy_generators()):
        return None
    reduced: Any = obj.__reduce_ex__(5)
    make, arguments, *rest = reduced
    return _make_numpy_generator, (make, arguments, rest[0] if rest else None)


def _make_numpy_generator(make: Callable[..., Any], arguments: tuple[Any, ...], state: Any) -> Any:
    generator = make(*arguments)
    if state is not None:
        generator.__setstate__(state)
    numpy_random = sys.modules["numpy.random"]
    source = generator if isinstance(generator, numpy_random.BitGenerator) else generator._bit_generator  # noqa: SLF001 - of both kinds
    seeds = numpy_random.SeedSequence(_seed_from(_plain(source.state)))
    source.state = type(source)(seeds).state
    return generator


def _plain(state: Any) -> Any:
    """Replace arrays in a generator's state by their bytes: the text of a long one is cut."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state


# -- what belongs to a process


def _reduce_context_variable(variable: "contextvars.ContextVar[Any]") -> _Reduced:
    try:
        default = contextvars.Context().run(variable.get)
    except LookupError:
        return contextvars.ContextVar, (variable.name,)
    return _make_context_variable, (variable.name, default)


def _make_context_variable(name: str, default: Any) -> "contextvars.ContextVar[Any]":
    return contextvars.ContextVar(name, default=default)


def _reduce_file(file: IO[Any]) -> _Reduced | None:
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
    """Open a file as the script has, but never truncate it: the script may have written to it."""
    mode = mode.replace("w", "a").replace("x", "a").replace("b", "")
    if text is None:
        file: IO[Any] = open(name, mode + "b")  # noqa: SIM115, PTH123 - it stays open, as the script's
    else:
        file = open(name, mode, encoding=text[0], errors=text[1])  # noqa: SIM115, PTH123 - the same
    if position is not None:
        file.seek(position)
    return file


def _reduce_local(local: threading.local) -> _Reduced:
    return type(local), ()


def _reduce_temporary_file(file: Any) -> _Reduced | None:
    """Open a temporary file by its name: it is the script's, and not deleted by a worker."""
    return _reduce_file(file.file) if hasattr(file, "file") else None


def _reduce_array(array: Any) -> _Reduced | None:
    """Map a file again that an array is mapped from. What is in memory that only forked processes share would be silently wrong."""
    base = array if hasattr(array, "__array_interface__") else None
    while base is not None and not isinstance(base, mmap.mmap):
        if type(base).__module__.startswith(("multiprocessing.", "ctypes", "_ctypes")):
            _refuse_shared(base)
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if base is None:
        return None
    numpy: Any = sys.modules["numpy"]
    if type(array) is numpy.memmap and array.filename is not None and array.base is base:
        mode = "r+" if array.mode == "w+" else array.mode
        order = "F" if array.flags.fnc else "C"
        return numpy.memmap, (str(array.filename), array.dtype, mode, array.offset, array.shape, order)
    raise NotShared(
        "an array in memory that processes share is shared with forked processes only: open that memory in an initializer"
    )


def _refuse_shared(base: Any) -> None:
    """Raise NotShared if memory of ctypes belongs to multiprocessing."""
    holders = (base, getattr(base, "_obj", None), getattr(base, "_wrapper", None))
    if any(hasattr(each, "_wrapper") or type(each).__module__.startswith("multiprocessing.") for each in holders):
        raise NotShared(
            "an array in memory of multiprocessing is shared with forked processes only: use a multiprocessing.Manager()"
        )


def _reduce_inherited(obj: Any) -> _Reduced | None:
    """Make a lock of multiprocessing anew, for this worker and its children. What holds data would be silently wrong."""
    name, module = type(obj).__name__, type(obj).__module__
    if module == "multiprocessing.synchronize":
        arguments = {
            "Semaphore": lambda: (obj.get_value(),),
            "BoundedSemaphore": lambda: (obj.get_value(),),
            "Condition": lambda: (obj._lock,),  # noqa: SLF001 - it has no other name
            "Event": lambda: (obj.is_set(),),
            "Barrier": lambda: (obj.parties,),
        }.get(name, tuple)
        return _make_inherited, (name, arguments())
    if module in {"multiprocessing.sharedctypes", "multiprocessing.queues", "multiprocessing.heap", "multiprocessing.connection"}:
        raise NotShared(f"a multiprocessing {name} is shared with forked processes only: use that of a multiprocessing.Manager()")
    return None


def _make_inherited(name: str, arguments: tuple[Any, ...]) -> Any:
    import multiprocessing  # noqa: PLC0415 - for those who use it

    if name == "Event":
        event = multiprocessing.Event()
        if arguments[0]:
            event.set()
        return event
    return getattr(multiprocessing, name)(*arguments)


def _reduce_ctypes(obj: Any) -> _Reduced | None:
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
    for function, (argtypes, restype) in prototypes.items():
        found = getattr(library, function)
        found.argtypes, found.restype = argtypes, restype
    return library


def _same_logger(name: str, level: int, propagate: bool) -> logging.Logger:
    logger = logging.getLogger(name if name != "root" else None)
    logger.setLevel(level)
    logger.propagate = propagate
    return logger


def reduce_weak(obj: Any, held: Callable[[Any], bool]) -> _Reduced | None:
    """Return how to make a weak dictionary: with those items that the script holds otherwise; others would vanish there."""
    if isinstance(obj, weakref.WeakValueDictionary):
        return _make_weak, (type(obj), [(key, value) for key, value in obj.items() if held(value)])
    if isinstance(obj, weakref.WeakKeyDictionary):
        return _make_weak, (type(obj), [(key, value) for key, value in obj.items() if held(key)])
    return None


def _make_weak(kind: type, items: list[tuple[Any, Any]]) -> Any:
    made = kind()
    for key, value in items:
        made[key] = value
    return made


# -- functions that wrap others


def _make_lru_cache(function: Any, parameters: dict[str, Any], attributes: dict[str, Any]) -> Any:
    wrapper = functools.lru_cache(**parameters)(function)
    vars(wrapper).update(attributes)
    return wrapper


def _is_singledispatch(function: FunctionType) -> bool:
    return function.__code__.co_filename == functools.__file__ and hasattr(function, "registry") and hasattr(function, "dispatch")


def _make_singledispatch(base: Any, others: list[tuple[type, Any]]) -> Any:
    function = functools.singledispatch(base)
    for kind, implementation in others:
        function.register(kind, implementation)
    return function


def _make_prototype(restype: Any, argtypes: tuple[Any, ...], flags: int) -> Any:
    import ctypes  # noqa: PLC0415 - for those who use it

    errors = {"use_errno": bool(flags & _FUNCFLAG_USE_ERRNO), "use_last_error": False}
    make = ctypes.PYFUNCTYPE if flags & _FUNCFLAG_PYTHONAPI else ctypes.CFUNCTYPE
    return make(restype, *argtypes, **errors if make is ctypes.CFUNCTYPE else {})


def _make_newtype(name: str, supertype: Any, module: str) -> Any:
    made = typing.NewType(name, supertype)  # type: ignore[misc]
    made.__module__ = module
    return made


def _make_parameters(name: str, module: str) -> Any:
    made = typing.ParamSpec(name)  # type: ignore[misc]
    made.__module__ = module  # it takes that of its caller, of which pickle is none
    return made


_KINDS: Final[dict[type, Callable[[Any], _Reduced | None]]] = {
    _Lock: lambda _: (threading.Lock, ()),
    _RLock: lambda _: (threading.RLock, ()),
    threading.local: _reduce_local,
    contextvars.ContextVar: _reduce_context_variable,
    io.IOBase: _reduce_file,
    queue.SimpleQueue: lambda _: (queue.SimpleQueue, ()),
    random.Random: _reduce_random,
    logging.Logger: lambda logger: (_same_logger, (logger.name, logger.level, logger.propagate)),
}

# By the beginning of the name of the module that a type is of.
_BY_MODULE: Final[dict[str, Callable[[Any], _Reduced | None]]] = {
    "mpiexecutor": lambda obj: (_Unusable, ()) if hasattr(obj, "submit") else None,
    "multiprocessing.": _reduce_inherited,
    "ctypes": _reduce_ctypes,
    "numpy.random": _reduce_numpy_generator,
    "numpy": _reduce_array,
    "tempfile": _reduce_temporary_file,
}

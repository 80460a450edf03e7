"""Reducers for functions and types that pickle would only refer to by name: caches, single dispatch, NewType, ParamSpec."""

import functools
import typing
from collections.abc import Callable
from types import FunctionType
from typing import Any

from mpiexecutor._script.names import LruCacheWrapper

_FUNCFLAG_PYTHONAPI, _FUNCFLAG_USE_ERRNO = 4, 8  # as in CPython's _ctypes


def reduce_named(obj: Any) -> tuple[Any, ...] | None:
    """Return how a worker makes an object that pickle would only refer to by name, as `__reduce__` does; None for other objects."""
    if isinstance(obj, LruCacheWrapper):
        attributes = {name: value for name, value in vars(obj).items() if name != "__wrapped__"}
        return _make_lru_cache, (obj.__wrapped__, obj.cache_parameters(), attributes)
    if isinstance(obj, FunctionType) and _is_singledispatch(obj):
        implementations: dict[Any, Any] = obj.registry  # type: ignore[attr-defined]
        others = [(kind, function) for kind, function in implementations.items() if kind is not object]
        return _make_singledispatch, (implementations[object], others)
    if isinstance(obj, typing.NewType):
        return _make_in_module, (obj.__module__, typing.NewType, obj.__name__, obj.__supertype__)
    if isinstance(obj, type) and obj.__module__ == "ctypes" and obj.__name__ == "CFunctionType":
        kind: Any = obj
        return _make_prototype, (kind._restype_, kind._argtypes_, kind._flags_)
    if isinstance(obj, typing.ParamSpec):
        return _make_in_module, (obj.__module__, typing.ParamSpec, obj.__name__)
    return None


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
    import ctypes  # noqa: PLC0415 - loaded by the script

    errors = {"use_errno": bool(flags & _FUNCFLAG_USE_ERRNO), "use_last_error": False}
    make = ctypes.PYFUNCTYPE if flags & _FUNCFLAG_PYTHONAPI else ctypes.CFUNCTYPE
    return make(restype, *argtypes, **errors if make is ctypes.CFUNCTYPE else {})


def _make_in_module(module: str, make: Callable[..., Any], *arguments: Any) -> Any:
    made = make(*arguments)
    made.__module__ = module  # the constructor takes it from its caller's frame
    return made

"""Pickles of calls and results: functions and classes of the script go by name, lambdas and closures by value.

A function that is pickled by value gets the globals of the `__main__` in which it is loaded. Each pickler collects the globals that
its pickle needs there.
"""

import contextlib
import copyreg
import pickle
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from cloudpickle import cloudpickle as _cloudpickle

from mpiexecutor._script.names import MAIN, NAMED_KINDS, by_name, globals_of, main_dict, name_of, top_of
from mpiexecutor._util.pickling import PROTOCOL, KeepingFilenames, NeedsCloudpickle, dumps_by, is_plain, writable

from .classes import reduce_class
from .named_objects import reduce_named

_PLAIN_KINDS: Final = {type, FunctionType}
_OF_SCRIPT: Final = {MAIN, None}
Buffers = list[memoryview]
Has = Callable[[str], bool]  # whether the process that loads the pickle has this global


def always(_name: str) -> bool:
    return True


def dumps(obj: Any, names: set[str], has: Has = always) -> tuple[bytes, Buffers]:
    """Pickle a call or a result.

    Args:
        obj: What is pickled. Whatever its own methods raise is raised here.
        names: Takes the globals of the script that the pickle needs.
        has: Whether the process that loads the pickle has a global; what it does not have is pickled by value.

    Returns:
        The pickle, and the large buffers that belong to it, which are not copied.

    """
    if is_plain(obj):
        return pickle.dumps(obj, PROTOCOL), []
    if not _cloudpickle.list_registry_pickle_by_value():
        plain_names: set[str] = set()
        with contextlib.suppress(Exception):  # cloudpickle pickles it, or raises the error
            found = dumps_by(partial(_PlainPickler, plain_names, has), obj)
            names |= plain_names
            return found
    return dumps_by(partial(CallPickler, names, set(), (), has), obj)


class _PlainPickler(pickle.Pickler):
    """The C pickler: pickles what belongs to the script by name, and refuses what only cloudpickle can pickle."""

    def __init__(self, names: set[str], has: Has, file: Any, protocol: int, **options: Any) -> None:
        super().__init__(file, protocol, **options)
        self._names = names
        self._has = has

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, NAMED_KINDS):
            module = getattr(obj, "__module__", MAIN)
            if module == MAIN or module is None:
                name = name_of(obj)
                if name is None or not self._has(top_of(name)):
                    raise NeedsCloudpickle
                self._names.add(top_of(name))
                return by_name, (name,)
        elif isinstance(obj, (BuiltinMethodType, MethodType)):
            return _reduce_method(obj) or NotImplemented
        elif (reduced := _own_reduce(obj)) is not None:
            if not isinstance(reduced, str):
                return reduced
            self._names.add(top_of(reduced))
            return by_name, (reduced,)
        return writable(obj)


class CallPickler(KeepingFilenames):
    """Cloudpickle, but what belongs to the script is pickled by name."""

    def __init__(
        self, names: set[str], references: set[str], whole: Sequence[str], has: Has, file: Any, protocol: int, **options: Any
    ) -> None:
        """Collect names of globals.

        Args:
            names: Takes the globals that the pickle needs.
            references: Takes those of them that must exist when the pickle is loaded.
            whole: The qualified names of what is pickled by value.
            has: As in `dumps`.
            file: As in pickle.Pickler, like the others.
            protocol: The same.
            options: The same.

        """
        super().__init__(file, protocol, **options)
        self.names = names
        self.references = references
        self._main = main_dict()
        self._has = has
        self._whole = whole
        self._by_value = _cloudpickle.list_registry_pickle_by_value()  # modules that the script has registered

    def reducer_override(self, obj: Any) -> Any:
        reduced: Any
        if isinstance(obj, NAMED_KINDS):
            if type(obj) in _PLAIN_KINDS and obj.__module__ not in _OF_SCRIPT:  # faster than cloudpickle, with the same result
                importable = getattr(sys.modules.get(obj.__module__), obj.__qualname__, None) is obj and not self._by_value
                return NotImplemented if importable else super().reducer_override(obj)
            if (reduced := self._reduce_named(obj)) is not None:
                return reduced
        elif isinstance(obj, (BuiltinMethodType, MethodType)) and (reduced := _reduce_method(obj)):
            return reduced
        elif (reduced := _own_reduce(obj)) is not None:
            if not isinstance(reduced, str):
                return reduced
            return object.__reduce_ex__(obj, PROTOCOL) if self._is_whole(reduced) else self._refer(reduced)
        return super().reducer_override(obj)

    def _reduce_named(self, obj: Any) -> Any:
        """Return how to pickle a function or class, by name if the script has one for it; None if cloudpickle can do it."""
        name = name_of(obj)
        if name is not None and not self._is_whole(name) and self._has(top_of(name)):
            return self._refer(name)
        if (reduced := reduce_named(obj)) is not None or not isinstance(obj, type):
            return reduced
        reduced = super().reducer_override(obj)
        is_by_value = reduced is not NotImplemented and len(reduced) > 2  # noqa: PLR2004 - more than a name of a builtin
        return self._reduce_class(obj, reduced, is_local=name is None) if is_by_value else reduced

    def _refer(self, name: str) -> tuple[Any, ...]:
        self.references.add(top_of(name))
        self.names.add(top_of(name))
        return by_name, (name,)

    def _is_whole(self, name: str) -> bool:
        return any(name == whole or name.startswith(whole + ".") for whole in self._whole)

    def _dynamic_function_reduce(self, function: FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(function)
        if function.__globals__ is not self._main:
            return reduced
        _, (code, _, _, _, closure), (state, slots), *more = reduced
        self.names |= globals_of(code)
        slots["__globals__"] = {}
        return function_of_script, (code, closure), (state, slots), *more

    def _reduce_class(self, kind: type, reduced: Any, *, is_local: bool) -> Any:
        return reduce_class(kind, reduced, is_local=is_local)


def function_of_script(code: CodeType, closure: tuple[Any, ...] | None) -> FunctionType:
    """Make a function whose globals are those of the `__main__` in which it is loaded."""
    return _cloudpickle._make_function(code, main_dict(), None, None, closure)  # type: ignore[no-any-return]  # noqa: SLF001


def module_level(module: str, name: str) -> Any:
    """Return an attribute of a module, which is imported if necessary."""
    return getattr(sys.modules[module] if module in sys.modules else __import__(module, fromlist=["_"]), name)


def _reduce_method(method: Any) -> tuple[Any, ...] | None:
    """Return how to pickle a method of a module's hidden object by the module's name for it: random.random, numpy.random.rand."""
    owner = method.__self__
    if isinstance(owner, (ModuleType, type)):
        return None
    module = type(owner).__module__
    if module in {"builtins", MAIN} or getattr(sys.modules.get(module), method.__name__, None) != method:
        return None
    return module_level, (module, method.__name__)


def _own_reduce(obj: Any) -> Any:
    """Return the result of `__reduce__` if a class of the script defines it; it may be the name of a global. Else None."""
    kind: Any = type(obj)
    if kind.__module__ != MAIN or kind.__reduce__ is object.__reduce__ or kind in copyreg.dispatch_table:
        return None
    return obj.__reduce__() if kind.__reduce_ex__ is object.__reduce_ex__ else None

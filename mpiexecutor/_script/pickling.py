"""Pickles that name what belongs to the script instead of carrying it.

    CallPickler        calls and results: functions and classes of __main__ by name; lambdas and closures by value, with the globals
                       of the __main__ that they arrive in
    DefinitionPickler  the value of a global, for another process: that one by value, all others by name; see kinds.py
    DigestPickler      the same for comparison: equal digests mean that a worker's own global is as good as the script's

Each collects the globals that its pickle needs where it is loaded. By value is cloudpickle's way, with two differences: a class
that the loading process knows already is never changed by a result, and `__init_subclass__` and metaclasses of the script are not
run again for a class that is rebuilt: what they did once is part of the script's globals.
"""

import contextlib
import copyreg
import hashlib
import io
import pickle
import secrets
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from cloudpickle import cloudpickle as _cloudpickle

from mpiexecutor._util.pickling import PROTOCOL, KeepingFilenames, NeedsCloudpickle, is_plain, keeper_of, writable

from .kinds import STREAM, is_generator, reduce_kind, reduce_named, reduce_weak
from .names import LOOKUP, MAIN, NAMED_KINDS, by_name, globals_of, main_dict, name_of, top_of

_NO_IDENTITY: Final = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset, range, ModuleType, *NAMED_KINDS)
_complete: "weakref.WeakSet[type]" = weakref.WeakSet()  # local classes that this process has made, or has pickled
_PLAIN_KINDS: Final = {type, FunctionType}
_OF_SCRIPT: Final = {MAIN, None}
Buffers = list[memoryview]


def function_of_script(code: CodeType, closure: tuple[Any, ...] | None) -> FunctionType:
    """Make a function whose globals are those of the `__main__` that it is loaded in."""
    return _cloudpickle._make_function(code, main_dict(), None, None, closure)  # type: ignore[no-any-return]  # noqa: SLF001


def module_level(module: str, name: str) -> Any:
    """Return what a module has under this name."""
    return getattr(sys.modules[module] if module in sys.modules else __import__(module, fromlist=["_"]), name)


def _reduce_method(method: Any) -> tuple[Any, ...] | None:
    """Name a method of an object that a module keeps to itself: random.random, numpy.random.rand."""
    owner = method.__self__
    if isinstance(owner, (ModuleType, type)):
        return None
    module = type(owner).__module__
    if module in {"builtins", MAIN} or getattr(sys.modules.get(module), method.__name__, None) != method:
        return None
    return module_level, (module, method.__name__)


def _own_reduce(obj: Any) -> Any:
    """Return what the `__reduce__` of a class of the script returns, perhaps the name of a global; None if it has none."""
    kind: Any = type(obj)
    if kind.__module__ != MAIN or kind.__reduce__ is object.__reduce__ or kind in copyreg.dispatch_table:
        return None
    return obj.__reduce__() if kind.__reduce_ex__ is object.__reduce_ex__ else None


class _PlainPickler(pickle.Pickler):
    """The C pickler. Names what belongs to the script; refuses what only cloudpickle can carry."""

    def __init__(self, file: io.BytesIO, keep: Callable[[pickle.PickleBuffer], bool], names: set[str], has: "Has") -> None:
        super().__init__(file, PROTOCOL, buffer_callback=keep)
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


Has = Callable[[str], bool]  # whether the other side has a global of this name


class CallPickler(KeepingFilenames):
    """Pickles calls and results, by cloudpickle."""

    def __init__(
        self,
        file: Any,
        keep: Callable[[pickle.PickleBuffer], bool] | None,
        names: set[str],
        has: Has,
        whole: Sequence[str] = (),
    ) -> None:
        """Collect in `names` the globals that the pickle needs. `whole` are the qualified names of what is pickled by value."""
        super().__init__(file, PROTOCOL, buffer_callback=keep)
        self.names = names
        self.refers: set[str] = set()  # the part of them that has to be there when the pickle is loaded
        self._main = main_dict()
        self._has = has
        self._whole = whole
        self._by_value = _cloudpickle.list_registry_pickle_by_value()  # modules that the script has registered

    def reducer_override(self, obj: Any) -> Any:
        reduced: Any
        if isinstance(obj, NAMED_KINDS):
            if type(obj) in _PLAIN_KINDS and obj.__module__ not in _OF_SCRIPT:  # a shorter way to what cloudpickle finds
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
        """Name what the script has under a name, unless it is what is pickled by value; None if cloudpickle knows."""
        name = name_of(obj)
        if name is not None and not self._is_whole(name) and self._has(top_of(name)):
            return self._refer(name)
        if (reduced := reduce_named(obj)) is not None or not isinstance(obj, type):
            return reduced
        reduced = super().reducer_override(obj)
        is_by_value = reduced is not NotImplemented and len(reduced) > 2  # noqa: PLR2004 - more than a name of a builtin
        return self._reduce_class(obj, reduced, is_local=name is None) if is_by_value else reduced

    def _refer(self, name: str) -> tuple[Any, ...]:
        self.refers.add(top_of(name))
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
        make, arguments, state, *_ = reduced
        *arguments, tracker, extra = arguments
        if make is _cloudpickle._make_skeleton_class:  # noqa: SLF001 - that of an enum has it
            arguments[3] = {**arguments[3], "__qualname__": kind.__qualname__}
        if is_local:
            _complete.add(kind)
        else:
            tracker = None  # its name says which class it is
        if make is _cloudpickle._make_skeleton_class:  # noqa: SLF001 - which leaves these out
            arguments[3]["__qualname__"] = kind.__qualname__
            if vars(kind).get("__slots__"):
                arguments[3]["__slots__"] = vars(kind)["__slots__"]
        return _make_class, (make, arguments, tracker and tracker.partition("@")[0], extra), state, None, None, _set_class


def _make_class(make: Callable[..., type], arguments: list[Any], tracker: str | None, extra: Any) -> type:
    """Make a class without its contents, or find the one that this process has made of the same class before."""
    if tracker is not None and LOOKUP.bring is not None:
        tracker = f"{tracker}@{STREAM.key}"  # each executor has its own
    known = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)  # noqa: SLF001 - where cloudpickle keeps them
    if known is not None:
        return known  # type: ignore[no-any-return]
    bases = arguments[0] if make is _cloudpickle._make_skeleton_enum else arguments[2]  # noqa: SLF001 - as cloudpickle makes them
    with _without_hooks(bases):
        if make is _cloudpickle._make_skeleton_class and arguments[0].__module__ == MAIN:  # noqa: SLF001
            made = _make_without_metaclass(*arguments)
            return _cloudpickle._lookup_class_or_track(tracker, made)  # type: ignore[no-any-return]  # noqa: SLF001
        return make(*arguments, tracker, extra)


def _make_without_metaclass(metaclass: type, name: str, bases: tuple[Any, ...], attributes: dict[str, Any]) -> type:
    """Make a class of a metaclass of the script, but by the first of its bases that is not of the script."""
    maker: Any = next(base for base in metaclass.__mro__ if base.__module__ != MAIN)
    resolved = types.resolve_bases(bases)
    attributes = dict(attributes) if resolved is bases else {**attributes, "__orig_bases__": bases}
    return maker.__new__(metaclass, name, resolved, attributes)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _without_hooks(bases: Sequence[Any]) -> Iterator[None]:
    """Take `__init_subclass__` away from the script's classes for a moment."""
    hooks = [
        (kind, vars(kind)["__init_subclass__"])
        for kind in {kind: None for base in bases if isinstance(base, type) for kind in base.__mro__}
        if kind.__module__ == MAIN and "__init_subclass__" in vars(kind)
    ]
    for kind, _ in hooks:
        type.__delattr__(kind, "__init_subclass__")
    try:
        yield
    finally:
        for kind, hook in hooks:
            type.__setattr__(kind, "__init_subclass__", hook)


def _set_class(kind: type, state: Any) -> type:
    """Fill a class. A class that the script has already is not changed by what comes back from a worker."""
    if kind not in _complete or LOOKUP.bring is not None:
        _cloudpickle._class_setstate(kind, state)  # noqa: SLF001 - as cloudpickle does
        _complete.add(kind)
    return kind


class DefinitionPickler(CallPickler):
    """Pickles the values of globals, for a process that has, or will have, the other globals under their names."""

    def __init__(
        self,
        file: Any,
        keep: Callable[[pickle.PickleBuffer], bool] | None,
        names: set[str],
        whole: Sequence[str],
        identities: Mapping[int, str],
    ) -> None:
        super().__init__(file, keep, names, always, whole)
        self._identities = identities

    def _is_whole_itself(self, obj: Any) -> bool:
        return self._identities.get(id(obj)) in self._whole

    def _is_held(self, obj: Any) -> bool:
        return id(obj) in self._identities

    def persistent_id(self, obj: Any) -> str | None:
        """Return the name of another global: what two globals share they still share in the worker."""
        name = self._identities.get(id(obj))
        if name is None or name in self._whole:
            return None
        self.refers.add(name)
        self.names.add(name)
        return name

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, NAMED_KINDS):
            reduced = reduce_kind(obj) or reduce_weak(obj, self._is_held if self._is_whole_itself(obj) else _never)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)


class DigestPickler(DefinitionPickler):
    """Pickles for comparison only: what is no part of a global's meaning is left out."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, CodeType):
            return str, (_digest_of_code(obj),)
        if is_generator(obj):
            return str, (secrets.token_hex(8),)  # never equal: each worker has a stream of its own
        return super().reducer_override(obj)

    def _dynamic_function_reduce(self, function: FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(function)
        reduced[2][1]["_cloudpickle_submodules"] = []  # those that happen to be imported
        return reduced

    def _reduce_class(self, kind: type, reduced: Any, *, is_local: bool) -> Any:
        make, (maker, arguments, _, extra), state, *rest = super()._reduce_class(kind, reduced, is_local=is_local)
        return make, (maker, arguments, None, extra), state, *rest


def _digest_of_code(code: CodeType) -> str:
    """Say in a few characters what code does: the same for the same source, however it was compiled and stored."""
    constants = [_digest_of_code(constant) if isinstance(constant, CodeType) else _text(constant) for constant in code.co_consts]
    parts = (
        code.co_code,
        constants,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_flags,
        code.co_argcount,
        code.co_kwonlyargcount,
        code.co_posonlyargcount,
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _text(constant: object) -> str:
    """Return the text of a constant; sets have no order."""
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def always(_name: str) -> bool:
    return True


def _never(_obj: object) -> bool:
    return False


def dumps(obj: Any, names: set[str], has: Has = always) -> tuple[bytes, Buffers]:
    """Pickle a call or a result.

    Args:
        obj: What is pickled. Whatever its own methods raise is raised here.
        names: Takes the globals of the script that the pickle needs.
        has: Whether the other side has a global: what it does not have goes by value.

    Returns:
        The pickle, and the large buffers that belong to it, which are not copied.

    """
    if is_plain(obj):
        return pickle.dumps(obj, PROTOCOL), []
    if not _cloudpickle.list_registry_pickle_by_value():
        buffers: Buffers = []
        plain_names: set[str] = set()
        file = io.BytesIO()
        try:
            _PlainPickler(file, keeper_of(buffers), plain_names, has).dump(obj)
        except Exception:  # noqa: BLE001, S110 - cloudpickle has the last word, and raises what there is to raise
            pass
        else:
            names |= plain_names
            return file.getvalue(), buffers
    buffers = []
    file = io.BytesIO()
    CallPickler(file, keeper_of(buffers), names, has).dump(obj)
    return file.getvalue(), buffers


def identities_of(main: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of those globals whose identity may matter, by id."""
    names: dict[int, str] = {}
    for name, value in list(main.items()):
        if not isinstance(value, _NO_IDENTITY) and not (name.startswith("__") and name.endswith("__")):
            names.setdefault(id(value), name)
    return names


class _Hash:
    """A file that keeps nothing but a digest of what is written to it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha1(usedforsecurity=False)  # the fastest where processors have instructions for it

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return len(data)

    def keep(self, buffer: pickle.PickleBuffer) -> bool:
        self._hash.update(buffer.raw())
        return False

    def digest(self) -> bytes:
        return self._hash.digest()


def digest_of(name: str, value: Any, names: set[str], identities: Mapping[int, str], refers: set[str]) -> bytes | None:
    """Return a digest of the value of a global; None if it cannot be pickled. Collect the globals that it needs and refers to."""
    file = _Hash()
    pickler = DigestPickler(file, file.keep, names, (name,), identities)
    try:
        pickler.dump(value)  # without the name: it may be the same string as one in the value, or only an equal one
    except (Exception, SystemExit):  # noqa: BLE001 - whatever its own code raises
        return None
    finally:
        refers |= pickler.refers
    return file.digest()


def dump_definitions(values: Mapping[str, Any], names: set[str], identities: Mapping[int, str]) -> tuple[bytes, Buffers, set[str]]:
    """Pickle the values of globals that refer to each other, or of one.

    Args:
        values: By qualified name. Whatever their own methods raise is raised here.
        names: Takes the globals that they need.
        identities: See `identities_of`.

    Returns:
        The pickle, its large buffers, and the globals that have to be there when it is loaded.

    """
    buffers: Buffers = []
    file = io.BytesIO()
    pickler = DefinitionPickler(file, keeper_of(buffers), names, tuple(values), identities)
    pickler.dump(dict(values))
    return file.getvalue(), buffers, pickler.refers


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: str) -> Any:
        return by_name(pid)


def load_definitions(data: bytes | memoryview, buffers: Sequence[Any] = ()) -> dict[str, Any]:
    """Rebuild the values of globals, by qualified name."""
    return _Unpickler(io.BytesIO(data), buffers=buffers).load()  # type: ignore[no-any-return]

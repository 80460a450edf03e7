"""Classes that are pickled by value: as cloudpickle does it, with two differences.

A class that the loading process has already is not changed when it is loaded again, as part of a result for example. And
`__init_subclass__` and metaclasses of the script do not run again for a class that is rebuilt: what they have done once, such as
registering the class, is part of the script's globals.
"""

import contextlib
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cloudpickle import cloudpickle as _cloudpickle

from mpiexecutor._script.names import LOOKUP, MAIN
from mpiexecutor._script.random_generators import STREAM

_complete: "weakref.WeakSet[type]" = weakref.WeakSet()  # local classes that this process has rebuilt or pickled


def reduce_class(kind: type, reduced: Any, *, is_local: bool) -> Any:
    make, arguments, state, *_ = reduced
    *arguments, tracker, extra = arguments
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
    """Return a class without its attributes, or the one that this process has made of the same class before."""
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
    """Make a class whose metaclass is of the script, by the first base of the metaclass that is not of the script."""
    maker: Any = next(base for base in metaclass.__mro__ if base.__module__ != MAIN)
    resolved = types.resolve_bases(bases)
    attributes = dict(attributes) if resolved is bases else {**attributes, "__orig_bases__": bases}
    return maker.__new__(metaclass, name, resolved, attributes)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _without_hooks(bases: Sequence[Any]) -> Iterator[None]:
    """Remove `__init_subclass__` from the script's classes until the end of the block."""
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
    """Set the attributes of a class, unless this process is the script, and has the class already."""
    if kind not in _complete or LOOKUP.bring is not None:
        _cloudpickle._class_setstate(kind, state)  # noqa: SLF001 - as cloudpickle does
        _complete.add(kind)
    return kind

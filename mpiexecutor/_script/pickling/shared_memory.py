"""Reducers for objects that forked processes share: a worker makes new locks, and maps files again; shared data is refused."""

import mmap
import sys
from typing import Any


class NotShared(TypeError):
    """Raised for a global that only forked processes can share: with a copy, a call would silently miss what others write."""


def reduce_array(array: Any) -> tuple[Any, ...] | None:
    """Return how a worker maps the file of an array again; None for other arrays. Raise NotShared for shared memory."""
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
    """Raise NotShared if this ctypes object is in memory of multiprocessing."""
    holders = (base, getattr(base, "_obj", None), getattr(base, "_wrapper", None))
    if any(hasattr(each, "_wrapper") or type(each).__module__.startswith("multiprocessing.") for each in holders):
        raise NotShared(
            "an array in memory of multiprocessing is shared with forked processes only: use a multiprocessing.Manager()"
        )


def reduce_inherited(obj: Any) -> tuple[Any, ...] | None:
    """Return how a worker makes a lock of multiprocessing, for itself and its children; None for other objects.

    Raise NotShared for objects that hold shared data.
    """
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
    import multiprocessing  # noqa: PLC0415 - loaded by the script

    if name == "Event":
        event = multiprocessing.Event()
        if arguments[0]:
            event.set()
        return event
    return getattr(multiprocessing, name)(*arguments)

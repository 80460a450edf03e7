"""Objects to bytes: by pickle if that is possible, else by cloudpickle. Large buffers stay outside of the pickle (PEP 574)."""

import contextlib
import io
import linecache
import pickle
import sys
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any, Final, NamedTuple

import cloudpickle
from cloudpickle.cloudpickle import list_registry_pickle_by_value

PROTOCOL = 5
# Bytes. Smaller buffers are part of the pickle, which is faster, and does not keep a whole message alive.
OUT_OF_BAND: Final = 64 << 10
_MOST_BUFFERS = 1000  # that stay outside of one pickle: their sizes are at the beginning of a message


_reduce_code = cloudpickle.Pickler.dispatch_table[CodeType]
_PLAIN = {type(None), bool, int, float, complex, str, bytes}  # types that no pickler has to look at
_PLAIN_IF_EMPTY = {tuple, list, dict}
_WHOLE_ENTRY = 4  # parts of an entry in linecache that has the source; an entry of one part says how to get it
_FEW = 8  # elements of a tuple or list that `is_plain` looks at, at most
_DEEP = 4  # levels of tuples and lists in each other, at most


class Pickled(NamedTuple):
    """A pickle and the large buffers that belong to it."""

    data: bytes | memoryview
    buffers: Sequence[memoryview] = ()

    def load(self) -> Any:
        """Rebuild the object."""
        return loads(self.data, self.buffers)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data) + sum(map(len, self.buffers)) if self.buffers else len(self.data)


class NeedsCloudpickle(Exception):
    """Raised by the plain pickler for an object that another process cannot import."""


class _PlainPickler(pickle.Pickler):
    """The C pickler. It refuses functions and classes of ``__main__``: their names mean something else in another process."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (FunctionType, type)) and obj.__module__ in {"__main__", None}:
            raise NeedsCloudpickle
        return writable(obj)


class KeepingFilenames(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Cloudpickle, but code keeps the name of its file, and its source if there is no file: for tracebacks and inspect."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, CodeType):
            return make_code, (_reduce_code(obj)[1], obj.co_filename, source_of(obj.co_filename))
        if (reduced := writable(obj)) is not NotImplemented:
            return reduced
        return super().reducer_override(obj)


def writable(obj: Any) -> Any:
    """Return how to pickle a read-only NumPy array, so that it is writable when it is loaded; NotImplemented for other objects."""
    if type(obj).__module__ == "numpy" and isinstance(obj, sys.modules["numpy"].ndarray) and not obj.flags.writeable:
        return obj.copy(order="K").__reduce_ex__(PROTOCOL)
    return NotImplemented


def source_of(filename: str) -> str | None:
    """Return the source of code that is in no file, such as a cell of a notebook; None if it is in a file or unknown."""
    entry: Any = linecache.cache.get(filename)
    return "".join(entry[2]) if entry is not None and len(entry) == _WHOLE_ENTRY and entry[1] is None else None


def make_code(arguments: tuple[Any, ...], filename: str, source: str | None) -> CodeType:
    """Rebuild code from its pickle. `source` is what `source_of` has returned."""
    if source is not None and filename not in linecache.cache:
        linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename  # None: never out of date
    return CodeType(*arguments).replace(co_filename=filename)


def dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
    """Pickle an object. Functions and classes of ``__main__``, lambdas and closures are pickled by value.

    Whatever the object's own methods raise is raised here.

    Returns:
        The pickle, and the large buffers that belong to it, which are not copied.

    """
    if is_plain(obj):
        return pickle.dumps(obj, PROTOCOL), []
    if not list_registry_pickle_by_value():
        with contextlib.suppress(Exception):  # cloudpickle pickles it, or raises the error
            return dumps_by(_PlainPickler, obj)
    return dumps_by(KeepingFilenames, obj)


def dumps_by(pickler: Callable[..., pickle.Pickler], obj: Any) -> tuple[bytes, list[memoryview]]:
    """Pickle an object by this kind of pickler; return also the large buffers, which are no part of the pickle."""
    buffers: list[memoryview] = []
    file = io.BytesIO()

    def keep(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND or len(buffers) == _MOST_BUFFERS:
            return True  # into the pickle
        buffers.append(view)
        return False

    pickler(file, PROTOCOL, buffer_callback=keep).dump(obj)
    return file.getvalue(), buffers


def is_plain(obj: Any, depth: int = _DEEP) -> bool:
    """Whether plain pickle is sufficient, for small objects of builtin types. False: it is not known."""
    kind = type(obj)
    if kind is not tuple and kind is not list:
        return kind in _PLAIN or (kind is dict and not obj)
    if len(obj) > _FEW or not depth:
        return False
    for part in obj:  # half the time of all(); every call comes through here
        kind = type(part)
        if kind not in _PLAIN and (kind not in _PLAIN_IF_EMPTY or part) and not is_plain(part, depth - 1):
            return False
    return True


def loads(data: bytes | memoryview, buffers: Sequence[memoryview] = ()) -> Any:
    """Rebuild an object from its pickle and the buffers that belong to it."""
    return pickle.loads(data, buffers=buffers)  # noqa: S301 - the ranks of a job trust each other: see RMAChannelExecutor

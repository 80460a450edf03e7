"""What may be a message, by the channel's dtype: messages to bytes and back.

An object is pickled. Its pickle and its large buffers make up a *frame*, one run of bytes:

    magic (4) | number of buffers (4) | size of the pickle (8) | size of each buffer (8 each) | pickle | buffers

in the machine's byte order. The pickle and the buffers begin at multiples of 64 bytes if there are buffers, so that arrays are
aligned as they lie.
"""

import contextlib
import struct
from array import array
from collections.abc import Callable, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mpiexecutor._util import pickling
from mpiexecutor.channel._ring.layout import MAX_LENGTH, MAX_SLOTS

from ._errors import ChannelBroken

if TYPE_CHECKING:
    import numpy as np

# The typecodes of the array module that are numbers.
_TYPECODES = "bBhHiIlLqQfd"
_NUMPY_KINDS = "biufc"
_MAGIC = b"mpx1"
_HEAD = struct.Struct("=4sIQ")
_ALIGNMENT = 64


class Codec(Protocol):
    """One kind of message."""

    name: str  # the same on every rank if the dtype is
    slot_size: int  # bytes

    def encode(self, message: Any) -> list[memoryview]:
        """Return the bytes of a message, in parts that may be its own memory. TypeError, or ValueError, if it is no message."""

    def decode(self, data: memoryview, *, shared: bool) -> Any:
        """Return the message. It may keep `data`, unless that is shared with other messages: then it is copied."""


@runtime_checkable
class Serializer(Protocol):
    """A pair of functions, a module perhaps, that can be the dtype instead of `object`: they do what pickling does for objects."""

    @property
    def dumps(self) -> Callable[[Any], tuple[bytes, Sequence[memoryview]]]:
        """Return the bytes of a message and the large buffers that belong to it, which are not copied."""

    @property
    def loads(self) -> Callable[[memoryview, Sequence[memoryview]], Any]:
        """Rebuild a message."""


def codec_of(dtype: Any, message_size: int) -> Codec:
    """Return the codec of a dtype; ValueError if there is none."""
    if dtype is object:
        return _ObjectCodec(message_size, pickling)
    if isinstance(dtype, Serializer):
        return _ObjectCodec(message_size, dtype)
    if dtype is bytes:
        return _BytesCodec(message_size)
    if isinstance(dtype, str) and len(dtype) == 1 and dtype in _TYPECODES:
        return _ArrayCodec(dtype, message_size)
    if dtype is not None:  # to NumPy that would be "d"
        with contextlib.suppress(ImportError, TypeError, ValueError, SyntaxError):
            return _NumpyCodec(dtype, message_size)
    raise ValueError(f"dtype {dtype!r} is none of: a typecode in {_TYPECODES!r}, a numeric NumPy dtype, bytes, object")


class _ArrayCodec:
    """Numbers of one typecode; messages are taken as array.array."""

    def __init__(self, typecode: str, message_size: int) -> None:
        self.name = typecode
        self._typecode = typecode
        self._message_size = message_size
        self.slot_size = message_size * array(typecode).itemsize

    def encode(self, message: Any) -> list[memoryview]:
        _check_length(_length(message), self._message_size, "elements")
        if isinstance(message, array) and message.typecode == self._typecode:
            values = message
        elif isinstance(message, (str, bytes, bytearray)):
            raise TypeError(f"a message of a channel of {self._typecode!r} holds numbers, not the elements of {message!r:.50}")
        else:
            try:
                values = array(self._typecode, message)
            except OverflowError as error:
                raise ValueError(f"a number of this message does not fit into {self._typecode!r}: {error}") from error
        return [memoryview(values).cast("B")] if values else []

    def decode(self, data: memoryview, *, shared: bool) -> "array[Any]":  # noqa: ARG002 - copied in any case
        values = array(self._typecode)
        values.frombytes(data)
        return values


class _NumpyCodec:
    """Numbers of one NumPy dtype; messages are taken as one-dimensional ndarrays that own their memory."""

    def __init__(self, dtype: Any, message_size: int) -> None:
        import numpy as np  # noqa: PLC0415 - an extra: needed for a NumPy dtype only

        self._np = np
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        if self._dtype.kind not in _NUMPY_KINDS:
            raise TypeError(f"dtype {dtype!r} has no MPI type")
        self.name = f"numpy {self._dtype.str}"
        self._message_size = message_size
        self.slot_size = message_size * self._dtype.itemsize

    def encode(self, message: Any) -> list[memoryview]:
        _check_length(_length(message), self._message_size, "elements")
        try:
            values = self._np.asarray(message)
        except ValueError as error:
            raise TypeError(f"a message holds numbers of {self._dtype}: {error}") from error
        if values.ndim != 1:
            raise TypeError(f"a message has one dimension, this array has {values.ndim}: send it as a dtype=object message")
        values = self._np.ascontiguousarray(self._cast(values))
        return [values.data.cast("B")] if values.size else []

    def _cast(self, values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Return the numbers in this dtype. They may lose precision, and nothing else."""
        if values.dtype.kind in "iu" and self._dtype.kind in "iu":
            cast = values.astype(self._dtype, copy=False)
            if not self._np.array_equal(cast, values):
                raise ValueError(f"a number of this message does not fit into {self._dtype}")
            return cast
        if values.size and not self._np.can_cast(values.dtype, self._dtype, "same_kind"):
            raise TypeError(f"a message holds numbers of {self._dtype}, and these of {values.dtype} would lose more than precision")
        return values.astype(self._dtype, copy=False)

    def decode(self, data: memoryview, *, shared: bool) -> "np.ndarray[Any, Any]":
        values = self._np.frombuffer(data, self._dtype)
        return values.copy() if shared else values


class _BytesCodec:
    """Bytes; any object with the buffer interface may be put, bytes are taken."""

    name = "bytes"

    def __init__(self, message_size: int) -> None:
        self.slot_size = message_size

    def encode(self, message: Any) -> list[memoryview]:
        try:
            view = memoryview(message)
        except TypeError:
            _length(message)
            raise TypeError(f"a message of a channel of bytes is bytes-like, not {type(message).__name__}") from None
        _check_length(view.nbytes, self.slot_size, "bytes")
        return [view.cast("B") if view.c_contiguous else memoryview(bytes(view))] if view.nbytes else []

    def decode(self, data: memoryview, *, shared: bool) -> bytes:  # noqa: ARG002 - copied in any case
        return bytes(data)


class _ObjectCodec:
    """Any object that can be pickled, of any size."""

    name = "object"

    def __init__(self, message_size: int, serializer: Serializer) -> None:
        self.slot_size = message_size
        self._limit = min(MAX_LENGTH, message_size * MAX_SLOTS)
        self._dumps, self._loads = serializer.dumps, serializer.loads

    def encode(self, message: Any) -> list[memoryview]:
        parts = encode_frame(*self._dumps(message))
        _check_length(sum(map(len, parts)), self._limit, "bytes (through slots of this size: raise message_size)")
        return parts

    def decode(self, data: memoryview, *, shared: bool) -> Any:
        # What is rebuilt may refer to the frame's own memory: with large buffers that is what saves the copy.
        pickled, buffers = decode_frame(data)
        if shared:
            buffers = [memoryview(bytearray(buffer)) for buffer in buffers]
        return self._loads(pickled, buffers)


def _length(message: object) -> int:
    if not isinstance(message, Sized):
        raise TypeError(f"a message has a length, {message!r:.50} has none: put a single value as a tuple, ({message!r:.50},)")
    return len(message)


def _check_length(length: int, limit: int, unit: str) -> None:
    if length > limit:
        raise ValueError(f"this message has {length} {unit}, the channel's messages have at most {limit}")


def encode_frame(pickled: bytes, buffers: Sequence[memoryview]) -> list[memoryview]:
    """Return the parts of the frame, in order. The buffers are not copied."""
    head = _HEAD.pack(_MAGIC, len(buffers), len(pickled))
    if not buffers:
        return [memoryview(head + pickled)]
    head += struct.pack(f"={len(buffers)}Q", *map(len, buffers))
    parts = []
    for view in (memoryview(head), memoryview(pickled), *buffers):
        parts.append(view)
        if pad := -len(view) % _ALIGNMENT:
            parts.append(memoryview(bytes(pad)))
    return parts


def pickle_of_frame(begin: memoryview) -> memoryview:
    """Return the pickle of a frame, of which only the beginning is there. ChannelBroken if the pickle is not there as a whole."""
    if len(begin) >= _HEAD.size:
        magic, count, size = _HEAD.unpack_from(begin)
        start = _HEAD.size + 8 * count
        start += -start % _ALIGNMENT if count else 0
        if magic == _MAGIC and start + size <= len(begin):
            return begin[start : start + size]
    raise ChannelBroken(f"the pickle of a message is not in its first {len(begin)} bytes")


def decode_frame(frame: memoryview) -> tuple[memoryview, list[memoryview]]:
    """Return the pickle and the buffers, as views of the frame. ChannelBroken if the bytes are no frame."""
    if len(frame) < _HEAD.size:
        raise ChannelBroken(f"a frame has at least {_HEAD.size} bytes, this one has {len(frame)}")
    magic, count, size = _HEAD.unpack_from(frame)
    if magic != _MAGIC:
        raise ChannelBroken(f"a frame begins with {_MAGIC!r}, this one with {magic!r}")
    if not count and len(frame) == _HEAD.size + size:
        return frame[_HEAD.size :], []
    start = _HEAD.size + 8 * count
    if start > len(frame):
        raise ChannelBroken(f"a frame of {len(frame)} bytes has no room for the sizes of {count} buffers")
    sizes = (size, *struct.unpack_from(f"={count}Q", frame, _HEAD.size))
    views = []
    for part in sizes:
        start += -start % _ALIGNMENT if count else 0
        views.append(frame[start : start + part])
        start += part
    end = start + (-start % _ALIGNMENT if count else 0)
    if end != len(frame):
        raise ChannelBroken(f"a frame whose parts have {sizes} bytes takes {end} bytes, this one has {len(frame)}")
    return views[0], views[1:]

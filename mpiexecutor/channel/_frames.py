"""A pickle and its buffers as one run of bytes, and back.

    magic (4) | number of buffers (4) | size of the pickle (8) | size of each buffer (8 each) | pickle | buffers

in the machine's byte order. The pickle and the buffers begin at multiples of 64 bytes if there are buffers, so that arrays are
aligned as they lie.
"""

import struct
from collections.abc import Sequence

from ._errors import ChannelBroken

_MAGIC = b"mpx1"
_HEAD = struct.Struct("=4sIQ")
_ALIGNMENT = 64


def encode(pickled: bytes, buffers: Sequence[memoryview]) -> list[memoryview]:
    """Give the parts that make up the frame, one after another. The buffers are not copied."""
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


def decode(frame: memoryview) -> tuple[memoryview, list[memoryview]]:
    """Give the pickle and the buffers, as views of the frame. ChannelBroken if the bytes are no frame."""
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

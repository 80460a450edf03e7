"""The sender's segments."""

import contextlib
import fcntl
import itertools
import mmap
import os
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Final

from .file import HEAD, Mapping, SegmentName, places_of

SMALLEST: Final = 512 << 10  # bytes of buffers below which a segment does not pay
_STEPS = 8  # sizes of segments between two powers of 2: few, so that a segment fits again
_PIECE = 4 << 20  # bytes that are copied while no other thread runs
_LOOKS = 8  # segments that are looked at before the sender gives up
_READING = 10.0  # seconds that a receiver has to open a segment before its sender ends,
_LOOK = 1e-3  # and between two looks whether it has
_UNUSED = 32  # segments that are taken before one that fitted none of them is given up


class _Segment:
    """A segment, as its sender has it."""

    def __init__(self, size: int) -> None:
        descriptor = os.memfd_create("mpiexecutor")
        try:
            os.posix_fallocate(descriptor, 0, size)  # an error now, not a signal later, if there is no memory
            self.inode = os.fstat(descriptor).st_ino
            self._mapping = Mapping(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self.size = size
        self.remove = self._mapping.remove
        self.taken = 0  # when it was taken last: a number
        self.is_wanted: Callable[[], object] = bool  # whether a receiver of the last name may come

    @property
    def is_under_way(self) -> bool:
        """Whether its name was sent, and was not opened yet."""
        return self._mapping.head[0] != 0

    def lock(self) -> bool:
        """Lock it if it is free. Return whether it was."""
        if self._mapping.head[0] and self.is_wanted():
            return False
        try:
            fcntl.flock(self._mapping.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self._mapping.head[0] = 0
        return True

    def fill(self, number: int, parts: Sequence[memoryview]) -> SegmentName:
        """Copy the parts into it, unlock it, and return its name."""
        sizes = [len(part) for part in parts]
        try:
            memory = memoryview(self._mapping.memory()).cast("B")
            for part, place in zip(parts, places_of(sizes), strict=True):
                view = memory[place]
                for at in range(0, len(part), _PIECE):
                    view[at : at + _PIECE] = part[at : at + _PIECE]
            self._mapping.head[0] = number
        finally:
            fcntl.flock(self._mapping.descriptor, fcntl.LOCK_UN)
        return array("q", [os.getpid(), self._mapping.descriptor, self.inode, self.size, number, *sizes]).tobytes()


class SegmentPool:
    """The segments of a sender."""

    def __init__(self, most: int, most_segments: int) -> None:
        """Make none yet. There will be `most_segments` of them, of `most` bytes together, at the most."""
        self._most = most
        self._most_segments = most_segments
        self._segments: list[_Segment] = []  # the one that was taken last is the last
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._was_asked = False

    def put(self, parts: Sequence[memoryview], is_wanted: Callable[[], object] = lambda: True) -> SegmentName | None:
        """Copy buffers into a free segment, and return its name; None if none is free, or they are too small or too large for one.

        Args:
            parts: The buffers, contiguous bytes.
            is_wanted: Says whether the receiver may still open the name. A segment that was never opened is free after that.

        """
        size = places_of([len(part) for part in parts])[-1].stop
        if size < SMALLEST or 2 * size > self._most:
            return None
        with self._lock:
            segment = self._free_segment(size)
            if segment is None:
                return None
            segment.is_wanted = is_wanted
            segment.taken = number = next(self._numbers)
            self._segments.sort(key=lambda segment: segment.taken)
            return segment.fill(number, parts)

    def await_readers(self) -> None:
        """Wait until the names that are under way have been opened, some seconds at the most."""
        until = time.monotonic() + _READING
        while any(segment.is_under_way for segment in self._segments) and time.monotonic() < until:
            time.sleep(_LOOK)

    def close(self) -> None:
        """Give up all segments. Receivers keep what they have opened."""
        with self._lock:
            self._most = 0
            while self._segments:
                self._segments.pop().remove()

    def _free_segment(self, size: int) -> _Segment | None:
        """Return a segment that is free, or make one; it is locked."""
        for segment in itertools.islice((segment for segment in self._segments if size <= segment.size <= 2 * size), _LOOKS):
            if segment.lock():
                return segment
        if not self._was_asked:  # most scripts that send large buffers send many: the first ones are no reason to make a segment
            self._was_asked = True
            return None
        size = _rounded(size)
        newest = self._segments[-1].taken if self._segments else 0
        for segment in [segment for segment in self._segments if newest - segment.taken >= _UNUSED][:_LOOKS]:
            if segment.lock():
                self._segments.remove(segment)
                segment.remove()
        if len(self._segments) >= self._most_segments or sum(segment.size for segment in self._segments) + size > self._most:
            return None
        with contextlib.suppress(OSError, MemoryError):
            segment = _Segment(size)
            self._segments.append(segment)
            if segment.lock():
                return segment
        return None


def _rounded(size: int) -> int:
    """Return the size of the segment for so many bytes."""
    step = max(mmap.PAGESIZE, (1 << (size - HEAD - 1).bit_length()) // 2 // _STEPS)
    return -(-(size - HEAD) // step) * step + mmap.PAGESIZE

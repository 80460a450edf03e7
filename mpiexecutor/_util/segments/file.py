"""A segment: a file in memory, mapped; its name, and what lies where.

number of the name that is under way, or 0 (8) | unused, up to 64 | the buffers, each at a multiple of 64
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

HEAD: Final = 64  # bytes
_ALIGNMENT = 64  # bytes

# What a receiver has to know, as words of 8 bytes: pid and descriptor of the sender, inode and size of the file, number, sizes of
# the buffers. The first four are the same each time.
SegmentName = bytes


class SegmentGone(Exception):
    """Raised by `SegmentReader.open` if the sender has died, or has taken the segment back."""


_MAP_FIXED = 0x10  # as on every Linux that Python supports
_libc = ctypes.CDLL(None, use_errno=True)  # Python's own mmap keeps a second descriptor, and maps nothing anew at an address


class Mapping:
    """A file in memory, mapped as a whole."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size
        self.is_private = False
        self._type = ctypes.c_char * size
        self._address = _map(None, size, mmap.MAP_SHARED, descriptor)
        self.head = memoryview(self.memory()).cast("B")[:HEAD].cast("q")

    def memory(self) -> Any:
        """Return the memory as a new object: buffers in it refer to this object."""
        return self._type.from_address(self._address)

    def make_private(self) -> None:
        """Keep what this process, and those forked from it, write from now on from all others."""
        _map(self._address, self.size, mmap.MAP_PRIVATE | _MAP_FIXED, self.descriptor)
        self.is_private = True

    def remove(self) -> None:
        """Unmap and close the file; this ends the lock, unless a forked process has it too. Nothing refers to the memory."""
        self.head.release()
        _libc.munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self.size))
        os.close(self.descriptor)


def places_of(sizes: Sequence[int]) -> list[slice]:
    """Return where buffers of these sizes lie in a segment."""
    places, start = [], HEAD
    for size in sizes:
        places.append(slice(start, start + size))
        start += size + -size % _ALIGNMENT
    return places


def pid_of(name: SegmentName) -> int:
    """Return the process id of the sender."""
    return int.from_bytes(name[:8], sys.byteorder)


def path_of(pid: int, descriptor: int) -> str:
    return f"/proc/{pid}/fd/{descriptor}"


def inode_of(path: str) -> int:
    """Return the inode of a file that this process may open; 0 if it may not."""
    try:
        return Path(path).stat().st_ino
    except OSError:
        return 0


def _map(address: int | None, size: int, flags: int, descriptor: int) -> int:
    """Map a file, and return the address. MemoryError if there is no room."""
    function = _libc.mmap
    function.restype = ctypes.c_void_p
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    found: int | None = function(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    if found is None or found == ctypes.c_void_p(-1).value:
        raise MemoryError(f"{size} bytes of a file cannot be mapped: {os.strerror(ctypes.get_errno())}")
    return found

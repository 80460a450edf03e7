"""Memory in an RMA window: the only file that calls MPI.Win.

Theory of operation
    Each window has one passive-target epoch, from ``Lock_all`` when it is made to ``Unlock_all`` when it is freed. If all ranks are
    on one node the window is shared memory, and every rank uses plain loads and stores, at a tenth of the cost of an MPI call. Else
    the host alone does, and the other ranks use Put, Get and Flush, which work in every MPI.

    Atomic steps on one node avoid MPI, too. MPICH yields the processor in each Win.Flush, which costs milliseconds beside processes
    that compute; an MPI call releases the GIL; and a rank that is killed inside MPI may keep a lock for ever.

Invariants
    - An atomic step is the same on every rank: on one node a step under a lock in the window, where the system has such locks,
      else Compare_and_swap. The locked step is one store, so a holder that dies leaves nothing half done.
    - ``store_once`` is Compare_and_swap, too, where it goes through MPI: a Put is a copy, which may set a word twice (see
      memory.py).
    - A word that is swapped is swapped or loaded only, and a word that is put has one writer: the MPI standard guarantees only
      that.
    - A byte of Marks may have several writers: all of them put the same value.
"""

import contextlib
import functools
import mmap
import platform
import sys
import threading
from array import array
from collections.abc import Sequence
from typing import Any, Final

from mpi4py import MPI

from . import shared_lock
from .memory import WORD, Memory, mapped
from .shared_lock import SharedLock

# Both stacks lay 8-byte words on 8-byte boundaries of an allocated window, and move them whole.
_WORD: Final = MPI.INT64_T
# Bytes. The first touch of fresh pages costs more than copying to them. Below this they are few; up to the next bound the C library
# gives memory that was used before, which need not be cleared; beyond it gives fresh pages always, of which huge ones are fewer.
_SMALL: Final = 64 << 10
_MAPPED: Final = 32 << 20
_LOCKS: Final = 2  # in a window, for the words that are swapped: neighbours have different ones


class Window:
    """A window whose memory is on one rank, its host. Collective to make and to free."""

    def __init__(self, comm: MPI.Intracomm, host: int, size: int) -> None:
        self._host = host
        own = size if comm.rank == host else 0
        self._memory: memoryview | None = None  # if this rank reaches it without MPI
        self._locks: list[int] = []  # the addresses of the locks, if atomic steps use them
        if on_one_node(comm):
            self._share(comm, own)
        else:
            self._win = MPI.Win.Allocate(own, 1, comm=comm)
            if comm.rank == host:
                self._memory = self._win.tomemory().cast("B")
        self._win.Lock_all(MPI.MODE_NOCHECK)

    def _share(self, comm: MPI.Intracomm, own: int) -> None:
        """Allocate shared memory, with locks behind it if the host can make them. The ranks of a node run the same system."""
        room = (_LOCKS + 1) * shared_lock.SIZE  # one more: the window may begin anywhere
        self._win = MPI.Win.Allocate_shared(own and own + room, 1, comm=comm)
        whole = self._win.Shared_query(self._host)[0]
        self._memory = whole.cast("B")[: whole.nbytes - room]
        first = whole.address + whole.nbytes - room
        first += -first % shared_lock.SIZE
        locks = [first + shared_lock.SIZE * index for index in range(_LOCKS)]
        if has_locks := comm.rank == self._host and shared_lock.are_supported():
            for lock in locks:
                SharedLock(lock).create()
        if comm.bcast(has_locks, self._host):  # before any rank uses them
            self._locks = locks

    def memory(self) -> Memory:
        """Return a handle on the memory for one thread."""
        if self._memory is None:
            return _RemoteMemory(self._win, self._host)
        ordered = platform.machine() in {"x86_64", "AMD64"} and self._win.Get_attr(MPI.WIN_MODEL) == MPI.WIN_UNIFIED
        return (_OrderedMemory if ordered else _DirectMemory)(self._win, self._host, self._memory, self._locks)

    def free(self) -> None:
        self._memory = None
        self._win.Unlock_all()
        self._win.Free()


class Marks:
    """Some bytes on each rank that all other ranks can set. Collective to make and to free.

    A rank clears its own byte, and then looks for what it was set for. So a byte may be set twice, or set again while it is being
    cleared, and nothing is missed.
    """

    def __init__(self, comm: MPI.Intracomm, size: int) -> None:
        self._win = MPI.Win.Allocate(size, 1, comm=comm)
        self._own = self._win.tomemory().cast("B")
        self._own[:] = bytes(size)
        self._set: Final = [bytearray(b"\1"), 1, MPI.BYTE]
        self._win.Lock_all(MPI.MODE_NOCHECK)
        comm.Barrier()  # all ranks have made theirs before any is set

    def set(self, rank: int, index: int) -> bool:
        """Set a rank's byte, and never wait; False if that is not possible because the rank has failed."""
        try:
            self._win.Put(self._set, rank, index)
        except MPI.Exception:  # MPICH has no class of its own for that
            return False
        return True

    def clear(self, index: int) -> bool:
        """Clear a byte of this rank, and return whether it was set."""
        self._win.Sync()
        if not self._own[index]:
            return False
        self._own[index] = 0
        self._win.Sync()
        return True

    def free(self) -> None:
        self._own.release()
        self._win.Unlock_all()
        self._win.Free()


def on_one_node(comm: MPI.Intracomm) -> bool:
    """Whether all ranks can share memory. Collective; the communicator keeps the answer, which takes as long as a window."""
    known: Any = comm.Get_attr(_key())
    if known is None:
        near = comm.Split_type(MPI.COMM_TYPE_SHARED)
        known = near.size == comm.size
        near.Free()
        comm.Set_attr(_key(), known)
    return bool(known)


@functools.cache
def _key() -> int:
    """Return the key of the attribute of communicators that is whether they are on one node."""
    return MPI.Comm.Create_keyval()


class _RemoteMemory:
    """The memory of another rank, through one-sided calls."""

    def __init__(self, win: MPI.Win, host: int) -> None:
        self._win = win
        self._host = host
        self._loaded, self._expected, self._new, self._old = (memoryview(array("q", [0])) for _ in range(4))
        self._specs = [[word, 1, _WORD] for word in (self._loaded, self._expected, self._new, self._old)]
        self._kept: list[memoryview] = []  # what MPI may still be using until the next flush

    def load(self, at: int) -> int:
        self._win.Get(self._specs[0], self._host, at)
        self.flush()
        return self._loaded[0]

    def fetch(self, at: int, into: memoryview) -> None:
        self.read(at, into)
        self.flush()

    def read(self, at: int, into: memoryview) -> None:
        self._win.Get([into, MPI.BYTE], self._host, at)

    def store(self, at: int, word: int) -> None:
        self.write(at, memoryview(word.to_bytes(WORD, sys.byteorder, signed=True)))

    def store_once(self, at: int, olds: Sequence[int], words: Sequence[int]) -> None:
        for index, numbers in enumerate(zip(words, olds, strict=True)):
            origin, compare, result = (memoryview(array("q", (number,))) for number in (*numbers, 0))
            self._kept += (origin, compare, result)
            offset = at + WORD * index
            self._win.Compare_and_swap([origin, 1, _WORD], [compare, 1, _WORD], [result, 1, _WORD], self._host, offset)

    def write(self, at: int, data: memoryview) -> None:
        self._kept.append(data)
        self._win.Put([data, MPI.BYTE], self._host, at)

    def compare_swap(self, at: int, expected: int, word: int) -> int:
        self._expected[0] = expected
        self._new[0] = word
        _, compare, origin, result = self._specs
        self._win.Compare_and_swap(origin, compare, result, self._host, at)
        self._win.Flush(self._host)  # also where flush is something lighter
        return self._old[0]

    def allocate(self, size: int) -> memoryview:
        if size < _SMALL:
            return memoryview(bytearray(size))
        if size < _MAPPED:
            return MPI.buffer.allocate(size).cast("B")
        pages = mapped(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                pages.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(pages)

    def flush(self) -> None:
        self._win.Flush(self._host)
        self._kept.clear()


class _DirectMemory(_RemoteMemory):
    """Memory that this rank reaches: loads and stores are plain. Atomic steps go through MPI if there are no locks."""

    def __init__(self, win: MPI.Win, host: int, memory: memoryview, locks: Sequence[int]) -> None:
        super().__init__(win, host)
        self._bytes = memory
        self._words = memory.cast("q")
        self._locks = [SharedLock(address) for address in locks]

    def load(self, at: int) -> int:
        self._win.Sync()
        word = self._words[at // WORD]
        self._win.Sync()
        return word

    def fetch(self, at: int, into: memoryview) -> None:
        self._win.Sync()
        into[:] = self._bytes[at : at + len(into)]
        self._win.Sync()

    def read(self, at: int, into: memoryview) -> None:
        into[:] = self._bytes[at : at + len(into)]

    def store(self, at: int, word: int) -> None:
        self._words[at // WORD] = word

    def store_once(self, at: int, olds: Sequence[int], words: Sequence[int]) -> None:  # noqa: ARG002 - for memories that have to swap
        for index, word in enumerate(words, at // WORD):
            self._words[index] = word  # one instruction, unlike the copy of a slice

    def write(self, at: int, data: memoryview) -> None:
        self._bytes[at : at + len(data)] = data

    def compare_swap(self, at: int, expected: int, word: int) -> int:
        if not self._locks:
            return super().compare_swap(at, expected, word)
        self.flush()
        seen = self._compare_swap(at, expected, word)
        self.flush()
        return seen

    def _compare_swap(self, at: int, expected: int, word: int) -> int:
        index = at // WORD
        lock = self._locks[index % _LOCKS]
        try:
            lock.acquire()
            seen = self._words[index]
            if seen == expected:
                self._words[index] = word
        finally:
            lock.release()
        return seen

    def flush(self) -> None:
        self._win.Sync()


class _OrderedMemory(_DirectMemory):
    """The same on a processor that keeps loads, and stores, in order among themselves: only a flush has to be a fence.

    On x86 any locked instruction is a fence. To acquire a free lock is such an instruction, in a swap as well, and keeps the GIL,
    which every MPI call releases: beside a busy thread, to acquire the GIL again can take as long as the switch interval.
    """

    def __init__(self, win: MPI.Win, host: int, memory: memoryview, locks: Sequence[int]) -> None:
        super().__init__(win, host, memory, locks)
        self._fence = threading.Lock()
        self.fetch = self.read  # type: ignore[method-assign]
        if locks:
            self.compare_swap = self._compare_swap  # type: ignore[method-assign]

    def load(self, at: int) -> int:
        return self._words[at // WORD]

    def flush(self) -> None:
        self._fence.acquire()
        self._fence.release()

"""Memory on an RMA window: the only file of the channel that calls MPI.Win.

One passive-target epoch, opened at birth with ``Lock_all`` and closed by ``free``; in between only Put, Get,
Compare_and_swap and Flush, which every MPI has had to make work. Words that are swapped are swapped or loaded only, and words
that are stored have one writer at a time: the MPI standard promises no more.
"""

import sys
from array import array
from typing import Final

from mpi4py import MPI

from ._memory import Memory
from ._ring import WORD

# Both stacks lay 8-byte words on 8-byte boundaries of an allocated window, and move them whole.
_WORD: Final = MPI.INT64_T


class Window:
    """A window whose memory is on one rank, and handles to it. Collective to make and to free."""

    def __init__(self, comm: MPI.Intracomm, host: int, size: int) -> None:
        self._host = host
        self._is_host = comm.rank == host
        self._win = MPI.Win.Allocate(size if self._is_host else 0, 1, comm=comm)
        self._win.Lock_all(MPI.MODE_NOCHECK)

    def memory(self) -> Memory:
        """Give a handle for one thread. The host's own loads and stores need no MPI."""
        return _HostMemory(self._win, self._host) if self._is_host else _RemoteMemory(self._win, self._host)

    def free(self) -> None:
        self._win.Unlock_all()
        self._win.Free()


class _RemoteMemory:
    """Another rank's memory, through one-sided calls."""

    def __init__(self, win: MPI.Win, host: int) -> None:
        self._win = win
        self._host = host
        self._loaded, self._expected, self._new, self._old = (memoryview(array("q", [0])) for _ in range(4))
        self._specs = [[word, 1, _WORD] for word in (self._loaded, self._expected, self._new, self._old)]
        self._kept: list[memoryview] = []  # what MPI may still be reading until the next flush

    def load(self, at: int) -> int:
        self._win.Get(self._specs[0], self._host, at)
        self.flush()
        return self._loaded[0]

    def read(self, at: int, into: memoryview) -> None:
        self._win.Get([into, MPI.BYTE], self._host, at)

    def store(self, at: int, word: int) -> None:
        self.write(at, memoryview(word.to_bytes(WORD, sys.byteorder, signed=True)))

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

    def flush(self) -> None:
        self._win.Flush(self._host)
        self._kept.clear()


class _HostMemory(_RemoteMemory):
    """The host's own memory: loads and stores are plain, and only what has to be one step goes through MPI.

    A plain access costs a tenth of an MPI call and keeps the GIL. Win.Sync is the fence.
    """

    def __init__(self, win: MPI.Win, host: int) -> None:
        super().__init__(win, host)
        self._bytes = win.tomemory().cast("B")
        self._words = self._bytes.cast("q")

    def load(self, at: int) -> int:
        self._win.Sync()
        return self._words[at // WORD]

    def read(self, at: int, into: memoryview) -> None:
        into[:] = self._bytes[at : at + len(into)]

    def store(self, at: int, word: int) -> None:
        self._words[at // WORD] = word

    def write(self, at: int, data: memoryview) -> None:
        self._bytes[at : at + len(data)] = data

    def flush(self) -> None:
        self._win.Sync()

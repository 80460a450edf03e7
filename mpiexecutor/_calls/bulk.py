"""Transfers of objects from the root to one worker, on request, through a window on the root.

Theory of operation
    The root sends no MPI message: MPICH crashes, and Intel MPI aborts, if the receiver is on another node and dies meanwhile. The
    worker fetches the object instead. It has two slots in the window, each for one piece, and two counters:

        filled   pieces that the root has put, into the two slots in turn; written by the root only
        had      pieces that the worker has fetched; written by the worker only

    One thread of the root serves all workers. It puts piece n once n - had < 2, flushes, and sets filled to n + 1. The worker
    fetches piece n once filled > n, and sets had to n + 1.

    A transfer is the number of its parts, their sizes, and the parts, each in pieces of its own. No parts: the request is refused.

Invariants
    had <= filled <= had + 2, and both only grow.
    A counter is stored after a flush of the pieces that it counts.
    If the worker dies `had` does not change any more. The root ends the transfer when it knows; no other rank uses these slots.
"""

import contextlib
import mmap
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from queue import Empty
from typing import TYPE_CHECKING

from mpiexecutor._rma.memory import WORD, Memory, mapped
from mpiexecutor._util.inbox import Inbox
from mpiexecutor._util.pickling import Pickled
from mpiexecutor._util.polling import intervals

if TYPE_CHECKING:
    from mpi4py import MPI

_PIECE, _LEAST_PIECE = 128 << 10, 4 << 10  # bytes, at the most and at the least
_MOST = 32 << 20  # bytes of all pieces, unless they are of the least size
_SLOTS = 2
_LINE = 64  # bytes
_FILLED, _HAD, _PIECES = 0, _LINE, 2 * _LINE  # where they are
_SHORTEST, _LONGEST = 20e-6, 2e-3  # seconds between two looks at a counter


class Pages:
    """Memory whose copies are cheap: where the system has memfd, a copy maps the same pages until it is written to."""

    _file = -1

    def __init__(self, size: int) -> None:
        self._file = os.memfd_create("mpiexecutor") if hasattr(os, "memfd_create") else -1
        if self._file >= 0:
            os.ftruncate(self._file, size)
        self.view = memoryview(mapped(self._file, size))

    @classmethod
    def of(cls, data: memoryview) -> "Pages":
        """Return pages with these contents."""
        pages = cls(len(data))
        pages.view[:] = data
        return pages

    def __len__(self) -> int:
        return len(self.view)

    def copy(self) -> memoryview:
        """Return a private copy."""
        if self._file < 0:
            return memoryview(bytearray(self.view))
        return memoryview(mapped(self._file, len(self), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class BulkTransfer:
    """Sends objects, on the root, and receives them, on a worker. Collective to make and to free."""

    def __init__(self, comm: "MPI.Intracomm", root: int, is_lost: Callable[[int], bool] = lambda _rank: False) -> None:
        """Make the window, together with all ranks. `is_lost` says on the root whether a worker has failed, and fetches nothing."""
        from mpiexecutor._rma.notifier import RemoteNotifier  # noqa: PLC0415 - they know MPI
        from mpiexecutor._rma.window import Window, on_one_node  # noqa: PLC0415

        self._piece = max(_LEAST_PIECE, min(_PIECE, _MOST // comm.size)) // _LINE * _LINE
        self._share = _PIECES + _SLOTS * self._piece  # bytes of each worker
        self._window = Window(comm, root, comm.size * self._share)
        self._bells = None if on_one_node(comm) else RemoteNotifier(comm, root)
        self._is_lost = is_lost
        self._rank = comm.rank
        self._filled = [0] * comm.size  # pieces so far, by rank: as the root knows,
        self._had = 0  # and as this worker does
        if comm.rank == root:
            memory = self._memory()
            for rank in range(comm.size):
                memory.store(rank * self._share + _FILLED, 0)
                memory.store(rank * self._share + _HAD, 0)
            memory.flush()
        comm.Barrier()
        self._asked: Inbox[tuple[int, Pickled | None] | None] = Inbox()  # None: no more
        self._thread: threading.Thread | None = None
        if comm.rank == root:
            self._thread = threading.Thread(
                target=self._serve, args=(self._memory(),), name="mpiexecutor bulk transfer", daemon=True
            )
            self._thread.start()

    def send(self, rank: int, what: Pickled | None) -> None:
        """Send an object to a worker that waits for it, or refuse the request with None. Does not block."""
        self._asked.put((rank, what))

    def receive(self) -> tuple[memoryview, list[Pages]] | None:
        """Wait for the transfer that was requested. Return the pickle and the buffers of an object, or None if it was refused.

        Raise MemoryError, or OSError if too many files are open. Then the transfer was thrown away.
        """
        memory = self._memory()
        (count,) = self._fetch_words(memory, 1)
        if not count:
            return None
        sizes = self._fetch_words(memory, count)
        try:
            data = memoryview(bytearray(sizes[0]))
            buffers = [Pages(size) for size in sizes[1:]]
        except BaseException:
            for _ in range(sum(-(-size // self._piece) for size in sizes)):
                self._fetch_piece(memory, memoryview(b""))  # or the next transfer would begin with these pieces
            raise
        for part in (data, *(buffer.view for buffer in buffers)):
            self._fetch(memory, part)
        return data, buffers

    def leave(self) -> None:
        """End the thread of the root, without the other ranks."""
        self._asked.put(None)
        if self._bells is not None:
            self._bells.leave()

    def free(self) -> None:
        self.leave()
        if self._thread is not None:
            self._thread.join()
        self._window.free()
        if self._bells is not None:
            self._bells.free()

    def _memory(self) -> Memory:
        """Return a handle on the window, for one thread."""
        memory = self._window.memory()
        return memory if self._bells is None else self._bells.with_progress(memory)

    def _serve(self, memory: Memory) -> None:
        """Put pieces for all workers that wait, until `leave`."""
        under_way: dict[int, Iterator[memoryview]] = {}
        pauses = intervals(_SHORTEST, _LONGEST)
        while True:
            with contextlib.suppress(Empty):
                asked = self._asked.get(timeout=next(pauses) if under_way else None)
                if asked is None:
                    return
                rank, what = asked
                under_way[rank] = _pieces_of(what, self._piece)
            for rank, pieces in list(under_way.items()):
                while self._filled[rank] - memory.load(rank * self._share + _HAD) < _SLOTS:
                    pauses = intervals(_SHORTEST, _LONGEST)
                    piece = next(pieces, None)
                    if piece is None:
                        del under_way[rank]
                        break
                    self._put(memory, rank, piece)
                else:
                    if self._is_lost(rank):
                        del under_way[rank]

    def _put(self, memory: Memory, rank: int, piece: memoryview) -> None:
        share, count = rank * self._share, self._filled[rank]
        memory.write(share + _PIECES + count % _SLOTS * self._piece, piece)
        memory.flush()
        self._filled[rank] = count + 1
        memory.store(share + _FILLED, count + 1)
        memory.flush()

    def _fetch(self, memory: Memory, part: memoryview) -> None:
        for start in range(0, len(part), self._piece):
            self._fetch_piece(memory, part[start : start + self._piece])

    def _fetch_piece(self, memory: Memory, piece: memoryview) -> None:
        share, count = self._rank * self._share, self._had
        pauses = intervals(_SHORTEST, _LONGEST)
        while memory.load(share + _FILLED) <= count:
            time.sleep(next(pauses))
        if piece:
            memory.fetch(share + _PIECES + count % _SLOTS * self._piece, piece)
        self._had = count + 1
        memory.store(share + _HAD, count + 1)
        memory.flush()

    def _fetch_words(self, memory: Memory, count: int) -> "array[int]":
        words = array("q", bytes(WORD * count))
        self._fetch(memory, memoryview(words).cast("B"))
        return words


def _pieces_of(what: Pickled | None, size: int) -> Iterator[memoryview]:
    """Yield a transfer, piece by piece."""
    parts = [] if what is None else [memoryview(what.data), *what.buffers]
    sizes = array("q", [len(part) for part in parts])
    for part in (memoryview(array("q", [len(sizes)])).cast("B"), memoryview(sizes).cast("B"), *parts):
        for start in range(0, len(part), size):
            yield part[start : start + size]

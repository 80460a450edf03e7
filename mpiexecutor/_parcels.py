"""What goes from the root to one worker, upon request: pieces in a window on the root, from where the worker fetches them.

The root sends nothing: by a message to a rank on another node that dies meanwhile MPICH crashes, and Intel MPI aborts. Each worker
has two slots there, for one piece each, and two words, which only grow:

    filled      how many pieces the root has put, into one slot and the other in turn; it alone writes this
    had         how many the worker has fetched; it alone writes this

The root puts piece n once n - had < 2, and then says so; the worker fetches it once filled > n, and then says so. What is said
comes after what it is about, by a flush between. If the worker dies `had` stays as it is, and the root gives up when it is told;
what it has put is of no interest to anybody, as nobody else uses these slots.

A parcel is the number of its parts, their sizes, and the parts, each in pieces of its own.
"""

import logging
import mmap
import os
import threading
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._outcomes import Blob

if TYPE_CHECKING:
    from mpi4py import MPI

    from .channel._memory import Memory

logger = logging.getLogger("mpiexecutor")

_PIECE = 128 << 10  # bytes
_SLOTS = 2
_WORD, _LINE = 8, 64  # bytes
_FILLED, _HAD, _PIECES = 0, _LINE, 2 * _LINE  # where they are
_SHARE = _PIECES + _SLOTS * _PIECE  # bytes of each worker
_SHORTEST, _LONGEST, _GROWTH = 20e-6, 2e-3, 1.2  # seconds of the naps of who waits


class Pages:
    """Memory of which copies can be had for little: where the system can, only the pages that are written to are copied."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._file = os.memfd_create("mpiexecutor") if hasattr(os, "memfd_create") else -1
        if self._file >= 0:
            os.ftruncate(self._file, size)
        self._view = memoryview(mmap.mmap(self._file, size))

    def __len__(self) -> int:
        return self._size

    @property
    def view(self) -> memoryview:
        """The memory itself."""
        return self._view

    def copy(self) -> memoryview:
        """Give a copy that nobody else sees."""
        if self._file < 0:
            return memoryview(bytearray(self._view))
        return memoryview(mmap.mmap(self._file, self._size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class Parcels:
    """Gives out parcels, on the root, and fetches them, on a worker. Collective to make and to free."""

    def __init__(self, comm: "MPI.Intracomm", root: int, is_lost: Callable[[int], bool] = lambda _rank: False) -> None:
        """`is_lost` says of a worker that it fetches nothing any more."""
        from .channel._bells import FarBells  # noqa: PLC0415 - they know MPI
        from .channel._window import Window, on_one_node  # noqa: PLC0415

        self._window = Window(comm, root, comm.size * _SHARE)
        self._bells = None if on_one_node(comm) else FarBells(comm, root)
        self._is_lost = is_lost
        self._rank = comm.rank
        self._filled = [0] * comm.size  # pieces so far, by rank: as the root knows,
        self._had = 0  # and as this worker does
        if comm.rank == root:
            memory = self._memory()
            for rank in range(comm.size):
                memory.store(rank * _SHARE + _FILLED, 0)
                memory.store(rank * _SHARE + _HAD, 0)
            memory.flush()
        comm.Barrier()

    def send(self, rank: int, blob: Blob | None) -> None:
        """Send a worker what it waits for, or nothing; in a thread, because that takes as long as the worker takes to fetch it."""
        threading.Thread(target=self._send, args=(rank, blob), name="mpiexecutor parcel", daemon=True).start()

    def receive(self) -> tuple[memoryview, list[Pages]] | None:
        """Wait for a parcel; give its pickle and its buffers, None if it is empty."""
        memory = self._memory()
        (count,) = self._fetch_words(memory, 1)
        if not count:
            return None
        sizes = self._fetch_words(memory, count)
        data = memoryview(bytearray(sizes[0]))
        buffers = [Pages(size) for size in sizes[1:]]
        for part in (data, *(buffer.view for buffer in buffers)):
            self._fetch(memory, part)
        return data, buffers

    def leave(self) -> None:
        """Attend to the others no more."""
        if self._bells is not None:
            self._bells.leave()

    def free(self) -> None:
        self.leave()
        self._window.free()
        if self._bells is not None:
            self._bells.free()

    def _memory(self) -> "Memory":
        """Give a handle for one thread."""
        memory = self._window.memory()
        return memory if self._bells is None else self._bells.attended(memory)

    def _send(self, rank: int, blob: Blob | None) -> None:
        parts = [] if blob is None else [memoryview(blob.data), *blob.buffers]
        sizes = array("q", [len(part) for part in parts])
        memory = self._memory()
        try:
            for part in (memoryview(array("q", [len(sizes)])).cast("B"), memoryview(sizes).cast("B"), *parts):
                for start in range(0, len(part), _PIECE):
                    if not self._put(memory, rank, part[start : start + _PIECE]):
                        return
        except Exception:
            logger.exception("a worker could not be sent what it asked for")

    def _put(self, memory: "Memory", rank: int, piece: memoryview) -> bool:
        """Put a piece once there is room; False if nobody will fetch it."""
        share, count = rank * _SHARE, self._filled[rank]
        if not _wait(lambda: count - memory.load(share + _HAD) < _SLOTS, lambda: self._is_lost(rank)):
            return False
        memory.write(share + _PIECES + count % _SLOTS * _PIECE, piece)
        memory.flush()
        self._filled[rank] = count + 1
        memory.store(share + _FILLED, count + 1)
        memory.flush()
        return True

    def _fetch(self, memory: "Memory", part: memoryview) -> None:
        for start in range(0, len(part), _PIECE):
            self._fetch_piece(memory, part[start : start + _PIECE])

    def _fetch_piece(self, memory: "Memory", piece: memoryview) -> None:
        share, count = self._rank * _SHARE, self._had
        _wait(lambda: memory.load(share + _FILLED) > count)
        memory.fetch(share + _PIECES + count % _SLOTS * _PIECE, piece)
        self._had = count + 1
        memory.store(share + _HAD, count + 1)
        memory.flush()

    def _fetch_words(self, memory: "Memory", count: int) -> "array[int]":
        words = array("q", bytes(_WORD * count))
        self._fetch(memory, memoryview(words).cast("B"))
        return words


def _wait(done: Callable[[], bool], over: Callable[[], bool] = lambda: False) -> bool:
    """Wait until something is done; False if it will not be any more."""
    pause = _SHORTEST
    while not done():
        if over():
            return False
        time.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST)
    return True

"""What goes from the root to one worker, upon request: pieces in a window on the root, from where the worker fetches them.

The root sends nothing: by a message to a rank on another node that dies meanwhile MPICH crashes, and Intel MPI aborts. Each worker
has two slots there, for one piece each, and two words, which only grow:

    filled      how many pieces the root has put, into one slot and the other in turn; it alone writes this
    had         how many the worker has fetched; it alone writes this

One thread of the root serves all workers. It puts piece n once n - had < 2, and then says so; the worker fetches it once
filled > n, and then says so. What is said comes after what it is about, by a flush between. If the worker dies `had` stays as it
is, and the root gives up when it is told; what it has put is of no interest to anybody, as nobody else uses these slots.

A parcel is the number of its parts, their sizes, and the parts, each in pieces of its own.
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

from mpiexecutor._rma.memory import mapped
from mpiexecutor._util.inbox import Inbox
from mpiexecutor._util.polling import intervals

from .outcomes import Blob

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiexecutor._rma.memory import Memory

_PIECE, _LEAST_PIECE = 128 << 10, 4 << 10  # bytes, at the most and at the least
_MOST = 32 << 20  # bytes of all pieces, unless they are of the least size
_SLOTS = 2
_WORD, _LINE = 8, 64  # bytes
_FILLED, _HAD, _PIECES = 0, _LINE, 2 * _LINE  # where they are
_SHORTEST, _LONGEST = 20e-6, 2e-3  # seconds between two looks


class Pages:
    """Memory of which copies can be had for little: where the system can, only the pages that are written to are copied."""

    _file = -1

    def __init__(self, size: int) -> None:
        self._size = size
        self._file = os.memfd_create("mpiexecutor") if hasattr(os, "memfd_create") else -1
        if self._file >= 0:
            os.ftruncate(self._file, size)
        self._view = memoryview(mapped(self._file, size))

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
        return memoryview(mapped(self._file, self._size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class Parcels:
    """Gives out parcels, on the root, and fetches them, on a worker. Collective to make and to free."""

    def __init__(self, comm: "MPI.Intracomm", root: int, is_lost: Callable[[int], bool] = lambda _rank: False) -> None:
        """`is_lost` says of a worker that it fetches nothing any more. For the root, once whoever is lost may be known."""
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
        self._asked: Inbox[tuple[int, Blob | None] | None] = Inbox()  # None: no more
        self._thread: threading.Thread | None = None
        if comm.rank == root:
            self._thread = threading.Thread(target=self._serve, args=(self._memory(),), name="mpiexecutor parcels", daemon=True)
            self._thread.start()

    def send(self, rank: int, blob: Blob | None) -> None:
        """Have a worker find what it waits for, or nothing."""
        self._asked.put((rank, blob))

    def receive(self) -> tuple[memoryview, list[Pages]] | None:
        """Wait for a parcel; give its pickle and its buffers, None if it is empty.

        MemoryError if there is no room for it, OSError if there are too many files; it has been thrown away then.
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
                self._fetch_piece(memory, memoryview(b""))  # or the next parcel would begin with these pieces
            raise
        for part in (data, *(buffer.view for buffer in buffers)):
            self._fetch(memory, part)
        return data, buffers

    def leave(self) -> None:
        """Serve and attend to the others no more."""
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

    def _memory(self) -> "Memory":
        """Give a handle for one thread."""
        memory = self._window.memory()
        return memory if self._bells is None else self._bells.with_progress(memory)

    def _serve(self, memory: "Memory") -> None:
        """Put pieces for all who wait for some, until nobody will any more."""
        under_way: dict[int, Iterator[memoryview]] = {}
        pauses = intervals(_SHORTEST, _LONGEST)
        while True:
            with contextlib.suppress(Empty):
                asked = self._asked.get(timeout=next(pauses) if under_way else None)
                if asked is None:
                    return
                rank, blob = asked
                under_way[rank] = _pieces_of(blob, self._piece)
            for rank, pieces in list(under_way.items()):
                while self._has_room(memory, rank):
                    pauses = intervals(_SHORTEST, _LONGEST)
                    piece = next(pieces, None)
                    if piece is None:
                        del under_way[rank]
                        break
                    self._put(memory, rank, piece)
                else:
                    if self._is_lost(rank):
                        del under_way[rank]

    def _has_room(self, memory: "Memory", rank: int) -> bool:
        return self._filled[rank] - memory.load(rank * self._share + _HAD) < _SLOTS

    def _put(self, memory: "Memory", rank: int, piece: memoryview) -> None:
        share, count = rank * self._share, self._filled[rank]
        memory.write(share + _PIECES + count % _SLOTS * self._piece, piece)
        memory.flush()
        self._filled[rank] = count + 1
        memory.store(share + _FILLED, count + 1)
        memory.flush()

    def _fetch(self, memory: "Memory", part: memoryview) -> None:
        for start in range(0, len(part), self._piece):
            self._fetch_piece(memory, part[start : start + self._piece])

    def _fetch_piece(self, memory: "Memory", piece: memoryview) -> None:
        share, count = self._rank * self._share, self._had
        pauses = intervals(_SHORTEST, _LONGEST)
        while memory.load(share + _FILLED) <= count:
            time.sleep(next(pauses))
        if piece:
            memory.fetch(share + _PIECES + count % _SLOTS * self._piece, piece)
        self._had = count + 1
        memory.store(share + _HAD, count + 1)
        memory.flush()

    def _fetch_words(self, memory: "Memory", count: int) -> "array[int]":
        words = array("q", bytes(_WORD * count))
        self._fetch(memory, memoryview(words).cast("B"))
        return words


def _pieces_of(blob: Blob | None, size: int) -> Iterator[memoryview]:
    """Give a parcel, piece by piece."""
    parts = [] if blob is None else [memoryview(blob.data), *blob.buffers]
    sizes = array("q", [len(part) for part in parts])
    for part in (memoryview(array("q", [len(sizes)])).cast("B"), memoryview(sizes).cast("B"), *parts):
        for start in range(0, len(part), size):
            yield part[start : start + size]

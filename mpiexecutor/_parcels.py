"""What goes from the root to one worker, upon request: ordinary messages, because only this worker waits for them.

A parcel is a message that lists the sizes of its parts, and then the parts, each in pieces that every MPI can carry.
"""

import logging
import mmap
import os
import threading
import time
from typing import TYPE_CHECKING

from ._outcomes import Blob

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("mpiexecutor")

_TAG = 24602
_PIECE = 1 << 30  # bytes a message
_YIELDING = 1e-3  # seconds that a worker looks for its parcel before it naps
_NAP = 1e-3


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
    """Sends parcels, on the root, and receives them, on a worker."""

    def __init__(self, comm: "MPI.Intracomm", root: int) -> None:
        self._comm = comm
        self._root = root

    def send(self, rank: int, blob: Blob | None) -> None:
        """Send a worker what it waits for, or nothing; in a thread, because that takes as long as the worker takes to receive."""
        threading.Thread(target=self._send, args=(rank, blob), name="mpiexecutor parcel", daemon=True).start()

    def _send(self, rank: int, blob: Blob | None) -> None:
        parts = [] if blob is None else [memoryview(blob.data), *blob.buffers]
        try:
            self._comm.send([len(part) for part in parts], rank, _TAG)
            for part in parts:
                for start in range(0, len(part), _PIECE):
                    self._comm.Send(part[start : start + _PIECE], rank, _TAG)
        except Exception:
            logger.exception("a worker could not be sent what it asked for")

    def receive(self) -> tuple[memoryview, list[Pages]] | None:
        """Wait for a parcel; give its pickle and its buffers, None if it is empty."""
        began = time.monotonic()
        while not self._comm.Iprobe(self._root, _TAG):
            if time.monotonic() - began < _YIELDING:
                os.sched_yield()
            else:
                time.sleep(_NAP)
        sizes = self._comm.recv(source=self._root, tag=_TAG)
        if not sizes:
            return None
        data = memoryview(bytearray(sizes[0]))
        buffers = [Pages(size) for size in sizes[1:]]
        for part in (data, *(buffer.view for buffer in buffers)):
            for start in range(0, len(part), _PIECE):
                self._comm.Recv(part[start : start + _PIECE], self._root, _TAG)
        return data, buffers

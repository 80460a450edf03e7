"""The connections between the ranks of a pool: the work channel, the reply channel, and bulk transfer."""

import resource
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpiexecutor._calls import messages
from mpiexecutor._calls.bulk import BulkTransfer
from mpiexecutor._calls.messages import SharedMemory
from mpiexecutor._util.segments import free_memory
from mpiexecutor.channel import RemoteChannel

if TYPE_CHECKING:
    from mpi4py import MPI

_MOST_OF_ROOT, _MOST_OF_WORKER = 1 << 30, 256 << 20  # bytes of shared memory that are kept, at most,
_SEGMENTS = 4  # and pieces of it for each worker: one in use by the receiver, one under way, one that is written, one to spare
_SLOTS, _SLOT_SIZE = 256, 16384  # of each channel: messages of calls are small, and large ones take many slots


class Links:
    """The connections of one rank. All ranks make them together, and free them together."""

    def __init__(
        self,
        comm: "MPI.Intracomm",
        root: int,
        is_lost: Callable[[int], bool] = lambda _rank: False,
        *,
        shares_memory: bool,
    ) -> None:
        """Make them.

        Args:
            comm: Of root and workers.
            root: Rank of the root.
            is_lost: Says, on the root, whether a rank will never answer.
            shares_memory: Whether all receivers of this rank share memory with it.

        """
        alone: Any = "host" if comm.size == 1 else "any"
        kind: Any = messages
        work = RemoteChannel[Any, Any](_SLOTS, _SLOT_SIZE, kind, root, comm=comm, producers="host", consumers=alone)
        replies = RemoteChannel[Any, Any](_SLOTS, _SLOT_SIZE, kind, root, comm=comm, producers=alone, consumers="host")
        self.channels = work, replies
        self.bulk = BulkTransfer(comm, root, is_lost)
        self.share = _limits(comm.size, of_root=comm.rank == root) if shares_memory else (0, 0)
        self.memory = SharedMemory(*self.share)

    def free(self) -> None:
        """Free the connections, together with all ranks."""
        for channel in self.channels:
            channel.free()
        self.bulk.free()
        self.memory.close()

    def abandon(self) -> None:
        """Stop using the connections without the other ranks, which may be lost."""
        for channel in self.channels:
            channel.abandon()
        self.bulk.leave()
        self.memory.close()

    def disown(self) -> None:
        """Stop using the channels: they belong to another process, or a thread is stuck in them."""
        for channel in self.channels:
            channel.disown()


def _limits(ranks: int, *, of_root: bool) -> tuple[int, int]:
    """Return the most bytes of memory that this rank shares with others, and the most pieces of it, which are files."""
    most = free_memory() // 8 if of_root else min(_MOST_OF_WORKER, free_memory() // (8 * ranks))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = files if files >= 0 else sys.maxsize
    pieces = min(_SEGMENTS * ranks, files // 8) if of_root else min(_SEGMENTS, files // (8 * ranks))
    return min(most, _MOST_OF_ROOT), pieces

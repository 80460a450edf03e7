"""What the ranks of a pool are connected by: the work channel, the reply channel, and bulk transfer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpiexecutor._calls import messages
from mpiexecutor._calls.bulk import BulkTransfer
from mpiexecutor.channel import RemoteChannel

if TYPE_CHECKING:
    from mpi4py import MPI

_SLOTS, _SLOT_SIZE = 256, 16384  # of each channel: messages of calls are small, and large ones take many slots


class Links:
    """The connections of one rank. All ranks make them together, and free them together."""

    def __init__(self, comm: "MPI.Intracomm", root: int, is_lost: Callable[[int], bool] = lambda _rank: False) -> None:
        """`is_lost` says, on the root, whether a rank will never answer."""
        alone: Any = "host" if comm.size == 1 else "any"
        kind: Any = messages
        work = RemoteChannel[Any, Any](_SLOTS, _SLOT_SIZE, kind, root, comm=comm, producers="host", consumers=alone)
        replies = RemoteChannel[Any, Any](_SLOTS, _SLOT_SIZE, kind, root, comm=comm, producers=alone, consumers="host")
        self.channels = work, replies
        self.bulk = BulkTransfer(comm, root, is_lost)

    def free(self) -> None:
        """Give back what all have made together."""
        for channel in self.channels:
            channel.free()
        self.bulk.free()

    def abandon(self) -> None:
        """Leave it as it is, without the other ranks, which may be lost."""
        for channel in self.channels:
            channel.abandon()
        self.bulk.leave()

    def disown(self) -> None:
        """Stop using the channels: they belong to another process, or a thread is stuck in them."""
        for channel in self.channels:
            channel.disown()

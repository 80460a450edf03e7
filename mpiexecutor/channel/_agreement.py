"""What all ranks check together before they make a channel, and before they free it."""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex

from mpiexecutor._rma.doorbell import node_name
from mpiexecutor._rma.failed_ranks import FAILED_RANKS, CommFailedRanks
from mpiexecutor._util.polling import wait_for_ranks
from mpiexecutor.channel._ring.layout import MAX_SLOTS

from ._codecs import Codec, codec_of
from ._errors import ChannelBroken

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of one rank."""

    buff_size: Any
    message_size: Any
    dtype: Any
    host: Any
    producers: Any
    consumers: Any

    def check(self, ranks: int) -> Codec:
        """Return the codec. ValueError, with the rule as its text, if these arguments make no channel."""
        for name in ("buff_size", "message_size", "host"):
            number = getattr(self, name)
            if not isinstance(number, SupportsIndex) or isinstance(number, bool):
                raise ValueError(f"{name} is a whole number, not {number!r}")  # noqa: TRY004 - all are ValueErrors, on every rank alike
        if not 1 <= self.buff_size <= MAX_SLOTS:
            raise ValueError(f"buff_size is the number of messages that find room, 1 to {MAX_SLOTS}, not {self.buff_size}")
        if self.message_size < 1:
            raise ValueError(f"message_size is the most elements of a message, at least 1, not {self.message_size}")
        if not 0 <= self.host < ranks:
            raise ValueError(f"host is a rank of the communicator, 0 to {ranks - 1}, not {self.host}")
        for name in ("producers", "consumers"):
            if getattr(self, name) not in ("any", "host"):
                raise ValueError(f"{name} is 'any' or 'host', not {getattr(self, name)!r}")
        codec = codec_of(self.dtype, index(self.message_size))
        size = codec.slot_size * self.buff_size
        if size > _memory():
            raise ValueError(f"a channel of {self.buff_size} messages of {codec.slot_size} bytes takes more memory than there is")
        return codec


def _memory() -> int:
    """Return the bytes of memory here: if MPI cannot allocate a window, only the host raises, and the other ranks hang."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def all_come(comm: "MPI.Intracomm", failed: CommFailedRanks, complaint: Callable[[], str] | None = None) -> None:
    """Wait until all ranks have called this. If one is known to have failed, return at once: some MPIs crash if they send to it."""
    if failed:
        return
    come = comm.Ibarrier()
    wait_for_ranks(lambda: bool(failed) or come.Test(), complaint)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all ranks have agreed on."""

    codec: Codec
    token: str  # names the channel on its nodes; hard to guess
    nodes: tuple[str, ...]  # by rank


def agree(comm: "MPI.Intracomm", arguments: Arguments, failed: CommFailedRanks) -> Agreement:
    """Compare the arguments of all ranks. ValueError on every rank if they are wrong, or differ; ChannelBroken if a rank failed."""
    codec, error = None, None
    try:
        codec = arguments.check(comm.size)
        text = f"{arguments}".replace(f"dtype={arguments.dtype!r}", f"dtype={codec.name}")
    except ValueError as caught:
        text, error = f"{arguments}", caught
    # Here a rank that waits for others logs a warning; inside allgather it could not.
    complaint = f"rank {comm.rank} still waits for others to make a RemoteChannel: every rank of the communicator has to"
    all_come(comm, failed, lambda: complaint)
    if failed:
        raise ChannelBroken(f"{failed.ends(failed)}: a channel is made by all ranks of a communicator", tuple(failed))
    with FAILED_RANKS.all_needed("the making of a channel", failed):
        everyone = comm.allgather((text, "" if error is None else str(error), secrets.token_hex(8), node_name()))
    if error is not None:
        raise error
    for rank, (other, reason, _, _) in enumerate(everyone):
        if reason:
            raise ValueError(f"rank {rank} cannot make the channel: {reason}")
        if other != everyone[0][0]:
            raise ValueError(
                f"all ranks make a channel with the same arguments: rank 0 has {everyone[0][0]}, rank {rank} has {other}"
            )
    assert codec is not None
    return Agreement(codec, everyone[0][2], tuple(node for _, _, _, node in everyone))

"""What the two ends of a rank share, and how a rank wakes the others."""

import contextlib
import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mpiexecutor._rma.doorbell import Notifier, address_of
from mpiexecutor.channel._errors import ChannelBroken, ChannelClosed
from mpiexecutor.channel._ring.consumer import Consumer
from mpiexecutor.channel._ring.layout import Layout
from mpiexecutor.channel._ring.producer import Producer

Side = Literal["put", "take"]

# What a rank's byte says, see end.py.
AWAKE, TO_BEGIN, TO_GO_ON, SPINNING = 0, 1, 2, 3
_FLAGS = [memoryview(bytes((flag,))) for flag in (AWAKE, TO_BEGIN, TO_GO_ON, SPINNING)]


class RemoteNotifier(Protocol):
    """Wakes ranks on other nodes: see notifier.py of RMA."""

    def notify(self, rank: int, which: Side, /) -> None:
        """Wake a rank that sleeps at this end."""

    def was_notified(self, which: Side, /) -> bool:
        """Whether this rank was woken at this end."""

    def request_progress(self) -> None:
        """Have the host make progress for a while."""

    def leave(self) -> None:
        """Stop making progress for the others."""

    def free(self) -> None:
        """Free what it takes; together with every rank."""


class Phase(enum.IntEnum):
    """How far this rank has left the channel."""

    OPEN = 0
    FREED = 1  # no operation may begin; the host still recovers the ring
    GONE = 2  # nor may the memory be used: freed by MPI, or left to others


@dataclass(slots=True, eq=False)
class RankState:
    """What both ends of one rank share: where the rank is, how it wakes others, and what it knows of failures."""

    layout: Layout
    rank: int
    token: str
    nodes: Sequence[str]
    notifier: Notifier
    remote: RemoteNotifier | None  # if there are several nodes
    phase: Phase = Phase.OPEN
    failed: frozenset[int] = frozenset()  # failed ranks, as far as this rank knows; to send them a message crashes some MPIs
    host_lost: ChannelBroken | None = None
    losses: deque[ChannelBroken] = field(default_factory=deque)  # errors that the next operations of this rank raise, one each

    def address(self, side: Side, rank: int) -> str:
        return address_of(self.token, rank, side)

    def asleep_at(self, side: Side, rank: int) -> int:
        return (self.layout.putters if side == "put" else self.layout.takers) + rank

    def wake(self, ring: Producer | Consumer, side: Side, asleep: bytes, *, begin: int) -> None:
        """Wake the ranks in the middle of a message, and `begin` of those that wait to begin; those after this one first."""
        if not any(asleep):
            return
        begin -= SPINNING in asleep
        for rank in (*range(self.rank + 1, len(asleep)), *range(self.rank + 1)):
            if asleep[rank] in {AWAKE, SPINNING} or (asleep[rank] == TO_BEGIN and begin <= 0):
                continue
            begin -= asleep[rank] == TO_BEGIN
            ring.mark(self.asleep_at(side, rank), flag_of(AWAKE))
            self._notify(side, rank)

    def _notify(self, side: Side, rank: int) -> None:
        if self.remote is None or self.nodes[rank] == self.nodes[self.rank]:
            self.notifier.notify(self.address(side, rank))
        elif rank not in self.failed:
            self.remote.notify(rank, side)
            self.remote.request_progress()

    def check(self) -> None:
        """Raise the error if the channel cannot be used any more."""
        if self.phase:
            raise ChannelClosed("the channel was freed")
        if self.host_lost is not None:
            raise ChannelBroken(*self.host_lost.args)

    def check_losses(self) -> None:
        """Do the same, or raise the error of a loss, once. To be called before something begins."""
        if self.phase or self.host_lost is not None:
            self.check()
        while self.losses:
            with contextlib.suppress(IndexError):  # another thread raises it
                error = self.losses.popleft()
                raise error


def flag_of(flag: int) -> memoryview:
    """Return a flag as the byte of a rank that waits."""
    return _FLAGS[flag]

"""The end of a channel at which this rank puts. How it waits, and which ranks it wakes, is in end.py."""

from collections.abc import Sequence
from functools import partial

from mpiexecutor._rma.memory import Memory
from mpiexecutor.channel._ring.layout import Layout
from mpiexecutor.channel._ring.participant import Progress
from mpiexecutor.channel._ring.producer import Gather, Outgoing, Producer

from .background import ChannelFuture
from .end import Begin, End, at_once
from .rank_state import TO_BEGIN, TO_GO_ON, RankState

Parts = list[memoryview]  # of one message


class PutEnd(End):
    """The end at which this rank puts. One thread at a time is at work here."""

    ring: Producer

    def __init__(self, rank_state: RankState, memory: Memory, *, single: bool) -> None:
        super().__init__("put", rank_state, Producer(memory, rank_state.layout, rank_state.rank, single=single))

    def put(self, messages: Sequence[Parts], deadline: float | None, *, whole: bool = False) -> int:
        """Wait for room for the first message, and put as many as have room. Return their number; 0 when the deadline is over."""
        if not self.acquire(deadline):
            return 0
        try:
            self._rank_state.check_losses()
            if len(messages) == 1 and self._put_short(messages[0]):
                return 1
            return self._put(messages, deadline, at_once, whole=whole)
        finally:
            self.lock.release()

    def put_later(self, parts: Parts) -> ChannelFuture[None]:
        """Put a message in the background."""

        def operation(future: ChannelFuture[None]) -> None:
            with self.lock:
                self._rank_state.check()
                self._put([parts], None, future.begin)

        return self.background.submit(operation)

    def close(self) -> None:
        """Close the channel from this end, which is the only one. Its lock need not be held."""
        with self._moving:
            self.ring.close()

    def _put_short(self, parts: Parts) -> bool:
        """Put a message at once if it has one slot, and there is room."""
        length = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if length > self._rank_state.layout.slot_size:
            return False
        try:
            with self._moving:
                return self.ring.put_short(parts, length)
        finally:
            self._wake(1)

    def _put(self, messages: Sequence[Parts], deadline: float | None, begin: Begin[Outgoing], *, whole: bool = False) -> int:
        lengths = [sum(map(len, parts)) for parts in messages]

        def reserve() -> Outgoing | None:
            self._rank_state.check_losses()
            with self._moving:
                return self.ring.reserve(lengths, whole=whole)

        out = None
        try:
            out = self._waiter.wait(partial(begin, reserve), deadline, TO_BEGIN)
        finally:
            if out is None:
                self._pass_on_wake_up()
        if out is None:
            return 0
        progress: Progress | None = None
        try:
            out.data = _gather(messages, out.lengths, self._rank_state.layout)
            while (progress := self._send(out, deadline)) is Progress.MOVED:
                self._wake(len(out.lengths))
            if progress is None:  # out of time
                self.ring.abort(out)
        except BaseException:
            self.ring.abort(out)
            raise
        finally:
            self._wake(len(out.lengths))
        if progress is Progress.QUIESCENT:
            self._wait_for_resumption()
            done = len(out.lengths) - self.ring.unsent(out)
            return done or self._put(messages, deadline, at_once, whole=whole)
        return len(out.lengths) if out.sent == out.span else 0

    def _send(self, out: Outgoing, deadline: float | None) -> Progress | None:
        def step() -> Progress | None:
            self._rank_state.check()
            progress = self.ring.send(out)
            return None if progress is Progress.STALLED else progress

        return self._waiter.wait(step, deadline, TO_GO_ON)

    def _pass_on_wake_up(self) -> None:
        state = self.ring.state()
        room = self.ring.used(state) < self._rank_state.layout.slots
        self._rank_state.wake(self.ring, "put", state.putters, begin=int(room))

    def _wake(self, messages: int) -> None:
        if self.ring.read_header():  # a rank sleeps
            self._rank_state.wake(self.ring, "take", self.ring.header().takers, begin=messages)


def _gather(messages: Sequence[Parts], lengths: Sequence[int], layout: Layout) -> Gather:
    """Return messages as their slots lie: one as it is, several with the padding between them."""
    if len(lengths) == 1:
        return Gather(messages[0])
    whole = bytearray()
    for parts, length in zip(messages, lengths, strict=False):
        for part in parts:
            whole += part
        whole += bytes(layout.span(length) * layout.slot_size - length)
    return Gather([memoryview(whole)])

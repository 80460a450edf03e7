"""The two ends of a channel, as one rank has them: a handle on the ring, a lock, a way to wait, a queue for the background.

Blocking is: try, and wait until another try may succeed. Every operation ends by waking whom it may have made room, or a message,
for.

Who is woken, and why nobody sleeps on. After a put: as many of those that wait to begin taking as messages were put. After a
take: those that wait to begin putting, if there is room worth waking for; one that waits to begin taking, if more is there,
because two who put may have chosen the same sleeper; all of them, if no message will come any more. After each step, on both
sides: whoever waits in the middle of a message, because it may be this one, or one that was cut, whose slots others still use. A
rank clears its own byte before it looks whom to wake: who put before that is seen by it, who puts after that does not count on
it. Who stops waiting with nothing passes a wake-up on that it may have got.

Before it sleeps, one rank of those that wait to begin taking *looks out* for a moment, and the others go to sleep at once. Who puts
counts on it for the first message, and need not ring. Its byte is cleared by itself alone, before it looks whom to wake: so if it
was counted on twice, it wakes another for what it leaves. If it dies, or is stopped, while it looks out, the others find the
message when their sleep ends by itself.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from mpiexecutor._rma.doorbell import Doorbell, Ringer, address_of
from mpiexecutor._rma.memory import Memory
from mpiexecutor.channel._ring.consumer import Consumer, Incoming
from mpiexecutor.channel._ring.layout import Layout, Progress, State
from mpiexecutor.channel._ring.producer import Gather, Outgoing, Producer

from ._background import Background, ChannelFuture
from ._errors import ChannelBroken, ChannelClosed
from ._waiter import Waiter

if TYPE_CHECKING:
    from mpiexecutor._rma.notifier import FarBells

T = TypeVar("T")

Side = Literal["put", "take"]
Parts = list[memoryview]  # of one message
Step = Callable[[], T | None]
Begin = Callable[[Step[T]], T | None]  # takes the step that reserves or claims, unless it is not wanted any more

# What the byte of a rank that waits says.
_AWAKE, _TO_BEGIN, _TO_GO_ON, _LOOKS_OUT = 0, 1, 2, 3
_NAP: Final = {"put": 0.05, "take": 1.0}  # seconds that a rank sleeps at most before it looks by itself
_FAR_NAP: Final = {"put": 0.5, "take": 30.0}  # the same where the host has to wake up for that look, too
_WORTH = 4  # a producer is woken to begin when this fraction of the ring is free: for one slot alone it would sleep again at once


# What is taken when no message will come any more: no messages.
END: Final = Incoming(0, (), 0, memoryview(b""))


@dataclass(slots=True, eq=False)
class Place:
    """A rank's place in the channel: what both its ends share."""

    layout: Layout
    rank: int
    token: str
    nodes: Sequence[str]
    ringer: Ringer
    bells: "FarBells | None"  # if there are several nodes
    freed: bool = False
    dead: frozenset[int] = frozenset()  # as far as this rank knows; some MPIs crash if a message is sent to them
    host_lost: ChannelBroken | None = None
    losses: deque[ChannelBroken] = field(default_factory=deque)  # that this rank has to be told of

    def address(self, side: Side, rank: int) -> str:
        return address_of(self.token, rank, side)

    def asleep_at(self, side: Side, rank: int) -> int:
        return (self.layout.putters if side == "put" else self.layout.takers) + rank

    def wake(self, ring: Producer | Consumer, side: Side, asleep: bytes, *, begin: int) -> None:
        """Wake all who sleep in the middle of a message, and so many of those who wait to begin; those behind this rank first."""
        if not any(asleep):
            return
        begin -= _LOOKS_OUT in asleep
        for rank in (*range(self.rank + 1, len(asleep)), *range(self.rank + 1)):
            if asleep[rank] in {_AWAKE, _LOOKS_OUT} or (asleep[rank] == _TO_BEGIN and begin <= 0):
                continue
            begin -= asleep[rank] == _TO_BEGIN
            ring.mark(self.asleep_at(side, rank), _flag(_AWAKE))
            self._ring(side, rank)

    def _ring(self, side: Side, rank: int) -> None:
        if self.bells is None or self.nodes[rank] == self.nodes[self.rank]:
            self.ringer.ring(self.address(side, rank))
        elif rank not in self.dead:
            self.bells.ring(rank, side)
            self.bells.stir()

    def check(self) -> None:
        """Raise the error, if the channel is of no use any more."""
        if self.freed:
            raise ChannelClosed("the channel was freed")
        if self.host_lost is not None:
            raise ChannelBroken(*self.host_lost.args)

    def check_losses(self) -> None:
        """Do so, or raise that of a loss that this rank has to be told of: once, and before it begins something."""
        self.check()
        while self.losses:
            with contextlib.suppress(IndexError):  # another thread was told
                error = self.losses.popleft()
                raise error


class _End:
    """What both ends have."""

    def __init__(self, side: Side, place: Place, ring: Producer | Consumer, look_out: Callable[[int], bool] | None = None) -> None:
        self._side = side
        self._place = place
        self.lock = threading.Lock()
        self._bell = Doorbell(place.address(side, place.rank), None if place.bells is None else partial(place.bells.rung, side))
        asleep_at = place.asleep_at(side, place.rank)
        nap = _NAP if place.bells is None else _FAR_NAP
        self._resumed = ring.resumed
        self._mark: Callable[[int], None] = lambda flag: ring.mark(asleep_at, _flag(flag))
        self._waiter = Waiter(self._bell, self._mark, longest=nap[side], look_out=look_out)
        self.background = Background(f"mpiexecutor {side}f", self.interrupt)

    def _wait_for_resumption(self) -> None:
        """Wait while what the dead have left behind is settled. Nothing can be begun before, and nothing has to be given up."""

        def look() -> bool | None:
            self._place.check()
            return self._resumed() or None

        self._waiter.wait(look, None, _TO_GO_ON)

    def interrupt(self) -> None:
        """Have this rank's own thread that sleeps here look again."""
        self._place.ringer.ring(self._place.address(self._side, self._place.rank))

    def _acquire(self, deadline: float | None) -> bool:
        """Take the lock: other threads of this rank may be waiting here. False if it could not be had in time."""
        return self.lock.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """End the background thread; the place is marked as freed, so that whoever waits gives up."""
        self.background.stop()
        self.interrupt()

    def free(self) -> None:
        self._bell.free()


class PutEnd(_End):
    """Where this rank puts."""

    def __init__(self, place: Place, memory: Memory, *, sole: bool) -> None:
        self.ring = Producer(memory, place.layout, place.rank, sole=sole)
        super().__init__("put", place, self.ring)
        self._reserving = threading.Lock()  # where the host alone puts, closing must not come between its load and its store

    def put(self, messages: Sequence[Parts], deadline: float | None, *, whole: bool = False) -> int:
        """Put as many of the messages as have room once the first has; how many, 0 when out of time."""
        if not self._acquire(deadline):
            return 0
        try:
            self._place.check_losses()
            if len(messages) == 1 and self._put_short(messages[0]):
                return 1
            return self._put(messages, deadline, _at_once, whole=whole)
        finally:
            self.lock.release()

    def put_later(self, parts: Parts) -> ChannelFuture[None]:
        """Put a message in the background."""

        def operation(future: ChannelFuture[None]) -> None:
            with self.lock:
                self._place.check()
                self._put([parts], None, future.begin)

        return self.background.submit(operation)

    def close(self) -> None:
        """Close the channel from this end, which is the only one: the lock need not be held. As for all that follows here."""
        with self._reserving:
            self.ring.close()

    def pause(self) -> None:
        with self._reserving:
            self.ring.pause()

    def go_on(self, position: int) -> None:
        with self._reserving:
            self.ring.go_on(position)

    def _put_short(self, parts: Parts) -> bool:
        """Put a message at once if it takes one slot, and there is room."""
        length = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if length > self._place.layout.slot_size:
            return False
        try:
            with self._reserving:
                return self.ring.put_short(parts, length)
        finally:
            sleepers = self.ring.glance()
            self.ring.note_peak_of_short()
            if sleepers:
                self._place.wake(self.ring, "take", self.ring.glanced().takers, begin=1)

    def _put(self, messages: Sequence[Parts], deadline: float | None, begin: Begin[Outgoing], *, whole: bool = False) -> int:
        lengths = [sum(map(len, parts)) for parts in messages]

        def reserve() -> Outgoing | None:
            self._place.check_losses()
            with self._reserving:
                return self.ring.reserve(lengths, whole=whole)

        out = None
        try:
            out = self._waiter.wait(partial(begin, reserve), deadline, _TO_BEGIN)
        finally:
            if out is None:
                self._pass_on_wake_up()
        if out is None:
            return 0
        progress: Progress | None = None
        try:
            out.data = _gather(messages, out.lengths, self._place.layout)
            while (progress := self._send(out, deadline)) is Progress.MOVED:
                self._wake(out)
            if progress is None:  # out of time
                self.ring.cut(out)
        except BaseException:
            self.ring.cut(out)
            raise
        finally:
            self._wake(out)
        if progress is Progress.PARKED:
            self._wait_for_resumption()
            done = len(out.lengths) - self.ring.unsent(out)
            return done or self._put(messages, deadline, _at_once, whole=whole)
        return len(out.lengths) if out.sent == out.span else 0

    def _send(self, out: Outgoing, deadline: float | None) -> Progress | None:
        def step() -> Progress | None:
            self._place.check()
            progress = self.ring.send(out)
            return None if progress is Progress.STALLED else progress

        return self._waiter.wait(step, deadline, _TO_GO_ON)

    def _pass_on_wake_up(self) -> None:
        state = self.ring.state()
        room = self.ring.used(state) < self._place.layout.slots
        self._place.wake(self.ring, "put", state.putters, begin=int(room))

    def _wake(self, out: Outgoing) -> None:
        state = self.ring.state()
        self.ring.note_peak(out, state)
        self._place.wake(self.ring, "take", state.takers, begin=len(out.lengths))


class TakeEnd(_End):
    """Where this rank takes."""

    def __init__(self, place: Place, memory: Memory, *, sole: bool) -> None:
        self.ring = Consumer(memory, place.layout, place.rank, sole=sole)
        super().__init__("take", place, self.ring, None if sole or place.bells is not None else self._look_out)
        self._claiming = threading.Lock()  # as for PutEnd
        self._incoming: Incoming | None = None  # claimed, and not received yet: taken up again after an interrupt

    def take(self, most: int, deadline: float | None) -> Incoming | None:
        """Take what is there, up to so many messages, once something is; None when out of time."""
        if not self._acquire(deadline):
            return None
        try:
            self._place.check_losses()
            if most == 1 and self._incoming is None and (data := self._take_short()) is not None:
                return Incoming(0, (len(data),), 1, data)
            return self._take(most, deadline, _at_once)
        finally:
            self.lock.release()

    def skip(self, number: int) -> bool:
        """Throw a message away for which there was no memory; False if it is not the next any more, or another thread takes."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            self._place.check()
            incoming = self._incoming  # of a call that was interrupted
            if incoming is None:
                incoming = self._claimed(partial(self.ring.skip, number))
            elif incoming.skipped and incoming.number == number:
                self.ring.resume(incoming)
            else:
                return False
            return incoming is not None and self._has_received(incoming)
        finally:
            self.lock.release()

    def take_later(self, decode: Callable[[Incoming], T]) -> ChannelFuture[T]:
        """Take a message in the background."""

        def operation(future: ChannelFuture[T]) -> T:
            with self.lock:
                self._place.check()
                found = self._take(1, None, future.begin)
            assert found is not None
            return decode(found)

        return self.background.submit(operation)

    def pause(self) -> None:
        with self._claiming:
            self.ring.pause()

    def go_on(self, position: int) -> None:
        with self._claiming:
            self.ring.go_on(position)

    def _look_out(self, flag: int) -> bool:
        """Look out for messages, for all ranks, unless another rank does."""
        if flag != _TO_BEGIN:
            return True
        if _LOOKS_OUT in self.ring.state().takers:
            return False
        self._mark(_LOOKS_OUT)
        return True

    def _take_short(self) -> memoryview | None:
        """Take a message at once if it takes one slot, and is there."""
        data = None
        try:
            data = self._receive_short()
        finally:
            if data is not None and self.ring.glance():
                self._wake_by(self.ring.glanced())
        return data

    def _receive_short(self, *, alone: bool = False) -> memoryview | None:
        try:
            with self._claiming:
                return self.ring.take_short(alone=alone)
        finally:
            self._incoming, self.ring.interrupted = self.ring.interrupted, None

    def _claimed(self, claim: Callable[[], Incoming | None]) -> Incoming | None:
        """Claim something. It is noted at once: if this is interrupted the next call takes it up again."""
        try:
            with self._claiming:
                return claim()
        finally:
            self._incoming, self.ring.interrupted = self.ring.interrupted, None

    def _take(self, most: int, deadline: float | None, begin: Begin[Incoming]) -> Incoming | None:
        while True:
            incoming = None
            try:
                incoming = self._waiter.wait(partial(begin, partial(self._claim, most)), deadline, _TO_BEGIN)
            finally:
                if incoming is None:
                    self._wake()
            if incoming is None or incoming is END:
                return incoming
            if self._has_received(incoming) and not incoming.skipped:
                return incoming
            begin = _at_once  # the message was cut, or is put anew: the next one is taken instead

    def _has_received(self, incoming: Incoming) -> bool:
        """Receive what was claimed; False if that was cut, or is put anew."""
        self._incoming = incoming
        progress = self._receive(incoming)
        self._incoming = None
        if self.ring.glance():
            self._wake_by(self.ring.glanced())
        if progress is Progress.PARKED:
            self._wait_for_resumption()
        return progress is Progress.DONE

    def _claim(self, most: int) -> Incoming | None:
        self._place.check_losses()
        if self._incoming is not None:
            self.ring.resume(self._incoming)
            return self._incoming
        if (data := self._receive_short(alone=most > 1)) is not None:
            return Incoming(0, (len(data),), 1, data, got=1)
        incoming = self._claimed(partial(self.ring.claim, most))
        if incoming is None and self.ring.is_over():
            return END
        return incoming

    def _receive(self, incoming: Incoming) -> Progress:
        def step() -> Progress | None:
            self._place.check()
            progress = self.ring.receive(incoming)
            return None if progress is Progress.STALLED else progress

        # No deadline: a message that has begun is there, or is being written, or is cut.
        while (progress := self._waiter.wait(step, None, _TO_GO_ON)) is Progress.MOVED:
            self._wake()
        assert progress is not None
        return progress

    def _wake(self) -> None:
        self._wake_by(self.ring.state())

    def _wake_by(self, state: State) -> None:
        slots = self._place.layout.slots
        room = slots - self.ring.used(state)
        self._place.wake(self.ring, "put", state.putters, begin=room if room * _WORTH >= slots else 0)
        begin = len(state.takers) if self.ring.ended(state) else int(state.waiting)
        self._place.wake(self.ring, "take", state.takers, begin=begin)


def _at_once(step: Callable[[], Any]) -> Any:
    return step()


def _flag(flag: int) -> memoryview:
    return memoryview(bytes((flag,)))


def _gather(messages: Sequence[Parts], lengths: Sequence[int], layout: Layout) -> Gather:
    """Lay messages out as their slots lie: one as it is, several with the padding between them."""
    if len(lengths) == 1:
        return Gather(messages[0])
    whole = bytearray()
    for parts, length in zip(messages, lengths, strict=False):
        for part in parts:
            whole += part
        whole += bytes(layout.span(length) * layout.slot_size - length)
    return Gather([memoryview(whole)])

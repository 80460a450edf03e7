"""The end of a channel at which this rank takes. How it waits, and which ranks it wakes, is in end.py."""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from mpiexecutor._rma.memory import Memory
from mpiexecutor.channel._ring.consumer import Consumer
from mpiexecutor.channel._ring.participant import Progress
from mpiexecutor.channel._ring.receiver import Incoming

from .background import ChannelFuture
from .end import Begin, End, at_once
from .rank_state import SPINNING, TO_BEGIN, TO_GO_ON, RankState

T = TypeVar("T")

_WORTH = 4  # a producer is woken to begin when this fraction of the ring is free: for one slot alone it would sleep again at once


# What take returns when no message will come any more: no messages.
NO_MORE: Final = Incoming(0, (), 0, memoryview(b""))


class TakeEnd(End):
    """The end at which this rank takes. One thread at a time is at work here."""

    ring: Consumer

    def __init__(self, rank_state: RankState, memory: Memory, *, single: bool) -> None:
        ring = Consumer(memory, rank_state.layout, rank_state.rank, single=single)
        super().__init__("take", rank_state, ring, None if single or rank_state.remote is not None else self._may_spin)
        self._incoming: Incoming | None = None  # claimed, and not received yet: the next call goes on with it after an interrupt

    def take(self, most: int, deadline: float | None) -> Incoming | None:
        """Take up to `most` messages that are there, and wait for the first of them. Return None when the deadline is over."""
        if not self.acquire(deadline):
            return None
        try:
            self._rank_state.check_losses()
            if self._incoming is None and (incoming := self._receive_short(alone=most > 1)) is not None:
                self._wake()
                return incoming
            return self._take(most, deadline, at_once, looked=self.ring.seen_empty and deadline is None)
        finally:
            self.lock.release()

    def skip(self, number: int) -> bool:
        """Throw away a message that had no memory here; False if it is not the next one any more, or another thread takes."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            self._rank_state.check()
            incoming = self._incoming  # of a call that was interrupted
            if incoming is None:
                incoming = self._claimed(partial(self.ring.skip, number))
            elif incoming.skipped and incoming.number == number:
                self.ring.recount(incoming)
            else:
                return False
            return incoming is not None and self._has_received(incoming)
        finally:
            self.lock.release()

    def take_later(self, decode: Callable[[Incoming], T]) -> ChannelFuture[T]:
        """Take a message in the background."""

        def operation(future: ChannelFuture[T]) -> T:
            with self.lock:
                self._rank_state.check()
                found = self._take(1, None, future.begin)
            assert found is not None
            return decode(found)

        return self.background.submit(operation)

    def spin_if(self, expected: Callable[[], bool]) -> None:
        """Have a thread that waits for the beginning of a message spin only if one is expected soon."""
        self._waiter.expected = lambda flag: flag != TO_BEGIN or expected()

    @property
    def sleeps(self) -> bool:
        return self._waiter.sleeps

    def rouse(self) -> None:
        """Have this rank's thread that sleeps here spin."""
        self._waiter.rouse()

    def _may_spin(self, flag: int) -> bool:
        """Spin for a message on behalf of all ranks that wait to begin, unless another rank does."""
        if flag != TO_BEGIN:
            return True
        if SPINNING in self.ring.state().takers:
            return False
        self._mark(SPINNING)
        return True

    def _receive_short(self, *, alone: bool) -> Incoming | None:
        """Take a message at once if it has one slot, and is there."""
        data = self._claimed(partial(self.ring.take_short, alone=alone))
        return None if data is None else Incoming(0, (len(data),), 1, data)

    def _claimed(self, claim: Callable[[], T | None]) -> T | None:
        """Claim, and note at once what was claimed: the next call goes on with it after an interrupt."""
        try:
            with self._moving:
                return claim()
        finally:
            self._incoming, self.ring.interrupted = self.ring.interrupted, None

    def _take(self, most: int, deadline: float | None, begin: Begin[Incoming], *, looked: bool = False) -> Incoming | None:
        while True:
            incoming = None
            try:
                incoming = self._waiter.wait(partial(begin, partial(self._claim, most)), deadline, TO_BEGIN, looked=looked)
            finally:
                if incoming is None:
                    self._wake()
            if incoming is None or incoming is NO_MORE:
                return incoming
            if self._incoming is None:  # a short one, which is received already
                self._wake()
                return incoming
            if self._has_received(incoming) and not incoming.skipped:
                return incoming
            begin, looked = at_once, False  # take the next message instead

    def _has_received(self, incoming: Incoming) -> bool:
        """Receive what was claimed; False if its producer has aborted it, or puts it anew."""
        self._incoming = incoming
        progress = self._receive(incoming)
        self._incoming = None
        self._wake()
        if progress is Progress.QUIESCENT:
            self._wait_for_resumption()
        return progress is Progress.DONE

    def _claim(self, most: int) -> Incoming | None:
        self._rank_state.check_losses()
        if self._incoming is not None:
            self.ring.recount(self._incoming)
            return self._incoming
        incoming = self._receive_short(alone=most > 1)
        if incoming is None and not self.ring.seen_empty:
            incoming = self._claimed(partial(self.ring.claim, most))
        if incoming is None and self.ring.is_over():
            return NO_MORE
        return incoming

    def _receive(self, incoming: Incoming) -> Progress:
        def step() -> Progress | None:
            self._rank_state.check()
            progress = self.ring.receive(incoming)
            return None if progress is Progress.STALLED else progress

        # No deadline: a message that has begun is there, or is being written, or is aborted.
        while (progress := self._waiter.wait(step, None, TO_GO_ON)) is Progress.MOVED:
            self._wake()
        assert progress is not None
        return progress

    def _wake(self) -> None:
        if not self.ring.read_header():  # no rank sleeps
            return
        state = self.ring.header()
        slots = self._rank_state.layout.slots
        room = slots - self.ring.used(state)
        self._rank_state.wake(self.ring, "put", state.putters, begin=room if room * _WORTH >= slots else 0)
        begin = len(state.takers) if self.ring.ended(state) else int(state.waiting)
        self._rank_state.wake(self.ring, "take", state.takers, begin=begin)

"""What the two ends of a channel have in common, as one rank has them: a lock, a way to wait, a queue for the background.

Theory of operation
    An operation that blocks tries a step of the ring, and waits until another try may succeed. When it has changed the ring, it
    wakes the ranks for which it may have made room, or a message. A rank's byte in the ring's memory says what it waits for:

    TO_BEGIN    to reserve, or to claim, its next message
    TO_GO_ON    in the middle of a message
    SPINNING    to claim its next message, and looks again and again: it need not be notified

    after a put   wake one rank that waits to begin taking for each message put
    after a take  wake the ranks that wait to begin putting, if there is room worth waking for; and one that waits to begin taking,
                  if there are more messages, because two producers may have chosen the same sleeper; all of them, if no message
                  will come any more
    after both    wake each rank that waits in the middle of a message: it may be this one, or an aborted one, whose slots others
                  still use

    Before it sleeps, one of the ranks that wait to begin taking spins for a moment, and the others sleep at once. Producers count
    on it for the first message. It alone clears its byte, before it reads the bytes of the others: if two producers have counted
    on it, it wakes another rank for the message that it leaves. If it fails, or is stopped, while it spins, the others find the
    message when their sleep times out.

Invariants
    - A rank clears its own byte before it reads the bytes of the others. So it sees what was put before; and a rank that puts after
      that does not count on it.
    - A rank that stops waiting with nothing in hand passes a wake-up on that it may have got.
    - The position of an end is moved under `_moving`; if the host alone moves it, its load and its store are two steps.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from mpiexecutor._rma.doorbell import Doorbell
from mpiexecutor.channel._ring.consumer import Consumer
from mpiexecutor.channel._ring.producer import Producer

from .background import Background
from .rank_state import TO_GO_ON, RankState, Side, flag_of
from .waiter import Waiter

T = TypeVar("T")

Step = Callable[[], T | None]
Begin = Callable[[Step[T]], T | None]  # takes a step that reserves or claims, unless that was cancelled

_NAP: Final = {"put": 0.05, "take": 1.0}  # seconds of the longest sleep
_FAR_NAP: Final = {"put": 0.5, "take": 30.0}  # the same where the host, too, has to wake up for the look that follows


class End:
    """One of a rank's two ends."""

    ring: Producer | Consumer

    def __init__(
        self, side: Side, rank_state: RankState, ring: Producer | Consumer, may_spin: Callable[[int], bool] | None = None
    ) -> None:
        self._side = side
        self._rank_state = rank_state
        self.ring = ring
        self._moving = threading.Lock()  # held to move this end's position
        self.lock = threading.Lock()
        far = None if rank_state.remote is None else partial(rank_state.remote.was_notified, side)
        self._bell = Doorbell(rank_state.address(side, rank_state.rank), far)
        asleep_at = rank_state.asleep_at(side, rank_state.rank)
        nap = _NAP if rank_state.remote is None else _FAR_NAP
        self._resumed = ring.resumed
        self._mark: Callable[[int], None] = lambda flag: ring.mark(asleep_at, flag_of(flag))
        self._waiter = Waiter(self._bell, self._mark, longest=nap[side], may_spin=may_spin)
        self.background = Background(f"mpiexecutor {side}f", self.interrupt)

    def _wait_for_resumption(self) -> None:
        """Wait until the ring is recovered. No operation can begin before that, and none has to be aborted."""

        def look() -> bool | None:
            self._rank_state.check()
            return self._resumed() or None

        self._waiter.wait(look, None, TO_GO_ON)

    def quiesce(self) -> None:
        """Quiesce the ring at this end, which is the only one to move this position. Its lock need not be held."""
        with self._moving:
            self.ring.quiesce()

    def resume(self, position: int) -> None:
        """Resume the ring at a position; as for quiesce."""
        with self._moving:
            self.ring.resume(position)

    def interrupt(self) -> None:
        """Wake this rank's own thread that sleeps here."""
        self._rank_state.notifier.notify(self._rank_state.address(self._side, self._rank_state.rank))

    def acquire(self, deadline: float | None) -> bool:
        """Acquire the lock, which another thread of this rank may hold while it waits. Return False if the deadline is over."""
        if self.lock.acquire(blocking=False):  # without a look at the clock
            return True
        return self.lock.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """End the background thread. The channel is marked as freed already, so that an operation under way ends."""
        self.background.stop()
        self.interrupt()

    def free(self) -> None:
        self._bell.free()


def at_once(step: Callable[[], Any]) -> Any:
    """Take the step: a `Begin` for what cannot be cancelled."""
    return step()

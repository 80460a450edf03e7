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

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from mpiexecutor._rma.doorbell import Doorbell
from mpiexecutor.channel._ring.consumer import Consumer
from mpiexecutor.channel._ring.producer import Producer

from .background import Background
from .place import TO_GO_ON, Place, Side, flag_of
from .waiter import Waiter

T = TypeVar("T")

Step = Callable[[], T | None]
Begin = Callable[[Step[T]], T | None]  # takes the step that reserves or claims, unless it is not wanted any more

_NAP: Final = {"put": 0.05, "take": 1.0}  # seconds that a rank sleeps at most before it looks by itself
_FAR_NAP: Final = {"put": 0.5, "take": 30.0}  # the same where the host has to wake up for that look, too


class End:
    """What both ends have."""

    ring: Producer | Consumer

    def __init__(self, side: Side, place: Place, ring: Producer | Consumer, look_out: Callable[[int], bool] | None = None) -> None:
        self._side = side
        self._place = place
        self.ring = ring
        self._moving = (
            threading.Lock()
        )  # held to move the position: where the host alone does, its load and its store are two steps
        self.lock = threading.Lock()
        self._bell = Doorbell(place.address(side, place.rank), None if place.bells is None else partial(place.bells.rung, side))
        asleep_at = place.asleep_at(side, place.rank)
        nap = _NAP if place.bells is None else _FAR_NAP
        self._resumed = ring.resumed
        self._mark: Callable[[int], None] = lambda flag: ring.mark(asleep_at, flag_of(flag))
        self._waiter = Waiter(self._bell, self._mark, longest=nap[side], look_out=look_out)
        self.background = Background(f"mpiexecutor {side}f", self.interrupt)

    def _wait_for_resumption(self) -> None:
        """Wait while what the dead have left behind is settled. Nothing can be begun before, and nothing has to be given up."""

        def look() -> bool | None:
            self._place.check()
            return self._resumed() or None

        self._waiter.wait(look, None, TO_GO_ON)

    def pause(self) -> None:
        """Pause the ring at this end. It is the only one that moves this position, so the end's own lock need not be held."""
        with self._moving:
            self.ring.pause()

    def go_on(self, position: int) -> None:
        """Have the ring go on at a position; as for pause."""
        with self._moving:
            self.ring.go_on(position)

    def interrupt(self) -> None:
        """Have this rank's own thread that sleeps here look again."""
        self._place.ringer.ring(self._place.address(self._side, self._place.rank))

    def acquire(self, deadline: float | None) -> bool:
        """Take the lock: other threads of this rank may be waiting here. False if it could not be had in time."""
        return self.lock.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """End the background thread; the place is marked as freed, so that whoever waits gives up."""
        self.background.stop()
        self.interrupt()

    def free(self) -> None:
        self._bell.free()


def at_once(step: Callable[[], Any]) -> Any:
    """Take the step: a `Begin` for what cannot be cancelled."""
    return step()

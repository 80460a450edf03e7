"""How a thread waits at one end of a channel: spin for a moment, then sleep until woken.

Theory of operation
    Sleeping is a store/load handshake, as in Dekker's algorithm (https://en.wikipedia.org/wiki/Dekker%27s_algorithm).

    sleeper  set my byte in the ring's memory; full fence; look at the ring again; block on my doorbell
    waker    change the ring; full fence; read the bytes of all ranks; clear those to be woken, and notify their doorbells

    At least one of the two sees what the other has written. So a wake-up is lost only if the waker fails between the change and the
    notification, and the longest sleep bounds that delay. A notification carries no data: one too many costs a look.

    A spinning thread keeps its processor: to yield it beside processes that compute costs milliseconds. It sleeps once two checks
    in a row have found no free processor.

    A thread sleeps at once if nothing is expected soon. It spins after all when something is expected while it sleeps: whoever says
    so rings its doorbell. That is a handshake like the one above, between two threads of one process.

    sleeper  note that it rests; look whether something is expected; block on the doorbell
    other    note that something is expected; look whether the thread rests; ring

Invariants
    - A rank's byte is 0 whenever `wait` is not under way, and while the rank spins without being counted on.
    - The doorbell is open before the byte is set: a waker that finds no doorbell has cleared the byte in vain.
"""

import select
import time
from collections.abc import Callable
from typing import TypeVar

from mpiexecutor._rma.doorbell import Doorbell
from mpiexecutor._util.processors import one_is_free

T = TypeVar("T")

_SPIN = 500e-6  # seconds before a sleep: a rank that is still spinning answers in a third of the time
_LOOKS = 8  # between two checks whether a processor is free
_CHECKS = 2  # in a row that find none, before a sleep: a single one may count threads of ours that are about to sleep


def release_gil() -> None:
    """Let other threads of this process run, and keep the processor."""
    select.select((), (), (), 0)


class Waiter:
    """Waits for one thread, at one end of a channel.

    `mark` sets this rank's byte to what it waits for, 0 for nothing. `longest` is the longest sleep in seconds. `may_spin`, given
    the byte, says whether to spin before a sleep, and then has told the other ranks so; without it every wait spins.

    Attributes:
        expecting: Whether something is expected soon, so that a wait spins before it sleeps. See `expect`.

    """

    def __init__(
        self,
        bell: Doorbell,
        mark: Callable[[int], None],
        *,
        longest: float,
        may_spin: Callable[[int], bool] | None = None,
    ) -> None:
        self._bell = bell
        self._mark = mark
        self._longest = longest
        self._may_spin = may_spin
        # With `may_spin` several ranks wait here: the thread that they wait for has often just gone to sleep.
        self._asleep = 0 if may_spin is None else 1
        self.expecting = True
        self._rests = False  # sleeps until something is expected

    def expect(self, *, soon: bool) -> None:
        """Note whether something is expected soon. If so, have the thread that rests spin for it."""
        self.expecting = soon
        if soon and self._rests:
            self._bell.ring()

    def wait(self, look: Callable[[], T | None], deadline: float | None, flag: int, *, looked: bool = False) -> T | None:
        """Look until there is something, and return it; None once the deadline is over, which may be past already.

        `looked`: the caller has looked, and found nothing.
        """
        found = None if looked else look()
        while found is None and (deadline is None or time.monotonic() < deadline):
            rests = not self.expecting
            if not rests:
                found = self._spin_if_it_may(look, deadline, flag)
            if found is None:
                found = self._sleep(look, deadline, flag, rests=rests)
        return found

    def _spin_if_it_may(self, look: Callable[[], T | None], deadline: float | None, flag: int) -> T | None:
        if self._may_spin is None:
            return self._spin(look, deadline)
        if not self._may_spin(flag):
            return None
        vain = False
        try:
            found = self._spin(look, deadline)
            vain = found is None
        finally:
            if not vain:  # else the mark for the sleep replaces this one
                self._mark(0)
        return found

    def _spin(self, look: Callable[[], T | None], deadline: float | None) -> T | None:
        """Look again and again for a moment, as long as a processor is free."""
        until = time.monotonic() + _SPIN
        if deadline is not None:
            until = min(until, deadline)
        checks = _CHECKS
        while time.monotonic() < until:
            checks = _CHECKS if one_is_free(self._asleep) else checks - 1
            if not checks:
                break
            for _ in range(_LOOKS):
                release_gil()
                if (found := look()) is not None:
                    return found
        return None

    def _sleep(self, look: Callable[[], T | None], deadline: float | None, flag: int, *, rests: bool) -> T | None:
        """Sleep until there is something, and return it. Return None once the deadline is over, or something is expected anew."""
        self._bell.open()  # before the mark: see the invariants
        self._rests = rests
        try:
            while not (rests and self.expecting):
                self._mark(flag)
                found = look()
                if found is not None:
                    return found
                left = self._longest if deadline is None else min(self._longest, deadline - time.monotonic())
                if left <= 0:
                    return None
                if self._bell.sleep(left) and (found := look()) is not None:
                    return found
            return None
        finally:
            self._rests = False
            self._mark(0)

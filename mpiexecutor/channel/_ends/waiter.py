"""How a thread waits at one end of a channel: spin for a moment, then sleep until woken.

Theory of operation
    Sleeping is a store/load handshake, as in Dekker's algorithm (https://en.wikipedia.org/wiki/Dekker%27s_algorithm).

    sleeper  set my byte in the ring's memory; full fence; look at the ring again; block on my doorbell
    waker    change the ring; full fence; read the bytes of all ranks; clear those to be woken, and notify their doorbells

    At least one of the two sees what the other has written. So a wake-up is lost only if the waker fails between the change and the
    notification, and the longest sleep bounds that delay. A notification carries no data: one too many costs a look.

    A spinning thread keeps its processor: to yield it beside processes that compute costs milliseconds. It sleeps once checks in
    a row have found no free processor: three if one is lacking, one if three are.

    A thread sleeps at once if nothing is expected soon. Another thread of its process rouses it when something is: then it spins.
    This is a handshake like the one above.

    sleeper  note that it sleeps; ask whether something is expected; block on the doorbell
    other    change the answer; look whether the thread sleeps; if so, rouse it

Invariants
    - A rank's byte is 0 whenever `wait` is not under way, and while the rank spins without being counted on.
    - The doorbell is open before the byte is set: a waker that finds no doorbell has cleared the byte in vain.
"""

import select
import time
from collections.abc import Callable
from typing import TypeVar

from mpiexecutor._rma.doorbell import Doorbell
from mpiexecutor._util.processors import processors_lacking

T = TypeVar("T")

_SPIN = 500e-6  # seconds before a sleep: a rank that is still spinning answers in a third of the time
_LOOKS = 8  # between two checks whether a processor is free
_PATIENCE = 3  # a thread sleeps once checks in a row have found so many processors lacking, together: other threads may soon sleep


def release_gil() -> None:
    """Let other threads of this process run, and keep the processor."""
    select.select((), (), (), 0)


class Waiter:
    """Waits for one thread, at one end of a channel.

    `mark` sets this rank's byte to what it waits for, 0 for nothing. `longest` is the longest sleep in seconds. `may_spin`, given
    the byte, says whether to spin before a sleep, and then has told the other ranks so; without it every wait spins.

    Attributes:
        expected: Says, given the byte, whether something is expected soon. If not, a wait sleeps at once.
        sleeps: Whether the thread sleeps, or is about to.

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
        self.expected: Callable[[int], bool] = lambda _flag: True
        self.sleeps = False
        self._is_roused = False

    def rouse(self) -> None:
        """Have the thread that sleeps spin, because something is expected soon. One thread at a time may do so."""
        if self.sleeps:
            self._is_roused, self.sleeps = True, False
            self._bell.ring()

    def wait(self, look: Callable[[], T | None], deadline: float | None, flag: int, *, looked: bool = False) -> T | None:
        """Look until there is something, and return it; None once the deadline is over, which may be past already.

        `looked`: the caller has looked, and found nothing.
        """
        found = None if looked else look()
        while found is None and (deadline is None or time.monotonic() < deadline):
            self._is_roused = False
            self.sleeps = True
            try:
                if self.expected(flag):
                    self.sleeps = False
                    found = self._spin_if_it_may(look, deadline, flag)
                    self.sleeps = True
                if found is None:
                    found = self._sleep(look, deadline, flag)
            finally:
                self.sleeps = False
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

    @staticmethod
    def _spin(look: Callable[[], T | None], deadline: float | None) -> T | None:
        """Look again and again for a moment, as long as a processor is free."""
        until = time.monotonic() + _SPIN
        if deadline is not None:
            until = min(until, deadline)
        patience = _PATIENCE
        while time.monotonic() < until:
            lacking = processors_lacking()
            patience = _PATIENCE if lacking <= 0 else patience - lacking
            if patience <= 0:
                break
            for _ in range(_LOOKS):
                release_gil()
                if (found := look()) is not None:
                    return found
        return None

    def _sleep(self, look: Callable[[], T | None], deadline: float | None, flag: int) -> T | None:
        """Sleep until there is something, and return it. Return None once the deadline is over, or this thread is roused."""
        try:
            self._bell.open()  # before the mark: see the invariants
            while not self._is_roused:
                self._mark(flag)
                found = look()
                if found is not None:
                    return found
                left = self._longest if deadline is None else min(self._longest, deadline - time.monotonic())
                if left <= 0:
                    return None
                if self._bell.sleep(left) and (found := look()) is not None:
                    return found
            return look()
        finally:
            self._mark(0)

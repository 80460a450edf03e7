"""Waiting that costs nothing: look for a moment, then sleep until woken.

A rank that is about to sleep sets its byte in the ring's memory, looks once more, and blocks on its doorbell. Whoever changes the
ring looks at the bytes afterwards and rings. Both put a full fence between their store and their load, so that one of them sees the
other: a wake-up can be lost only if the waker dies between the change and the ring. The longest sleep bounds what that costs.
"""

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

from mpiexecutor._rma.doorbell import Doorbell

T = TypeVar("T")

_LOOKING = 500e-6  # seconds before sleeping: who is asked again within that answers in a third of the time


def give_way() -> None:
    """Let others have the processor, and other threads of this process the GIL (which sched_yield keeps before Python 3.13)."""
    os.sched_yield()
    select.select((), (), (), 0)


class Waiter:
    """One thread's way to wait, at one end of a channel."""

    def __init__(
        self,
        bell: Doorbell,
        mark: Callable[[int], None],
        *,
        longest: float,
        look_out: Callable[[int], bool] | None = None,
    ) -> None:
        self._bell = bell
        self._mark = mark  # tell the others what this rank waits for; 0: nothing
        self._longest = longest  # seconds asleep before a look that nobody has asked for
        self._look_out = look_out  # whether to look before sleeping, given the flag; then the others are told so, too

    def wait(self, look: Callable[[], T | None], deadline: float | None, flag: int) -> T | None:
        """Look until there is something, and give it; None once the deadline is over, which may be past already."""
        found = look()
        if found is not None or (deadline is not None and time.monotonic() >= deadline):
            return found
        if self._look_out is None:
            found = self._look_on(look, deadline)
        elif self._look_out(flag):
            vain = False
            try:
                found = self._look_on(look, deadline)
                vain = found is None
            finally:
                if not vain:  # else the mark for the sleep replaces this one
                    self._mark(0)
        return self._sleep(look, deadline, flag) if found is None else found

    @staticmethod
    def _look_on(look: Callable[[], T | None], deadline: float | None) -> T | None:
        """Look for a moment."""
        until = time.monotonic() + _LOOKING
        if deadline is not None:
            until = min(until, deadline)
        found = None
        while found is None and time.monotonic() < until:
            give_way()
            found = look()
        return found

    def _sleep(self, look: Callable[[], T | None], deadline: float | None, flag: int) -> T | None:
        self._bell.open()  # before the mark: who rings a bell that is not there yet has cleared the mark in vain
        try:
            while True:
                self._mark(flag)
                found = look()
                if found is not None:
                    return found
                left = self._longest if deadline is None else min(self._longest, deadline - time.monotonic())
                if left <= 0:
                    return None
                self._bell.sleep(left)
        finally:
            self._mark(0)

"""The calls of one message, at their worker.

Theory of operation
    Two threads work on the current batch, under its lock: the worker, which runs the calls one after another, and the flusher. An
    outcome waits a millisecond at most for others, so that they travel in one message. If a call takes longer than expected the
    flusher sends the outcomes that wait, and gives the calls behind it back to the root.

Invariants
    A call is in `calls`, or `running`, or has an outcome, or was given back.
    An outcome that is not sent yet is also on the status page, from where the root gets it if this worker dies, unless it is long.
    The status page is cleared only when no outcome waits, and none that was taken away is still being sent.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from mpiexecutor._liveness.status_page import LARGE, StatusPage
from mpiexecutor._util.periodic import PeriodicCheck

from .messages import Call, Outcome, dump_outcome

HELD = 1e-3  # seconds that an outcome is kept back at most while other calls of its message begin
_TICK = 2e-3  # seconds between two looks of the flusher: a call that runs at both is a long one
_TICKS = 25  # looks at which nothing runs before the flusher sleeps


class CurrentBatch:
    """The calls of the current message, and their outcomes."""

    def __init__(self, page: StatusPage) -> None:
        self.lock = threading.Lock()
        self._page = page
        self._leaving = 0  # lists of outcomes that were taken away and are being sent
        self.calls: deque[Call] = deque()  # not begun
        self.running: int | None = None  # the number of a call
        self.outcomes: list[Outcome] = []  # not sent
        self.size = 0  # of the outcomes, in bytes
        self.sent_at = 0.0  # when outcomes were last taken away
        self.held = HELD  # seconds that an outcome may wait for others

    def begin_next(self) -> Call | None:
        """Return the next call, which runs now; None if there is none."""
        with self.lock:
            if not self.calls:
                return None
            call = self.calls.popleft()
            self.running = call[0]
            return call

    def finish(self, outcome: Outcome, size: int) -> tuple[list[Outcome], Call | None]:
        """Note the outcome of the running call. Return all outcomes if it is time to send them, or else none and the next call."""
        with self.lock:
            self.running = None
            if size <= LARGE and self._page.holds:
                self._page.hold(dump_outcome(outcome))
            self.outcomes.append(outcome)
            self.size += size
            now = time.monotonic()
            if self.calls and self.size <= LARGE and now - self.sent_at <= self.held:
                call = self.calls.popleft()
                self.running = call[0]
                return [], call
            self.sent_at = now
            return self._take_away(), None

    def clear_if_still(self, running: int | None) -> tuple[list[Outcome], list[int]]:
        """If this call still runs, return the outcomes to send, and the numbers of the calls to give back."""
        with self.lock:
            if running is None or running != self.running:
                return [], []
            waiting = [number for number, *_ in self.calls]
            self.calls.clear()
            return self._take_away() if self.outcomes else [], waiting

    def note_sent(self) -> None:
        """Note that a list of outcomes that was taken away has been sent."""
        with self.lock:
            self._leaving -= 1
            if not self._leaving and not self.outcomes:
                self._page.let_go()

    def _take_away(self) -> list[Outcome]:
        outcomes, self.outcomes, self.size = self.outcomes, [], 0
        self._leaving += 1
        return outcomes


class BatchFlusher:
    """A thread that sends outcomes that wait because of a long call, and gives back the calls behind it.

    The root puts calls into one message only if it expects them to be short. The flusher acts where it was wrong. It looks every
    2 ms while messages of several calls come, and sleeps otherwise.
    """

    def __init__(self, batch: CurrentBatch, send: Callable[[list[Outcome], list[int]], None], fail: Callable[[], object]) -> None:
        self._batch = batch
        self._send = send
        self._fail = fail
        self._seen: int | None = None  # the call that was running at the last look
        self._busy = threading.Lock()  # held from taking things out of the batch until they are put
        check = PeriodicCheck("mpiexecutor flusher", self._look, every=_TICK, times=_TICKS)
        self.watch, self.stop = check.watch, check.stop

    def wait(self) -> None:
        """Wait until the flusher has put what it has taken out of the batch."""
        with self._busy:
            pass

    def _look(self) -> bool:
        with self._busy:
            outcomes, waiting = self._batch.clear_if_still(self._seen)
            if outcomes or waiting:
                try:
                    self._send(outcomes, waiting)
                except BaseException:  # noqa: BLE001 - a bug here: what was taken out of the batch is lost unless this worker dies
                    traceback.print_exc()
                    self._fail()
        self._seen = self._batch.running
        return self._seen is not None or bool(self._batch.calls)

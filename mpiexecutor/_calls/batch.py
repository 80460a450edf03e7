"""The calls of one message, at the worker: which are run, what has come of them, and what is sent when.

Outcomes wait for others of their message, a millisecond at most. Two threads work on this: the worker, and a thread that looks
whether a call takes longer than was expected.
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
_TICK = 2e-3  # seconds between two looks of the flusher: a call that is seen twice is a long one
_TICKS = 25  # looks in vain before the flusher rests


class CurrentBatch:
    """What one message has a worker do, and what has come of it: shared by the worker and its flusher, under one lock."""

    def __init__(self, page: StatusPage) -> None:
        self.lock = threading.Lock()
        self._page = page  # keeps the outcomes that are not sent, in case this worker dies
        self._leaving = 0  # outcomes, as they were taken away together, that are being sent
        self.calls: deque[Call] = deque()  # not begun
        self.running: int | None = None
        self.outcomes: list[Outcome] = []  # not sent
        self.size = 0  # of the outcomes, in bytes
        self.sent_at = 0.0  # when outcomes were last taken away
        self.held = HELD  # seconds that an outcome may wait for others

    def begin_next(self) -> Call | None:
        """Take the next call; None if there is none."""
        with self.lock:
            if not self.calls:
                return None
            call = self.calls.popleft()
            self.running = call[0]
            return call

    def finish(self, outcome: Outcome, size: int) -> tuple[list[Outcome], Call | None]:
        """Note what came of the call: give the outcomes if it is time to send them, or else take the next call."""
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
        """Take away what waits behind a call, if that is running still: outcomes to send, calls to give back."""
        with self.lock:
            if running is None or running != self.running:
                return [], []
            waiting = [number for number, *_ in self.calls]
            self.calls.clear()
            return self._take_away() if self.outcomes else [], waiting

    def note_sent(self) -> None:
        """Note that outcomes which were taken away have been sent."""
        with self.lock:
            self._leaving -= 1
            if not self._leaving and not self.outcomes:
                self._page.let_go()

    def _take_away(self) -> list[Outcome]:
        outcomes, self.outcomes, self.size = self.outcomes, [], 0
        self._leaving += 1
        return outcomes


class BatchFlusher:
    """A thread that sends what waits behind a long call: the outcomes of calls before it, and the calls that are not begun.

    Messages of several calls are made only of calls that are expected to be short. Where that was wrong, the flusher sends the
    outcomes, and gives the calls back. It looks now and then while such messages come, and rests when none do.
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
        """Wait until what it has taken out of the batch is put."""
        with self._busy:
            pass

    def _look(self) -> bool:
        with self._busy:
            outcomes, waiting = self._batch.clear_if_still(self._seen)
            if outcomes or waiting:
                try:
                    self._send(outcomes, waiting)
                except BaseException:  # noqa: BLE001 - a fault of ours: what it has in hand is lost, unless this worker dies
                    traceback.print_exc()
                    self._fail()
        self._seen = self._batch.running
        return self._seen is not None or bool(self._batch.calls)

"""The calls of one message, at their worker.

Theory of operation
    A message has single calls, a batch, or calls of a map, a block.

    Two threads work on the current batch, under its lock: the worker, which runs the calls one after another, and the flusher. An
    outcome waits a millisecond at most for others, so that one message carries several. If a call takes longer than expected the
    flusher sends the outcomes that wait, and returns the calls behind that call to the root.

Invariants
    A call is in `calls`, or `running`, or has an outcome, or was given back.
    An outcome that is not sent yet is also on the status page, unless it is long: the root gets it from there if this worker dies.
    The status page is cleared only when no outcome waits, and no outcome that was taken away is still being sent.
"""

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from mpiexecutor._liveness.status_page import LARGE, StatusPage
from mpiexecutor._script.pickling import Has
from mpiexecutor._util.periodic import PeriodicCheck
from mpiexecutor._util.pickling import OUT_OF_BAND, Pickled, loads

from .messages import Call, MapCalls, Outcome, Row, Value, dump_outcome, dump_value, goes_as_it_is
from .outcomes import dumps_sized

HELD = 1e-3  # seconds that an outcome is kept back at most while other calls of its message begin
HELD_OF_MAP = 2e-3  # the same for results of a map
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


class CurrentBlock:
    """The calls of a map that came in the current message, and their results.

    The worker takes the first calls, the flusher gives back the last ones, and results are appended: all without the lock. A thread
    holds the lock from taking results away until they are put, so that they are put in the order of the calls.
    """

    def __init__(
        self,
        page: StatusPage,
        put: Callable[[int, int, float, list[Value]], None],
        put_alone: Callable[[Outcome, int], None],
        give_back: Callable[[int], None],
        dump_failure: Callable[[BaseException], Pickled],
    ) -> None:
        """Make an empty one.

        Args:
            page: Holds what is not put.
            put: Puts results: the number of the block, the position of the first call, their seconds together, the results.
            put_alone: Puts a long outcome; called with it and its bytes.
            give_back: Gives back the calls from this number on.
            dump_failure: Returns the Failure of an error as bytes.

        """
        self._page = page
        self._put = put
        self._put_alone = put_alone
        self._give_back = give_back
        self._dump_failure = dump_failure
        self._lock = threading.Lock()
        self._number = self._end = 0  # of the first call, and behind the last that was not given back
        self._position = 0  # of the first call whose result is not put
        self._size = 0  # of what is not put, in bytes
        self._since = self._until = 0.0  # when the first call whose result is not put began, and the last ended
        self.rows: deque[Row] = deque()  # of the calls that were not begun
        self.running: int | None = None  # the number of a call
        self.values: list[Value] = []  # results that are not put

    def begin(self, number: int, rows: list[Row], now: float) -> None:
        """Begin a block, whose first call has this number."""
        self._number, self._end = number, number + len(rows)
        self._position = self._size = 0
        self._since = self._until = now
        self.rows.extend(rows)
        rows.clear()  # nothing here refers to arguments while a call runs

    def run(self, message: MapCalls, find_function: Callable[[], Callable[[], Any]], has: Has) -> None:
        """Run the calls one by one, each as if it were the only one, and put their results.

        Args:
            message: The calls; their arguments are removed from it.
            find_function: Returns what returns the function for each call. It may raise: then it is called again for the next.
            has: As in `dumps_sized`.

        """
        page, number, now = self._page, message.number, time.monotonic()
        self.begin(number, message.rows, now)
        find: Callable[[], Any] | None = None
        function = arguments = keywords = pickled = None
        while True:
            try:
                row = self.rows.popleft()
            except IndexError:  # the flusher may have given back the rest
                break
            self.running = number
            try:
                if type(row) is tuple and find is not None:
                    page.begin(number, now)
                    value = find()(*row)
                else:
                    page.prepare(number, now)  # it runs from below on, as other calls do
                    find = find or find_function()
                    function, arguments, keywords = (None, row, {}) if isinstance(row, tuple) else loads(row)
                    row = ()
                    if message.called is not None:
                        function = find()
                    now = time.monotonic()
                    page.run(now)
                    value = function(*arguments, **keywords)
                    function = arguments = keywords = None
                if not goes_as_it_is(value):
                    pickled, _ = dumps_sized(value, has=has)
                    value = pickled.data
            except BaseException as error:  # noqa: BLE001 - it is the outcome of this call
                function = arguments = keywords = None
                pickled = self._dump_failure(error)
                value = (pickled.data, *map(bytes, pickled.buffers))
            now = self._finish(number, value, pickled, now)
            pickled = None
            number += 1
        self.end()

    def _finish(self, number: int, value: Value, pickled: Pickled | None, began: float) -> float:
        """Note the outcome of the running call, and put it if it is long, or if those that wait are old. Return the time then."""
        now = time.monotonic()
        if pickled is not None and pickled.size >= OUT_OF_BAND:
            return self._finish_alone((number, now - began, type(value) is tuple, *pickled), pickled.size)
        self.values.append(value)  # before the page holds it, as the page is cleared when there are no values
        self._until = now
        if self._page.holds:
            data = dump_value((number, value))
            self._page.hold(data)
            self._size += len(data)
        if now - self._since > HELD_OF_MAP or self._size > LARGE:
            self._page.finish()
            return self.flush()
        return now

    def _finish_alone(self, outcome: Outcome, size: int) -> float:
        """Put the outcome of the running call, which is long, behind the results that are there."""
        self._page.finish()
        self.running = None
        self.flush()
        with self._lock:
            self._put_alone(outcome, size)
            self._position += 1
            self._since = self._until = time.monotonic()
        return self._since

    def flush(self) -> float:
        """Put the results that are there. Return the time when that is done."""
        with self._lock:
            self._flush()
            self._since = self._until = time.monotonic()
        return self._since

    def end(self) -> None:
        """Wait until all results are put, and all calls that the flusher gives back."""
        self.running = None
        self._page.finish()
        self.flush()

    def flush_if_still(self, running: int | None) -> None:
        """If this call still runs, put the results of those before it, and give back those behind it."""
        with self._lock:
            if running is None or running != self.running:
                return
            self._flush()
            self._since = self._until
            before = self._end
            with contextlib.suppress(IndexError):
                while True:  # the worker takes calls meanwhile if this one has ended
                    self.rows.pop()
                    self._end -= 1
            if self._end < before:
                self._give_back(self._end)

    def _flush(self) -> None:
        if count := len(self.values):
            self._put(self._number, self._position, self._until - self._since, self.values[:count])
            del self.values[:count]
            self._position += count
            self._size = 0
        if not self.values:
            self._page.let_go()


class BatchFlusher:
    """A thread that sends outcomes that wait because of a long call, and gives back the calls behind it.

    The root puts calls into one message only if it expects them to be short. The flusher acts if they are not. It checks every 2 ms
    while there are messages of several calls, and sleeps otherwise.
    """

    def __init__(
        self,
        batch: CurrentBatch,
        block: CurrentBlock,
        send: Callable[[list[Outcome], list[int]], None],
        fail: Callable[[], object],
    ) -> None:
        self._batch = batch
        self._block = block
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
            try:
                if outcomes or waiting:
                    self._send(outcomes, waiting)
                self._block.flush_if_still(self._seen)
            except BaseException:  # noqa: BLE001 - a bug here: what was taken out of the batch is lost unless this worker dies
                traceback.print_exc()
                self._fail()
        self._seen = self._block.running if self._batch.running is None else self._batch.running
        return self._seen is not None or bool(self._batch.calls or self._block.rows)

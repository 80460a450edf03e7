"""The worker's loop: take a message of calls, run them, put what became of them.

What fails fails alone: whatever a call raises, in being unpickled, run, or having its result pickled, becomes that call's outcome.
"""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from mpiexecutor._liveness.status_page import INITIALIZER, LARGE, StatusPage
from mpiexecutor._script.main_module import MainModule, MainModules, NotAdmitted
from mpiexecutor._script.names import function_of
from mpiexecutor._script.pickling import Has, always, load_definitions
from mpiexecutor._util.periodic import Sentry
from mpiexecutor._util.pickling import loads
from mpiexecutor.channel import ChannelClosed, ChannelMemoryError, RemoteChannel

from .bulk import Parcels
from .functions import Shelf
from .messages import (
    OF_ONE_CALL,
    Call,
    Calls,
    CallTooLarge,
    GivenBack,
    InitializerFailed,
    Outcome,
    Reply,
    Results,
    SpareResult,
    TopLevelFailed,
    Wanted,
    dump_outcome,
)
from .outcomes import Failure, Place, dumps_sized, failure_of

_HELD = 1e-3  # seconds that an outcome is kept back at most while other calls of its message begin
_SHORTEST_REST, _LONGEST_REST = 2e-4, 5e-3  # seconds after calls were given back, so that another worker takes them
_TICK = 2e-3  # seconds between two looks of the courier: a call that is seen twice is a long one
_TICKS = 25  # looks in vain before the courier rests

# Set while this thread runs a call.
in_task: ContextVar[bool] = ContextVar("in_task", default=False)


class Desk:
    """What one message has a worker do, and what has come of it: shared by the worker and its courier, under one lock."""

    def __init__(self, page: StatusPage) -> None:
        self.lock = threading.Lock()
        self._page = page  # keeps the outcomes that are not sent, in case this worker dies
        self._leaving = 0  # outcomes, as they were taken away together, that are being sent
        self.calls: deque[Call] = deque()  # not begun
        self.running: int | None = None
        self.outcomes: list[Outcome] = []  # not sent
        self.size = 0  # of the outcomes, in bytes
        self.sent_at = 0.0  # when outcomes were last taken away
        self.held = _HELD  # seconds that an outcome may wait for others

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


class Courier:
    """A thread that sees to it that nobody waits behind a long call: neither what came of others, nor those not begun.

    Messages of several calls are made only of calls that are expected to be short. Where that was wrong, the courier sends the
    outcomes that lie there, and gives the calls back. It looks now and then while such messages come, and rests when none do.
    """

    def __init__(self, desk: Desk, send: Callable[[list[Outcome], list[int]], None], fail: Callable[[], object]) -> None:
        self._desk = desk
        self._send = send
        self._fail = fail
        self._seen: int | None = None  # the call that was running at the last look
        self._busy = threading.Lock()  # held from taking things from the desk until they are put
        sentry = Sentry("mpiexecutor courier", self._look, every=_TICK, times=_TICKS)
        self.watch, self.stop = sentry.watch, sentry.stop

    def wait(self) -> None:
        """Wait until what it has taken from the desk is put."""
        with self._busy:
            pass

    def _look(self) -> bool:
        with self._busy:
            outcomes, waiting = self._desk.clear_if_still(self._seen)
            if outcomes or waiting:
                try:
                    self._send(outcomes, waiting)
                except BaseException:  # noqa: BLE001 - a fault of ours: what it has in hand is lost, unless this worker dies
                    traceback.print_exc()
                    self._fail()
        self._seen = self._desk.running
        return self._seen is not None or bool(self._desk.calls)


class Worker:
    """One worker: its channels, and which initializers it has run."""

    def __init__(
        self,
        work: RemoteChannel[Calls, Calls],
        replies: RemoteChannel[Reply, Reply],
        parcels: Parcels,
        place: Place,
        page: StatusPage,
        enforce_limit: Callable[[float], None] | None = None,
        *,
        fail: Callable[[], object],
    ) -> None:
        """Serve by these channels. `fail` is called if that cannot go on."""
        self._work = work
        self._replies = replies
        self._place = place
        self._page = page  # says what is run
        self._enforce_limit = enforce_limit  # told how long calls may run; None: nobody sees to that
        self._most = 0.0  # seconds that they may now
        self._executor = 0  # whose calls are on the desk
        self._initialized: dict[int, bool] = {}  # by executor: whether it may run calls
        self._parcels = parcels
        self._shelf = Shelf(parcels, self._ask)
        self._modules = MainModules(place.rank, self._fetch, self._tell_top_level, self._shelf.forget)
        self._module: MainModule | None = None  # whose calls are run; None: the script itself, as this is its process
        self._has: Has = always  # whether the script has what is pickled here under its name
        self._rest = _SHORTEST_REST
        self._desk = Desk(page)
        self._courier = Courier(self._desk, self._send, fail)

    def serve(self) -> None:
        """Serve until the work channel is closed and empty."""
        in_task.set(True)
        while messages := self._take():
            self._do(messages.pop())
        self._courier.stop()

    def _take(self) -> list[Calls]:
        """Take a message. A call that is too large for this worker's memory fails; with none for a short one the worker dies."""
        while True:
            try:
                return self._work.take_many(1)
            except ChannelMemoryError as error:
                if error.size < OF_ONE_CALL:
                    raise
                number = error.number
                text = f"this call is too large for its worker's memory, {error.size} bytes when pickled"
            if self._work.skip(number):
                self._reply(CallTooLarge(self._place.rank, number, failure_of(MemoryError(text), self._place)))

    def _do(self, message: Calls) -> None:
        executor, initializer, most, calls = message
        self._executor = executor
        self._page.wipe()
        _, state, *_ = calls[0]
        if state is not None and not self._is_admitted(executor, state):
            self._give_back([number for number, *_ in calls], behind_long_call=False)
            time.sleep(self._rest)
            self._rest = min(2 * self._rest, _LONGEST_REST)
            return
        self._rest = _SHORTEST_REST
        if initializer is not None and executor not in self._initialized:
            self._limit(0.0)
            self._page.begin(INITIALIZER, time.monotonic())
            self._initialized[executor] = self._initialize(initializer, state)
            self._page.finish()
            self._page.wipe()
        if most != self._most:
            self._limit(most)
        if not self._initialized.get(executor, True):
            return  # the root has failed all the calls of this executor
        self._desk.calls.extend(calls)
        self._desk.sent_at = time.monotonic()
        if len(calls) > 1:
            self._courier.watch()
        calls.clear()  # so that nothing here holds on to the arguments
        self._run_all()

    def _is_admitted(self, executor: int, state: int) -> bool:
        """Have the `__main__` of this executor, in the state of its next call; False if other workers run its calls."""
        self._module = self._modules.enter(executor)
        self._has = self._module.has
        try:
            self._module.bring_to(state)
        except NotAdmitted:
            self._modules.forget([executor])
            return False
        except BaseException:  # noqa: BLE001, S110 - its calls meet that, too, and tell
            pass
        return True

    def _initialize(self, number: int, state: int | None) -> bool:
        try:
            if state is not None:
                self._bring_to(state)
            function, arguments = self._shelf.take(number)
            function(*arguments)
        except BaseException as error:
            error = self._explain(error)
            logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=error)  # as ProcessPoolExecutor
            self._reply(InitializerFailed(self._place.rank, self._executor, self._short_failure(error)))
            return False
        return True

    def _limit(self, most: float) -> None:
        """Have calls killed that run longer. What came of others before one is not to be lost with it, and so does not wait."""
        self._most = most
        self._desk.held = 0.0 if most else _HELD
        if self._enforce_limit is not None:
            self._enforce_limit(most)

    def _run_all(self) -> None:
        """Run the calls on the desk, and send what became of them before it grows old or large."""
        call = self._desk.begin_next()
        while call is not None:
            outcome, size = self._run(call)
            del call
            outcomes, call = self._desk.finish(outcome, size)
            del outcome
            if outcomes:
                if size > LARGE:
                    self._send_long(outcomes.pop(), size, after=outcomes)
                else:
                    self._send(outcomes, [])
                outcomes.clear()  # so that nothing here holds on to results while the next call is run
                call = self._desk.begin_next()
        self._courier.wait()  # before other work is claimed: it replies for this executor, and gives back of this message

    def _send_long(self, outcome: Outcome, size: int, after: list[Outcome]) -> None:
        """Send a long outcome by itself, after others, and then what it is if the root had no memory for it."""
        what = "the result of this call"
        number, seconds, failed, data, buffers = outcome
        if failed:
            what = f"what this call raised, {Failure.loads(data, buffers).name},"
        error = MemoryError(f"{what} is too large for the memory of the script's process, {size} bytes when pickled")
        spare = SpareResult(self._place.rank, self._executor, number, seconds, failure_of(error, self._place))
        if after:
            self._reply(Results(self._place.rank, self._executor, after))
        self._reply(Results(self._place.rank, self._executor, (outcome,)))
        del outcome, data, buffers
        self._reply(spare)
        self._desk.note_sent()

    def _send(self, outcomes: list[Outcome], given_back: list[int]) -> None:
        if outcomes:
            self._reply(Results(self._place.rank, self._executor, outcomes))
            self._desk.note_sent()
        if given_back:
            self._give_back(given_back, behind_long_call=True)

    def _give_back(self, numbers: list[int], *, behind_long_call: bool) -> None:
        self._reply(GivenBack(self._place.rank, self._executor, behind_long_call, tuple(numbers)))

    def _ask(self, wanted: int, known: int = 0) -> bool:
        return self._reply(Wanted(self._place.rank, self._executor, wanted, known))

    def _fetch(self, wanted: int, known: int) -> dict[str, Any]:
        """Ask the root for globals of the script; raise what it raised when it pickled them."""
        parcel = self._parcels.receive() if self._ask(wanted, known) else None
        if parcel is None:
            raise LookupError("what this call needs is wanted no more")  # nor is its outcome
        data, pages = parcel
        found: Any = load_definitions(data, [page.copy() for page in pages])
        if isinstance(found, BaseException):
            raise found
        return found  # type: ignore[no-any-return]

    def _tell_top_level(self, error: BaseException) -> None:
        self._reply(TopLevelFailed(self._place.rank, self._executor, self._short_failure(error)))

    def _short_failure(self, error: BaseException) -> Failure:
        return failure_of(error, self._place)._replace(error=None)

    def _bring_to(self, state: int) -> None:
        if self._module is not None:
            self._module.bring_to(state)

    def _explain(self, error: BaseException) -> BaseException:
        return error if self._module is None else self._module.explain(error)

    def _reply(self, message: Reply) -> bool:
        """Reply; False if the root has failed these calls, and gone on without their outcomes."""
        try:
            self._replies.put(message)
        except ChannelClosed:
            return False
        return True

    def _run(self, call: Call) -> tuple[Outcome, int]:
        number, state, called, data, buffers = call
        del call
        self._page.begin(number, 0.0)  # to get what it needs, and to import modules, is not to run
        began = time.monotonic()
        try:
            # The second is what nearly every call finds.
            if state is not None and (self._module is None or state != self._module.state):
                self._bring_to(state)
            function, arguments, keywords = loads(data, buffers)
            del data, buffers
            if called is not None:
                function = function_of(called) if isinstance(called, str) else self._shelf.get(called, self._executor)
            began = time.monotonic()
            self._page.run(began)
            value, size = dumps_sized(function(*arguments, **keywords), has=self._has)
        except BaseException as error:  # noqa: BLE001 - see the module
            failure = failure_of(self._explain(error), self._place, self._has).dumps()
            self._page.finish()
            return (number, time.monotonic() - began, True, *failure), failure.size
        self._page.finish()
        return (number, time.monotonic() - began, False, *value), size


def run_chunk(function: Callable[..., Any], chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function with each of several tuples of arguments: what map sends as one call."""
    return [function(*arguments) for arguments in chunk]

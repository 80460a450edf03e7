"""The worker's loop: take a message of calls, run them, put what became of them.

What fails fails alone: whatever a call raises, in being unpickled, run, or having its result pickled, becomes that call's outcome.
"""

import logging
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from mpiexecutor._liveness.status_page import INITIALIZER, LARGE, StatusPage
from mpiexecutor._script.main_module import MainModule, MainModules, NotAdmitted
from mpiexecutor._script.names import function_of
from mpiexecutor._script.pickling import Has, always, load_definitions
from mpiexecutor._util.pickling import loads
from mpiexecutor.channel import ChannelClosed, ChannelMemoryError, RemoteChannel

from .batch import HELD, BatchFlusher, CurrentBatch
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
)
from .outcomes import Failure, Place, dumps_sized, failure_of

_SHORTEST_REST, _LONGEST_REST = 2e-4, 5e-3  # seconds after calls were given back, so that another worker takes them

# Set while this thread runs a call.
in_task: ContextVar[bool] = ContextVar("in_task", default=False)


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
        self._executor = 0  # whose calls are in the batch
        self._initialized: dict[int, bool] = {}  # by executor: whether it may run calls
        self._parcels = parcels
        self._shelf = Shelf(parcels, self._ask)
        self._modules = MainModules(place.rank, self._fetch, self._tell_top_level, self._shelf.forget)
        self._module: MainModule | None = None  # whose calls are run; None: the script itself, as this is its process
        self._has: Has = always  # whether the script has what is pickled here under its name
        self._rest = _SHORTEST_REST
        self._batch = CurrentBatch(page)
        self._flusher = BatchFlusher(self._batch, self._send, fail)

    def serve(self) -> None:
        """Serve until the work channel is closed and empty."""
        in_task.set(True)
        while messages := self._take():
            self._do(messages.pop())
        self._flusher.stop()

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
        self._batch.calls.extend(calls)
        self._batch.sent_at = time.monotonic()
        if len(calls) > 1:
            self._flusher.watch()
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
        self._batch.held = 0.0 if most else HELD
        if self._enforce_limit is not None:
            self._enforce_limit(most)

    def _run_all(self) -> None:
        """Run the calls of the batch, and send what became of them before it grows old or large."""
        call = self._batch.begin_next()
        while call is not None:
            outcome, size = self._run(call)
            del call
            outcomes, call = self._batch.finish(outcome, size)
            del outcome
            if outcomes:
                if size > LARGE:
                    self._send_long(outcomes.pop(), size, after=outcomes)
                else:
                    self._send(outcomes, [])
                outcomes.clear()  # so that nothing here holds on to results while the next call is run
                call = self._batch.begin_next()
        self._flusher.wait()  # before other work is claimed: it replies for this executor, and gives back of this message

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
        self._batch.note_sent()

    def _send(self, outcomes: list[Outcome], given_back: list[int]) -> None:
        if outcomes:
            self._reply(Results(self._place.rank, self._executor, outcomes))
            self._batch.note_sent()
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

"""The worker's loop: take a message of calls, run them, put their outcomes.

A call fails alone: an error while it is unpickled, while it runs, or while its result is pickled is the outcome of this call.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from mpiexecutor._liveness.status_page import INITIALIZER, LARGE, StatusPage
from mpiexecutor._script.main_module import MainModule, MainModules, NotAdmitted
from mpiexecutor._script.names import function_of, main_dict
from mpiexecutor._script.pickling import Has, always, load_definitions
from mpiexecutor._util.pickling import Pickled, loads
from mpiexecutor._util.segments import SMALLEST, SegmentName
from mpiexecutor.channel import ChannelClosed, ChannelMemoryError, RemoteChannel

from .batch import HELD, BatchFlusher, CurrentBatch, CurrentBlock
from .bulk import BulkTransfer
from .functions import FunctionCache
from .messages import (
    CALL_TOO_LARGE,
    OF_ONE_CALL,
    Call,
    Calls,
    GivenBack,
    InitializerFailed,
    MapCalls,
    MapResults,
    Outcome,
    Reply,
    Results,
    SharedMemory,
    TopLevelFailed,
    Value,
    Wanted,
    replacement,
)
from .outcomes import Location, dumps_sized, failure_of

_SHORTEST_REST, _LONGEST_REST = 2e-4, 5e-3  # seconds after calls were given back, so that another worker takes them

# Set while this thread runs a call.
in_task: ContextVar[bool] = ContextVar("in_task", default=False)


class Isolation(Protocol):
    """What runs calls in child processes."""

    def run(self, message: Calls | MapCalls, /) -> None:
        """Have a child run the calls of a message, and put their outcomes."""

    def leave(self) -> None:
        """Note that the worker itself runs the next calls."""


class Replies:
    """Puts the replies of a worker."""

    def __init__(self, channel: RemoteChannel[Reply, Reply], location: Location) -> None:
        self._channel = channel
        self._location = location
        self._rank = location.rank
        self.executor = 0  # number of the executor whose calls run

    def put(self, message: Reply) -> bool:
        """Put a reply. Return False if the root collects none any more."""
        try:
            self._channel.put(message)
        except ChannelClosed:
            return False
        return True

    def put_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        self.put(Results(self._rank, self.executor, outcomes))

    def put_values(self, block: int, position: int, seconds: float, values: list[Value]) -> None:
        self.put(MapResults(self._rank, self.executor, block, position, seconds, values))

    def give_back(self, numbers: list[int], *, behind_long_call: bool) -> None:
        self.put(GivenBack(self._rank, self.executor, behind_long_call, tuple(numbers)))

    def ask(self, wanted: int, known: int = 0) -> bool:
        return self.put(Wanted(self._rank, self.executor, wanted, known))

    def tell_initializer(self, error: BaseException) -> None:
        self.put(InitializerFailed(self._rank, self.executor, *self._texts(error)))

    def tell_top_level(self, error: BaseException) -> None:
        self.put(TopLevelFailed(self._rank, self.executor, *self._texts(error)))

    def _texts(self, error: BaseException) -> tuple[str, str]:
        name, text, trace, _ = failure_of(error, self._location)
        return f"{name}: {text}", trace


class Worker:
    """Serves the executors of one root until that closes the work channel."""

    def __init__(
        self,
        work: RemoteChannel[Calls | MapCalls, Calls | MapCalls],
        replies: RemoteChannel[Reply, Reply],
        bulk: BulkTransfer,
        location: Location,
        page: StatusPage,
        enforce_limit: Callable[[float], None] | None = None,
        *,
        fail: Callable[[], object],
        memory: SharedMemory | None = None,
        isolation: Isolation | None = None,
        forgotten: Callable[[list[int]], object] = lambda _: None,
    ) -> None:
        """Make a worker.

        Args:
            work: The channel of calls.
            replies: The channel of outcomes.
            bulk: Transfers functions and globals of the script.
            location: Rank and process of this worker, for tracebacks.
            page: The page on which other processes read which call runs.
            enforce_limit: Sets the seconds after which a running call is killed; 0: no limit. None if calls cannot be killed.
            memory: Memory that it shares with the root.
            fail: Ends this worker as if it had been killed; called if a thread of it fails.
            isolation: Runs the calls of a message in a child process; None: this worker runs all calls itself.
            forgotten: Called with the executors that have ended.

        """
        self._work = work
        self._replies = Replies(replies, location)
        self._location = location
        self._page = page
        self._enforce_limit = enforce_limit
        self._isolation = isolation
        self._forgotten = forgotten
        self._initialized: dict[int, bool] = {}  # by executor: whether its initializer has succeeded
        self._bulk = bulk
        self._memory = memory or SharedMemory()
        self._cache = FunctionCache(bulk, self._replies.ask)
        self._modules = MainModules(location.rank, self._fetch, self._replies.tell_top_level, self._forget)
        self._module: MainModule | None = None  # of the current executor; None: this is the script's own process
        self._has: Has = always  # whether the script has a global of this name
        self._rest = _SHORTEST_REST
        self._batch = CurrentBatch(page)
        give_back = lambda number: self._replies.give_back([number], behind_long_call=True)  # noqa: E731
        self._block = CurrentBlock(page, self._replies.put_values, self._put_alone, give_back, self._dump_failure)
        self._flusher = BatchFlusher(self._batch, self._block, self._send, fail)

    def serve(self) -> None:
        """Serve until the work channel is closed and empty."""
        in_task.set(True)
        while messages := self._take():
            self._do(messages.pop())
        self._flusher.stop()

    def _take(self) -> list[Calls | MapCalls]:
        """Take a message. One call that is too large for the memory here fails; several short ones that are end this worker."""
        while True:
            try:
                return self._work.take_many(1)
            except ChannelMemoryError as error:
                if error.size < OF_ONE_CALL:
                    raise
                number, outcome = error.number, replacement(self._work.head(error), error.size, self._location)
            if self._work.skip(number):
                self._replies.put(outcome)

    def _do(self, message: Calls | MapCalls) -> None:
        if self._isolation is not None:
            if message.per_child is not None:
                self._isolation.run(message)
                return
            self._isolation.leave()
        if isinstance(message, MapCalls):
            if self._prepare(message, message.state, [message.number]):
                if len(message.rows) > 1:
                    self._flusher.watch()
                self._block.run(message, partial(self._finder, message.state, message.called), self._has)
            return
        calls = message.calls
        if not self._prepare(message, calls[0][1], [number for number, *_ in calls]):
            return
        self._batch.calls.extend(calls)
        self._batch.sent_at = time.monotonic()
        if len(calls) > 1:
            self._flusher.watch()
        calls.clear()  # nothing here refers to arguments while a call runs
        self._run_all()

    def _prepare(self, message: Calls | MapCalls, state: int | None, numbers: list[int]) -> bool:
        """Make ready for the calls of a message. Return False if they are not to be run here."""
        executor, initializer, most, *_ = message
        self._replies.executor = executor
        self._page.wipe()
        if state is not None and not self._is_admitted(executor, state):
            self._replies.give_back(numbers, behind_long_call=False)
            time.sleep(self._rest)
            self._rest = min(2 * self._rest, _LONGEST_REST)
            return False
        self._rest = _SHORTEST_REST
        if initializer is not None and executor not in self._initialized:
            self._limit(0.0)
            self._page.begin(INITIALIZER, time.monotonic())
            self._initialized[executor] = self._initialize(initializer, state)
            self._page.finish()
            self._page.wipe()
        self._limit(most)
        return self._initialized.get(executor, True)  # if not, the root knows it, and has failed all calls of this executor

    def _is_admitted(self, executor: int, state: int) -> bool:
        """Enter the `__main__` of this executor, in the state of its next call. Return False if other workers run its calls."""
        self._module = self._modules.enter(executor)
        self._has = self._module.has
        try:
            self._module.bring_to(state)
        except NotAdmitted:
            self._modules.forget([executor])
            return False
        except BaseException:  # noqa: BLE001, S110 - its calls meet the same error, and fail with it
            pass
        return True

    def _initialize(self, number: int, state: int | None) -> bool:
        try:
            if state is not None:
                self._bring_to(state)
            function, arguments = self._cache.take(number)
            function(*arguments)
        except BaseException as error:
            error = self._explain(error)
            logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=error)  # as ProcessPoolExecutor
            self._replies.tell_initializer(error)
            return False
        return True

    def _limit(self, most: float) -> None:
        """Have calls killed that run longer. With a limit no outcome waits: it would be lost with a call that is killed."""
        self._batch.held = 0.0 if most else HELD
        if self._enforce_limit is not None and most != self._page.most:
            self._enforce_limit(most)

    def _run_all(self) -> None:
        """Run the calls of the batch, and send outcomes before they are old, or many bytes."""
        call = self._batch.begin_next()
        while call is not None:
            outcome, size = self._run(call)
            del call
            if size >= SMALLEST:
                outcome = (*outcome[:3], *self._memory.put(*outcome[3:]))
            outcomes, call = self._batch.finish(outcome, size)
            del outcome
            if outcomes:
                if size > LARGE and len(outcomes) > 1:  # a long one travels alone
                    self._replies.put_outcomes(outcomes[:-1])
                    del outcomes[:-1]
                self._send(outcomes, [])
                outcomes.clear()  # nothing here refers to results while the next call runs
                call = self._batch.begin_next()
        self._flusher.wait()  # it replies for this executor, and gives back calls of this message: both before the next is claimed

    def _send(self, outcomes: list[Outcome], given_back: list[int]) -> None:
        if outcomes:
            self._replies.put_outcomes(outcomes)
            self._batch.note_sent()
        if given_back:
            self._replies.give_back(given_back, behind_long_call=True)

    def _forget(self, executors: list[int]) -> None:
        self._cache.forget(executors)
        self._forgotten(executors)

    def _fetch(self, wanted: int, known: int) -> dict[str, Any]:
        """Return globals of the script, from the root. Raise the error that the root had when it pickled them."""
        transfer = self._bulk.receive() if self._replies.ask(wanted, known) else None
        if transfer is None:
            raise LookupError("the globals of this call are not needed any more")  # the root ignores the outcome
        data, pages = transfer
        found: Any = load_definitions(data, [page.copy() for page in pages])
        if isinstance(found, BaseException):
            raise found
        return found  # type: ignore[no-any-return]

    def _bring_to(self, state: int) -> None:
        if self._module is not None:
            self._module.bring_to(state)

    def _explain(self, error: BaseException) -> BaseException:
        return error if self._module is None else self._module.explain(error)

    def _run(self, call: Call) -> tuple[Outcome, int]:
        number, state, called, data, buffers = call
        del call
        began = time.monotonic()
        self._page.prepare(number, began)  # imports, and waiting for what it needs, do not count for its limit
        try:
            if self._page.is_cancelled(number):
                raise CancelledError  # noqa: TRY301 - the outcome of a call that is not to run; the root knows
            # Nearly every call is in this state already.
            if state is not None and (self._module is None or state != self._module.state):
                self._bring_to(state)
            if isinstance(buffers, SegmentName):
                try:
                    data, buffers = self._memory.get(data, buffers)
                except MemoryError as error:
                    raise MemoryError(f"{CALL_TOO_LARGE}, {error}") from None
            function, arguments, keywords = loads(data, buffers)
            del data, buffers
            if called is not None:
                function = function_of(called) if isinstance(called, str) else self._cache.get(called, self._replies.executor)
            began = time.monotonic()
            self._page.run(began)
            value, size = dumps_sized(function(*arguments, **keywords), has=self._has)
        except BaseException as error:  # noqa: BLE001 - it is the outcome of this call
            failure = self._dump_failure(error)
            self._page.finish()
            return (number, time.monotonic() - began, True, *failure), failure.size
        self._page.finish()
        return (number, time.monotonic() - began, False, *value), size

    def _finder(self, state: int | None, called: int | str | None) -> Callable[[], Any]:
        """Return what returns the function for each call of a map. Raise what each of them raises."""
        if state is not None:
            self._bring_to(state)
        if isinstance(called, str):
            function_of(called)  # or the error that each call raises
            return partial(main_dict().__getitem__, called) if called in main_dict() else partial(function_of, called)
        return partial(self._cache.get, called or 0, self._replies.executor)

    def _dump_failure(self, error: BaseException) -> Pickled:
        return failure_of(self._explain(error), self._location, self._has).dumps()

    def _put_alone(self, outcome: Outcome, size: int) -> None:
        if size >= SMALLEST:
            outcome = (*outcome[:3], *self._memory.put(*outcome[3:]))
        self._replies.put_outcomes((outcome,))


def run_chunk(function: Callable[..., Any], chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return the results of a function for each tuple of arguments: what map sends as one call."""
    return [function(*arguments) for arguments in chunk]

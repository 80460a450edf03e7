"""The thread that takes replies from the reply channel, notes under the lock what they say, and then has it done."""

import contextlib
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence

from mpiexecutor._calls.messages import (
    OF_ONE_CALL,
    Barrier,
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
from mpiexecutor._calls.outcomes import RemoteTraceback
from mpiexecutor.channel import ChannelClosed, ChannelError, ChannelMemoryError, RemoteChannel

from .dispatcher import Dispatcher
from .lost_calls import LostCalls
from .requests import Requests
from .settling import Break, Settle, Settler, Step
from .state import SchedulerState

logger = logging.getLogger("mpiexecutor")

_REPLIES = 64  # messages that are taken at a time
_LONG = 2e-3  # seconds that a call is expected to take, at the least, after others have waited for one of its kind
_PAUSE = 5e-3  # seconds until it is tried again to throw away what there is no memory for


class Collector:
    """Collects until the reply channel is closed and empty."""

    def __init__(
        self,
        state: SchedulerState,
        replies: RemoteChannel[Reply, Reply],
        dispatcher: Dispatcher,
        lost_calls: LostCalls,
        requests: Requests,
        settler: Settler,
    ) -> None:
        self._state = state
        self._replies = replies
        self._dispatcher = dispatcher
        self._lost_calls = lost_calls
        self._requests = requests
        self._settler = settler
        self._unread = 0  # results that were too large, and whose spare ones are still to come, unless their workers have died
        self._told: set[int] = set()  # executors of which it was told that the top level has failed
        self.thread = threading.Thread(target=self._collect, name="mpiexecutor collector", daemon=True)
        state.settlers.add(self.thread)
        self.thread.start()

    def _collect(self) -> None:
        try:
            while self._collect_some():
                pass
        except BaseException as error:  # noqa: BLE001 - a collector that fails must not leave anybody waiting
            self._fail(error)
        else:
            return
        while self._drain_one():
            pass

    def _collect_some(self) -> bool:
        """Settle the futures of the replies that have come; False once none will come any more."""
        try:
            replies = self._replies.take_many(_REPLIES)
        except ChannelMemoryError as error:
            if error.size < OF_ONE_CALL:
                raise
            self._unread += self._replies.skip(error.number)  # its worker tells what it was about
            return True
        if not replies:
            return False
        steps: deque[Step] = deque()
        try:
            self._note_all(replies, steps)
        except BaseException:
            self._refuse(replies)
            raise
        finally:
            self._settler.run(steps)
        return True

    def _note_all(self, replies: list[Reply], steps: deque[Step]) -> None:
        """Take what has an outcome off the lists, and send what has room now. Note what is left to do: futures come last."""
        with self._state.lock:
            while replies:  # so that nothing here holds on to results
                reply = replies.pop(0)
                if isinstance(reply, Results):
                    self._note_results(reply.rank, reply.executor, reply.outcomes, steps)
                else:
                    self._note_other(reply, steps)
                del reply
            self._dispatcher.dispatch()

    def _note_results(self, rank: int, executor: int, outcomes: Sequence[Outcome], steps: deque[Step]) -> int:
        """Note what became of calls; return of how many that was not known."""
        session = self._state.sessions.get(executor)
        if session is None or session.broken:
            return 0
        found = session.take_outcomes(outcomes, self._state.seconds)
        if found:
            self._state.done[rank] += len(found)
            steps.append(Settle(session, found))
        return len(found)

    def _note_other(self, reply: Reply, steps: deque[Step]) -> None:
        if isinstance(reply, GivenBack):
            self._note_given_back(reply)
        elif isinstance(reply, SpareResult):
            self._note_spare(reply, steps)
        elif isinstance(reply, Wanted):
            steps.append(reply)
        elif isinstance(reply, InitializerFailed):
            self._note_initializer_failed(reply, steps)
        elif isinstance(reply, TopLevelFailed):
            self._note_top_level_failed(reply)
        elif isinstance(reply, CallTooLarge):
            steps += self._lost_calls.fail_unread(reply.message, reply.failure)
        elif isinstance(reply, Barrier):
            steps += self._lost_calls.next()
        else:
            raise TypeError(f"no reply: {reply!r:.50}")

    def _note_given_back(self, reply: GivenBack) -> None:
        """Queue calls again. If they waited behind a long one, calls of their kind are not expected to be short for a while."""
        session = self._state.sessions.get(reply.executor)
        if session is None or session.broken:
            return
        tasks = [task for number in reply.numbers if (task := session.sent.get(number))]
        if reply.behind_long_call:
            seconds = self._state.seconds
            for task in tasks:
                seconds[task.kind] = max(seconds.get(task.kind, 0.0), _LONG)
        session.take_back(tasks)

    def _note_spare(self, reply: SpareResult, steps: deque[Step]) -> None:
        """Take the error in the place of a result that was too large; if none was, the result has come."""
        if self._unread:
            outcome = (reply.number, reply.seconds, True, *reply.failure.dumps())
            self._unread -= self._note_results(reply.rank, reply.executor, [outcome], steps)

    def _note_initializer_failed(self, reply: InitializerFailed, steps: deque[Step]) -> None:
        session = self._state.sessions.get(reply.executor)
        if session is not None and not session.broken:
            reason = f"the initializer failed in a worker, {reply.failure.name}: {reply.failure.text}"
            steps.append(Break(session, reason, RemoteTraceback(reply.failure.trace)))

    def _note_top_level_failed(self, reply: TopLevelFailed) -> None:
        """Tell once that the top level of the script has failed in a worker."""
        if reply.executor not in self._told:
            self._told.add(reply.executor)
            name, text, trace, _ = reply.failure
            logger.warning("the top level of the script ended early in a worker, %s: %s%s", name, text, trace)

    # -- a fault of ours ---------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        cause = None
        with contextlib.suppress(MemoryError):
            cause = RemoteTraceback("".join(traceback.format_exception(error)))
        self._settler.give_up(f"the collector failed: {error!r}", cause)

    def _drain_one(self) -> bool:
        """Throw away what comes, so that no worker waits for room, or for a function, and all can leave; False once all have."""
        try:
            replies = self._replies.take_many(1)
        except ChannelClosed:
            return False
        except Exception as error:  # noqa: BLE001 - no memory, perhaps, for what is thrown away
            with contextlib.suppress(ChannelError, MemoryError):
                if isinstance(error, ChannelMemoryError) and self._replies.skip(error.number):
                    return True
            time.sleep(_PAUSE)
            return True
        self._refuse(replies)
        return bool(replies)

    def _refuse(self, replies: list[Reply]) -> None:
        for reply in replies:
            if isinstance(reply, Wanted):
                self._requests.refuse(reply)

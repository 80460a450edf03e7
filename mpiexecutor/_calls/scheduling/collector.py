"""The thread that takes replies. It notes their contents under the lock, and does the steps that follow without it."""

import contextlib
import logging
import threading
import time
import traceback
from collections import deque

from mpiexecutor._calls.messages import (
    OF_ONE_CALL,
    Barrier,
    ChildDied,
    GivenBack,
    InitializerFailed,
    MapResults,
    Outcome,
    Reply,
    Results,
    SharedMemory,
    TopLevelFailed,
    Wanted,
    outcome_too_large,
    replacement,
)
from mpiexecutor._calls.outcomes import RemoteTraceback, failure_of
from mpiexecutor._util.segments import SegmentGone, SegmentName, pid_of
from mpiexecutor.channel import ChannelClosed, ChannelError, ChannelMemoryError, RemoteChannel

from .dispatcher import Dispatcher
from .lost_calls import LostCalls
from .series import Block
from .session import Task
from .settling import Break, Deliver, Requests, Settle, Settler, Step
from .state import SchedulerState

logger = logging.getLogger("mpiexecutor")

_REPLIES = 64  # messages that are taken at a time
_LONG = 2e-3  # least seconds that a call is expected to take after others have waited behind one of its kind
_PAUSE = 5e-3  # seconds between two attempts to skip a message, for which there is no memory


class Collector:
    """Collects replies until the reply channel is closed and empty."""

    def __init__(
        self,
        state: SchedulerState,
        replies: RemoteChannel[Reply, Reply],
        memory: SharedMemory,
        dispatcher: Dispatcher,
        lost_calls: LostCalls,
        requests: Requests,
        settler: Settler,
    ) -> None:
        self._state = state
        self._replies = replies
        self._memory = memory
        self._dispatcher = dispatcher
        self._lost_calls = lost_calls
        self._requests = requests
        self._settler = settler
        self._told: set[int] = set()  # executors whose TopLevelFailed was logged
        self.thread = threading.Thread(target=self._collect, name="mpiexecutor collector", daemon=True)
        # While no reply is expected soon this thread does not spin: it would take the processor, or the GIL, from a thread that it
        # has woken, or from a worker. The dispatcher rouses it.
        replies.spin_if(state.expects_reply_soon)
        state.settlers.add(self.thread)
        self.thread.start()

    def _collect(self) -> None:
        try:
            while self._collect_some():
                pass
        except BaseException as error:  # noqa: BLE001 - all calls fail: none waits for a collector that is gone
            self._fail(error)
        else:
            return
        while self._drain_one():
            pass

    def _collect_some(self) -> bool:
        """Handle the replies that have come. Return False once none will come any more."""
        replies = self._take()
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

    def _take(self) -> list[Reply]:
        """Take replies. An error replaces the outcome of a call that is too large for the memory here."""
        try:
            return self._replies.take_many(_REPLIES)
        except ChannelMemoryError as error:
            if error.size < OF_ONE_CALL:
                raise
            self._replies.skip(error.number)  # no other rank takes replies
            return [replacement(self._replies.head(error), error.size, self._state.location)]

    def _note_all(self, replies: list[Reply], steps: deque[Step]) -> None:
        """Note the contents of replies, append the steps that follow, and send calls for which there is room now."""
        with self._state.lock:
            while replies:  # popped one by one: nothing here refers to results later
                reply = replies.pop(0)
                if isinstance(reply, Results):
                    self._note_results(reply, steps)
                elif isinstance(reply, MapResults):
                    self._note_map_results(reply, steps)
                else:
                    self._note_other(reply, steps)
                del reply
            self._dispatcher.dispatch()

    def _note_results(self, reply: Results, steps: deque[Step]) -> None:
        """Note outcomes. Some of them may be known from the status page of the worker."""
        outcomes = reply.outcomes
        if isinstance(outcomes[-1][-1], SegmentName):
            outcomes = [*outcomes[:-1], *self._read(reply, outcomes[-1], steps)]
        session = self._state.sessions.get(reply.executor)
        if session is None or session.broken:
            return
        if found := session.take_outcomes(outcomes, self._state.seconds):
            self._state.done[reply.rank] += len(found)
            steps.append(Settle(session, found))

    def _read(self, reply: Results, outcome: Outcome, steps: deque[Step]) -> list[Outcome]:
        """Return an outcome with its buffers; none if its worker has died, so that its call is lost with it."""
        number, seconds, failed, data, buffers = outcome
        try:
            return [(number, seconds, failed, *self._memory.get(data, buffers))]
        except SegmentGone:
            self._lost_calls.note_unread(reply.rank, reply.executor, number)
            session = self._state.sessions.get(reply.executor)
            if session is not None and session.per_child is not None:  # a child has died: nothing else reports it
                assert isinstance(buffers, SegmentName)
                steps += self._lost_calls.lose_result(reply.rank, pid_of(buffers), number)
            return []
        except MemoryError as error:
            failure = failure_of(MemoryError(f"{outcome_too_large(failed)}, {error}"), self._state.location)
        except OSError as error:
            failure = failure_of(error, self._state.location)
        return [(number, seconds, True, *failure.dumps())]

    def _note_map_results(self, reply: MapResults, steps: deque[Step]) -> None:
        session = self._state.sessions.get(reply.executor)
        block = None if session is None or session.broken else session.sent.get(reply.block)
        if session is not None and isinstance(block, Block):
            run = session.take_values(block, reply.first, reply.values, reply.seconds, self._state.seconds)
            if run.values:  # else a status page has told them before
                self._state.done[reply.rank] += len(run.values)
                steps.append(Deliver(session, run))

    def _note_other(self, reply: Reply, steps: deque[Step]) -> None:
        if isinstance(reply, GivenBack):
            self._note_given_back(reply)
        elif isinstance(reply, Wanted):
            steps.append(reply)
        elif isinstance(reply, InitializerFailed):
            self._note_initializer_failed(reply, steps)
        elif isinstance(reply, TopLevelFailed):
            self._note_top_level_failed(reply)
        elif isinstance(reply, ChildDied):
            steps += self._lost_calls.lose_child(reply)
        elif isinstance(reply, Barrier):
            steps += self._lost_calls.next()
        else:
            raise TypeError(f"no reply: {reply!r:.50}")

    def _note_given_back(self, reply: GivenBack) -> None:
        """Queue calls again. If they waited behind a long call, calls of their kind are expected to be long for a while."""
        session = self._state.sessions.get(reply.executor)
        if session is None or session.broken:
            return
        tasks: list[Task | Block] = [task for number in reply.numbers if isinstance(task := session.sent.get(number), Task)]
        session.take_back(tasks)
        tasks += [block for number in reply.numbers if (block := session.take_back_from(number))]
        if reply.behind_long_call:
            seconds = self._state.seconds
            for task in tasks:
                seconds[task.kind] = max(seconds.get(task.kind, 0.0), _LONG)

    def _note_initializer_failed(self, reply: InitializerFailed, steps: deque[Step]) -> None:
        session = self._state.sessions.get(reply.executor)
        if session is not None and not session.broken:
            steps.append(Break(session, f"the initializer failed in a worker, {reply.error}", RemoteTraceback(reply.trace)))

    def _note_top_level_failed(self, reply: TopLevelFailed) -> None:
        """Log once for each executor that the top level of the script failed in a worker."""
        if reply.executor not in self._told:
            self._told.add(reply.executor)
            logger.warning("the top level of the script ended early in a worker, %s%s", reply.error, reply.trace)

    # -- a bug here --------------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        cause = None
        with contextlib.suppress(MemoryError):
            cause = RemoteTraceback("".join(traceback.format_exception(error)))
        self._settler.give_up(f"the collector failed: {error!r}", cause)

    def _drain_one(self) -> bool:
        """Take a reply and ignore it: no worker then waits for room, or for a function. Return False once the channel is closed."""
        try:
            replies = self._replies.take_many(1)
        except ChannelClosed:
            return False
        except Exception as error:  # noqa: BLE001 - no memory for this message, perhaps
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

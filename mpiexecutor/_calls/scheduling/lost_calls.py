"""What becomes of calls whose worker has died, and of calls that no worker could receive.

A death is told by another thread. It is handled by the collector, after all replies that the dead worker had put: a barrier goes
through the reply channel behind them. What a worker had claimed when it died is known by the numbers of messages. A message that is
still being put in the background has no number yet: what may be about it waits until it has one.
"""

import contextlib
import logging
from collections import deque
from dataclasses import dataclass

from mpiexecutor._calls.messages import Barrier, Outcome, Reply, load_outcomes
from mpiexecutor._calls.outcomes import Failure
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._liveness.status_page import INITIALIZER
from mpiexecutor.channel import ChannelClosed, RemoteChannel, Share

from .session import Session, Task
from .settling import Break, FailLost, GiveUp, Settle, Step
from .state import SchedulerState

logger = logging.getLogger("mpiexecutor")


@dataclass(frozen=True, slots=True)
class _Death:
    """A worker has died: `share` is what it had claimed last of the work channel."""

    loss: WorkerFailure
    share: Share | None


@dataclass(frozen=True, slots=True)
class _Claimed:
    """The messages that a dead worker had claimed."""

    loss: WorkerFailure
    share: Share


@dataclass(frozen=True, slots=True)
class _Unread:
    """A message that its worker has thrown away."""

    message: int
    failure: Failure


class LostCalls:
    """Finds the calls, and decides which are run again."""

    def __init__(self, state: SchedulerState, replies: RemoteChannel[Reply, Reply]) -> None:
        self._state = state
        self._replies = replies
        self._due: deque[_Death | _Claimed | _Unread] = deque()  # each has a barrier in the reply channel
        self._postponed: list[_Claimed | _Unread] = []  # until the message that is being put has its number

    def lose(self, loss: WorkerFailure, share: Share | None) -> None:
        """Note that a worker has died; what it had put before that is collected first. No lock is needed."""
        self._queue(_Death(loss, share))

    def queue_postponed(self) -> None:
        """Look again: the message that was being put has its number. No lock is needed, and none is held."""
        with self._state.lock:
            postponed, self._postponed = self._postponed, []
        for event in postponed:
            self._queue(event)

    def _queue(self, event: _Death | _Claimed | _Unread) -> None:
        self._due.append(event)
        with contextlib.suppress(ChannelClosed):
            self._replies.put(Barrier())

    def next(self) -> list[Step]:
        """Handle what the barrier that was collected stands for. The lock is held, as for all that follows."""
        event = self._due.popleft()
        if isinstance(event, _Death):
            return self._bury(event)
        if isinstance(event, _Claimed):
            return self._see_to_calls(event)
        return self.fail_unread(event.message, event.failure)

    def fail_unread(self, message: int, failure: Failure) -> list[Step]:
        """Fail the calls of a message that a worker could not receive."""
        for session in list(self._state.sessions.values()):
            if tasks := session.tasks_in({message}):
                session.lose(tasks)
                return [Settle(session, [(task, (task.number, 0.0, True, *failure.dumps())) for task in tasks])]
        if self._state.streaming:  # it may be the one whose number is not known
            self._postponed.append(_Unread(message, failure))
        return []

    def _bury(self, death: _Death) -> list[Step]:
        """Note that there is one worker less, and see to its calls."""
        loss, share = death.loss, death.share
        self._state.note_lost(loss.rank)
        steps = self._take_over(loss)
        steps += [] if share is None else self._see_to_calls(_Claimed(loss, share))
        if not self._state.workers:
            steps.append(GiveUp(f"all workers are lost; the last of them, {loss}"))
        return steps

    def _take_over(self, loss: WorkerFailure) -> list[Step]:
        """Take the outcomes that a dead worker has left. Those that it had put as well are known by now, and are nobody's."""
        steps: list[Step] = []
        outcomes: list[Outcome] = []
        try:
            outcomes.extend(load_outcomes(loss.held))
        except Exception:
            logger.exception("not all of what a dead worker had run can be read")
        for session in list(self._state.sessions.values()):
            if found := session.take_outcomes(outcomes, self._state.seconds):
                self._state.done[loss.rank] += len(found)
                steps.append(Settle(session, found))
        return steps

    def _see_to_calls(self, claimed: _Claimed) -> list[Step]:
        """Fail what a dead worker had begun, or have it run again if it may be; the rest of its message was not lost."""
        for session in list(self._state.sessions.values()):
            if tasks := session.tasks_in(claimed.share.messages):
                return self._divide(session, claimed.loss, tasks)
        if self._state.streaming:  # as above
            self._postponed.append(claimed)
        return []

    def _divide(self, session: Session, loss: WorkerFailure, tasks: list[Task]) -> list[Step]:
        """Tell apart the calls of one message, which have no outcome: those that were begun, and the others."""
        if loss.begun == INITIALIZER:
            return [Break(session, f"the initializer was being run when {loss}", None)]
        assert tasks[0].batch is not None
        calls = tasks[0].batch.calls
        last = len(calls) if loss.begun is None else calls.index(loss.begun) + 1 if loss.begun in calls else 0
        begun = set(calls[:last])
        overdue = loss.begun if loss.overdue else None
        again = [task for task in tasks if task.number != overdue and session.is_to_be_run_again(task, begun=task.number in begun)]
        session.take_back(again)
        lost = [task for task in tasks if task.number in session.sent]
        session.lose(lost)
        return [FailLost(session, loss, lost)]

"""The calls of workers that have died.

Theory of operation
    The recovery thread reports a death. The collector handles it, after all replies that the dead worker had put: the report waits
    here, and a Barrier goes through the reply channel behind those replies.

    The channel tells which messages the dead worker had claimed last, by number. Those of their calls that have no outcome are
    divided: a call that was begun is lost, or runs again if the executor wants retries; the others are sent again.

    A message that is being put in the background has no number yet. A report that finds no calls may be about it, and is repeated
    when the number is known.
"""

import contextlib
import logging
from collections import deque
from dataclasses import dataclass, replace

from mpiexecutor._calls.messages import OF_MAP, Barrier, ChildDied, Outcome, Reply, Value, load_outcomes
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._liveness.status_page import INITIALIZER
from mpiexecutor.channel import ChannelClosed, RemoteChannel, Share

from .series import Block
from .session import Session, Task
from .settling import Break, Deliver, FailLost, GiveUp, Settle, Step
from .state import SchedulerState

logger = logging.getLogger("mpiexecutor")


@dataclass(frozen=True, slots=True)
class _Death:
    """A worker has died; `share` is its last claim on the work channel."""

    loss: WorkerFailure
    share: Share | None
    postponed: bool = False  # the worker counts as lost already: only its claim is to be looked up again


class LostCalls:
    """Finds lost calls, and decides which run again."""

    def __init__(self, state: SchedulerState, replies: RemoteChannel[Reply, Reply]) -> None:
        self._state = state
        self._replies = replies
        self._due: deque[_Death] = deque()  # for each a Barrier is in the reply channel
        self._unread: dict[int, list[int]] = {}  # calls whose outcomes could not be read, by rank
        self._postponed: list[_Death] = []  # until the message that is being put has its number

    def lose(self, loss: WorkerFailure, share: Share | None) -> None:
        """Report that a worker has died. No lock is needed."""
        self._queue(_Death(loss, share))

    def note_unread(self, rank: int, executor: int, number: int) -> None:
        """Note that the outcome of a call is lost with its worker, whose death will be reported. The lock is held."""
        self._unread.setdefault(rank, []).append(number)
        if (session := self._state.sessions.get(executor)) is not None:
            session.set_aside(number)

    def queue_postponed(self) -> None:
        """Repeat the postponed reports: the number of the message is known. The lock is not held."""
        with self._state.lock:
            postponed, self._postponed = self._postponed, []
        for death in postponed:
            self._queue(death)

    def _queue(self, death: _Death) -> None:
        self._due.append(death)
        with contextlib.suppress(ChannelClosed):
            self._replies.put(Barrier())

    def next(self) -> list[Step]:
        """Return the steps of the oldest report, whose Barrier was collected. The lock is held, as for all that follows."""
        death = self._due.popleft()
        if death.postponed:
            return self._see_to_calls(death)
        self._state.note_lost(death.loss.rank)
        steps = self._take_over(death.loss) + self._see_to_calls(death)
        steps += self._lose_unread(death.loss)  # of earlier messages
        if not self._state.workers:
            steps.append(GiveUp(f"all workers are lost; the last of them, {death.loss}"))
        return steps

    def bury_child(self, died: ChildDied) -> list[Step]:
        """Return the steps for the calls of a child that has died. Its worker lives, and has replied all else before."""
        loss = WorkerFailure(died.rank, died.host, died.pid, died.end, died.begun, died.overdue, held=died.held)
        logger.log(logging.INFO if died.cancelled else logging.WARNING, "%s; another process takes its place", loss)
        steps = self._take_over(loss)
        session = self._state.sessions.get(died.executor)
        if session is not None and (tasks := session.tasks_of_serial(died.serial)):
            steps += self._divide(session, loss, tasks, is_sure=died.begun >= 0)
        return steps

    def lose_result(self, rank: int, pid: int, number: int) -> list[Step]:
        """Return the steps for a call whose child has died when it had sent the result, and before that was read here."""
        # On this host: they share memory.
        return self._lose_unread(WorkerFailure(rank, self._state.location.host, pid, "has died", number))

    def _take_over(self, loss: WorkerFailure) -> list[Step]:
        """Take the outcomes on the status page of a dead worker. Those that it had put, too, are known, and find no task."""
        steps: list[Step] = []
        held: list[Outcome | tuple[int, Value]] = []
        try:
            held.extend(load_outcomes(loss.held))
        except Exception:
            logger.exception("not all of what a dead worker had run can be read")
        outcomes = [each for each in held if len(each) > OF_MAP]
        values = [each for each in held if len(each) == OF_MAP]
        for session in list(self._state.sessions.values()):
            if found := session.take_outcomes(outcomes, self._state.seconds):
                self._state.done[loss.rank] += len(found)
                steps.append(Settle(session, found))
            runs = session.take_held(values, self._state.seconds)
            self._state.done[loss.rank] += len(runs)
            steps += [Deliver(session, run) for run in runs]
        return steps

    def _lose_unread(self, loss: WorkerFailure) -> list[Step]:
        """Return the steps for calls that a dead worker had run, and whose outcomes were lost with it."""
        numbers = set(self._unread.pop(loss.rank, ()))
        sessions = list(self._state.sessions.values())
        steps: list[Step] = []
        for session in sessions:
            tasks: list[Task | Block] = [task for number in numbers if isinstance(task := session.sent.get(number), Task)]
            steps += [self._lose_or_repeat(session, loss, tasks, numbers)] if tasks else []
            for number in numbers & session.unread.keys():
                steps += _lose_or_repeat_part(session, loss, session.unread.pop(number), begun=True)
        return steps

    def _see_to_calls(self, death: _Death) -> list[Step]:
        """Find the calls that a dead worker had claimed."""
        if death.share is None:
            return []
        for session in list(self._state.sessions.values()):
            if tasks := session.tasks_in(death.share.messages):
                return self._divide(session, death.loss, tasks)
        if self._state.streaming:  # the claim may be the message that has no number yet
            self._postponed.append(replace(death, postponed=True))
        return []

    def _divide(self, session: Session, loss: WorkerFailure, tasks: list[Task | Block], *, is_sure: bool = False) -> list[Step]:
        """Divide the calls of a message that have no outcome into those that are lost and those that are sent again.

        `is_sure`: those that were not begun have nothing to do with the death.
        """
        if loss.begun == INITIALIZER:
            return [Break(session, f"the initializer was being run when {loss}", None)]
        if isinstance(tasks[0], Block):
            return self._divide_block(session, loss, tasks[0])
        assert tasks[0].batch is not None
        calls = tasks[0].batch.calls
        last = len(calls) if loss.begun is None else calls.index(loss.begun) + 1 if loss.begun in calls else 0
        return [self._lose_or_repeat(session, loss, tasks, set(calls[:last]), is_sure=is_sure)]

    @staticmethod
    def _lose_or_repeat(
        session: Session, loss: WorkerFailure, tasks: list[Task | Block], begun: set[int], *, is_sure: bool = False
    ) -> Step:
        """Queue the calls that are sent again, and return the step that fails the others."""
        overdue = loss.begun if loss.overdue else None
        again = [
            task
            for task in tasks
            if not task.future.cancelled()
            and task.number != overdue
            and ((is_sure and task.number not in begun) or session.is_to_be_run_again(task, begun=task.number in begun))
        ]
        session.take_back(again)
        lost = [task for task in tasks if task.number in session.sent]
        session.lose(lost)
        return FailLost(session, loss, lost)

    @staticmethod
    def _divide_block(session: Session, loss: WorkerFailure, block: Block) -> list[Step]:
        """Do that with the calls of a map: the one that was begun is lost or sent again, alone, and so are the others, together."""
        last = len(block.rows) - 1 if loss.begun is None else loss.begun - block.number  # None: it is unknown
        begun = block.done <= last < len(block.rows)
        rest = block.split((last if begun else block.done) + 1)
        tried = block.split(block.done)  # if it was not begun it may have killed its receiver
        session.lose([block])
        session.requeue([rest])
        return _lose_or_repeat_part(session, loss, tried, begun=begun)


def _lose_or_repeat_part(session: Session, loss: WorkerFailure, part: Block, *, begun: bool) -> list[Step]:
    """Queue a part of a block again, or return the step that fails it."""
    overdue = loss.overdue and part.number == loss.begun
    if not overdue and session.is_to_be_run_again(part, begun=begun):
        session.requeue([part])
        return []
    return [FailLost(session, loss, [part])]

"""The calls of workers that have failed.

Theory of operation
    The recovery thread reports a failure. The collector handles it after all replies of the failed worker: the report waits here,
    and a Barrier goes through the reply channel behind those replies.

    The channel tells which messages the failed worker had claimed last, by number. Those of their calls that have no outcome are
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
class _Report:
    """A worker has failed; `share` is its last claim on the work channel."""

    failure: WorkerFailure
    share: Share | None
    postponed: bool = False  # the worker counts as lost already: only its claim is to be looked up again


class LostCalls:
    """Finds lost calls, and decides which run again."""

    def __init__(self, state: SchedulerState, replies: RemoteChannel[Reply, Reply]) -> None:
        self._state = state
        self._replies = replies
        self._due: deque[_Report] = deque()  # for each a Barrier is in the reply channel
        self._unread: dict[int, list[int]] = {}  # calls whose outcomes could not be read, by rank
        self._postponed: list[_Report] = []  # until the message that is being put has its number

    def lose(self, failure: WorkerFailure, share: Share | None) -> None:
        """Report that a worker has died. No lock is needed."""
        self._queue(_Report(failure, share))

    def note_unread(self, rank: int, executor: int, number: int) -> None:
        """Note that the outcome of a call is lost with its worker, whose failure will be reported. The lock is held."""
        self._unread.setdefault(rank, []).append(number)
        if (session := self._state.sessions.get(executor)) is not None:
            session.set_aside(number)

    def queue_postponed(self) -> None:
        """Repeat the postponed reports: the number of the message is known. The lock is not held."""
        with self._state.lock:
            postponed, self._postponed = self._postponed, []
        for report in postponed:
            self._queue(report)

    def _queue(self, report: _Report) -> None:
        self._due.append(report)
        with contextlib.suppress(ChannelClosed):
            self._replies.put(Barrier())

    def next(self) -> list[Step]:
        """Return the steps of the oldest report, whose Barrier was collected. The lock is held, as for all that follows."""
        report = self._due.popleft()
        if report.postponed:
            return self._handle_calls(report)
        self._state.note_lost(report.failure.rank)
        steps = self._take_over(report.failure) + self._handle_calls(report)
        steps += self._lose_unread(report.failure)  # of earlier messages
        if not self._state.workers:
            steps.append(GiveUp(f"all workers are lost; the last of them, {report.failure}"))
        return steps

    def lose_child(self, died: ChildDied) -> list[Step]:
        """Return the steps for the calls of a child that has died. Its worker lives, and has replied all else before."""
        failure = WorkerFailure(died.rank, died.host, died.pid, died.end, died.begun, died.overdue, held=died.held)
        logger.log(logging.INFO if died.cancelled else logging.WARNING, "%s; another process takes its place", failure)
        steps = self._take_over(failure)
        session = self._state.sessions.get(died.executor)
        if session is not None and (tasks := session.tasks_of_serial(died.serial)):
            steps += self._divide(session, failure, tasks, is_sure=died.begun >= 0)
        return steps

    def lose_result(self, rank: int, pid: int, number: int) -> list[Step]:
        """Return the steps for a call whose child has died after it had sent the result, and before the root has read that."""
        # On this host: they share memory.
        return self._lose_unread(WorkerFailure(rank, self._state.location.host, pid, "has died", number))

    def _take_over(self, failure: WorkerFailure) -> list[Step]:
        """Take the outcomes on the status page of a failed worker. Tasks whose outcomes it had put are gone already."""
        steps: list[Step] = []
        held: list[Outcome | tuple[int, Value]] = []
        try:
            held.extend(load_outcomes(failure.held))
        except Exception:
            logger.exception("not all of what a failed worker had run can be read")
        outcomes = [each for each in held if len(each) > OF_MAP]
        values = [each for each in held if len(each) == OF_MAP]
        for session in list(self._state.sessions.values()):
            if found := session.take_outcomes(outcomes, self._state.seconds):
                self._state.done[failure.rank] += len(found)
                steps.append(Settle(session, found))
            runs = session.take_held(values, self._state.seconds)
            self._state.done[failure.rank] += len(runs)
            steps += [Deliver(session, run) for run in runs]
        return steps

    def _lose_unread(self, failure: WorkerFailure) -> list[Step]:
        """Return the steps for calls that a failed worker had run, and whose outcomes were lost with it."""
        numbers = set(self._unread.pop(failure.rank, ()))
        sessions = list(self._state.sessions.values())
        steps: list[Step] = []
        for session in sessions:
            tasks: list[Task | Block] = [task for number in numbers if isinstance(task := session.sent.get(number), Task)]
            steps += [self._lose_or_repeat(session, failure, tasks, numbers)] if tasks else []
            for number in numbers & session.unread.keys():
                steps += _lose_or_repeat_part(session, failure, session.unread.pop(number), begun=True)
        return steps

    def _handle_calls(self, report: _Report) -> list[Step]:
        """Find the calls that a failed worker had claimed."""
        if report.share is None:
            return []
        for session in list(self._state.sessions.values()):
            if tasks := session.tasks_in(report.share.messages):
                return self._divide(session, report.failure, tasks)
        if self._state.streaming:  # the claim may be the message that has no number yet
            self._postponed.append(replace(report, postponed=True))
        return []

    def _divide(self, session: Session, failure: WorkerFailure, tasks: list[Task | Block], *, is_sure: bool = False) -> list[Step]:
        """Divide the calls of a message that have no outcome into those that are lost and those that are sent again.

        `is_sure`: those that were not begun have nothing to do with the failure.
        """
        if failure.begun == INITIALIZER:
            return [Break(session, f"the initializer was being run when {failure}", None)]
        if isinstance(tasks[0], Block):
            return self._divide_block(session, failure, tasks[0])
        assert tasks[0].batch is not None
        calls = tasks[0].batch.calls
        last = len(calls) if failure.begun is None else calls.index(failure.begun) + 1 if failure.begun in calls else 0
        return [self._lose_or_repeat(session, failure, tasks, set(calls[:last]), is_sure=is_sure)]

    @staticmethod
    def _lose_or_repeat(
        session: Session, failure: WorkerFailure, tasks: list[Task | Block], begun: set[int], *, is_sure: bool = False
    ) -> Step:
        """Queue the calls that are sent again, and return the step that fails the others."""
        overdue = failure.begun if failure.overdue else None
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
        return FailLost(session, failure, lost)

    @staticmethod
    def _divide_block(session: Session, failure: WorkerFailure, block: Block) -> list[Step]:
        """Do that with the calls of a map: the one that was begun is lost or sent again, alone, and so are the others, together."""
        last = len(block.rows) - 1 if failure.begun is None else failure.begun - block.number  # None: it is unknown
        begun = block.done <= last < len(block.rows)
        rest = block.split((last if begun else block.done) + 1)
        tried = block.split(block.done)  # if it was not begun it may have killed its receiver
        session.lose([block])
        session.requeue([rest])
        return _lose_or_repeat_part(session, failure, tried, begun=begun)


def _lose_or_repeat_part(session: Session, failure: WorkerFailure, part: Block, *, begun: bool) -> list[Step]:
    """Queue a part of a block again, or return the step that fails it."""
    overdue = failure.overdue and part.number == failure.begun
    if not overdue and session.is_to_be_run_again(part, begun=begun):
        session.requeue([part])
        return []
    return [FailLost(session, failure, [part])]

"""Settles futures, without the lock. What is to be settled is data, a list of steps that was made under the lock.

Unpickling a result, and the callbacks of a future, run code of the user: it may submit, block, or raise anything.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from mpiexecutor._calls.messages import Outcome, Wanted
from mpiexecutor._calls.outcomes import BrokenWorkerError, Failure, error_from, with_cause
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._util.pickling import loads
from mpiexecutor._util.segments import SegmentName

from .futures import CallFuture
from .requests import Requests
from .series import Block, Place, Raised, Run
from .session import Session, Settled, Task
from .state import SchedulerState

logger = logging.getLogger("mpiexecutor")


class Settle(NamedTuple):
    """Settle the futures of tasks that have an outcome."""

    session: Session
    found: list[Settled]  # emptied when it is done


class Deliver(NamedTuple):
    """Deliver results of a map."""

    session: Session
    run: Run


class FailLost(NamedTuple):
    """Fail tasks that are lost with a worker."""

    session: Session
    loss: WorkerFailure
    tasks: list[Task | Block]


class Break(NamedTuple):
    """Fail all calls of a session, and those to come."""

    session: Session
    reason: str
    cause: BaseException | None


class GiveUp(NamedTuple):
    """Break all sessions, and refuse others."""

    reason: str


Step = Settle | Deliver | FailLost | Break | GiveUp | Wanted


class Settler:
    """Does steps."""

    def __init__(self, state: SchedulerState, requests: Requests) -> None:
        self._state = state
        self._requests = requests

    def run(self, steps: deque[Step]) -> None:
        """Do the steps, in order. All must be done: no other thread knows their tasks any more."""
        while steps:
            step = steps.popleft()
            if isinstance(step, Settle):
                self._settle_all(step.session, step.found)
            elif isinstance(step, Deliver):
                self._deliver(step.session, step.run)
            elif isinstance(step, Wanted):
                self._requests.answer(step)
            elif isinstance(step, FailLost):
                self._fail_lost(step.session, step.loss, step.tasks)
            elif isinstance(step, Break):
                self._break(step.session, step.reason, step.cause)
            else:
                self.give_up(step.reason)

    def give_up(self, reason: str, cause: BaseException | None = None) -> None:
        """Fail everything, for good."""
        with self._state.lock:
            self._state.failure = reason
            self._state.settlers.add(threading.current_thread())
        for session in self._state.open_sessions():
            self._break(session, reason, cause)

    def _settle_all(self, session: Session, found: list[Settled]) -> None:
        count = len(found)
        found.reverse()
        while found:  # popped one by one: nothing here refers to a result while the next is unpickled
            self._settle(*found.pop())
        self._note_settled(session, count)

    def _settle(self, future: Future[Any] | Place, outcome: Outcome) -> None:
        if future.cancelled():  # while it ran
            return
        _, _, failed, data, buffers = outcome
        assert not isinstance(buffers, SegmentName)  # they have been read
        settle: Callable[[Any], None] = future.set_exception if failed else future.set_result
        try:
            value = error_from(Failure.loads(data, buffers)) if failed else loads(data, buffers)
        except BaseException as error:  # noqa: BLE001 - raised by the result's own code: this call fails alone
            settle, value = future.set_exception, with_cause(error, self._state.location)
        quietly(settle, value)

    def _deliver(self, session: Session, run: Run) -> None:
        count = len(run.values)
        for position, value in enumerate(run.values):
            if type(value) is bytes or type(value) is tuple:  # a pickle, or a Failure
                run.values[position] = self._value_of(value)
        run.runs.put(run.first, run.values)
        self._note_settled(session, count)

    def _value_of(self, value: bytes | tuple[bytes, ...]) -> Any:
        try:
            if isinstance(value, bytes):
                return loads(value)
            data, *buffers = value
            return Raised(error_from(Failure.loads(data, [memoryview(each) for each in buffers])))
        except BaseException as error:  # noqa: BLE001 - as above
            return Raised(with_cause(error, self._state.location))

    def _note_settled(self, session: Session, count: int) -> None:
        with self._state.changed:
            session.note_settled(count)  # after settling: a thread that waits for the session then finds its futures done
            self._state.forget_done()
            self._state.changed.notify_all()

    def _fail_lost(self, session: Session, loss: WorkerFailure, tasks: list[Task | Block]) -> None:
        text = f"{loss} while it ran this call, or before the result was there"
        for task in tasks:
            if task.future.cancelled():
                continue
            if loss.overdue and task.number == loss.begun:
                error: Exception = TimeoutError(f"this call ran longer than task_timeout: {loss}")
            else:
                error = BrokenWorkerError(text, loss.rank, loss.host, loss.pid, loss.end)
            quietly(task.future.set_exception, error)
        self._note_settled(session, sum(task.count for task in tasks))

    def _break(self, session: Session, reason: str, cause: BaseException | None) -> None:
        """Fail every call of a session, those to come too."""
        with self._state.lock:
            tasks, count = session.break_off(reason, cause)
        for task in tasks:
            error = BrokenProcessPool(reason)
            error.__cause__ = cause
            if task.future.running() or (not _is_over(task.future) and task.future.set_running_or_notify_cancel()):
                quietly(task.future.set_exception, error)
        with self._state.changed:
            session.note_settled(count)
            self._state.changed.notify_all()


def _is_over(future: Future[Any] | Place) -> bool:
    """Return whether a future was cancelled while its call ran, so that nothing is left to tell."""
    return isinstance(future, CallFuture) and future.is_over


def quietly(settle: Callable[[Any], None], value: Any) -> None:
    """Settle a future. Log what a callback raises that is no Exception, SystemExit say: the collector goes on."""
    try:
        settle(value)
    except BaseException:
        logger.exception("a callback of a future has failed")


def cancel_quietly(future: Future[Any] | Place) -> None:
    """Cancel a future, and wake the threads that wait for it."""

    def cancel(future: Future[Any] | Place) -> None:
        if future.cancel():
            future.set_running_or_notify_cancel()

    quietly(cancel, future)

"""Settles futures, and answers workers, without the lock. The work is data: a list of steps, which was made under the lock.

Unpickling a result, and the callbacks of a future, run code of the user, which may submit, block, or raise anything.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pickle import PicklingError
from typing import Any, NamedTuple

from mpiexecutor._calls.bulk import BulkTransfer
from mpiexecutor._calls.messages import Outcome, Wanted
from mpiexecutor._calls.outcomes import Failure, error_from, pickled, with_cause
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._script.main_module import NotAdmitted
from mpiexecutor._script.state import Registry, State
from mpiexecutor._util.pickling import loads
from mpiexecutor._util.segments import SegmentName

from .futures import BrokenWorkerError, CallFuture
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
    failure: WorkerFailure
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


class Requests:
    """Answers requests of workers for functions and for globals of the script, by bulk transfer. A worker waits for each answer."""

    def __init__(self, state: SchedulerState, registry: Registry, bulk: BulkTransfer) -> None:
        self._state = state
        self._registry = registry
        self._bulk = bulk
        self._opened: dict[int, set[int]] = {}  # by rank: executors whose `__main__` the worker has

    def refuse(self, request: Wanted) -> None:
        """Refuse a request: the worker fails the call, whose outcome the root ignores."""
        self._bulk.send(request.rank, None)

    def answer(self, request: Wanted) -> None:
        """Send what is wanted, or refuse if no call refers to it any more.

        The lock is not held: this may pickle, or start a thread and wait for it, and finalizers may run meanwhile.
        """
        rank, executor, number, known = request
        shared = self._registry.find(number)
        if shared is None:
            self.refuse(request)
            return
        with self._state.lock:
            if isinstance(shared, State) and not self._admit(rank, executor):
                self._bulk.send(rank, pickled(NotAdmitted()))
                return
            opened = self._opened.setdefault(rank, set())
            ended = opened - self._state.sessions.keys()
            opened -= ended
            opened.add(executor)
        try:
            found = shared.pickled(known, sorted(ended))
        except BaseException as error:  # noqa: BLE001 - raised by a global's own code: the worker raises it again
            reason = PicklingError(f"the script's globals cannot be pickled: {type(error).__name__}: {error}")
            found = pickled(with_cause(reason, self._state.location))
        self._bulk.send(rank, found)

    def _admit(self, rank: int, executor: int) -> bool:
        """Whether a worker may run calls of an executor. The lock is held."""
        state = self._state
        session = state.sessions.get(executor)
        if session is None:
            return True
        taken: set[int] = set()
        for other in state.sessions.values():
            taken |= other.ranks or set()
        free = set(range(state.location.ranks)) - {state.location.rank} - state.lost - taken
        return session.admit(rank, state.lost, others_are_free=bool(free) and rank in taken)


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
                self._fail_lost(step.session, step.failure, step.tasks)
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

    def _fail_lost(self, session: Session, failure: WorkerFailure, tasks: list[Task | Block]) -> None:
        text = f"{failure} while it ran this call, or before the result was there"
        for task in tasks:
            if task.future.cancelled():
                continue
            if failure.overdue and task.number == failure.begun:
                error: Exception = TimeoutError(f"this call ran longer than task_timeout: {failure}")
            else:
                error = BrokenWorkerError(text, failure.rank, failure.host, failure.pid, failure.end)
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
        self._note_settled(session, count)


def _is_over(future: Future[Any] | Place) -> bool:
    """Return whether a future was cancelled while its call ran: its waiting threads know that already."""
    return isinstance(future, CallFuture) and future.is_over


def quietly(settle: Callable[[Any], object], value: Any) -> None:
    """Settle a future. Log an error of a callback that is no Exception, such as SystemExit: the collector goes on."""
    try:
        settle(value)
    except BaseException:
        logger.exception("a callback of a future has failed")


def cancel_quietly(future: Future[Any] | Place) -> None:
    """Cancel a future, and wake the threads that wait for it."""
    quietly(lambda _: future.cancel() and future.set_running_or_notify_cancel(), None)

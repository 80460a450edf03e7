"""Calls that are waited for, by number, and what each executor has of them: no MPI, no threads. The caller holds the lock."""

from collections import deque
from collections.abc import Container, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mpiexecutor._calls.functions import Function
from mpiexecutor._calls.messages import Call, Outcome
from mpiexecutor._script.state import State

_RECEIVERS = 3  # that may die of a call before they begin it
_WEIGHT = 0.25  # of the newest duration in the expected one


def slim_future() -> Future[Any]:
    """Make a future that takes 900 bytes, not 1,600, while nobody waits for it: a script may have a million of them.

    The difference is a deque with room for 64 threads that wait. Its name is private to Python; a Python that has it no more does
    not look at what is set here.
    """
    future: Future[Any] = Future()
    future._condition._waiters = []  # type: ignore[attr-defined]  # noqa: SLF001
    return future


@dataclass(slots=True, eq=False)
class Task:
    """A call that was submitted and has no outcome yet. It keeps the pickled call, so that it can be sent again."""

    number: int
    future: Future[Any]
    call: Call
    size: int  # of it, in bytes
    kind: object  # calls of one kind are expected to take about as long as each other
    function: Function | str | None = None  # that the call names, kept here as a worker may still ask for it,
    state: State | None = None  # and so is the state of the script's globals
    batch: "Batch | None" = None  # the message that it went with last, once it has gone


@dataclass(slots=True, eq=False)
class Batch:
    """Tasks that went to a worker in one message."""

    calls: tuple[int, ...]  # their numbers, in order
    left: int  # without an outcome
    number: int | None = None  # of the message in the channel, once it is there


@dataclass(slots=True, eq=False)
class Session:
    """What the scheduler knows of one executor. Only these methods change the counters."""

    number: int
    limit: int  # messages on their way at a time, while all workers live
    initializer: Function | None
    retries: int = 0  # how often a call is run again whose worker died
    task_timeout: float = 0.0  # seconds that a call may run; 0: as long as it likes
    max_pending: int | None = None  # calls without an outcome, after which submit waits
    backlog: deque[Task] = field(default_factory=deque)  # in order; these can still be cancelled. Appended to without the lock
    sent: dict[int, Task] = field(default_factory=dict)  # without an outcome
    unsettled: int = 0  # sent, and its future not settled yet
    under_way: set[Batch] = field(default_factory=set)  # in the ring, or at a worker
    seen: frozenset[Batch] = frozenset()  # those that were so when that was last looked at,
    slow: set[Batch] = field(default_factory=set)  # and those that had been so at the look before
    deaths: dict[int, int] = field(default_factory=dict)  # how many workers have died of a call, by its number
    refusals: int = 0  # of workers that run the calls of another such executor
    ranks: set[int] | None = None  # the workers that run its calls, if not all do: those that came first
    closed: str = ""  # why nothing may be submitted any more
    broken: str = ""  # why nothing will be run any more
    broken_cause: BaseException | None = None

    @property
    def idle(self) -> bool:
        return not self.backlog and not self.unsettled

    @property
    def messages(self) -> int:
        """How many are on their way."""
        return len(self.under_way)

    @property
    def is_full(self) -> bool:
        """Whether submit is to wait, unless nothing more will be done."""
        most = self.max_pending
        if most is None or self.closed or self.broken or len(self.backlog) + self.unsettled < most:
            return False
        return self.unsettled + sum(not task.future.cancelled() for task in list(self.backlog)) >= most

    def next_batch(self, most: int, most_bytes: int, seconds: dict[object, float], most_seconds: float) -> list[Task]:
        """Take the next tasks for one message: more than one only if they are known to be short."""
        batch: list[Task] = []
        size, expected = 0, 0.0
        while self.backlog and len(batch) < most:
            task = self.backlog[0]
            more_size = size + task.size
            more_expected = expected + seconds.get(task.kind, most_seconds)
            if batch and (more_size > most_bytes or more_expected > most_seconds) and not task.future.cancelled():
                break
            self.backlog.popleft()
            if task.batch is not None or task.future.set_running_or_notify_cancel():  # else it was cancelled
                batch.append(task)
                size, expected = more_size, more_expected
        return batch

    def send(self, tasks: Sequence[Task]) -> Batch:
        """Note that these tasks are on their way in one message."""
        batch = Batch(tuple(task.number for task in tasks), len(tasks))
        self.unsettled += len(tasks)
        for task in tasks:
            task.batch = batch
            self.sent[task.number] = task
        self.under_way.add(batch)
        return batch

    def see_who_is_slow(self) -> None:
        """Note which messages were on their way at the look before, too."""
        self.slow, self.seen = self.under_way & self.seen, frozenset(self.under_way)

    def tasks_in(self, messages: Container[int]) -> list[Task]:
        """Return those without an outcome that went with one of these messages last."""
        return [task for task in self.sent.values() if task.batch and task.batch.number in messages]

    def tasks_of(self, batch: Batch) -> list[Task]:
        """Return those without an outcome that went with this message last."""
        return [task for number in batch.calls if (task := self.sent.get(number)) and task.batch is batch]

    def take_outcomes(self, outcomes: Sequence[Outcome], expected: dict[object, float]) -> list[tuple[Task, Outcome]]:
        """Take the tasks that have an outcome off the list. They are unsettled until they are settled.

        `expected` takes how long calls of their kinds may be expected to run.
        """
        found = []
        for outcome in outcomes:
            number, seconds, *_ = outcome
            task = self.sent.pop(number, None)
            if task is not None:
                found.append((task, outcome))
                self._leave_batch(task)
                before = expected.get(task.kind, seconds)
                expected[task.kind] = before + _WEIGHT * (seconds - before)
        return found

    def lose(self, tasks: Sequence[Task]) -> None:
        """Take tasks that have failed off the list. They are unsettled until they are settled."""
        for task in tasks:
            del self.sent[task.number]
            self._leave_batch(task)

    def drop(self, tasks: Sequence[Task]) -> None:
        """Take tasks that could not be sent off the list, as if they were settled."""
        self.lose(tasks)
        self.unsettled -= len(tasks)

    def take_back(self, tasks: Sequence[Task]) -> None:
        """Put tasks that were sent, and not begun, before all others."""
        self.drop(tasks)
        self.backlog.extendleft(reversed(tasks))

    def note_settled(self, count: int) -> None:
        """Note that the futures of so many tasks are settled."""
        self.unsettled -= count

    def close(self, reason: str) -> None:
        """Take no more calls. The first reason counts. No lock is needed."""
        self.closed = self.closed or reason

    def drop_unsent(self) -> list[Task]:
        """Give up the tasks that were never sent; return them."""
        waiting = self._empty_backlog()
        self.backlog.extendleft(task for task in reversed(waiting) if task.batch is not None)
        return [task for task in waiting if task.batch is None]

    def break_off(self, reason: str, cause: BaseException | None) -> list[Task]:
        """Give up every task, and those to come; return them. They are unsettled until they are settled."""
        self.broken_cause, self.broken = cause, reason
        waiting = self._empty_backlog()
        tasks = [*self.sent.values(), *waiting]
        self.unsettled += len(waiting)
        self.sent.clear()
        self.under_way.clear()
        self.slow.clear()
        return tasks

    def disown(self, reason: str) -> None:
        """In a forked child: have no calls. They are the parent's."""
        self.closed = reason
        self.sent.clear()
        self.backlog.clear()
        self.unsettled = 0

    def is_to_be_run_again(self, task: Task, *, begun: bool) -> bool:
        """Note that a worker has died that had a task. One that was not begun is not lost; but it may be what kills receivers."""
        deaths = self.deaths[task.number] = self.deaths.get(task.number, 0) + 1
        return deaths <= self.retries + (0 if begun else _RECEIVERS)

    def withdraw(self, task: Task) -> bool:
        """Take back a task that was queued without looking; False if it was sent, or dropped, meanwhile."""
        try:
            self.backlog.remove(task)
        except ValueError:
            return False
        return True

    def _leave_batch(self, task: Task) -> None:
        batch = task.batch
        assert batch is not None
        batch.left -= 1
        if batch.left == 0:
            self.under_way.discard(batch)
            self.slow.discard(batch)

    def _empty_backlog(self) -> list[Task]:
        """Take everything that is queued, while more may be queued: it cannot be iterated over."""
        return [self.backlog.popleft() for _ in range(len(self.backlog))]

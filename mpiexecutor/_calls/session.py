"""Calls that are waited for, by number, and what each executor has of them: no MPI, no threads. The caller holds the lock."""

from collections import deque
from collections.abc import Container, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mpiexecutor._script.state import State

from .functions import Function
from .messages import Call

_RECEIVERS = 3  # that may die of a call before they begin it


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
    """What the pump knows of one executor."""

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

    def tasks_in(self, messages: Container[int]) -> list[Task]:
        """Give those without an outcome that went with one of these messages last."""
        return [task for task in self.sent.values() if task.batch and task.batch.number in messages]

    def take_back(self, tasks: Sequence[Task]) -> None:
        """Put tasks that were sent, and not begun, before all others."""
        for task in tasks:
            self.sent.pop(task.number, None)
        self.backlog.extendleft(reversed(tasks))

    def drop_unsent(self) -> list[Task]:
        """Give up the tasks that were never sent; give them."""
        waiting = self._empty_backlog()
        self.backlog.extendleft(task for task in reversed(waiting) if task.batch is not None)
        return [task for task in waiting if task.batch is None]

    def drop_all(self) -> list[Task]:
        """Give up every task; give them, who are unsettled until they are settled."""
        waiting = self._empty_backlog()
        tasks = [*self.sent.values(), *waiting]
        self.unsettled += len(waiting)
        self.sent.clear()
        self.under_way.clear()
        self.slow.clear()
        return tasks

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

    def _empty_backlog(self) -> list[Task]:
        """Take everything that is queued, while more may be queued: it cannot be iterated over."""
        return [self.backlog.popleft() for _ in range(len(self.backlog))]

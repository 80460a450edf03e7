"""The calls of one executor that have no outcome yet. No MPI, no threads: the caller holds the scheduler's lock."""

from collections import deque
from collections.abc import Container, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from mpiexecutor._calls.functions import Function
from mpiexecutor._calls.messages import Call, Outcome
from mpiexecutor._script.state import State

_number_of = attrgetter("number")
_RECEIVERS = 3  # workers that may die after they received a call and before they began it
_REFUSALS = 20  # times that a worker of another session is refused, before one is taken
_WEIGHT = 0.25  # of the newest duration in the expected one


def slim_future() -> Future[Any]:
    """Return a future of 900 bytes instead of 1,600, while no thread waits for it: a script may have a million of them.

    The difference is a deque with room for 64 waiting threads. Its name is private to Python; a Python without it ignores what is
    set here.
    """
    future: Future[Any] = Future()
    future._condition._waiters = []  # type: ignore[attr-defined]  # noqa: SLF001
    return future


@dataclass(slots=True, eq=False)
class Task:
    """The record of a call that has no outcome yet. It keeps the pickled call, which may be sent again."""

    number: int
    future: Future[Any]
    call: Call
    size: int  # of it, in bytes
    kind: object  # calls of one kind are expected to take equally long
    function: Function | str | None = None  # that the call refers to: workers may ask for it as long as this does, too
    state: State | None = None  # the same for the state of the script's globals
    batch: "Batch | None" = None  # the message that it was sent with last


@dataclass(slots=True, eq=False, weakref_slot=True)
class Batch:
    """The tasks of one message. Nothing refers to it any more once they have an outcome, or were sent again."""

    calls: tuple[int, ...]  # their numbers, in order
    left: int  # tasks without an outcome that were not sent again
    number: int | None = None  # of the message in the work channel; None until it is put


@dataclass(slots=True, eq=False)
class Session:
    """The scheduler's record of one executor. Only the methods here change the counters."""

    number: int
    limit: int  # most messages under way at a time
    initializer: Function | None
    retries: int = 0  # how often a call runs again if its worker died
    task_timeout: float = 0.0  # seconds that a call may run; 0: any time
    max_pending: int | None = None  # calls without an outcome at which submit blocks
    backlog: deque[Task] = field(default_factory=deque)  # not sent, in order; can be cancelled. Submit appends without the lock
    sent: dict[int, Task] = field(default_factory=dict)  # without an outcome
    unsettled: int = 0  # tasks that were sent, and whose futures are not settled
    under_way: set[Batch] = field(default_factory=set)  # messages in the work channel or at a worker
    seen: frozenset[Batch] = frozenset()  # messages that were under way at the last look,
    slow: set[Batch] = field(default_factory=set)  # and those that were at the look before, too
    deaths: dict[int, int] = field(default_factory=dict)  # workers that died with a call, by its number
    refusals: int = 0  # how often a worker was refused that runs the calls of another executor
    ranks: set[int] | None = None  # the workers that run its calls: the first that asked; None: all
    closed: str = ""  # why submit raises RuntimeError; empty: it does not
    broken: str = ""  # why every call fails; empty: they do not
    broken_cause: BaseException | None = None

    @property
    def idle(self) -> bool:
        return not self.backlog and not self.unsettled

    @property
    def is_full(self) -> bool:
        """Whether submit blocks: `max_pending` is reached, and the session is open."""
        most = self.max_pending
        if most is None or self.closed or self.broken or len(self.backlog) + self.unsettled < most:
            return False
        return self.unsettled + sum(not task.future.cancelled() for task in list(self.backlog)) >= most

    def next_batch(self, most: int, most_bytes: int, seconds: dict[object, float], most_seconds: float) -> list[Task]:
        """Take the next tasks for one message: several only if they are expected to be short, `most_seconds` together."""
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
        """Note that these tasks are sent in one message."""
        batch = Batch(tuple(map(_number_of, tasks)), len(tasks))
        self.unsettled += len(tasks)
        for task in tasks:
            task.batch = batch
            self.sent[task.number] = task
        self.under_way.add(batch)
        return batch

    def see_who_is_slow(self) -> None:
        """Look which messages are under way, and note those that were at the last look, too."""
        self.slow, self.seen = self.under_way & self.seen, frozenset(self.under_way)

    def tasks_in(self, messages: Container[int]) -> list[Task]:
        """Return the tasks without an outcome that were sent with one of these messages last."""
        return [task for task in self.sent.values() if task.batch and task.batch.number in messages]

    def tasks_of(self, batch: Batch) -> list[Task]:
        """Return the tasks without an outcome that were sent with this message last."""
        return [task for number in batch.calls if (task := self.sent.get(number)) and task.batch is batch]

    def take_outcomes(self, outcomes: Sequence[Outcome], expected: dict[object, float]) -> list[tuple[Task, Outcome]]:
        """Remove the tasks that have an outcome, and return them with it. They count as unsettled until `note_settled`.

        Update in `expected` the seconds that calls of their kinds are expected to run.
        """
        found = []
        for outcome in outcomes:
            seconds = outcome[1]
            task = self.sent.pop(outcome[0], None)
            if task is not None:
                found.append((task, outcome))
                self._leave_batch(task)
                before = expected.get(task.kind, seconds)
                expected[task.kind] = before + _WEIGHT * (seconds - before)
        return found

    def lose(self, tasks: Sequence[Task]) -> None:
        """Remove tasks that have failed. They count as unsettled until `note_settled`."""
        for task in tasks:
            del self.sent[task.number]
            self._leave_batch(task)

    def drop(self, tasks: Sequence[Task]) -> None:
        """Remove tasks that could not be sent. They do not count as unsettled any more."""
        self.lose(tasks)
        self.unsettled -= len(tasks)

    def take_back(self, tasks: Sequence[Task]) -> None:
        """Queue tasks that were sent, and are to be sent again, before all others."""
        self.drop(tasks)
        self.backlog.extendleft(reversed(tasks))

    def note_settled(self, count: int) -> None:
        """Note that the futures of so many tasks are settled."""
        self.unsettled -= count

    def admit(self, rank: int, lost: AbstractSet[int], *, others_are_free: bool) -> bool:
        """Whether a worker may run calls of this session: the first that ask may, up to `limit` that live.

        `others_are_free` says that this worker runs calls of another session, and that there are workers that do not.
        """
        if self.ranks is None or rank in self.ranks:
            return True
        if len(self.ranks - lost) >= self.limit:
            return False
        if others_are_free and self.refusals < _REFUSALS:  # sessions take different workers, unless the free ones are busy
            self.refusals += 1
            return False
        self.ranks.add(rank)
        return True

    def close(self, reason: str) -> None:
        """Take no more calls. The first reason counts. No lock is needed."""
        self.closed = self.closed or reason

    def drop_unsent(self) -> list[Task]:
        """Remove the tasks that were never sent, and return them."""
        waiting = self._empty_backlog()
        self.backlog.extendleft(task for task in reversed(waiting) if task.batch is not None)
        return [task for task in waiting if task.batch is None]

    def break_off(self, reason: str, cause: BaseException | None) -> list[Task]:
        """Remove all tasks, and return them. They count as unsettled until `note_settled`. Later ones are refused."""
        self.broken_cause, self.broken = cause, reason
        waiting = self._empty_backlog()
        tasks = [*self.sent.values(), *waiting]
        self.unsettled += len(waiting)
        self.sent.clear()
        self.under_way.clear()
        self.slow.clear()
        return tasks

    def disown(self, reason: str) -> None:
        """In a forked child: forget all calls, which are the parent's."""
        self.closed = reason
        self.sent.clear()
        self.backlog.clear()
        self.unsettled = 0

    def is_to_be_run_again(self, task: Task, *, begun: bool) -> bool:
        """Count that a worker died with a task. One that was not begun runs again, but not for ever: it may kill receivers."""
        deaths = self.deaths[task.number] = self.deaths.get(task.number, 0) + 1
        return deaths <= self.retries + (0 if begun else _RECEIVERS)

    def withdraw(self, task: Task) -> bool:
        """Remove a task from the backlog. Return False if it was sent, or dropped, meanwhile."""
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
        """Remove and return what is queued. More may be queued meanwhile, so the deque is not iterated over."""
        return [self.backlog.popleft() for _ in range(len(self.backlog))]

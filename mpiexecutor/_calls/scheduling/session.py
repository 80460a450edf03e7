"""The calls of one executor that have no outcome yet. No MPI, no threads: the caller holds the scheduler's lock."""

from collections import deque
from collections.abc import Container, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar

from mpiexecutor._calls.functions import Function
from mpiexecutor._calls.messages import Call, Outcome, Row, Value
from mpiexecutor._script.state import State

from .series import Batch, Block, Place, Run, Series

Settled = tuple[Future[Any] | Place, Outcome]
_number_of, _count_of = attrgetter("number"), attrgetter("count")
_RECEIVERS = 3  # workers that may die after they received a call and before they began it
_REFUSALS = 20  # times that a worker of another session is refused, before one is taken
_WEIGHT = 0.25  # of the newest duration in the expected one


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
    count: ClassVar[int] = 1  # calls without an outcome; a block may have several


@dataclass(slots=True, eq=False)
class Backlog:
    """The calls of one executor that wait. They can be cancelled; a series is here once for each call."""

    backlog: deque[Task | Block | Series] = field(default_factory=deque, kw_only=True)  # submit and map append without the lock

    def next_batch(self, most: int, most_bytes: int, seconds: dict[object, float], most_seconds: float) -> list[Task]:
        """Take the next tasks for one message: several only if they are expected to be short, `most_seconds` together."""
        batch: list[Task] = []
        size, expected = 0, 0.0
        while self.backlog and len(batch) < most and isinstance(task := self.backlog[0], Task):
            more_size = size + task.size
            more_expected = expected + seconds.get(task.kind, most_seconds)
            if batch and (more_size > most_bytes or more_expected > most_seconds) and not task.future.cancelled():
                break
            self.backlog.popleft()
            if not task.future.cancelled() if task.batch else task.future.set_running_or_notify_cancel():  # else it was cancelled
                batch.append(task)
                size, expected = more_size, more_expected
        return batch

    def next_block(self, number: int, most: int, most_bytes: int) -> Block | None:
        """Take the next calls of a map for one message; None if they were cancelled. They have numbers from `number` on."""
        first = self.backlog[0]
        if isinstance(first, Block):  # which was sent before
            self.backlog.popleft()
            if len(first.rows) > most:
                self.backlog.appendleft(first.split(most))
            return None if first.future.cancelled() else first
        assert isinstance(first, Series)
        cancelled = first.future.cancelled()
        waiting_rows = min(len(self.backlog), len(first.rows))  # rows are appended first
        rows = [first.rows.popleft() for _ in range(waiting_rows if cancelled else min(most, waiting_rows))]
        waiting = [self.backlog.popleft() for _ in rows]
        if waiting.count(first) != len(rows) or sum(map(len, rows)) >= most_bytes:
            count = _how_many(first, waiting, rows, most_bytes)
            self.backlog.extendleft(reversed(waiting[count:]))
            first.rows.extendleft(reversed(rows[count:]))
            del rows[count:]
        return None if cancelled else first.take(number, rows)

    def withdraw(self, task: Task | Series) -> bool:
        """Remove a task from the backlog, or the newest call of a series. Return False if it was sent, or dropped, meanwhile."""
        try:
            self.backlog.remove(task)
        except ValueError:
            return False
        if isinstance(task, Series):
            task.rows.pop()
        return True

    def drop_unsent(self) -> list[Task | Series]:
        """Remove the tasks and series that were never sent, and return them."""
        waiting = self._empty_backlog()
        self.backlog.extendleft(each for each in reversed(waiting) if not isinstance(each, Series) and each.batch is not None)
        return list(
            dict.fromkeys(each for each in waiting if isinstance(each, Series) or (isinstance(each, Task) and each.batch is None))
        )

    def _empty_backlog(self) -> list[Task | Block | Series]:
        """Remove and return what is queued. More may be queued meanwhile, so the deque is not iterated over."""
        return [self.backlog.popleft() for _ in range(len(self.backlog))]


@dataclass(slots=True, eq=False)
class Session(Backlog):
    """The scheduler's record of one executor. Only the methods here change the counters."""

    number: int
    limit: int  # most messages under way at a time
    initializer: Function | None
    retries: int = 0  # how often a call runs again if its worker died
    task_timeout: float = 0.0  # seconds that a call may run; 0: any time
    max_pending: int | None = None  # calls without an outcome at which submit blocks
    per_child: int | None = None  # calls that a child process runs at the most, 0: any number; None: workers run them themselves
    sent: dict[int, Task | Block] = field(default_factory=dict)  # without an outcome, by the number of the first call
    unread: dict[int, Block] = field(default_factory=dict)  # calls of maps whose outcomes were lost with their workers, by number
    sent_messages: int = 0
    unsettled: int = 0  # calls that were sent, and whose futures are not settled
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

    def send(self, tasks: Sequence[Task | Block]) -> Batch:
        """Note that these tasks are sent in one message."""
        self.sent_messages += 1
        batch = Batch(self.sent_messages, tuple(map(_number_of, tasks)), len(tasks))
        self.unsettled += sum(map(_count_of, tasks))
        for task in tasks:
            task.batch = batch
            self.sent[task.number] = task
        self.under_way.add(batch)
        return batch

    def see_slow_messages(self) -> None:
        """Look which messages are under way, and note those that were at the last look, too."""
        self.slow, self.seen = self.under_way & self.seen, frozenset(self.under_way)

    def tasks_in(self, messages: Container[int]) -> list[Task | Block]:
        """Return the tasks without an outcome that were sent with one of these messages last."""
        return [task for task in self.sent.values() if task.batch and task.batch.number in messages]

    def tasks_of(self, batch: Batch) -> list[Task | Block]:
        """Return the tasks without an outcome that were sent with this message last."""
        return [task for number in batch.calls if (task := self.sent.get(number)) and task.batch is batch]

    def has(self, number: int) -> bool:
        """Return whether a call that was sent has no outcome."""
        waiting = (task for task in list(self.backlog) if isinstance(task, Task) and task.number == number)
        return number in self.sent or any(task.batch is not None for task in waiting)

    def tasks_of_serial(self, serial: int) -> list[Task | Block]:
        """Return the tasks without an outcome that were sent with the message of this number last."""
        return [task for batch in self.under_way if batch.serial == serial for task in self.tasks_of(batch)]

    def take_outcomes(self, outcomes: Sequence[Outcome], expected: dict[object, float]) -> list[Settled]:
        """Remove the tasks that have an outcome; return it with their futures. They count as unsettled until `note_settled`.

        Update in `expected` the seconds that calls of their kinds are expected to run.
        """
        found: list[Settled] = []
        for outcome in outcomes:
            number, seconds, *_ = outcome
            task = self.sent.get(number)
            if isinstance(task, Task):
                del self.sent[number]
                found.append((task.future, outcome))
                self._leave_batch(task)
                _learn(expected, task.kind, seconds, 1)
            elif (block := self._block_due(number)) is not None:
                found.append((block.future, outcome))  # of a call of a map that goes alone, as it is long
                self._note_done(block, [None], seconds, expected)
        return found

    def take_values(self, block: Block, position: int, values: list[Value], seconds: float, expected: dict[object, float]) -> Run:
        """Note outcomes of calls of a block, from a position on, as `take_outcomes` does. Return those that are new.

        Some of them may be known from the status page of a failed worker.
        """
        new = values[block.done - position :] if position < block.done else values
        run = Run(block.series.runs, block.index + block.done, new)
        self._note_done(block, new, seconds * len(new) / len(values), expected)
        return run

    def take_held(self, held: Sequence[tuple[int, Value]], expected: dict[object, float]) -> list[Run]:
        """Note outcomes of calls of maps that a failed worker held, by their numbers."""
        runs: list[Run] = []
        for number, value in held:
            if (block := self._block_due(number)) is not None:
                runs.append(self.take_values(block, block.done, [value], expected.get(block.kind, 0.0), expected))
        return runs

    def set_aside(self, number: int) -> None:
        """Note that the outcome of a call of a map was lost with its worker. Those behind it may have outcomes."""
        if (block := self._block_due(number)) is not None:
            self.unread[number] = Block(block.series, number, block.index + block.done, [block.rows[block.done]])
            block.done += 1
            if not block.count:
                self.lose([block])

    def _block_with(self, number: int) -> Block | None:
        """Return the block that was sent and has the call with this number."""
        return next((task for task in self.sent.values() if isinstance(task, Block) and task.has(number)), None)

    def _block_due(self, number: int) -> Block | None:
        """Return that block if the outcome of this call is its next one."""
        block = self._block_with(number)
        return block if block is not None and number == block.number + block.done else None

    def _note_done(self, block: Block, values: list[Value], seconds: float, expected: dict[object, float]) -> None:
        block.done += len(values)
        if values:
            _learn(expected, block.kind, seconds / len(values), len(values))
        if not block.count:
            self.lose([block])

    def lose(self, tasks: Sequence[Task | Block]) -> None:
        """Remove tasks that have failed, or are done. Their calls count as unsettled until `note_settled`."""
        for task in tasks:
            del self.sent[task.number]
            self._leave_batch(task)

    def drop(self, tasks: Sequence[Task | Block]) -> None:
        """Remove tasks that could not be sent. They do not count as unsettled any more."""
        self.lose(tasks)
        self.unsettled -= sum(map(_count_of, tasks))

    def take_back(self, tasks: Sequence[Task | Block]) -> None:
        """Queue tasks that were sent, and are to be sent again, before all others; of blocks the calls without an outcome."""
        self.drop(tasks)
        self.backlog.extendleft(task if isinstance(task, Task) else task.split(task.done) for task in reversed(tasks))

    def take_back_from(self, number: int) -> Block | None:
        """Do that with the calls of a block from this one on. Return the block; None if there is none with it."""
        block = self._block_with(number)
        if block is not None:
            self.requeue([block.split(number - block.number)])
            if not block.count:
                self.lose([block])
        return block

    def requeue(self, blocks: Sequence[Block]) -> None:
        """Queue parts of blocks that were sent, before all others."""
        self.unsettled -= sum(map(_count_of, blocks))
        self.backlog.extendleft(block for block in reversed(blocks) if block.count)

    def note_settled(self, count: int) -> None:
        """Note that the futures of `count` tasks are settled."""
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
        """Accept no more calls. The first reason counts. No lock is needed."""
        self.closed = self.closed or reason

    def break_off(self, reason: str, cause: BaseException | None) -> tuple[list[Task | Block | Series], int]:
        """Remove all that is there, and return it, and the number of its calls. They count as unsettled until `note_settled`.

        Later ones are refused.
        """
        self.broken_cause, self.broken = cause, reason
        waiting = self._empty_backlog()
        sent = [*self.sent.values(), *self.unread.values()]
        tasks = [*sent, *dict.fromkeys(waiting)]
        count = sum(map(_count_of, [*sent, *waiting]))
        self.unsettled += sum(map(_count_of, waiting))
        self.sent.clear()
        self.unread.clear()
        self.under_way.clear()
        self.slow.clear()
        return tasks, count

    def disown(self, reason: str) -> None:
        """In a forked child: forget all calls, which are the parent's."""
        self.closed = reason
        self.sent.clear()
        self.backlog.clear()
        self.unsettled = 0

    def is_to_be_run_again(self, task: Task | Block, *, begun: bool) -> bool:
        """Count that a worker died with a task. One that was not begun runs again, but not for ever: it may kill receivers."""
        deaths = self.deaths[task.number] = self.deaths.get(task.number, 0) + 1
        return deaths <= self.retries + (0 if begun else _RECEIVERS)

    def _leave_batch(self, task: Task | Block) -> None:
        batch = task.batch
        assert batch is not None
        batch.left -= 1
        if batch.left == 0:
            self.under_way.discard(batch)
            self.slow.discard(batch)


def _learn(expected: dict[object, float], kind: object, seconds: float, count: int) -> None:
    """Update the expected seconds of calls of a kind by `count` calls, which took `seconds` each."""
    before = expected.get(kind, seconds)
    expected[kind] = before + (1 - (1 - _WEIGHT) ** count) * (seconds - before)


def _how_many(series: Series, waiting: Sequence[object], rows: Sequence[Row], most_bytes: int) -> int:
    """Return how many of the calls that wait are one behind the other of this series, and have few bytes."""
    count = size = 0
    for each, row in zip(waiting, rows, strict=True):
        if each is not series or size >= most_bytes:
            break
        count += 1
        size += len(row)  # of a tuple its parts: they are short
    return count

"""The calls of maps on the root: they wait in a series, are sent in blocks, and their results go to an iterator in runs.

A map has no futures. The only step for each of its calls is to append the arguments to a deque.

Invariants
    The backlog has a series as many times as it has calls that wait: calls of maps and others are sent in the order in which they
    came.
    A worker runs the calls of a block in order, so those that have an outcome are the first ones: `done` is their number.
    The runs of a map do not overlap, and together are all of its calls, unless it ends early.
"""

import time
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from queue import Empty
from typing import Any, ClassVar, NamedTuple

from mpiexecutor._calls.functions import Function
from mpiexecutor._calls.messages import Row, Value
from mpiexecutor._script.state import State
from mpiexecutor._util.inbox import Inbox


class Raised(NamedTuple):
    """Stands in a run for the result of a call that has failed."""

    error: BaseException


class Runs:
    """The results of a map on their way to its iterator: runs of consecutive ones, with the index of the first."""

    def __init__(self) -> None:
        self._come: Inbox[tuple[int, list[Any]]] = Inbox()
        self._early: dict[int, list[Any]] = {}  # runs that came before it was their turn, by index
        self.closed = False  # the iterator has ended

    def put(self, index: int, values: list[Any]) -> None:
        """Add the results of the calls from this index on."""
        if not self.closed:
            self._come.put((index, values))

    def next(self, index: int, deadline: float | None) -> list[Any]:
        """Return the run that begins at this index. Wait for it; TimeoutError if it is not there in time."""
        while index not in self._early:
            first, values = self._get(deadline)
            self._early[first] = values
        return self._early.pop(index)

    def any(self, deadline: float | None) -> list[Any]:
        """Return the run that came first. Wait for one; TimeoutError if there is none in time."""
        return self._get(deadline)[1]

    def _get(self, deadline: float | None) -> tuple[int, list[Any]]:
        try:
            return self._come.get(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            raise TimeoutError from None

    def close(self) -> None:
        """Drop all results, those to come, too."""
        self.closed = True


class Run(NamedTuple):
    """Outcomes of consecutive calls of a map, as they have come from the worker."""

    runs: Runs
    first: int  # its index in the map
    values: list[Value]


class Place:
    """The place of one call in the results of its map; for the scheduler it is what a future is for another call."""

    __slots__ = ("_index", "_runs")

    def __init__(self, runs: Runs, index: int) -> None:
        self._runs = runs
        self._index = index

    def set_result(self, value: Any) -> None:
        self._runs.put(self._index, [value])

    def set_exception(self, error: BaseException) -> None:
        """Fail the call. The iterator ends with its first error, so that no call behind it needs one."""
        self._runs.put(self._index, [Raised(error)])

    def cancel(self) -> bool:
        self.set_exception(CancelledError())
        return False  # no thread waits to be told

    def cancelled(self) -> bool:
        return self._runs.closed

    def set_running_or_notify_cancel(self) -> bool:
        return not self._runs.closed

    def running(self) -> bool:
        return True


@dataclass(slots=True, eq=False)
class Series:
    """Calls of a map that follow one another, have one function and one state, and wait."""

    runs: Runs
    kind: object  # as of a Task, like the next two
    function: Function | str | None
    state: State | None
    index: int  # of the first that waits, in the map
    rows: deque[Row] = field(default_factory=deque)
    count: ClassVar[int] = 1  # calls, each time that it is in the backlog

    @property
    def future(self) -> Place:
        """The place of the first that waits."""
        return Place(self.runs, self.index)

    def take(self, number: int, rows: list[Row]) -> "Block":
        """Make a block of these rows, which were the first that wait."""
        block = Block(self, number, self.index, rows)
        self.index += len(rows)
        return block


@dataclass(slots=True, eq=False, weakref_slot=True)
class Batch:
    """The tasks of one message. Once they have an outcome, or were sent again, nothing refers to it for long."""

    serial: int  # of the message, among all of the session
    calls: tuple[int, ...]  # their numbers, in order
    left: int  # tasks without an outcome that were not sent again
    number: int | None = None  # of the message in the work channel; None until it is put


@dataclass(slots=True, eq=False)
class Block:
    """Calls of a map that one worker runs. It keeps their arguments: those without an outcome may be sent again."""

    series: Series
    number: int  # of the first call; the others have the numbers that follow
    index: int  # of the first call, in the map
    rows: list[Row]
    done: int = 0  # calls that have an outcome
    batch: Batch | None = None  # the message that it was sent with last

    @property
    def kind(self) -> object:
        return self.series.kind

    @property
    def count(self) -> int:
        """The number of calls without an outcome."""
        return len(self.rows) - self.done

    @property
    def future(self) -> Place:
        """The place of the first call without an outcome."""
        return Place(self.series.runs, self.index + self.done)

    def has(self, number: int) -> bool:
        """Whether it has the call with this number."""
        return self.number <= number < self.number + len(self.rows)

    def split(self, at: int) -> "Block":
        """Keep the calls before the one at this position; return a block of the others."""
        rest = Block(self.series, self.number + at, self.index + at, self.rows[at:], max(0, self.done - at), self.batch)
        del self.rows[at:]
        return rest

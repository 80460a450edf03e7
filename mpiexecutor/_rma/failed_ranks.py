"""The ranks of the job that were reported to this process as failed, and how its channels recover.

    a reporter ──> FailedRanks.report ──> recovery thread: recovers every channel that this rank hosts ──> its next operation raises

A channel itself detects no failure: without a reporter, MPI ends the job at the first one. With 'python -m mpiexecutor --spmd' the
supervisors report every failure to every rank (see _cli/spmd.py).

A channel cannot be recovered while a living rank is stopped in the middle of a message: the host's next operation raises an error,
and the recovery is tried again. The job is ended if recovery can never succeed: if a rank failed inside MPI, perhaps with a lock of
the window; if a rank fails during a collective operation; or if the host of a channel fails and ranks on other nodes use it.
"""

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, Protocol

from mpiexecutor._util.inbox import Inbox
from mpiexecutor._util.seconds import WEDGED

from .recovery_thread import Watchdog, start_recovery_thread

logger = logging.getLogger("mpiexecutor")


class Listener(Protocol):
    """An object that has to know which ranks have failed."""

    def note_failures(self) -> bool:
        """Recover from the ranks that have failed since the last call; return False if that has to be tried again."""


class FailedRanks:
    """The ranks that were reported to this process. None is ever removed: see _liveness/recovery.py."""

    def __init__(self) -> None:
        self.are_reported = False  # there is a reporter
        self._end_job: Callable[[str], None] = logger.critical  # called with the reason
        self._ends: dict[int, str] = {}  # by rank of MPI.COMM_WORLD: a text with host, pid and how it ended
        self._silent: set[int] = set()  # those of them that perhaps live
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._kept: list[Listener] = []
        self._needed: list[str] = []  # collective operations that are going on: no rank may fail
        self._lock = threading.Lock()
        self._news: Inbox[bool | None] = Inbox()  # True: there is something to recover
        self.watchdog = Watchdog()  # the reporting thread looks at it

    def start_recovery(self, end_job: Callable[[str], None]) -> None:
        """Start the recovery thread: every failure will be reported. Called on all ranks, before any channel is made."""
        self._end_job = end_job
        self.are_reported = True
        start_recovery_thread(self._news, self._recover)

    def report(self, rank: int, end: str, silent: bool = False) -> None:
        """Note that a rank of MPI.COMM_WORLD has failed. `end` is a text with its host, pid and how it ended.

        `silent`: it was given up, and perhaps lives. A second report has no effect, unless it reports the death of a silent rank.
        """
        with self._lock:
            if rank in self._ends and (silent or rank not in self._silent):
                return
            if silent:
                self._silent.add(rank)
            else:
                self._silent.discard(rank)
            self._ends[rank] = end
            needed = list(self._needed)
        if needed:
            self._end_for(end, needed[-1])
        self._news.put(True)

    def any_known(self) -> bool:
        """Return whether any rank of the job has failed."""
        return bool(self._ends)

    def end_of(self, rank: int) -> str | None:
        """Return the text about a failed rank of MPI.COMM_WORLD; None if no failure of it was reported."""
        return self._ends.get(rank)

    def is_silent(self, rank: int) -> bool:
        """Return whether a failed rank perhaps lives."""
        return rank in self._silent

    def add_listener(self, listener: Listener) -> None:
        """Have a listener called after each failure, as long as it is referenced elsewhere."""
        if self.are_reported:
            with self._lock:
                self._listeners.add(listener)
            self._news.put(True)  # about earlier failures

    def keep(self, listener: Listener) -> None:
        """Have a listener called until the process ends, even if nothing else refers to it."""
        self._kept.append(listener)

    @contextlib.contextmanager
    def all_needed(self, what: str, failed: "CommFailedRanks | None" = None) -> Iterator[None]:
        """Run a collective operation. If a rank fails meanwhile the job is ended, as the others would wait for ever.

        `failed` are the failed ranks of its communicator: if there are any already, the job is ended, too.
        """
        with self._lock:
            self._needed.append(what)
        if failed:
            self._end_for(failed.ends(failed), what)
        try:
            yield
        finally:
            with self._lock:
                self._needed.remove(what)

    def end_job(self, reason: str) -> None:
        """End the job, for a reason that is logged."""
        self._end_job(reason)

    def _end_for(self, end: str, what: str) -> None:
        self._end_job(f"{end}, during {what}, which takes all ranks: the job is ended")

    def _recover(self, _: bool) -> bool:
        """Call all listeners; return False if some are to be called again."""
        with self._lock:
            listeners = list(self._listeners) if self._ends else []
        return not [one for one in listeners if not self._call(one)]

    def _call(self, one: Listener) -> bool:
        try:
            with self.watchdog.limit(WEDGED, lambda: self._end_job("a rank has died inside MPI, holding a lock: the job is ended")):
                return one.note_failures()
        except Exception as error:
            logger.exception("a channel was not recovered after a failure")
            self._end_job(f"a channel cannot be recovered after a failure: {error}")
            return True


class CommFailedRanks(Collection[int]):
    """The failed ranks of a communicator, by its numbers. They become more."""

    def __init__(self, ranks: Sequence[int]) -> None:
        """`ranks` are the communicator's ranks in MPI.COMM_WORLD, in order."""
        self._ranks = ranks

    def __iter__(self) -> Iterator[int]:
        return (index for index, rank in enumerate(self._ranks) if FAILED_RANKS.end_of(rank))

    def __contains__(self, index: object) -> bool:
        return any(index == other for other in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def silent(self) -> list[int]:
        """The failed ranks that perhaps live."""
        return [index for index, rank in enumerate(self._ranks) if FAILED_RANKS.is_silent(rank)]

    def ends(self, indices: Collection[int]) -> str:
        """Return the texts about some of them."""
        return "; ".join(str(FAILED_RANKS.end_of(self._ranks[index])) for index in sorted(indices))


FAILED_RANKS: Final = FailedRanks()  # of this process

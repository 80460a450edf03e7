"""Which ranks of the job have died, as far as this process is told, and what its channels make of that.

    somebody who knows ──> tell ──> a thread: settles every channel that this rank hosts ──> its next operation: ChannelBroken

The channel itself notices nobody's death: without somebody who tells, MPI ends the job at the first. Those who do tell are the
supervisors, for a script that 'python -m mpiexecutor --spmd' runs (see mpiexecutor/_cli/spmd.py). They tell every rank, of
every death.

A rank that lives and was stopped in the middle of a message keeps a channel from being settled: the host is told so, again and
again. A rank that died inside MPI may hold a lock of the window, which nobody can take any more: then the job is ended, with a
word. So it is if a rank dies in the middle of what all ranks do together, or on another node as the host of a channel.
"""

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, Protocol

from mpiexecutor._util.inbox import Inbox
from mpiexecutor._util.seconds import WEDGED as _WEDGED

from .recovery_thread import RecoveryThread, Watchdog

logger = logging.getLogger("mpiexecutor")


class Bereaved(Protocol):
    """What is told of deaths."""

    def lose(self) -> bool:
        """Take in whoever has died since; False if that has to be tried again."""


class Deaths:
    """Those that this process was told of."""

    def __init__(self) -> None:
        self.are_told = False  # whether anybody would
        self._end_job: Callable[[str], None] = logger.critical  # called with the reason
        self._ends: dict[int, str] = {}  # by rank of MPI.COMM_WORLD: who it was, and how it ended
        self._silent: set[int] = set()  # of these: perhaps they live
        self._bereaved: weakref.WeakSet[Bereaved] = weakref.WeakSet()
        self._kept: list[Bereaved] = []
        self._needed: list[str] = []  # what all ranks do together now: none of them may die
        self._lock = threading.Lock()
        self._news: Inbox[bool | None] = Inbox()  # there is something to settle
        self.watchdog = Watchdog()  # the thread that tells looks at it

    def will_be_told(self, end_job: Callable[[str], None]) -> None:
        """Note that somebody will tell, of every death: on every rank alike, and before any channel is made."""
        self._end_job = end_job
        self.are_told = True
        RecoveryThread(self._news, self._settle)

    def tell(self, rank: int, end: str, silent: bool = False) -> None:
        """Take in that a rank of MPI.COMM_WORLD has died; `end` says who it was, and how it ended. `silent`: perhaps it lives.

        It may be told again, which changes nothing; but that it is dead indeed does.
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
        """Whether any rank of the job has died."""
        return bool(self._ends)

    def end_of(self, rank: int) -> str | None:
        """Say who a rank of MPI.COMM_WORLD was, and how it ended; None if it lives, as far as this process is told."""
        return self._ends.get(rank)

    def is_silent(self, rank: int) -> bool:
        """Whether one of those perhaps lives."""
        return rank in self._silent

    def attend(self, bereaved: Bereaved) -> None:
        """Have somebody told from now on, as long as it is there."""
        if self.are_told:
            with self._lock:
                self._bereaved.add(bereaved)
            self._news.put(True)  # of those who have died before

    def keep(self, bereaved: Bereaved) -> None:
        """Have somebody told until the end, even if nobody else wants it any more."""
        self._kept.append(bereaved)

    @contextlib.contextmanager
    def all_needed(self, what: str, dead: "Dead | None" = None) -> Iterator[None]:
        """Do something that all ranks do together: should one die meanwhile the job is ended, as the others wait for ever.

        So it is if one of those, `dead`, has died since the ranks came together for it.
        """
        with self._lock:
            self._needed.append(what)
        if dead:
            self._end_for(dead.ends(dead), what)
        try:
            yield
        finally:
            with self._lock:
                self._needed.remove(what)

    def end_job(self, reason: str) -> None:
        """End the job, as nothing else can be done."""
        self._end_job(reason)

    def _end_for(self, end: str, what: str) -> None:
        self._end_job(f"{end}, during {what}, which takes all ranks: the job is ended")

    def _settle(self, _: bool) -> bool:
        """Tell all; False if some of them are to be told again."""
        with self._lock:
            bereaved = list(self._bereaved) if self._ends else []
        return not [one for one in bereaved if not self._tell_one(one)]

    def _tell_one(self, one: Bereaved) -> bool:
        try:
            with self.watchdog.limit(_WEDGED, self._end_if_stuck):
                return one.lose()
        except Exception as error:
            logger.exception("what a dead rank has left behind was not settled")
            self._end_job(f"what a dead rank has left behind cannot be settled: {error}")
            return True

    def _end_if_stuck(self) -> None:
        self._end_job("a rank has died inside MPI, holding a lock: the job is ended")


class Dead(Collection[int]):
    """The dead of a communicator, by rank there. They become more."""

    def __init__(self, ranks: Sequence[int]) -> None:
        """`ranks` are those of MPI.COMM_WORLD, in the order of the communicator."""
        self._ranks = ranks

    def __iter__(self) -> Iterator[int]:
        return (index for index, rank in enumerate(self._ranks) if DEATHS.end_of(rank))

    def __contains__(self, index: object) -> bool:
        return any(index == other for other in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def silent(self) -> list[int]:
        """Those that perhaps live."""
        return [index for index, rank in enumerate(self._ranks) if DEATHS.is_silent(rank)]

    def ends(self, indices: Collection[int]) -> str:
        """Say who some of them were, and how they ended."""
        return "; ".join(str(DEATHS.end_of(self._ranks[index])) for index in sorted(indices))


DEATHS: Final = Deaths()  # of this process

"""What ranks tell each other to become a crew, and to part: a worker reports and gets its orders, and in the end does so again.

Reports and answers are ordinary messages, polled for, so that waiting costs next to nothing, and who does not come is noticed.
"""

import contextlib
import io
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mpiexecutor._calls.outcomes import pickled
from mpiexecutor._liveness.process_manager import connection
from mpiexecutor._rma.doorbell import node_name
from mpiexecutor._script.names import LOOKUP, main_modules
from mpiexecutor._script.random_generators import STREAM, GeneratorStates
from mpiexecutor._script.surroundings import Snapshot, leave_out_rank
from mpiexecutor._util.pickling import Pickled
from mpiexecutor._util.polling import wait_for_ranks
from mpiexecutor._util.seconds import PATIENCE as _PATIENCE

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("mpiexecutor")

LOST_AFTER_VARIABLE = "MPIEXECUTOR_LOST_AFTER"
_LOST_AFTER = 30.0
_TAG = 24601  # of reports and answers


class Report(NamedTuple):
    """What a worker says of itself."""

    host: str
    pid: int
    node: str
    kept: bool  # whether it has a keeper

    @classmethod
    def of_this_process(cls, *, kept: bool) -> "Report":
        return cls(socket.gethostname(), os.getpid(), node_name(), kept)


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker has to know of its root, as long as it serves."""

    root: int
    nodes: tuple[str, ...]  # by rank
    watch: str  # the name of what listens to keepers on the root's node,
    token: str  # which they must know
    lost_after: float  # seconds of silence after which a worker on another node is given up

    @classmethod
    def of_this_process(cls, rank: int, reports: dict[int, Report]) -> "Orders":
        """Give those of the root, which has this rank, to all who have reported."""
        nodes = {rank: node_name(), **{other: said.node for other, said in reports.items()}}
        name, token = secrets.token_hex(16), secrets.token_hex(16)
        in_order = tuple(nodes[other] for other in sorted(nodes))
        return cls(rank, in_order, name, token, _lost_after())

    @property
    def far(self) -> list[int]:
        """The ranks on other nodes than the root's."""
        return [rank for rank, node in enumerate(self.nodes) if node != self.nodes[self.root]]

    def watch_of(self, rank: int) -> str:
        """Name a rank's own watch."""
        return self.watch if rank == self.root else f"{self.watch}-{rank}"

    def watchers_of(self, rank: int) -> list[int]:
        """Give the ranks that may watch over this one, the best first: those that live when it dies."""
        if rank not in self.far:
            return [self.root]
        mates = [other for other in self.far if self.nodes[other] == self.nodes[rank]]
        at = mates.index(rank)
        return mates[at + 1 :] + mates[: at + 1]


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Be a worker, and then as before: calls of an executor have surroundings of their own, and are no ranks."""
    connection()  # while the environment still says
    main, surroundings, generators = main_modules(), Snapshot(), GeneratorStates()
    stdin = sys.stdin
    with _uninterrupted(), Path(os.devnull).open() as nothing:
        leave_out_rank()
        sys.stdin = nothing  # nobody can answer what a call asks
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # what a call prints appears at once, as at a terminal
                stream.reconfigure(line_buffering=True)
        try:
            yield
        finally:
            sys.modules.update(main)
            LOOKUP.bring, STREAM.key = None, ()
            surroundings.restore()
            generators.restore()
            sys.stdin = stdin


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Leave Ctrl-C to the root. By a handler, not SIG_IGN, which the children of calls would inherit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # None: it was set by other code than Python's


def await_reports(comm: "MPI.Intracomm") -> dict[int, Report]:
    """Wait for every other rank's report, and give them by rank; say for whom if that takes long."""
    missing = _others(comm)
    reports: dict[int, Any] = {}

    def complaint() -> str:
        return (
            f"the executor on rank {comm.rank} still waits for {ranks_text(missing)}: every rank of the communicator has to make "
            "it, or must be started as a worker with 'python -m mpiexecutor'"
        )

    wait_for_ranks(lambda: _all_came(comm, missing, reports), complaint, _PATIENCE)
    return {rank: Report(*said) for rank, said in reports.items()}


def answer_reports(comm: "MPI.Intracomm", orders: Orders | None) -> None:
    """Have the ranks that have reported serve, or, without orders, go home."""
    data = pickled(orders).data
    for rank in _others(comm):
        comm.send(data, rank, _TAG)


def report(comm: "MPI.Intracomm", root: int, *, kept: bool) -> Orders | None:
    """Report to the root, and wait for its answer."""
    comm.send(tuple(Report.of_this_process(kept=kept)), root, _TAG)
    complaint = f"worker rank {comm.rank} still waits for rank {root} to make an executor"
    wait_for_ranks(lambda: comm.Iprobe(root, _TAG), lambda: complaint, 6 * _PATIENCE)
    orders = Pickled(comm.recv(source=root, tag=_TAG)).load()
    return orders if isinstance(orders, Orders) else None


def await_leavers(
    comm: "MPI.Intracomm", dead: AbstractSet[int], see_to: Callable[[AbstractSet[int]], object] = lambda _late: None
) -> None:
    """On the root: wait until all workers have left their loops, but for the dead, who may become more.

    `see_to` is called again and again with those that take long.
    """
    missing = _others(comm)
    patient_until = time.monotonic() + _PATIENCE

    def all_came() -> bool:
        missing.difference_update(dead)
        if _all_came(comm, missing, {}):
            return True
        if time.monotonic() > patient_until:
            see_to(missing)
        return False

    wait_for_ranks(all_came)


def part(comm: "MPI.Intracomm", dead: AbstractSet[int], *, whole: bool) -> None:
    """On the root: tell the workers that live whether that is all of them, so that MPI can be used as ever."""
    for rank in _others(comm) - dead:
        comm.send(whole, rank, _TAG)


def part_from_root(comm: "MPI.Intracomm", root: int) -> bool:
    """Tell the root that this worker has left its loop; whether all workers live."""
    sys.stdout.flush()
    sys.stderr.flush()
    comm.send(None, root, _TAG)
    wait_for_ranks(lambda: comm.Iprobe(root, _TAG))
    return bool(comm.recv(source=root, tag=_TAG))


def _others(comm: "MPI.Intracomm") -> set[int]:
    return set(range(comm.size)) - {comm.rank}


def _all_came(comm: "MPI.Intracomm", missing: set[int], said: dict[int, Any]) -> bool:
    """Receive a message of each rank that has sent one, and was missing; whether none is missing any more."""
    from mpiexecutor._rma.notifier import unless_dead  # noqa: PLC0415 - it knows MPI

    came = set()
    for rank in missing:
        with unless_dead():
            if (message := comm.improbe(rank, _TAG)) is not None:  # taken out: its sender may die now
                said[rank] = message.recv()
                came.add(rank)
    missing -= came
    return not missing


def _lost_after() -> float:
    text = os.environ.get(LOST_AFTER_VARIABLE, str(_LOST_AFTER))
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    logger.warning("%s is a number of seconds above 0, not %r: it is taken to be %g", LOST_AFTER_VARIABLE, text, _LOST_AFTER)
    return _LOST_AFTER


def ranks_text(ranks: Collection[int]) -> str:
    names = ", ".join(map(str, sorted(ranks)[:10]))
    more = f" and {len(ranks) - 10} more" if len(ranks) > 10 else ""  # noqa: PLR2004 - enough to see which
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}{more}"

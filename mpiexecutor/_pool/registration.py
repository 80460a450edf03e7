"""The messages between root and workers at the beginning and at the end: registrations, and the root's answers.

A worker registers with the root, which answers with the worker's configuration. At the end a worker reports that it has left its
loop, and the root answers. All of these are ordinary messages that the receiver polls for: waiting takes little CPU time, and a
rank that never registers is named in a warning.
"""

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mpiexecutor._calls.outcomes import pickled
from mpiexecutor._liveness.supervised import Supervised
from mpiexecutor._rma.doorbell import node_name
from mpiexecutor._start.process import PROCESS
from mpiexecutor._util.pickling import Pickled
from mpiexecutor._util.polling import wait_for_ranks
from mpiexecutor._util.process_end import flush_output
from mpiexecutor._util.seconds import PATIENCE, from_environment
from mpiexecutor._util.segments import is_within_reach, pid_namespace

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("mpiexecutor")

LOST_AFTER_VARIABLE = "MPIEXECUTOR_LOST_AFTER"
_LOST_AFTER = 30.0
_TAG = 24601  # of registrations and answers


class Registration(NamedTuple):
    """What a worker tells the root about itself."""

    host: str
    pid: int
    node: str
    supervised: bool  # it has a supervisor
    pid_namespace: int = 0  # 0: it cannot share memory


@dataclass(frozen=True, slots=True)
class WorkerConfiguration:
    """What a worker has to know about its root while it serves."""

    root: int
    nodes: tuple[str, ...]  # by rank
    monitor: str  # name of the root's failure monitor
    token: str  # by which supervisors prove that they belong to this pool
    lost_after: float  # seconds of silence after which a worker on another node is given up
    sharing: frozenset[int] = frozenset()  # the ranks that share memory with the root

    @classmethod
    def of_this_process(cls, rank: int, registrations: dict[int, Registration]) -> "WorkerConfiguration":
        """Make the configuration of the root, which is this process, for the workers that have registered."""
        nodes = {rank: node_name(), **{other: said.node for other, said in registrations.items()}}
        name, token = secrets.token_hex(16), secrets.token_hex(16)
        in_order = tuple(nodes[other] for other in sorted(nodes))
        sharing = frozenset(
            other
            for other, said in registrations.items()
            if nodes[other] == nodes[rank] and is_within_reach(said.pid, said.pid_namespace)
        )
        return cls(rank, in_order, name, token, _lost_after(), sharing)

    @property
    def far(self) -> list[int]:
        """The ranks on other nodes than the root's."""
        return [rank for rank, node in enumerate(self.nodes) if node != self.nodes[self.root]]

    def monitor_name(self, rank: int) -> str:
        """Return the name of a rank's own failure monitor."""
        return self.monitor if rank == self.root else f"{self.monitor}-{rank}"

    def monitoring_ranks(self, rank: int) -> list[int]:
        """Return the ranks whose monitors this rank's supervisor connects to, in order: the next if the one before has failed."""
        if rank not in self.far:
            return [self.root]
        mates = [other for other in self.far if self.nodes[other] == self.nodes[rank]]
        at = mates.index(rank)
        return mates[at + 1 :] + mates[: at + 1]


def await_registrations(comm: "MPI.Intracomm") -> dict[int, Registration]:
    """Wait for the registrations of all other ranks, and return them by rank. Log which ranks are missing if that takes long."""
    missing = _others(comm)
    registrations: dict[int, Registration] = {}

    def complaint() -> str:
        return (
            f"the executor on rank {comm.rank} still waits for {ranks_text(missing)}: every rank of the communicator has to make "
            "it, or must be started as a worker with 'python -m mpiexecutor'"
        )

    wait_for_ranks(lambda: _all_came(comm, missing, registrations), complaint, PATIENCE)
    return registrations


def answer_registrations(comm: "MPI.Intracomm", configuration: WorkerConfiguration | None) -> None:
    """Have the ranks that have registered serve; or, if `configuration` is None, end their wait."""
    data = pickled(configuration).data
    for rank in _others(comm):
        comm.send(data, rank, _TAG)


def own_supervisor() -> Supervised | None:
    """Return this rank's side of its supervisor, if it has one and does not serve yet."""
    supervisor = PROCESS.supervisor
    return None if supervisor is None or supervisor.serves else supervisor


def register(comm: "MPI.Intracomm", root: int) -> WorkerConfiguration | None:
    """Register this rank with the root, and wait for the answer; None if it is not to serve."""
    supervised = own_supervisor() is not None
    comm.send(Registration(socket.gethostname(), os.getpid(), node_name(), supervised, pid_namespace()), root, _TAG)
    complaint = f"worker rank {comm.rank} still waits for rank {root} to make an executor"
    wait_for_ranks(lambda: comm.Iprobe(root, _TAG), lambda: complaint, 6 * PATIENCE)
    configuration = Pickled(comm.recv(source=root, tag=_TAG)).load()
    return configuration if isinstance(configuration, WorkerConfiguration) else None


def await_leavers(
    comm: "MPI.Intracomm", failed: AbstractSet[int], handle_late: Callable[[AbstractSet[int]], object] = lambda _late: None
) -> None:
    """On the root: wait until all living workers have left their loops. `failed` may grow meanwhile.

    `handle_late` is called again and again with the ranks that are late.
    """
    missing = _others(comm)
    patient_until = time.monotonic() + PATIENCE

    def all_came() -> bool:
        missing.difference_update(failed)
        if _all_came(comm, missing, {}):
            return True
        if time.monotonic() > patient_until:
            handle_late(missing)
        return False

    wait_for_ranks(all_came)


def part(comm: "MPI.Intracomm", failed: AbstractSet[int], *, whole: bool) -> None:
    """On the root: tell the living workers whether they are all of them (`whole`), so that MPI can be finalised."""
    for rank in _others(comm) - failed:
        comm.send(whole, rank, _TAG)


def part_from_root(comm: "MPI.Intracomm", root: int) -> bool:
    """Tell the root that this worker has left its loop. Return whether all workers live."""
    flush_output()
    comm.send(None, root, _TAG)
    wait_for_ranks(lambda: comm.Iprobe(root, _TAG))
    return bool(comm.recv(source=root, tag=_TAG))


def _others(comm: "MPI.Intracomm") -> set[int]:
    return set(range(comm.size)) - {comm.rank}


def _all_came(comm: "MPI.Intracomm", missing: set[int], said: dict[int, Any]) -> bool:
    """Receive the messages of missing ranks that have come. Return whether no rank is missing any more."""
    from mpiexecutor._rma.notifier import unless_failed  # noqa: PLC0415 - it knows MPI

    came = set()
    for rank in missing:
        with unless_failed():
            if (message := comm.improbe(rank, _TAG)) is not None:  # taken out: its sender may die now
                said[rank] = message.recv()
                came.add(rank)
    missing -= came
    return not missing


def _lost_after() -> float:
    try:
        return from_environment(LOST_AFTER_VARIABLE, _LOST_AFTER)
    except ValueError as error:
        logger.warning("%s: it is taken to be %g", error, _LOST_AFTER)
        return _LOST_AFTER


def ranks_text(ranks: Collection[int]) -> str:
    names = ", ".join(map(str, sorted(ranks)[:10]))
    more = f" and {len(ranks) - 10} more" if len(ranks) > 10 else ""  # noqa: PLR2004 - enough to see which
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}{more}"

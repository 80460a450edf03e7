"""How root and members of a communicator join, monitor each other, and part, whether all live or not.

The supervisors on the root's node connect to the root's failure monitor. Each member on another node has its own monitor, and a
forwarder that reports to the root: see _liveness/forwarder.py. Executors and --spmd both use this.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from mpiexecutor._liveness.commands import KILL
from mpiexecutor._liveness.monitor import FailureMonitor, address_of
from mpiexecutor._liveness.process_manager import connection, leave_without_mpi
from mpiexecutor._liveness.supervised import Supervised
from mpiexecutor._start.process import PROCESS, comm_world
from mpiexecutor._util.seconds import LATE

from .registration import (
    WorkerConfiguration,
    answer_registrations,
    await_leavers,
    await_registrations,
    own_supervisor,
    part,
    part_from_root,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpi4py import MPI

    from mpiexecutor._liveness.forwarder import ControlChannel, Forwarder, ForwarderRoot
    from mpiexecutor.channel import RemoteChannel

logger = logging.getLogger("mpiexecutor")


class Root:
    """The root's side. Making it waits for the registrations of all members. For the order of collective steps see Member."""

    def __init__(self, comm: "MPI.Intracomm", root: int) -> None:
        self.registrations = await_registrations(comm)  # by rank
        self._configuration = WorkerConfiguration.of_this_process(root, self.registrations)
        PROCESS.joining = True  # until all collective steps are taken: the caller says when
        answer_registrations(comm, self._configuration)
        self.monitor = FailureMonitor(self._configuration.monitor, self._configuration.token)
        self.monitor.spans_job = comm.size == comm_world().size
        self.comm = comm.Dup()
        self._forwarder_root: ForwarderRoot | None = None
        self._stopped_since: dict[int, float] = {}  # by rank: when a member that is waited for stopped giving signs of life
        self._killed: set[int] = set()
        self.of_all = False  # all members live, and are in the last collective steps: none of them may fail now

    @property
    def share_memory(self) -> bool:
        """Whether all members share memory with the root."""
        return len(self._configuration.sharing) == len(self.registrations)

    def join(self) -> None:
        """Receive reports from other nodes, if there are any. Collective."""
        from mpiexecutor._liveness.forwarder import ControlChannel, ForwarderRoot  # noqa: PLC0415 - they know MPI

        if far := {rank: (self.registrations[rank].host, self.registrations[rank].pid) for rank in self._configuration.far}:
            self._forwarder_root = ForwarderRoot(ControlChannel(self.comm), self.monitor, far, self._configuration.lost_after)

    def await_supervisors(self) -> None:
        """Wait until the supervisors of the members have connected."""
        self.monitor.await_supervisors([rank for rank, said in self.registrations.items() if said.supervised])

    def await_leavers(self, stopped: Literal["kill", "warn", "wait"]) -> None:
        """Wait until all living members are ready to part.

        `stopped` is what happens to a member that gives no signs of life: "kill", if it has nothing else to do after this;
        "warn" in the log, if it does; "wait", if it may still be busy.
        """
        handle_late = partial(self._handle_stopped, kill=stopped == "kill")
        await_leavers(self.comm, self.monitor.failed, *(() if stopped == "wait" else (handle_late,)))

    def part(self) -> bool:
        """Part from the living members. Return whether all live, so that MPI can be finalised; then `leave` is the next step."""
        failed, ending = self.monitor.failed, self.monitor.ending
        self.of_all = not failed | ending
        self.of_all = not failed | ending  # again: a failure before the first assignment may have been noted since
        part(self.comm, failed | ending, whole=self.of_all)
        if not self.of_all:
            self.stay()
        elif self._forwarder_root is not None:
            self._forwarder_root.stop()
        return self.of_all

    def stay(self) -> None:
        """Stay a member until this process ends, as MPI cannot be finalised."""
        PROCESS.to_shut_down.append(self.monitor)

    def leave(self) -> None:
        """Free the communicator, and stop listening. Collective."""
        self.comm.Free()
        self.monitor.stop()

    def _handle_stopped(self, late: AbstractSet[int], *, kill: bool) -> None:
        """Kill late members that give no signs of life, or log each once.

        They had time for one while this process was running: the whole job may have been stopped.
        """
        now = time.monotonic()
        stopped = {rank for rank in late - self._killed if self.monitor.is_stopped(rank)}
        self._stopped_since = {rank: self._stopped_since.get(rank, now) for rank in stopped}
        for rank in [rank for rank, since in self._stopped_since.items() if now - since > LATE]:
            said = self.registrations[rank]
            member = f"rank {rank}, host {said.host}, pid {self.monitor.page_of(rank).runner or said.pid}"
            what = "it is killed" if kill else "continue it, or kill it"
            logger.warning("the worker on %s, gives no signs of life, and keeps this job from its end: %s", member, what)
            if kill:
                self._killed.add(rank)
                self.monitor.kill_on_connect(rank, KILL)
            else:
                self._stopped_since[rank] = math.inf  # logged


class Member:
    """A rank that is not the root.

    Root and members take these steps together, in this order: make this; make what uses `comm`; `join`, after which the death of a
    member does not end the job; serve; `part`; free what uses `comm`; `leave`.
    """

    def __init__(self, comm: "MPI.Intracomm", configuration: WorkerConfiguration) -> None:
        self.comm = comm.Dup()
        self.supervisor = own_supervisor()
        self._configuration = configuration
        self._control: ControlChannel | None = None
        self._forwarder: Forwarder | None = None

    def join(self) -> None:
        """Have the supervisor report this rank's failure to the root; on another node, forward the reports of supervisors."""
        from mpiexecutor._liveness.forwarder import ControlChannel, Forwarder  # noqa: PLC0415 - they know MPI

        configuration, rank = self._configuration, self.comm.rank
        far = rank in configuration.far
        # It is made before the collective step: supervisors connect to it only after that.
        monitor = FailureMonitor(configuration.monitor_name(rank), configuration.token) if far else None
        self._control = ControlChannel(self.comm) if configuration.far else None
        if monitor is not None and self._control is not None:
            self._forwarder = Forwarder(
                self._control.comm, configuration.root, monitor, configuration.lost_after, partial(_go, self.supervisor)
            )
        if self.supervisor is not None:
            monitors = [address_of(configuration.monitor_name(other)) for other in configuration.monitoring_ranks(rank)]
            self.supervisor.serve(monitors, configuration.token, rank, far=far)

    def part(self, channels: "Sequence[RemoteChannel[Any, Any]]" = ()) -> None:
        """Part from the root. If not all live, wait to be ended: MPI cannot be finalised, and an exit would end the job."""
        if not part_from_root(self.comm, self._configuration.root):
            for channel in channels:
                channel.abandon()
            self._stay()
        if self.supervisor is not None:
            self.supervisor.dismiss()
        if self._forwarder is not None:
            self._forwarder.stop()
        if self._control is not None:
            self._control.free()

    def leave(self) -> None:
        """Free the communicator. Collective."""
        self.comm.Free()

    def _stay(self) -> NoReturn:
        if self.supervisor is not None:
            self.supervisor.stay()
        while self._forwarder is not None:
            signal.pause()
        _go(self.supervisor)


def _go(supervisor: Supervised | None) -> NoReturn:
    """End this process without MPI, with success."""
    if supervisor is not None:
        supervisor.dismiss()
    leave_without_mpi(connection())
    os._exit(0)

"""python -m mpiexecutor --spmd: every rank runs the script, and survives the failure of others.

Every rank but 0 has a supervisor. A failure is reported to rank 0 as to the root of a pool, and rank 0 reports it to all others
through their supervisors. For the whole path of a failure see _liveness/recovery.py.

Two things end the job, with a message: the failure of rank 0; and an exception that a rank does not catch, or a status other
than 0, because other ranks may wait for that rank: as with 'python -m mpi4py'.
"""

import contextlib
import gc
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from queue import Empty
from typing import TYPE_CHECKING

from mpiexecutor._liveness.commands import NEWS
from mpiexecutor._liveness.supervised import Supervised
from mpiexecutor._pool.membership import Member, Root
from mpiexecutor._pool.registration import register
from mpiexecutor._rma.failed_ranks import FAILED_RANKS
from mpiexecutor._start.process import PROCESS, end_without_mpi
from mpiexecutor._util.process_end import PROCESS_END, Stage, flush_output

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("mpiexecutor")

_ROOT = 0
_ONCE_MORE, _TIMES = 1.0, 5  # seconds until failures are reported again, and how often; seconds between two looks at the watchdog
_MOST = 200  # failures in a message


def run_everywhere(comm: "MPI.Intracomm", run: Callable[[], None]) -> None:
    """Run the script on this rank, as on every other, and report failures to its channels until it ends."""
    from mpi4py import MPI  # noqa: PLC0415

    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        sys.exit("python -m mpiexecutor: --spmd needs MPI with THREAD_MULTIPLE: leave mpi4py.rc.thread_level as it is")
    FAILED_RANKS.start_recovery(_end_job)
    PROCESS_END.add(_Root(comm).close if comm.rank == _ROOT else _follow(comm), Stage.PARTING)
    process = os.getpid()
    try:
        run()
    except SystemExit as ending:
        if ending.code and os.getpid() == process:
            if not isinstance(ending.code, int):
                sys.stderr.write(f"{ending.code}\n")
            flush_output(and_wait=True)
            comm.Abort(ending.code if isinstance(ending.code, int) else 1)
        raise


class _Root:
    """Rank 0, which receives all reports of failures and forwards them."""

    def __init__(self, comm: "MPI.Intracomm") -> None:
        self._members = Root(comm, _ROOT)
        self._monitor = self._members.monitor
        self._monitor.returned = self._tell_returned
        self._members.join()
        self._members.await_supervisors()
        PROCESS.joining = False
        threading.Thread(target=self._pass_on, name="mpiexecutor reports", daemon=True).start()

    def close(self) -> None:
        """Wait until all others are done, and part from them."""
        sys.stdout.flush()
        self._members.await_leavers("wait")
        with contextlib.nullcontext() if self._monitor.failed else FAILED_RANKS.all_needed("the end of the job"):
            if self._members.part():
                self._members.comm.Barrier()  # none has a supervisor that would take the monitor's end for the root's
                self._members.leave()

    def _pass_on(self) -> None:
        """Report each failure to all living ranks, several times: the rank that forwards a report may have failed, too.

        This has its own thread, as it goes on while the recovery thread is busy, and checks that thread's watchdog.
        """
        told: list[tuple[int, str, bool]] = []
        left = 0  # times to report again
        while True:
            try:
                failure = self._monitor.failures.get(timeout=_ONCE_MORE if told else None)
            except Empty:
                FAILED_RANKS.watchdog.left()
                if not left:
                    continue
                left -= 1
            else:
                left = _TIMES
                if failure is None:
                    return
                end = f"rank {failure.rank}, host {failure.host}, pid {failure.pid}, {failure.end}"
                logger.warning("%s", end)
                told.append((failure.rank, end, failure.silent))
                FAILED_RANKS.report(*told[-1])
            for rank in self._members.registrations.keys() - self._monitor.failed:
                self._monitor.tell(rank, NEWS + json.dumps(told[-_MOST:]).encode())

    def _tell_returned(self, rank: int) -> None:
        """Tell a rank that was given up, and gives signs of life again, that it counts as failed."""
        said = self._members.registrations[rank]
        end = f"rank {rank}, host {said.host}, pid {said.pid}, was not heard of for long"
        self._monitor.tell(rank, NEWS + json.dumps([(rank, end, True)]).encode())


def _follow(comm: "MPI.Intracomm") -> Callable[[], None]:
    """Have this rank, which is not 0, be monitored and receive reports. Return the function that parts it from the others."""
    configuration = register(comm, _ROOT)
    assert configuration is not None
    member = Member(comm, configuration)
    member.join()
    if member.supervisor is not None:
        threading.Thread(target=_hear, args=(member.supervisor,), name="mpiexecutor reports", daemon=True).start()

    def part_from_others() -> None:
        _write_out()
        member.part()
        member.comm.Barrier()
        member.leave()

    return part_from_others


def _write_out() -> None:
    """Flush the files that the script left open: after a failure this rank is killed in the end."""
    for each in gc.get_objects():
        with contextlib.suppress(Exception):
            if isinstance(each, io.IOBase):
                each.flush()


def _hear(supervisor: Supervised) -> None:
    """Note the failures that rank 0 reports, and check the watchdog."""
    while (news := supervisor.news(_ONCE_MORE if FAILED_RANKS.any_known() else None)) != b"":
        FAILED_RANKS.watchdog.left()
        for death in json.loads(news or "[]"):
            FAILED_RANKS.report(*death)


def _end_job(reason: str) -> None:
    logger.critical("%s", reason)
    end_without_mpi()

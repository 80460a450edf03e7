"""The worker pool of a communicator, as its root has it: one root, which runs the script, and workers, which serve it.

Every rank of the communicator takes part. A worker registers and waits for the root's answer; the root waits for all workers (see
registration.py). Only then do they make their channels, which is collective. So the root can name a rank that does not register.

All executors on a communicator share its pool, which lives as long as the communicator: it is an MPI attribute of it.

Service threads of the package, and why each is one of its own. The root has the first five, for each pool:

    collector      waits in the reply channel and settles futures: it runs callbacks of the script, which may block
    slow calls     a periodic check that redistributes calls although a callback blocks the collector; it sleeps while none waits
    bulk transfer  copies a large object piece by piece while the thread that submitted it goes on
    monitor        never enters MPI: it receives reports of failures, and checks the watchdog, while other threads hang there
    recovery       enters MPI and waits until living workers are at rest; the monitor receives further reports meanwhile.
                   Each pool has its own: if it hangs inside MPI, other pools still recover

    output, 2      of a script that has started its workers: one blocks on each of their streams, and on that of the script
    progress, 2    of a host with ranks on other nodes: one blocks inside MPI, the other has it leave (see _rma/progress.py)
    putf, takef    of a channel of which the script uses these: they wait in the place of the script
    reports        of --spmd: forwards failures, and checks the watchdog, while the script and recovery are inside MPI
    flusher        of a worker: sends outcomes that wait while a call runs; it sleeps unless calls come in batches
    pulse          of a worker, and of its child: shows by its silence that a call holds the GIL, or that the process is stopped
    forwarder      of a worker on another node: enters MPI to forward the reports of its monitor, which is a thread as on the root
"""

import contextlib
import logging
import os
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, Final

from mpiexecutor._calls.outcomes import Location
from mpiexecutor._calls.scheduling.scheduler import Scheduler
from mpiexecutor._calls.worker import Worker
from mpiexecutor._liveness.commands import KILL
from mpiexecutor._liveness.monitor import WorkerStatus
from mpiexecutor._liveness.recovery import PoolRecovery
from mpiexecutor._liveness.status_page import StatusPage
from mpiexecutor._rma.failed_ranks import FAILED_RANKS
from mpiexecutor._rma.serving_ranks import SERVING_RANKS
from mpiexecutor._script.state import Origin
from mpiexecutor._script.surroundings import remember_environment
from mpiexecutor._start.process import PROCESS, abort_job, comm_world, end_without_mpi
from mpiexecutor._util.process_end import PROCESS_END
from mpiexecutor._util.seconds import STUCK
from mpiexecutor._util.watched import run_watched

from .links import Links
from .membership import Root
from .registration import answer_registrations, await_registrations, ranks_text
from .serve import key, serve

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("mpiexecutor")

# The text of an error.
NO_CHANNEL: Final = (
    "every rank of a communicator makes a RemoteChannel, but only this one runs the script, the others run its calls: "
    "start it with 'python -m mpiexecutor --spmd', which has every rank run it, and make no executor"
)
_making = threading.Lock()  # pools are made one at a time
_LAUNCHER_END = 1.0  # seconds for mpiexec to end after its ranks


class WorkerPool:
    """The root's side of a pool."""

    def __init__(self, comm: "MPI.Intracomm", root: int, origin: Origin) -> None:
        """Make it, together with all workers. `origin`: where workers that were started with the script get its globals from."""
        self._origin = origin
        self.location = Location.here(comm.rank, comm.size)
        self.alone = comm.size == 1
        self.workers = max(1, comm.size - 1)
        self.closed = False
        self.ended_by = ""  # the method that has ended all workers
        self._wedged = False  # the channels cannot be used any more
        self._job = PROCESS.job
        remember_environment()
        self._members = Root(comm, root)
        self._monitor = self._members.monitor
        self._links = self._connect(root)
        world = comm.group.Translate_ranks(None, comm_world().group)
        self._serving = [rank for index, rank in enumerate(world) if index != comm.rank]
        SERVING_RANKS.add(self._serving, NO_CHANNEL)
        self._members.join()
        self._thread = self._start_own_worker() if self.alone else None
        links = self._links
        self.scheduler = Scheduler(*links.channels, links.bulk, self.workers, self.location, links.memory, self._monitor.cancel)
        self._needs = contextlib.ExitStack()
        # With --spmd the supervisors of its workers serve rank 0.
        self._needs.enter_context(FAILED_RANKS.all_needed("the service of an executor"))
        self._watch_failures()
        self._members.await_supervisors()
        PROCESS_END.add(self.close)
        PROCESS_END.disown_in_child(self.forked)
        PROCESS.joining = False

    def _connect(self, root: int) -> Links:
        """Make the connections, together with all workers."""
        members, monitor = self._members, self._monitor
        is_lost = lambda rank: rank in monitor.failed and rank not in monitor.silent  # noqa: E731
        with SERVING_RANKS.take_part():
            return Links(members.comm, root, is_lost, shares_memory=members.share_memory)

    def _start_own_worker(self) -> threading.Thread:
        """Start the worker of a rank that is alone, in a thread."""
        links, fail = self._links, partial(self._give_up, "the worker has failed")
        worker = Worker(*links.channels, links.bulk, self.location, StatusPage(), fail=fail, memory=links.memory)
        thread = threading.Thread(target=worker.serve, name="mpiexecutor worker", daemon=True)
        thread.start()
        return thread

    def _watch_failures(self) -> None:
        """Have failures and returns of workers, and the end of the job, reported to the scheduler."""
        scheduler = self.scheduler
        self._monitor.returned = scheduler.regain
        PoolRecovery(
            self._monitor,
            self._links.channels,
            renumber=scheduler.renumber,
            lose=scheduler.lose,
            give_up=self._give_up,
            note=self._note_failure,
        )
        if self._job is not None:
            self._job.entrust_files()
            self._job.tell_of_end(self._monitor.attend, self._note_job_end)

    def forked(self) -> None:
        """In a forked child: leave the pool to the parent. The windows are shared memory, and must not be touched."""
        self.closed = True
        self.scheduler.disown("this executor belongs to the process that has made it, not to one forked from it")
        self._links.disown()

    def origin(self) -> Origin:
        """Return where the workers of the next executor have the script's globals from."""
        if self.started_here or PROCESS.runs_alone:
            return Origin.TOP_LEVEL
        origin, self._origin = self._origin, Origin.NOTHING
        return origin

    @property
    def started_here(self) -> bool:
        """Whether this process started the workers itself."""
        return self._job is not None

    @property
    def without_supervisor(self) -> list[int]:
        """The workers whose death ends the job. A rank that is alone is its own worker, in a thread."""
        return [0] if self.alone else [rank for rank, said in self._members.registrations.items() if not said.supervised]

    def workers_now(self) -> list[WorkerStatus]:
        """Return the status of each worker."""
        here = self.location
        workers = {rank: (said.host, said.pid) for rank, said in sorted(self._members.registrations.items())}
        return [
            WorkerStatus(
                rank, host, page.runner or pid, *self._monitor.state_of(rank), self.scheduler.done_by(rank), page.calls, page.deaths
            )
            for rank, (host, pid) in (workers or {here.rank: (here.host, here.pid)}).items()
            for page in [self._monitor.page_of(rank)]
        ]

    def end_workers(self, how: bytes) -> None:
        """Have all workers end, by KILL or TERMINATE."""
        if self.closed:
            return
        self.ended_by = "kill_workers()" if how == KILL else "terminate_workers()"
        for rank in self._members.registrations:
            self._monitor.kill_on_connect(rank, how)

    def check(self) -> None:
        """Raise BrokenProcessPool if this pool has no workers for another executor."""
        if reason := f"{self.ended_by} has ended them" if self.ended_by else self.scheduler.failure:
            raise _without_workers(reason)

    def close(self, *, for_good: bool = True) -> None:
        """Wait for the calls of all executors, and part from the workers. Nothing can be submitted any more.

        `for_good`: the workers have nothing else to do after this, so a worker that is stopped and cannot leave is killed.
        """
        if self.closed:
            return
        self.closed = True
        PROCESS_END.remove(self.close)
        try:
            with self._needs:
                self._finish(for_good=for_good)
        except BaseException:  # Ctrl-C: the user does not want to wait
            self._abort()
            raise
        finally:
            SERVING_RANKS.remove(self._serving)

    def _finish(self, *, for_good: bool) -> None:
        failed = _script_failed()
        sessions = self.scheduler.sessions()
        for session in sessions:
            self.scheduler.close(session, "cannot schedule new futures after interpreter shutdown", cancel=failed)
        if failed and not all(session.idle for session in sessions):
            self._abort()
            return
        for session in sessions:
            self.scheduler.wait(session)
        if self._wedged:
            self._links.disown()  # threads that are stuck in them stay there
            self._members.stay()
            return
        self.scheduler.stop()
        if self._thread is not None:
            self._thread.join()
        self._members.await_leavers("kill" if for_good else "warn")
        if self._members.part():
            self._links.free()
            self._members.leave()
        else:
            self._links.abandon()

    def _note_failure(self) -> None:
        """End the job if a worker fails while all ranks free the channels together: the others would wait for ever."""
        if self._members.of_all:
            self._abort()
            os._exit(1)

    def _note_job_end(self) -> None:
        """Fail all calls, as the job has ended before this process. The monitor goes on: it may hear why."""
        self._wedged = True
        with contextlib.suppress(RuntimeError):  # a process that is ending starts no thread any more
            threading.Thread(target=self._lose_job, name="mpiexecutor job's end", daemon=True).start()

    def _lose_job(self) -> None:
        assert self._job is not None
        end, lost = self._job.mpiexec_end(_LAUNCHER_END), self._monitor.first_lost
        if lost is None and self.without_supervisor:
            reason = f"a worker without supervisor has died ({ranks_text(self.without_supervisor)}), and mpiexec has ended the job"
        elif lost is None or "killed" in end:
            reason = f"mpiexec {end or 'has ended the job'}"
        else:
            reason = f"{lost}, and mpiexec has ended the job"
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """Fail all calls, for good. If a thread is stuck inside MPI with the scheduler's lock, end the job instead."""
        self._wedged = True

        def check() -> None:
            if self.scheduler.is_stuck(STUCK):
                logger.critical("%s; this process is stuck inside MPI, too: the job is ended", reason)
                end_without_mpi()

        run_watched(partial(self.scheduler.give_up, reason), check, STUCK)

    def _abort(self) -> None:
        """End the workers at once, though calls are running."""
        if self._job is not None:
            self._monitor.expect_failures()
            self._links.abandon()
        abort_job()


def get_or_create_pool(comm: "MPI.Intracomm", root: int) -> WorkerPool | None:
    """Return the pool of a communicator, on its root. On a worker serve in it, and return None when that is over."""
    with _making:
        pool = comm.Get_attr(key())
        if isinstance(pool, WorkerPool):
            if comm.rank != root:
                raise ValueError(f"the root of this communicator's executors is rank {comm.rank}, it cannot be rank {root} now")
            return pool
        if comm.rank == root:
            create = partial(create_pool, comm, root, Origin.RANK)
            pool = create() if PROCESS.job is None else PROCESS.job.watch(create)
            comm.Set_attr(key(), pool)
            return pool
    serve(comm, root)
    return None


def create_pool(comm: "MPI.Intracomm", root: int, origin: Origin = Origin.NOTHING) -> WorkerPool:
    """Make a pool of all ranks, on its root. `origin`: see WorkerPool."""
    from mpi4py import MPI  # noqa: PLC0415

    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise RuntimeError("executors need MPI with THREAD_MULTIPLE: leave mpi4py.rc.thread_level as it is")
    if PROCESS.to_shut_down or FAILED_RANKS.any_known():
        raise _without_workers("workers of this job have died")
    return WorkerPool(comm, root, origin)


def _without_workers(reason: str) -> BrokenProcessPool:
    """Return the error for an executor that would need new workers.

    A process joins an MPI job once: when it initialises MPI. MPI_Comm_spawn was tried instead: with
    Intel MPI it hangs, with MPICH an atomic takes 760 us rather than 2, and with Open MPI a worker's end may end the script.
    """
    return BrokenProcessPool(
        f"this script has no workers any more, as {reason}; MPI can start no others in a running process: start the script again "
        "(in a notebook, restart the kernel)"
    )


def has_pool(comm: "MPI.Intracomm") -> bool:
    """Return whether the communicator has a pool that stays."""
    return isinstance(comm.Get_attr(key()), WorkerPool)


def release_workers(comm: "MPI.Intracomm", root: int) -> None:
    """On the root, once it makes no pool any more: end the wait of workers for one. After a failure all ranks stay."""
    if comm.rank == root and not (PROCESS.to_shut_down or PROCESS.joining):
        await_registrations(comm)
        answer_registrations(comm, None)


def _script_failed() -> bool:
    """Return whether the script has ended with a traceback. At a prompt a traceback is no end."""
    return getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")

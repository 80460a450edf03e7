"""MPI of this process: how it is initialised, and how it ends.

`started_world` returns MPI.COMM_WORLD whether an mpiexec started this process or not: if none did, it starts a job of workers and
becomes their rank 0.

The end has one order, that of _util/process_end.py: pools and raw channels, parting, progress threads, MPI. After a failure MPI is
not finalised, as MPI_Finalize would wait for failed ranks. Instead each living rank, and the supervisor of each failed one, tells
the process manager that all is well (see _liveness/process_manager.py).
"""

import ctypes
import os
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from mpiexecutor._liveness.monitor import FailureMonitor
from mpiexecutor._liveness.process_manager import connection, end_launcher, end_step, leave_without_mpi, mapped, remove
from mpiexecutor._liveness.supervised import Supervised, start_supervisor
from mpiexecutor._liveness.supervisor import end_children
from mpiexecutor._util.flavour import Flavour, flavour_of
from mpiexecutor._util.process_end import PROCESS_END, Stage, flush_output

from .job import Job, StartError
from .mpiexec import in_srun, launched, rank_in_environment, size_in_environment, usable_cores, yield_when_idle

if TYPE_CHECKING:
    from mpi4py import MPI

MAX_WORKERS_VARIABLE = "MPIEXECUTOR_MAX_WORKERS"
_starting = threading.Lock()  # a job is started once


@dataclass(slots=True)
class ProcessState:
    """What this process is in its job. It is no attribute of MPI: once a rank has died inside MPI, any MPI call may hang."""

    job: Job | None = None  # the job that it started and is rank 0 of
    start_failed: bool = False  # there is no job, though MPI was initialised in this process, or hangs there
    supervisor: Supervised | None = None
    serves: bool = False  # it is a worker, and its environment no longer says that it is a rank
    runs_alone: bool = False  # it is rank 0 of 'python -m mpiexecutor': the others wait to serve it
    joining: bool = False  # other ranks wait for this one in a collective step: to finalise MPI would hang
    to_shut_down: list[FailureMonitor] = field(default_factory=list)  # monitors of pools with failures: MPI cannot be finalised


PROCESS: Final = ProcessState()


def started_world(max_workers: int | None, root: int) -> "MPI.Intracomm":
    """Return MPI.COMM_WORLD. If no mpiexec started this process, start a job of workers first, and become its rank 0.

    Ranks other than the root get supervisors, unless MPI is initialised already.

    Raises:
        StartError: The start failed, or this process is alone: the script initialised MPI before, or MPI does not find the other
            ranks.

    """
    with _starting:
        if "mpi4py.MPI" in sys.modules and _is_finalized():
            raise RuntimeError("cannot make an executor at interpreter shutdown")
        if not launched() and "mpi4py.MPI" not in sys.modules:
            job = _start_job(max_workers)
            PROCESS_END.add(partial(_end, job), Stage.MPI)
            PROCESS.job = job
        elif PROCESS.start_failed or (PROCESS.job is not None and PROCESS.job.aborted):
            raise StartError(
                "the workers of this script have failed to start, and a process initialises MPI once only: start the script again"
            )
        elif not launched() and PROCESS.job is None and not PROCESS.serves:
            raise StartError(
                "this script has initialised MPI already, by importing mpi4py.MPI: workers cannot join it any more. Import it "
                "after the first executor is made, or start the script with 'python -m mpiexecutor'"
            )
        elif launched():
            supervisor = start_supervisor() if rank_in_environment() not in {None, root} else None
            if "mpi4py.MPI" not in sys.modules:
                yield_when_idle()
                initialise(supervisor)
        check_company(comm_world())
    return comm_world()


def _start_job(max_workers: int | None) -> Job:
    try:
        return Job(_pool_size(max_workers))
    except BaseException:
        PROCESS.start_failed = "mpi4py.MPI" in sys.modules
        raise


def initialise(supervisor: Supervised | None) -> "MPI.Intracomm":
    """Initialise MPI in a rank that was started with this supervisor. Return MPI.COMM_WORLD."""
    import mpi4py  # noqa: PLC0415

    mpi4py.rc.finalize = False  # _end does so: after a failure it would wait for ever
    PROCESS.supervisor = supervisor
    PROCESS_END.add(partial(_end, None), Stage.MPI)
    return comm_world()


def _end(job: Job | None) -> None:
    """Finalise MPI, or end without it after a failure; then end the job that this process started."""
    if job is not None and job.aborted:
        return
    if PROCESS.joining:  # Ctrl-C, say, while a pool was made
        abort_job()
        return
    if PROCESS.to_shut_down:
        for monitor in PROCESS.to_shut_down:
            monitor.shut_down_supervisors()
        if any(monitor.silent and monitor.spans_job for monitor in PROCESS.to_shut_down):
            end_launcher()
        leave_without_mpi(connection() if job is None else job.connection)
    elif not _is_finalized():
        from mpi4py import MPI  # noqa: PLC0415

        MPI.Finalize()
    if job is not None:
        job.end()
    if PROCESS.to_shut_down:
        skip_exit_handlers()


def skip_exit_handlers() -> None:
    """Have this process end, when Python has ended, without the exit handlers of C libraries.

    MPI was not finalised, and threads may be inside it: what its libraries do at the exit of the process then fails (seen with
    Intel MPI: SIGSEGV).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):  # glibc's: what is registered last is called first, with the exit status
        library.fflush(None)
        library.on_exit(library._exit, None)  # noqa: SLF001 - its name


def abort_job() -> None:
    """End the job at once, with all its ranks: other ranks would wait for this one for ever."""
    flush_output(and_wait=PROCESS.job is None)
    remove(mapped()[1])  # MPI is not finalised
    if PROCESS.job is None:
        comm_world().Abort(1)
    else:
        PROCESS.job.abort()


def end_without_mpi() -> NoReturn:
    """End this process with an error, and so the job. MPI_Abort may hang if a rank has died inside MPI."""
    flush_output(and_wait=True)
    if PROCESS.job is not None:
        PROCESS.job.abort()
    elif in_srun():
        end_step()
    if PROCESS.supervisor is not None:
        PROCESS.supervisor.dismiss()  # it then ends as this rank does
    os._exit(1)


def _is_finalized() -> bool:
    from mpi4py import MPI  # noqa: PLC0415

    return MPI.Is_finalized()


def check_company(comm: "MPI.Intracomm") -> None:
    """Raise StartError if this process is alone in MPI.COMM_WORLD but was started as one of several."""
    from mpi4py import MPI  # noqa: PLC0415

    started = size_in_environment()
    if comm.size > 1 or started == 1:
        return
    flavour = flavour_of(MPI.Get_library_version())
    if os.environ.get("SLURM_STEP_NUM_TASKS") == str(started):
        launcher, remedy = "srun", f"'srun --mpi={'pmix' if flavour is Flavour.OPEN_MPI else 'pmi2'}'"
    else:
        launcher, remedy = "an mpiexec", "the mpiexec that belongs to it"
    raise StartError(
        f"{launcher} has started {started} processes, but {flavour.value} finds each of them alone: start them with {remedy}"
    )


def leave() -> None:
    """End the process of a worker. Its script does not go on, and its exit handlers do not run."""
    from mpi4py import MPI  # noqa: PLC0415

    MPI.Finalize()
    end_multiprocessing()
    flush_output()
    if PROCESS.supervisor is None:
        end_children()  # otherwise the supervisor ends them
    # Not os._exit: MPICH leaves its process manager in an exit handler of the C library.
    ctypes.CDLL(None).exit(0)


def end_multiprocessing() -> None:
    """Do what multiprocessing does at the end of a process: end daemonic children of calls, and wait for others."""
    util: Any = sys.modules.get("multiprocessing.util")
    process: Any = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None:
        process._children -= {child for child in process._children if child._parent_pid != os.getpid()}  # noqa: SLF001 - the supervisor's
        util._exit_function()  # noqa: SLF001 - its exit handler


def comm_world() -> "MPI.Intracomm":
    from mpi4py import MPI  # noqa: PLC0415 - initialises MPI: not before it is needed

    return MPI.COMM_WORLD


def _pool_size(max_workers: int | None) -> int:
    wanted = os.environ.get(MAX_WORKERS_VARIABLE)
    if not wanted:
        return max_workers or usable_cores()
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"{MAX_WORKERS_VARIABLE} is the number of workers to start, at least 1, not {wanted!r}")
    return int(wanted)

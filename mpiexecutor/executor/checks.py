"""What an executor requires of the process and of the communicator, and warnings about what it cannot do."""

import multiprocessing
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mpiexecutor._calls.options import Options
from mpiexecutor._calls.worker import in_task
from mpiexecutor._pool.registration import ranks_text
from mpiexecutor._pool.worker_pool import WorkerPool
from mpiexecutor._rma.failed_ranks import FAILED_RANKS
from mpiexecutor._start.process import MAX_WORKERS_VARIABLE, PROCESS

if TYPE_CHECKING:
    from mpi4py import MPI


def check_process() -> None:
    """Raise RuntimeError if this process cannot make an executor."""
    if multiprocessing.parent_process() is not None:
        raise RuntimeError(
            "an executor cannot be made in a process that multiprocessing has started: if that ran the script again, "
            "guard it with if __name__ == '__main__'"
        )
    if in_task.get():
        raise RuntimeError("an executor cannot be made inside a call that an executor runs: submit from the root instead")
    if FAILED_RANKS.are_reported:
        raise RuntimeError(
            "with --spmd every rank runs the script, and RMAChannelExecutor has all but one serve: make an RMACommExecutor, or "
            "start the script without --spmd"
        )


def check_root(comm: "MPI.Intracomm", root: int) -> None:
    """Raise TypeError or ValueError if these are not a communicator and a rank of it that can be the root."""
    if not hasattr(comm, "Get_size"):
        raise TypeError(f"comm is an MPI communicator, or None for MPI.COMM_WORLD, not {comm!r}")
    if comm.Is_inter():
        raise ValueError(
            "comm is an intracommunicator, whose ranks are the root and its workers, not an intercommunicator: comm.Merge() makes "
            "an intracommunicator of it"
        )
    if not hasattr(root, "__index__"):
        raise TypeError(f"root is a rank of the communicator, a whole number, not {root!r}")
    if not 0 <= root < comm.size:
        raise ValueError(f"root is a rank of the communicator, 0 to {comm.size - 1}, not {root}")
    if PROCESS.runs_alone and root != comm.rank:
        raise ValueError(
            f"'python -m mpiexecutor' has rank 0 alone run the script, and be the root: root is {comm.rank}, not {root}"
        )


def warnings_of(pool: WorkerPool, options: Options) -> Iterator[str]:
    """Yield a warning for each argument that this job cannot meet."""
    if pool.alone:
        yield (
            "this job has one rank: calls run one by one in a thread of this process. A job of N ranks, started by "
            "'mpiexec -n N python ...', has N - 1 workers"
        )
    if options.max_workers is not None and options.max_workers > pool.workers:
        hint = f"; {MAX_WORKERS_VARIABLE} sets how many are started" if pool.started_here else ""
        yield f"{options.max_workers} workers were asked for, there are {pool.workers}{hint}"
    if options.task_timeout is not None and (unkept := pool.without_supervisor):
        yield f"{without_supervisor(pool, unkept)}: task_timeout cannot end their calls"


def check_isolation(pool: WorkerPool, options: Options) -> None:
    """Raise RuntimeError if calls cannot run in child processes, but have to. A job of one rank has a warning for that."""
    wanted = options.isolate or options.max_tasks_per_child is not None
    if wanted and not pool.alone and (unkept := pool.without_supervisor):
        name = "isolate" if options.isolate else "max_tasks_per_child"
        raise RuntimeError(
            f"{without_supervisor(pool, unkept)}, and that would start the child processes that {name} needs: leave {name} out, or "
            "start the script with 'python script.py' or 'python -m mpiexecutor' on Linux"
        )


def without_supervisor(pool: WorkerPool, ranks: list[int]) -> str:
    """Return a text that names the workers without supervisor."""
    return "this job has one rank, and no workers" if pool.alone else f"{ranks_text(ranks)} have no supervisor (see the README)"

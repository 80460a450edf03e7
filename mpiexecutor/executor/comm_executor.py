"""RMACommExecutor: an executor for the length of a with-block."""

from types import TracebackType
from typing import TYPE_CHECKING, Any

from mpiexecutor._calls.options import Options
from mpiexecutor._pool.serve import serve
from mpiexecutor._pool.worker_pool import WorkerPool, create_pool, has_pool
from mpiexecutor._script.top_level import RUNNING, TopLevelEnd

from .channel_executor import RMAChannelExecutor
from .checks import check_root

if TYPE_CHECKING:
    from mpi4py import MPI


class RMACommExecutor:
    """A context manager in an MPI program: an executor on the root, None on the other ranks, as mpi4py.futures.MPICommExecutor.

    Every rank of the communicator enters the block. The other ranks run calls until the root leaves it; then every rank goes on. A
    communicator can be used for any number of blocks, one after another. The death of a worker ends the job, as
    in any MPI program.

    Example:
        Run it with ``mpiexec -n 4 python program.py``::

            from mpi4py import MPI
            from mpiexecutor import RMACommExecutor

            with RMACommExecutor(MPI.COMM_WORLD, root=0) as executor:
                if executor is not None:  # on rank 0
                    print(list(executor.map(abs, range(-3, 3))))
            MPI.COMM_WORLD.Barrier()  # on every rank

    """

    def __init__(self, comm: "MPI.Intracomm | None" = None, root: int = 0, **options: Any) -> None:
        """Take the arguments of the executor, which is made when the block is entered.

        Args:
            comm: The communicator, all of whose ranks enter the block; default: MPI.COMM_WORLD.
            root: The rank that submits calls.
            options: `max_workers`, `initializer`, `initargs`, `retries`, `task_timeout`, `max_pending`, `max_tasks_per_child` and
                `isolate`, by name, as for `RMAChannelExecutor`.

        Raises:
            ValueError, TypeError: An argument is not possible; the text says which values are.

        """
        if RUNNING.now:
            raise TopLevelEnd
        self._options = Options(**options)
        from mpi4py import MPI  # noqa: PLC0415 - initialises MPI: not before it is needed

        self._comm = MPI.COMM_WORLD if comm is None else comm
        check_root(self._comm, root)
        self._root = root
        self._pool: WorkerPool | None = None
        self._executor: RMAChannelExecutor | None = None

    def __enter__(self) -> RMAChannelExecutor | None:
        if self._executor is not None:
            raise RuntimeError("this with-block has been entered already: make another RMACommExecutor")
        if has_pool(self._comm):
            raise RuntimeError("the ranks of this communicator serve an RMAChannelExecutor already: make one of those instead")
        if self._comm.rank != self._root:
            serve(self._comm, self._root)
            return None
        self._pool = create_pool(self._comm, self._root)
        executor = RMAChannelExecutor.__new__(RMAChannelExecutor)
        try:
            executor._join(self._pool, self._options)  # noqa: SLF001 - made here, for a pool of its own
        except BaseException:
            self._pool.close(for_good=False)  # the others are not to serve for ever
            raise
        self._executor = executor
        return executor

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None and self._executor is not None:
            try:
                self._executor.__exit__(kind, error, trace)
            finally:
                self._pool.close(for_good=False)
                self._pool = self._executor = None

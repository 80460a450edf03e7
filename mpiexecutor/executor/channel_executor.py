"""RMAChannelExecutor: calls to the ranks of an MPI job, by one-sided communication.

    your threads          root rank (the host of both windows)              worker ranks
    submit / map  ──>  dispatcher ──> work channel   ═══ RMA ═══>  take, run, put
    Future.result <──  collector  <── reply channel  <═══ RMA ═══

The methods check arguments. `_calls` pickles the calls and runs them.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from mpiexecutor._calls.functions import FunctionRegistry
from mpiexecutor._calls.map_results import map_results
from mpiexecutor._calls.options import Options, check_impossible, check_map
from mpiexecutor._calls.scheduling.scheduler import Scheduler
from mpiexecutor._calls.scheduling.session import Session
from mpiexecutor._calls.submission import Submitter, kind_of
from mpiexecutor._liveness.commands import KILL, TERMINATE
from mpiexecutor._liveness.monitor import WorkerStatus
from mpiexecutor._pool.serve import is_serving
from mpiexecutor._pool.worker_pool import WorkerPool, get_or_create_pool
from mpiexecutor._script.root.script import Script
from mpiexecutor._script.top_level import RUNNING, TopLevelEnd
from mpiexecutor._start.process import leave, started_world

from .checks import check_isolation, check_process, check_root, warnings_of, without_supervisor

if TYPE_CHECKING:
    from mpi4py import MPI

P = ParamSpec("P")
T = TypeVar("T")

_AT_HAND = {list, tuple, range, set, frozenset, dict, str, bytes}  # types of iterables that never have the caller wait


class WorkerControl(Executor):
    """The part of an executor that counts, shows and ends its workers."""

    _num_workers: int
    _pool: WorkerPool
    _scheduler: Scheduler
    _session: Session

    @property
    def num_workers(self) -> int:
        """The number of calls that can run at a time: `max_workers` at most, fewer if workers have died, 0 if none is left."""
        return 0 if self._session.broken or self._pool.ended_by else min(self._num_workers, self._scheduler.workers)

    @property
    def size(self) -> int:
        """`num_workers`, but at least 1, for libraries that divide by it: emcee and dynesty read `size`, joblib `_max_workers`."""
        return max(1, self.num_workers)

    _max_workers = size

    def workers(self) -> list[WorkerStatus]:
        """Return the status of every worker at this moment, lost ones included, in the order of their ranks."""
        return self._pool.workers_now()

    def terminate_workers(self) -> None:
        """Cancel the calls that were not sent yet, and end all workers by SIGTERM, and so all executors on this communicator.

        Calls that are running fail with BrokenProcessPool. RuntimeError, without any effect, if workers have no supervisor.
        """
        self._end_workers(TERMINATE)

    def kill_workers(self) -> None:
        """Do the same as `terminate_workers`, by SIGKILL."""
        self._end_workers(KILL)

    def _end_workers(self, how: bytes) -> None:
        if unkept := self._pool.without_supervisor:
            raise RuntimeError(f"{without_supervisor(self._pool, unkept)}: they can only end together with the whole job")
        self.shutdown(wait=False, cancel_futures=True)
        self._pool.end_workers(how)


class RMAChannelExecutor(WorkerControl):
    """An executor that runs calls on the worker ranks of an MPI job, with the interface of ProcessPoolExecutor.

    Example:
        ``python squares.py`` starts its own workers::

            from mpiexecutor import RMAChannelExecutor

            def square(x):
                return x * x

            with RMAChannelExecutor() as executor:
                print(sum(executor.map(square, range(1000))))

    **Root and workers.** Every rank of the communicator makes the executor. On the root the constructor returns. The other ranks
    are the workers: they stay in it and run calls until the root ends. Executors on one communicator share its workers. ``python -m
    mpiexecutor --help`` lists the ways to start, and environment variables.

    **Names of the script.** Calls refer to functions, classes and other globals of ``__main__`` by name. Each worker has a
    ``__main__`` of its own for each executor. A global has the value that it had when a call first needed it; if the script binds
    the name again, the next call that needs it gets the new value. A change in place (``table[1] = 2``) may not be seen after the
    first call. Module search path, sys.argv, working directory, environment, warning filters and recursion limit are those of the
    script when it made the executor.

    **Dead workers.** A worker that dies fails only the call that it was running, with `BrokenWorkerError`; `retries` runs the call
    again on another worker. Dead workers are not replaced. When none is left, futures raise BrokenProcessPool. A worker can die
    alone because it has a supervisor (unless ``MPIEXECUTOR_SUPERVISOR`` is 0): the process that was started as the rank forks
    before MPI is initialised, and the child is the worker. The parent takes some 10 MB, hides the death from MPI and reports it to
    the root. There are supervisors only on Linux, only if the first executor or ``python -m mpiexecutor`` initialises MPI (import
    ``mpi4py.MPI`` later), and only if neither CUDA nor OpenMP was loaded before. Otherwise the death of a worker ends the job, and
    only a script that has started the workers itself goes on; its calls raise BrokenProcessPool. For workers on other nodes see
    `WorkerStatus`.

    **Isolated calls.** With `isolate` a worker has a child process for each executor, which is no MPI process and runs the calls. A
    child that dies fails only the call that it was running, and a new one takes its place at once; the worker lives on. A new child
    runs the initializer again, and has nothing of what calls have stored in globals. ``Future.cancel`` kills a child that runs the
    call, and returns True. The supervisor forks the children, so there are none without supervisors.

    **Trust.** Calls and results are pickles, so the ranks of a job trust each other, as in any MPI program: any rank can have
    another one run any code. On one node, processes connect through UNIX sockets. Sockets for more than wake-ups accept only
    processes of the same user that know a secret of the job. This package opens no network port; encryption between nodes is up to
    MPI and mpiexec.

    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        comm: "MPI.Intracomm | None" = None,
        root: int = 0,
        retries: int = 0,
        task_timeout: float | None = None,
        max_pending: int | None = None,
        isolate: bool | None = None,
    ) -> None:
        """Make an executor whose root is rank `root` of `comm`.

        Args:
            max_workers: Number of calls that run at a time, at most; default and maximum: the number of the other ranks. If the
                script starts its own workers, the first executor's `max_workers` is their number.
            mp_context: Only None: workers are ranks, not processes of multiprocessing.
            initializer: Called once in each worker, before the first call. If it raises, all calls fail with BrokenProcessPool.
            initargs: Arguments of `initializer`.
            max_tasks_per_child: Number of calls, or of chunks of a map, that a child process of a worker runs before a new one
                takes its place. It implies `isolate`.
            comm: The communicator, all of whose ranks make the executor; default: MPI.COMM_WORLD.
            root: The rank that submits calls.
            retries: How many times a call is run again, on another worker, if its worker dies.
            task_timeout: Seconds that a call, or a chunk of a map, may run once it is unpickled. Then its future raises
                TimeoutError and the process that runs it is killed, as nothing else can stop a call. It implies `isolate`, unless
                that is False: then the worker is killed. Without supervisors it has no effect, and a RuntimeWarning says so.
            max_pending: `submit` blocks while this number of futures is not done. It does not block in a callback of a future.
            isolate: Run calls in child processes of the workers: see above. Default: only if `max_tasks_per_child` or
                `task_timeout` is given.

        Raises:
            ValueError, TypeError: An argument is not possible; the text says which values are.
            StartError: The workers cannot be started.
            BrokenProcessPool: All workers have died, or were ended, and MPI can start no others in this process.
            RuntimeError: No executor can be made here: in a call, in a worker, in a child of multiprocessing, or with ``--spmd``.

        """
        if RUNNING.now:
            raise TopLevelEnd
        options = Options(max_workers, initializer, initargs, retries, task_timeout, max_pending, max_tasks_per_child, isolate)
        check_impossible(mp_context)
        check_process()
        comm = started_world(max_workers, root) if comm is None else comm
        check_root(comm, root)
        if is_serving(comm):
            raise RuntimeError(f"rank {comm.rank} is a worker: only rank {root} can make executors from here on")
        pool = get_or_create_pool(comm, root)
        if pool is None:
            leave()
            raise AssertionError("unreachable")  # pragma: no cover
        self._join(pool, options)

    def _join(self, pool: WorkerPool, options: Options) -> None:
        """Become an executor of this pool."""
        if pool.closed:
            raise RuntimeError("cannot make an executor at interpreter shutdown")
        pool.check()
        check_isolation(pool, options)
        functions = FunctionRegistry(pool.scheduler.registry)
        first = None if options.initializer is None else functions.add((options.initializer, options.initargs))
        script = None if pool.alone else Script(pool.scheduler.registry, pool.origin())
        if script is not None and first is not None:
            script.always_needs(first.names)
        for warning in warnings_of(pool, options):
            warnings.warn(warning, RuntimeWarning, stacklevel=3)
        self._num_workers = min(options.max_workers or pool.workers, pool.workers)
        self._pool = pool
        self._scheduler = pool.scheduler
        self._session = pool.scheduler.open(self._num_workers, first, options, isolable=not pool.without_supervisor)
        self._submitter = Submitter(pool.scheduler, self._session, functions, script, pool.location)
        # An executor that is dropped takes no more calls; those that it has are run.
        weakref.finalize(self, pool.scheduler.drop, self._session).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` on a worker.

        The call is pickled before `submit` returns, except for buffers of 64 KiB and more (arrays): they are not copied, so do not
        change them before the future is done.

        Args:
            fn: Anything that can be called and that cloudpickle can pickle, lambdas, closures and local functions included.
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            The future of the result. It raises what the call raised, with a `RemoteTraceback` as ``__cause__``; `BrokenWorkerError`
            if the worker died; TimeoutError after `task_timeout`; or the error of pickling the call.

        Raises:
            RuntimeError: The executor was shut down. BrokenProcessPool: No worker is left.

        """
        return self._submitter.submit(fn, args, kwargs, kind_of(fn))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[T]:
        """Call `fn` with the elements of `iterables`, as the builtin `map` does, and return an iterator over the results.

        Args:
            fn: What to call. A function, and anything large that `functools.partial` binds to it, is sent once to each worker.
            iterables: The arguments; the shortest iterable ends the calls.
            timeout: Seconds from the call of `map` in which a result must be there; None: no limit.
            chunksize: Number of consecutive calls that travel, run and fail as one. With 1, short calls travel together, as many as
                take some milliseconds, but each is a call of its own.
            buffersize: Number of calls, or of chunks, that are submitted ahead of the results; None: all of them at once.
            unordered: Yield results in the order in which they are ready; results of short calls up to 2 ms later.

        Returns:
            The iterator. It raises what a call has raised, and TimeoutError if a result is not there in time. Then, or when it is
            closed, calls that were not sent yet are cancelled.

        Raises:
            ValueError, TypeError: `chunksize` or `buffersize` is not possible.
            RuntimeError: The executor was shut down.

        """
        check_map(chunksize, buffersize)
        return map_results(
            self._submitter,
            fn,
            zip(*iterables),  # noqa: B905 - the shortest ends it, as in map
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            unordered=unordered,
            at_hand=all(type(each) in _AT_HAND for each in iterables),
        )

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[T]:
        """Return an iterator over ``fn(*arguments)`` for each `arguments` in `iterable`; see `map`."""
        check_map(chunksize, buffersize)
        calls = map(tuple, iterable)
        return map_results(
            self._submitter, fn, calls, timeout=timeout, chunksize=chunksize, buffersize=buffersize, unordered=unordered
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. The workers stay, for other executors of this process.

        Args:
            wait: Return when all calls are done; otherwise return at once, and calls that were submitted still run.
            cancel_futures: Cancel the calls that were not sent to a worker yet.

        """
        self._scheduler.close(self._session, "cannot schedule new futures after shutdown", cancel=cancel_futures)
        if wait:
            self._scheduler.wait(self._session)

    def __reduce__(self) -> Any:
        raise TypeError("an executor cannot be used inside a call that it runs: submit from the root instead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Shut down and wait for all calls; after KeyboardInterrupt cancel them, and do not wait."""
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.shutdown(wait=not interrupted, cancel_futures=interrupted)

    def __repr__(self) -> str:
        return f"<RMAChannelExecutor with {self.num_workers} workers>"

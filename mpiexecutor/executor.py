"""RMAChannelExecutor: calls to the ranks of an MPI job, by one-sided communication.

    your threads          root rank (the host of both windows)              worker ranks
    submit / map  ──>  pump: backlog ──> work channel   ═══ RMA ═══>  take, run, put
    Future.result <──  pump: collector <─ reply channel <═══ RMA ═══

The executor checks arguments, pickles calls in the thread that submits them, and passes them to the scheduler of its pool.
"""

import multiprocessing
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from itertools import islice
from pickle import PicklingError
from queue import Empty
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from mpiexecutor._calls.functions import Catalogue, Function
from mpiexecutor._calls.options import Options
from mpiexecutor._calls.outcomes import dumps_sized, with_cause
from mpiexecutor._calls.session import slim_future
from mpiexecutor._calls.worker import in_task, run_chunk
from mpiexecutor._liveness.commands import KILL, TERMINATE
from mpiexecutor._liveness.monitor import WorkerStatus
from mpiexecutor._pool.registration import ranks_text
from mpiexecutor._pool.serve import is_serving, serve
from mpiexecutor._pool.worker_pool import WorkerPool, create_pool, get_or_create_pool, has_pool
from mpiexecutor._rma.failed_ranks import FAILED_RANKS
from mpiexecutor._script.names import name_of, top_of
from mpiexecutor._script.root.script import Script
from mpiexecutor._script.top_level import RUNNING, TopLevelEnd
from mpiexecutor._start.process import MAX_WORKERS_VARIABLE, PROCESS, leave, started_world
from mpiexecutor._util.inbox import Inbox

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiexecutor._script.state import State

P = ParamSpec("P")
T = TypeVar("T")


class RMAChannelExecutor(Executor):
    """An executor that runs calls on the worker ranks of an MPI job, with the interface of ProcessPoolExecutor.

    Example:
        ``python squares.py`` starts its own workers::

            from mpiexecutor import RMAChannelExecutor

            def square(x):
                return x * x

            with RMAChannelExecutor() as executor:
                print(sum(executor.map(square, range(1000))))

    **Root and workers.** Every rank of the communicator makes the executor. On the root the constructor returns. On the
    other ranks, the workers, it does not return: they run calls until the root ends. ``python script.py`` starts workers,
    and ``python -m mpiexecutor`` has rank 0 alone run the script (``--help`` lists the ways to start). Executors on one
    communicator share its workers. With one rank, calls run one at a time in a thread of that process, and a RuntimeWarning
    says so.

    **Names of the script.** Calls use functions, classes and other globals of ``__main__`` by name. Each worker has a
    ``__main__`` of its own for each executor. A global has the value that it had when a call first needed it; if the script
    binds the name again, the next call that needs it gets the new value. A change in place (``table[1] = 2``) after the
    first call may not be seen. Lambdas, closures and local classes are pickled by value, with cloudpickle.

    **Process settings.** In calls, ``sys.path``, ``sys.argv``, working directory, environment variables, warning filters,
    recursion limit and the authkey of multiprocessing are those of the script at the time when it made the executor.
    Standard input is empty.

    **A worker that dies** fails only the call that it was running, with `BrokenWorkerError`; `retries` runs the call again
    on another worker. Other calls go on, with one worker less; dead workers are not replaced. When no worker is left,
    futures raise BrokenProcessPool.

    **Supervisors.** A worker can die alone because each worker process has a supervisor: the process that was started as
    the rank forks before MPI is initialised. The child becomes the worker. The parent, the supervisor, takes some 10 MB; it
    hides the death from MPI, and reports it to the root. There are supervisors only on Linux, only if the first executor or
    ``python -m mpiexecutor`` initialises MPI (do not import ``mpi4py.MPI`` earlier), and only if neither CUDA nor OpenMP
    was loaded before. Without supervisors the death of a worker ends the job; if the script has started the workers itself,
    it goes on, and its calls raise BrokenProcessPool. Messages and ``MPIEXECUTOR_KEEPER`` call a supervisor a keeper.

    **A lost host.** A worker on another node that sends no sign of life for ``MPIEXECUTOR_LOST_AFTER`` seconds counts as
    lost, and its call fails as if the worker had died. If it was in the middle of a message, nobody can complete that
    message, and all pending calls fail with BrokenProcessPool. If the host comes back, its workers are used again. If all
    workers of a node may hold the GIL for longer at the same time, set the variable to more than the longest such call.

    **Trust.** Calls and results are pickles, so the ranks of a job trust each other, as in any MPI program: any rank can
    have another one run any code. This package opens no network port. On one node, processes connect through UNIX sockets
    with random names that accept only the same user with a secret of the job. MPI and mpiexec are responsible for the
    connections between nodes.

    **Environment variables**, read when workers start:

    ============================= =======================================================================================
    ``MPIEXECUTOR_MAX_WORKERS``   number of workers that ``python script.py`` starts; default: one for each available core
    ``MPIEXECUTOR_START_TIMEOUT`` seconds that starting them may take; default: 60
    ``MPIEXECUTOR_LOST_AFTER``    seconds without a sign of life after which a worker on another node is lost; default: 30
    ``MPIEXECUTOR_KEEPER``        ``0``: no supervisors, so the death of a worker ends the job
    ============================= =======================================================================================

    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: None = None,
        comm: "MPI.Intracomm | None" = None,
        root: int = 0,
        retries: int = 0,
        task_timeout: float | None = None,
        max_pending: int | None = None,
    ) -> None:
        """Make an executor whose root is rank `root` of `comm`.

        Args:
            max_workers: Number of calls that run at a time, at most; default and maximum: the number of the other ranks. If the
                script starts its own workers, the first executor's `max_workers` is their number.
            mp_context: Only None: workers are ranks, not processes of multiprocessing.
            initializer: Called once in each worker, before the first call of this executor there. If it raises, every call of
                this executor fails with BrokenProcessPool.
            initargs: Arguments of `initializer`.
            max_tasks_per_child: Only None: MPI cannot replace ranks.
            comm: The communicator, all of whose ranks make the executor; default: MPI.COMM_WORLD.
            root: The rank that submits calls.
            retries: How many times a call is run again, on another worker, if its worker dies.
            task_timeout: Seconds that a call may run. After that its future raises TimeoutError, and its worker is killed, as
                nothing else can stop a call. With `chunksize`, a chunk is one call. Needs supervisors: a RuntimeWarning says if
                there are none.
            max_pending: `submit` blocks while this number of futures is not done. It does not block in a callback of a future.

        Raises:
            ValueError, TypeError: An argument is not possible; the text says which values are.
            StartError: The workers cannot be started.
            BrokenProcessPool: The workers of this job have died already.
            RuntimeError: Executors cannot be made here: in a call, on a worker, in a child of multiprocessing, with ``--spmd``, at
                interpreter shutdown, or if MPI does not provide THREAD_MULTIPLE.

        """
        if RUNNING.now:
            raise TopLevelEnd
        options = Options(
            max_workers=max_workers,
            initializer=initializer,
            initargs=initargs,
            retries=retries,
            task_timeout=task_timeout,
            max_pending=max_pending,
        )
        options.check()
        _check_impossible(mp_context, max_tasks_per_child)
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
        comm = started_world(max_workers, root) if comm is None else comm
        _check_root(comm, root)
        if is_serving(comm):
            raise RuntimeError(f"rank {comm.rank} is a worker: only rank {root} can make executors from here on")
        pool = get_or_create_pool(comm, root)
        if pool is None:
            leave()
            raise AssertionError("unreachable")  # pragma: no cover
        self._join(pool, options)

    def _join(self, pool: WorkerPool, options: Options) -> None:
        """Be an executor of this pool."""
        if pool.closed:
            raise RuntimeError("cannot make an executor at interpreter shutdown")
        self._catalogue = Catalogue(pool.pump.registry)
        first = None if options.initializer is None else self._catalogue.add((options.initializer, options.initargs))
        self._script = None if pool.alone else Script(pool.pump.registry, pool.origin())
        if self._script is not None and first is not None:
            self._script.always_needs(first.names)
        for warning in _warnings(pool, options):
            warnings.warn(warning, RuntimeWarning, stacklevel=3)
        self._num_workers = min(options.max_workers or pool.workers, pool.workers)
        self._pool = pool
        self._pump = pool.pump
        self._place = pool.place
        self._session = pool.pump.open(
            self._num_workers,
            first,
            retries=options.retries,
            task_timeout=options.task_timeout or 0.0,
            max_pending=options.max_pending,
        )
        # An executor that is dropped takes no more calls; those that it has are run.
        weakref.finalize(self, pool.pump.drop, self._session).atexit = False

    @property
    def num_workers(self) -> int:
        """The number of calls that can run at a time: `max_workers` at most, fewer if workers have died, 0 if none is left."""
        return 0 if self._session.broken else min(self._num_workers, self._pump.workers)

    @property
    def size(self) -> int:
        """`num_workers`, but at least 1, for libraries that divide by it: emcee and dynesty read `size`, joblib `_max_workers`."""
        return max(1, self.num_workers)

    _max_workers = size

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` on a worker.

        The call is pickled before `submit` returns, except for buffers of 64 KiB and more (arrays): they are not copied, so do not
        change them before the future is done.

        Args:
            fn: Anything that cloudpickle can pickle, lambdas, closures and local functions included.
            args: Positional arguments.
            kwargs: Keyword arguments.

        Returns:
            The future of the result. It raises what the call raised, with a `RemoteTraceback` as ``__cause__``; `BrokenWorkerError`
            if the worker died; TimeoutError after `task_timeout`; or the error of pickling the call.

        Raises:
            RuntimeError: The executor was shut down.
            BrokenProcessPool: No worker is left.

        """
        return self._submit(fn, args, kwargs, _kind(fn), None)

    def _submit(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], kind: object, function: Function | None
    ) -> Future[T]:
        if self._session.closed or self._session.broken:
            self._pump.check_open(self._session)
        future: Future[T] = slim_future()
        names: set[str] = set()
        try:
            called: Function | str | None = None
            state: State | None = None
            if type(fn) is FunctionType:
                called, state = (name_of(fn), None) if self._script is None else self._script.named(fn)
            if called is None:
                called = function or self._catalogue.submitted(fn)
            blob, size = dumps_sized((None if called else fn, args, kwargs), names)
            if self._script is not None and (names or state is None):
                state = self._script.state(_all_names(called, names))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not _raises_interrupt((fn, args, kwargs)):
                raise  # from the keyboard
            self._pump.check_open(self._session)
            future.set_running_or_notify_cancel()
            future.set_exception(with_cause(_without_exit(error), self._place))
            return future
        self._pump.submit(self._session, future, blob, size, kind, called, state)
        return future

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

        If a call raises, the iterator raises the same exception when it comes to that result. After an error, or when the iterator
        is closed, calls that were not sent yet are cancelled.

        Args:
            fn: What to call. It is pickled once and sent once to each worker, with what `functools.partial` has bound to it.
            iterables: The arguments; the shortest iterable ends the calls.
            timeout: Seconds from the call of `map` in which a result must be there; None: no limit.
            chunksize: Number of consecutive calls that travel and run as one.
            buffersize: Number of calls, or of chunks, that are submitted ahead of the results; None: all of them at once.
            unordered: Yield results as they are ready, not in the order of the arguments.

        Returns:
            The iterator. It raises TimeoutError if a result is not there in time.

        Raises:
            ValueError, TypeError: `chunksize` or `buffersize` is not possible.
            RuntimeError: The executor was shut down.

        """
        return self.starmap(fn, zip(*iterables), timeout=timeout, chunksize=chunksize, buffersize=buffersize, unordered=unordered)  # noqa: B905 - the shortest ends it, as in map

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
        _check_map(chunksize, buffersize)
        deadline = None if timeout is None else timeout + time.monotonic()
        submit: Callable[[tuple[Any, ...]], Future[Any]]
        calls: Iterator[tuple[Any, ...]] = map(tuple, iterable)
        called: Callable[..., Any] = fn
        kind = _kind(fn)
        if chunksize > 1:
            called, kind = partial(run_chunk, fn), ("chunk", kind)
            calls = ((chunk,) for chunk in _chunks(calls, chunksize))
        function = self._mapped(called)
        first = calls if buffersize is None else islice(calls, buffersize)
        futures = deque([self._submit(called, call, {}, kind, function) for call in first])
        submit = partial(_submit_weakly, weakref.ref(self), called, kind, function)
        more = iter(()) if buffersize is None else calls
        results = _unordered(futures, submit, more, deadline) if unordered else _ordered(futures, submit, more, deadline)
        return results if chunksize == 1 else _flattened(results)

    def _mapped(self, fn: Callable[..., Any]) -> Function | None:
        """Have the function go to each worker once; None if it has a name, is as well sent with every call, or fails with it."""
        try:
            return None if type(fn) is FunctionType and name_of(fn) else self._catalogue.mapped(fn)
        except Exception:  # noqa: BLE001 - its own pickling: every call shows it
            return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. The workers stay, for other executors of this process.

        Args:
            wait: Return when all calls are done; otherwise return at once, and calls that were submitted still run.
            cancel_futures: Cancel the calls that were not sent to a worker yet.

        """
        self._pump.close(self._session, "cannot schedule new futures after shutdown", cancel=cancel_futures)
        if wait:
            self._pump.wait(self._session)

    def workers(self) -> list[WorkerStatus]:
        """Return the status of every worker at this moment, dead ones included, in the order of their ranks."""
        return self._pool.workers_now()

    def terminate_workers(self) -> None:
        """Cancel the calls that were not sent yet, and end all workers by SIGTERM.

        This ends every executor on this communicator: calls that are running fail with BrokenProcessPool.

        Raises:
            RuntimeError: Workers have no supervisor, so they cannot end alone. Nothing was done.

        """
        self._end_workers(TERMINATE)

    def kill_workers(self) -> None:
        """Do the same as `terminate_workers`, by SIGKILL."""
        self._end_workers(KILL)

    def _end_workers(self, how: bytes) -> None:
        if unkept := self._pool.without_supervisor:
            raise RuntimeError(f"{_unkept(self._pool, unkept)}: they can only end together with the whole job")
        self.shutdown(wait=False, cancel_futures=True)
        self._pool.end_workers(how)

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

    def __init__(
        self,
        comm: "MPI.Intracomm | None" = None,
        root: int = 0,
        *,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        retries: int = 0,
        task_timeout: float | None = None,
        max_pending: int | None = None,
    ) -> None:
        """Take the arguments of the executor, which is made when the block is entered.

        Args:
            comm: The communicator, all of whose ranks enter the block; default: MPI.COMM_WORLD.
            root: The rank that submits calls.
            max_workers: This and the following ones as for `RMAChannelExecutor`.
            initializer: Called once in each worker, before its first call.
            initargs: Arguments of `initializer`.
            retries: How many times a call is run again if its worker dies.
            task_timeout: Seconds that a call may run.
            max_pending: Number of futures that are not done at which `submit` blocks.

        Raises:
            ValueError, TypeError: An argument is not possible; the text says which values are.

        """
        if RUNNING.now:
            raise TopLevelEnd
        self._options = Options(
            max_workers=max_workers,
            initializer=initializer,
            initargs=initargs,
            retries=retries,
            task_timeout=task_timeout,
            max_pending=max_pending,
        )
        self._options.check()
        from mpi4py import MPI  # noqa: PLC0415 - initialises MPI: not before it is needed

        self._comm = MPI.COMM_WORLD if comm is None else comm
        _check_root(self._comm, root)
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


def _warnings(pool: WorkerPool, options: Options) -> Iterator[str]:
    """Say what cannot be as the options want it."""
    if pool.alone:
        yield (
            "this job has one rank: calls run one by one in a thread of this process. For 4 workers start it as "
            "'mpiexec -n 5 python ...'"
        )
    if options.max_workers is not None and options.max_workers > pool.workers:
        hint = f"; {MAX_WORKERS_VARIABLE} sets how many are started" if pool.started_here else ""
        yield f"{options.max_workers} workers were asked for, there are {pool.workers}{hint}"
    if options.task_timeout is not None and (unkept := pool.without_supervisor):
        yield f"{_unkept(pool, unkept)}: task_timeout cannot end their calls"


def _unkept(pool: WorkerPool, ranks: list[int]) -> str:
    """Say who cannot be killed."""
    return "this job has one rank, and no workers" if pool.alone else f"{ranks_text(ranks)} have no keeper (see the README)"


def _all_names(called: Function | str | None, names: set[str]) -> frozenset[str]:
    """Return the globals of the script that a call needs: those of its function and those in its arguments."""
    if called is None:
        return frozenset(names)
    return called.names | names if isinstance(called, Function) else frozenset([top_of(called), *names])


def _without_exit(error: BaseException) -> BaseException:
    """Return the error of a call that cannot be pickled: none that would end the script when its result is asked for."""
    if not isinstance(error, (SystemExit, KeyboardInterrupt)):
        return error
    refused = PicklingError(f"pickling this call raised {type(error).__name__}: {error}")
    refused.__cause__ = error
    return refused


def _raises_interrupt(call: Any) -> bool:
    """Whether pickling a call raises KeyboardInterrupt of its own accord.

    Signals are handled in the main thread only: an interrupt that comes again in another thread is the call's own.
    """
    own: list[bool] = []

    def pickle_again() -> None:
        try:
            dumps_sized(call)
        except BaseException as error:  # noqa: BLE001 - whatever it is
            own.append(isinstance(error, KeyboardInterrupt))

    thread = threading.Thread(target=pickle_again)
    thread.start()
    thread.join()
    return own == [True]


def _kind(fn: Callable[..., Any]) -> object:
    """Tell apart the calls that probably do not take as long as each other."""
    while type(fn) is partial:
        fn = fn.func
    if type(fn) is FunctionType:
        return fn.__code__
    try:
        names = fn.__module__, fn.__qualname__
    except Exception:  # noqa: BLE001 - its own code
        names = type(fn).__module__, type(fn).__qualname__
    return ".".join(name for name in names if type(name) is str)


def _submit_weakly(
    executor: "weakref.ref[RMAChannelExecutor]",
    fn: Callable[..., Any],
    kind: object,
    function: Function | None,
    args: tuple[Any, ...],
) -> Future[Any]:
    """Submit for an iterator, which must not keep its executor alive."""
    this = executor()
    if this is None:
        raise RuntimeError("cannot schedule new futures: the executor is gone")
    return this._submit(fn, args, {}, kind, function)  # noqa: SLF001 - its own


def _chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(calls, size)):
        yield chunk


def _flattened(chunks: Iterator[list[T]]) -> Iterator[T]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()  # so that nothing here holds on to a result


def _ordered(
    futures: deque[Future[T]], submit: Callable[[Any], Future[T]], more: Iterator[Any], deadline: float | None
) -> Iterator[T]:
    try:
        while futures:
            futures.extend(map(submit, islice(more, 1)))  # before the wait, and before the caller looks at the result
            yield _result(futures, deadline)
    finally:
        for future in futures:
            future.cancel()


def _result(futures: deque[Future[T]], deadline: float | None) -> T:
    """Wait for the first future and drop it; out of time, or interrupted, it is cancelled."""
    future = futures.popleft()
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()
        del future  # its exception refers to this frame


def _unordered(
    futures: deque[Future[T]], submit: Callable[[Any], Future[T]], more: Iterator[Any], deadline: float | None
) -> Iterator[T]:
    ready: Inbox[Future[T]] = Inbox()
    waiting: set[Future[T]] = set()

    def watch(future: Future[T]) -> None:
        waiting.add(future)
        future.add_done_callback(ready.put)

    while futures:
        watch(futures.popleft())
    try:
        while waiting:
            for call in islice(more, 1):
                watch(submit(call))
            yield _next_ready(ready, waiting, deadline)
    finally:
        for future in waiting:
            future.cancel()


def _next_ready(ready: Inbox[Future[T]], waiting: set[Future[T]], deadline: float | None) -> T:
    try:
        future = ready.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except Empty:
        raise TimeoutError from None
    waiting.discard(future)
    try:
        return future.result()
    finally:
        del future  # its exception refers to this frame


def _check_impossible(mp_context: object, max_tasks_per_child: object) -> None:
    if mp_context is not None:
        raise ValueError("mp_context cannot be chosen: workers are ranks of the MPI job, not processes that this one starts")
    if max_tasks_per_child is not None:
        raise ValueError("max_tasks_per_child cannot be kept: MPI cannot replace a rank while the job runs")


def _check_root(comm: "MPI.Intracomm", root: int) -> None:
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


def _check_map(chunksize: int, buffersize: int | None) -> None:
    if not hasattr(chunksize, "__index__"):
        raise TypeError(f"chunksize is a number of calls, at least 1, not {chunksize!r}")
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")

"""RMAChannelExecutor: calls to the ranks of an MPI job, by one-sided communication.

    your threads          root rank (the host of both windows)              worker ranks
    submit / map  ──>  pump: backlog ──> work channel   ═══ RMA ═══>  take, run, put
    Future.result <──  pump: collector <─ reply channel <═══ RMA ═══

The executor itself is thin: it checks arguments, pickles calls in the thread that submits them, and hands them to the pump of its
crew.
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
from mpiexecutor._calls.outcomes import ship, with_cause
from mpiexecutor._calls.session import slim_future
from mpiexecutor._calls.worker import in_task, run_chunk
from mpiexecutor._liveness.monitor import WorkerStatus
from mpiexecutor._liveness.supervisor import KILL, TERMINATE
from mpiexecutor._pool.crew import Crew, enlist, has_crew, is_serving, muster, serve
from mpiexecutor._pool.registration import ranks_text
from mpiexecutor._rma.failed_ranks import DEATHS
from mpiexecutor._script.names import name_of, top_of
from mpiexecutor._script.root.script import Script
from mpiexecutor._script.top_level import RUNNING, TopLevelEnd
from mpiexecutor._start.process import MAX_WORKERS_VARIABLE, STANDING, leave, started_world
from mpiexecutor._util.inbox import Inbox

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiexecutor._script.state import State

P = ParamSpec("P")
T = TypeVar("T")


class RMAChannelExecutor(Executor):
    """Runs calls on the worker ranks of an MPI job, with the interface of concurrent.futures.ProcessPoolExecutor.

    Every rank of the communicator makes the executor. On the root the constructor returns; the other ranks serve it from there
    on, and never return. Executors on one communicator share its workers.
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
        """Make an executor on the ranks of `comm` (MPI.COMM_WORLD if None), submitting from rank `root`.

        At most `max_workers` calls run at a time: by default, and at most, as many as there are other ranks. With one rank
        alone, calls run in a thread of this process.

        `initializer` is called with `initargs` once in each worker, before its first call; if it fails, every call of this
        executor fails with BrokenProcessPool. Functions, classes and other globals of ``__main__`` are named by calls, and each
        worker has them in a ``__main__`` of its own for this executor; lambdas and closures go by value, with cloudpickle.

        A worker that dies, of a call or otherwise, fails the call that it was running, with BrokenWorkerError; with `retries`
        it is run again elsewhere, up to so many times. The others go on.

        A call that runs longer than `task_timeout` seconds fails with TimeoutError, and its worker is killed, which is the only
        way to stop it; with `chunksize` a chunk is one call. With `max_pending`, submit waits while so many futures are not done.

        ValueError for arguments that cannot be; RuntimeError inside a call that a worker runs. `mp_context` and
        `max_tasks_per_child` are there for those who pass their defaults: MPI cannot replace ranks.
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
        if DEATHS.are_told:
            raise RuntimeError(
                "with --spmd every rank runs the script, and RMAChannelExecutor has all but one serve: make an RMACommExecutor, or "
                "start the script without --spmd"
            )
        comm = started_world(max_workers, root) if comm is None else comm
        _check_root(comm, root)
        if is_serving(comm):
            raise RuntimeError(f"rank {comm.rank} is a worker: only rank {root} can make executors from here on")
        crew = enlist(comm, root)
        if crew is None:
            leave()
            raise AssertionError("unreachable")  # pragma: no cover
        self._join(crew, options)

    def _join(self, crew: Crew, options: Options) -> None:
        """Be an executor of this crew."""
        if crew.closed:
            raise RuntimeError("cannot make an executor at interpreter shutdown")
        self._catalogue = Catalogue(crew.pump.registry)
        first = None if options.initializer is None else self._catalogue.add((options.initializer, options.initargs))
        self._script = None if crew.alone else Script(crew.pump.registry, crew.origin())
        if self._script is not None and first is not None:
            self._script.always_needs(first.names)
        for warning in _warnings(crew, options):
            warnings.warn(warning, RuntimeWarning, stacklevel=3)
        self._num_workers = min(options.max_workers or crew.workers, crew.workers)
        self._crew = crew
        self._pump = crew.pump
        self._place = crew.place
        self._session = crew.pump.open(
            self._num_workers,
            first,
            retries=options.retries,
            task_timeout=options.task_timeout or 0.0,
            max_pending=options.max_pending,
        )
        # An executor that is dropped takes no more calls; those that it has are run.
        weakref.finalize(self, crew.pump.drop, self._session).atexit = False

    @property
    def num_workers(self) -> int:
        """How many calls can run at a time: less than at first if workers have died, and none once the executor is broken."""
        return 0 if self._session.broken else min(self._num_workers, self._pump.workers)

    @property
    def size(self) -> int:
        """The same, but at least 1: other libraries ask for these names, and divide by them."""
        return max(1, self.num_workers)

    _max_workers = size

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker call ``fn(*args, **kwargs)``; give the future of the result.

        The call is pickled at once, but large buffers (arrays of 64 KiB and more) are not copied before they are sent: leave
        them unchanged until the future is done. A call that cannot be pickled fails in its future. RuntimeError after
        shutdown.
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
            shipped, size = ship((None if called else fn, args, kwargs), names)
            if self._script is not None and (names or state is None):
                state = self._script.state(_all_names(called, names))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not _raises_interrupt((fn, args, kwargs)):
                raise  # from the keyboard
            self._pump.check_open(self._session)
            future.set_running_or_notify_cancel()
            future.set_exception(with_cause(_without_exit(error), self._place))
            return future
        self._pump.submit(self._session, future, shipped, size, kind, called, state)
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
        """Call a function with each tuple of elements of `iterables`; iterate over the results, in order.

        As in ProcessPoolExecutor of Python 3.14: calls are submitted at once, or, with `buffersize`, only so many ahead of the
        results that were asked for; with `chunksize`, so many make up one call (and one unit of `buffersize`). The iterator raises
        what a call raised, and TimeoutError if a result is not there `timeout` seconds after map was called. Closing
        it, or an error, cancels the calls that have not been sent. With `unordered` results come as they are ready.
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
        """Like map, with the arguments of each call as one element of `iterable`."""
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
        """Take no more calls; with `wait`, return once all are done; with `cancel_futures`, drop those not sent yet.

        The workers stay for other executors of this process.
        """
        self._pump.close(self._session, "cannot schedule new futures after shutdown", cancel=cancel_futures)
        if wait:
            self._pump.wait(self._session)

    def workers(self) -> list[WorkerStatus]:
        """Say of each worker who it is, and what it does at this moment; of those that have died, too."""
        return self._crew.workers_now()

    def terminate_workers(self) -> None:
        """Shut down at once: drop what was not sent yet, and have all workers end, by SIGTERM.

        That is the end of every executor on this communicator: its calls fail with BrokenProcessPool. RuntimeError, and nothing is
        done, if there are workers without keeper, which cannot end alone.
        """
        self._end_workers(TERMINATE)

    def kill_workers(self) -> None:
        """Do as terminate_workers does, by SIGKILL."""
        self._end_workers(KILL)

    def _end_workers(self, how: bytes) -> None:
        if unkept := self._crew.without_keeper:
            raise RuntimeError(f"{_unkept(self._crew, unkept)}: they can only end together with the whole job")
        self.shutdown(wait=False, cancel_futures=True)
        self._crew.end_workers(how)

    def __reduce__(self) -> Any:
        raise TypeError("an executor cannot be used inside a call that it runs: submit from the root instead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for all calls. After Ctrl-C drop them instead: who pressed it does not want to wait."""
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.shutdown(wait=not interrupted, cancel_futures=interrupted)

    def __repr__(self) -> str:
        return f"<RMAChannelExecutor with {self.num_workers} workers>"


class RMACommExecutor:
    """An executor for the length of a with-block, as mpi4py.futures.MPICommExecutor: every rank goes on after it.

    All ranks of the communicator enter the block. On the root its target is an RMAChannelExecutor; the others serve it until the
    root leaves the block, and then get None. A communicator may be used so any number of times.
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
        """Say which ranks, and how to make the executor: see RMAChannelExecutor."""
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
        self._crew: Crew | None = None
        self._executor: RMAChannelExecutor | None = None

    def __enter__(self) -> RMAChannelExecutor | None:
        if self._executor is not None:
            raise RuntimeError("this with-block has been entered already: make another RMACommExecutor")
        if has_crew(self._comm):
            raise RuntimeError("the ranks of this communicator serve an RMAChannelExecutor already: make one of those instead")
        if self._comm.rank != self._root:
            serve(self._comm, self._root)
            return None
        self._crew = muster(self._comm, self._root)
        executor = RMAChannelExecutor.__new__(RMAChannelExecutor)
        try:
            executor._join(self._crew, self._options)  # noqa: SLF001 - made here, for a crew of its own
        except BaseException:
            self._crew.close(for_good=False)  # the others are not to serve for ever
            raise
        self._executor = executor
        return executor

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._crew is not None and self._executor is not None:
            try:
                self._executor.__exit__(kind, error, trace)
            finally:
                self._crew.close(for_good=False)
                self._crew = self._executor = None


def _warnings(crew: Crew, options: Options) -> Iterator[str]:
    """Say what cannot be as the options want it."""
    if crew.alone:
        yield (
            "this job has one rank: calls run one by one in a thread of this process. For 4 workers start it as "
            "'mpiexec -n 5 python ...'"
        )
    if options.max_workers is not None and options.max_workers > crew.workers:
        hint = f"; {MAX_WORKERS_VARIABLE} sets how many are started" if crew.started_here else ""
        yield f"{options.max_workers} workers were asked for, there are {crew.workers}{hint}"
    if options.task_timeout is not None and (unkept := crew.without_keeper):
        yield f"{_unkept(crew, unkept)}: task_timeout cannot end their calls"


def _unkept(crew: Crew, ranks: list[int]) -> str:
    """Say who cannot be killed."""
    return "this job has one rank, and no workers" if crew.alone else f"{ranks_text(ranks)} have no keeper (see the README)"


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
            ship(call)
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
    if STANDING.runs_alone and root != comm.rank:
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

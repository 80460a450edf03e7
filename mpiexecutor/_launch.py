"""How ranks come to be a crew: one root, which runs the script, and workers, which serve it until it ends.

Every rank of a communicator enlists. A worker reports to the root and waits for its word; the root waits for all of them, and
says for whom if that takes long. Only then do they make their channels, which is collective: a rank that never comes is noticed,
not waited for in silence. Reports and answers are ordinary messages, polled for, so that waiting costs next to nothing.

A crew lives as long as its communicator; all executors on it share it. It is kept where MPI wants such things kept, as an
attribute of the communicator.
"""

import atexit
import contextlib
import ctypes
import functools
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import _adopt
from ._health import Undertaker, Watch
from ._keeper import Kept, keep
from ._manager import connection, mapped, remove, take_leave
from ._mpiexec import Flavour, flavour_of, have_waiting_give_way, launched, rank_in_environment, size_in_environment, usable_cores
from ._outcomes import Blob, Place
from ._parcels import Parcels
from ._pump import Pump
from ._worker import Worker
from .channel import RemoteChannel
from .channel._waiting import node_name

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("mpiexecutor")

MAX_WORKERS_VARIABLE = "MPIEXECUTOR_MAX_WORKERS"
_making = threading.Lock()  # crews are made one at a time
_TAG = 24601  # of reports and answers
_LAST_WORDS = 0.2  # seconds that what was printed has to get through before the job is aborted
_PATIENCE = 10.0  # seconds before a rank says whom it waits for
_SLOTS, _SLOT_SIZE = 256, 16384  # of each channel: messages of calls are small, and large ones take many slots
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
_LARGEST_ON_HEAP = 32 << 20  # bytes: what is larger is given back to the system when it is freed
_KEPT = 64 << 20  # bytes that a worker keeps of what was freed
_SHORTEST, _LONGEST, _GROWTH = 1e-4, 0.02, 1.2  # seconds between two looks for a report


class Crew:
    """The root's side of a crew."""

    def __init__(self, comm: "MPI.Intracomm", root: int, watch: Watch) -> None:
        self._watch = watch
        self._root = root
        self._comm = comm.Dup()
        self._channels = _channels(self._comm, root)
        parcels = Parcels(self._comm, root)
        self.place = Place.here(comm.rank, comm.size)
        self.alone = comm.size == 1
        self.workers = max(1, comm.size - 1)
        self._thread = threading.Thread(
            target=Worker(*self._channels, parcels, self.place).serve, name="mpiexecutor worker", daemon=True
        )
        if self.alone:
            self._thread.start()
        self.pump = Pump(*self._channels, parcels, self.workers, self.place)
        self.closed = False
        self._dissolving = False  # the channels, with all workers
        self._wedged = False  # they will never be of use again
        pump = self.pump
        Undertaker(watch, self._channels, renumber=pump.renumber, bury=pump.lose, give_up=self._give_up, note=self._note_loss)
        job = _world().Get_attr(_attribute("job"))
        self._job = job if isinstance(job, _adopt.Job) else None  # that this process has started
        if self._job is not None:
            self._job.tell_of_end(
                watch.attend, partial(self._give_up, "the job has ended: mpiexec was killed, or a worker without keeper")
            )
        atexit.register(self.close)
        os.register_at_fork(after_in_child=partial(_tell_forked, weakref.ref(self)))

    def forked(self) -> None:
        """In a forked child: the workers are its parent's. The windows are shared memory, and must not be touched."""
        self.closed = True
        atexit.unregister(self.close)
        self._watch.close()
        self.pump.disown("this executor belongs to the process that has made it, not to one forked from it")
        for channel in self._channels:
            channel.disown()

    @property
    def started_here(self) -> bool:
        """Whether this process has started the workers itself."""
        return self._job is not None

    def close(self) -> None:
        """Have every executor finish what it has, and dismiss the workers. Nothing can be submitted any more."""
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        try:
            self._finish()
        except BaseException:  # Ctrl-C: nobody wants to wait any more
            self._abort()
            raise

    def _finish(self) -> None:
        failed = _script_failed()
        sessions = self.pump.sessions()
        for session in sessions:
            self.pump.close(session, "cannot schedule new futures after interpreter shutdown", cancel=failed)
        if failed and not all(session.idle for session in sessions):
            self._abort()
            return
        for session in sessions:
            self.pump.wait(session)
        if self._wedged:
            for channel in self._channels:
                channel.disown()  # whoever is in the middle of it will stay there
            _note_deaths(self._watch)
            return
        self.pump.stop()
        if self.alone:
            self._thread.join()
        if self._part():
            _dissolve(self._comm, self._channels)
            self._watch.stop()
        else:
            for channel in self._channels:
                channel.abandon()
            _note_deaths(self._watch)

    def _part(self) -> bool:
        """Part from the workers, once they have left their loops; whether all of them live, so that MPI can be used as ever."""
        waiting = set(range(self._comm.size)) - {self._root}
        pause = _SHORTEST
        while waiting - self._watch.dead:
            came = {rank for rank in waiting if self._comm.Iprobe(rank, _TAG)}
            for rank in came:
                self._comm.recv(source=rank, tag=_TAG)
            waiting -= came
            pause = _SHORTEST if came else min(pause * _GROWTH, _LONGEST)
            if not came:
                time.sleep(pause)
        self._dissolving = not self._watch.dead
        whole = self._dissolving = not self._watch.dead  # once more: who has died since then may not have been noted
        for rank in set(range(self._comm.size)) - {self._root} - self._watch.dead:
            self._comm.send(whole, rank, _TAG)
        return whole

    def _note_loss(self) -> None:
        """End everything if a worker has died while all ranks give up the channels together: the others wait for it for ever."""
        if self._dissolving:
            self._abort()
            os._exit(1)

    def _give_up(self, reason: str) -> None:
        self._wedged = True
        self.pump.give_up(reason)

    def _abort(self) -> None:
        """End the workers at once: calls are still running, and nobody wants their results any more."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self._job is None:
            time.sleep(_LAST_WORDS)  # or mpiexec may be told before it has read them
            _world().Abort(1)  # all of it: ranks outside this communicator would wait for ever
        else:
            for channel in self._channels:
                channel.abandon()
            self._job.abort()


def _tell_forked(reference: "weakref.ref[Crew]") -> None:
    if (crew := reference()) is not None:
        crew.forked()


def world(max_workers: int | None, root: int) -> "MPI.Intracomm":
    """Give MPI.COMM_WORLD; if no mpiexec has started this process, start a job of workers first, and be its rank 0.

    Ranks other than the root get keepers, unless MPI is initialised already.

    StartError if that fails, or if this process is alone: because the script has initialised MPI already, or because MPI does not
    find those that were started with it.
    """
    with _making:
        if not launched() and "mpi4py.MPI" not in sys.modules:
            job = _adopt.Job(_crew_size(max_workers))
            atexit.register(_end, job)
            _world().Set_attr(_attribute("job"), job)
        elif not launched() and _world().Get_attr(_attribute("job")) is None:
            raise _adopt.StartError(
                "this script has initialised MPI already, by importing mpi4py.MPI: workers cannot join it any more. Import it "
                "after the first executor is made, or start the script with 'python -m mpiexecutor'"
            )
        elif launched():
            keeper = keep() if rank_in_environment() not in {None, root} else None
            if "mpi4py.MPI" not in sys.modules:
                have_waiting_give_way()
                initialise(keeper)
            elif _is_finalized():
                raise RuntimeError("cannot make an executor at interpreter shutdown")
        check_company(_world())
    return _world()


def initialise(keeper: Kept | None) -> "MPI.Intracomm":
    """Initialise MPI in a rank that something has started, and which has this keeper; give MPI.COMM_WORLD."""
    import mpi4py  # noqa: PLC0415

    mpi4py.rc.finalize = False  # by _end: after a death that would wait for ever
    _world().Set_attr(_attribute("keeper"), keeper)
    atexit.register(_end, None)
    os.register_at_fork(after_in_child=partial(atexit.unregister, _end))  # it has no MPI to be done with
    return _world()


def _end(job: _adopt.Job | None) -> None:
    """Be done with MPI, and have the job end: as the last of what the exit handlers do."""
    if job is not None and job.aborted:
        return
    if deaths := _deaths():
        for watch in deaths:
            watch.see_off()
        library, files = mapped()
        remove(files)
        take_leave(connection() if job is None else job.connection, library, initialise=False)
    elif not _is_finalized():
        from mpi4py import MPI  # noqa: PLC0415

        MPI.Finalize()
    if job is not None:
        job.end()


def _note_deaths(watch: Watch) -> None:
    """Remember that nothing can be done any more that all ranks would have a part in, and who is to be seen off."""
    _world().Set_attr(_attribute("deaths"), [*_deaths(), watch])


def _deaths() -> list[Watch]:
    """Give the watches that have seen workers die."""
    watches = None if _is_finalized() else _world().Get_attr(_attribute("deaths"))
    return watches if isinstance(watches, list) else []


def _is_finalized() -> bool:
    from mpi4py import MPI  # noqa: PLC0415

    return MPI.Is_finalized()


def check_company(comm: "MPI.Intracomm") -> None:
    """Raise StartError if this process is alone in its MPI.COMM_WORLD though it was started as one of several."""
    from mpi4py import MPI  # noqa: PLC0415

    started = size_in_environment()
    if comm.size > 1 or started == 1:
        return
    flavour = flavour_of(MPI.Get_library_version())
    if os.environ.get("SLURM_STEP_NUM_TASKS") == str(started):
        who, remedy = "srun", f"'srun --mpi={'pmix' if flavour is Flavour.OPEN_MPI else 'pmi2'}'"
    else:
        who, remedy = "an mpiexec", "the mpiexec that belongs to it"
    raise _adopt.StartError(
        f"{who} has started {started} processes, but {flavour.value} finds each of them alone: start them with {remedy}"
    )


def enlist(comm: "MPI.Intracomm", root: int) -> Crew | None:
    """Become part of the crew of a communicator: the root gets it, a worker serves and gets None when it is dismissed."""
    with _making:
        crew = comm.Get_attr(_attribute("crew"))
        if isinstance(crew, Crew):
            if comm.rank != root:
                raise ValueError(f"the root of this communicator's executors is rank {comm.rank}, it cannot be rank {root} now")
            return crew
        if comm.rank == root:
            crew = muster(comm, root)
            comm.Set_attr(_attribute("crew"), crew)
            return crew
    serve(comm, root)
    return None


def muster(comm: "MPI.Intracomm", root: int) -> Crew:
    """Make a crew of all ranks, on its root."""
    from mpi4py import MPI  # noqa: PLC0415

    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise RuntimeError("executors need MPI with THREAD_MULTIPLE: leave mpi4py.rc.thread_level as it is")
    if _deaths():
        raise BrokenExecutor("workers of this job have died: no other executor can be made with MPI")
    _await_reports(comm)
    watch = Watch()
    _answer_reports(comm, Orders.of_this_process(watch))
    return Crew(comm, root, watch)


def serve(comm: "MPI.Intracomm", root: int) -> bool:
    """Report to the root, wait for its answer, and serve until it is done; False if there was nothing to do."""
    orders = _report(comm, root)
    if orders is None:
        return False
    comm.Set_attr(_attribute("crew"), "serving")
    with orders.followed():
        own = comm.Dup()
        channels = _channels(own, root)
        _keep_freed_memory()
        keeper = _keeper_of(orders, comm.rank)
        worker = Worker(*channels, Parcels(own, root), Place.here(comm.rank, comm.size), keeper.word if keeper else None)
        try:
            worker.serve()
        except BaseException:  # noqa: BLE001 - what calls raise is not seen here: a fault of ours, and others would wait for this rank
            traceback.print_exc()
            _fail(keeper)
        if not _part_from_root(own, root):
            _stay(keeper, channels)
        if keeper is not None:
            keeper.dismiss()
        _dissolve(own, channels)
    comm.Delete_attr(_attribute("crew"))
    return True


def _keeper_of(orders: "Orders", rank: int) -> Kept | None:
    """Have this worker's keeper listen to the root; None if it has none, or it cannot, being on another node."""
    keeper = _world().Get_attr(_attribute("keeper"))
    if not isinstance(keeper, Kept) or orders.node != node_name():
        return None
    keeper.serve(orders.watch, orders.token, rank)
    return keeper


def _part_from_root(comm: "MPI.Intracomm", root: int) -> bool:
    """Tell the root that this worker has left its loop; whether all workers live."""
    sys.stdout.flush()
    sys.stderr.flush()
    comm.send(None, root, _TAG)
    pause = _SHORTEST
    while not comm.Iprobe(root, _TAG):
        time.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST)
    return bool(comm.recv(source=root, tag=_TAG))


def _fail(keeper: Kept | None) -> NoReturn:
    """Die as a worker that something has killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    if keeper is None:
        _world().Abort(1)
    os._exit(1)


def _stay(keeper: Kept | None, channels: tuple[RemoteChannel[Any, Any], ...]) -> NoReturn:
    """Wait for the end, having lost a fellow worker: MPI can be finalised no more, and who leaves first ends the job."""
    for channel in channels:
        channel.abandon()
    if keeper is None:
        take_leave(connection(), mapped()[0], initialise=False)
        os._exit(0)
    keeper.stay()


def has_crew(comm: "MPI.Intracomm") -> bool:
    """Whether the ranks of the communicator are a crew for good."""
    return isinstance(comm.Get_attr(_attribute("crew")), Crew)


def is_serving(comm: "MPI.Intracomm") -> bool:
    """Whether this rank is a worker of the communicator's crew."""
    return comm.Get_attr(_attribute("crew")) == "serving"


def dismiss(comm: "MPI.Intracomm", root: int) -> None:
    """Send the workers home that wait for a further crew; on the root, once it makes none any more. After a death all stay."""
    if comm.rank == root and not _deaths():
        _await_reports(comm)
        _answer_reports(comm, None)


def leave() -> None:
    """End a worker's process: its script goes no further, and runs none of its exit handlers."""
    from mpi4py import MPI  # noqa: PLC0415

    MPI.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not os._exit: MPICH takes leave of its process manager in an exit handler of the C library.
    ctypes.CDLL(None).exit(0)


def _world() -> "MPI.Intracomm":
    from mpi4py import MPI  # noqa: PLC0415 - initialises MPI: not before it is needed

    return MPI.COMM_WORLD


@functools.cache
def _attribute(name: str) -> int:  # noqa: ARG001 - one key for each
    """Give the key under which a communicator knows its crew, or its job."""
    from mpi4py import MPI  # noqa: PLC0415

    return MPI.Comm.Create_keyval()


def _crew_size(max_workers: int | None) -> int:
    wanted = os.environ.get(MAX_WORKERS_VARIABLE)
    if not wanted:
        return max_workers or usable_cores()
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"{MAX_WORKERS_VARIABLE} is the number of workers to start, at least 1, not {wanted!r}")
    return int(wanted)


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker takes over from the script's process, as long as it serves."""

    path: list[str]  # what the script can import its workers can import
    filters: list[bytes | memoryview]  # of warnings, pickled: their categories may have to be found on the path first
    node: str  # the root's
    watch: str  # address of what listens there to keepers,
    token: str  # which they must know

    @classmethod
    def of_this_process(cls, watch: Watch) -> "Orders":
        filters = [Blob.of(item).data for item in warnings.filters]
        return cls(_adopt.import_path(), filters, node_name(), watch.address, watch.token)

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Be a worker, and then as before."""
        path = list(sys.path)
        stdin = sys.stdin
        with warnings.catch_warnings(), _uninterrupted(), Path(os.devnull).open() as nothing:
            sys.path[:] = self.path
            _filter_warnings(self.filters)
            sys.stdin = nothing  # nobody can answer what a call asks
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):  # what a call prints appears at once, as at a terminal
                    stream.reconfigure(line_buffering=True)
            try:
                yield
            finally:
                sys.path[:], sys.stdin = path, stdin


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Leave Ctrl-C to the root. By a handler, not SIG_IGN, which the children of calls would inherit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # None: it was set by other code than Python's


def _filter_warnings(filters: list[bytes | memoryview]) -> None:
    warnings.resetwarnings()
    for item in reversed(filters):
        try:
            action, message, category, module, line = Blob(item).load()
        except Exception:
            logger.exception("a warning filter of the script cannot be used in its workers")
            continue
        patterns = [pattern.pattern if isinstance(pattern, re.Pattern) else pattern or "" for pattern in (message, module)]
        warnings.filterwarnings(action, patterns[0], category, patterns[1], line)


def _await_reports(comm: "MPI.Intracomm") -> None:
    """Wait for every other rank's report; say for whom if that takes long."""
    missing = set(range(comm.size)) - {comm.rank}
    since, pause, told = time.monotonic(), _SHORTEST, False
    while missing:
        came = {rank for rank in missing if comm.Iprobe(rank, _TAG)}
        for rank in came:
            comm.recv(source=rank, tag=_TAG)
        missing -= came
        pause = _SHORTEST if came else min(pause * _GROWTH, _LONGEST)
        if missing and not came:
            time.sleep(pause)
        if missing and not told and time.monotonic() - since > _PATIENCE:
            told = True
            logger.warning(
                "the executor on rank %d still waits for %s: every rank of the communicator has to make it, or must be "
                "started as a worker with 'python -m mpiexecutor'",
                comm.rank,
                _ranks(missing),
            )


def _answer_reports(comm: "MPI.Intracomm", orders: Orders | None) -> None:
    """Have the ranks that have reported serve, or, without orders, go home."""
    data = Blob.of(orders).data
    for rank in range(comm.size):
        if rank != comm.rank:
            comm.send(data, rank, _TAG)


def _report(comm: "MPI.Intracomm", root: int) -> Orders | None:
    """Report to the root, and wait for its answer."""
    comm.send(None, root, _TAG)
    since, pause, told = time.monotonic(), _SHORTEST, False
    while not comm.Iprobe(root, _TAG):
        time.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST)
        if not told and time.monotonic() - since > 6 * _PATIENCE:
            told = True
            logger.warning("worker rank %d still waits for rank %d to make an executor", comm.rank, root)
    orders = Blob(comm.recv(source=root, tag=_TAG)).load()
    return orders if isinstance(orders, Orders) else None


def _channels(comm: "MPI.Intracomm", root: int) -> tuple[RemoteChannel[Any, Any], RemoteChannel[Any, Any]]:
    """Make the work channel and the reply channel, together."""
    alone: Any = "host" if comm.size == 1 else "any"
    work = RemoteChannel[Any, Any](_SLOTS, _SLOT_SIZE, object, root, comm=comm, producers="host", consumers=alone)
    replies = RemoteChannel[Any, Any](_SLOTS, _SLOT_SIZE, object, root, comm=comm, producers=alone, consumers="host")
    return work, replies


def _keep_freed_memory() -> None:
    """Have the C library keep some of the memory that calls free, for the next ones: fresh pages cost more than copying to them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def _dissolve(comm: "MPI.Intracomm", channels: tuple[RemoteChannel[Any, Any], ...]) -> None:
    for channel in channels:
        channel.free()
    comm.Free()


def _script_failed() -> bool:
    """Whether the script has ended with a traceback. At a prompt that is no end."""
    return getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")


def _ranks(ranks: set[int]) -> str:
    names = ", ".join(map(str, sorted(ranks)[:10]))
    more = f" and {len(ranks) - 10} more" if len(ranks) > 10 else ""  # noqa: PLR2004 - enough to see which
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}{more}"

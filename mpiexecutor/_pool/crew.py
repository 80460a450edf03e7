"""How ranks come to be a crew: one root, which runs the script, and workers, which serve it until it ends.

Every rank of a communicator enlists. A worker reports to the root and waits for its word; the root waits for all of them, and
says for whom if that takes long (see registration.py). Only then do they make their channels, which is collective: a rank that
never comes is noticed, not waited for in silence.

A crew lives as long as its communicator; all executors on it share it. It is kept where MPI wants such things kept, as an
attribute of the communicator.
"""

import atexit
import contextlib
import ctypes
import functools
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from mpiexecutor._calls import messages
from mpiexecutor._calls.bulk import Parcels
from mpiexecutor._calls.outcomes import Place
from mpiexecutor._calls.scheduler import Pump
from mpiexecutor._calls.worker import Worker
from mpiexecutor._liveness.monitor import Undertaker, Watch, WorkerStatus
from mpiexecutor._liveness.process_manager import mapped, remove
from mpiexecutor._liveness.status_page import Slate
from mpiexecutor._liveness.supervisor import Kept
from mpiexecutor._rma.failed_ranks import DEATHS
from mpiexecutor._script.state import Origin
from mpiexecutor._script.surroundings import note_environment
from mpiexecutor._start.process import STANDING, comm_world
from mpiexecutor._util.seconds import STUCK as _PATIENCE
from mpiexecutor.channel import RemoteChannel

from .membership import Member, Parting, exchange_of, own_keeper
from .registration import Orders, Report, answer_reports, await_reports, report, serving

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("mpiexecutor")

_making = threading.Lock()  # crews are made one at a time
_LAST_WORDS = 0.2  # seconds that what was printed has to get through before the job is aborted
_SLOTS, _SLOT_SIZE = 256, 16384  # of each channel: messages of calls are small, and large ones take many slots
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
_LARGEST_ON_HEAP = 32 << 20  # bytes: what is larger is given back to the system when it is freed
_KEPT = 64 << 20  # bytes that a worker keeps of what was freed


class Crew:
    """The root's side of a crew."""

    def __init__(self, comm: "MPI.Intracomm", orders: Orders, reports: dict[int, Report], origin: Origin) -> None:
        """`origin` says what the workers have of the script, unless they were started without it."""
        self._origin = origin
        note_environment()
        self._watch = watch = Watch(orders.watch, orders.token)
        self._reports = reports  # by rank
        root = orders.root
        self._comm = comm.Dup()
        self._channels = _channels(self._comm, root)
        self._parcels = parcels = Parcels(self._comm, root, lambda rank: rank in watch.dead and rank not in watch.silent)
        self._exchange = exchange_of(self._comm, orders, watch, reports)
        self.place = Place.here(comm.rank, comm.size)
        self.alone = comm.size == 1
        self.workers = max(1, comm.size - 1)
        self._thread: threading.Thread | None = None
        if self.alone:
            fail = partial(self._give_up, "the worker has failed")
            worker = Worker(*self._channels, parcels, self.place, Slate(), fail=fail)
            self._thread = threading.Thread(target=worker.serve, name="mpiexecutor worker", daemon=True)
            self._thread.start()
        self.pump = Pump(*self._channels, parcels, self.workers, self.place)
        self.closed = False
        self._needs = contextlib.ExitStack()
        self._needs.enter_context(DEATHS.all_needed("the service of an executor"))  # whose workers have no keepers of ours then
        self._parting: Parting | None = None  # from the workers, in the end
        self._wedged = False  # they will never be of use again
        pump = self.pump
        watch.returned = pump.regain
        watch.spans_job = comm.size == comm_world().size
        Undertaker(watch, self._channels, renumber=pump.renumber, bury=pump.lose, give_up=self._give_up, note=self._note_loss)
        self._job = STANDING.job
        if self._job is not None:
            self._job.tell_of_end(
                watch.attend, partial(self._give_up, "the job has ended: mpiexec was killed, or a worker without keeper")
            )
        watch.await_keepers(reports.keys() - set(self.without_keeper))
        atexit.register(self.close)
        os.register_at_fork(after_in_child=partial(_tell_forked, weakref.ref(self)))

    def forked(self) -> None:
        """In a forked child: the workers are its parent's. The windows are shared memory, and must not be touched."""
        self.closed = True
        atexit.unregister(self.close)
        self.pump.disown("this executor belongs to the process that has made it, not to one forked from it")
        for channel in self._channels:
            channel.disown()

    def origin(self) -> Origin:
        """Say where the next executor's workers have the script's globals from."""
        if self.started_here or STANDING.runs_alone:
            return Origin.TOP_LEVEL
        origin, self._origin = self._origin, Origin.NOTHING
        return origin

    @property
    def started_here(self) -> bool:
        """Whether this process has started the workers itself."""
        return self._job is not None

    @property
    def without_keeper(self) -> list[int]:
        """The workers that cannot be killed unless the job ends with them; rank 0 is a thread of this process."""
        return [0] if self.alone else [rank for rank, said in self._reports.items() if not said.kept]

    def workers_now(self) -> list[WorkerStatus]:
        """Say what each worker does."""
        if self.alone:
            return [
                WorkerStatus(self.place.rank, self.place.host, self.place.pid, "unknown", None, self.pump.done_by(self.place.rank))
            ]
        return [
            WorkerStatus(rank, said.host, said.pid, *self._watch.state_of(rank), self.pump.done_by(rank))
            for rank, said in sorted(self._reports.items())
        ]

    def end_workers(self, how: bytes) -> None:
        """Have all workers end, by KILL or TERMINATE."""
        for rank in () if self.closed else self._reports:
            self._watch.doom(rank, how)

    def close(self, *, for_good: bool = True) -> None:
        """Have every executor finish what it has, and dismiss the workers. Nothing can be submitted any more.

        For `for_good` see Parting.
        """
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.close)
        try:
            with self._needs:
                self._finish(for_good=for_good)
        except BaseException:  # Ctrl-C: nobody wants to wait any more
            self._abort()
            raise

    def _finish(self, *, for_good: bool) -> None:
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
            STANDING.deaths.append(self._watch)
            return
        self.pump.stop()
        if self._thread is not None:
            self._thread.join()
        self._parting = Parting(self._comm, self._watch, self._reports, for_good=for_good)
        if self._parting.part():
            if self._exchange is not None:
                self._exchange.stop()
            _dissolve(self._comm, self._channels, self._parcels)
            self._watch.stop()
        else:
            self._abandon()
            STANDING.deaths.append(self._watch)

    def _note_loss(self) -> None:
        """End everything if a worker has died while all ranks give up the channels together: the others wait for it for ever."""
        if self._parting is not None and self._parting.of_all:
            self._abort()
            os._exit(1)

    def _give_up(self, reason: str) -> None:
        """Fail everything, for good; if that cannot be done, because a thread is stuck inside MPI with the pump, end the job."""
        self._wedged = True
        given_up = threading.Event()

        def give_up() -> None:
            self.pump.give_up(reason)
            given_up.set()

        try:
            threading.Thread(target=give_up, name="mpiexecutor end", daemon=True).start()
        except RuntimeError:  # this process is ending, and starts no thread any more
            give_up()
        while not given_up.wait(_PATIENCE):
            if self.pump.is_stuck(_PATIENCE):
                logger.critical("%s; this process is stuck inside MPI, too: the job is ended", reason)
                sys.stdout.flush()
                sys.stderr.flush()
                time.sleep(_LAST_WORDS)
                if self._job is not None:
                    self._job.abort()
                os._exit(1)  # without MPI; it ends the job

    def _abort(self) -> None:
        """End the workers at once: calls are still running, and nobody wants their results any more."""
        sys.stdout.flush()
        sys.stderr.flush()
        if self._job is None:
            time.sleep(_LAST_WORDS)  # or mpiexec may be told before it has read them
            remove(mapped()[1])
            comm_world().Abort(1)  # all of it: ranks outside this communicator would wait for ever
        else:
            self._watch.foresee_deaths()
            remove(mapped()[1])  # nobody finalises MPI
            self._abandon()
            self._job.abort()

    def _abandon(self) -> None:
        """Leave what was made together with the others as it is."""
        for channel in self._channels:
            channel.abandon()
        self._parcels.leave()


def _tell_forked(reference: "weakref.ref[Crew]") -> None:
    if (crew := reference()) is not None:
        crew.forked()


def enlist(comm: "MPI.Intracomm", root: int) -> Crew | None:
    """Become part of the crew of a communicator: the root gets it, a worker serves and gets None when it is dismissed."""
    with _making:
        crew = comm.Get_attr(_key())
        if isinstance(crew, Crew):
            if comm.rank != root:
                raise ValueError(f"the root of this communicator's executors is rank {comm.rank}, it cannot be rank {root} now")
            return crew
        if comm.rank == root:
            crew = muster(comm, root, Origin.RANK)
            comm.Set_attr(_key(), crew)
            return crew
    serve(comm, root)
    return None


def muster(comm: "MPI.Intracomm", root: int, origin: Origin = Origin.NOTHING) -> Crew:
    """Make a crew of all ranks, on its root. `origin`: see Crew."""
    from mpi4py import MPI  # noqa: PLC0415

    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        raise RuntimeError("executors need MPI with THREAD_MULTIPLE: leave mpi4py.rc.thread_level as it is")
    if STANDING.deaths or DEATHS.any_known():
        raise BrokenProcessPool("workers of this job have died: no other executor can be made with MPI")
    reports = await_reports(comm)
    orders = Orders.of_this_process(root, reports)
    answer_reports(comm, orders)
    return Crew(comm, orders, reports, origin)


def serve(comm: "MPI.Intracomm", root: int) -> bool:
    """Report to the root, wait for its answer, and serve until it is done; False if there was nothing to do."""
    keeper = own_keeper()
    orders = report(comm, root, kept=keeper is not None)
    if orders is None:
        return False
    comm.Set_attr(_key(), "serving")
    STANDING.serves = True
    with serving():
        own = comm.Dup()
        channels = _channels(own, root)
        parcels = Parcels(own, root)
        _keep_freed_memory()
        member = Member(own, orders, keeper)  # the last that all make together: from here on its death is its own
        slate, enforce_limit = (keeper.slate, keeper.limit) if keeper else (Slate(), None)
        place = Place.here(comm.rank, comm.size)
        worker = Worker(*channels, parcels, place, slate, enforce_limit, fail=partial(_fail, keeper))
        try:
            worker.serve()
        except BaseException:  # noqa: BLE001 - what calls raise is not seen here: a fault of ours, and others would wait for this rank
            traceback.print_exc()
            _fail(keeper)
        member.part(channels)
        _dissolve(own, channels, parcels)
    comm.Delete_attr(_key())
    STANDING.serves = False
    return True


def _fail(keeper: Kept | None) -> NoReturn:
    """Die as a worker that something has killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    if keeper is None:
        comm_world().Abort(1)
    os._exit(1)


@functools.cache
def _key() -> int:
    """Give the key under which a communicator knows its crew."""
    from mpi4py import MPI  # noqa: PLC0415

    return MPI.Comm.Create_keyval()


def has_crew(comm: "MPI.Intracomm") -> bool:
    """Whether the ranks of the communicator are a crew for good."""
    return isinstance(comm.Get_attr(_key()), Crew)


def is_serving(comm: "MPI.Intracomm") -> bool:
    """Whether this rank is a worker of the communicator's crew."""
    return comm.Get_attr(_key()) == "serving"


def dismiss(comm: "MPI.Intracomm", root: int) -> None:
    """Send the workers home that wait for a further crew; on the root, once it makes none any more. After a death all stay."""
    if comm.rank == root and not STANDING.deaths:
        await_reports(comm)
        answer_reports(comm, None)


def _channels(comm: "MPI.Intracomm", root: int) -> tuple[RemoteChannel[Any, Any], RemoteChannel[Any, Any]]:
    """Make the work channel and the reply channel, together."""
    alone: Any = "host" if comm.size == 1 else "any"
    kind: Any = messages
    work = RemoteChannel[Any, Any](_SLOTS, _SLOT_SIZE, kind, root, comm=comm, producers="host", consumers=alone)
    replies = RemoteChannel[Any, Any](_SLOTS, _SLOT_SIZE, kind, root, comm=comm, producers=alone, consumers="host")
    return work, replies


def _keep_freed_memory() -> None:
    """Have the C library keep some of the memory that calls free, for the next ones: fresh pages cost more than copying to them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def _dissolve(comm: "MPI.Intracomm", channels: tuple[RemoteChannel[Any, Any], ...], parcels: Parcels) -> None:
    for channel in channels:
        channel.free()
    parcels.free()
    comm.Free()


def _script_failed() -> bool:
    """Whether the script has ended with a traceback. At a prompt that is no end."""
    return getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")

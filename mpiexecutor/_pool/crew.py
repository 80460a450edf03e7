"""How ranks come to be a crew: one root, which runs the script, and workers, which serve it until it ends.

Every rank of a communicator enlists. A worker reports to the root and waits for its word; the root waits for all of them, and
says for whom if that takes long (see registration.py). Only then do they make their channels, which is collective: a rank that
never comes is noticed, not waited for in silence.

A crew lives as long as its communicator; all executors on it share it. It is kept where MPI wants such things kept, as an
attribute of the communicator.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING

from mpiexecutor._calls.outcomes import Location
from mpiexecutor._calls.scheduling.scheduler import Scheduler
from mpiexecutor._calls.worker import Worker
from mpiexecutor._liveness.monitor import WorkerStatus
from mpiexecutor._liveness.process_manager import mapped, remove
from mpiexecutor._liveness.recovery import Undertaker
from mpiexecutor._liveness.status_page import Slate
from mpiexecutor._rma.failed_ranks import DEATHS
from mpiexecutor._script.state import Origin
from mpiexecutor._script.surroundings import note_environment
from mpiexecutor._start.process import STANDING, comm_world
from mpiexecutor._util.process_end import PROCESS_END
from mpiexecutor._util.seconds import STUCK as _PATIENCE

from .links import Links
from .membership import Root
from .registration import answer_reports, await_reports
from .serve import key, serve

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("mpiexecutor")

_making = threading.Lock()  # crews are made one at a time
_LAST_WORDS = 0.2  # seconds that what was printed has to get through before the job is aborted


class Crew:
    """The root's side of a crew."""

    def __init__(self, comm: "MPI.Intracomm", root: int, origin: Origin) -> None:
        """`origin` says what the workers have of the script, unless they were started without it."""
        self._origin = origin
        note_environment()
        self._members = members = Root(comm, root)
        self._watch = watch = members.watch
        self._links = links = Links(members.comm, root, lambda rank: rank in watch.dead and rank not in watch.silent)
        members.join()
        self.location = Location.here(comm.rank, comm.size)
        self.alone = comm.size == 1
        self.workers = max(1, comm.size - 1)
        self._thread: threading.Thread | None = None
        if self.alone:
            fail = partial(self._give_up, "the worker has failed")
            worker = Worker(*links.channels, links.bulk, self.location, Slate(), fail=fail)
            self._thread = threading.Thread(target=worker.serve, name="mpiexecutor worker", daemon=True)
            self._thread.start()
        self.scheduler = Scheduler(*links.channels, links.bulk, self.workers, self.location)
        self.closed = False
        self._needs = contextlib.ExitStack()
        self._needs.enter_context(DEATHS.all_needed("the service of an executor"))  # whose workers have no keepers of ours then
        self._wedged = False  # they will never be of use again
        scheduler = self.scheduler
        watch.returned = scheduler.regain
        Undertaker(
            watch, links.channels, renumber=scheduler.renumber, bury=scheduler.lose, give_up=self._give_up, note=self._note_loss
        )
        self._job = STANDING.job
        if self._job is not None:
            self._job.tell_of_end(
                watch.attend, partial(self._give_up, "the job has ended: mpiexec was killed, or a worker without keeper")
            )
        members.await_keepers()
        PROCESS_END.add(self.close)
        PROCESS_END.disown_in_child(self.forked)

    def forked(self) -> None:
        """In a forked child: the workers are its parent's. The windows are shared memory, and must not be touched."""
        self.closed = True
        self.scheduler.disown("this executor belongs to the process that has made it, not to one forked from it")
        self._links.disown()

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
        return [0] if self.alone else [rank for rank, said in self._members.reports.items() if not said.kept]

    def workers_now(self) -> list[WorkerStatus]:
        """Say what each worker does."""
        if self.alone:
            return [
                WorkerStatus(
                    self.location.rank,
                    self.location.host,
                    self.location.pid,
                    "unknown",
                    None,
                    self.scheduler.done_by(self.location.rank),
                )
            ]
        return [
            WorkerStatus(rank, said.host, said.pid, *self._watch.state_of(rank), self.scheduler.done_by(rank))
            for rank, said in sorted(self._members.reports.items())
        ]

    def end_workers(self, how: bytes) -> None:
        """Have all workers end, by KILL or TERMINATE."""
        for rank in () if self.closed else self._members.reports:
            self._watch.doom(rank, how)

    def close(self, *, for_good: bool = True) -> None:
        """Have every executor finish what it has, and dismiss the workers. Nothing can be submitted any more.

        `for_good`: nobody has anything else to do then, so a worker that cannot leave, as it is stopped, is killed.
        """
        if self.closed:
            return
        self.closed = True
        PROCESS_END.remove(self.close)
        try:
            with self._needs:
                self._finish(for_good=for_good)
        except BaseException:  # Ctrl-C: nobody wants to wait any more
            self._abort()
            raise

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
            self._links.disown()  # whoever is in the middle of it will stay there
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

    def _note_loss(self) -> None:
        """End everything if a worker has died while all ranks give up the channels together: the others wait for it for ever."""
        if self._members.of_all:
            self._abort()
            os._exit(1)

    def _give_up(self, reason: str) -> None:
        """Fail everything, for good; if a thread is stuck inside MPI with the scheduler, and that cannot be done, end the job."""
        self._wedged = True
        given_up = threading.Event()

        def give_up() -> None:
            self.scheduler.give_up(reason)
            given_up.set()

        try:
            threading.Thread(target=give_up, name="mpiexecutor end", daemon=True).start()
        except RuntimeError:  # this process is ending, and starts no thread any more
            give_up()
        while not given_up.wait(_PATIENCE):
            if self.scheduler.is_stuck(_PATIENCE):
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
            self._links.abandon()
            self._job.abort()


def enlist(comm: "MPI.Intracomm", root: int) -> Crew | None:
    """Become part of the crew of a communicator: the root gets it, a worker serves and gets None when it is dismissed."""
    with _making:
        crew = comm.Get_attr(key())
        if isinstance(crew, Crew):
            if comm.rank != root:
                raise ValueError(f"the root of this communicator's executors is rank {comm.rank}, it cannot be rank {root} now")
            return crew
        if comm.rank == root:
            crew = muster(comm, root, Origin.RANK)
            comm.Set_attr(key(), crew)
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
    return Crew(comm, root, origin)


def has_crew(comm: "MPI.Intracomm") -> bool:
    """Whether the ranks of the communicator are a crew for good."""
    return isinstance(comm.Get_attr(key()), Crew)


def dismiss(comm: "MPI.Intracomm", root: int) -> None:
    """Send the workers home that wait for a further crew; on the root, once it makes none any more. After a death all stay."""
    if comm.rank == root and not STANDING.deaths:
        await_reports(comm)
        answer_reports(comm, None)


def _script_failed() -> bool:
    """Whether the script has ended with a traceback. At a prompt that is no end."""
    return getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")

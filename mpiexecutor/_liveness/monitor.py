"""Which workers live, as their supervisors report, and how the root sends commands to these.

A FailureMonitor listens to the supervisors of its own node and puts each failure into a queue, for a recovery thread. Its thread
never enters MPI. So it goes on listening while others hang there, and checks the watchdog (see _rma/recovery_thread.py).
For the whole path of a failure see recovery.py.
"""

import contextlib
import json
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from mpiexecutor._rma.recovery_thread import Watchdog
from mpiexecutor._util.inbox import Inbox
from mpiexecutor._util.polling import wait_for_ranks
from mpiexecutor._util.process_end import PROCESS_END
from mpiexecutor._util.seconds import COMING, HELLO, LEAVING, SILENT

from .commands import BYE, CANCEL, KILL, LEAVE, check_user, hello_of, receive, receive_with_descriptors
from .status_page import Signs, StatusPage
from .supervised import possible

logger = logging.getLogger("mpiexecutor")

_MOST = 4096  # supervisors that may connect at once
_LOOK = 1e-3  # seconds between two looks whether they have gone
_NO_SIGNS = Signs(None, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """A worker has died, or was given up."""

    rank: int
    host: str
    pid: int
    end: str  # how it ended, as "was killed by SIGKILL"
    begun: int | None  # number of the call that it began last, NOTHING or INITIALIZER: see status_page.py; None: not known
    overdue: float = 0.0  # the limit in seconds, if it was killed because its call exceeded that
    silent: bool = False  # it was given up, and perhaps lives
    held: bytes = b""  # outcomes that it had perhaps not put yet: see StatusPage.hold

    def __str__(self) -> str:
        return f"the worker on rank {self.rank}, host {self.host}, pid {self.pid}, {self.end}"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """The status of one worker at one moment: an element of what `RMAChannelExecutor.workers` returns.

    A worker on another node is given up, and counts as lost, after ``MPIEXECUTOR_LOST_AFTER`` seconds (30) without a sign of
    life. Set the variable to more than the longest call that holds the GIL. If the worker was in the middle of a message, which
    no other rank can complete, all pending calls fail with BrokenProcessPool. If its node comes back, the worker is used again.

    Attributes:
        rank: Its rank in the executor's communicator.
        host: Name of its host.
        pid: Its process id on that host; or that of its child process, if that runs its calls.
        state: "idle": it waits for a call. "running": it runs a call. "silent": it gives no sign of life, because it is stopped or
            its call holds the GIL. "lost": it died, or was given up. "unknown": it has no supervisor.
        since: When "running" or "silent" began, in seconds since the epoch as from `time.time`; None for other states.
        done: Number of its calls whose results have arrived.
        calls: Calls that the process with this pid has begun.
        deaths: Number of its child processes that have died; see `isolate` of the executor.

    """

    __module__ = "mpiexecutor"

    rank: int
    host: str
    pid: int
    state: Literal["idle", "running", "silent", "lost", "unknown"]
    since: float | None
    done: int
    calls: int = 0
    deaths: int = 0


class Line(Protocol):
    """A way to send a supervisor a command."""

    def send(self, command: bytes, /) -> object: ...

    def close(self) -> None: ...


def address_of(name: str) -> str:
    """Return the address of a monitor. It is no file, and vanishes with the process."""
    return f"\0mpiexecutor-watch-{name}"


class FailureMonitor:
    """Knows which workers live, and sends commands to their supervisors. Only supervisors can connect: see `hello_of`."""

    def __init__(self, name: str, token: str) -> None:
        """Listen under a name that is hard to guess, and admit supervisors that know the token."""
        self._token = token
        self.failures: Inbox[WorkerFailure | None] = Inbox()  # None: no more will come
        self.failed: set[int] = set()  # ranks
        self.ending: set[int] = set()  # ranks that were told to end: they live, end soon, or have ended
        self.silent: set[int] = set()  # failed ranks that perhaps live
        self.returned: Callable[[int], object] = lambda _rank: None  # called if a silent rank gives a sign of life again
        self.first_lost: WorkerFailure | None = None  # the first whose supervisor has vanished: its process manager ends the job
        self.spans_job = False  # all ranks of the job are monitored
        self._supervisors: dict[int, Line] = {}  # by rank
        self._pages: dict[int, StatusPage | Signs] = {}  # by rank
        self._expected: dict[int, bytes] = {}  # ranks that this process wants to end, and the command for that
        self._selector = selectors.DefaultSelector()
        self._here, self._there = socket.socketpair()  # wakes the thread
        self._selector.register(self._here, selectors.EVENT_READ, lambda _: self._here.recv(1))
        self._listener: socket.socket | None = None
        if possible():
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._listener.bind(address_of(name))
            self._listener.listen(_MOST)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._look: Callable[[], object] = lambda: None  # receives what comes from other nodes
        self.watchdog = Watchdog(lambda: self._there.send(b"!"))
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, name="mpiexecutor monitor", daemon=True)
        self._thread.start()
        PROCESS_END.disown_in_child(self.close)

    def await_supervisors(self, ranks: Collection[int]) -> None:
        """Wait until the supervisors of these ranks have connected, as they are about to."""
        until = time.monotonic() + COMING
        wait_for_ranks(lambda: self._pages.keys() >= set(ranks) or time.monotonic() > until)

    def kill(self, rank: int) -> bool:
        """Have a worker killed. Return False if it has no supervisor."""
        if rank in self.failed or rank not in self._supervisors:
            return False
        self.ending.add(rank)
        self.tell(rank, KILL)
        return True

    def kill_on_connect(self, rank: int, how: bytes) -> None:
        """Have a worker end, by KILL or TERMINATE; if its supervisor has not connected yet, as soon as it does."""
        self.ending.add(rank)
        self._expected[rank] = how  # before it is looked for; admit does so the other way round
        self.tell(rank, how)

    def tell(self, rank: int, command: bytes) -> bool:
        """Send a command to a worker's supervisor. Return False if it has none, or that has gone."""
        supervisor = self._supervisors.get(rank)
        if supervisor is None:
            return False
        with contextlib.suppress(OSError):
            supervisor.send(command)
        return True

    def expect_failures(self) -> None:
        """Expect all workers to fail: this process ends the job."""
        self._expected |= dict.fromkeys(self._pages, KILL)

    def is_expected(self, rank: int) -> bool:
        """Return whether this process wanted a worker to end."""
        return rank in self._expected

    def state_of(self, rank: int) -> tuple[Literal["idle", "running", "silent", "lost", "unknown"], float | None]:
        """Return the state of a worker, and since when: see WorkerStatus."""
        if rank in self.failed:
            return "lost", None
        page = self._pages.get(rank)
        if page is None:
            return "unknown", None
        now, wall = time.monotonic(), time.time()
        if now - (seen := page.seen) > SILENT:
            return "silent", wall - now + seen
        since = page.busy_since
        return ("idle", None) if since is None else ("running", wall - now + since)

    def page_of(self, rank: int) -> StatusPage | Signs:
        """Return the status page of a worker, or the signs of life that it has given."""
        return self._pages.get(rank, _NO_SIGNS)

    def cancel(self, numbers: Sequence[int]) -> None:
        """Have no worker run these calls: children that do are killed."""
        for rank in list(self._supervisors):
            self.tell(rank, CANCEL + json.dumps(numbers).encode())

    def is_stopped(self, rank: int) -> bool:
        """Return whether a worker gives no signs of life, though its node does."""
        page = self._pages.get(rank)
        now = time.monotonic()
        if page is None or rank in self.failed or (isinstance(page, Signs) and now - page.told > SILENT):
            return False
        return now - page.seen > SILENT

    @property
    def known(self) -> frozenset[int]:
        """The ranks whose supervisors have connected."""
        return frozenset(self._pages)

    def signs(self) -> Iterator[tuple[int, Signs]]:
        """Yield the signs of life of the living workers, with their ranks."""
        for rank, page in list(self._pages.items()):
            if rank not in self.failed:
                yield rank, Signs(page.busy_since, page.seen, time.monotonic(), page.runner, page.calls, page.deaths)

    def admit(self, rank: int, supervisor: Line, page: StatusPage | Signs) -> None:
        """Note the way to a worker's supervisor, and the worker's status page or signs of life."""
        self._pages[rank] = page
        self._supervisors[rank] = supervisor
        if rank in self._expected:
            self.tell(rank, self._expected[rank])

    def forget_supervisor(self, rank: int) -> None:
        """Note that a supervisor has gone, or cannot be reached any more."""
        if (supervisor := self._supervisors.pop(rank, None)) is not None:
            supervisor.close()

    def lose(self, failure: WorkerFailure) -> None:
        """Note a failure, once for each rank."""
        if failure.rank not in self.failed:
            self.failed.add(failure.rank)
            self.failures.put(failure)

    def take_back(self, rank: int, supervisor: Line) -> None:
        """Note that a silent worker lives."""
        logger.warning("the worker on rank %d was heard of again", rank)
        self.failed.discard(rank)  # first: a rank in `failed` alone has died for sure
        self.silent.discard(rank)
        self._supervisors[rank] = supervisor
        self.returned(rank)

    def hear_by(self, look: Callable[[], object]) -> None:
        """Have `look` called while this waits for supervisors of other nodes: see forwarder.py."""
        self._look = look

    def attend(self, descriptor: int, happened: Callable[[], None]) -> None:
        """Have `happened` called once, when `descriptor` can be read."""

        def once(_: object) -> None:
            self._selector.unregister(descriptor)
            happened()

        self._selector.register(descriptor, selectors.EVENT_READ, once)
        self._there.send(b"!")

    def shut_down_supervisors(self, ranks: Collection[int] | None = None) -> None:
        """Have all supervisors, or those of some ranks, end with their ranks. Wait until they have done so."""
        leaving = set(self._supervisors if ranks is None else ranks)
        for rank in leaving:
            self.tell(rank, LEAVE)
        until = time.monotonic() + LEAVING
        while leaving & self._supervisors.keys() and time.monotonic() < until:
            self._look()
            time.sleep(_LOOK)

    def stop(self) -> None:
        """Stop listening. Supervisors have left before, so that this is no failure."""
        self._stopped = True
        self._there.send(b"!")
        self._thread.join()
        self.failures.put(None)
        self.close()
        self._pages.clear()

    def close(self) -> None:
        """Close the connections, and send nothing: in a forked child they are its parent's."""
        for connection in (self._here, self._there, self._listener, *self._supervisors.values()):
            if connection is not None:
                connection.close()
        self._selector.close()

    def _listen(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select(self.watchdog.left()):
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection = listener.accept()[0]
        except OSError:  # the peer has gone again, or too many files are open
            time.sleep(_LOOK)
            return
        try:
            hello, page = self._hello(connection)
        except Exception:  # noqa: BLE001 - no supervisor of ours, whatever it has sent
            connection.close()
            return
        with contextlib.suppress(OSError):
            connection.send(b"!")  # before any command
        self._selector.register(connection, selectors.EVENT_READ, partial(self._hear, hello, page))
        self.admit(hello["rank"], connection, page)

    def _hello(self, connection: socket.socket) -> tuple[dict[str, Any], StatusPage]:
        """Receive the first message of a supervisor, and its rank's page. Raise any error if the peer is none of ours."""
        check_user(connection)
        connection.settimeout(HELLO)
        data, descriptors = receive_with_descriptors(connection)
        try:
            hello = hello_of(data, self._token)
            page = StatusPage(*descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.settimeout(None)
        return hello, page

    def _hear(self, hello: dict[str, Any], page: StatusPage, supervisor: socket.socket) -> None:
        """Receive a message of a supervisor: a failure, or that it disconnects; or it has gone."""
        data = b""
        with contextlib.suppress(OSError):
            data = receive(supervisor)
        rank = hello["rank"]
        if data in {b"", BYE}:
            self._selector.unregister(supervisor)
            self.forget_supervisor(rank)
        if data != BYE:
            said = json.loads(data) if data else {"end": "was lost together with its supervisor", "begun": None}
            held = page.held if data else b""  # otherwise the rank may still write
            failure = WorkerFailure(**hello, **said, held=held)
            if not data and self.first_lost is None:
                self.first_lost = failure
            self.lose(failure)

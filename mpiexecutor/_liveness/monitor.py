"""Which workers live, as far as their supervisors say, and how the root tells these what to do.

A FailureMonitor listens to the supervisors of its own node and puts each failure into a queue, for a recovery thread. Its thread
never enters MPI. So it goes on listening while others are stuck there, and keeps the watchdog's time (see _rma/recovery_thread.py).
For the whole path of a failure see recovery.py.
"""

import contextlib
import hmac
import json
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from mpiexecutor._rma.recovery_thread import Watchdog
from mpiexecutor._util.inbox import Inbox
from mpiexecutor._util.polling import wait_for_ranks
from mpiexecutor._util.process_end import PROCESS_END
from mpiexecutor._util.seconds import COMING as _COMING
from mpiexecutor._util.seconds import HELLO as _HELLO
from mpiexecutor._util.seconds import LEAVING as _LEAVING
from mpiexecutor._util.seconds import SILENT as _SILENT

from .commands import BYE, KILL, LEAVE, LONGEST, receive
from .status_page import Signs, StatusPage
from .supervised import possible

logger = logging.getLogger("mpiexecutor")

_MOST = 4096  # supervisors that may come at once
_LOOK = 1e-3  # seconds between two looks whether they have


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """A worker that has died."""

    rank: int
    host: str
    pid: int
    end: str  # how
    begun: int | None  # the number of the call that it began last, NOTHING or INITIALIZER: see status_page.py; None: not known
    overdue: float = 0.0  # the seconds that its calls might run, if it was killed as that call ran longer
    silent: bool = False  # given up: perhaps it lives
    held: bytes = b""  # outcomes that it had perhaps not put yet: see StatusPage.hold

    def __str__(self) -> str:
        return f"the worker on rank {self.rank}, host {self.host}, pid {self.pid}, {self.end}"


Loss = WorkerFailure


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """The status of one worker at one moment: an element of what `RMAChannelExecutor.workers` returns.

    Attributes:
        rank: Its rank in the executor's communicator.
        host: Name of its host.
        pid: Its process id on that host.
        state: "idle": it waits for a call. "running": it runs a call. "silent": it gives no sign of life, because it is stopped or
            its call holds the GIL. "lost": it died, or its host is cut off. "unknown": it has no supervisor.
        since: Time at which the state began, in seconds since the epoch as from `time.time`; None if it is not known.
        done: Number of its calls whose results have arrived.

    """

    rank: int
    host: str
    pid: int
    state: Literal["idle", "running", "silent", "lost", "unknown"]
    since: float | None
    done: int


class Line(Protocol):
    """A way to tell a supervisor something."""

    def send(self, wish: bytes, /) -> object: ...

    def close(self) -> None: ...


def address_of(name: str) -> str:
    """Give the address of a monitor, which is no file, and vanishes with its process."""
    return f"\0mpiexecutor-watch-{name}"


class FailureMonitor:
    """Listens to the supervisors of this node. Nobody else gets in: see _start/job.py."""

    def __init__(self, name: str, token: str) -> None:
        """Listen, under a name that is hard to guess, to those who know the token."""
        self._token = token
        self.failures: Inbox[WorkerFailure | None] = Inbox()  # None: there will be none any more
        self.dead: set[int] = set()
        self.silent: set[int] = set()  # of these: perhaps they live
        self.returned: Callable[[int], object] = lambda _rank: None  # called if one of them lives
        self.spans_job = False  # nobody else is in this job but these workers
        self._supervisors: dict[int, Line] = {}  # by rank
        self._pages: dict[int, StatusPage | Signs] = {}  # by rank
        self._expected: dict[int, bytes] = {}  # whom this process wants to end, and how it has put that
        self._selector = selectors.DefaultSelector()
        self._here, self._there = socket.socketpair()  # wakes the thread
        self._selector.register(self._here, selectors.EVENT_READ, lambda _: self._here.recv(1))
        self._listener: socket.socket | None = None
        if possible():
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._listener.bind(address_of(name))
            self._listener.listen(_MOST)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._look: Callable[[], object] = lambda: None  # hears what comes from other nodes
        self.watchdog = Watchdog(lambda: self._there.send(b"!"))
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, name="mpiexecutor monitor", daemon=True)
        self._thread.start()
        PROCESS_END.disown_in_child(self.close)

    def await_supervisors(self, ranks: Collection[int]) -> None:
        """Wait until the supervisors of these ranks have come, who are on their way."""
        until = time.monotonic() + _COMING
        wait_for_ranks(lambda: self._pages.keys() >= set(ranks) or time.monotonic() > until)

    def kill(self, rank: int) -> bool:
        """Have a worker killed; False if it has no keeper."""
        return rank not in self.dead and self.tell(rank, KILL)

    def kill_on_connect(self, rank: int, how: bytes) -> None:
        """Have a worker end, by KILL or TERMINATE: if its supervisor is still to come, then."""
        self._expected[rank] = how  # before the look for its supervisor, who is noted before a look here
        self.tell(rank, how)

    def tell(self, rank: int, wish: bytes) -> bool:
        """Tell a worker's supervisor something; False if it has none, or that has gone."""
        supervisor = self._supervisors.get(rank)
        if supervisor is None:
            return False
        with contextlib.suppress(OSError):
            supervisor.send(wish)
        return True

    def expect_failures(self) -> None:
        """Note that this process ends the job, and all workers with it."""
        self._expected |= dict.fromkeys(self._pages, KILL)

    def is_expected(self, rank: int) -> bool:
        """Whether this process has wanted a worker to end."""
        return rank in self._expected

    def state_of(self, rank: int) -> tuple[Literal["idle", "running", "silent", "lost", "unknown"], float | None]:
        """Say what a worker does, and since when: see WorkerStatus."""
        if rank in self.dead:
            return "lost", None
        page = self._pages.get(rank)
        if page is None:
            return "unknown", None
        now, wall = time.monotonic(), time.time()
        if now - (seen := page.seen) > _SILENT:
            return "silent", wall - now + seen
        since = page.running_since
        return ("idle", None) if since is None else ("running", wall - now + since)

    def is_stopped(self, rank: int) -> bool:
        """Whether a worker is heard of, and gives no signs of life."""
        page = self._pages.get(rank)
        now = time.monotonic()
        if page is None or rank in self.dead or (isinstance(page, Signs) and now - page.told > _SILENT):
            return False
        return now - page.seen > _SILENT

    @property
    def known(self) -> frozenset[int]:
        """Whose supervisors have come."""
        return frozenset(self._pages)

    def signs(self) -> Iterator[tuple[int, Signs]]:
        """Give what the workers that live say of themselves."""
        for rank, page in list(self._pages.items()):
            if rank not in self.dead:
                yield rank, Signs(page.running_since, page.seen, time.monotonic())

    def admit(self, rank: int, supervisor: Line, page: StatusPage | Signs) -> None:
        """Note a supervisor, and its worker's page, or what is known of that now."""
        self._pages[rank] = page
        self._supervisors[rank] = supervisor
        if rank in self._expected:
            self.tell(rank, self._expected[rank])

    def forget_supervisor(self, rank: int) -> None:
        """Note that a supervisor has gone, or can be told nothing any more."""
        if (supervisor := self._supervisors.pop(rank, None)) is not None:
            supervisor.close()

    def lose(self, failure: WorkerFailure) -> None:
        """Note a death, once."""
        if failure.rank not in self.dead:
            self.dead.add(failure.rank)
            self.failures.put(failure)

    def take_back(self, rank: int, supervisor: Line) -> None:
        """Note that a worker lives that was silent."""
        logger.warning("the worker on rank %d was heard of again", rank)
        self.dead.discard(rank)  # first: it is not to be taken for one that is dead for sure
        self.silent.discard(rank)
        self._supervisors[rank] = supervisor
        self.returned(rank)

    def hear_by(self, look: Callable[[], object]) -> None:
        """Have this called while supervisors of other nodes are awaited: see forwarder.py."""
        self._look = look

    def attend(self, descriptor: int, happened: Callable[[], None]) -> None:
        """Have something called, once, when there is something to read."""

        def once(_: object) -> None:
            self._selector.unregister(descriptor)
            happened()

        self._selector.register(descriptor, selectors.EVENT_READ, once)
        self._there.send(b"!")

    def shut_down_supervisors(self, ranks: Collection[int] | None = None) -> None:
        """Have all supervisors end, or those of some ranks, with their ranks, and wait until they have taken leave of the job."""
        leaving = set(self._supervisors if ranks is None else ranks)
        for rank in leaving:
            self.tell(rank, LEAVE)
        until = time.monotonic() + _LEAVING
        while leaving & self._supervisors.keys() and time.monotonic() < until:
            self._look()
            time.sleep(_LOOK)

    def stop(self) -> None:
        """Let the supervisors go, who have been told by their ranks that this is no death."""
        self._stopped = True
        self._there.send(b"!")
        self._thread.join()
        self.failures.put(None)
        self.close()
        self._pages.clear()

    def close(self) -> None:
        """Close the connections, without a word: in a forked child they are its parent's."""
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
        except OSError:  # it has gone away again, or there are too many files
            time.sleep(_LOOK)
            return
        try:
            hello, page = self._hello(connection)
        except Exception:  # noqa: BLE001 - a stranger, whatever it has sent
            connection.close()
            return
        with contextlib.suppress(OSError):
            connection.send(b"!")  # before anything else that it may be sent
        self._selector.register(connection, selectors.EVENT_READ, partial(self._hear, hello, page))
        self.admit(hello["rank"], connection, page)

    def _hello(self, connection: socket.socket) -> tuple[dict[str, Any], StatusPage]:
        """Receive what a supervisor has to say of itself, and its rank's page; any error if it is a stranger."""
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid != os.geteuid():
            raise PermissionError
        connection.settimeout(_HELLO)
        data, descriptors, _, _ = socket.recv_fds(connection, LONGEST, 1)
        try:
            hello: dict[str, Any] = json.loads(data)
            if not hmac.compare_digest(str(hello.pop("token")), self._token):
                raise PermissionError
            page = StatusPage(*descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.settimeout(None)
        return hello, page

    def _hear(self, hello: dict[str, Any], page: StatusPage, supervisor: socket.socket) -> None:
        """Hear from a supervisor of a death; or it is going, or gone."""
        data = b""
        with contextlib.suppress(OSError):
            data = receive(supervisor)
        rank = hello["rank"]
        if data in {b"", BYE}:
            self._selector.unregister(supervisor)
            self.forget_supervisor(rank)
        if data != BYE:
            said = json.loads(data) if data else {"end": "was lost together with its keeper", "begun": None}
            held = page.held if data else b""  # else it may still write
            self.lose(WorkerFailure(**hello, **said, held=held))

"""The supervisor of a rank: it hides the rank's death from the process manager, which would end the job, and tells the root.

    process manager ── starts ──> supervisor ── forks, before MPI ──> rank
                                      │  <── Service, STAYING, DISMISSED ──┘
                                      └── "was killed by SIGKILL" ──> a failure monitor: the root's (see monitor.py)

The process that was started as a rank forks, and the child is the rank. The parent is its supervisor. It shares the rank's
connection to the process manager, and never uses MPI. While the rank serves no root the supervisor changes nothing: it ends as
the rank ends. If the rank dies while it serves, the supervisor stays in its place until the root is done. It kills a rank whose
call runs longer than it may.

Life and death. If the supervisor dies, the kernel kills its rank. The supervisor is connected to the root as long as the root
lives. On LEAVE it kills its rank, if that still lives, tells the process manager that all is well, and ends. When the kernel
closes the connection, because the root has died, it does so without telling the process manager.

On another node than the root's it connects to the monitor of another rank there, which forwards what it hears (see forwarder.py).
When that rank is gone, the supervisor connects to the next one. If there is none any more and its own rank has died, it tells the
process manager that all is well, and ends: the root will miss both.

Only Linux has what this takes (pidfd_open, PR_SET_PDEATHSIG).
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from mpiexecutor._util.seconds import WELCOME

from . import process_manager
from .children import Children, how, stopped
from .commands import (
    BYE,
    CANCEL,
    DISMISSED,
    KILL,
    LEAVE,
    LIMIT,
    NEWS,
    STAYING,
    TERMINATE,
    Service,
    Spawn,
    receive,
    receive_with_descriptors,
)
from .status_page import StatusPage

_PATIENCE = 1.0  # seconds that a child of the script has to end after SIGTERM
_LONGEST_WAIT = 3600.0  # seconds: a poll counts in milliseconds, in 32 bits
_LOST = 1 << 8  # exit status of a supervisor whose root has died, as waitpid returns it: exit code 1


class Supervisor:
    """The parent of a rank: one loop, without threads."""

    def __init__(
        self, rank: int, line: socket.socket, page: StatusPage, descriptor: int, last_words: bytes, handlers: dict[int, Any]
    ) -> None:
        self._rank = rank  # its process id
        self._line = line
        self._page = page
        self._descriptor = descriptor  # of the page
        self._overdue = 0.0  # the limit, in seconds, if the rank was killed because its call exceeded it
        self._last_words = last_words
        self._end = os.pidfd_open(rank)
        self._service: Service | None = None
        self._monitor: socket.socket | None = None
        self._status: int | None = None  # of the rank, once it has ended
        self._poll = select.poll()
        self._children = Children(page, self._poll, handlers)
        self._poll.register(self._end, select.POLLIN)
        self._poll.register(line, select.POLLIN)

    def run(self) -> int:
        """Supervise the rank. Return the status to end with, as waitpid returns it."""
        while self._status is None or self._monitor is not None:
            self._wait()
        return self._status

    def _wait(self) -> None:
        """Wait for an event and handle it; first what the rank has said."""
        enforced = self._service is not None and self._status is None and not self._overdue
        left = self._page.left(time.monotonic()) if enforced else None
        milliseconds = None if left is None else 1e3 * min(max(0.0, left), _LONGEST_WAIT)
        ready = {descriptor for descriptor, _ in self._poll.poll(milliseconds)}
        if not ready:
            self._enforce_limit()
        if self._line.fileno() in ready:
            while self._hear():
                pass
        self._children.handle(ready)
        if self._end in ready:
            self._see_end()
        if self._monitor is not None and self._monitor.fileno() in ready:
            self._obey()

    def _hear(self) -> bool:
        """Handle a message of the rank. Return False if there is none."""
        try:
            data, descriptors = receive_with_descriptors(self._line, socket.MSG_DONTWAIT)
        except OSError:
            return False
        if not data:
            self._poll.unregister(self._line)
            return False
        said = json.loads(data)
        if descriptors:
            self._spawn(Spawn(**said), socket.socket(fileno=descriptors[0]))
            return True
        if said == STAYING:
            self._speak_last()
        elif said == LIMIT:
            pass  # it is on the page: this message only ends the wait
        elif said == DISMISSED:
            self._leave_monitor()
            self._service = None
        else:
            self._service = Service(**said)
            self._connect_to_monitor()
            with contextlib.suppress(OSError):  # the rank has died since
                self._line.send(b"!")
        return True

    def _spawn(self, spawn: Spawn, line: socket.socket) -> None:
        own = [self._end, self._line.fileno(), self._descriptor]
        own += [] if self._monitor is None else [self._monitor.fileno()]
        connection = process_manager.connection()
        self._children.spawn(spawn, line, own if connection is None else [*own, connection])

    def _connect_to_monitor(self) -> None:
        """Connect to the first monitor that answers; the ones before it are not tried again."""
        assert self._service is not None
        addresses = self._service.addresses
        while addresses and not self._connect(addresses[0], self._service):
            addresses.pop(0)

    def _connect(self, address: str, service: Service) -> bool:
        monitor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            monitor.settimeout(WELCOME if service.far else None)
            monitor.connect(address)
            hello = {"token": service.token, "rank": service.rank, "pid": self._rank, "host": socket.gethostname()}
            socket.send_fds(monitor, [json.dumps(hello).encode()], [self._descriptor])
            if not monitor.recv(1):
                raise ConnectionRefusedError
            monitor.settimeout(None)
        except OSError:
            monitor.close()
            return False
        self._monitor = monitor
        self._poll.register(monitor, select.POLLIN)
        return True

    def _leave_monitor(self) -> None:
        """Tell the monitor that no failure follows, and disconnect."""
        if self._monitor is not None:
            with contextlib.suppress(OSError):
                self._monitor.send(BYE)
            self._poll.unregister(self._monitor)
            self._monitor.close()
            self._monitor = None

    def _see_end(self) -> None:
        """Note that the rank has ended. If it was serving, tell the root and stay; or, if no monitor is left, end."""
        self._poll.unregister(self._end)
        _, self._status = os.waitpid(self._rank, 0)
        self._children.end_all()
        if self._monitor is not None:
            self._tell_end()
            self._speak_last()
        elif self._service is not None and self._service.far:
            self._take_leave()

    def _tell_end(self) -> None:
        """Tell the monitor how the rank ended."""
        assert self._monitor is not None
        assert self._status is not None
        end = f"was killed, as its call ran longer than {self._overdue:g} s" if self._overdue else how(self._status)
        failure = {"end": end, "begun": self._page.begun, "overdue": self._overdue}
        with contextlib.suppress(OSError):
            self._monitor.send(json.dumps(failure).encode())

    def _enforce_limit(self) -> None:
        """Kill the process whose call is overdue, the rank or its child."""
        if not self._is_overdue():
            return
        child = self._children.running
        with stopped(child or self._rank):
            if self._is_overdue() and child is not None:
                self._children.kill_running(overdue=self._page.most)
            elif self._is_overdue():
                self._overdue = self._page.most
                os.kill(self._rank, signal.SIGKILL)

    def _cancel(self, numbers: list[int]) -> None:
        """Have these calls not run: kill the child if it runs one."""
        self._page.cancel(numbers)
        child = self._children.running
        if child is not None:
            with stopped(child):
                if self._page.begun in numbers:
                    self._children.kill_running(cancelled=True)

    def _is_overdue(self) -> bool:
        left = self._page.left(time.monotonic())
        return self._page.running_since is not None and left is not None and left <= 0

    def _obey(self) -> None:
        """Carry out a command of the root. If the connection is closed, the root has died or is done: end the rank."""
        assert self._monitor is not None
        assert self._service is not None
        said = b""
        with contextlib.suppress(OSError):
            said = receive(self._monitor)
        if said in {KILL, TERMINATE}:
            if self._status is None:
                os.kill(self._rank, signal.SIGKILL if said == KILL else signal.SIGTERM)
        elif said == LEAVE:
            self._end_rank()
            self._take_leave()
        elif said.startswith(CANCEL):
            self._cancel(json.loads(said.removeprefix(CANCEL)))
        elif said.startswith(NEWS):
            with contextlib.suppress(OSError):  # the rank has died, or does not read what it was sent
                self._line.send(said, socket.MSG_DONTWAIT)
        elif self._service.far:
            self._turn_elsewhere(self._service)
        else:  # the job is being ended: its process manager may not answer, and may kill this process at any moment
            process_manager.remove(self._service.files)
            self._end_rank()
            self._status = _LOST
            self._speak_last()
            self._leave_monitor()

    def _end_rank(self) -> None:
        if self._status is None:
            os.kill(self._rank, signal.SIGKILL)
            self._poll.unregister(self._end)
            os.waitpid(self._rank, 0)
            self._children.end_all()

    def _take_leave(self) -> None:
        """Tell the process manager that all is well with this rank, and end."""
        assert self._service is not None
        self._status = 0
        self._speak_last()
        process_manager.remove(self._service.files)
        process_manager.take_leave(process_manager.connection(), self._service.pmix, initialise=True)
        self._leave_monitor()

    def _turn_elsewhere(self, service: Service) -> None:
        """Connect to another monitor: this one has gone, with its rank."""
        self._leave_monitor()
        service.addresses.pop(0)
        self._connect_to_monitor()
        if self._status is not None:
            if self._monitor is not None:
                self._tell_end()  # perhaps a second time
            else:
                self._take_leave()

    def _speak_last(self) -> None:
        """Write the last words of the rank to both streams, once."""
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):
                os.write(descriptor, self._last_words)
        self._last_words = b""


def be_supervisor(child: int, line: socket.socket, page: StatusPage, descriptor: int, last_words: bytes) -> NoReturn:
    """Be the supervisor of a rank, and end as it does. Whatever happens, the script does not go on here."""
    code = 1
    try:
        handlers = _leave_signals_to_rank()
        status = Supervisor(child, line, page, descriptor, last_words, handlers).run()
        if os.WIFSIGNALED(status):
            end_children()
            _die_by(os.WTERMSIG(status))
        code = os.waitstatus_to_exitcode(status)
    except BaseException:  # noqa: BLE001 - the rank goes with it
        traceback.print_exc()
    finally:
        end_children()
        os._exit(code)


def end_children() -> None:
    """End the processes that the script started on this rank before it became a worker: the job would wait for them."""
    for number, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, 0.0)):
        until = time.monotonic() + patience
        for child in _children():
            with contextlib.suppress(OSError):
                os.kill(child, number)
        while _children() and time.monotonic() < until:
            time.sleep(_PATIENCE / 100)


def _children() -> list[int]:
    """Return the processes that this one has started and that run, and reap those that have ended."""
    with contextlib.suppress(OSError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(process.name))
    return found


def _leave_signals_to_rank() -> dict[int, Any]:
    """Ignore Ctrl-C, signals that the script handles, and SIGUSR1, by which MPICH reports deaths. SIGTERM ends the supervisor.

    Return the handlers that are not in place any more, by signal.
    """
    before = {number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}}
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)) or number == signal.SIGUSR1:
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return {number: handler for number, handler in before.items() if handler is not None and signal.getsignal(number) != handler}


def _die_by(number: int) -> None:
    """End by a signal, as the rank has, without a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)

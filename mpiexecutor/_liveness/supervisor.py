"""A worker's supervisor: hides its death from the process manager, which would end the job, and tells the root.

    process manager ── started ──> supervisor ── forked, before MPI ──> rank
                                     |  <─── "serving", "dismissed" ──┘
                                     └── "it was killed by SIGKILL" ──> a monitor: the root's (see monitor.py)

The process that was started as a rank forks, and the child is the rank. The parent, its supervisor, has the same connection to the
process manager, and never touches MPI. As long as the rank serves nobody it is as if there were no supervisor: it ends as the rank
ends. If the rank dies while it serves, the supervisor stays in its place until the root has done all it wants to. A rank whose call
runs longer than it may is killed by its supervisor.

Life and death. If the supervisor dies the kernel kills its rank. The supervisor is connected to the root as long as that lives.
When the root says so the supervisor kills its rank, if that still lives, takes leave, and ends; when the kernel closes the
connection, because the root has died, it does so without taking leave.

On another node than the root's the monitors are those of other ranks there, which pass on what they hear (see forwarder.py).
When one is gone the supervisor turns to the next. If its rank dies, and there is none any more, the supervisor takes leave, and
ends: the root will miss them both.

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

from mpiexecutor._util.seconds import WELCOME as _WELCOME

from . import process_manager
from .commands import BYE, KILL, LEAVE, NEWS, TERMINATE, Service, receive
from .status_page import StatusPage

_PATIENCE = 1.0  # seconds that a child of the script has to end by SIGTERM
_LONGEST_WAIT = 3600.0  # seconds: a poll counts in milliseconds, in 32 bits
_LOST = 1 << 8  # the status of a supervisor whose root is dead, as waitpid would give it


class Supervisor:
    """The supervisor itself."""

    def __init__(self, child: int, line: socket.socket, page: StatusPage, descriptor: int, last_words: bytes) -> None:
        self._child = child
        self._line = line
        self._page = page
        self._descriptor = descriptor  # of the page
        self._overdue = 0.0  # the limit, in seconds, if the rank was killed because its call ran longer
        self._last_words = last_words
        self._end = os.pidfd_open(child)
        self._service: Service | None = None
        self._monitor: socket.socket | None = None
        self._status: int | None = None  # of the child, once it has ended
        self._poll = select.poll()
        self._poll.register(self._end, select.POLLIN)
        self._poll.register(line, select.POLLIN)

    def run(self) -> int:
        """Keep the rank; give the status to end with."""
        while self._status is None or self._monitor is not None:
            self._wait()
        return self._status

    def _wait(self) -> None:
        """Wait for something to happen, and see to it; first to what the rank has said."""
        enforced = self._service is not None and self._status is None and not self._overdue
        left = self._page.left(time.monotonic()) if enforced else None
        milliseconds = None if left is None else 1e3 * min(max(0.0, left), _LONGEST_WAIT)
        ready = {descriptor for descriptor, _ in self._poll.poll(milliseconds)}
        if not ready:
            self._enforce_limit()
        if self._line.fileno() in ready:
            while self._hear():
                pass
        if self._end in ready:
            self._see_end()
        if self._monitor is not None and self._monitor.fileno() in ready:
            self._obey()

    def _hear(self) -> bool:
        """Take in what the rank has said; False if there was nothing."""
        try:
            data = receive(self._line, socket.MSG_DONTWAIT)
        except OSError:
            return False
        if not data:
            self._poll.unregister(self._line)
            return False
        said = json.loads(data)
        if said == "staying":
            self._speak_last()
        elif said == "limit":
            pass  # what matters is to have been woken: the limit itself is on the page
        elif said is None:
            self._leave_monitor()
            self._service = None
        else:
            self._service = Service(**said)
            self._meet_monitor()
            with contextlib.suppress(OSError):  # the rank has died since
                self._line.send(b"!")
        return True

    def _meet_monitor(self) -> None:
        """Meet the first monitor that is there, and trouble the others before it no more."""
        assert self._service is not None
        addresses = self._service.addresses
        while addresses and not self._meet(addresses[0], self._service):
            addresses.pop(0)

    def _meet(self, address: str, service: Service) -> bool:
        monitor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            monitor.settimeout(_WELCOME if service.far else None)
            monitor.connect(address)
            hello = {"token": service.token, "rank": service.rank, "pid": self._child, "host": socket.gethostname()}
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
        """Say that all is well, and go."""
        if self._monitor is not None:
            with contextlib.suppress(OSError):
                self._monitor.send(BYE)
            self._poll.unregister(self._monitor)
            self._monitor.close()
            self._monitor = None

    def _see_end(self) -> None:
        """Note that the rank has ended; if it was not to, tell the root, and stay, or go if nobody can tell it."""
        self._poll.unregister(self._end)
        _, self._status = os.waitpid(self._child, 0)
        if self._monitor is not None:
            self._tell_end()
            self._speak_last()
        elif self._service is not None and self._service.far:
            self._take_leave()

    def _tell_end(self) -> None:
        assert self._monitor is not None
        assert self._status is not None
        with contextlib.suppress(OSError):
            self._monitor.send(json.dumps(self._last_of_rank(self._status)).encode())

    def _last_of_rank(self, status: int) -> dict[str, Any]:
        """Say how the rank ended."""
        end = f"was killed, as its call ran longer than {self._overdue:g} s" if self._overdue else how(status)
        return {"end": end, "begun": self._page.begun, "overdue": self._overdue}

    def _enforce_limit(self) -> None:
        """Kill the rank if its call is overdue. It may come to its end in this moment: so the rank is stopped first."""
        if not self._is_overdue():
            return
        os.kill(self._child, signal.SIGSTOP)
        os.waitid(os.P_PID, self._child, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if self._is_overdue():
            self._overdue = self._page.most
            os.kill(self._child, signal.SIGKILL)
        else:
            os.kill(self._child, signal.SIGCONT)

    def _is_overdue(self) -> bool:
        left = self._page.left(time.monotonic())
        return self._page.running_since is not None and left is not None and left <= 0

    def _obey(self) -> None:
        """Do with the rank as the root wants; if the root is dead, or done, there is nothing left to do."""
        assert self._monitor is not None
        assert self._service is not None
        said = b""
        with contextlib.suppress(OSError):
            said = receive(self._monitor)
        if said in {KILL, TERMINATE}:
            if self._status is None:
                os.kill(self._child, signal.SIGKILL if said == KILL else signal.SIGTERM)
        elif said == LEAVE:
            self._end_rank()
            self._take_leave()
        elif said.startswith(NEWS):
            with contextlib.suppress(OSError):  # the rank is dead, or has more to read than it reads
                self._line.send(said, socket.MSG_DONTWAIT)
        elif self._service.far:
            self._turn_elsewhere(self._service)
        else:  # the job is being ended: that is no time to turn to its process manager
            self._end_rank()
            self._status = _LOST
            self._speak_last()
            process_manager.remove(self._service.files)
            self._leave_monitor()

    def _end_rank(self) -> None:
        if self._status is None:
            os.kill(self._child, signal.SIGKILL)
            self._poll.unregister(self._end)
            os.waitpid(self._child, 0)

    def _take_leave(self) -> None:
        """Say to the process manager that all is well with this rank, and end."""
        assert self._service is not None
        self._status = 0
        self._speak_last()
        process_manager.remove(self._service.files)
        process_manager.take_leave(process_manager.connection(), self._service.pmix, initialise=True)
        self._leave_monitor()

    def _turn_elsewhere(self, service: Service) -> None:
        """Turn to another monitor: the one there was has gone, with its worker."""
        self._leave_monitor()
        service.addresses.pop(0)
        self._meet_monitor()
        if self._status is not None:
            if self._monitor is not None:
                self._tell_end()  # perhaps once more
            else:
                self._take_leave()

    def _speak_last(self) -> None:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):
                os.write(descriptor, self._last_words)
        self._last_words = b""


def be_supervisor(child: int, line: socket.socket, page: StatusPage, descriptor: int, last_words: bytes) -> NoReturn:
    """Be the supervisor of a rank, and end as it does: whatever happens, the script is not to go on here."""
    code = 1
    try:
        _leave_signals_to_rank()
        status = Supervisor(child, line, page, descriptor, last_words).run()
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
    """End what the script has started on this rank before it became a worker: nobody else would, and the job would wait for it."""
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


def _leave_signals_to_rank() -> None:
    """Ignore Ctrl-C, what the script has a handler for, and SIGUSR1, by which MPICH tells of deaths; end by SIGTERM."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)) or number == signal.SIGUSR1:
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _die_by(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def how(status: int) -> str:
    """Say how a process ended."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"was killed by {name}"
    return f"ended with exit code {os.waitstatus_to_exitcode(status)}"

"""Children of a supervisor: processes that run the isolated calls of its rank.

    rank ── Spawn, and one end of a connection ──> supervisor ── forks ──> child
      └────────────── messages of calls, replies ─────────────────────────────┘

A child is no rank, and never uses MPI. The supervisor is a clean parent for it: it has neither MPI nor threads, and what the script
had done before it was started as a rank. So a new child is there within milliseconds.

The supervisor keeps the child's end of the connection, too. When the child has ended, it sends ENDED over it, behind all that the
child has sent. So the rank waits at one place, and needs no signal. A process that a call has started, and that inherits the
connection, does not keep the rank from hearing of the end.

If the rank dies the supervisor kills the children; if the supervisor dies the kernel does.
"""

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn

from .commands import ENDED, STARTED, Spawn
from .status_page import StatusPage

PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True)
class _Child:
    pid: int
    line: socket.socket  # its end of the connection with the rank
    overdue: float = 0.0  # the limit, in seconds, if it was killed because its call exceeded it
    cancelled: bool = False  # it was killed because its call was cancelled
    last: bytes = b""  # what the rank is to be told of its end


class Children:
    """The children of one supervisor."""

    def __init__(self, page: StatusPage, poll: "select.poll", handlers: dict[int, Any]) -> None:
        """`handlers` are those of signals before the supervisor has set its own: children have them."""
        self._page = page
        self._poll = poll
        self._handlers = handlers
        self._living: dict[int, _Child] = {}  # by descriptor of the process
        self._ended: dict[int, _Child] = {}  # by descriptor of the connection: their end is not told yet

    def spawn(self, spawn: Spawn, line: socket.socket, of_supervisor: Iterable[int]) -> None:
        """Start a child. It does not get these descriptors of the supervisor."""
        own = [*of_supervisor, *self._living, *(child.line.fileno() for child in (*self._living.values(), *self._ended.values()))]
        supervisor = os.getpid()
        main = importlib.import_module(spawn.spawn).main  # here, once for all children
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as when the supervisor forked
            pid = os.fork()
        if not pid:
            _be_child(partial(main, line, self._page, *spawn.arguments), own, self._handlers, supervisor)
        with contextlib.suppress(OSError):  # the rank has died since: its end, which follows, ends the child
            line.send(STARTED + str(pid).encode())
        end = os.pidfd_open(pid)
        self._living[end] = _Child(pid, line)
        self._poll.register(end, select.POLLIN)

    def handle(self, ready: Iterable[int]) -> None:
        """Handle the events of these descriptors, if they are of children."""
        for descriptor in ready:
            if descriptor in self._living:
                self._bury(descriptor)
            elif descriptor in self._ended:
                self._tell_end(self._ended.pop(descriptor))

    @property
    def running(self) -> int | None:
        """Process id of the child that runs the calls of the current message; None if the rank does, or the child has ended."""
        runner = self._page.runner
        return runner if any(child.pid == runner for child in self._living.values()) else None

    def kill_running(self, *, overdue: float = 0.0, cancelled: bool = False) -> None:
        """Kill the child that runs calls, for this reason."""
        for child in self._living.values():
            if child.pid == self._page.runner:
                child.overdue, child.cancelled = overdue, cancelled
                os.kill(child.pid, signal.SIGKILL)

    def end_all(self) -> None:
        """Kill all children, and wait until they have ended."""
        for child in self._living.values():
            os.kill(child.pid, signal.SIGKILL)
        for end in list(self._living):
            self._bury(end)

    def _bury(self, end: int) -> None:
        child = self._living.pop(end)
        self._poll.unregister(end)
        os.close(end)
        _, status = os.waitpid(child.pid, 0)
        self._page.bury(child.pid)
        how = {"status": status, "overdue": child.overdue, "cancelled": child.cancelled}
        child.last = ENDED + json.dumps(how).encode()
        self._tell_end(child)

    def _tell_end(self, child: _Child) -> None:
        """Tell the rank of a child's end; when there is room for it."""
        try:
            child.line.send(child.last, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._ended[child.line.fileno()] = child
            self._poll.register(child.line, select.POLLOUT)
            return
        except OSError:  # the rank wants to hear no more
            pass
        with contextlib.suppress(KeyError):
            self._poll.unregister(child.line)
        child.line.close()


def _be_child(main: Callable[[], object], close: list[int], handlers: dict[int, Any], supervisor: int) -> NoReturn:
    """Be a child, with the surroundings that its rank had. Whatever happens, the supervisor does not go on here."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == supervisor:
            for descriptor in close:
                os.close(descriptor)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            main()
            code = 0
    except BaseException:  # noqa: BLE001 - it fails alone
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):  # closed by a call
                stream.flush()
        os._exit(code)


@contextlib.contextmanager
def stopped(process: int) -> Iterator[None]:
    """Stop a child of this process for a moment: what it has written to its page is all there, and it writes no more."""
    os.kill(process, signal.SIGSTOP)
    os.waitid(os.P_PID, process, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def how(status: int) -> str:
    """Describe how a process ended. `status` is as waitpid returns it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"was killed by {name}"
    return f"ended with exit code {os.waitstatus_to_exitcode(status)}"

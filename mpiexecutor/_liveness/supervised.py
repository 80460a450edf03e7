"""The rank's side of its supervisor: how a rank gets one, and sends it messages. For the supervisor itself see supervisor.py."""

import ctypes
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NoReturn

from mpiexecutor._util.process_end import flush_output

from . import process_manager
from .children import PR_SET_PDEATHSIG
from .commands import DISMISSED, LIMIT, NEWS, STAYING, Service, Spawn, receive
from .status_page import StatusPage, start_pulse
from .supervisor import be_supervisor

logger = logging.getLogger("mpiexecutor")

VARIABLES: Final = "MPIEXECUTOR_SUPERVISOR", "MPIEXECUTOR_KEEPER"  # the second is its name before version 0.2
_FORK_SHY = "libgomp", "libomp", "libiomp5", "libcuda"  # libraries that hang or fail in a forked child if the parent has used them


class Supervised:
    """The rank's connection to its supervisor, and its status page."""

    def __init__(self, line: socket.socket, page: StatusPage) -> None:
        self._line = line
        self.page = page
        self.serves = False
        self._resting = threading.Event()  # set: give no more signs of life to the root that was served

    def serve(self, addresses: Sequence[str], token: str, rank: int, *, far: bool = False) -> None:
        """Begin to serve a root: from now on the death of this rank does not end the job.

        `addresses` are of failure monitors that supervisors can connect to. `far`: they are not the root's own.
        """
        self.serves = True
        self.page.limit(0.0)
        self.page.let_go()
        self.page.pulse()
        self._say(asdict(Service(list(addresses), token, rank, far, *process_manager.mapped())))
        self._line.recv(1)  # the supervisor has connected: only now may this rank begin
        self._resting = start_pulse(self.page.pulse)

    def news(self, timeout: float | None = None) -> bytes | None:
        """Wait for a message of the root to this rank; empty if the supervisor has gone.

        None if none has come within `timeout` seconds.
        """
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        if not poll.poll(None if timeout is None else 1e3 * timeout):
            return None
        return receive(self._line).removeprefix(NEWS)

    def limit(self, seconds: float) -> None:
        """Have the supervisor kill this rank, or its child, if a call runs longer than so many seconds; 0: no limit."""
        self.page.limit(seconds)
        self.note_limit()

    def note_limit(self) -> None:
        """Have the supervisor look at the limit, which is on the page."""
        self._say(LIMIT)

    def spawn(self, module: str, *arguments: int) -> socket.socket:
        """Have the supervisor start a child that runs `main` of this module. Return the connection with the child.

        What the child sends comes over it, and after that, once the child has ended, ENDED of the supervisor.
        """
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            socket.send_fds(self._line, [json.dumps(asdict(Spawn(module, list(arguments)))).encode()], [its.fileno()])
        return mine

    def dismiss(self) -> None:
        """Serve no root any more: the supervisor ends as this rank does."""
        self.serves = False
        self._resting.set()
        self._say(DISMISSED)

    def stay(self) -> NoReturn:
        """Wait to be killed when the root is done: MPI_Finalize would wait for the failed ranks."""
        self._say(STAYING)
        while True:
            signal.pause()

    def _say(self, what: Any) -> None:
        self._line.send(json.dumps(what).encode())


def start_supervisor(last_words: bytes = b"") -> Supervised | None:
    """Fork: the parent becomes the supervisor and never returns, the child goes on as the rank.

    Return None if this system or script allows no supervisor, or MPIEXECUTOR_SUPERVISOR is 0. The supervisor writes `last_words` to
    both streams if the rank cannot do so itself.
    """
    if "0" in map(os.environ.get, VARIABLES):
        return None
    if why := _obstacle():
        logger.info("this worker has no supervisor, as %s: if it dies the job ends", why)
        return None
    flush_output()
    page, descriptor = StatusPage.new()
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's libraries have threads; the supervisor needs none
        child = os.fork()
    if child:
        its.close()
        be_supervisor(child, mine, page, descriptor, last_words)
    mine.close()
    os.close(descriptor)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != before:
        os._exit(1)
    return Supervised(its, page)


def possible() -> bool:
    """Return whether this system has what a supervisor needs, as Linux 5.3 has unless a policy forbids it."""
    try:
        os.close(os.pidfd_open(os.getpid()))
        os.close(os.memfd_create("mpiexecutor-trial"))
    except (AttributeError, OSError):
        return False
    return True


def _obstacle() -> str:
    """Return why there can be no supervisor; empty if there can be one."""
    if not possible():
        return "this system has not both of pidfd_open and memfd_create, as Linux 5.3 has"
    if threading.active_count() > 1:
        return "the script has started threads already"
    if "mpi4py.MPI" in sys.modules:
        return "the script has initialised MPI already, by importing mpi4py.MPI"
    loaded = Path("/proc/self/maps").read_text()
    found = next((name for name in _FORK_SHY if f"/{name}" in loaded), None)
    return f"the script has loaded {found}, which does not bear a fork" if found else ""

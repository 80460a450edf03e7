"""A rank's side of its supervisor: how it gets one, and what it says to it. See supervisor.py for the supervisor itself."""

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

from mpiexecutor._util.seconds import PULSE

from . import process_manager
from .commands import LONGEST, NEWS, Service
from .status_page import StatusPage
from .supervisor import be_supervisor

logger = logging.getLogger("mpiexecutor")

VARIABLE: Final = "MPIEXECUTOR_KEEPER"
_PR_SET_PDEATHSIG = 1
_FORK_SHY = "libgomp", "libomp", "libiomp5", "libcuda"  # libraries that hang, or fail, in a child if the parent has used them


class Supervised:
    """A rank's side of its supervisor."""

    def __init__(self, line: socket.socket, page: StatusPage) -> None:
        self._line = line
        self.page = page
        self.serves = False
        self._resting = threading.Event()  # no longer to give signs of life, for the root that is served

    def serve(self, addresses: Sequence[str], token: str, rank: int, *, far: bool = False) -> None:
        """From now on this rank serves the root that listens there, or through others, and is not to take the job with it."""
        self.serves = True
        self.page.limit(0.0)
        self.page.let_go()
        self.page.pulse()
        self._say(asdict(Service(list(addresses), token, rank, far, *process_manager.mapped())))
        self._line.recv(1)  # the root knows its supervisor: only now may the rank begin
        self._resting = threading.Event()
        threading.Thread(target=self._pulse, args=(self._resting,), name="mpiexecutor pulse", daemon=True).start()

    def news(self, timeout: float | None = None) -> bytes | None:
        """Wait for something that the root has to say to this rank, while it serves; nothing: its supervisor has gone.

        None if nothing has come within so many seconds.
        """
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        if not poll.poll(None if timeout is None else 1e3 * timeout):
            return None
        return self._line.recv(LONGEST).removeprefix(NEWS)

    def limit(self, seconds: float) -> None:
        """Have calls killed that run longer, together with this rank; 0: none."""
        self.page.limit(seconds)
        self._say("limit")

    def dismiss(self) -> None:
        """From now on this rank serves nobody."""
        self.serves = False
        self._resting.set()
        self._say(None)

    def stay(self) -> NoReturn:
        """Have nothing left to do, and be ended when the root has: MPI_Finalize would wait for the dead."""
        self._say("staying")
        while True:
            signal.pause()

    def _say(self, what: Any) -> None:
        self._line.send(json.dumps(what).encode())

    def _pulse(self, resting: threading.Event) -> None:
        """Give signs of life: none while a call holds the GIL, or this process is stopped."""
        while not resting.is_set():
            self.page.pulse()
            resting.wait(PULSE)


def start_supervisor(last_words: bytes = b"") -> Supervised | None:
    """Become the child of a supervisor, who returns never; None if there can be none, or is to be none.

    `last_words` are for both streams, from the supervisor if the rank cannot end as it should.
    """
    if os.environ.get(VARIABLE) == "0":
        return None
    if why := _obstacle():
        logger.info("this worker has no keeper, as %s: if it dies the job ends", why)
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    page, descriptor = StatusPage.new()
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the libraries of NumPy have threads; the supervisor needs none
        child = os.fork()
    if child:
        its.close()
        be_supervisor(child, mine, page, descriptor, last_words)
    mine.close()
    os.close(descriptor)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != before:
        os._exit(1)
    return Supervised(its, page)


def possible() -> bool:
    """Whether this system has what a supervisor needs: Linux 5.3 has, and lets everybody use it who is not forbidden to."""
    try:
        os.close(os.pidfd_open(os.getpid()))
        os.close(os.memfd_create("mpiexecutor-trial"))
    except (AttributeError, OSError):
        return False
    return True


def _obstacle() -> str:
    """Say why there can be no supervisor, if so."""
    if not possible():
        return "this system has not both of pidfd_open and memfd_create, as Linux 5.3 has"
    if threading.active_count() > 1:
        return "the script has started threads already"
    if "mpi4py.MPI" in sys.modules:
        return "the script has initialised MPI already, by importing mpi4py.MPI"
    loaded = Path("/proc/self/maps").read_text()
    found = next((name for name in _FORK_SHY if f"/{name}" in loaded), None)
    return f"the script has loaded {found}, which does not bear a fork" if found else ""

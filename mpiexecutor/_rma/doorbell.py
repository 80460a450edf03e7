"""Doorbells: what a thread sleeps on, and others wake it by, on one node and between nodes.

A doorbell is a UNIX datagram socket. A ring carries nothing: a stranger's, or an old one, makes a rank look once in vain.

A socket reaches the ranks of one node. Where there are others, a sleep is made of naps, short first and growing while nothing
happens. Between them it looks only whether it was rung from another node.
"""

import contextlib
import select
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mpiexecutor._util.polling import GROWTH, LONGEST, SHORTEST

_COARSE = 0.1  # seconds of a sleep whose end may come some milliseconds late
_SELECTABLE = 1024  # file descriptors that select can have


class Doorbell:
    """What a thread sleeps on, and others wake it by. Costs nothing until it is slept on.

    Who is on another node rings in another way, by which nobody can be woken: `far` says whether that has happened.
    """

    def __init__(self, address: str, far: Callable[[], bool] | None = None) -> None:
        self._address = address
        self._far = far
        self._socket: socket.socket | None = None
        self._longest = -1.0  # seconds of a nap, as the socket knows

    def sleep(self, seconds: float) -> bool:
        """Block until rung, or for so long; whether it was rung."""
        if self._far is None:
            return self._nap(seconds)
        nap, until = SHORTEST, time.monotonic() + seconds
        while not self._far():
            left = until - time.monotonic()
            if left <= 0:
                return False
            if self._nap(min(nap, left)):
                return True
            nap = min(nap * GROWTH, LONGEST)
        return True

    def _nap(self, seconds: float) -> bool:
        bell = self.open()
        if seconds < _COARSE:
            if not _is_rung(bell, seconds):
                return False
        elif seconds != self._longest:
            # The kernel's own limit, in ticks of its clock: Python's would be a second system call each time.
            bell.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
            self._longest = seconds
        try:
            bell.recv(1)
        except BlockingIOError:
            return False
        return True

    def free(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            if not self._address.startswith("\0"):
                Path(self._address).unlink(missing_ok=True)

    def open(self) -> socket.socket:
        """Have the address be reachable from now on."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(self._address)
        return self._socket


class Ringer:
    """Rings other ranks' doorbells."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def ring(self, address: str) -> None:
        """Wake whoever sleeps there. Nobody there, or rung often enough already, is as good."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"!", address)

    def free(self) -> None:
        self._socket.close()


def _is_rung(bell: socket.socket, seconds: float) -> bool:
    """Wait for a ring, to the microsecond: poll, and a socket's own limit, count in milliseconds."""
    if bell.fileno() < _SELECTABLE:
        return bool(select.select((bell,), (), (), seconds)[0])
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    return bool(poll.poll(seconds * 1e3))


def _timeval(seconds: float) -> bytes:
    """Give the C struct."""
    return struct.pack("@ll", *divmod(round(seconds * 1e6), 1_000_000))


def address_of(token: str, rank: int, side: str) -> str:
    """Give the address of a rank's doorbell; `token` is the channel's, and hard to guess.

    Linux has addresses that are no files and vanish with their process. Elsewhere it is a file.
    """
    name = f"mpiexecutor-{token}-{rank}-{side}"
    return "\0" + name if sys.platform == "linux" else str(Path(tempfile.gettempdir()) / name)


def node_name() -> str:
    """Name what this rank must share with another for their doorbells to reach each other."""
    try:
        namespace = str(Path("/proc/self/ns/net").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"

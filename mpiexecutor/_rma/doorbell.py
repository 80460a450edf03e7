"""Doorbells: a thread sleeps on its doorbell until another thread, of any rank, notifies it.

A doorbell is a UNIX datagram socket. A notification carries no data: an old one, or a stranger's, costs one look in vain.

A socket reaches the ranks of one node. If there are other nodes, a sleep is made of naps, short first and growing while nothing
happens. Between two naps it looks only whether a rank of another node has notified it.
"""

import contextlib
import ctypes
import select
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mpiexecutor._util.polling import intervals

_COARSE = 0.1  # seconds of a sleep whose end may come some milliseconds late
_SELECTABLE = 1024  # file descriptors that select can have
_send = ctypes.PyDLL(None).send  # keeps the GIL
_send.argtypes, _send.restype = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_ssize_t


class Doorbell:
    """What a thread sleeps on until it is notified. It has no socket until then.

    Ranks on other nodes notify in a way that wakes no thread: `far` says whether that has happened.
    """

    def __init__(self, address: str, far: Callable[[], bool] | None = None) -> None:
        self._address = address
        self._far = far
        self._socket: socket.socket | None = None
        self._ringer: socket.socket | None = None  # to ring, by another thread of this process
        self._longest = -1.0  # seconds of a nap, as the socket knows

    def sleep(self, seconds: float) -> bool:
        """Block until notified, `seconds` at most; return whether it was notified."""
        if self._far is None:
            return self._nap(seconds)
        naps, until = intervals(), time.monotonic() + seconds
        while not self._far():
            left = until - time.monotonic()
            if left <= 0:
                return False
            if self._nap(min(next(naps), left)):
                return True
        return True

    def _nap(self, seconds: float) -> bool:
        bell = self.open()
        if seconds < _COARSE:
            if not _is_notified(bell, seconds):
                return False
        elif seconds != self._longest:
            # The kernel's own limit, in ticks of its clock: Python's would be a second system call each time.
            bell.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", *divmod(round(seconds * 1e6), 1_000_000)))
            self._longest = seconds
        try:
            bell.recv(1)
        except BlockingIOError:
            return False
        return True

    def ring(self) -> None:
        """Wake the thread of this process that sleeps here. One thread at a time may ring. No error if there is no doorbell.

        The caller keeps the GIL, which a notification releases: the woken thread would take it, and the caller wait for it.
        """
        with contextlib.suppress(OSError):
            ringer = self._ringer
            if ringer is None:
                ringer = self._ringer = _connected(self._address)
            _send(ringer.fileno(), b"!", 1, socket.MSG_DONTWAIT)  # no error matters, as in notify

    def free(self) -> None:
        if self._ringer is not None:
            self._ringer.close()
            self._ringer = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            if not self._address.startswith("\0"):
                Path(self._address).unlink(missing_ok=True)

    def open(self) -> socket.socket:
        """Make the address reachable from now on, and return the socket."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(self._address)
        return self._socket


class Notifier:
    """Notifies doorbells, of this rank and of others on its node."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def notify(self, address: str) -> None:
        """Wake the thread that sleeps there. No error if there is no doorbell, or if it has unread notifications enough."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"!", address)

    def free(self) -> None:
        self._socket.close()


def _connected(address: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        connected.connect(address)
    except BaseException:
        connected.close()
        raise
    return connected


def _is_notified(bell: socket.socket, seconds: float) -> bool:
    """Wait for a notification, to the microsecond: poll, and a socket's own limit, count in milliseconds."""
    if bell.fileno() < _SELECTABLE:
        return bool(select.select((bell,), (), (), seconds)[0])
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    return bool(poll.poll(seconds * 1e3))


def address_of(token: str, rank: int, side: str) -> str:
    """Return the address of a rank's doorbell; `token` is the channel's, and hard to guess.

    Linux has addresses that are no files and vanish with their process. Elsewhere it is a file.
    """
    name = f"mpiexecutor-{token}-{rank}-{side}"
    return "\0" + name if sys.platform == "linux" else str(Path(tempfile.gettempdir()) / name)


def node_name() -> str:
    """Return what two ranks must have in common for their doorbells to reach each other."""
    try:
        namespace = str(Path("/proc/self/ns/net").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}"

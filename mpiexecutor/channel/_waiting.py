"""Waiting that costs nothing: look for a moment, then sleep until woken. The only place of the channel that sleeps.

A rank that is about to sleep sets its byte in the ring's memory, looks once more, and blocks on its doorbell, a UNIX datagram
socket. Whoever changes the ring looks at the bytes afterwards and rings. Both put a full fence between their store and their
load, so that one of them sees the other: a wake-up can be lost only if the waker dies between the change and the ring. The
longest sleep bounds what that costs. A ring carries nothing: a stranger's, or an old one, makes a rank look once in vain.

A socket reaches the ranks of one node. Where there are others, a sleep is made of naps, short first and growing while nothing
happens. Between them it looks only whether it was rung from another node, not at the ring, which may lie in another's memory.
"""

import contextlib
import logging
import os
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Generic, TypeVar

from mpiexecutor._seconds import PATIENCE as _PATIENCE

T = TypeVar("T")

logger = logging.getLogger("mpiexecutor")

_LOOKING = 500e-6  # seconds before sleeping: who is asked again within that answers in a third of the time
_SHORTEST = 50e-6  # seconds of a nap
_LONGEST = 0.02
_COARSE = 0.1  # seconds of a sleep whose end may come some milliseconds late
_SELECTABLE = 1024  # file descriptors that select can have
_GROWTH = 1.2  # of each nap over the one before: 1 ms after 16, and 5 ms in all; 20 ms after 33, and 0.12 s in all


def wait_for_ranks(done: Callable[[], bool], complaint: Callable[[], str] | None = None, patience: float = _PATIENCE) -> None:
    """Wait until the other ranks have come, too; complain, once, if that takes longer than `patience`, in seconds."""
    since, pause = time.monotonic(), _SHORTEST
    while not done():
        time.sleep(pause)
        pause = min(pause * _GROWTH, _LONGEST)
        if complaint is not None and time.monotonic() - since > patience:
            logger.warning(complaint())
            complaint = None


class Inbox(Generic[T]):
    """A queue between threads whose get keeps its time.

    queue.SimpleQueue's may wait for ever: if its time is over just when it begins to wait, it takes what is left, less than
    nothing, for no limit (CPython 3.7 to 3.13, at the least; it takes a thread that has to wait for the processor).
    One thread gets. Any may put, also in a finalizer that interrupts another put, or the getter.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._come = threading.Lock()  # released after each put, and stays so until a getter that finds nothing takes it
        self._come.acquire()

    def put(self, item: T) -> None:
        self._items.append(item)
        with contextlib.suppress(RuntimeError):  # released already
            self._come.release()

    def get(self, timeout: float | None = None) -> T:
        """Wait for the next item, and take it; queue.Empty if there is none within so many seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._items:
            left = -1 if until is None else max(0.0, until - time.monotonic())
            if not self._come.acquire(timeout=left) and not self._items:
                raise Empty
        return self._items.popleft()


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
        nap, until = _SHORTEST, time.monotonic() + seconds
        while not self._far():
            left = until - time.monotonic()
            if left <= 0:
                return False
            if self._nap(min(nap, left)):
                return True
            nap = min(nap * _GROWTH, _LONGEST)
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


def give_way() -> None:
    """Let others have the processor, and other threads of this process the GIL (which sched_yield keeps before Python 3.13)."""
    os.sched_yield()
    select.select((), (), (), 0)


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


class Waiter:
    """One thread's way to wait, at one end of a channel."""

    def __init__(
        self,
        bell: Doorbell,
        mark: Callable[[int], None],
        *,
        longest: float,
        look_out: Callable[[int], bool] | None = None,
    ) -> None:
        self._bell = bell
        self._mark = mark  # tell the others what this rank waits for; 0: nothing
        self._longest = longest  # seconds asleep before a look that nobody has asked for
        self._look_out = look_out  # whether to look before sleeping, given the flag; then the others are told so, too

    def wait(self, look: Callable[[], T | None], deadline: float | None, flag: int) -> T | None:
        """Look until there is something, and give it; None once the deadline is over, which may be past already."""
        found = look()
        if found is not None or (deadline is not None and time.monotonic() >= deadline):
            return found
        if self._look_out is None:
            found = self._look_on(look, deadline)
        elif self._look_out(flag):
            vain = False
            try:
                found = self._look_on(look, deadline)
                vain = found is None
            finally:
                if not vain:  # else the mark for the sleep replaces this one
                    self._mark(0)
        return self._sleep(look, deadline, flag) if found is None else found

    @staticmethod
    def _look_on(look: Callable[[], T | None], deadline: float | None) -> T | None:
        """Look for a moment."""
        until = time.monotonic() + _LOOKING
        if deadline is not None:
            until = min(until, deadline)
        found = None
        while found is None and time.monotonic() < until:
            give_way()
            found = look()
        return found

    def _sleep(self, look: Callable[[], T | None], deadline: float | None, flag: int) -> T | None:
        self._bell.open()  # before the mark: who rings a bell that is not there yet has cleared the mark in vain
        try:
            while True:
                self._mark(flag)
                found = look()
                if found is not None:
                    return found
                left = self._longest if deadline is None else min(self._longest, deadline - time.monotonic())
                if left <= 0:
                    return None
                self._bell.sleep(left)
        finally:
            self._mark(0)

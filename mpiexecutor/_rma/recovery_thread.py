"""The thread that recovers what failed ranks have left behind, and its watchdog.

    a thread that hears of failures ──> queue ──> recovery thread: enters MPI
                 └──── looks at the watchdog while it waits ────┘

Theory of operation
    Recovery takes a while, as the living first finish what they have begun. More ranks may fail meanwhile, so the thread that
    hears of failures goes on listening, and recovery has a thread of its own.

    Recovery may never come back: between nodes, a rank that has died inside MPI may hold a lock of the window for ever.
    So each step has a limit. The watchdog is no third thread, but a deadline at which the listening thread looks.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty
from typing import TypeVar

from mpiexecutor._util.inbox import Inbox

F = TypeVar("F")  # a failure

_AGAIN = 0.1  # seconds until the next try, if the living have not come to a rest


class Watchdog:
    """A limit for what may get stuck, kept by a thread that has something else to wait for."""

    def __init__(self, wake: Callable[[], object] = lambda: None) -> None:
        """`wake` has that thread call `left`, unless it does so now and then."""
        self._wake = wake
        self._limit: tuple[float, Callable[[], object]] | None = None

    @contextlib.contextmanager
    def limit(self, seconds: float, stuck: Callable[[], object]) -> Iterator[None]:
        """Have `stuck` called, by the thread that keeps the limit, if what is done here takes longer."""
        self._limit = time.monotonic() + seconds, stuck
        self._wake()
        try:
            yield
        finally:
            self._limit = None

    def left(self) -> float | None:
        """Return the seconds until the limit, None if there is none. If it is over see to that, once."""
        if (limit := self._limit) is None:
            return None
        until, stuck = limit
        if (left := until - time.monotonic()) > 0:
            return left
        self._limit = None
        stuck()
        return None


def start_recovery_thread(failures: Inbox[F | None], recover: Callable[[F], bool]) -> threading.Thread:
    """Start the thread, which recovers from one failure after another. None in `failures` ends it.

    `recover` returns False if it is to be called again; it raises nothing. The thread is started before there is a failure: a
    process that is ending starts no thread any more.
    """

    def run() -> None:
        failure = failures.get()
        while failure is not None:
            done = recover(failure)
            with contextlib.suppress(Empty):
                failure = failures.get(timeout=None if done else _AGAIN)

    thread = threading.Thread(target=run, name="mpiexecutor recovery", daemon=True)
    thread.start()
    return thread

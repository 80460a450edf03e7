"""The thread that recovers from failures of ranks, and its watchdog.

    a thread that receives reports of failures ──> queue ──> recovery thread: enters MPI
                 └──── checks the watchdog while it waits ────┘

Theory of operation
    Recovery takes a while, as living ranks first finish the messages that they have begun. More ranks may fail meanwhile, so the
    thread that receives the reports goes on listening, and recovery has a thread of its own.

    Recovery may never return: between nodes, a rank that has died inside MPI may hold a lock of the window for ever. So each step
    has a limit. The watchdog is no third thread, but a deadline that the listening thread checks.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty
from typing import TypeVar

from mpiexecutor._util.inbox import Inbox

F = TypeVar("F")  # a failure

_AGAIN = 0.1  # seconds until the next try, if living ranks are not at rest


class Watchdog:
    """A time limit for a step that may hang. A thread that waits for something else checks it."""

    def __init__(self, wake: Callable[[], object] = lambda: None) -> None:
        """`wake` has that thread call `left`; not needed if the thread calls it regularly."""
        self._wake = wake
        self._limit: tuple[float, Callable[[], object]] | None = None

    @contextlib.contextmanager
    def limit(self, seconds: float, stuck: Callable[[], object]) -> Iterator[None]:
        """Have that thread call `stuck` if the with-block takes longer than `seconds`."""
        self._limit = time.monotonic() + seconds, stuck
        self._wake()
        try:
            yield
        finally:
            self._limit = None

    def left(self) -> float | None:
        """Return the seconds until the limit; None if there is none. If the limit is over, call `stuck`, once."""
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

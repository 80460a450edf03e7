"""A queue between threads."""

import contextlib
import threading
import time
from collections import deque
from queue import Empty
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue for one thread that gets and any number of threads that put. `get` returns in time.

    `queue.SimpleQueue.get` may block for ever: if its timeout expires just before it waits, it takes the rest, a negative number,
    for no timeout (at least CPython 3.7 to 3.13). `put` may be called in a finalizer that interrupts another put, or the getter.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._come = threading.Lock()  # released by each put; acquired by a getter that finds no item
        self._come.acquire()

    def put(self, item: T) -> None:
        self._items.append(item)
        with contextlib.suppress(RuntimeError):  # it is released
            self._come.release()

    def get(self, timeout: float | None = None) -> T:
        """Remove and return the next item; wait for one up to `timeout` seconds.

        Raises:
            queue.Empty: There was no item in time.

        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self._items:
            left = -1 if until is None else max(0.0, until - time.monotonic())
            if not self._come.acquire(timeout=left) and not self._items:
                raise Empty
        return self._items.popleft()

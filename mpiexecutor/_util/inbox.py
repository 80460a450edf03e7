"""A queue between threads."""

import contextlib
import threading
import time
from collections import deque
from queue import Empty
from typing import Generic, TypeVar

T = TypeVar("T")


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

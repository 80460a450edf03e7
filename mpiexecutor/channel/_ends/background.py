"""The background of an end: one thread that carries out the operations of putf, or of takef, in order."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from mpiexecutor.channel._errors import ChannelClosed

logger = logging.getLogger("mpiexecutor")

T = TypeVar("T")
S = TypeVar("S")


class ChannelFuture(Future[T]):
    """A future that can be cancelled until the step that reserves, or claims, its message."""

    def __init__(self) -> None:
        super().__init__()
        self._step = threading.RLock()  # a callback may cancel again

    def cancel(self) -> bool:
        with self._step:
            return super().cancel()

    def begin(self, step: Callable[[], S]) -> S:
        """Take the step, and be running if it returns something. If the future is cancelled, raise CancelledError instead."""
        with self._step:
            if self.cancelled():
                raise CancelledError
            found = step()
            if found is not None:
                self.set_running_or_notify_cancel()
            return found


class Background:
    """A queue of operations, and a thread that carries them out one by one; the thread starts with the first."""

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        self._name = name
        self._wake = wake  # wakes the operation under way, if it sleeps
        self._changed = threading.Condition()
        self._queue: deque[tuple[ChannelFuture[Any], Callable[[ChannelFuture[Any]], Any]]] = deque()  # the first is under way
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether something is queued or under way."""
        return bool(self._queue)

    def submit(self, operation: Callable[[ChannelFuture[T]], T]) -> ChannelFuture[T]:
        """Queue an operation, which is called with its future. Its result, or its error, becomes the future's."""
        future: ChannelFuture[T] = ChannelFuture()
        future.add_done_callback(self._woken)
        with self._changed:
            if self._stopped:
                raise ChannelClosed("the channel was freed")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            self._queue.append((future, operation))
            self._changed.notify_all()
        return future

    def join(self) -> None:
        """Wait until all operations are done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue)

    def stop(self) -> None:
        """End the thread, and begin no operation: those that are queued raise ChannelClosed.

        The operation under way must already be bound to end.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _woken(self, future: Future[Any]) -> None:
        if future.cancelled():
            self._wake()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if self._stopped and not self._queue:
                    return
                future, operation = self._queue[0]
            try:
                self._carry_out(future, self._refuse if self._stopped else operation)
            except BaseException:
                logger.exception("a callback of a future has failed")
            del future, operation
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()

    @staticmethod
    def _refuse(_: ChannelFuture[Any]) -> Any:
        raise ChannelClosed("the channel was freed")

    @staticmethod
    def _carry_out(future: ChannelFuture[Any], operation: Callable[[ChannelFuture[Any]], Any]) -> None:
        try:
            result = operation(future)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the future's
            if future.running() or future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.running():
                future.set_result(result)

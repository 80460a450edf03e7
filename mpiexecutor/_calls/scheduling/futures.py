"""The futures of calls."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class CallFuture(Future[Any]):
    """A future that can be cancelled while its call runs, if that runs in a child process."""

    end: Callable[["CallFuture"], bool] | None = None  # ends the call and cancels the future; None: the call cannot be ended

    def cancel(self) -> bool:
        """Cancel the call if it was not sent, or if a child process runs it, which is killed. Return False if it is not ended."""
        return super().cancel() or (self.end is not None and self.end(self))

    @property
    def is_over(self) -> bool:
        """Whether threads that wait for it were told so."""
        return self._state in {"CANCELLED_AND_NOTIFIED", "FINISHED"}

    def set_cancelled(self) -> bool:
        """Cancel the future although its call runs. Return False if it is done already. `invoke_callbacks` is the next step."""
        with self._condition:
            if self._state != "RUNNING":
                return False
            self._state = "CANCELLED"
            self.set_running_or_notify_cancel()  # wakes `wait` and `as_completed`
            self._condition.notify_all()
        return True

    def invoke_callbacks(self) -> None:
        self._invoke_callbacks()  # type: ignore[attr-defined]


def slim_future() -> CallFuture:
    """Return a future of 900 bytes instead of 1,600, while no thread waits for it: a script may have a million of them.

    The difference is a deque with room for 64 waiting threads. Its name is private to Python; a Python without it ignores what is
    set here.
    """
    future = CallFuture()
    future._condition._waiters = []  # type: ignore[attr-defined]  # noqa: SLF001
    return future

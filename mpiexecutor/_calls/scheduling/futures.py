"""The futures of calls, and the error that they raise if a worker died."""

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class BrokenWorkerError(BrokenProcessPool):
    """Raised by a future if a worker died while it ran the call, or before the whole result had arrived.

    With `retries` the call is run again first, on another worker. If the executor itself is broken, because no worker is left,
    futures raise the base class, BrokenProcessPool.

    Attributes:
        rank: Rank of the worker in the executor's communicator.
        host: Name of its host.
        pid: Its process id on that host.
        end: How it died, for example "was killed by SIGSEGV" or "ended with exit code 3".

    """

    __module__ = "mpiexecutor"

    def __init__(self, text: str, rank: int, host: str, pid: int, end: str) -> None:
        super().__init__(text, rank, host, pid, end)
        self.rank = rank
        self.host = host
        self.pid = pid
        self.end = end

    def __str__(self) -> str:
        return str(self.args[0])


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

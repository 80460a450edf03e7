"""A thread that calls a function at intervals while that is needed, and sleeps otherwise."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("mpiexecutor")


class PeriodicCheck:
    """A thread that calls a function at intervals after `watch`, until it has returned False several times in a row.

    `watch` is cheap while the thread is awake: it reads a flag.
    """

    def __init__(self, name: str, look: Callable[[], bool], *, every: float, times: int) -> None:
        """Start the thread, asleep.

        Args:
            name: Name of the thread.
            look: The function; it returns whether it is needed further.
            every: Seconds between two calls.
            times: Number of calls in a row that return False before the thread sleeps again.

        """
        self._look = look
        self._every = every
        self._times = times
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(self) -> None:
        """Wake the thread."""
        if not self._wanted.is_set():
            self._wanted.set()

    def stop(self) -> None:
        self._stopped.set()
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait()
            self._look_on()

    def _look_on(self) -> None:
        """Call the function until it is not needed, then clear the flag and call it once more.

        A call of `watch` before the flag is cleared has no effect, but then this last call of the function sees its reason.
        """
        vain = 0
        while vain < self._times and not self._stopped.wait(self._every):
            vain = 0 if self._sees() else vain + 1
        if not self._stopped.is_set():
            self._wanted.clear()
            if self._sees():
                self._wanted.set()

    def _sees(self) -> bool:
        try:
            return self._look()
        except Exception:
            logger.exception("a look has failed")
            return False

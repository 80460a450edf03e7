"""A thread that looks now and then while there may be something to see, and rests when there is not."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("mpiexecutor")


class Sentry:
    """Looks while it is wanted, and some time more. Whoever wants it pays for a look at a flag."""

    def __init__(self, name: str, look: Callable[[], bool], *, every: float, times: int) -> None:
        """`look` says whether there is something to see, `every` so many seconds. After so many in vain, and one more, it rests."""
        self._look = look
        self._every = every
        self._times = times
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(self) -> None:
        """Look from now on."""
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
        vain = 0
        while vain < self._times and not self._stopped.wait(self._every):
            vain = 0 if self._sees() else vain + 1
        if not self._stopped.is_set():
            self._wanted.clear()
            if self._sees():  # since the last look: whoever wanted that found the sentry awake
                self._wanted.set()

    def _sees(self) -> bool:
        try:
            return self._look()
        except Exception:
            logger.exception("a look has failed")
            return False

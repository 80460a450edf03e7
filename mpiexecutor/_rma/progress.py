"""Progress over the network: what the host of a window does so that ranks on other nodes get answers.

One-sided calls between nodes advance only while the host is inside MPI, unless the network itself carries them out. A rank that is
about to make such calls sends a progress request (see notifier.py). Each process has one pair of progress threads for all windows
that it hosts. The pair is either

    cold    one thread checks for requests now and then, which makes some progress, too;
    hot     the other thread blocks inside MPI, without the GIL, which is progress at the speed of the network. That takes a core,
            and so ends soon after the last request.

The hot thread blocks, because beside a busy Python thread another one gets the GIL every 5 ms only: a loop of checks would make one
in that time. Both threads are started once: a process that is ending starts no thread, and may still have calls to wait for.
"""

import functools
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

from mpi4py import MPI

from mpiexecutor._util.process_end import PROCESS_END, Stage
from mpiexecutor._util.seconds import LOOK

from .doorbell import Doorbell, Notifier, address_of

_COLD, _HOT = 0.02, 0.01  # seconds between two looks
_LINGER = 0.05  # seconds hot after the last request: well above the time between two requests
_NEVER = 3600.0  # seconds between two looks while this process hosts nothing
_NOTHING: Final = [None, 0, MPI.BYTE]

Requested = Callable[[], bool]  # receives all requests that have come; returns whether there were any


class ProgressThreads:
    """Make progress for the windows that this process hosts; for one that is not freed, until the process ends."""

    def __init__(self) -> None:
        self._own = MPI.COMM_SELF.Dup()
        self._process = os.getpid()
        self._hosted: list[Requested] = []
        self._looking = threading.Lock()  # while the communicators of those windows are used
        self._address = address_of(secrets.token_hex(8), MPI.COMM_WORLD.rank, "progress")
        self._bell = Doorbell(self._address)
        self._bell.open()
        self._notifier = Notifier()
        self._enter, self._left = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False  # the cold thread is to end
        self._over = False  # the cold thread has ended, and the hot one is to end
        self._threads = [
            threading.Thread(target=target, name=f"mpiexecutor progress, {name}", daemon=True)
            for target, name in ((self._run_cold, "cold"), (self._run_hot, "hot"))
        ]
        for thread in self._threads:
            thread.start()
        PROCESS_END.add(self.stop, Stage.PROGRESS)

    def serve(self, requested: Requested) -> None:
        """Make progress for one more window."""
        with self._looking:
            self._hosted.append(requested)
        self.request()

    def leave(self, requested: Requested) -> None:
        """Stop making progress for a window: `requested` is not under way when this returns, and is not called again.

        If it is under way and does not return for long it is stuck inside MPI, after a failure, and is left there.
        """
        if os.getpid() == self._process:  # a forked child has none of the threads, and maybe their lock
            looking = self._looking.acquire(timeout=LOOK)
            if requested in self._hosted:
                self._hosted.remove(requested)
            if looking:
                self._looking.release()

    def request(self) -> None:
        """Be hot for a while: other ranks are about to send requests."""
        self._notifier.notify(self._address)

    def stop(self) -> None:
        """End both threads, before MPI ends."""
        if os.getpid() == self._process:
            self._stopped = True
            self._hosted.clear()
            self.request()
            for thread in self._threads:
                thread.join(LOOK)

    def _run_cold(self) -> None:
        try:
            while not self._stopped:
                if self._bell.sleep(_COLD if self._hosted else _NEVER) or self._receive_requests():
                    self._be_hot()
        finally:
            self._over = True
            self._enter.release()

    def _be_hot(self) -> None:
        """Make progress until there were no requests for a while."""
        self._enter.release()
        until = time.monotonic() + _LINGER
        while self._hosted and time.monotonic() < until:
            asked = self._bell.sleep(_HOT)
            if self._receive_requests() or asked:
                until = time.monotonic() + _LINGER
        self._own.Send(_NOTHING, 0)
        self._left.acquire()

    def _run_hot(self) -> None:
        """Block inside MPI, without the GIL, whenever told so, until `_be_hot` sends a message."""
        while self._enter.acquire() and not self._over:
            self._own.Recv(_NOTHING, 0)
            self._left.release()

    def _receive_requests(self) -> bool:
        """Receive the requests for all windows; return whether there were any."""
        with self._looking:
            requests = [requested() for requested in self._hosted]
        return any(requests)


@functools.cache
def progress_threads() -> ProgressThreads:
    """Return the progress threads of this process."""
    return ProgressThreads()

"""Progress over the network: what the host of a channel does so that ranks on other nodes get answers.

One-sided calls between nodes advance only while the host is inside MPI, unless the network itself carries them out. Ranks that are
about to make such calls knock (see _bells.py). One service per process attends to all channels that it hosts, and is either

    cold    a thread sleeps, and looks now and then whether anybody has knocked: that alone is some progress, too;
    hot     another thread blocks inside MPI, without the GIL, which is progress at the speed of the network. That takes a core,
            and so ends soon after the last knock.

Blocks, because beside a busy Python thread any other one gets the GIL every 5 ms only: a loop of looks would make one in that time.
"""

import atexit
import contextlib
import functools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from mpi4py import MPI

from ._waiting import Doorbell, Ringer, address_of

_LINGER = 0.05  # seconds hot after the last knock: well above the time between two knocks
_LOOK = 0.01  # seconds between two looks while hot
_LONG = 60.0  # seconds asleep while cold
_NOTHING: Final = [None, 0, MPI.BYTE]

Knocked = Callable[[], bool]  # whether somebody has knocked since the last time


class Progress:
    """Attends to the channels that this process hosts."""

    def __init__(self) -> None:
        self._own = MPI.COMM_SELF.Dup()
        self._process = os.getpid()
        self._hosted: list[Knocked] = []
        self._looking = threading.Lock()  # while the communicators of those channels are used
        self._changing = threading.Lock()  # while the thread is started, or ended
        self._address = address_of(secrets.token_hex(8), MPI.COMM_WORLD.rank, "progress")
        self._bell = Doorbell(self._address, self._knocked)
        self._ringer = Ringer()
        self._hot_until = 0.0
        self._thread = threading.Thread()
        atexit.register(self.stop)

    def attend(self, knocked: Knocked) -> None:
        """Attend to one more channel."""
        with self._changing:
            self._hosted.append(knocked)
            if len(self._hosted) == 1:
                self._bell.open()
                self._thread = threading.Thread(target=self._run, name="mpiexecutor progress", daemon=True)
                self._thread.start()

    def leave(self, knocked: Knocked) -> None:
        """Attend to a channel no more, and never call this again; nothing if that is so already."""
        with self._changing:
            with self._looking:
                if knocked not in self._hosted:
                    return
                self._hosted.remove(knocked)
            self._end_if_idle()

    def poke(self) -> None:
        """Be hot for a while: others are about to knock."""
        cold = time.monotonic() > self._hot_until
        self._hot_until = time.monotonic() + _LINGER
        if cold:
            self._ringer.ring(self._address)

    def stop(self) -> None:
        """Attend to nothing any more, before MPI ends. A forked child has none of the threads."""
        if os.getpid() == self._process:
            with self._changing:
                with self._looking:
                    self._hosted.clear()
                self._end_if_idle()

    def _end_if_idle(self) -> None:
        if not self._hosted and self._thread.is_alive():
            self._ringer.ring(self._address)
            self._thread.join()
            self._bell.free()

    def _run(self) -> None:
        while self._hosted:
            if self._bell.sleep(_LONG):
                self._be_hot()

    def _be_hot(self) -> None:
        """Make progress until nobody has knocked for a while."""
        self._hot_until = time.monotonic() + _LINGER
        with self._inside_mpi():
            while self._hosted and time.monotonic() < self._hot_until:
                time.sleep(_LOOK)
                if self._knocked():
                    self._hot_until = time.monotonic() + _LINGER

    def _knocked(self) -> bool:
        """Whether anybody has knocked."""
        with self._looking:
            return any(knocked() for knocked in self._hosted)

    @contextlib.contextmanager
    def _inside_mpi(self) -> Iterator[None]:
        """Have a thread wait inside MPI, without the GIL, for a message that is sent in the end."""
        thread = threading.Thread(target=self._own.Recv, args=(_NOTHING, 0), name="mpiexecutor progress, hot", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._own.Send(_NOTHING, 0)
            thread.join()


@functools.cache
def progress() -> Progress:
    """Give the service of this process."""
    return Progress()

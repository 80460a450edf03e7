"""Progress over the network: what the host of a channel does so that ranks on other nodes get answers.

One-sided calls between nodes advance only while the host is inside MPI, unless the network itself carries them out. Ranks that are
about to make such calls knock (see notifier.py). One attendant per process attends to all channels that it hosts, and is either

    cold    one thread looks now and then whether anybody has knocked: that alone is some progress, too;
    hot     another thread blocks inside MPI, without the GIL, which is progress at the speed of the network. That takes a core,
            and so ends soon after the last knock.

It blocks, because beside a busy Python thread any other one gets the GIL every 5 ms only: a loop of looks would make one in that
time. Both threads are started once: a process that is ending starts none any more, and may still have calls to wait for.
"""

import atexit
import functools
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

from mpi4py import MPI

from mpiexecutor._util.seconds import LOOK as _PATIENCE

from .doorbell import Doorbell, Notifier, address_of

_COLD, _HOT = 0.02, 0.01  # seconds between two looks
_LINGER = 0.05  # seconds hot after the last knock: well above the time between two knocks
_NEVER = 3600.0  # seconds between two looks while there is nothing to attend to
_NOTHING: Final = [None, 0, MPI.BYTE]

Knocked = Callable[[], bool]  # receives all knocks that have come; whether there were any


class Attendant:
    """Attends to the channels that this process hosts. One that nobody frees is attended to until the process ends."""

    def __init__(self) -> None:
        self._own = MPI.COMM_SELF.Dup()
        self._process = os.getpid()
        self._hosted: list[Knocked] = []
        self._looking = threading.Lock()  # while the communicators of those channels are used
        self._address = address_of(secrets.token_hex(8), MPI.COMM_WORLD.rank, "attendant")
        self._bell = Doorbell(self._address)
        self._bell.open()
        self._notifier = Notifier()
        self._go_in, self._is_out = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False  # the first thread is to end,
        self._over = False  # and has, and so is the second
        self._threads = [
            threading.Thread(target=target, name=f"mpiexecutor progress, {name}", daemon=True)
            for target, name in ((self._look_on, "cold"), (self._be_inside, "hot"))
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.stop)

    def attend(self, knocked: Knocked) -> None:
        """Attend to one more channel."""
        with self._looking:
            self._hosted.append(knocked)
        self.poke()

    def leave(self, knocked: Knocked) -> None:
        """Attend to a channel no more: when this returns `knocked` is not being called, and will not be. Nothing if that is so.

        But if it has not come back for long it is stuck inside MPI, after a death, and is left there.
        """
        if os.getpid() == self._process:  # a forked child has none of the threads, and maybe their lock
            looking = self._looking.acquire(timeout=_PATIENCE)
            if knocked in self._hosted:
                self._hosted.remove(knocked)
            if looking:
                self._looking.release()

    def poke(self) -> None:
        """Be hot for a while: others are about to knock."""
        self._notifier.notify(self._address)

    def stop(self) -> None:
        """Attend to nothing any more, before MPI ends."""
        if os.getpid() == self._process:
            self._stopped = True
            self._hosted.clear()
            self.poke()
            for thread in self._threads:
                thread.join(_PATIENCE)

    def _look_on(self) -> None:
        try:
            while not self._stopped:
                if self._bell.sleep(_COLD if self._hosted else _NEVER) or self._knocked():
                    self._be_hot()
        finally:
            self._over = True
            self._go_in.release()

    def _be_hot(self) -> None:
        """Make progress until nobody has knocked for a while."""
        self._go_in.release()
        until = time.monotonic() + _LINGER
        while self._hosted and time.monotonic() < until:
            poked = self._bell.sleep(_HOT)
            if self._knocked() or poked:
                until = time.monotonic() + _LINGER
        self._own.Send(_NOTHING, 0)
        self._is_out.acquire()

    def _be_inside(self) -> None:
        """Wait inside MPI, without the GIL, whenever told so, for a message that is sent in the end."""
        while self._go_in.acquire() and not self._over:
            self._own.Recv(_NOTHING, 0)
            self._is_out.release()

    def _knocked(self) -> bool:
        """Whether anybody has knocked, at any channel: what comes at the others is to be received, too."""
        with self._looking:
            knocks = [knocked() for knocked in self._hosted]
        return any(knocks)


@functools.cache
def attendant() -> Attendant:
    """Give the one of this process."""
    return Attendant()

"""A channel as a whole over the fake memory: random operations, sizes, time-outs and deaths, against a plain queue as the model.

Everything of it is real but for the memory, the clock, the bells and the locks, which let others move. A sleep ends when the bell
is rung, or when its time is over; while nobody dies that is never, but at a deadline: whoever sleeps on shows that a wake-up was
lost.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fake_memory import Death, FakeMemory, Life, Turnstile
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiexecutor.channel import ChannelBroken, ChannelClosed, ChannelEmpty, ChannelFull, IncompletePut, RemoteChannel
from mpiexecutor.channel import _ends, _remote, _waiting
from mpiexecutor.channel._codecs import codec_of
from mpiexecutor.channel._ends import Place
from mpiexecutor.channel._ring import Layout

SLOT = 64  # bytes: a message of a few bytes takes one, the longest five
RANKS = 5
HOST = 0  # and it puts
PRODUCERS, CONSUMERS = (0, 1), (2, 3, 4)
TICK = 1e-4  # seconds that pass whenever somebody looks at the clock
NAP = 0.02  # seconds of a sleep where somebody may die
AGES = 1e6


class World:
    """The fakes: a clock, bells and locks that all threads share, one of which runs at a time."""

    def __init__(self, turnstile: Turnstile) -> None:
        self.turnstile = turnstile
        self.now = 0.0
        self.rung: dict[str, bool] = {}  # of the bells that have been opened

    # as the module time
    def monotonic(self) -> float:
        self.now += TICK
        return self.now

    def sleep(self, seconds: float) -> None:
        self._pass_until(self.now + seconds, lambda: False)

    # as a ringer
    def ring(self, address: str) -> None:
        if address in self.rung:
            self.rung[address] = True

    def _pass_until(self, end: float, happened: Callable[[], bool]) -> bool:
        def look() -> bool | None:
            if happened():
                return True
            if end < AGES:
                self.now += 10 * TICK
            return False if self.now >= end else None

        return self.turnstile.until(look)

    def bell(self, address: str, _far: object) -> "Bell":
        return Bell(self, address)

    def lock(self) -> "Lock":
        return Lock(self.turnstile)


class Bell:
    """A doorbell."""

    def __init__(self, world: World, address: str) -> None:
        self._world = world
        self._address = address

    def open(self) -> None:
        self._world.rung.setdefault(self._address, False)

    def sleep(self, seconds: float) -> bool:
        rung = self._world._pass_until(self._world.now + seconds, lambda: self._world.rung[self._address])
        self._world.rung[self._address] = False
        return rung


class Lock:
    """A lock; who waits for it lets others move."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._held = False

    def acquire(self, timeout: float = -1) -> bool:
        def take() -> bool | None:
            if self._held:
                return False if timeout == 0 else None
            self._held = True
            return True

        return self._turnstile.until(take)

    def release(self) -> None:
        self._held = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Job:
    """All ranks of a channel, each with one thread, and the host with one more, which settles and closes."""

    def __init__(self, slots: int, schedule: bytes, orders: bytes, deaths: dict[int, tuple[int, int]], *, sole: bool) -> None:
        self.turnstile = Turnstile(schedule, orders)
        self.world = World(self.turnstile)
        self.lives: dict[int, Life] = {}
        self.layout = Layout(slots, SLOT, RANKS)
        self.shared = bytearray(self.layout.size)
        self.layout.prepare(FakeMemory(self.shared, self.turnstile))
        self.put: list[tuple[int, int]] = []
        self.perhaps: list[tuple[int, int]] = []  # put, by who has died in the middle of it
        self.taken: dict[int, list[tuple[int, int]]] = {rank: [] for rank in CONSUMERS}
        self.going = {*PRODUCERS, *CONSUMERS}
        self.dead: set[int] = set()
        self.shares: list[Any] = []
        self.mortal = bool(deaths)
        self.sole = sole
        self.channels: list[RemoteChannel[Any, Any]] = []
        with self.faked():
            self.channels = [self.channel(rank) for rank in range(RANKS)]
        self.lives.update({rank: Life(*death) for rank, death in deaths.items()})
        for rank, life in self.lives.items():
            for handle in self.handles[rank]:
                handle._life = life

    def faked(self) -> pytest.MonkeyPatch:
        """Replace what is real."""
        patch = pytest.MonkeyPatch()
        nap = NAP if self.mortal else 10 * AGES
        for module in (_ends, _remote):
            patch.setattr(module, "threading", SimpleNamespace(Lock=self.world.lock))
        for module in (_ends, _remote, _waiting):
            patch.setattr(module, "time", self.world)
        patch.setattr(_ends, "Doorbell", self.world.bell)
        patch.setattr(_ends, "_NAP", {"put": nap, "take": nap})
        patch.setattr(_waiting, "give_way", self.turnstile.step)
        return patch

"""A channel as a whole over the fake memory: random operations, sizes, time-outs and deaths, against a plain queue as the model.

Everything of it is real but for the memory, the clock, the bells and the locks, which let others move. A sleep ends when the bell
is rung, or when its time is over; while nobody dies that is never, but at a deadline: whoever sleeps on shows that a wake-up was
lost.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from fake_memory import Death, FakeMemory, Life, Turnstile
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiexecutor.channel import ChannelEmpty, ChannelFull, IncompletePut, RemoteChannel, Share, Statistics, _base, _losses
from mpiexecutor.channel._codecs import codec_of
from mpiexecutor.channel._ends import end, waiter
from mpiexecutor.channel._ends.rank_state import RankState
from mpiexecutor.channel._ring.layout import Layout

SLOT = 64  # bytes: a message of a few bytes takes one, the longest five
RANKS = 5
Message = tuple[int, int, bytes]  # by whom, number, and something to make it long
Put = tuple[float, list[int], float | None]  # the time before it, lengths, and the time there is
Take = tuple[float, int, float | None]  # the time before it, how many at the most, and the time there is
Channel = RemoteChannel[Any, Any]
HOST = 0  # and it puts
PRODUCERS, CONSUMERS = (0, 1), (2, 3, 4)
TICK = 1e-4  # seconds that pass whenever somebody looks at the clock
NAP = 0.02  # seconds of a sleep where somebody may die
AGES = 1e6


class World:
    """The fakes: a clock, doorbells and locks that all threads share, one of which runs at a time."""

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

    # as a notifier
    def notify(self, address: str) -> None:
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
    """A lock; a party that waits for it lets others move."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        def take() -> bool | None:
            if self._held:
                return None if blocking and timeout != 0 else False
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
    """All ranks of a channel, each in a thread, and the host in one more, which settles and closes."""

    def __init__(
        self, slots: int, consumers: int, schedule: bytes, orders: bytes, deaths: Mapping[int, tuple[int, int]], *, single: bool
    ) -> None:
        self.turnstile = Turnstile(schedule, orders)
        self.world = World(self.turnstile)
        self.deaths = deaths
        self.layout = Layout(slots, SLOT, RANKS)
        self.shared = bytearray(self.layout.size)
        self.layout.prepare(FakeMemory(self.shared, self.turnstile))
        self.single = single
        self.put: Counter[Message] = Counter()
        self.perhaps: set[Message] = set()  # put, by who has died in the middle of that
        self.taken: dict[int, list[Message]] = {rank: [] for rank in CONSUMERS[:consumers]}
        self.producers = PRODUCERS[:1] if single else PRODUCERS
        self.going = {*self.producers, *self.taken}
        self.failed: set[int] = set()
        self.settled: set[int] = set()
        self.shares: list[Share] = []
        self.closed = False

    def run(self, puts: Sequence[Sequence[Put]], takes: Sequence[Sequence[Take]]) -> None:
        """Have each rank do its part; ranks that take do so again and again."""
        lives = {rank: Life() for rank in range(RANKS)}
        with pytest.MonkeyPatch.context() as patch:
            self.fake(patch)
            channels = {rank: self.channel(rank, lives[rank]) for rank in range(RANKS)}
            parties = {"undertaker": lambda: self.attend(channels[HOST])}
            for rank, operations in zip(self.producers, puts, strict=False):
                parties[f"rank {rank}"] = self.party(rank, self.produce, channels[rank], operations)
            for rank, operations in zip(self.taken, takes, strict=True):
                parties[f"rank {rank}"] = self.party(rank, self.consume, channels[rank], operations)
            for rank, (swaps, steps) in self.deaths.items():
                lives[rank]._swaps, lives[rank]._steps = swaps, steps
            self.turnstile.run(parties)
            self.check(channels[HOST].statistics())

    def fake(self, patch: pytest.MonkeyPatch) -> None:
        nap = NAP if self.deaths else 10 * AGES
        for module in (_base, end):
            patch.setattr(module, "threading", SimpleNamespace(Lock=partial(Lock, self.turnstile)))
        for module in (_base, _losses, end, waiter):
            patch.setattr(module, "time", self.world)
        patch.setattr(end, "Doorbell", lambda address, _: Bell(self.world, address))
        patch.setattr(end, "_NAP", {"put": nap, "take": nap})
        patch.setattr(waiter, "release_gil", self.turnstile.step)
        patch.setattr(waiter, "_SPIN", 2 * TICK)

    def channel(self, rank: int, life: Life) -> Channel:
        channel: Channel = object.__new__(RemoteChannel)
        nothing: Any = self.world  # rings
        rank_state = RankState(self.layout, rank, "token", ["node"] * RANKS, nothing, None)
        memory = partial(FakeMemory, self.shared, self.turnstile, life)
        channel._begin(codec_of(object, SLOT), rank_state, memory, HOST, only_host={"put": self.single, "take": False})
        return channel

    # -- parties -----------------------------------------------------------------------------------------------------------------

    def party(self, rank: int, body: Callable[[int, Channel, Any], None], channel: Channel, operations: Any) -> Callable[[], None]:
        def run() -> None:
            try:
                body(rank, channel, operations)
            except Death:
                self.failed.add(rank)
            self.going.discard(rank)

        return run

    def produce(self, rank: int, channel: Channel, operations: Sequence[Put]) -> None:
        numbers = itertools.count()
        for pause, lengths, timeout in operations:
            self.world.sleep(pause)
            messages = [(rank, next(numbers), bytes(length)) for length in lengths]
            self.perhaps.update(messages)
            done = self.put_some(channel, messages, timeout)
            self.perhaps.difference_update(messages)
            self.put.update(messages[:done])

    def put_some(self, channel: Channel, messages: Sequence[Message], timeout: float | None) -> int:
        """Put what there is: by put_nowait if there is no time for it; how many have been put."""
        try:
            if len(messages) > 1:
                channel.put_many(messages, timeout)
            elif timeout == 0:
                channel.put_nowait(messages[0])
            else:
                channel.put(messages[0], timeout)
        except IncompletePut as error:
            return error.count
        except (TimeoutError, ChannelFull):
            return 0
        return len(messages)

    def consume(self, rank: int, channel: Channel, operations: Sequence[Take]) -> None:
        for pause, most, timeout in itertools.cycle(operations):
            self.world.sleep(pause)
            try:
                now = timeout == 0 and most == 1
                found = [channel.take_nowait()] if now else channel.take_many(most, timeout) or [None]
            except (TimeoutError, ChannelEmpty):
                self.turnstile.step()
                continue
            if found == [None]:
                return
            assert len(found) <= most
            self.taken[rank] += found

    def attend(self, channel: Channel) -> None:
        """Recover after each death, and close the channel when all producers are done."""
        while self.turnstile.until(lambda: self.failed != self.settled or self.is_done() or not self.going or None):
            if self.failed != self.settled:
                known = set(self.failed)
                self.shares += [share for share in channel.recover(self.failed, AGES) if share.rank not in self.settled]
                self.settled |= known
            elif self.is_done():
                channel.close()
                self.closed = True
            else:
                return

    def is_done(self) -> bool:
        """Whether it is to be closed: all is put, and taken, unless a rank may die; closing also wakes a forgotten rank."""
        taken = sum(map(len, self.taken.values()))
        return not self.closed and not self.going & set(PRODUCERS) and (bool(self.deaths) or taken == self.put.total())

    # -- what must be true -------------------------------------------------------------------------------------------------------

    def check(self, statistics: Statistics) -> None:
        """A plain queue would have given the same, except for claims of failed ranks."""
        taken = Counter(itertools.chain(*self.taken.values()))
        assert not taken - self.put - Counter(self.perhaps), "doubled, or out of nothing"
        assert (self.put - taken).total() <= sum(len(share.messages) for share in self.shares), "lost"
        for found in self.taken.values():
            for producer in PRODUCERS:
                numbers = [number for rank, number, _ in found if rank == producer]
                assert numbers == sorted(numbers), "messages of one producer overtook each other"
        assert statistics.waiting == 0
        assert statistics.closed
        if not self.deaths:
            assert taken == self.put
            assert statistics.put == statistics.taken == taken.total()


TIMEOUTS = st.one_of(st.none(), st.none(), st.just(0.0), st.integers(1, 60).map(lambda ticks: ticks * TICK))
PAUSES = st.sampled_from((0, 0, 30, 300)).map(lambda ticks: ticks * TICK)
PUTS = st.lists(st.tuples(PAUSES, st.lists(st.integers(0, 250), min_size=1, max_size=3), TIMEOUTS), max_size=4)
TAKES = st.lists(
    st.lists(st.tuples(PAUSES, st.integers(1, 3), TIMEOUTS), min_size=1, max_size=3), min_size=1, max_size=len(CONSUMERS)
)
DEATHS = st.dictionaries(
    st.sampled_from((1, 3, 4)), st.tuples(st.integers(0, 5), st.integers(0, 120)), max_size=3
)  # the others live
RUN = st.integers(1, 6), st.tuples(PUTS, PUTS), TAKES, st.booleans(), st.binary(max_size=200), st.binary(max_size=30)
RUNS = settings(max_examples=400, deadline=None)


@RUNS
@given(*RUN)
def test_a_channel_is_a_queue(slots, puts, takes, single, schedule, orders):
    """For all messages and waiting times; no wake-up is lost."""
    Job(slots, len(takes), schedule, orders, {}, single=single).run(puts, takes)


@RUNS
@given(*RUN, DEATHS)
def test_a_channel_is_a_queue_for_living_ranks(slots, puts, takes, single, schedule, orders, deaths):
    """Ranks die at any step of anything; the host settles what they leave."""
    Job(slots, len(takes), schedule, orders, deaths, single=single).run(puts, takes)

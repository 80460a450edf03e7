"""What dead ranks leave behind: ranks die at any step, and the living lose nothing."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_memory import Death, FakeMemory, Life, Turnstile
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiexecutor.channel import ChannelMemoryError
from mpiexecutor.channel._ring.consumer import Consumer
from mpiexecutor.channel._ring.layout import CLOSED, STAMP, TICKET, Layout
from mpiexecutor.channel._ring.participant import Progress
from mpiexecutor.channel._ring.producer import Gather, Producer
from mpiexecutor.channel._ring.receiver import Incoming
from mpiexecutor.channel._ring.recovery import RingRecovery, Share

SLOT = 2
RANKS = 5
HOST = 4


class Job:
    """Producers 0 and 1, consumers 2 and 3, on a ring that rank 4 hosts and settles."""

    def __init__(
        self,
        slots: int,
        schedule: bytes,
        orders: bytes,
        lives: dict[int, Life],
        *,
        single: tuple[bool, bool],
        room: int | None = None,
    ) -> None:
        """`room` is how many bytes consumer 2 can allocate."""
        self.layout = Layout(slots, SLOT, RANKS)
        self.turnstile = Turnstile(schedule, orders)
        self.shared = bytearray(self.layout.size)
        self.layout.prepare(self.memory(HOST))
        self.lives = lives
        self.single = single
        self.put: list[list[bytes]] = [[], []]  # by producer
        self.tried: list[bytes | None] = [None, None]  # what each was at last
        self.taken: dict[int, list[bytes]] = {2: [], 3: []}
        self.skipped: list[int] = []  # their numbers
        self.going = {0, 1, 2, 3}
        self.failed: set[int] = set()
        self.shares: list[Share] = []
        self.recovered: set[int] = set()
        self.closed = False
        self.producers = {rank: Producer(self.memory(rank), self.layout, rank, single=single[0]) for rank in (0, 1)}
        self.consumers = {rank: Consumer(self.memory(rank), self.layout, rank, single=single[1]) for rank in (2, 3)}
        memory: Any = self.consumers[2]._memory
        memory.room = room

    def memory(self, rank: int) -> FakeMemory:
        return FakeMemory(self.shared, self.turnstile, self.lives.get(rank) if hasattr(self, "lives") else None)

    # -- parties -----------------------------------------------------------------------------------------------------------------

    def mortal(self, rank: int, body: Callable[[int], None]) -> Callable[[], None]:
        def party() -> None:
            try:
                body(rank)
            except Death:
                self.failed.add(rank)
            self.going.discard(rank)

        return party

    def produce(self, messages: list[bytes]) -> Callable[[int], None]:
        def body(rank: int) -> None:
            ring = self.producers[rank]
            for message in messages:
                self.tried[rank] = message
                while not self.put_one(ring, message):
                    pass
                ring.state()  # as to look who sleeps: with that the record is done with
                self.put[rank].append(message)

        return body

    def put_one(self, ring: Producer, message: bytes) -> bool:
        if len(message) <= SLOT and ring.put_short([memoryview(message)], len(message)):
            return True
        out = self.turnstile.until(lambda: ring.reserve([len(message)], whole=False) or (self.nobody({2, 3}) or None))
        if out is True:
            return True  # nobody is left to take it
        out.data = Gather([memoryview(message)])
        while out.sent < out.span:
            progress = self.turnstile.until(lambda: self.moved(ring.send(out)) or (self.nobody({2, 3}) or None))
            if progress is Progress.QUIESCENT:
                self.turnstile.until(lambda: ring.resumed() or None)
                return ring.unsent(out) == 0
            if progress is True:
                ring.abort(out)
                return True
        return True

    def consume(self, most: int) -> Callable[[int], None]:
        def body(rank: int) -> None:
            ring = self.consumers[rank]
            while (found := self.turnstile.until(lambda: self.claim(ring, most))) is not True:
                if isinstance(found, memoryview):
                    self.taken[rank].append(bytes(found))
                else:
                    self.receive(rank, ring, found)
                ring.state()

        return body

    def claim(self, ring: Consumer, most: int) -> Incoming | memoryview | bool | None:
        data = ring.take_short(alone=most > 1)
        if data is not None:
            return data
        try:
            incoming = ring.claim(most)
        except ChannelMemoryError as error:
            incoming = ring.skip(error.number)
        if incoming is None and self.nobody({0, 1}) and ring.ended(ring.state()):
            return True
        return incoming

    def receive(self, rank: int, ring: Consumer, incoming: Incoming) -> None:
        while True:
            progress = self.turnstile.until(lambda: self.moved(ring.receive(incoming)))
            if progress is Progress.QUIESCENT:
                self.turnstile.until(lambda: ring.resumed() or None)
                return
            if progress is Progress.DONE and incoming.skipped:
                self.skipped.append(incoming.number)
            elif progress is Progress.DONE:
                self.taken[rank].extend(split(incoming, self.layout))
            if progress is not Progress.MOVED:
                return

    def recover(self) -> None:
        """Be the host: recover the ring after each death, and close the ring when all producers are done."""
        memory = self.memory(HOST)
        tail, head = Producer(memory, self.layout, HOST), Consumer(memory, self.layout, HOST)
        while self.turnstile.until(lambda: self.failed != self.recovered or self.is_to_be_closed() or not self.going or None):
            if self.failed != self.recovered:
                self.recover_once(RingRecovery(memory, self.layout, tail, head))
            elif self.is_to_be_closed():
                tail.close()
                self.closed = True
            else:
                return

    def is_to_be_closed(self) -> bool:
        return self.nobody({0, 1}) and not self.closed

    def recover_once(self, recovery: RingRecovery) -> None:
        recovery.quiesce()
        self.turnstile.until(lambda: not recovery.at_work(self.failed) or None)
        dead = set(self.failed)
        self.shares += [share for share in recovery.recover(dead, ignore) if share.rank not in self.recovered]
        self.recovered = dead

    @staticmethod
    def moved(progress: Progress) -> Progress | None:
        return None if progress is Progress.STALLED else progress

    def nobody(self, ranks: set[int]) -> bool:
        return self.failed == (self.failed & {0, 1, 2, 3}) and not (ranks & self.going)

    # -- what must be true -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        taken = Counter(itertools.chain(*self.taken.values()))
        assert not [message for message, count in taken.items() if count > 1], "doubled"
        put = Counter(itertools.chain(*self.put))
        unsure = {self.tried[rank] for rank in self.failed & {0, 1}}
        assert not [message for message in taken if message not in put and message not in unsure], "out of nothing"
        lost = put - taken
        shared = {number for share in self.shares for number in share.messages}
        if self.nobody_took():
            return
        assert len(self.skipped) == len(set(self.skipped)), "skipped twice"
        assert lost.total() <= len(shared | set(self.skipped)), f"lost {lost}, in shares {shared}, skipped {self.skipped}"
        for found in self.taken.values():
            for producer in (0, 1):
                numbers = [message[1] for message in found if message[0] == producer]
                assert numbers == sorted(numbers), "messages of one producer overtook each other"

    def nobody_took(self) -> bool:
        return {2, 3} <= self.failed

    def check_whole(self) -> None:
        """Each slot is free for the next round, unless no party was left to empty the ring."""
        if self.nobody_took():
            return
        head, tail = (int.from_bytes(self.shared[at : at + 8], "little") for at in (self.layout.head, self.layout.tail))
        assert head == tail & ~CLOSED
        for index in range(self.layout.slots):
            at = self.layout.stamp_at((tail & TICKET) + index)
            stamp = ((tail & TICKET) + index) % self.layout.modulus * STAMP
            assert int.from_bytes(self.shared[at : at + 8], "little") == stamp


def ignore(_kept: list[int], _first: int) -> None:
    pass


def split(incoming: Incoming, layout: Layout) -> Iterator[bytes]:
    if len(incoming.lengths) == 1:
        yield bytes(incoming.data)
        return
    start = 0
    for length in incoming.lengths:
        yield bytes(incoming.data[start : start + length])
        start += layout.span(length) * layout.slot_size


def messages_of(producer: int, lengths: list[int]) -> list[bytes]:
    return [bytes((producer, number)) + bytes(range(length - 2)) for number, length in enumerate(lengths)]


LENGTHS = st.lists(st.integers(2, 14), max_size=5)
DEATHS = st.dictionaries(st.integers(0, 3), st.tuples(st.integers(0, 4), st.integers(0, 60)), max_size=3)


@settings(max_examples=1500, deadline=None)
@given(
    st.integers(1, 5), LENGTHS, LENGTHS, st.integers(1, 4), st.booleans(), DEATHS, st.binary(max_size=150), st.binary(max_size=30)
)
def test_the_living_lose_nothing(slots, first, second, most, poor, deaths, schedule, orders):
    """What was put is taken, once, in order, except for claims of failed ranks; and the ring is whole.

    A consumer that has memory for short messages only skips the others.
    """
    lives = {rank: Life(*death) for rank, death in deaths.items()}
    job = Job(slots, schedule, orders, lives, single=(False, False), room=6 if poor else None)
    parties = {
        "producer 0": job.mortal(0, job.produce(messages_of(0, first))),
        "producer 1": job.mortal(1, job.produce(messages_of(1, second))),
        "consumer 2": job.mortal(2, job.consume(most)),
        "consumer 3": job.mortal(3, job.consume(most)),
        "host": job.recover,
    }
    job.turnstile.run(parties)
    job.check()
    job.check_whole()


@pytest.mark.parametrize("state", ["claimed", "received"])
def test_a_share_says_what_the_failed_rank_had(state):
    """By number: the third message, which it was at work on, or had received."""
    job = Job(4, b"", b"", {}, single=(False, False))
    producer, consumer = job.producers[0], job.consumers[2]
    for number in range(3):
        assert producer.put_short([memoryview(bytes((0, number)))], 2)
    for _ in range(2):
        assert consumer.take_short() is not None
    if state == "received":
        assert consumer.take_short() is not None
    else:
        assert consumer.claim() is not None
    producer.state()
    consumer.state()
    memory = job.memory(HOST)
    recovery = RingRecovery(memory, job.layout, Producer(memory, job.layout, HOST), Consumer(memory, job.layout, HOST))
    recovery.quiesce()
    assert recovery.at_work({2}) == []
    assert recovery.recover({2}, ignore) == [Share(2, range(2, 3), received=state == "received")]

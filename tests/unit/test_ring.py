"""The ring, alone: over memory as weak as allowed, with every interleaving that Hypothesis can think of."""

import contextlib
import itertools
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from fake_memory import FakeMemory, Stuck, Turnstile
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from mpiexecutor.channel import ChannelClosed, ChannelMemoryError
from mpiexecutor.channel._ring.consumer import Consumer
from mpiexecutor.channel._ring.layout import CLOSED, MAX_LENGTH, MAX_SLOTS, TICKET_BITS, WORD, Layout
from mpiexecutor.channel._ring.participant import Progress, State
from mpiexecutor.channel._ring.producer import Gather, Outgoing, Producer
from mpiexecutor.channel._ring.receiver import Incoming

# The same examples in every run: what fails here failed because of the last change.
RACES = settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
FEW = settings(RACES, max_examples=200)
PURE = settings(RACES, max_examples=100)

SLOT = 8  # bytes: a message of several slots is short, and moves in several words
RANKS = 4
RECORD = 64  # bytes, a rank
MESSAGE = 1 << (TICKET_BITS + 2)  # one message, in a position
STAMP = 1 << 40  # one ticket, in a stamp

SLOTS = st.sampled_from([1, 2, 3, 5])
SCHEDULES = st.binary(min_size=100, max_size=100)
ORDERS = st.binary(min_size=16, max_size=16)
# Lengths in bytes: of one slot, of several, and of more than the ring has.
LENGTHS = st.sampled_from([2, 8, 9, 16, 24, 33, 48])
SHORT = st.sampled_from([2, 7, 8])
BATCHES = st.lists(st.lists(LENGTHS, min_size=1, max_size=3), min_size=1, max_size=4)
# Which ticket comes first: 0 at birth; the others lie shortly before tickets begin anew.
STARTS = st.sampled_from([0, 1, 2, 7])


def text(producer: int, number: int, length: int) -> bytes:
    """Return a message that says whose it is and which, and of which no two pieces are alike."""
    return (bytes([producer, number]) + bytes((50 * producer + 11 * number + 3 * i) % 251 for i in range(length)))[:length]


def gather(messages: Sequence[bytes], layout: Layout) -> Gather:
    """Lay messages out as their slots lie."""
    if len(messages) == 1:
        return Gather([memoryview(messages[0])])
    padded = [message.ljust(layout.span(len(message)) * layout.slot_size, b"\0") for message in messages]
    return Gather([memoryview(b"".join(padded))])


def split(incoming: Incoming, layout: Layout) -> list[bytes]:
    """Return the messages that were received."""
    found, start = [], 0
    for length in incoming.lengths:
        found.append(bytes(incoming.data[start : start + length]))
        start += layout.span(length) * layout.slot_size
    return found


class Ring:
    """A ring in fake memory, the parties that use it, and what they saw."""

    def __init__(
        self, slots: int = 3, *, schedule: bytes = b"", orders: bytes = b"", before_wrap: int = 0, slot_size: int = SLOT
    ) -> None:
        self.layout = Layout(slots, slot_size, RANKS)
        self.turnstile = Turnstile(schedule, orders)
        self.shared = bytearray(self.layout.size)
        self.layout.prepare(self.memory())
        self.start = 0
        if before_wrap:
            self.begin_at(self.layout.modulus - before_wrap, messages=1000)
        self.put: Counter[bytes] = Counter()  # messages that arrive, if the ring keeps its word
        self.taken: list[list[bytes]] = []  # by each consumer
        self.aborts = 0
        self.skipped: Counter[int] = Counter()  # of the messages that were skipped: by length
        self.closed = False  # close has returned
        self.over = 0  # consumers that saw the end

    def memory(self) -> FakeMemory:
        return FakeMemory(self.shared, self.turnstile)

    def producer(self, rank: int = 0, kind: type[Producer] = Producer, *, single: bool = False) -> Producer:
        producer = kind(self.memory(), self.layout, rank, single=single)
        producer._position = self.start if single else 0
        return producer

    def consumer(self, rank: int = 2, kind: type[Consumer] = Consumer, *, single: bool = False) -> Consumer:
        consumer = kind(self.memory(), self.layout, rank, single=single)
        consumer._position = self.start if single else 0
        return consumer

    def begin_at(self, ticket: int, messages: int) -> None:
        """Make the ring as it is after so many tickets and messages."""
        self.start = messages * MESSAGE + ticket
        memory = self.memory()
        memory.store(self.layout.head, self.start)
        memory.store(self.layout.tail, self.start)
        for index in range(self.layout.slots):
            memory.store(self.layout.stamp_at(ticket + index), (ticket + index) % self.layout.modulus * STAMP)
        memory.flush()

    def word(self, at: int) -> int:
        return array("q", bytes(self.shared[at : at + WORD]))[0]

    def state(self) -> State:
        return self.producer().state()

    # -- what parties do ----------------------------------------------------------------------------------------------

    def put_all(self, ring: Producer, batches: Iterable[Sequence[bytes]], *, whole: bool = False) -> None:
        """Put messages, batch by batch, as far as each has room."""
        for batch in batches:
            left = list(batch)
            while left:
                if len(left) == 1 and self.put_short(ring, left[0]):
                    done = 1
                elif (out := self.reserve(ring, left, whole=whole)) is not None:
                    done = len(out.lengths)
                    self.send(ring, out)
                else:
                    return
                self.put.update(left[:done])
                del left[:done]

    def put_short(self, ring: Producer, message: bytes) -> bool:
        """Put a message in one go if it is short, and has room."""
        closed = self.closed
        put = len(message) <= self.layout.slot_size and ring.put_short([memoryview(message)], len(message))
        assert not (put and closed), "put after close"
        return put

    def reserve(self, ring: Producer, messages: Sequence[bytes], *, whole: bool = False) -> Outgoing | None:
        """Reserve for the first of the messages; None once no party will take it."""

        def attempt() -> Outgoing | bool | None:
            closed = self.closed
            out = ring.reserve([len(message) for message in messages], whole=whole)
            assert not (out and closed), "reserved after close"
            return out or (self.nobody_takes() or None)

        out = self.turnstile.until(attempt)
        if isinstance(out, bool):
            return None
        out.data = gather(messages[: len(out.lengths)], self.layout)
        return out

    def send(self, ring: Producer, out: Outgoing) -> None:
        while out.sent < out.span and not self.nobody_takes():
            self.turnstile.until(lambda: self.moved(ring.send(out)) or (self.nobody_takes() or None))

    def nobody_takes(self) -> bool:
        return bool(self.taken) and self.over == len(self.taken)

    @staticmethod
    def moved(progress: Progress) -> Progress | None:
        return None if progress is Progress.STALLED else progress

    def take_all(
        self, ring: Consumer, most: int = 1, interrupts: Iterable[int] = (), room: int | None = None
    ) -> Callable[[], None]:
        """Be a party that takes until the end, and skips what it has no room for; `interrupts` says when each receive is."""
        memory: Any = ring._memory
        memory.room = room
        found: list[bytes] = []
        self.taken.append(found)
        interrupts = iter(interrupts)

        def attempt() -> Incoming | memoryview | bool | None:
            if (data := ring.take_short(alone=most > 1)) is not None:
                return data
            try:
                incoming = ring.claim(most)
            except ChannelMemoryError as error:
                incoming = ring.skip(error.number)
            if incoming is None and ring.ended(ring.state()):
                return True
            return incoming

        def party() -> None:
            while not isinstance(incoming := self.turnstile.until(attempt), bool):
                if isinstance(incoming, memoryview):
                    found.append(bytes(incoming))
                elif self.receive(ring, incoming, next(interrupts, None)) is Progress.DONE:
                    self.skipped.update(incoming.lengths if incoming.skipped else ())
                    found.extend([] if incoming.skipped else split(incoming, self.layout))
            self.check_end(ring)
            self.over += 1

        return party

    def receive(self, ring: Consumer, incoming: Incoming, interrupt_after: int | None = None) -> Progress:
        """Receive to the end, through an interrupt."""
        memory: Any = ring._memory
        memory.interrupt_after = interrupt_after
        while True:
            try:
                progress = self.turnstile.until(lambda: self.moved(ring.receive(incoming)))
            except KeyboardInterrupt:
                ring.recount(incoming)
                continue
            if progress is not Progress.MOVED:
                memory.interrupt_after = None
                return progress

    def check_end(self, ring: Consumer) -> None:
        """No end before all that will come was claimed; at this moment, not at that of the look."""
        head, tail = self.word(self.layout.head), self.word(self.layout.tail)
        claims = max(self.word(self.layout.expected) - 1, -1 if ring.own_expected is None else ring.own_expected)
        all_claimed = claims >= 0 and head // MESSAGE >= claims
        assert all_claimed or (tail & CLOSED and head == tail & ~CLOSED), "the end came too early"

    def closing(self, bodies: Sequence[Callable[[], None]]) -> list[Callable[[], None]]:
        """Have the last of several producers close the ring."""
        left = [len(bodies)]

        def party(body: Callable[[], None]) -> None:
            body()
            left[0] -= 1
            if not left[0]:
                self.close()

        return [lambda body=body: party(body) for body in bodies]  # type: ignore[misc]

    def close(self) -> None:
        self.producer(RANKS - 1).close()
        self.closed = True

    def run(self, *parties: Callable[[], None]) -> None:
        self.turnstile.run({f"party {index}": party for index, party in enumerate(parties)})

    # -- what must be true --------------------------------------------------------------------------------------------

    def check_arrived(self) -> None:
        """What was put was taken, once, unchanged, and in order, or was skipped."""
        taken = Counter(itertools.chain(*self.taken))
        assert taken <= self.put
        assert Counter(map(len, (self.put - taken).elements())) == self.skipped
        for found in self.taken:
            for producer in range(RANKS):
                numbers = [message[1] for message in found if message[0] == producer]
                assert numbers == sorted(numbers), "messages of one producer overtook each other"

    def check_empty(self) -> None:
        """The ring is as new: no ticket lost, each slot free for the next one."""
        head, tail = self.word(self.layout.head), self.word(self.layout.tail) & ~CLOSED
        assert head == tail
        ticket = tail & (CLOSED - 1)
        for index in range(self.layout.slots):
            assert self.word(self.layout.stamp_at(ticket + index)) == (ticket + index) % self.layout.modulus * STAMP
        assert tail // MESSAGE - self.start // MESSAGE == self.put.total() + self.aborts
        assert sum(self.word(self.layout.aborted + 8 * rank) for rank in range(self.layout.ranks)) == self.aborts


def messages_of(producer: int, batches: Sequence[Sequence[int]]) -> list[list[bytes]]:
    """Make messages of these lengths, numbered."""
    numbers = itertools.count()
    return [[text(producer, next(numbers), length) for length in batch] for batch in batches]


# -- nothing is lost, doubled, torn, or out of order -----------------------------------------------------------------


@RACES
@given(SLOTS, st.tuples(BATCHES, BATCHES), st.tuples(st.integers(1, 4), st.integers(1, 4)), STARTS, SCHEDULES, ORDERS)
def test_all_messages_arrive_once_whole_and_in_order(slots, batches, most, before_wrap, schedule, orders):
    """Two producers, two consumers, messages of any length, one by one and in batches: all arrive, as they were."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)
    puts = [lambda rank=rank: ring.put_all(ring.producer(rank), messages_of(rank, batches[rank])) for rank in (0, 1)]
    takes = [ring.take_all(ring.consumer(2 + index), most[index]) for index in (0, 1)]
    ring.run(*ring.closing(puts), *takes)
    ring.check_arrived()
    ring.check_empty()


@RACES
@given(SLOTS, st.tuples(BATCHES, BATCHES), st.integers(1, 4), st.lists(st.integers(0, 12)), STARTS, SCHEDULES, ORDERS)
def test_what_a_consumer_has_no_memory_for_is_skipped_or_taken_by_another(
    slots, batches, most, interrupts, before_wrap, schedule, orders
):
    """Short messages always fit; a long one is thrown away whole, and nothing else with it, unless the other was faster."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)
    puts = [lambda rank=rank: ring.put_all(ring.producer(rank), messages_of(rank, batches[rank])) for rank in (0, 1)]
    poor = ring.take_all(ring.consumer(2), most, interrupts, room=16)
    ring.run(*ring.closing(puts), poor, ring.take_all(ring.consumer(3), most))
    ring.check_arrived()
    ring.check_empty()
    assert all(length > 16 for length in ring.skipped)


@pytest.mark.parametrize("single", [False, True])
def test_a_rank_without_memory_for_a_message_is_told_which_it_is(single):
    """It can be taken later, or be skipped, once; another's is not."""
    ring = Ring(5)
    producer, consumer = ring.producer(0), ring.consumer(2, single=single)
    memory: Any = consumer._memory
    for number in range(3):
        assert producer.put_short([memoryview(bytes([number] * 8))], 8)
    refusals = []
    for room in (7, 0, 7):
        memory.room = room
        assert consumer.take_short() is None
        with pytest.raises(ChannelMemoryError, match=r"message \d, of 8 bytes, does not fit") as refused:
            consumer.claim(3)
        refusals.append(refused.value)
    assert {(error.number, error.size, error.head) for error in refusals} == {(0, 8, bytes(8))}
    assert consumer.skip(1) is None
    memory.room = None
    assert bytes(consumer.take_short() or b"") == bytes(8)
    assert consumer.skip(0) is None
    memory.room = 7
    with pytest.raises(ChannelMemoryError):
        consumer.claim()
    skipped = consumer.skip(1)
    assert skipped is not None
    assert consumer.receive(skipped) is Progress.DONE
    assert consumer.skip(1) is None
    memory.room = None
    assert bytes(consumer.take_short() or b"") == bytes([2] * 8)
    assert consumer.claim() is None


@FEW
@given(SLOTS, BATCHES, st.integers(1, 4), st.tuples(st.booleans(), st.booleans()), STARTS, SCHEDULES, ORDERS)
def test_a_host_that_is_alone_at_its_end_needs_no_swap(slots, batches, most, single, before_wrap, schedule, orders):
    """One producer that stores TAIL, or one consumer that stores HEAD, or both; two where the others may be several."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)
    producers = [ring.producer(rank, single=single[0]) for rank in range(1 if single[0] else 2)]
    consumers = [ring.consumer(2 + rank, single=single[1]) for rank in range(1 if single[1] else 2)]
    left = [len(producers)]

    def put(rank: int) -> None:
        ring.put_all(producers[rank], messages_of(rank, batches))
        left[0] -= 1
        if not left[0]:
            producers[rank].close()

    ring.run(*(lambda rank=rank: put(rank) for rank in range(len(producers))), *(ring.take_all(each, most) for each in consumers))
    ring.check_arrived()
    ring.check_empty()


@FEW
@given(SLOTS, st.lists(st.lists(st.just(0), min_size=1, max_size=4), max_size=4), st.integers(1, 4), SCHEDULES, ORDERS)
def test_an_empty_message_is_a_message(slots, batches, most, schedule, orders):
    """A message of no bytes arrives like any other: as many as were put."""
    ring = Ring(slots, schedule=schedule, orders=orders)
    producer = ring.producer()
    ring.run(
        *ring.closing([lambda: ring.put_all(producer, [[b""] * len(b) for b in batches])]), ring.take_all(ring.consumer(), most)
    )
    assert list(itertools.chain(*ring.taken)) == [b""] * sum(map(len, batches))
    ring.check_empty()


# -- the harness has teeth -------------------------------------------------------------------------------------------


class PublishesFirst(Producer):
    """Says that the bytes are there, and then writes them."""

    def _write(self, out: Outgoing, room: int) -> None:
        super()._publish(out, room)
        self._memory.flush()
        super()._write(out, room)

    def _publish(self, out: Outgoing, room: int) -> None:
        """It has done so."""


class PublishesAtOnce(Producer):
    """Leaves out the flush between the bytes and the stamps."""

    def _write(self, out: Outgoing, room: int) -> None:
        super()._write(out, room)
        super()._publish(out, room)

    def _publish(self, out: Outgoing, room: int) -> None:
        """It has done so."""


class SwapsWithoutLooking(Producer):
    """Stores TAIL where others do, too."""

    def _swap(self, position: int, new: int, messages: int, span: int) -> int:
        self._memory.store(self._position_at, new)
        self._memory.flush()
        return position


class FreesFirst(Consumer):
    """Frees the slots, and then reads them."""

    def _incoming(self, position: int, lengths: Sequence[int], span: int, ready: int) -> Incoming:
        return Incoming(position, lengths, span, memoryview(bytearray(span * self._layout.slot_size)), ready)

    def _read(self, incoming: Incoming, ready: int) -> None:
        super()._release(incoming, ready)
        self._memory.flush()
        super()._read(incoming, ready)

    def _release(self, incoming: Incoming, ready: int) -> None:
        """It has done so."""


class Forgetful(FakeMemory):
    """Forgets to flush what was just written, or read."""

    _forgets = False

    def write(self, at: int, data: memoryview) -> None:
        super().write(at, data)
        self._forgets = True

    def store_once(self, at: int, olds: Sequence[int], words: Sequence[int]) -> None:
        super().store_once(at, olds, words)
        self._forgets = True

    def read(self, at: int, into: memoryview) -> None:
        super().read(at, into)
        self._forgets = True

    def flush(self) -> None:
        if not self._forgets:
            super().flush()
        self._forgets = False


class SendsShortAtOnce(Producer):
    """Leaves out the flush between the bytes of a short message and their stamp."""

    def put_short(self, parts: Sequence[memoryview], length: int) -> bool:
        self._memory.__class__ = Forgetful
        put = super().put_short(parts, length)
        self._memory.__class__ = FakeMemory
        self._memory.flush()
        return put


class SwapsShortAfterAStore(Consumer):
    """Frees the slot of a short message before it is claimed."""

    def take_short(self, *, alone: bool = False) -> memoryview | None:
        memory = self._memory
        swap, store_once = memory.compare_swap, memory.store_once

        def free_first(at: int, expected: int, word: int) -> int:
            ticket = expected & (CLOSED - 1)
            stamp_at = self._layout.stamp_at(ticket)
            store_once(stamp_at, [memory.load(stamp_at)], [(ticket + self._layout.slots) % self._layout.modulus * STAMP])
            memory.flush()
            return swap(at, expected, word)

        memory.compare_swap = free_first  # type: ignore[method-assign]
        memory.store_once = lambda *_: None  # type: ignore[method-assign]
        try:
            return super().take_short(alone=alone)
        finally:
            del memory.compare_swap, memory.store_once


class PublishesByCopy(Producer):
    """Sets stamps by what may set them twice."""

    def _store_stamps(self, ticket: int, olds: Sequence[int], stamps: Sequence[int]) -> None:
        for index, stamp in enumerate(stamps):
            self._memory.store(self._layout.stamp_at(ticket + index), stamp)


class FreesByCopy(Consumer):
    """The same."""

    _store_stamps = PublishesByCopy._store_stamps


@pytest.mark.parametrize(
    "fault",
    [
        PublishesFirst,
        PublishesAtOnce,
        SwapsWithoutLooking,
        FreesFirst,
        SendsShortAtOnce,
        SwapsShortAfterAStore,
        PublishesByCopy,
        FreesByCopy,
    ],
)
def test_a_ring_with_a_race_is_found_out(fault):
    """The first of these tests fails for a ring that takes two steps in the wrong order, or a step twice."""
    producing, consuming = (fault, Consumer) if issubclass(fault, Producer) else (Producer, fault)

    @settings(RACES, max_examples=400, phases=[Phase.generate], report_multiple_bugs=False)
    @given(SLOTS, BATCHES, BATCHES, SCHEDULES, ORDERS)
    def races(slots, first, second, schedule, orders):
        ring = Ring(slots, schedule=schedule, orders=orders)
        puts = [
            lambda rank=rank: ring.put_all(ring.producer(rank, producing), messages_of(rank, (first, second)[rank]))
            for rank in (0, 1)
        ]
        ring.run(*ring.closing(puts), *(ring.take_all(ring.consumer(rank, consuming)) for rank in (2, 3)))
        ring.check_arrived()

    with pytest.raises(AssertionError):
        races()


def test_a_schedule_replays():
    """The same choices give the same run: a failure can be looked at again."""

    def run() -> tuple[list[list[bytes]], int]:
        ring = Ring(2, schedule=bytes(range(7, 107)), orders=bytes(range(16)))
        puts = [lambda rank=rank: ring.put_all(ring.producer(rank), messages_of(rank, [[8, 24], [2]])) for rank in (0, 1)]
        takes = [ring.take_all(ring.consumer(rank)) for rank in (2, 3)]
        ring.run(*ring.closing(puts), *takes)
        return ring.taken, ring.turnstile._steps

    assert run() == run()


def test_a_ring_that_no_consumer_empties_is_reported_as_stuck():
    """A party that waits for ever ends the test with an error."""
    ring = Ring(1)
    with pytest.raises(Stuck, match="everybody waits: party 0"):
        ring.run(lambda: ring.put_all(ring.producer(), messages_of(0, [[2], [2]])))


# -- claims and the end ----------------------------------------------------------------------------------------------


@RACES
@given(SLOTS, st.integers(0, 6), st.integers(0, 4), st.tuples(st.integers(1, 4), st.integers(1, 4)), SCHEDULES, ORDERS)
def test_no_more_messages_are_taken_than_claimed(slots, claimed, surplus, most, schedule, orders):
    """The host claims while others take; every consumer has claimed as much itself. The surplus stays in the ring."""
    ring = Ring(slots, schedule=schedule, orders=orders)
    host, consumers = ring.producer(3), [ring.consumer(rank) for rank in (1, 2)]
    for consumer in consumers:
        consumer.own_expected = claimed
    batches = messages_of(0, [[2]] * (claimed + surplus))
    takes = [ring.take_all(consumer, n) for consumer, n in zip(consumers, most, strict=True)]
    ring.run(lambda: ring.put_all(ring.producer(), batches), *takes, lambda: host.expect(claimed))
    found = sorted(itertools.chain(*ring.taken))
    assert found == [message for batch in batches[:claimed] for message in batch]
    assert ring.state().taken == claimed
    assert ring.consumer().claim() is None


@FEW
@given(SLOTS, st.integers(0, 5), st.integers(0, 5), SCHEDULES, ORDERS)
def test_a_rank_that_has_claimed_more_itself_goes_by_that(slots, first, more, schedule, orders):
    """The host's claim is on its way, in two steps; a consumer that knows all of it sees no end before all of it was taken."""
    ring = Ring(slots, schedule=schedule, orders=orders)
    consumer, host = ring.consumer(), ring.producer(3)
    consumer.own_expected = first + more

    def claim_twice() -> None:
        host.expect(first)
        host.expect(first + more)

    batches = messages_of(0, [[9]] * (first + more))
    ring.run(lambda: ring.put_all(ring.producer(), batches), ring.take_all(consumer), claim_twice)
    assert ring.taken == [list(itertools.chain(*batches))]


def test_claims_may_grow_after_the_end_was_reached():
    """The end of what was claimed is not the end of the ring."""
    ring = Ring(3)
    host, consumer = ring.producer(), ring.consumer()
    for number in range(2):
        host.expect(number + 1)
        assert not consumer.ended(consumer.state())
        assert consumer.claim() is None
        ring.put_all(host, [[text(0, number, 2)]])
        incoming = consumer.claim(most=3)
        assert incoming is not None
        ring.receive(consumer, incoming)
        assert split(incoming, ring.layout) == [text(0, number, 2)]
        assert consumer.ended(consumer.state())


def test_no_claim_is_not_a_claim_of_none():
    """An open ring without claims has no end; a claim of no messages is one at once."""
    ring = Ring(3)
    consumer = ring.consumer()
    assert ring.state().expected is None
    assert not consumer.ended(ring.state())
    ring.producer().expect(0)
    assert ring.state().expected == 0
    assert consumer.ended(ring.state())


@RACES
@given(SLOTS, st.tuples(BATCHES, BATCHES), st.tuples(st.integers(1, 4), st.integers(1, 4)), STARTS, SCHEDULES, ORDERS)
def test_what_was_reserved_before_close_is_taken_and_nothing_is_reserved_after(slots, batches, most, before_wrap, schedule, orders):
    """A party closes at any moment: producers get ChannelClosed, consumers all that has tickets, then all see the end."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)

    def put(rank: int) -> None:
        with contextlib.suppress(ChannelClosed):
            ring.put_all(ring.producer(rank), messages_of(rank, batches[rank]))

    takes = [ring.take_all(ring.consumer(2 + index), most[index]) for index in (0, 1)]
    ring.run(lambda: put(0), lambda: put(1), *takes, ring.close)
    ring.check_arrived()
    ring.check_empty()
    assert ring.over == 2


def test_a_closed_ring_says_so_however_full_it_is():
    """ChannelClosed comes before None: no producer waits for room in a ring that takes nothing."""
    ring = Ring(1)
    full, empty = ring.producer(0), ring.producer(1)
    ring.put_all(full, [[text(0, 0, 2)]])
    ring.close()
    ring.close()  # again does no harm
    for producer in (full, empty):
        with pytest.raises(ChannelClosed, match="closed"):
            producer.reserve([1], whole=False)
    assert ring.state().closed


# -- room ------------------------------------------------------------------------------------------------------------


@FEW
@given(SLOTS, BATCHES, STARTS, SCHEDULES, ORDERS)
def test_whole_messages_never_stall_once_they_have_tickets(slots, batches, before_wrap, schedule, orders):
    """With whole=True all room is there when the tickets are: not one send is in vain."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)

    class NeverStalls(Producer):
        def send(self, out: Outgoing) -> Progress:
            progress = super().send(out)
            assert progress is not Progress.STALLED
            return progress

    fitting = [[min(length, slots * SLOT) for length in batch] for batch in batches]
    puts = [
        lambda rank=rank: ring.put_all(ring.producer(rank, NeverStalls), messages_of(rank, fitting), whole=True) for rank in (0, 1)
    ]
    ring.run(*ring.closing(puts), ring.take_all(ring.consumer()), ring.take_all(ring.consumer(3)))
    ring.check_arrived()


def test_a_message_longer_than_the_ring_never_has_whole_room():
    """With whole=True it is refused for ever, and holds nothing."""
    ring = Ring(2)
    assert ring.producer().reserve([3 * SLOT], whole=True) is None
    assert not ring.state().waiting


def test_a_batch_gets_the_room_there_is():
    """As many messages as fit, in order; never one that would have to wait behind them."""
    ring = Ring(5)
    producer = ring.producer()
    out = producer.reserve([SLOT, 2 * SLOT, 3 * SLOT, 1], whole=False)
    assert out is not None
    assert (out.lengths, out.span) == ([SLOT, 2 * SLOT], 3)
    rest = producer.reserve([3 * SLOT, 1], whole=False)
    assert rest is not None
    assert (rest.lengths, rest.span, rest.room) == ([3 * SLOT], 3, 2)


def test_a_rank_that_waits_holds_no_ticket():
    """A full ring and an empty one stay as they are, however often they are asked."""
    ring = Ring(2)
    producer, consumer = ring.producer(), ring.consumer()
    assert [consumer.claim() for _ in range(3)] == [None] * 3
    assert ring.state().head == 0
    ring.put_all(producer, messages_of(0, [[SLOT, SLOT]]))
    tail = ring.state().tail
    assert [producer.reserve([1], whole=False) for _ in range(3)] == [None] * 3
    assert ring.state().tail == tail


# -- aborts and interrupts ---------------------------------------------------------------------------------------------


class Impatient:
    """A producer's party: gives each message so many sends, or so many places, and then aborts it."""

    def __init__(
        self, ring: Ring, producer: Producer, batches: Sequence[Sequence[bytes]], limits: Sequence[int], *, interrupts: bool
    ) -> None:
        self._ring = ring
        self._producer = producer
        self._batches = batches
        self._limits = itertools.chain(limits, itertools.repeat(1 << 30))
        self._interrupts = interrupts
        self.aborted: set[bytes] = set()

    def __call__(self) -> None:
        for batch in self._batches:
            left = list(batch)
            while left:
                out = self._ring.reserve(self._producer, left)
                if out is None:
                    return
                self._send(out, next(self._limits))
                messages = left[: len(out.lengths)]
                if out.sent == out.span:
                    self._ring.put.update(messages)
                else:
                    assert len(messages) == 1, "a batch is sent after all"
                    self.aborted.update(messages)
                    self._ring.aborts += 1
                del left[: len(messages)]

    def _send(self, out: Outgoing, limit: int) -> None:
        if not self._interrupts:
            for _ in range(limit):
                if out.sent == out.span or self._producer.send(out) is Progress.STALLED:
                    break
            else:
                self._producer.abort(out)
                return
            if out.sent < out.span:
                self._producer.abort(out)
            return
        memory: Any = self._producer._memory
        memory.interrupt_after = limit
        try:
            self._ring.send(self._producer, out)
        except KeyboardInterrupt:
            self._producer.abort(out)
        memory.interrupt_after = None


LONG_BATCHES = st.lists(st.lists(st.sampled_from([2, 9, 24, 33, 48, 90]), min_size=1, max_size=2), min_size=1, max_size=4)


@RACES
@given(SLOTS, LONG_BATCHES, BATCHES, st.lists(st.integers(0, 4), max_size=4), st.integers(1, 4), STARTS, SCHEDULES, ORDERS)
def test_a_message_that_is_cut_vanishes_as_a_whole(slots, long, other, limits, most, before_wrap, schedule, orders):
    """A producer loses patience, and goes on with the next message: no piece of the aborted one is seen, all others arrive."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)
    impatient = Impatient(ring, ring.producer(0), messages_of(0, long), limits, interrupts=False)
    puts = ring.closing([impatient, lambda: ring.put_all(ring.producer(1), messages_of(1, other))])
    ring.run(*puts, ring.take_all(ring.consumer(2), most), ring.take_all(ring.consumer(3)))
    assert impatient.aborted.isdisjoint(itertools.chain(*ring.taken))
    ring.check_arrived()
    ring.check_empty()


@RACES
@given(SLOTS, LONG_BATCHES, LONG_BATCHES, st.lists(st.integers(0, 40), max_size=5), STARTS, SCHEDULES, ORDERS)
def test_an_interrupted_send_is_finished_or_aborted(slots, first, second, interrupts, before_wrap, schedule, orders):
    """KeyboardInterrupt at any call to the memory within send: abort leaves no half message, and none twice."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)
    parties = [
        Impatient(ring, ring.producer(0), messages_of(0, first), interrupts, interrupts=True),
        Impatient(ring, ring.producer(1), messages_of(1, second), interrupts[::-1], interrupts=True),
    ]
    ring.run(*ring.closing(parties), ring.take_all(ring.consumer(2), 3), ring.take_all(ring.consumer(3)))
    assert (parties[0].aborted | parties[1].aborted).isdisjoint(itertools.chain(*ring.taken))
    ring.check_arrived()
    ring.check_empty()


@RACES
@given(SLOTS, st.tuples(BATCHES, BATCHES), st.lists(st.integers(0, 12), max_size=6), st.integers(1, 4), STARTS, SCHEDULES, ORDERS)
def test_an_interrupted_receive_goes_on_where_it_was(slots, batches, interrupts, most, before_wrap, schedule, orders):
    """KeyboardInterrupt at any call to the memory within receive: after recount no byte is missing, no slot freed twice."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)
    puts = [lambda rank=rank: ring.put_all(ring.producer(rank), messages_of(rank, batches[rank])) for rank in (0, 1)]
    takes = [ring.take_all(ring.consumer(2), most, interrupts), ring.take_all(ring.consumer(3), 1, interrupts[::-1])]
    ring.run(*ring.closing(puts), *takes)
    ring.check_arrived()
    ring.check_empty()


@RACES
@given(
    SLOTS,
    LONG_BATCHES,
    st.lists(st.integers(0, 4), max_size=4),
    st.lists(st.integers(0, 30), max_size=6),
    STARTS,
    SCHEDULES,
    ORDERS,
)
# The interrupt comes before a stamp is stored, which another rank uses at once.
@example(2, [[48, 2]], [], [29], 2, bytes(11) + b"\1\1\1\1\2\xc5\xc6" + bytes(66) + b"\2\2N\x8a" + bytes(12), bytes(16))
def test_an_interrupted_receive_passes_a_cut_message_on_once(slots, long, limits, interrupts, before_wrap, schedule, orders):
    """KeyboardInterrupt while an aborted message is passed on: its slots are freed once, and it is counted once."""
    ring = Ring(slots, schedule=schedule, orders=orders, before_wrap=before_wrap)
    impatient = Impatient(ring, ring.producer(0), messages_of(0, long), limits, interrupts=False)
    puts = ring.closing([impatient, lambda: ring.put_all(ring.producer(1), messages_of(1, [[2], [9]]))])
    ring.run(*puts, ring.take_all(ring.consumer(2), 2, interrupts), ring.take_all(ring.consumer(3), 1, interrupts[::-1]))
    ring.check_arrived()
    ring.check_empty()


@pytest.mark.parametrize("place", range(10))
def test_an_interrupted_put_of_a_short_message_has_put_it(place):
    """KeyboardInterrupt at any call to the memory, once the slot is reserved: the message is there, once, and whole."""

    class Interrupted(Producer):
        def _swap(self, *args: int) -> int:
            seen = super()._swap(*args)
            self._memory.interrupt_after = places.pop() if places else None  # type: ignore[attr-defined]
            return seen

    places = [place]
    ring = Ring(2)
    producer = ring.producer(kind=Interrupted)
    message = text(0, 0, SLOT)
    with contextlib.suppress(KeyboardInterrupt):
        ring.put_short(producer, message)
    producer._memory.interrupt_after = None  # type: ignore[attr-defined]
    ring.put[message] += 1
    ring.run(*ring.closing([lambda: ring.put_all(producer, messages_of(1, [[2], [3], [4]]))]), ring.take_all(ring.consumer()))
    ring.check_arrived()
    ring.check_empty()


@pytest.mark.parametrize("place", range(6))
def test_an_interrupted_take_of_a_short_message_can_be_resumed(place):
    """KeyboardInterrupt at any call to the memory, once the message is claimed: it is kept, and its slot freed once."""

    class Interrupted(Consumer):
        def _swap(self, *args: int) -> int:
            seen = super()._swap(*args)
            self._memory.interrupt_after = place  # type: ignore[attr-defined]
            return seen

    ring = Ring(2)
    ring.put_all(ring.producer(), messages_of(0, [[SLOT]]))
    consumer = ring.consumer(kind=Interrupted)
    try:
        data = consumer.take_short()
        assert data is not None
        found = [bytes(data)]
    except KeyboardInterrupt:
        incoming = consumer.interrupted
        assert incoming is not None
        consumer.recount(incoming)
        assert ring.receive(consumer, incoming) is Progress.DONE
        found = split(incoming, ring.layout)
    consumer._memory.interrupt_after = None  # type: ignore[attr-defined]
    assert found == [text(0, 0, SLOT)]
    ring.check_empty()


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("lengths", [[5], [20], [5, 20], [0]], ids=str)
def test_a_receive_that_was_interrupted_can_be_resumed_alone(lengths, place):
    """No other party moves: each place where an interrupt may come, one by one."""
    ring = Ring(5)
    messages = messages_of(0, [lengths])
    ring.put_all(ring.producer(), messages)
    consumer = ring.consumer()
    incoming = consumer.claim(most=5)
    assert incoming is not None
    memory: Any = consumer._memory
    memory.interrupt_after = place
    progress = Progress.MOVED
    for _ in range(10):
        try:
            progress = consumer.receive(incoming)
        except KeyboardInterrupt:
            consumer.recount(incoming)
        if progress is Progress.DONE:
            break
    assert progress is Progress.DONE
    assert split(incoming, ring.layout) == messages[0]
    ring.check_empty()


@pytest.mark.parametrize("place", range(60))
def test_a_cut_message_that_was_interrupted_is_passed_on_once(place):
    """No other party moves: each place where an interrupt may come, one by one. A slot too few or a count too many would show."""
    ring = Ring(2)
    producer, consumer = ring.producer(), ring.consumer()
    out = ring.reserve(producer, [text(0, 0, 7 * SLOT)])
    assert out is not None
    producer.send(out)
    producer.abort(out)
    ring.aborts = 1
    incoming = consumer.claim()
    assert incoming is not None
    assert ring.receive(consumer, incoming, interrupt_after=place) is Progress.ABORTED
    ring.check_empty()
    ring.put_all(producer, [[text(0, 1, 2)]])


def test_a_stale_attempt_is_not_taken_for_an_abort():
    """A rank tried for another's tickets in vain, and later aborts a message of its own: the other's is still to come.

    A read of its record may see the first word as it was after the attempt, and the others as they are after the abort.
    """
    ring = Ring(5)
    slow, hasty, consumer = ring.producer(0), ring.producer(1), ring.consumer()
    outs: list[Outgoing | None] = []

    def be_overtaken(at: int, expected: int, word: int) -> int:
        outs.append(slow.reserve([5 * SLOT], whole=False))
        return swap(at, expected, word)

    swap, hasty._memory.compare_swap = hasty._memory.compare_swap, be_overtaken  # type: ignore[method-assign]
    assert hasty.reserve([6 * SLOT], whole=False) is None
    hasty._memory.compare_swap = swap  # type: ignore[method-assign]

    out = outs.pop()
    assert out is not None
    out.data = gather([text(0, 0, 5 * SLOT)], ring.layout)
    out.room, later = 3, out.room - 3  # its producer is held up after three slots
    slow.send(out)
    incoming = consumer.claim()
    assert incoming is not None
    while consumer.receive(incoming) is Progress.MOVED and incoming.got < out.sent:
        pass

    def abort() -> None:
        other = ring.reserve(hasty, [text(1, 0, 6 * SLOT)])
        assert other is not None
        while hasty.send(other) is Progress.MOVED:
            pass
        assert other.sent == incoming.got
        hasty.abort(other)

    def torn(at: int, into: memoryview) -> None:
        if at != ring.layout.records:
            read(at, into)
            return
        consumer._memory.read = read  # type: ignore[method-assign]
        behind = RECORD + WORD  # the first word of the hasty rank's record
        read(at, into[:behind])
        consumer._memory.flush()
        abort()
        read(at + behind, into[behind:])

    read = consumer._memory.read
    consumer._memory.read = torn  # type: ignore[method-assign]
    incoming.ready = 0
    while (progress := consumer.receive(incoming)) is Progress.MOVED:
        pass
    assert progress is Progress.STALLED
    out.room = later
    slow.send(out)
    assert ring.receive(consumer, incoming) is Progress.DONE
    assert split(incoming, ring.layout) == [text(0, 0, 5 * SLOT)]


def test_a_cut_rank_reserves_again_once_its_message_was_passed_on():
    """Until then its record says what it aborted: reserve gives None, without waiting and without harm."""
    ring = Ring(2)
    producer, consumer = ring.producer(), ring.consumer()
    out = ring.reserve(producer, [text(0, 0, 5 * SLOT)])
    assert out is not None
    producer.send(out)
    producer.abort(out)
    assert producer.reserve([1], whole=False) is None
    incoming = consumer.claim()
    assert incoming is not None
    assert ring.receive(consumer, incoming) is Progress.ABORTED
    assert producer.reserve([1], whole=False) is not None
    state = ring.state()
    assert (state.put, state.taken, state.aborted) == (2, 1, 1)


def test_a_claimed_message_that_was_cut_leaves_room_in_the_claim():
    """As many whole messages come as were claimed: an aborted one does not count."""
    ring = Ring(2)
    producer, consumer = ring.producer(), ring.consumer()
    producer.expect(1)
    out = ring.reserve(producer, [text(0, 0, 5 * SLOT)])
    assert out is not None
    producer.send(out)
    producer.abort(out)
    incoming = consumer.claim()
    assert incoming is not None
    ring.receive(consumer, incoming)
    assert not consumer.ended(consumer.state())
    ring.put_all(producer, [[text(0, 1, 3)]])
    incoming = consumer.claim()
    assert incoming is not None
    assert ring.receive(consumer, incoming) is Progress.DONE
    assert split(incoming, ring.layout) == [text(0, 1, 3)]
    assert consumer.ended(consumer.state())


# -- what the ring says of itself ------------------------------------------------------------------------------------


def test_the_state_of_a_new_ring():
    """Open, empty, nothing claimed, everybody awake."""
    ring = Ring(3)
    state = ring.state()
    assert state == State(head=0, tail=0, expected=None, aborted=0, takers=bytes(RANKS), putters=bytes(RANKS))
    assert (state.put, state.taken, state.closed, state.waiting) == (0, 0, False, False)


@given(SLOTS, STARTS)
@FEW
def test_used_counts_tickets_across_the_wrap(slots, before_wrap):
    """What is reserved and not claimed, though tickets begin anew in between."""
    ring = Ring(slots, before_wrap=before_wrap)
    producer = ring.producer()
    assert producer.used(ring.state()) == 0
    out = producer.reserve([10 * SLOT], whole=False)
    assert out is not None
    assert producer.used(ring.state()) == 10
    assert ring.state().waiting


def test_sleepers_are_marked_a_byte_a_rank_and_end():
    """No mark changes that of another rank, and the state shows all."""
    ring = Ring(1)
    handle, layout = ring.producer(), ring.layout
    for rank in range(RANKS):
        handle.mark(layout.takers + rank, memoryview(bytes([1 + rank])))
        handle.mark(layout.putters + rank, memoryview(bytes([9 + rank])))
    state = ring.state()
    assert (state.takers, state.putters) == (bytes([1, 2, 3, 4]), bytes([9, 10, 11, 12]))
    assert (state.head, state.tail, state.expected, state.aborted) == (0, 0, None, 0)


# -- the layout ------------------------------------------------------------------------------------------------------

LAYOUTS = st.builds(Layout, st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))


@PURE
@given(LAYOUTS)
def test_no_two_regions_overlap_and_words_are_aligned(layout):
    """Head words, sleepers, records, stamps, bytes: one after another; words at multiples of eight, each rank's line on its own."""
    regions = [
        (0, 3 * WORD),
        (layout.aborted, WORD * layout.ranks),
        (layout.takers, layout.ranks),
        (layout.putters, layout.ranks),
        (layout.records, 64 * layout.ranks),
        (layout.stamps, WORD * layout.slots),
        (layout.bytes, layout.slots * layout.slot_size),
    ]
    for (start, size), (following, _) in itertools.pairwise([*regions, (layout.size, 0)]):
        assert start + size <= following
    assert sorted([layout.head, layout.tail, layout.expected, layout.generation, layout.aborted]) == [0, 8, 16, 24, 32]
    assert layout.records % 64 == layout.stamps % 64 == layout.bytes % 4096 == 0


@PURE
@given(LAYOUTS, st.integers(0, 1 << 30), st.integers(0, 10))
def test_a_ticket_is_served_by_one_slot(layout, ticket, rounds):
    """Ticket t, and t plus any number of rounds, by slot t mod N, inside the ring, also where tickets begin anew."""
    later = (ticket + rounds * layout.slots) % layout.modulus
    assert layout.stamp_at(ticket) == layout.stamp_at(later)
    assert layout.bytes_at(ticket) == layout.bytes_at(later)
    assert layout.stamps <= layout.stamp_at(ticket) <= layout.bytes - WORD
    assert layout.bytes <= layout.bytes_at(ticket) <= layout.size - layout.slot_size


@PURE
@given(LAYOUTS, st.integers(0, 1 << 22))
def test_a_message_has_as_many_slots_as_it_needs(layout, length):
    """Not one too many; an empty one has one, too."""
    span = layout.span(length)
    assert span >= 1
    assert span * layout.slot_size >= length
    assert span == 1 or (span - 1) * layout.slot_size < length


@PURE
@given(LAYOUTS, st.integers(0, 1 << 30), st.integers(0, 1 << 38), st.booleans(), st.integers(0, 300), st.integers(0, 5000))
def test_a_position_moves_on_by_messages_and_tickets(layout, ticket, before, closed, messages, tickets):
    """The ticket counts modulo M, the messages do not, the closing bit stays."""
    ticket %= layout.modulus
    position = layout.advance(before * MESSAGE + closed * CLOSED + ticket, messages, tickets)
    assert position // MESSAGE == before + messages
    assert bool(position & CLOSED) == closed
    assert position & (CLOSED - 1) == (ticket + tickets) % layout.modulus


@PURE
@given(LAYOUTS, st.integers(0, 1 << 24), st.data())
def test_pieces_lie_together_and_cover_the_tickets_in_order(layout, ticket, data):
    """No piece crosses the end of the ring's memory."""
    count = data.draw(st.integers(0, layout.slots))
    tickets = []
    for first, here in layout.pieces(ticket, count):
        assert 0 < here
        assert first % layout.slots + here <= layout.slots
        tickets.extend(range(first, first + here))
    assert tickets == [(ticket + index) % layout.modulus for index in range(count)]


@PURE
@given(st.one_of(st.integers(1, MAX_SLOTS), st.sampled_from([1, 2, MAX_SLOTS // 2 + 1, MAX_SLOTS - 1, MAX_SLOTS])))
def test_turns_of_three_rounds_are_told_apart(slots):
    """A slot's stamp of a round before, of this one and of the next are three different words, whatever the ring's size."""
    layout = Layout(slots, 1, 1)
    assert layout.modulus <= 1 << TICKET_BITS
    assert len({(5 + rounds * slots) % layout.modulus for rounds in range(3)}) == 3


def test_a_turn_has_room_for_every_ticket_and_every_length():
    """The largest word of all is still a signed one of eight bytes."""
    stamp = ((1 << TICKET_BITS) - 1) * STAMP + 2 * MAX_LENGTH + 1
    assert 2 * MAX_LENGTH + 1 < STAMP
    assert stamp.to_bytes(WORD, sys.byteorder, signed=True)


@PURE
@given(st.lists(st.binary(max_size=12), max_size=6), st.data())
def test_several_buffers_read_as_one(parts, data):
    """Any stretch of a Gather is that stretch of the parts joined."""
    whole = b"".join(parts)
    gathered = Gather([memoryview(part) for part in parts])
    start = data.draw(st.integers(0, len(whole) + 3))
    stop = data.draw(st.integers(start, len(whole) + 9))
    assert len(gathered) == len(whole)
    assert b"".join(gathered.pieces(start, stop)) == whole[start:stop]

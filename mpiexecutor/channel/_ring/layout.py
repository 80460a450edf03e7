"""A bounded ring of messages in shared memory: no MPI, no waiting, no threads.

Any number of producers and consumers; each method takes one step and says whether it got anywhere. After Dmitry Vyukov's bounded
MPMC queue (a turn number in every slot), with Crossbeam's closing bit in the tail; messages of several slots and the
batches are our own.

Theory of operation
    The ring has N slots of equal size. Tickets are handed out in order; ticket t is served by slot t mod N. A message of
    several slots holds consecutive tickets, and may hold more tickets than there are slots: it then flows through the ring
    while its producer writes and its consumer reads.

    Two *positions*, TAIL and HEAD, say which ticket is the next to be reserved and the next to be claimed. A position is one
    word: the number of messages before it, the pausing bit, the closing bit (TAIL only), the ticket. Tickets count modulo M, a
    multiple of N;
    the number of messages makes every position unique, so that a compare-and-swap never takes an old one for a new one.

    Each slot has a *turn*, one word that says whose it is::

        free(t)              the producer that reserved ticket t may write the slot
        published(t, length) the consumer that claims ticket t may read it; length is that of the message, in bytes, on the first
                             of its slots, and 0 on the others

    reserve   see the turn of TAIL's slot free; record the attempt; swap TAIL forward
    send      write the bytes; flush; publish the turns; flush
    claim     see the turn of HEAD's slot published, and learn the length from it; record the attempt; swap HEAD forward
    receive   read the bytes; flush; free the turns for the tickets N later; flush. Without the first two to throw a message away

Invariants, word by word
    TAIL      written by producers with compare-and-swap only, or, where the host alone produces, by the host with stores only.
    HEAD      the same for consumers.
    CLAIMED   written by the host. 0: nobody has claimed yet; else one more than the messages that will come.
    voids     one word a rank, written by that rank: messages that it claimed and found cut.
    turns     handed over: by the one that reserved the ticket when it publishes, then by the one that claimed it when it frees
              it. Nobody else writes it, because only one party can have swapped the position over it.
    records   three words a rank and end, written by that rank before it swaps: what it is about to reserve or claim. If it dies,
              its share is what the record says, provided that the position has moved past it, that the first slot's turn is still
              free (or published), and that no other rank has the same record.
    cuts      one word a rank: handed over by a rank that cuts a message, and back by the consumer that has passed it on; until
              then the rank reserves nothing, so that its record stays.
    peaks     one word a rank, written by that rank.
    sleepers  one byte a rank and end: set by the rank before it sleeps, cleared by it when it wakes or by whoever wakes it.

Why a reader never sees bytes that are not there: the bytes are flushed before the turn is published, and the turn is seen published
before the bytes are asked for. Why no message is lost or doubled: a swap succeeds for one party only, and the slot cannot
come round again before that party has freed it. Why nobody who waits holds a ticket: a swap is tried only over a slot that was
seen free (or published), and what was seen stays so until somebody's swap succeeds, which makes all others fail.

A producer that gives up in the middle of a long message *cuts* it: its record then says how many slots it published. The consumer
that has claimed the message, when it finds no further slot, reads the records, and passes the remaining tickets on unread.
"""

import enum
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mpiexecutor._rma.memory import WORD, Memory

TICKET_BITS = 23
MAX_SLOTS = 1 << (TICKET_BITS - 2)  # at least four rounds of tickets: a turn behind and a turn ahead are told apart
CLOSED = 1 << TICKET_BITS
PAUSED = 1 << (TICKET_BITS + 1)
TICKET = CLOSED - 1
MESSAGE = 1 << (TICKET_BITS + 2)  # one message, in a position
TURN = 1 << 40  # one ticket, in a turn
PUBLISHED = 1
_WHOSE = ~(TURN - 2)  # of a turn, all but the length
MAX_LENGTH = (1 << 39) - 1  # what a turn has room for, in bytes
PIECE = 256 << 10  # bytes copied between two publications: small enough to be read from cache on the other side
AHEAD = 256  # slots looked at in one go

LINE = 64  # a cache line, so that ranks do not write next to each other

# Where in a rank's line of records: what it reserves (position, messages and state, slots), its cut, what it claims, its peak.
RESERVING, CUT, CLAIMING, PEAK = 0, 3, 4, 7
SAYS = 1  # behind RESERVING, or CLAIMING

# The state of a record: of no use; may be trying, or at work; waits, and does not touch the ring while that is paused; has had
# the messages, and is done.
NOTHING, AT_WORK, PARKED, DONE_WITH = 0, 1, 2, 3
# The rest of the word that a record has beside the position. A record that was written in part does not fit its position.
_MESSAGES, _SPAN, _TAG = 1 << 2, 1 << 12, 1 << 36
_TAGS = 1 << 26


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is: offsets and sizes in bytes."""

    slots: int
    slot_size: int
    ranks: int
    head: int = 0
    tail: int = 8
    claimed: int = 16
    generation: int = 24
    voids: int = 32  # a word a rank
    takers: int = field(init=False)  # a byte a rank: asleep until there is something to take
    putters: int = field(init=False)  # a byte a rank: asleep until there is room
    records: int = field(init=False)  # a line a rank: see _Record
    turns: int = field(init=False)
    bytes: int = field(init=False)
    size: int = field(init=False)
    modulus: int = field(init=False)  # tickets count modulo this

    def __post_init__(self) -> None:
        put = object.__setattr__  # frozen: the way that dataclasses themselves use
        put(self, "takers", self.voids + WORD * self.ranks)
        put(self, "putters", self.takers + self.ranks)
        put(self, "records", _aligned(self.putters + self.ranks, LINE))
        put(self, "turns", self.records + LINE * self.ranks)
        put(self, "bytes", _aligned(self.turns + WORD * self.slots, 4096))
        put(self, "size", _aligned(self.bytes + self.slots * self.slot_size, WORD))
        put(self, "modulus", self.slots * ((1 << TICKET_BITS) // self.slots))

    def span(self, length: int) -> int:
        """Give the number of slots of a message of `length` bytes: an empty one has one, too."""
        return max(1, -(-length // self.slot_size))

    def turn_at(self, ticket: int) -> int:
        """Give where the turn of the slot of a ticket is."""
        return self.turns + WORD * (ticket % self.slots)

    def bytes_at(self, ticket: int) -> int:
        """Give where the slot of a ticket is."""
        return self.bytes + self.slot_size * (ticket % self.slots)

    def advance(self, position: int, messages: int, tickets: int) -> int:
        """Give the position after so many more messages and tickets."""
        ticket = ((position & TICKET) + tickets) % self.modulus
        return (position & ~TICKET) + messages * MESSAGE + ticket

    def pieces(self, ticket: int, count: int) -> Iterator[tuple[int, int]]:
        """Cut `count` tickets where the ring's memory begins anew: (ticket, how many), at most a round in all."""
        while count:
            ticket %= self.modulus  # a multiple of the slots: tickets never begin anew inside a piece
            here = min(count, self.slots - ticket % self.slots)
            yield ticket, here
            ticket += here
            count -= here

    def prepare(self, memory: Memory) -> None:
        """Make the memory an empty ring; by the host, before anybody else looks."""
        memory.write(0, memoryview(bytes(self.turns)))
        memory.write(self.turns, memoryview(turns_of(0, self.slots)).cast("B"))
        memory.flush()


@dataclass(frozen=True, slots=True)
class State:
    """What the first words of the ring say; each is true of its own moment."""

    head: int
    tail: int
    claimed: int | None
    void: int
    takers: bytes
    putters: bytes

    @property
    def closed(self) -> bool:
        return bool(self.tail & CLOSED)

    @property
    def put(self) -> int:
        """Messages that tickets were reserved for."""
        return self.tail // MESSAGE

    @property
    def taken(self) -> int:
        """Messages that were claimed."""
        return self.head // MESSAGE

    @property
    def waiting(self) -> bool:
        """Whether something reserved has not been claimed."""
        return (self.head ^ self.tail) & ~(CLOSED | PAUSED) != 0


class Progress(enum.Enum):
    """What a step of sending or receiving came to."""

    MOVED = enum.auto()  # some of it: there may be more at once
    STALLED = enum.auto()  # nothing: the other side has to move first
    PARKED = enum.auto()  # nothing: the ring is paused, and what was begun is to be begun anew when it is no more
    DONE = enum.auto()  # all of it is sent, or received
    CUT = enum.auto()  # the producer gave up: there is no message to receive


class End:
    """What both ends have in common."""

    def __init__(self, memory: Memory, layout: Layout, rank: int, *, sole: bool) -> None:
        self._memory = memory
        self._layout = layout
        self._rank = rank
        self._sole = sole  # nobody else writes this end's position: stores will do
        self._state_at = 0
        self._said = 0  # what the record says, but for the state, while that is AT_WORK
        self._generation = 0
        self._parked = False
        self._control_bytes = bytearray(layout.records)
        self._control = memoryview(self._control_bytes)
        self._words = self._control[: layout.takers].cast("q")
        self._attempt = array("q", (0, 0))
        self._attempt_bytes = memoryview(self._attempt).cast("B")

    def glance(self) -> bool:
        """Read the first words of the ring; whether any rank sleeps."""
        self._memory.fetch(0, self._control)
        start, stop = self._layout.takers, self._layout.putters + self._layout.ranks
        return self._control_bytes.count(0, start, stop) != stop - start

    def state(self) -> State:
        """Read the first words of the ring."""
        self._memory.fetch(0, self._control)
        return self.glanced()

    def glanced(self) -> State:
        """Give what the first words said when they were last read."""
        head, tail, claimed, _, *voids = self._words
        layout = self._layout
        takers = bytes(self._control[layout.takers : layout.putters])
        putters = bytes(self._control[layout.putters : layout.putters + layout.ranks])
        return State(head, tail, claimed - 1 if claimed else None, sum(voids), takers, putters)

    def used(self, state: State) -> int:
        """How many tickets are reserved and not claimed: more than there are slots while a long message is in the way."""
        return ((state.tail & TICKET) - (state.head & TICKET)) % self._layout.modulus

    def mark(self, at: int, flag: memoryview) -> None:
        """Set a sleeper's byte; a full fence after it."""
        self._memory.write(at, flag)
        self._memory.flush()

    def _record(self, what: int, rank: int | None = None) -> int:
        return self._layout.records + LINE * (self._rank if rank is None else rank) + WORD * what

    def _records(self) -> memoryview:
        """Read all ranks' records, as words."""
        lines = memoryview(bytearray(LINE * self._layout.ranks))
        self._memory.fetch(self._layout.records, lines)
        return lines.cast("q")

    def _swap(self, at: int, record: int, position: int, new: int, messages: int, span: int) -> int:
        """Move a position over what was seen ready; give what the position was found to be."""
        memory = self._memory
        attempt = self._attempt
        self._said = said = said_of(position, messages, span)
        attempt[0], attempt[1] = position, said + AT_WORK
        memory.write(record, self._attempt_bytes)
        memory.flush()  # the record is there before anybody can see the position moved: a dead rank's share is known
        if self._sole:
            memory.store(at, new)
            memory.flush()
            return position
        return memory.compare_swap(at, position, new)

    def _set_bit(self, at: int, position: int, bit: int) -> int:
        """Try to set a bit of a position; give what it is then."""
        new = position | bit
        if self._sole:
            self._memory.store(at, new)
            self._memory.flush()
            return new
        seen = self._memory.compare_swap(at, position, new)
        return new if seen == position else seen

    def _say(self, state: int) -> None:
        """Set the state of this end's record, by the next flush, if it says that this end is at work."""
        if self._said:
            self._memory.store(self._state_at, self._said + state if state else 0)
            if state != PARKED:
                self._said = 0

    def _give_up(self) -> None:
        """Be at work no more, having tried in vain."""
        if self._said:
            self._say(NOTHING)
            self._memory.flush()

    def _park(self) -> None:
        """Touch the ring, which is paused, no more until it is resumed."""
        self._generation = self._memory.load(self._layout.generation)
        self._parked = True
        self._say(PARKED)
        self._memory.flush()

    def resumed(self) -> bool:
        """Whether the ring has been resumed since this end parked: before that nothing can be begun."""
        if self._parked and self._memory.load(self._layout.generation) != self._generation:
            self._parked = False
            self._said = 0  # its record was cleared
        return not self._parked

    def _count(self, ticket: int, want: int, published: int) -> int:
        """Count the slots from a ticket on, up to `want`, whose turn is free (0) or published (1), lengths apart."""
        ticket %= self._layout.modulus
        if want == 1:
            word = self._memory.load(self._layout.turn_at(ticket))
            return int(word & _WHOSE == ticket * TURN + published)
        want = min(want, self._layout.slots)
        words = array("q", bytes(WORD * want))
        view = memoryview(words).cast("B")
        done = 0
        for first, count in self._layout.pieces(ticket, want):
            self._memory.fetch(self._layout.turn_at(first), view[WORD * done : WORD * (done + count)])
            done += count
        for index, word in enumerate(words):
            if word & _WHOSE != (ticket + index) % self._layout.modulus * TURN + published:
                return index
        return want

    def _published(self, ticket: int, lengths: Sequence[int], done: int, count: int) -> "array[int]":
        """Give the turns of messages from `ticket` on when they are published: `count` of them, after the first `done`."""
        turns = self._turns(ticket + done, count, PUBLISHED)
        start = 0
        for length in lengths:  # each belongs on its own first slot
            if 0 <= start - done < count:
                turns[start - done] += 2 * length
            start += self._layout.span(length)
        return turns

    def _turns(self, ticket: int, count: int, published: int = 0) -> "array[int]":
        """Give the turns of so many tickets, free (0) or published (1), lengths left out."""
        turns = array("q")
        for first, here in self._layout.pieces(ticket, count):
            turns.extend(turns_of(first, here, published))
        return turns

    def _hand_over(self, ticket: int, olds: "array[int]", turns: "array[int]") -> None:
        """Hand the slots from a ticket's on over."""
        done = 0
        for first, count in self._layout.pieces(ticket, len(turns)):
            here = slice(done, done + count)
            self._memory.hand_over(self._layout.turn_at(first), olds[here], turns[here])
            done += count

    def _settled(self, ticket: int, limit: int, *, published: bool) -> int:
        """Count the slots from a ticket on that are past being free (or past being published) already.

        Whoever was interrupted between a store and the note of it finds out here how far it came.
        """
        modulus = self._layout.modulus
        self._memory.flush()  # what the interrupt left half done
        for index in range(limit):
            word = self._memory.load(self._layout.turn_at(ticket + index))
            past_published = self._past(word, ticket + index)
            past_free = past_published or word & _WHOSE == (ticket + index) % modulus * TURN + PUBLISHED
            if not (past_published if published else past_free):
                return index
        return limit

    def _past(self, word: int, ticket: int) -> bool:
        """Whether a turn is one of a later ticket than this one, which uses the same slot.

        Others may be several rounds ahead, or behind if a long message was cut; but not by half of all tickets.
        """
        return 0 < (word // TURN - ticket) % self._layout.modulus < self._layout.modulus // 2


def said_of(position: int, messages: int, span: int) -> int:
    """Give what a record says beside its position, without the state."""
    return position // MESSAGE % _TAGS * _TAG + span * _SPAN + messages * _MESSAGES


def parts_of(position: int, said: int) -> tuple[int, int, int] | None:
    """Give messages, span and state of a record; None if it is none."""
    if said % _MESSAGES == NOTHING or said // _TAG != position // MESSAGE % _TAGS:
        return None
    return said % _SPAN // _MESSAGES, said % _TAG // _SPAN, said % _MESSAGES


def _aligned(offset: int, to: int) -> int:
    return -(-offset // to) * to


def turns_of(ticket: int, count: int, published: int = 0) -> "array[int]":
    """Give the turns of consecutive tickets, lengths left out."""
    first = ticket * TURN + published
    return array("q", range(first, first + count * TURN, TURN))

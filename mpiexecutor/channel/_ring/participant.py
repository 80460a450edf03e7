"""What the producer and the consumer of a ring have in common. The theory is in layout.py."""

import enum
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from mpiexecutor._rma.memory import WORD, Memory

from .layout import CLOSED, LINE, MESSAGE, PUBLISHED, QUIESCED, STAMP, TICKET, WHOSE, Layout, stamps_of
from .records import AT_WORK, DETAILS, QUIESCENT, UNUSED, details_of


@dataclass(frozen=True, slots=True)
class State:
    """What the header of the ring says; each word is of a moment of its own."""

    head: int
    tail: int
    expected: int | None  # messages in all; None while that is not known
    aborted: int
    takers: bytes
    putters: bytes

    @property
    def closed(self) -> bool:
        return bool(self.tail & CLOSED)

    @property
    def put(self) -> int:
        """Messages that were reserved."""
        return self.tail // MESSAGE

    @property
    def taken(self) -> int:
        """Messages that were claimed."""
        return self.head // MESSAGE

    @property
    def waiting(self) -> bool:
        """Whether something reserved has not been claimed."""
        return (self.head ^ self.tail) & ~(CLOSED | QUIESCED) != 0


class Progress(enum.Enum):
    """What came of a step of sending, or of receiving."""

    MOVED = enum.auto()  # some of it: there may be more at once
    STALLED = enum.auto()  # nothing: the other side has to move first
    QUIESCENT = enum.auto()  # nothing: the ring is quiesced; what was begun is begun anew once it is resumed
    DONE = enum.auto()  # all of it is sent, or received
    ABORTED = enum.auto()  # the producer gave up: there is no message to receive


class Participant:
    """One rank's access to the ring, at one end: a handle on its memory, a position, a record.

    `position_at` is the offset of TAIL, or of HEAD; `record` is RESERVING, or CLAIMING.
    """

    def __init__(self, memory: Memory, layout: Layout, rank: int, position_at: int, record: int, *, single: bool) -> None:
        self._memory = memory
        self._layout = layout
        self._rank = rank
        self._single = single  # a single producer, or consumer: no other rank moves this position, so stores will do
        self._position_at = position_at  # the offset of TAIL, or of HEAD
        self._position = 0  # as last seen
        self._record_at = self._record(record)
        self._state_at = self._record_at + WORD * DETAILS
        self._details = 0  # of this record, without the state, while that is AT_WORK; else 0
        self._quiescent = False  # this end waits until the ring is resumed
        self._generation = 0  # of the ring, when this end became quiescent
        self._header_bytes = bytearray(layout.records)
        self._header = memoryview(self._header_bytes)
        self._header_words = self._header[: layout.takers].cast("q")
        self._attempt = array("q", (0, 0))  # position and details of the record, as they are written
        self._attempt_bytes = memoryview(self._attempt).cast("B")

    def read_header(self) -> bool:
        """Read the first words of the ring, its header; return whether any rank sleeps."""
        self._memory.fetch(0, self._header)
        start, stop = self._layout.takers, self._layout.putters + self._layout.ranks
        return self._header_bytes.count(0, start, stop) != stop - start

    def state(self) -> State:
        """Read the header, and return what it says."""
        self._memory.fetch(0, self._header)
        return self.header()

    def header(self) -> State:
        """Return what the header said when it was last read."""
        head, tail, expected, _, *aborted = self._header_words
        layout = self._layout
        takers = bytes(self._header[layout.takers : layout.putters])
        putters = bytes(self._header[layout.putters : layout.putters + layout.ranks])
        return State(head, tail, expected - 1 if expected else None, sum(aborted), takers, putters)

    def used(self, state: State) -> int:
        """Return how many tickets are reserved and not claimed: a long message may have more than there are slots."""
        return ((state.tail & TICKET) - (state.head & TICKET)) % self._layout.modulus

    def mark(self, at: int, flag: memoryview) -> None:
        """Set a sleeper's byte, and flush: a full fence follows."""
        self._memory.write(at, flag)
        self._memory.flush()

    def _record(self, what: int, rank: int | None = None) -> int:
        return self._layout.records + LINE * (self._rank if rank is None else rank) + WORD * what

    def _swap(self, position: int, new: int, messages: int, span: int) -> int:
        """Advance the position over slots that were seen ready; return what the position was found to be."""
        memory = self._memory
        attempt = self._attempt
        self._details = details = details_of(position, messages, span)
        attempt[0], attempt[1] = position, details + AT_WORK
        memory.write(self._record_at, self._attempt_bytes)
        memory.flush()  # the record is there before any rank can see the new position: a failed rank's last claim is known
        if self._single:
            memory.store(self._position_at, new)
            memory.flush()
            return position
        return memory.compare_swap(self._position_at, position, new)

    def _refresh(self) -> bool:
        """Load the position; return whether it has moved since it was last seen."""
        if self._single:
            return False
        before, self._position = self._position, self._memory.load(self._position_at)
        return self._position != before

    def _set_bit(self, bit: int) -> None:
        """Set a bit of the position."""
        while not self._position & bit:
            self._is_replaced_by(self._position | bit)

    def _is_replaced_by(self, new: int) -> bool:
        """Set the position if it is as last seen; else see it anew, and return False."""
        if self._single:
            self._memory.store(self._position_at, new)
            self._memory.flush()
            seen = self._position
        else:
            seen = self._memory.compare_swap(self._position_at, self._position, new)
        done = seen == self._position
        self._position = new if done else seen
        return done

    def quiesce(self) -> None:
        """Set the quiescing bit: no rank advances this position until the ring is resumed."""
        self._set_bit(QUIESCED)

    def resume(self, position: int) -> None:
        """Resume the ring at another position, by the rank that has quiesced it. A ring that is closed stays so."""
        self._refresh()
        while not self._is_replaced_by(position | self._position & CLOSED):  # closed in between
            pass

    def _set_state(self, state: int) -> None:
        """Set the state of this record, by the next flush, if it is at work."""
        if self._details:
            self._memory.store(self._state_at, self._details + state if state else 0)
            if state != QUIESCENT:
                self._details = 0

    def _give_up(self) -> None:
        """Clear the record after an attempt in vain."""
        if self._details:
            self._set_state(UNUSED)
            self._memory.flush()

    def _become_quiescent(self) -> None:
        """Do not touch the ring, which is quiesced, until it is resumed."""
        self._generation = self._memory.load(self._layout.generation)
        self._quiescent = True
        self._set_state(QUIESCENT)
        self._memory.flush()

    def resumed(self) -> bool:
        """Whether this end may begin something: not while it is quiescent, that is, until the ring is resumed."""
        if self._quiescent and self._memory.load(self._layout.generation) != self._generation:
            self._quiescent = False
            self._details = 0  # its record was cleared
        return not self._quiescent

    def _count(self, ticket: int, want: int, published: int) -> int:
        """Count the slots from a ticket on, up to `want`, whose stamp is free (0) or published (1), lengths apart."""
        ticket %= self._layout.modulus
        if want == 1:
            word = self._memory.load(self._layout.stamp_at(ticket))
            return int(word & WHOSE == ticket * STAMP + published)
        want = min(want, self._layout.slots)
        words = array("q", bytes(WORD * want))
        view = memoryview(words).cast("B")
        done = 0
        for first, count in self._layout.pieces(ticket, want):
            self._memory.fetch(self._layout.stamp_at(first), view[WORD * done : WORD * (done + count)])
            done += count
        for index, word in enumerate(words):
            if word & WHOSE != (ticket + index) % self._layout.modulus * STAMP + published:
                return index
        return want

    def _published(self, ticket: int, lengths: Sequence[int], done: int, count: int) -> "array[int]":
        """Return the stamps of published messages, from `ticket` on: `count` stamps after the first `done`."""
        stamps = self._stamps(ticket + done, count, PUBLISHED)
        start = 0
        for length in lengths:  # each belongs on its own first slot
            if 0 <= start - done < count:
                stamps[start - done] += 2 * length
            start += self._layout.span(length)
        return stamps

    def _stamps(self, ticket: int, count: int, published: int = 0) -> "array[int]":
        """Return the stamps of `count` tickets, free (0) or published (1), lengths left out."""
        stamps = array("q")
        for first, here in self._layout.pieces(ticket, count):
            stamps.extend(stamps_of(first, here, published))
        return stamps

    def _store_stamps(self, ticket: int, olds: "array[int]", stamps: "array[int]") -> None:
        """Store the stamps of slots from a ticket on, once each."""
        done = 0
        for first, count in self._layout.pieces(ticket, len(stamps)):
            here = slice(done, done + count)
            self._memory.store_once(self._layout.stamp_at(first), olds[here], stamps[here])
            done += count

    def _count_past(self, ticket: int, limit: int, *, published: bool) -> int:
        """Count the slots from a ticket on that are past being free already (or past being published).

        Tells how far an operation came that was interrupted between a store and the note of it.
        """
        modulus = self._layout.modulus
        self._memory.flush()  # what the interrupt left half done
        for index in range(limit):
            word = self._memory.load(self._layout.stamp_at(ticket + index))
            past_published = self._past(word, ticket + index)
            past_free = past_published or word & WHOSE == (ticket + index) % modulus * STAMP + PUBLISHED
            if not (past_published if published else past_free):
                return index
        return limit

    def _past(self, word: int, ticket: int) -> bool:
        """Whether a stamp is one of a later ticket than this one, which uses the same slot.

        Other ranks may be several rounds ahead; or behind, if a long message was aborted; but not by half of all tickets.
        """
        return 0 < (word // STAMP - ticket) % self._layout.modulus < self._layout.modulus // 2

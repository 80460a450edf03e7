"""The end of a ring at which messages are taken out: how they are claimed. The theory is in layout.py."""

from array import array
from collections.abc import Sequence

from mpiexecutor._rma.memory import WORD, Memory
from mpiexecutor.channel._errors import ChannelMemoryError

from .layout import AHEAD, CLOSED, MESSAGE, PIECE, PUBLISHED, QUIESCED, STAMP, TICKET, Layout
from .participant import State
from .receiver import Incoming, Receiver
from .records import RECEIVED

_HEAD = 16 << 10  # most bytes of a message's beginning in an error


class Consumer(Receiver):
    """The end of a ring at which one rank takes messages out."""

    def __init__(self, memory: Memory, layout: Layout, rank: int, *, single: bool = False) -> None:
        super().__init__(memory, layout, rank, single=single)
        self._first_words = array("q", (0, 0, 0))  # HEAD, TAIL and EXPECTED
        self._first = memoryview(self._first_words).cast("B")
        self._limit = 0  # messages that may be taken in all, as last seen
        self._too_large: Incoming | None = None  # the next message, if it had no memory when last seen
        self.seen_empty = False  # take_short has seen that the next slot is free
        self.interrupted: Incoming | None = None  # what was claimed, if an interrupt kept it from the caller
        self.own_expected: int | None = None  # what this rank itself expects: true even before EXPECTED is set

    def take_short(self, *, alone: bool = False) -> memoryview | None:
        """Claim and receive the next message, if it has one slot and is there; else return None.

        It returns None, too, if no message may be claimed, if there is no memory for it, or, with `alone`, if another message seems
        to be there behind it: the two are better claimed together. Then `seen_empty` says whether there is no message at all. The
        steps are those of `claim` and `receive`, without what only longer messages need: a take takes 7 us instead of 18. After an
        interrupt, `interrupted` has what was claimed.
        """
        memory, layout = self._memory, self._layout
        self.seen_empty = False
        while not self._quiescent or self.resumed():
            position = self._position
            ticket = position & TICKET
            slot = ticket % layout.slots
            stamp_at = layout.stamps + WORD * slot
            length = memory.load(stamp_at) - ticket * STAMP - PUBLISHED
            short = 0 <= length <= 2 * layout.slot_size and not length & 1 and not position & QUIESCED
            if not short or self._allowed(position, 1) <= 0:
                if self._refresh():
                    continue
                self.seen_empty = length == -PUBLISHED
                self._give_up()
                return None
            if alone and memory.load(layout.stamps + WORD * ((slot + 1) % layout.slots)) & PUBLISHED:
                self._give_up()
                return None
            try:
                data = memory.allocate(length >> 1)
            except MemoryError:  # claim raises the error
                self._give_up()
                return None
            memory.read(layout.bytes + layout.slot_size * slot, data)  # complete before the swap is, see _incoming
            new = layout.advance(position, 1, 1)
            seen = self._swap(position, new, 1, 1)
            if seen != position:
                self._position = seen
                continue
            try:
                self._position = new
                published = ticket * STAMP + length + PUBLISHED
                memory.store_once(stamp_at, (published,), ((ticket + layout.slots) % layout.modulus * STAMP,))
                memory.flush()
                self._set_state(RECEIVED)
            except BaseException:
                self.interrupted = Incoming(position, (length >> 1,), 1, data)
                raise
            return data
        return None

    def claim(self, most: int = 1) -> Incoming | None:
        """Claim the next message, or up to `most` that are there as a whole; None if there is none, or none may be claimed.

        ChannelMemoryError if there is no memory for the next one, which stays in the ring.
        """
        self._too_large = None
        while not self._quiescent or self.resumed():
            position = self._position
            lengths, span, ready = ((), 0, 0) if position & QUIESCED else self._look(position & TICKET, most)
            allowed = self._allowed(position, len(lengths)) if lengths else 0
            if allowed <= 0:
                if self._refresh():
                    continue
                self._give_up()
                return None
            if allowed < len(lengths):
                lengths = lengths[:allowed]
                span = ready = sum(map(self._layout.span, lengths))
            try:
                incoming = self._incoming(position, lengths, span, ready)
            except MemoryError:
                if self._refresh():  # another rank has claimed it meanwhile
                    continue
                if len(lengths) > 1:
                    most = 1
                    continue
                self._too_large = Incoming(position, lengths, span, memoryview(b""), skipped=True)
                self._give_up()
                raise ChannelMemoryError(self._too_large.number, lengths[0], self._head(position, lengths[0])) from None
            if self._has_claimed(incoming):
                return incoming
        return None

    def _head(self, position: int, length: int) -> bytes:
        """Return the first bytes of the next message. They are true if `skip` claims it: no other rank has freed the slot then."""
        head = bytearray(min(length, self._layout.slot_size, _HEAD))
        self._memory.fetch(self._layout.bytes_at(position & TICKET), memoryview(head))
        return bytes(head)

    def skip(self, number: int) -> Incoming | None:
        """Claim a message that had no memory, to receive it without its bytes; None if it is not the next one any more."""
        incoming = self._too_large
        if incoming is None or (incoming.number, incoming.position) != (number, self._position):
            return None
        self._too_large = None
        if self._has_claimed(incoming):
            return incoming
        self._give_up()
        return None

    def _has_claimed(self, incoming: Incoming) -> bool:
        """Swap HEAD forward; return whether this rank was the first."""
        position = incoming.position
        messages = len(incoming.lengths)
        new = self._layout.advance(position, messages, incoming.span)
        seen = self._swap(position, new, messages, incoming.span)
        if seen == position:
            self.interrupted = incoming
        self._position = new if seen == position else seen
        return seen == position

    def is_over(self) -> bool:
        """Read the header; return whether no message will come any more."""
        self._memory.fetch(0, self._first)
        _, tail, expected = self._first_words
        return bool(tail & CLOSED or expected or self.own_expected is not None) and self.ended(self.state())

    def ended(self, state: State) -> bool:
        """Whether no message will come any more: all expected ones are claimed, or the ring is closed and empty."""
        limit = self._expected(state)
        return (limit is not None and state.taken >= limit) or (state.closed and not state.waiting)

    def _expected(self, state: State) -> int | None:
        known = [n for n in (state.expected, self.own_expected) if n is not None]
        return max(known) + state.aborted if known else None

    def _allowed(self, position: int, wanted: int) -> int:
        """Return how many of the messages from a position on may be claimed: any number while EXPECTED is not set."""
        taken = position // MESSAGE
        if taken + wanted > self._limit:
            if self.own_expected is None and self._memory.load(self._layout.expected) == 0:
                return wanted
            self._limit = self._expected(self.state()) or 0
        return min(wanted, self._limit - taken)

    def _look(self, ticket: int, most: int) -> tuple[Sequence[int], int, int]:
        """Look at what is published from a ticket on; return the messages' lengths, their slots, how many of these are published.

        A first message whose end is not published yet counts, too, but alone.
        """
        layout = self._layout
        words: Sequence[int] = (self._memory.load(layout.stamp_at(ticket)),)
        if most > 1 and words[0] & 1:  # published: there may be more
            count = min(most, AHEAD, layout.slots - ticket % layout.slots)
            words = array("q", bytes(WORD * count))
            self._memory.fetch(layout.stamp_at(ticket), memoryview(words).cast("B"))
        lengths: list[int] = []
        done = 0
        while done < len(words) and len(lengths) < most:
            length = words[done] - (ticket + done) * STAMP - PUBLISHED
            if not 0 <= length < STAMP or length & 1:
                break
            span = layout.span(length >> 1)
            ready = 1
            while ready < min(span, len(words) - done) and words[done + ready] == (ticket + done + ready) * STAMP + PUBLISHED:
                ready += 1
            if ready < span:
                return (lengths, done, done) if lengths else ([length >> 1], span, ready)
            lengths.append(length >> 1)
            done += span
        return lengths, done, done

    def _incoming(self, position: int, lengths: Sequence[int], span: int, ready: int) -> Incoming:
        """Allocate memory for the bytes, and begin to read them if they are few: the swap's own flush completes that, too.

        They cannot change before the swap: only the rank that has claimed a slot frees it. If the swap fails they are thrown away.
        """
        size = lengths[0] if len(lengths) == 1 else span * self._layout.slot_size
        incoming = Incoming(position, lengths, span, self._memory.allocate(size), ready)
        if ready == span and size <= PIECE:
            self._read(incoming, ready)
            incoming.read = ready
        return incoming

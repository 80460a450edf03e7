"""How a consumer receives what it has claimed. The theory is in layout.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from mpiexecutor._rma.memory import WORD, Memory

from .layout import LINE, MESSAGE, PIECE, PUBLISHED, QUIESCED, STAMP, TICKET, Layout
from .participant import Participant, Progress
from .records import ABORT, CLAIMING, DETAILS, QUIESCENT, RECEIVED, RESERVING, UNUSED, lines_of, unpacked


@dataclass(slots=True)
class Incoming:
    """Messages that this consumer has claimed: one of any length, or several that are there as a whole."""

    position: int  # of HEAD before them
    lengths: Sequence[int]
    span: int
    data: memoryview  # the bytes: of one message without the padding, of several with it
    ready: int = 0  # slots from here on that were seen published
    read: int = 0  # slots from here on whose bytes are in data already
    got: int = 0  # slots read and freed
    abort: "Abort | None" = None  # the producer gave up: the slots from got on are passed on unread
    skipped: bool = False  # thrown away unread

    @property
    def ticket(self) -> int:
        return self.position & TICKET

    @property
    def number(self) -> int:
        """Of the first message."""
        return self.position // MESSAGE


@dataclass(frozen=True, slots=True)
class Abort:
    """A message that its producer has aborted, as its consumer passes it on.

    `until` is the slot to pass on up to: a slot that the message was to use several times is passed on once only.
    """

    rank: int  # of the producer
    until: int
    passed_on: int  # aborted messages that the consumer will have passed on, this one too


class Receiver(Participant):
    """The half of a consumer that receives messages which it has claimed."""

    def __init__(self, memory: Memory, layout: Layout, rank: int, *, single: bool) -> None:
        super().__init__(memory, layout, rank, layout.head, CLAIMING, single=single)
        self._passed_on = 0

    def receive(self, incoming: Incoming) -> Progress:
        """Read what is published by now, and free its slots."""
        if incoming.abort is not None:
            return self._pass_on(incoming, incoming.abort)
        if incoming.got == incoming.span:
            return self._moved(incoming)
        layout = self._layout
        count = min(max(1, PIECE // layout.slot_size), incoming.span - incoming.got)
        ready = min(count, incoming.ready) or self._count(incoming.ticket + incoming.got, count, PUBLISHED)
        incoming.ready = max(0, incoming.ready - ready)
        if not ready:
            return self._stalled(incoming)
        if ready > incoming.read and not incoming.skipped:
            self._read(incoming, ready)
            self._memory.flush()  # the bytes are here before any stamp says that the slots are free
        incoming.read = max(0, incoming.read - ready)
        self._release(incoming, ready)
        self._memory.flush()
        incoming.got += ready
        return self._moved(incoming)

    def _moved(self, incoming: Incoming) -> Progress:
        if incoming.got < incoming.span:
            return Progress.MOVED
        self._set_state(RECEIVED)
        return Progress.DONE

    def recount(self, incoming: Incoming) -> None:
        """Find out how far an interrupted receive came."""
        if incoming.abort is None:
            left = min(incoming.span - incoming.got, self._layout.slots)
            incoming.got += self._count_past(incoming.ticket + incoming.got, left, published=True)
            incoming.ready = incoming.read = 0
        else:
            self._memory.flush()  # or the next step would store a stamp a second time, perhaps over a later one

    def _read(self, incoming: Incoming, ready: int) -> None:
        size = self._layout.slot_size
        for first, count in self._layout.pieces(incoming.ticket + incoming.got, ready):
            done = (incoming.got + (first - incoming.ticket - incoming.got) % self._layout.modulus) * size
            self._memory.read(self._layout.bytes_at(first), incoming.data[done : done + count * size])

    def _release(self, incoming: Incoming, ready: int) -> None:
        """Free the next slots for the tickets a round later."""
        ticket = incoming.ticket + incoming.got
        stamps = self._published(incoming.ticket, incoming.lengths, incoming.got, ready)
        self._store_stamps(ticket, stamps, self._stamps(ticket + self._layout.slots, ready))

    def _stalled(self, incoming: Incoming) -> Progress:
        """Nothing further is published: the producer is slow, or has aborted the message."""
        records = lines_of(self._memory, self._layout)
        for rank in range(self._layout.ranks):
            line = records[rank * LINE // WORD : (rank + 1) * LINE // WORD]
            # An abort further on: some slots were published since the last look, and are read first.
            if line[ABORT] - 1 == incoming.got and line[RESERVING] == incoming.position and self._is_abort_of(rank, incoming):
                until = min(incoming.span, incoming.got + self._layout.slots)
                incoming.abort = Abort(rank, until, passed_on=self._passed_on + 1)
                return self._pass_on(incoming, incoming.abort)
        return Progress.QUIESCENT if self._is_abandoned(incoming, records) else Progress.STALLED

    def _is_abandoned(self, incoming: Incoming, records: memoryview) -> bool:
        """Whether the producer of the message is quiescent, or has failed; then this end becomes quiescent, too.

        Other ranks may have tried for the same position in vain, and have failed. If one of the ranks is at work it is the
        producer; if the producer is done, it was so before the records were read, and there is more to receive.
        """
        states = set()
        for start in range(RESERVING, len(records), LINE // WORD):
            if records[start] == incoming.position and (parts := unpacked(records[start], records[start + DETAILS])):
                states.add(parts[-1])
        if states != {QUIESCENT} or self._count(incoming.ticket + incoming.got, 1, PUBLISHED):
            return False
        self._become_quiescent()
        return True

    def _is_abort_of(self, rank: int, incoming: Incoming) -> bool:
        """Whether the abort that was seen is of this message.

        The record may have been read before the abort was set, and be one of a vain attempt. It is read once more: a rank that
        has aborted a message leaves its record alone, and no rank can try for this position again.
        """
        return self._memory.load(self._record(RESERVING, rank)) == incoming.position

    def _pass_on(self, incoming: Incoming, abort: Abort) -> Progress:
        """Free the slots that an aborted message holds and never used, once their users before are done with them.

        A slot that the message was to use several times is freed for the first ticket after the message at once. Each step
        may be taken again after an interrupt.
        """
        slots = self._layout.slots
        while incoming.got < abort.until:
            ticket = incoming.ticket + incoming.got
            stamp = self._memory.load(self._layout.stamp_at(ticket))
            if not self._past(stamp, ticket):
                if stamp != ticket % self._layout.modulus * STAMP:
                    if not self._memory.load(self._layout.head) & QUIESCED:
                        return Progress.STALLED
                    self._become_quiescent()
                    return Progress.QUIESCENT
                rounds = -(-(incoming.span - incoming.got) // slots)
                free = (ticket + rounds * slots) % self._layout.modulus * STAMP
                self._memory.store_once(self._layout.stamp_at(ticket), (stamp,), (free,))
                self._memory.flush()
            incoming.got += 1
        self._passed_on = abort.passed_on
        self._memory.store(self._layout.aborted + WORD * self._rank, abort.passed_on)
        self._memory.flush()
        record = self._record(ABORT, abort.rank)
        if self._is_abort_of(abort.rank, incoming) and (sent := self._memory.load(record)):
            self._memory.store_once(record, (sent,), (0,))
            self._memory.flush()
        self._set_state(UNUSED)
        return Progress.ABORTED

"""The end of a ring at which messages are put in. The theory is in layout.py."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mpiexecutor._rma.memory import WORD, Memory
from mpiexecutor.channel._errors import ChannelClosed

from .layout import AHEAD, CLOSED, MESSAGE, PIECE, PUBLISHED, QUIESCED, STAMP, TICKET, Layout
from .participant import Participant, Progress
from .records import ABORT, RESERVING, UNUSED


class Gather:
    """Several buffers that are read as one."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = parts
        self._starts = list(accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the bytes from `start` to `stop`, or to the end, in pieces that lie together."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._parts) and self._starts[index] < stop:
            begin = self._starts[index]
            yield self._parts[index][max(0, start - begin) : stop - begin]
            index += 1


@dataclass(slots=True)
class Outgoing:
    """Messages that this producer has reserved tickets for, on their way in."""

    position: int  # of TAIL before them
    lengths: Sequence[int]
    span: int
    data: Gather = field(default_factory=lambda: Gather(()))  # of several messages with the padding between them
    room: int = 0  # slots from here on that were seen free
    sent: int = 0  # slots published

    @property
    def ticket(self) -> int:
        return self.position & TICKET


class Producer(Participant):
    """The end of a ring at which one rank puts messages in."""

    def __init__(self, memory: Memory, layout: Layout, rank: int, *, single: bool = False) -> None:
        super().__init__(memory, layout, rank, layout.tail, RESERVING, single=single)
        self._aborted: int | None = None  # the position of a message that this rank aborted, until it is passed on

    def put_short(self, parts: Sequence[memoryview], length: int) -> bool:
        """Reserve and send one message of one slot; False if there is no room now.

        The steps are those of `reserve` and `send`, without what only longer messages need: a put takes 6 us instead of 25. Most
        messages are short.
        """
        memory, layout = self._memory, self._layout
        while self._aborted is None and (not self._quiescent or self.resumed()):
            position = self._position
            self._check_open()
            ticket = position & TICKET
            slot = ticket % layout.slots
            stamp_at = layout.stamps + WORD * slot
            if position & QUIESCED or memory.load(stamp_at) != ticket * STAMP:
                if self._refresh():
                    continue
                self._give_up()
                return False
            new = layout.advance(position, 1, 1)
            seen = self._swap(position, new, 1, 1)
            if seen != position:
                self._position = seen
                continue
            try:
                self._position = new
                at = layout.bytes + layout.slot_size * slot
                for part in parts:
                    memory.write(at, part)
                    at += len(part)
                memory.flush()
                memory.store_once(stamp_at, (ticket * STAMP,), (ticket * STAMP + 2 * length + PUBLISHED,))
                memory.flush()
                self._set_state(UNUSED)
            except BaseException:
                self.abort(Outgoing(position, (length,), 1, Gather(parts)))
                raise
            return True
        return False

    def reserve(self, lengths: Sequence[int], *, whole: bool) -> Outgoing | None:
        """Reserve tickets for as many of the messages as have room now; None if the first has not.

        With `whole` a message has room if all its slots are free. Without it, if no message fits, one free slot is enough: the rest
        of the message is sent as other messages are taken.
        """
        if self._quiescent and not self.resumed():
            return None
        if self._aborted is not None and not self._passed():
            self._refresh()
            self._check_open()
            return None
        layout = self._layout
        while True:
            position = self._position
            self._check_open()
            room = 0
            if not position & QUIESCED:
                room = self._count(position & TICKET, min(sum(map(layout.span, lengths)), AHEAD, layout.slots), 0)
            fitting, span = _fitting(map(layout.span, lengths), room)
            if room and not fitting:
                span = layout.span(lengths[0])
                # A message longer than was looked at may have room all the same: look at the whole of it.
                room = self._count(position & TICKET, min(span, layout.slots), 0) if span > AHEAD else room
                fitting = int(span <= room or not whole)
            if not fitting:
                if self._refresh():
                    continue  # other ranks have reserved: this slot is not the next one
                self._give_up()
                return None
            new = layout.advance(position, fitting, span)
            seen = self._swap(position, new, fitting, span)
            if seen == position:
                self._position = new
                return Outgoing(position, lengths[:fitting], span, room=min(room, span))
            self._position = seen

    def send(self, out: Outgoing) -> Progress:
        """Write the slots that are free now, and publish them at once."""
        count = min(max(1, PIECE // self._layout.slot_size), out.span - out.sent)
        room = min(count, out.room) or self._count(out.ticket + out.sent, count, 0)
        out.room = max(0, out.room - room)
        if not room:
            if not self._memory.load(self._layout.tail) & QUIESCED:
                return Progress.STALLED
            self._become_quiescent()
            return Progress.QUIESCENT
        self._write(out, room)
        self._memory.flush()  # the bytes are there before any stamp says so
        self._publish(out, room)
        self._memory.flush()
        out.sent += room
        if out.sent < out.span:
            return Progress.MOVED
        self._set_state(UNUSED)
        return Progress.DONE

    def unsent(self, out: Outgoing) -> int:
        """Count the messages at the end that are not published as a whole: they are put anew once the ring is resumed."""
        ends = accumulate(map(self._layout.span, out.lengths))
        return sum(end > out.sent for end in ends)

    def abort(self, out: Outgoing) -> None:
        """Give up, after an interrupt or a time-out: no further slot will be published.

        Several messages are reserved only if all have room: they are sent after all.
        """
        # The interrupt may have come between a publication and the note of it, or before the first.
        out.room = 0
        out.sent += self._count_past(out.ticket + out.sent, min(out.span - out.sent, self._layout.slots), published=False)
        while out.sent < out.span and (out.sent == 0 or len(out.lengths) > 1):
            self.send(out)
        if out.sent == out.span:
            self._give_up()
            return
        self._aborted = out.position
        if self._single:  # the position of its record is stale: a single producer needs none to reserve
            self._memory.store(self._record_at, out.position)
            self._memory.flush()
        self._memory.store_once(self._record(ABORT), (0,), (1 + out.sent,))
        self._memory.flush()
        self._set_state(UNUSED)
        self._memory.flush()

    @property
    def count(self) -> int:
        """How many messages have been reserved, if this is the single producer."""
        return self._position // MESSAGE

    def close(self) -> None:
        """Set the closing bit: messages that are reserved may still be sent, no more are reserved."""
        self._set_bit(CLOSED)

    def expect(self, total: int) -> None:
        """Say how many messages are expected in all; for the host."""
        self._memory.store(self._layout.expected, 1 + total)
        self._memory.flush()

    def _check_open(self) -> None:
        if self._position & CLOSED:
            self._give_up()
            raise ChannelClosed("the channel is closed: it takes no more messages")

    def _passed(self) -> bool:
        """Whether the message that this rank aborted is passed on: only then may this rank write its record again."""
        if self._memory.load(self._record(ABORT)) != 0:
            return False
        self._aborted = None
        return True

    def _write(self, out: Outgoing, room: int) -> None:
        """Write the next slots' bytes."""
        done = out.sent * self._layout.slot_size
        for first, count in self._layout.pieces(out.ticket + out.sent, room):
            at = self._layout.bytes_at(first)
            size = count * self._layout.slot_size
            for piece in out.data.pieces(done, done + size):
                self._memory.write(at, piece)
                at += len(piece)
            done += size

    def _publish(self, out: Outgoing, room: int) -> None:
        """Publish the next slots: their consumer may claim them."""
        stamps = self._published(out.ticket, out.lengths, out.sent, room)
        self._store_stamps(out.ticket + out.sent, self._stamps(out.ticket + out.sent, room), stamps)


def _fitting(spans: Iterable[int], room: int) -> tuple[int, int]:
    """Count the messages that fit into so many slots, in order, and the slots that they take."""
    fitting = used = 0
    for span in spans:
        if used + span > room:
            break
        fitting += 1
        used += span
    return fitting, used

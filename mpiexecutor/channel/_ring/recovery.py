"""How a ring is recovered after ranks have failed: no MPI, no waiting, no threads.

Theory of operation
    One party, on the host, quiesces the ring, waits until no rank touches it, puts it in order, and resumes it.

    quiesce  set the quiescing bit of TAIL and HEAD. Every swap under way fails, as it expects a position without that bit, and
             no rank begins another. A rank that has reserved or claimed continues as long as it makes progress. A producer that is
             stalled becomes *quiescent* instead: the rank that was to make room may have failed, so it will put its message again.
             The host makes the failed ranks' records quiescent. A consumer becomes quiescent when the producer of its message is.
    wait     until no living rank's record says that it is at work. Now no rank touches the ring.
    recover  keep the messages that are complete and not claimed, and drop the others: the messages of failed ranks are lost, and a
             living, quiescent rank puts its message again. Write the ring again, behind all tickets that were in use.
    resume   count the generation up, which quiescent ranks look at; clear the quiescing bit.

Invariants
    - All ranks that touch the ring are known: a record says that its rank is at work before the swap that makes it so, and until
      what that rank has stored is there. A rank that fails, before or after, leaves its record as it is.
    - No message of a living rank is lost: complete messages are kept, in order. Their producers put the others again; and a living
      rank that has claimed one of these has not returned any of it to its caller.
    - No message is doubled: its consumer receives, or throws away, a complete message that it has claimed. The host waits for that
      if the consumer lives; if it has failed, its last claim (`Share`) reports the message.
"""

from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from mpiexecutor._rma.memory import WORD, Memory
from mpiexecutor.channel._errors import Share

from .layout import LINE, MESSAGE, PUBLISHED, STAMP, TICKET, Layout, stamps_of
from .records import ABORT, AT_WORK, CLAIMING, DETAILS, QUIESCENT, RECEIVED, RESERVING, details_of, lines_of, unpacked


@dataclass(frozen=True, slots=True)
class _Record:
    """What a rank was about to reserve, or to claim, when it last tried."""

    rank: int
    position: int
    messages: int
    span: int
    state: int

    @property
    def ticket(self) -> int:
        return self.position & TICKET

    @property
    def first(self) -> int:
        """The number of its first message."""
        return self.position // MESSAGE


class Position(Protocol):
    """TAIL, or HEAD, for the party that may set it."""

    def quiesce(self) -> None: ...

    def resume(self, position: int) -> None: ...


class RingRecovery:
    """Recovers a ring after ranks have failed; on the host, one at a time."""

    def __init__(self, memory: Memory, layout: Layout, tail: Position, head: Position) -> None:
        self._memory = memory
        self._layout = layout
        self._tail = tail  # the host's own end, if it is single there: it does not load the position
        self._head = head

    def quiesce(self) -> None:
        """Stop all reserving and claiming. Then wake the ranks that sleep in the middle of a message."""
        self._tail.quiesce()
        self._head.quiesce()

    def at_work(self, failed: Collection[int]) -> list[int]:
        """Return the living ranks that are still at work. Call it until there are none, with all ranks that have failed by then."""
        for record in self._records(RESERVING):
            if record.rank in failed and record.state == AT_WORK:
                at = self._layout.records + LINE * record.rank + WORD * (RESERVING + DETAILS)
                self._memory.store(at, details_of(record.position, record.messages, record.span) + QUIESCENT)
        self._memory.flush()
        return [record.rank for what in (RESERVING, CLAIMING) for record in self._records(what, failed) if record.state == AT_WORK]

    def recover(self, failed: Collection[int], renumber: Callable[[list[int], int], None]) -> list[Share]:
        """Drop what failed ranks were at work on, and resume; return their last claims. Then wake all ranks.

        Before it resumes, it calls `renumber` with the numbers of the messages that are kept, and the new number of the first.
        """
        layout, memory = self._layout, self._memory
        head, tail = memory.load(layout.head), memory.load(layout.tail)
        stamps = array("q", bytes(WORD * layout.slots))
        memory.fetch(layout.stamps, memoryview(stamps).cast("B"))
        last_claims = list(self._last_claims(failed, stamps))
        kept = list(self._survivors(head, tail, stamps))
        survivors = [self._read(ticket, length) for _, ticket, length in kept]
        aborted = self._unfinished(failed, stamps)
        start = -(-(tail & TICKET) // layout.slots) * layout.slots % layout.modulus
        used = self._write(start, survivors, stamps)
        self._clear_records(failed, aborted)
        generation = memory.load(layout.generation)
        memory.store(layout.generation, generation + 1)
        memory.flush()
        number = head // MESSAGE
        renumber([old for old, _, _ in kept], number)
        self._tail.resume((number + len(survivors)) * MESSAGE + (start + used) % layout.modulus)
        self._head.resume(number * MESSAGE + start)
        return last_claims

    # -- what there is -----------------------------------------------------------------------------------------------------------

    def _records(self, what: int, without: Collection[int] = ()) -> list[_Record]:
        words = lines_of(self._memory, self._layout)
        found = []
        for rank in range(self._layout.ranks):
            position, details = words[rank * LINE // WORD + what : rank * LINE // WORD + what + 2]
            parts = unpacked(position, details)
            if parts is not None and rank not in without:
                found.append(_Record(rank, position, *parts))
        return found

    def _survivors(self, head: int, tail: int, stamps: "array[int]") -> Iterator[tuple[int, int, int]]:
        """Yield number, ticket and length of each message that is there as a whole, and was not claimed."""
        layout = self._layout
        ticket, end, number = head & TICKET, tail & TICKET, head // MESSAGE
        while ticket != end:
            length = stamps[ticket % layout.slots] - ticket * STAMP - PUBLISHED
            if 0 <= length < STAMP and not length & 1:
                span = layout.span(length >> 1)
                if self._is_there(ticket, span, stamps):
                    yield number, ticket, length >> 1
                number += 1
            else:
                record = self._owner(ticket, number, stamps)
                span = (record.ticket + record.span - ticket) % layout.modulus
                number = record.first + record.messages
            ticket = (ticket + span) % layout.modulus

    def _is_there(self, ticket: int, span: int, stamps: "array[int]") -> bool:
        layout = self._layout
        return span <= layout.slots and all(
            stamps[(ticket + index) % layout.slots] == (ticket + index) % layout.modulus * STAMP + PUBLISHED
            for index in range(1, span)
        )

    def _owner(self, ticket: int, number: int, stamps: "array[int]") -> _Record:
        """Return the record of the failed rank that has reserved a ticket and not published it.

        Other failed ranks may have tried for the same ticket in vain. The record that has it ends where something else begins.
        """
        modulus = self._layout.modulus
        records = self._records(RESERVING)
        tail = self._memory.load(self._layout.tail)
        ends = {record.ticket for record in records} | {tail & TICKET}
        found = [
            record
            for record in records
            if (ticket - record.ticket) % modulus < record.span and record.first + record.messages > number
        ]
        fitting = [record for record in found if self._begins((record.ticket + record.span) % modulus, ends, stamps)]
        return max(fitting or found, key=lambda record: record.position)

    def _begins(self, ticket: int, ends: Collection[int], stamps: "array[int]") -> bool:
        length = stamps[ticket % self._layout.slots] - ticket * STAMP - PUBLISHED
        return ticket in ends or (0 <= length < STAMP and not length & 1)

    def _last_claims(self, failed: Collection[int], stamps: "array[int]") -> Iterator[Share]:
        claims = self._records(CLAIMING)
        for record in claims:
            if record.rank not in failed:
                continue
            others = [other for other in claims if other.position == record.position and other.rank != record.rank]
            messages = range(record.first, record.first + record.messages)
            if record.state == RECEIVED:
                yield Share(record.rank, messages, received=True)
            elif any(other.state in {QUIESCENT, RECEIVED} for other in others):
                continue  # the claim was the other rank's
            elif self._was_claimed(record) and self._is_whole(record, stamps):
                yield Share(record.rank, messages, received=False if self._is_held(record, stamps) else None)

    def _was_claimed(self, claim: _Record) -> bool:
        return self._memory.load(self._layout.head) // MESSAGE >= claim.first + claim.messages

    def _is_held(self, claim: _Record, stamps: "array[int]") -> bool:
        """Whether a slot of a claim is not free yet for the tickets after it."""
        end = claim.ticket + claim.span
        return any(self._rounds(ticket, stamps) <= 0 for ticket in range(end - min(claim.span, self._layout.slots), end))

    def _is_whole(self, claim: _Record, stamps: "array[int]") -> bool:
        """Whether all slots of a claim have been published."""
        last = claim.ticket + claim.span - 1
        rounds = self._rounds(last, stamps)
        return rounds > 0 or (rounds == 0 and bool(stamps[last % self._layout.modulus % self._layout.slots] & PUBLISHED))

    def _rounds(self, ticket: int, stamps: "array[int]") -> int:
        """Return how many rounds the slot of a ticket is ahead of it."""
        layout = self._layout
        ahead = (stamps[ticket % layout.modulus % layout.slots] // STAMP - ticket) % layout.modulus
        return (ahead if ahead < layout.modulus // 2 else ahead - layout.modulus) // layout.slots

    def _unfinished(self, failed: Collection[int], stamps: "array[int]") -> int:
        """Count the messages that were claimed, and will never be there as a whole."""
        claims = self._records(CLAIMING)
        unfinished = {record.position for record in claims if record.state == QUIESCENT}
        for record in claims:
            if (
                record.rank in failed
                and record.state == AT_WORK
                and self._was_claimed(record)
                and not self._is_whole(record, stamps)
            ):
                unfinished.add(record.position)
        return len(unfinished)

    # -- what there will be ------------------------------------------------------------------------------------------------------

    def _read(self, ticket: int, length: int) -> bytes:
        layout = self._layout
        data = memoryview(bytearray(layout.span(length) * layout.slot_size))
        done = 0
        for first, count in layout.pieces(ticket, layout.span(length)):
            self._memory.fetch(layout.bytes_at(first), data[done : done + count * layout.slot_size])
            done += count * layout.slot_size
        return bytes(data[:length])

    def _write(self, start: int, messages: Collection[bytes], olds: "array[int]") -> int:
        """Write messages into the ring, from a ticket on whose slot is the first; return how many slots they take."""
        layout = self._layout
        stamps = stamps_of(start, layout.slots)
        used = 0
        for message in messages:
            self._memory.write(layout.bytes_at(start + used), memoryview(message))
            span = layout.span(len(message))
            stamps[used : used + span] = stamps_of(start + used, span, PUBLISHED)
            stamps[used] += 2 * len(message)
            used += span
        self._memory.flush()
        self._memory.store_once(layout.stamps, olds, stamps)
        self._memory.flush()
        return used

    def _clear_records(self, failed: Collection[int], aborted: int) -> None:
        """Clear the records of failed and of quiescent ranks, and the bytes of failed sleepers."""
        layout, memory = self._layout, self._memory
        for rank in range(layout.ranks):
            at = layout.records + LINE * rank + WORD * ABORT
            if aborting := memory.load(at):
                memory.store_once(at, (aborting,), (0,))
        for what in (RESERVING, CLAIMING):
            for record in self._records(what):
                if record.rank in failed or record.state == QUIESCENT:
                    memory.store(layout.records + LINE * record.rank + WORD * (what + DETAILS), 0)
        for rank in failed:
            memory.write(layout.takers + rank, memoryview(b"\0"))
            memory.write(layout.putters + rank, memoryview(b"\0"))
        if aborted:
            at = layout.aborted + WORD * min(failed)
            memory.store(at, memory.load(at) + aborted)
        memory.flush()

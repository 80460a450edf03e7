"""A bounded ring of messages in shared memory: no MPI, no waiting, no threads.

Any number of producers and consumers. Each method takes one step, and returns whether it succeeded. The algorithm is the bounded
MPMC queue of Dmitry Vyukov (https://www.1024cores.net/home/lock-free-algorithms/queues/bounded-mpmc-queue), which has a stamp in
every slot; the closing bit in the tail is that of crossbeam-channel (https://github.com/crossbeam-rs/crossbeam). Messages of
several slots, and batches, are additions of this package.

Theory of operation
    The ring has N slots of equal size. Tickets are given out in order; ticket t is served by slot t mod N. A message of several
    slots holds consecutive tickets. It may hold more tickets than there are slots: then it flows through the ring, while its
    producer writes and its consumer reads.

    Two *positions*, TAIL and HEAD, say which ticket is the next to be reserved, and the next to be claimed. A position is one word:
    the number of messages before it, the quiescing bit, the closing bit (TAIL only), the ticket. Tickets count modulo M, a multiple
    of N. The number of messages makes every position unique: a compare-and-swap never takes an old one for a new one.

    Each slot has a *stamp*, one word that says which party may use it::

        free(t)              the producer that reserved ticket t may write the slot
        published(t, length) the consumer that claims ticket t may read it; length is that of the message, in bytes, on the first
                             of its slots, and 0 on the others

    The four steps, of which the first and the third advance a position by a *swap*::

    reserve   see the stamp of TAIL's slot free; record the attempt; swap TAIL forward
    send      write the bytes; flush; publish the stamps; flush
    claim     see the stamp of HEAD's slot published, and learn the length from it; record the attempt; swap HEAD forward
    receive   read the bytes; flush; free the stamps for the tickets N later; flush. To throw a message away, leave out the first 2

    A producer that gives up in the middle of a long message *aborts* it: its record then says how many slots it published. The
    consumer that has claimed the message finds no further slot, reads the records, and passes the remaining tickets on unread.

Invariants
    - No consumer sees bytes that are not there: they are flushed before the stamp is published, and the stamp is seen published
      before the bytes are read.
    - No message is lost or doubled: a swap succeeds for one party only, and the slot cannot come round again before that party has
      freed it.
    - No waiting party holds a ticket: a swap is tried only over a slot that was seen free (or published). What was seen stays so
      until a swap succeeds, which makes all others fail.

Invariants, word by word
    TAIL      set by producers with compare-and-swap only; or, if the host is the single producer, by the host with stores only
    HEAD      the same for consumers
    EXPECTED  set by the host, see RemoteChannel.claim. 0: not known; else one more than the messages that will come
    aborted   one word a rank, set by that rank: messages that it claimed and found aborted
    stamps    stored once: by the rank that reserved the ticket when it publishes, then by the rank that claimed the ticket when it
              frees it. No other rank sets it, because only one can have swapped the position over it
    records   three words a rank and end, set by that rank before it swaps: what it is about to reserve or claim. If it fails, its
              last claim is what the record says, provided that the position has moved past it, that the first slot's stamp is still
              free (or published), and that no other rank has the same record
    aborts    one word a rank: stored once by a rank that aborts a message, and cleared by the consumer that has passed it on; until
              then the rank reserves nothing, so that its record stays
    sleepers  one byte a rank and end: set by the rank before it sleeps, cleared by the rank when it wakes, or by its waker
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from mpiexecutor._rma.memory import WORD, Memory

TICKET_BITS = 23
MAX_SLOTS = 1 << (TICKET_BITS - 2)  # at least four rounds of tickets: a stamp behind and a stamp ahead are told apart
CLOSED = 1 << TICKET_BITS
QUIESCED = 1 << (TICKET_BITS + 1)
TICKET = CLOSED - 1
MESSAGE = 1 << (TICKET_BITS + 2)  # one message, in a position
STAMP = 1 << 40  # one ticket, in a stamp
PUBLISHED = 1
WHOSE = ~(STAMP - 2)  # of a stamp, all but the length
MAX_LENGTH = (1 << 39) - 1  # bytes of a message: a stamp has room for no more
PIECE = 256 << 10  # bytes: copied between two publications: small enough to be read from cache on the other side
AHEAD = 256  # slots: looked at in one go

LINE = 64  # bytes: a cache line, so that ranks do not write next to each other


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is: offsets and sizes in bytes."""

    slots: int
    slot_size: int
    ranks: int
    head: int = 0
    tail: int = 8
    expected: int = 16
    generation: int = 24
    aborted: int = 32  # a word a rank
    takers: int = field(init=False)  # a byte a rank: asleep until there is something to take
    putters: int = field(init=False)  # a byte a rank: asleep until there is room
    records: int = field(init=False)  # a line a rank: see records.py
    stamps: int = field(init=False)
    bytes: int = field(init=False)
    size: int = field(init=False)
    modulus: int = field(init=False)  # tickets count modulo this

    def __post_init__(self) -> None:
        put = object.__setattr__  # frozen: the way that dataclasses themselves use
        put(self, "takers", self.aborted + WORD * self.ranks)
        put(self, "putters", self.takers + self.ranks)
        put(self, "records", _aligned(self.putters + self.ranks, LINE))
        put(self, "stamps", self.records + LINE * self.ranks)
        put(self, "bytes", _aligned(self.stamps + WORD * self.slots, 4096))
        put(self, "size", _aligned(self.bytes + self.slots * self.slot_size, WORD))
        put(self, "modulus", self.slots * ((1 << TICKET_BITS) // self.slots))

    def span(self, length: int) -> int:
        """Return the number of slots of a message of `length` bytes: an empty one has one, too."""
        return max(1, -(-length // self.slot_size))

    def stamp_at(self, ticket: int) -> int:
        """Return the offset of the stamp of a ticket's slot."""
        return self.stamps + WORD * (ticket % self.slots)

    def bytes_at(self, ticket: int) -> int:
        """Return the offset of a ticket's slot."""
        return self.bytes + self.slot_size * (ticket % self.slots)

    def advance(self, position: int, messages: int, tickets: int) -> int:
        """Return the position after so many more messages and tickets."""
        ticket = ((position & TICKET) + tickets) % self.modulus
        return (position & ~TICKET) + messages * MESSAGE + ticket

    def pieces(self, ticket: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield `count` tickets, a round at most, in runs that lie together in memory: (first ticket, how many)."""
        while count:
            ticket %= self.modulus  # a multiple of the slots: tickets never begin anew inside a piece
            here = min(count, self.slots - ticket % self.slots)
            yield ticket, here
            ticket += here
            count -= here

    def prepare(self, memory: Memory) -> None:
        """Make the memory an empty ring; on the host, before any other rank uses it."""
        memory.write(0, memoryview(bytes(self.stamps)))
        memory.write(self.stamps, memoryview(stamps_of(0, self.slots)).cast("B"))
        memory.flush()


def _aligned(offset: int, to: int) -> int:
    return -(-offset // to) * to


def stamps_of(ticket: int, count: int, published: int = 0) -> "array[int]":
    """Return the stamps of consecutive tickets, free (0) or published (1), lengths left out."""
    first = ticket * STAMP + published
    return array("q", range(first, first + count * STAMP, STAMP))

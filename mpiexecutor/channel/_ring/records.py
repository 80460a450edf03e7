"""Records: what each rank is about to reserve, or to claim. The theory is in layout.py.

A rank has one line of words. For each of its two ends it writes, before each swap, the position that it expects, and in one more
word the *details*: messages, slots, a tag of the position, and the state. A record that was written in part has a wrong tag.
"""

from mpiexecutor._rma.memory import Memory

from .layout import LINE, MESSAGE, Layout

# Where in a rank's line: what it reserves (position, details), the message that it has aborted, what it claims.
RESERVING, ABORT, CLAIMING = 0, 3, 4
DETAILS = 1  # behind RESERVING, or CLAIMING

# The state of a record:
UNUSED = 0  # it says nothing
AT_WORK = 1  # the rank may be trying to swap, or has, and uses the slots
QUIESCENT = 2  # the rank waits until the ring is resumed, and does not touch it meanwhile
RECEIVED = 3  # the rank has received the messages that it claimed
_MESSAGES, _SPAN, _TAG = 1 << 2, 1 << 12, 1 << 36  # one of each, in the details
_TAGS = 1 << 26


def details_of(position: int, messages: int, span: int) -> int:
    """Return the details of a record, without the state."""
    return position // MESSAGE % _TAGS * _TAG + span * _SPAN + messages * _MESSAGES


def unpacked(position: int, details: int) -> tuple[int, int, int] | None:
    """Return messages, slots and state of a record; None if it is unused, or was written in part."""
    if details % _MESSAGES == UNUSED or details // _TAG != position // MESSAGE % _TAGS:
        return None
    return details % _SPAN // _MESSAGES, details % _TAG // _SPAN, details % _MESSAGES


def lines_of(memory: Memory, layout: Layout) -> memoryview:
    """Read the lines of all ranks, and return them as words, one line after another."""
    lines = memoryview(bytearray(LINE * layout.ranks))
    memory.fetch(layout.records, lines)
    return lines.cast("q")

"""Records: what a rank is about to reserve or claim, written before it swaps. The theory is in layout.py."""

from .layout import MESSAGE

# Where in a rank's line of records: what it reserves (position, messages and state, slots), its abort, what it claims, its peak.
RESERVING, ABORT, CLAIMING, PEAK = 0, 3, 4, 7
SAYS = 1  # behind RESERVING, or CLAIMING

# The state of a record: of no use; may be trying, or at work; waits, and does not touch the ring while it is quiesced; has had
# the messages, and is done.
NOTHING, AT_WORK, QUIESCENT, DONE_WITH = 0, 1, 2, 3
# The rest of the word that a record has beside the position. A record that was written in part does not fit its position.
_MESSAGES, _SPAN, _TAG = 1 << 2, 1 << 12, 1 << 36
_TAGS = 1 << 26


def said_of(position: int, messages: int, span: int) -> int:
    """Give what a record says beside its position, without the state."""
    return position // MESSAGE % _TAGS * _TAG + span * _SPAN + messages * _MESSAGES


def parts_of(position: int, said: int) -> tuple[int, int, int] | None:
    """Give messages, span and state of a record; None if it is none."""
    if said % _MESSAGES == NOTHING or said // _TAG != position // MESSAGE % _TAGS:
        return None
    return said % _SPAN // _MESSAGES, said % _TAG // _SPAN, said % _MESSAGES

"""Which ranks are woken by a step at one end of a channel: the ring and the doorbells are fakes."""

import pytest

from mpiexecutor.channel._ends.rank_state import AWAKE, SPINNING, TO_BEGIN, TO_GO_ON, RankState
from mpiexecutor.channel._ring.layout import Layout

RANKS = 5


class Bells:
    """Notes which ranks' bytes are cleared, and which are notified after that."""

    def __init__(self) -> None:
        self.cleared: list[int] = []
        self.rung: list[str] = []

    def mark(self, at: int, flag: memoryview) -> None:
        assert bytes(flag) == b"\0"
        self.cleared.append(at)

    def notify(self, address: str) -> None:
        assert len(self.rung) < len(self.cleared), "cleared first: else a rank that sleeps again at once would not be marked"
        self.rung.append(address)


@pytest.fixture
def woken():
    """Return the ranks that are woken, in order, by rank 1."""

    def wake(asleep, begin):
        bells = Bells()
        rank_state = RankState(Layout(4, 8, RANKS), 1, "token", ["node"] * RANKS, bells, None)
        rank_state.wake(bells, "take", bytes(asleep), begin=begin)
        ranks = [rank_state.address("take", rank) for rank in range(RANKS)]
        assert bells.cleared == [rank_state.asleep_at("take", ranks.index(address)) for address in bells.rung]
        return [ranks.index(address) for address in bells.rung]

    return wake


def test_as_many_are_woken_as_can_begin(woken):
    """Those behind this rank first, so that it is not always the same."""
    asleep = [TO_BEGIN, AWAKE, TO_BEGIN, AWAKE, TO_BEGIN]
    assert woken(asleep, 0) == []
    assert woken(asleep, 1) == [2]
    assert woken(asleep, 2) == [2, 4]
    assert woken(asleep, 9) == [2, 4, 0]


def test_all_ranks_are_woken_that_wait_in_the_middle_of_a_message(woken):
    """And do not count among those that begin."""
    assert woken([TO_GO_ON, AWAKE, TO_GO_ON, TO_BEGIN, AWAKE], 0) == [2, 0]
    assert woken([TO_GO_ON, AWAKE, TO_GO_ON, TO_BEGIN, AWAKE], 1) == [2, 3, 0]


def test_a_spinning_rank_has_the_first_message_and_is_not_notified(woken):
    """No other rank is woken for that one."""
    asleep = [TO_BEGIN, AWAKE, TO_BEGIN, SPINNING, AWAKE]
    assert woken(asleep, 1) == []
    assert woken(asleep, 2) == [2]
    assert woken(asleep, 3) == [2, 0]


def test_two_ranks_that_spin_by_chance_count_as_one(woken):
    """Both may have looked for another at the same moment; that one is woken too many does no harm."""
    assert woken([TO_BEGIN, SPINNING, AWAKE, SPINNING, AWAKE], 2) == [0]

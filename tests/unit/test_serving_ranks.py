"""Ranks that run calls for another make no channel with it."""

import pytest

from mpiexecutor._rma.serving_ranks import ServingRanks


def test_a_rank_that_serves_makes_no_channel():
    """The error says why, and what to do: otherwise the script would wait for ever."""
    serving = ServingRanks()
    serving.check(lambda: [0, 1])
    serving.add([1, 2], "they run calls")
    serving.check(lambda: [0, 3])
    with pytest.raises(RuntimeError, match="they run calls"):
        serving.check(lambda: [0, 1])


def test_what_connects_it_with_its_root_it_makes():
    """The channels of a pool."""
    serving = ServingRanks()
    serving.add([1], "they run calls")
    with serving.take_part():
        serving.check(lambda: [0, 1])


def test_a_rank_that_has_stopped_makes_channels_again():
    """One that served in two communicators, or twice, stops as often."""
    serving = ServingRanks()
    serving.add([1], "they run calls")
    serving.add([1], "they run calls")
    serving.remove([1])
    with pytest.raises(RuntimeError):
        serving.check(lambda: [0, 1])
    serving.remove([1])
    serving.check(lambda: [0, 1])

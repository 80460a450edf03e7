"""What the root tells its workers."""

import logging

import pytest

from mpiexecutor._pool.registration import LOST_AFTER_VARIABLE, Registration, WorkerConfiguration
from mpiexecutor._rma.doorbell import node_name


def orders_of(*nodes: str) -> WorkerConfiguration:
    """Return those of rank 0, with workers on these nodes."""
    here = Registration("host", 7, node_name(), supervised=True)
    return WorkerConfiguration.of_this_process(
        0, {rank: here._replace(node=node or here.node) for rank, node in enumerate(nodes, 1)}
    )


def test_a_supervisor_turns_to_the_root_where_it_can():
    """On the root's node there is one monitor."""
    configuration = orders_of("", "", "b")
    assert configuration.far == [3]
    assert [configuration.monitoring_ranks(rank) for rank in (1, 2)] == [[0], [0]]
    assert configuration.monitor_name(0) == configuration.monitor


def test_elsewhere_it_turns_to_the_worker_after_its_own_and_to_its_own_last():
    """The rank that reports a death has to live; and the work is shared."""
    configuration = orders_of("b", "", "c", "b", "b")
    assert configuration.far == [1, 3, 4, 5]
    assert [configuration.monitoring_ranks(rank) for rank in configuration.far] == [[4, 5, 1], [3], [5, 1, 4], [1, 4, 5]]
    assert len({configuration.monitor_name(rank) for rank in range(6)}) == 6


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 30.0), ("2.5", 2.5), ("0", 30.0), ("soon", 30.0), ("inf", 30.0), ("nan", 30.0)]
)
def test_silence_has_a_limit_that_can_be_set(text, seconds, monkeypatch, caplog):
    """A text that is no number of seconds is logged, and not used: the other ranks wait already."""
    monkeypatch.delenv(LOST_AFTER_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(LOST_AFTER_VARIABLE, text)
    with caplog.at_level(logging.WARNING):
        assert orders_of("").lost_after == seconds
    said = f"{LOST_AFTER_VARIABLE} is a number of seconds above 0 and finite, not {text!r}: it is taken to be 30"
    assert caplog.messages == ([] if text in {None, "2.5"} else [said])

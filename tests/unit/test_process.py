"""What the environment asks for when a script starts its own workers."""

import pytest

from mpiexecutor._start import job, process


@pytest.mark.parametrize(("wanted", "asked", "workers"), [("3", 1, 3), ("", 2, 2)])
def test_the_environment_goes_before_what_the_first_executor_asks_for(monkeypatch, wanted, asked, workers):
    """An empty variable is as none."""
    monkeypatch.setenv("MPIEXECUTOR_MAX_WORKERS", wanted)
    assert process._pool_size(asked) == workers


def test_without_either_there_is_a_worker_for_each_core(monkeypatch):
    """That this process may use."""
    monkeypatch.delenv("MPIEXECUTOR_MAX_WORKERS", raising=False)
    assert process._pool_size(None) == process.usable_cores()


@pytest.mark.parametrize("wanted", ["many", "0", "-1", "1.5"])
def test_a_number_of_workers_that_makes_no_sense_is_refused(monkeypatch, wanted):
    """With the rule as the text."""
    monkeypatch.setenv("MPIEXECUTOR_MAX_WORKERS", wanted)
    rule = f"MPIEXECUTOR_MAX_WORKERS is the number of workers to start, at least 1, not '{wanted}'"
    with pytest.raises(ValueError, match=rule):
        process._pool_size(None)


@pytest.mark.parametrize("wanted", ["-1", "0", "inf", "nan", "soon"])
def test_a_time_to_start_that_makes_no_sense_is_refused(monkeypatch, wanted):
    """The same."""
    monkeypatch.setenv("MPIEXECUTOR_START_TIMEOUT", wanted)
    rule = f"MPIEXECUTOR_START_TIMEOUT is the number of seconds that workers have to start, above 0 and finite, not '{wanted}'"
    with pytest.raises(ValueError, match=rule):
        job._timeout()


def test_workers_have_a_minute_to_start_unless_the_environment_says_otherwise(monkeypatch):
    """In seconds."""
    monkeypatch.delenv("MPIEXECUTOR_START_TIMEOUT", raising=False)
    assert job._timeout() == 60
    monkeypatch.setenv("MPIEXECUTOR_START_TIMEOUT", "2.5")
    assert job._timeout() == 2.5

"""More of everything than a script needs."""

import re

import pytest
from jobs import PROGRAMS, run_job

FLOODS = str(PROGRAMS / "floods.py")
SOAK = str(PROGRAMS / "soak.py")


def flood(ranks, name, number=0, **options):
    return run_job(ranks, ["-m", "mpiexecutor", FLOODS, name, str(number)], **options).stdout


def test_a_hundred_threads_submit():
    """All at a time."""
    assert flood(3, "threads", 100) == "100 threads, 10,000 calls\n"


@pytest.mark.wide
@pytest.mark.long
def test_a_hundred_thousand_calls_are_submitted_at_once():
    """Before any result is looked at."""
    assert flood(3, "tiny", 100_000, deadline=200).startswith("100,000 calls submitted in ")


def test_each_of_four_workers_returns_much_at_the_same_time():
    """Through one reply channel: none gets in the way of another."""
    assert flood(5, "large", 50_000_000) == "4 results of 50,000,000 bytes\n"


def test_memory_stays_as_it_is_while_calls_are_submitted_faster_than_they_are_run():
    """With max_pending, submit waits."""
    assert " calls in 2 s, at most " in flood(3, "backpressure", 2)


def test_memory_stays_as_it_is_while_messages_are_put_faster_than_they_are_taken():
    """Into a raw channel: all that put wait for room, and all get some; nothing is lost, or out of order."""
    said = run_job(4, ["-m", "mpiexecutor", "--spmd", FLOODS, "slow", "2"]).stdout
    found = re.fullmatch(r"([\d,]+) messages of 3 ranks, ([\d,]+) of one at the least\n", said)
    assert found is not None, said
    assert all(int(count.replace(",", "")) > 0 for count in found.groups())


@pytest.mark.mpi
def test_many_workers_are_killed_at_once():
    """Only what they had begun is lost."""
    assert re.fullmatch(r"11 workers killed at once, \d+ of 1,100 calls lost\n", flood(13, "lost", deadline=120))


def test_random_calls_for_some_time():
    """Sizes, kinds and failures by chance: see soak.py, which says with what seed."""
    assert "calls: " in run_job(5, ["-m", "mpiexecutor", SOAK, "3"]).stdout


@pytest.mark.slow
def test_sixty_deaths_in_a_row():
    """64 ranks, one after another down to one: the ring is whole."""
    assert flood(64, "deaths", deadline=400).startswith("62 of 63 workers killed, ")


@pytest.mark.slow
def test_four_workers_return_two_gigabytes():
    """Each 500 MB at the same time."""
    assert flood(5, "large", 500_000_000, deadline=240) == "4 results of 500,000,000 bytes\n"

"""The channel's tests that every rank runs (tests/ranks), as whole jobs of 1, 2, 3 and 5 ranks; and what happens when one fails."""

import pytest
from jobs import JobFailed, run_job

SIZES = [
    1,
    pytest.param(2, marks=pytest.mark.wide),
    pytest.param(3, marks=pytest.mark.mpi),
    pytest.param(5, marks=pytest.mark.wide),
]
LARGE = pytest.param("test_channel_ranks.py", marks=pytest.mark.long)


@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("name", [LARGE, "test_channel_waiting_ranks.py", "test_channel_errors_ranks.py", "test_far_ranks.py"])
def test_the_channel_does_what_it_says_on_any_number_of_ranks(run_on_ranks, name, ranks):
    """All of the file's tests pass, and no process is left."""
    run_on_ranks(ranks, name)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("test_channel_ranks.py", marks=[pytest.mark.wide, pytest.mark.long]),
        pytest.param("test_channel_waiting_ranks.py", marks=pytest.mark.wide),
        "test_far_ranks.py",
    ],
)
def test_the_channel_does_the_same_where_ranks_share_no_memory(run_on_ranks, name):
    """As on several nodes every load and store is a call of MPI."""
    run_on_ranks(3, name, apart=True)


def test_a_failure_on_one_rank_is_shown_and_ends_the_job(run_on_ranks):
    """The failing rank says what failed and where; the others, which would wait for ever, are ended with it."""
    with pytest.raises(JobFailed, match=r"(?s)rank 1 of 3: .*::test_fails_on_rank_1 failed \(call\).*assert RANK != 1"):
        run_on_ranks(3, "failing.py", deadline=60)


HANGS = """
import pathlib, sys
from mpi4py import MPI
def waits_for_ever():
    pathlib.Path(sys.argv[1], str(MPI.COMM_WORLD.rank)).touch(); MPI.COMM_WORLD.recv()
waits_for_ever()
"""


def test_ranks_that_hang_show_their_stacks(tmp_path):
    """At the deadline every rank prints the stack of each of its threads, is ended, and the job has failed."""
    with pytest.raises(JobFailed, match="killed at its deadline") as caught:
        run_job(2, ["-c", HANGS, str(tmp_path)], hangs=lambda: len(list(tmp_path.iterdir())) == 2)
    assert str(caught.value).count("line 5 in waits_for_ever") == 2


def test_an_unexpected_status_shows_all_output():
    """The message has the command, the status and both outputs."""
    with pytest.raises(JobFailed, match=r"(?s)status 3.*-- stdout.*to stdout.*-- stderr.*to stderr"):
        run_job(None, ["-c", "import os; os.write(1, b'to stdout'); os.write(2, b'to stderr'); os._exit(3)"])


def test_a_process_that_outlives_the_job_is_named_and_ended():
    """A process that the job leaves behind, in a session of its own, is a failure that names it."""
    child = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], start_new_session=True)"
    )
    with pytest.raises(JobFailed, match=r"(?s)left behind.*time\.sleep\(99\)"):
        run_job(None, ["-c", child])

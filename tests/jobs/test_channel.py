"""The channel's tests that every rank runs (tests/ranks), as whole jobs of 1, 2, 3 and 5 ranks; and what happens when one fails."""

import pytest
from jobs import JobFailed, run_job

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "name", ["test_channel_ranks.py", "test_channel_waiting_ranks.py", "test_channel_errors_ranks.py", "test_far_ranks.py"]
)
def test_the_channel_does_what_it_says_on_any_number_of_ranks(run_on_ranks, name, ranks):
    """All of the file's tests pass, and no process is left."""
    run_on_ranks(ranks, name)


@pytest.mark.parametrize("name", ["test_channel_ranks.py", "test_channel_waiting_ranks.py", "test_far_ranks.py"])
def test_the_channel_does_the_same_where_ranks_share_no_memory(run_on_ranks, name):
    """As on several nodes every load and store is a call of MPI."""
    run_on_ranks(3, name, apart=True)


def test_a_failure_on_one_rank_is_shown_and_ends_the_job(run_on_ranks):
    """The failing rank says what failed and where; the others, which would wait for ever, are ended with it."""
    with pytest.raises(JobFailed, match=r"(?s)rank 1 of 3: .*::test_fails_on_rank_1 failed \(call\).*assert RANK != 1"):
        run_on_ranks(3, "failing.py", deadline=60)


def test_ranks_that_hang_show_their_stacks():
    """At the deadline every rank prints the stack of each of its threads, is ended, and the job has failed."""
    program = (
        "from mpi4py import MPI\ndef waits_for_ever():\n    MPI.COMM_WORLD.recv()\nprint('begun', flush=True)\nwaits_for_ever()"
    )
    with pytest.raises(JobFailed, match="killed at its deadline") as caught:
        run_job(2, ["-c", program], deadline=5)
    assert str(caught.value).count("line 3 in waits_for_ever") == 2


def test_an_unexpected_status_shows_all_output():
    """The message has the command, the status and both outputs."""
    with pytest.raises(JobFailed, match=r"(?s)status 3.*-- stdout.*to stdout.*-- stderr.*to stderr"):
        run_job(None, ["-c", "import os; os.write(1, b'to stdout'); os.write(2, b'to stderr'); os._exit(3)"])


def test_who_outlives_the_job_is_named_and_ended():
    """A process that the job leaves behind, in a session of its own, is a failure that names it."""
    child = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], start_new_session=True)"
    )
    with pytest.raises(JobFailed, match=r"(?s)left behind.*time\.sleep\(99\)"):
        run_job(None, ["-c", child])

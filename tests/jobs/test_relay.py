"""Workers on other nodes, of whom others there tell the root: here on one host, with ranks that believe to be apart."""

import re

import pytest
from jobs import PROGRAMS, run_job

pytestmark = pytest.mark.mpi


SCRIPT = str(PROGRAMS / "apart.py")
KILLED = r"ok: killed: the worker on rank \d, host \S+, pid \d+, was killed by SIGKILL while it ran"


def said_by(job):
    return [line for line in job.stdout.splitlines() if line.startswith("ok: ")]


def test_workers_that_the_root_cannot_hear_end_with_it():
    """Their supervisors have told others of them, and nothing is left of that."""
    assert said_by(run_job(5, [SCRIPT, "5", "none"], expect=5)) == ["ok: the end"]


def test_one_that_dies_is_told_of_by_others_which_live_to_the_end():
    """Then all take leave of the process manager without MPI, and the status is the script's."""
    job = run_job(5, [SCRIPT, "5", "one"], expect=5)
    said = said_by(job)
    assert re.match(KILLED, said[0]), str(job)
    assert said[1:] == ["ok: the end"], str(job)


def test_workers_that_the_root_cannot_hear_may_die_fall_silent_and_come_back():
    """Killed, with others there and as the last one; stopped, all of them, which looks like a lost host."""
    job = run_job(5, [SCRIPT, "5", "all"], env={"MPIEXECUTOR_LOST_AFTER": "3"}, expect=5, deadline=120)
    said = said_by(job)
    assert re.match(KILLED, said[0]), str(job)
    assert said[1] == "ok: came back", str(job)
    assert re.match(KILLED, said[2]), str(job)
    assert re.match(KILLED.replace("was killed by SIGKILL", "was not heard of for 3 s"), said[3]), str(job)
    assert said[4:] == ["ok: the end"], str(job)
    assert len(re.findall(r"the worker on rank \d was heard of again", job.stderr)) == 2, str(job)

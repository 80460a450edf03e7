"""Workers on other nodes, of whom others there tell the root: here on one host, with ranks that believe to be apart."""

import re

import pytest
from jobs import ROOT, run_job

pytestmark = pytest.mark.mpi


def test_workers_that_the_root_cannot_hear_may_die_fall_silent_and_come_back():
    """Killed, with others there and as the last one; stopped, all of them, which looks like a lost host."""
    script = str(ROOT / "tests" / "apart.py")
    job = run_job(5, [script, "5"], env={"MPIEXECUTOR_LOST_AFTER": "3"}, expect=5, deadline=120)
    said = [line for line in job.stdout.splitlines() if line.startswith("ok: ")]
    worker = r"ok: killed: the worker on rank \d, host \S+, pid \d+, "
    assert re.match(worker + "was killed by SIGKILL while it ran", said[0]), job
    assert said[1] == "ok: came back", job
    assert re.match(worker + "was killed by SIGKILL while it ran", said[2]), job
    assert re.match(worker + "was not heard of for 3 s while it ran", said[3]), job
    assert said[4:] == ["ok: the end"], job
    assert len(re.findall(r"the worker on rank \d was heard of again", job.stderr)) == 2, job

"""The examples run as they say, on any number of ranks, and find their own results right."""

import pytest
from jobs import ROOT, run_job

pytestmark = pytest.mark.mpi

_SUM = sum(number**2 for number in range(1000))


@pytest.mark.parametrize("ranks", [None, 1, 2, 4])
@pytest.mark.parametrize("name", ["channel_tasks.py", "channel_tasks_futures.py"])
def test_the_channel_examples_get_all_results(name, ranks):
    """1000 squares go there and back, also without mpiexec; nothing else is printed."""
    job = run_job(ranks, ROOT / "examples" / name)
    assert job.stdout.startswith("1000 results")
    assert job.stdout.endswith(f"their sum is {_SUM}\n")

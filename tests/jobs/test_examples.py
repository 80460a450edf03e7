"""The examples run as they say, on any number of ranks, and find their own results right."""

import re

import pytest
from jobs import ROOT, run_job

README = (ROOT / "examples" / "README.md").read_text()
_SUM = sum(number**2 for number in range(1000))


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("channel_tasks.py", None),
        ("channel_tasks.py", 4),
        ("channel_tasks_futures.py", 1),
        ("channel_tasks_futures.py", 2),
        *(pytest.param("channel_tasks.py", ranks, marks=pytest.mark.wide) for ranks in (1, 2)),
        *(pytest.param("channel_tasks_futures.py", ranks, marks=pytest.mark.wide) for ranks in (None, 4)),
    ],
)
def test_the_channel_examples_get_all_results(name, ranks):
    """1000 squares go there and back, also without mpiexec; nothing else is printed."""
    job = run_job(ranks, ROOT / "examples" / name)
    assert job.stdout.startswith("1000 results")
    assert job.stdout.endswith(f"their sum is {_SUM}\n")


def test_every_example_is_described():
    """In the table of examples/README.md, with the command that starts it."""
    described = set(re.findall(r"^\| `(\w+\.py)` \| .* \| `.*examples/\1` \|$", README, re.MULTILINE))
    assert described == {path.name for path in (ROOT / "examples").glob("*.py")}

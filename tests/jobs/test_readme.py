"""What the README shows is run as it stands there; its two installing commands are run by the continuous integration."""

import re
from pathlib import Path

import pytest
from jobs import ROOT, run_job

README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)[^\n]*\n(.*?)```", README, re.DOTALL))

pytestmark = pytest.mark.mpi


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str) -> str:
        path = tmp_path / name
        path.write_text(BLOCKS[name])
        return str(path)

    return write


def test_every_example_of_the_readme_is_tested():
    """A new one has to be added here."""
    assert sorted(BLOCKS) == ["channel.py", "squares.py"]


@pytest.mark.parametrize(
    ("ranks", "options"),
    [(None, []), (None, ["-m", "mpiexecutor", "-n", "3"]), (3, ["-m", "mpiexecutor"]), (3, [])],
    ids=["python", "python -m mpiexecutor -n", "mpiexec python -m mpiexecutor", "mpiexec python"],
)
def test_the_first_example_runs_in_every_way(write, ranks, options):
    """With the same output, once."""
    assert run_job(ranks, [*options, write("squares.py")]).stdout == "332833500\nlambdas are fine, too\n"


def test_the_channels_example_runs(write):
    """Each of the hundred messages is taken once, by any rank."""
    lines = run_job(3, [write("channel.py")]).stdout
    assert sorted(map(float, re.findall(r"array\('d', \[([\d.]+), ", lines))) == list(range(100))

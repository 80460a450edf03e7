"""Each code block of the README is run as it stands there; its two commands that install are run by .ci/run."""

import re
from pathlib import Path

import pytest
from jobs import ROOT, run_job

README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)[^\n]*\n(.*?)```", README, re.DOTALL))
COMMANDS = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
LIBRARIES = dict(re.findall(r"^\| (\w+) \| `(.*executor.*)` \|$", README, re.MULTILINE))

# Of each library: its module, what the arguments in its line are, and a text of the value of that line.
ROWS = {
    "SciPy": (
        "scipy.optimize",
        "f, bounds = (lambda x: (x[0] - 1) ** 2 + x[1] ** 2), [(-2, 2)] * 2",
        "value.x.round(3).tolist()",
        "[1.0, 0.0]",
    ),
    "emcee": (
        "emcee",
        "f, walkers, dimensions = (lambda x: -(x @ x)), 8, 2",
        "value.run_mcmc([[n % 3, n] for n in range(8)], 5) and value.get_chain().shape",
        "(5, 8, 2)",
    ),
    "dynesty": (
        "dynesty",
        "f, prior, dimensions = (lambda x: -(x @ x)), (lambda u: 4 * u - 2), 2",
        "value.run_nested(maxiter=50, print_progress=False) or value.results.niter >= 50",
        "True",
    ),
    "Dask": ("dask", "values = [dask.delayed(pow)(x, 2) for x in range(5)]", "value", "(0, 1, 4, 9, 16)"),
    "joblib": ("joblib", "calls = [joblib.delayed(pow)(x, 2) for x in range(5)]", "value", "[0, 1, 4, 9, 16]"),
}

pytestmark = pytest.mark.mpi


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str) -> str:
        path = tmp_path / name
        path.write_text(BLOCKS[name])
        return str(path)

    return write


def test_the_readme_can_be_read_in_one_go():
    """At most 200 lines of at most 120 characters."""
    lines = README.splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []


def test_every_example_of_the_readme_is_tested():
    """A new one has to be added here."""
    assert sorted(BLOCKS) == ["channel.py", "simulation.py", "squares.py"]
    assert len(re.findall("```python\n", README)) == len(BLOCKS)
    assert [command for command in COMMANDS if "pip install" not in command] == ["python squares.py"]
    assert LIBRARIES.keys() == ROWS.keys()


@pytest.mark.parametrize(
    ("ranks", "options"),
    [(None, []), (None, ["-m", "mpiexecutor", "-n", "3"]), (3, ["-m", "mpiexecutor"]), (3, [])],
    ids=["python", "python -m mpiexecutor -n", "mpiexec python -m mpiexecutor", "mpiexec python"],
)
def test_the_first_example_runs_in_every_way(write, ranks, options):
    """With the same output, once."""
    assert run_job(ranks, [*options, write("squares.py")]).stdout == "332833500\nlambdas are fine, too\n"


def test_the_simulation_shows_its_progress_and_its_log(write):
    """The results are the same with one worker and with two."""
    jobs = [run_job(ranks, ["-m", "mpiexecutor", write("simulation.py")]) for ranks in (2, 3)]
    assert jobs[0].stdout == jobs[1].stdout
    assert re.findall(r"^(\d+) of 10: -?\d\.\d{3}$", jobs[0].stdout, re.MULTILINE) == [str(done) for done in range(1, 11)]
    assert sorted(re.findall(r"INFO:root:simulation (\d)\n", jobs[0].stderr)) == [str(number) for number in range(10)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_take_the_executor(library):
    """Those that are installed."""
    module, arguments, text, expected = ROWS[library]
    pytest.importorskip(module)
    code = f"""
import {module}
from mpiexecutor import RMAChannelExecutor
{arguments}
with RMAChannelExecutor(max_workers=2) as executor:
    value = {LIBRARIES[library]}
    print({text})
"""
    assert run_job(None, ["-c", code], deadline=150).stdout == f"{expected}\n"


def test_the_channels_example_runs(write):
    """Each of the hundred messages is taken once, by any rank."""
    lines = run_job(3, [write("channel.py")]).stdout
    assert sorted(map(float, re.findall(r"array\('d', \[([\d.]+), ", lines))) == list(range(100))

"""The benchmark runs every shape, and judges what it finds; the figures themselves are no test's claim."""

import json
import re
import shlex
import sys

import pytest
from jobs import ROOT, launcher, run_job

BENCHMARK = ROOT / "examples" / "benchmark"
SHAPES = {
    *("one-call-busy", "map-of-8", "map-of-8-busy", "long-map", "computing", "computing-busy", "computing-short"),
    *("calls", "map", "one-call", "array", "common-array", "uneven", "suddenly-long", "busy-root"),
    *("after-idleness", "after-work", "after-work-busy"),
    *("pending", "million-pending", "idle", "crowd", "large-array", "endless-map", "isolated"),
    *("channel", "two-hosts-calls", "two-hosts-one-call"),
}
PEERS = ["ThreadPoolExecutor", "ProcessPoolExecutor", "SimpleQueue"]


@pytest.fixture
def own_modules(monkeypatch):
    """Have the benchmark's modules be importable."""
    monkeypatch.syspath_prepend(BENCHMARK)


@pytest.fixture
def compared(own_modules):
    """Return the function that compares runs."""
    from report import compared

    return compared


@pytest.mark.wide
@pytest.mark.long
def test_every_shape_is_measured(tmp_path):
    """In the table and in the JSON each has our figures and those of the others, and nothing has failed."""
    file = tmp_path / "found.json"
    hosts = shlex.join(launcher("{ranks}"))
    options = ["--quick", "--large", "--repeat", "1", "--hosts", hosts, "--json", str(file), "--peer", *PEERS, "mpi4py.futures"]
    job = run_job(None, [str(BENCHMARK), *options], deadline=280)
    found = json.loads(file.read_text())
    assert set(found["shapes"]) == SHAPES
    assert found["mpi"]
    assert found["from"]["commit"]
    for name, shape in found["shapes"].items():
        assert shape["shows"]
        assert not shape["failed"], (name, shape)
        for figure in shape["figures"].values():
            assert figure["rows"][0]["who"].startswith("mpiexecutor")
            assert all(len(row["runs"]) == 1 for row in figure["rows"])
        assert re.search(rf"^\| {name} +\| [^|]+ \| mpiexecutor", job.stdout, re.MULTILINE)
    assert {row["who"] for row in found["shapes"]["calls"]["figures"]["rate"]["rows"]} == {
        "mpiexecutor",
        *PEERS[:2],
        "mpi4py.futures",
    }


def test_a_contender_that_fails_is_named_and_the_others_go_on(tmp_path):
    """The status says that something is missing."""
    file = tmp_path / "found.json"
    options = ["--quick", "--hosts", "false {ranks}", "--shape", "two-hosts-calls", "calls", "--peer", "--json", str(file)]
    job = run_job(None, [str(BENCHMARK), *options], expect=1)
    shapes = json.loads(file.read_text())["shapes"]
    assert "has not come" in shapes["two-hosts-calls"]["failed"]["mpiexecutor"]
    assert not shapes["calls"]["failed"]
    assert re.search(r"^\| two-hosts-calls .* mpiexecutor .* failed", job.stdout, re.MULTILINE)


INTERRUPTED = """
import signal, subprocess, sys
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True) as benchmark:
    while not benchmark.stdout.readline().startswith("| calls "):
        pass
    benchmark.send_signal(signal.{signal})
sys.exit(not benchmark.returncode)
"""


@pytest.mark.parametrize("signal", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.wide)])
def test_when_it_is_interrupted_no_contender_is_left(signal):
    """Neither running nor stopped."""
    run_job(None, ["-c", INTERRUPTED.format(signal=signal), sys.executable, str(BENCHMARK), "--quick", "--peer", *PEERS])


@pytest.mark.wide
def test_the_budget_has_every_part_of_a_call():
    """Fourteen parts, their sum, and two ways of calling."""
    job = run_job(None, [str(BENCHMARK / "budget.py"), "--quick"], env={"PYTHONPATH": str(BENCHMARK)})
    assert len(re.findall(r"^\| .* \| [\d.,]+ \| ", job.stdout, re.MULTILINE)) == 17


def test_the_readme_shows_the_results_beside_it(own_modules):
    """Its tables are those that update.py makes of results/."""
    from update import updated

    readme = (BENCHMARK / "README.md").read_text()
    assert updated(readme) == readme


def test_the_readme_describes_every_shape():
    """Each has a line in its table."""
    found = re.findall(r"^\| (`[^|]+) \| ", (BENCHMARK / "README.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`([a-z0-9-]+)`", " ".join(found))) & SHAPES == SHAPES


def test_a_ratio_is_the_median_of_those_within_a_turn(compared):
    """A machine that is slow for a while is so for both."""
    runs = {"mpiexecutor": [{"rate": 30.0}, {"rate": 3.0}, {"rate": 40.0}], "ProcessPoolExecutor": [{"rate": 3.0}, {"rate": 0.3}]}
    rows = compared("calls", runs, {}, "MPICH 5.0.2")["figures"]["rate"]["rows"]
    assert [(row["who"], row["median"]) for row in rows] == [("mpiexecutor", 30), ("ProcessPoolExecutor", pytest.approx(1.65))]
    assert rows[1]["ours to theirs"] == pytest.approx(10)
    assert rows[1]["goals"] == [{"goal": "at least 8x ProcessPoolExecutor", "found": pytest.approx(10), "reached": True}]


@pytest.mark.parametrize(
    ("mpi", "ours", "reached"),
    [("MPICH 5.0.2", 0.41, False), ("MPICH 5.0.2", 0.4, True), ("Open MPI 5.0.11", 0.57, True), ("Intel MPI 2021.18", 0.58, False)],
)
def test_elsewhere_seven_tenths_of_a_goal_will_do(compared, mpi, ours, reached):
    """A goal of at most 0.4 is one of at most 0.57 there."""
    runs = {"mpiexecutor": [{"time": ours}], "ProcessPoolExecutor": [{"time": 1.0}]}
    row = compared("one-call", runs, {}, mpi)["figures"]["time"]["rows"][1]
    assert [goal["reached"] for goal in row["goals"]] == [reached]


def test_goals_are_absolute_or_against_another_figure_or_another_number_of_workers(compared):
    """They are in our own row, except those against the same figure of another contender."""
    runs = {"mpiexecutor.channel": [{"1 to 1": 100.0, "1 to 3": 60.0, "1 to 1, many": 900.0}], "SimpleQueue": [{"1 to 1": 200.0}]}
    figures = compared("channel", runs, {}, None)["figures"]
    assert [goal["goal"] for goal in figures["1 to 3"]["rows"][0]["goals"]] == ["at least 0.7x 1 to 1"]
    assert figures["1 to 1, many"]["rows"][0]["goals"][0]["found"] == 4.5
    assert figures["1 to 1"]["rows"][1]["goals"][0]["reached"]
    [row] = compared("pending", {"mpiexecutor": [{"memory": 1501.0}]}, {}, None)["figures"]["memory"]["rows"]
    assert row["goals"] == [{"goal": "at most 1,500 bytes/call", "found": 1501, "reached": False}]
    runs = {"mpiexecutor": [{"rate": 10.0}], "mpiexecutor, 32 workers": [{"rate": 9.0}]}
    rows = compared("crowd", runs, {}, None)["figures"]["rate"]["rows"]
    assert rows[1]["goals"][0]["found"] == 0.9


def test_a_goal_without_its_peer_is_open(compared):
    """It is neither reached nor missed, and shown."""
    [row] = compared("channel", {"mpiexecutor.channel": [{"1 to 1, many": 5.0}]}, {}, None)["figures"]["1 to 1, many"]["rows"]
    assert row["goals"] == [{"goal": "at least 2x SimpleQueue 1 to 1", "found": None, "reached": None}]


def test_the_plot_is_drawn(compared, tmp_path):
    """In the format that its name asks for."""
    pytest.importorskip("matplotlib")
    from report import plot

    runs = {"mpiexecutor": [{"rate": 2.0}], "ProcessPoolExecutor": [{"rate": 1.0}]}
    result = {"mpi": "MPICH 5.0.2", "from": {"commit": "0"}, "shapes": {"calls": compared("calls", runs, {}, None)}}
    plot(result, tmp_path / "plot.svg")
    assert "ProcessPoolExecutor" in (tmp_path / "plot.svg").read_text()

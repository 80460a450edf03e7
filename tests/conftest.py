"""What all tests share: whole jobs are marked, and at the end the numbers of tests that the ranks ran are shown."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jobs import TESTS, Job, mpi_name, run_job
from pieces import SHARED

_SHOWN = "shown at the end"  # the property of a test whose value is a line for the end of all tests
_CLUSTERS = {"test_hosts.py", "test_slurm.py"}
_DEADLINE = 150  # seconds that one test may take on the ranks before each of them prints its stacks


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so it is in the background, and jobs would inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONUNBUFFERED", None)  # a line is then two writes, and lines of several processes mix


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have tests that share a job, or a cluster, run in one process, where there are several (-n 4); each other anywhere."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            _, shared, way = test.partition(f"[{SHARED}")
            return f"{file}[{shared}{way}" if shared else file if Path(file).name in _CLUSTERS else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not asked for; begin with what takes long, where tests run side by side."""
    expression = config.option.markexpr
    left_out = set() if "slow" in expression else {"slow"} if "wide" in expression else {"slow", "wide"}
    dropped = [item for item in items if any(map(item.get_closest_marker, left_out))]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in set(dropped)]
    if "workerinput" in vars(config):
        items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Do not measure what Hypothesis does: thousands of interleavings would take twice as long, and show no other lines."""
    coverage = sys.modules.get("coverage")
    measured = coverage.Coverage.current() if coverage and item.get_closest_marker("hypothesis") else None
    if measured is None:
        return (yield)
    measured.stop()
    try:
        return (yield)
    finally:
        measured.start()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how many tests ran inside the jobs."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports if isinstance(report, pytest.TestReport)]
    lines = sorted(value for report in reports if report.when == "call" for name, value in report.user_properties if name == _SHOWN)
    if lines:
        terminalreporter.section(f"tests run by all ranks together, on {mpi_name()}")
        for line in lines:
            terminalreporter.line(str(line))


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that has a line shown when all tests are done."""
    return partial(record_property, _SHOWN)


@pytest.fixture
def keep_contract(request: pytest.FixtureRequest, report: Callable[[str], None]) -> Callable[..., Job]:
    """Return a function that has the root of a job try the executor's contract; it takes what run_job does, but for the program."""

    def run(ranks: int | None, module: Sequence[str] = ("-m", "mpiexecutor"), *, deadline: float = 500, **how: Any) -> Job:
        options = ["-q", "--color=no", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={_DEADLINE}", "-o", "timeout=0"]
        tests = ["-m", "pytest", *options, "-c", str(request.config.inipath), str(TESTS / "contract")]
        job = run_job(ranks, [*module, *tests], deadline=deadline, **how)
        summary = re.search(r"^(\d+ passed.*?) in ", job.stdout, re.MULTILINE)
        assert summary is not None, f"the root has printed no summary:\n{job}"
        where = f"{ranks} ranks" if ranks else "by Slurm" if module else "by hand"
        report(f"{'contract':32} {where}: {summary[1]} in {job.duration:.1f} s")
        return job

    return run


@pytest.fixture
def run_on_ranks(request: pytest.FixtureRequest, report: Callable[[str], None]) -> Callable[..., Job]:
    """Return a function that has so many ranks run the tests of a file in tests/ranks, together."""

    def run(ranks: int, name: str, *, apart: bool = False, deadline: float = 500) -> Job:
        file = TESTS / "ranks" / name
        options = ["-o", f"faulthandler_timeout={_DEADLINE}", "-p", "no:cacheprovider", "--color=no", "-s", "-q"]
        env = {"MPIEXECUTOR_TEST_APART": "1"} if apart else {}
        job = run_job(ranks, ["-m", "pytest", *options, str(file)], deadline=deadline, env=env)
        summary = re.search(r"^(\d+ passed.*?) in ", job.stdout, re.MULTILINE)
        assert summary is not None, f"rank 0 has printed no summary:\n{job}"
        report(f"{name:32} {ranks} ranks{' apart' if apart else ''}: {summary[1]} in {job.duration:.1f} s")
        return job

    return run

"""What all tests share: whole jobs are marked, and at the end the numbers of tests that the ranks ran are shown."""

import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from jobs import TESTS, Job, mpi_name, run_job

RANK_TESTS = pytest.StashKey[list[str]]()
_DEADLINE = 40  # seconds that one test may take on the ranks before each of them prints its stacks


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RANK_TESTS] = []
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so it is in the background, and jobs would inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("PYTHONUNBUFFERED", None)  # a line is then two writes, and lines of several processes mix


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow unless it is asked for."""
    if "slow" not in config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show how many tests ran inside the jobs."""
    if lines := config.stash[RANK_TESTS]:
        terminalreporter.section(f"tests run by all ranks together, on {mpi_name()}")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Give a function that has a line shown when all tests are done."""
    return request.config.stash[RANK_TESTS].append


@pytest.fixture
def keep_contract(request: pytest.FixtureRequest, report: Callable[[str], None]) -> Callable[..., Job]:
    """Give a function that has the root of a job try the executor's contract; it takes what run_job does, but for the program."""

    def run(ranks: int | None, *, deadline: float = 240, **how: Any) -> Job:
        options = ["-q", "--color=no", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={_DEADLINE}", "-o", "timeout=0"]
        tests = ["-m", "pytest", *options, "-c", str(request.config.inipath), str(TESTS / "contract")]
        job = run_job(ranks, ["-m", "mpiexecutor", *tests], deadline=deadline, **how)
        summary = re.search(r"^(\d+ passed.*?) in ", job.stdout, re.MULTILINE)
        assert summary is not None, f"the root has printed no summary:\n{job}"
        where = f"{ranks} ranks" if ranks else request.path.stem.removeprefix("test_")
        report(f"{'contract':32} {where}: {summary[1]} in {job.duration:.1f} s")
        return job

    return run


@pytest.fixture
def run_on_ranks(request: pytest.FixtureRequest, report: Callable[[str], None]) -> Callable[..., Job]:
    """Give a function that has so many ranks run the tests of a file in tests/ranks, together."""

    def run(ranks: int, name: str, *, apart: bool = False, deadline: float = 250) -> Job:
        file = TESTS / "ranks" / name
        options = ["-o", f"faulthandler_timeout={_DEADLINE}", "-p", "no:cacheprovider", "--color=no", "-s", "-q"]
        env = {"MPIEXECUTOR_TEST_APART": "1"} if apart else {}
        job = run_job(ranks, ["-m", "pytest", *options, str(file)], deadline=deadline, env=env)
        summary = re.search(r"^(\d+ passed.*?) in ", job.stdout, re.MULTILINE)
        assert summary is not None, f"rank 0 has printed no summary:\n{job}"
        report(f"{name:32} {ranks} ranks{' apart' if apart else ''}: {summary[1]} in {job.duration:.1f} s")
        return job

    return run

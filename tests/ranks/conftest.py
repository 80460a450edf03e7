"""Tests that every rank runs, together: ``mpiexec -n 3 python -m pytest -s tests/ranks/test_channel_ranks.py``.

Each is true for any number of ranks, and begins and ends on all of them together. Where one fails, its rank says so and aborts
the job, because the others might wait for it for ever; rank 0 alone prints the summary. A test that takes too long (pytest's
faulthandler_timeout) prints the stacks of every rank, and ends the job soon after.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from mpi4py import MPI

from mpiexecutor._rma import window
from mpiexecutor.channel import _agreement
from mpiexecutor.channel._ends import end

_COMM = MPI.COMM_WORLD
_GRACE = 2  # seconds in which the other ranks may say what they have to say, too


@pytest.hookimpl(trylast=True)  # the reporter is there by then
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if _COMM.rank != 0 and reporter is not None:
        config.pluginmanager.unregister(reporter)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _abort(f"{report.nodeid} failed ({report.when})", f"{report.longreprtext}\n{report.capstderr}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _abort(f"{report.nodeid} could not be collected", report.longreprtext)


@pytest.fixture(autouse=True, scope="session")
def _asleep_until_woken() -> Iterator[None]:
    """Have sleepers wait for ever, so that a wake-up that is lost hangs its test."""
    with pytest.MonkeyPatch.context() as patch:
        for naps in ("_NAP", "_FAR_NAP"):
            patch.setattr(end, naps, {"put": 1000.0, "take": 1000.0})
        yield


@pytest.fixture(autouse=True, scope="session")
def _apart() -> Iterator[None]:
    """Have ranks share no memory, and each think that others are on another node, if that is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("MPIEXECUTOR_TEST_APART"):
            patch.setattr(window, "on_one_node", lambda _: False)
            patch.setattr(_agreement, "node_name", lambda: f"node {_COMM.rank % 2}")
        yield


@pytest.fixture(autouse=True)
def _together(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begin and end the test on all ranks together; a rank that does not come to its end in time aborts the job."""
    _COMM.Barrier()
    ended = threading.Event()
    limit = float(request.config.getini("faulthandler_timeout") or 0)
    if limit:
        watchdog = threading.Thread(target=_watch, args=(ended, limit + _GRACE, request.node.nodeid), daemon=True)
        watchdog.start()
    yield
    _COMM.Barrier()
    ended.set()


def _watch(ended: threading.Event, limit: float, test: str) -> None:
    if not ended.wait(limit):
        _abort(f"{test} has not ended within {limit} s", "see the stacks of all ranks")


def _abort(headline: str, text: str) -> None:
    sys.stdout.flush()
    lines = [f"rank {_COMM.rank} of {_COMM.size}: {headline}", *text.rstrip().splitlines()]
    os.write(2, ("\n".join(lines) + "\n").encode())
    time.sleep(_GRACE)
    _COMM.Abort(1)


@pytest.fixture
def comm() -> MPI.Intracomm:
    return _COMM


@pytest.fixture
def rank() -> int:
    return _COMM.rank


@pytest.fixture
def size() -> int:
    return _COMM.size

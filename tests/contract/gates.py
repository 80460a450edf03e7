"""What the contract's tests have in common, and what the workers import, too.

A test and the calls it has submitted signal to each other through files: whatever rank a call is run by, it can see them.
"""

import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mpiexecutor import RMAChannelExecutor

LIMIT = 60  # seconds that anything here may take: less than a test may


@dataclass(frozen=True)
class Gate:
    """Where calls wait until the test lets them go on."""

    folder: Path

    def wait(self, value: Any = None) -> Any:
        """Arrive at the gate, wait until it is open, and return the value: this is what a worker runs."""
        (self.folder / f"arrived-{uuid.uuid4()}").touch()
        until((self.folder / "open").exists)
        return value

    def open(self) -> None:
        """Let everybody through, from now on."""
        (self.folder / "open").touch()

    @property
    def arrived(self) -> int:
        """How many calls have come to the gate so far."""
        return len(list(self.folder.glob("arrived-*")))

    def until_arrived(self, calls: int) -> None:
        """Wait until so many calls have come to the gate."""
        until(lambda: self.arrived >= calls)


def until(condition: Callable[[], object]) -> None:
    """Look until the condition holds."""
    since = time.monotonic()
    while not condition():
        if time.monotonic() - since > LIMIT:
            raise TimeoutError(f"not within {LIMIT} s: {condition}")
        time.sleep(0.001)


def executor_of(*args: Any, **kwargs: Any) -> RMAChannelExecutor:
    """Make an executor; in a job of one rank it warns, as it should. MPIEXECUTOR_TEST_ISOLATED: its calls are isolated."""
    from mpi4py import MPI

    if "MPIEXECUTOR_TEST_ISOLATED" in os.environ:
        kwargs.setdefault("isolate", True)
    if kwargs.get("comm", MPI.COMM_WORLD).size > 1:
        return RMAChannelExecutor(*args, **kwargs)
    with pytest.warns(RuntimeWarning, match="this job has one rank"):
        return RMAChannelExecutor(*args, **kwargs)


def occupy(executor: RMAChannelExecutor, gate: Gate) -> list[Future[Any]]:
    """Keep all workers at the gate, with so many calls waiting there that further ones stay pending on the root."""
    futures = [executor.submit(gate.wait, number) for number in range(3 * executor.num_workers)]
    gate.until_arrived(executor.num_workers)
    return futures


def identity(value: Any) -> Any:
    return value


def square(number: int) -> int:
    return number * number


def pid_of(_: object = None) -> int:
    return os.getpid()


def touch(path: Path) -> None:
    path.touch()

"""Tests of the executor that run on the root of a job while the other ranks serve, however that was started:

    mpiexec -n 3 python -m mpiexecutor -m pytest tests/contract
    MPIEXECUTOR_MAX_WORKERS=2 MPIEXECUTOR_TEST_CONTRACT=1 python -m pytest tests/contract

They are true for any number of ranks. What they submit are functions of theirs, which the workers import from here.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gates import Gate, executor_of

from mpiexecutor import RMAChannelExecutor

# Process managers set one of these for each rank. Else pytest is to have workers of its own only if it runs nothing but this.
if not {"PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MPIEXECUTOR_TEST_CONTRACT"} & os.environ.keys():
    collect_ignore_glob = ["test_*.py"]


def pytest_configure() -> None:
    """Start the workers, if that was not done: an executor does so, before any test module imports MPI."""
    if "MPIEXECUTOR_TEST_CONTRACT" in os.environ:
        RMAChannelExecutor().shutdown()


@pytest.fixture
def executor() -> Iterator[RMAChannelExecutor]:
    with executor_of() as executor:
        yield executor


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Yield a gate, open at the latest when the test has ended."""
    folder = tmp_path / "gate"
    folder.mkdir()
    gate = Gate(folder)
    yield gate
    gate.open()


@pytest.fixture
def ranks() -> int:
    """How many ranks the job has."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.size

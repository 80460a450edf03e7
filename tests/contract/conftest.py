"""Tests of the executor that run on the root of a job while the other ranks serve:

    mpiexec -n 3 python -m mpiexecutor -m pytest tests/contract

They are true for any number of ranks. What they submit are functions of theirs, which the workers import from here.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gates import Gate, executor_of

from mpiexecutor import RMAChannelExecutor

# They run inside a job only: process managers set one of these for each rank.
if not {"PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"} & os.environ.keys():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def executor() -> Iterator[RMAChannelExecutor]:
    with executor_of() as executor:
        yield executor


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Give a gate, open at the latest when the test has ended."""
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

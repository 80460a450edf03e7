"""The executor's contract, on the root of jobs of several sizes: what is claimed is in tests/contract."""

import re
from pathlib import Path

import pytest
from jobs import run_job

CONTRACT = Path(__file__).parent / "contract"
_DEADLINE = 40  # seconds that one of the contract's tests may take before the root prints its stacks

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_keeps_its_contract(request, report, ranks):
    """Every claim of tests/contract holds with one rank alone, and with one, two and four workers."""
    options = ["-q", "--color=no", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={_DEADLINE}", "-o", "timeout=0"]
    job = run_job(
        ranks, ["-m", "mpiexecutor", "-m", "pytest", *options, "-c", str(request.config.inipath), str(CONTRACT)], deadline=240
    )
    summary = re.search(r"^(\d+ passed.*?) in ", job.stdout, re.MULTILINE)
    assert summary is not None, f"the root has printed no summary:\n{job}"
    report(f"{'contract':32} {ranks} ranks: {summary[1]} in {job.duration:.1f} s")

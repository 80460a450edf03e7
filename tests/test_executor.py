"""The executor's contract, on the root of jobs of several sizes: what is claimed is in tests/contract."""

import pytest

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_keeps_its_contract(keep_contract, ranks):
    """Every claim of tests/contract holds with one rank alone, and with one, two and four workers."""
    keep_contract(ranks)

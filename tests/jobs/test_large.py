"""No limit of 2 GiB anywhere: takes some 10 GB of memory, so it runs when asked for with -m slow."""

import pytest
from jobs import run_job

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

LARGE = """
import numpy as np
from mpiexecutor import RMAChannelExecutor

SIZE = 3_000_000_000

def total(values):
    return int(values[0]) + int(values[-1]) + int(values[SIZE // 2]), values.nbytes

def many():
    values = np.zeros(SIZE, dtype="u1")
    values[0], values[-1], values[SIZE // 2] = 1, 2, 3
    return values

def text():
    return b"x" * SIZE

with RMAChannelExecutor(max_workers=1) as executor:
    {what}
"""


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("print(executor.submit(total, many()).result())", "(6, 3000000000)"),
        ("print(total(executor.submit(many).result()))", "(6, 3000000000)"),
        ("data = executor.submit(text).result(); print(len(data), data[-1])", "3000000000 120"),
    ],
    ids=["array as argument", "array as result", "bytes as result"],
)
def test_three_gigabytes_are_carried(what, expected):
    """As an argument and as a result, beside the pickle and inside it."""
    assert run_job(None, ["-c", LARGE.format(what=what)], deadline=240).stdout.strip() == expected

"""The seconds that the package waits: what the README says, and what tests may make of them."""

import os
import subprocess
import sys

import pytest

from mpiexecutor._util import seconds


def test_the_seconds_are_those_of_the_readme():
    """A worker that is stopped is killed 13 s after the end, and an mpiexec that waits for a lost host 10 s after it."""
    assert (seconds.PATIENCE + seconds.LATE, seconds.WAITING) == (13, 10)


def test_the_living_have_come_to_a_rest_before_this_process_is_called_stuck():
    """Else a death would end what it need not."""
    assert seconds.REST < seconds.WEDGED


@pytest.mark.parametrize(("scale", "pulse"), [(None, 1.0), ("0.25", 0.25)])
def test_all_of_them_are_scaled_together_by_a_variable_of_the_tests(scale, pulse):
    """Each of them, by the same number."""
    names = [name for name in vars(seconds) if name.isupper() and not name.startswith(("_", "SCALE"))]
    env = {name: value for name, value in os.environ.items() if name != seconds.SCALE_VARIABLE}
    if scale is not None:
        env[seconds.SCALE_VARIABLE] = scale
    code = f"from mpiexecutor._util import seconds; print(*[getattr(seconds, name) for name in {names}])"
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60).stdout
    assert [*map(float, said.split())] == [pulse * getattr(seconds, name) for name in names]

"""What unit tests of `_script` share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from script_pair import Pair, own_main

from mpiexecutor._script.state import Origin


@pytest.fixture(params=list(Origin), ids=lambda origin: origin.name.lower())
def origin(request: pytest.FixtureRequest) -> Origin:
    """Return where workers have their `__main__` from: each of the three, unless a test says which."""
    found = request.param
    assert isinstance(found, Origin)
    return found


@pytest.fixture
def pair(origin: Origin, tmp_path: Path) -> Iterator[Callable[[str], Pair]]:
    """Yield a way to make a script and its workers; see script_pair.py."""
    with ExitStack() as stack:

        def make(text: str) -> Pair:
            made = Pair(text, origin, tmp_path)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def main() -> Iterator[None]:
    """Have `__main__` as it was at the end."""
    with own_main():
        yield

"""One job that shows many claims: each test adds a piece to the script, and gets what that has returned.

    @shows("return executor.submit(abs, -1).result()")
    def test_something(found):
        assert found == 1

A piece is the body of a function of `executor`, and returns what JSON can carry. What it raises is its test's failure, and no
other's. The fixture that runs the job is for a whole module; with SHARED at the beginning of its parameter's id one process runs
all its tests, where pytest-xdist runs several.
"""

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

Test = TypeVar("Test", bound=Callable[..., object])

SHARED = "one job: "
_FILE = "found"  # in the folder that is the script's first argument: a line for each piece
_RUN = """
def run_pieces(executor):
    import json, pathlib, sys, traceback
    with pathlib.Path(sys.argv[1], {file!r}).open("w") as file:
        for piece in [{names}]:
            try:
                found = {{"value": piece(executor)}}
            except BaseException:
                found = {{"error": traceback.format_exc()}}
            file.write(json.dumps([piece.__name__, found]) + "\\n")
            file.flush()
"""


def shows(piece: str) -> Callable[[Test], Test]:
    """Have a piece run for a test."""

    def add(test: Test) -> Test:
        vars(test)["piece"] = textwrap.dedent(piece)
        return test

    return add


def script_of(module: ModuleType, head: str, body: str) -> str:
    """Write the script: its head, the pieces of a module's tests, and a body that calls ``run_pieces(executor)``."""
    pieces = dict(_pieces_of(module))
    functions = [f"def {name}(executor):\n{textwrap.indent(piece.strip(), '    ')}\n" for name, piece in pieces.items()]
    return "\n".join([head, *functions, _RUN.format(file=_FILE, names=", ".join(pieces)), body])


def found_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what the pieces have returned, or raised."""
    file = folder / _FILE
    return dict(json.loads(line) for line in file.read_text().splitlines()) if file.exists() else {}


def value_of(found: dict[str, dict[str, Any]], test: str) -> Any:
    """Return what a test's piece has returned; AssertionError if it raised something, or was not come to."""
    assert test in found, f"the job has not come to this piece, but to {[*found]}"
    assert "error" not in found[test], found[test]["error"]
    return found[test]["value"]


def _pieces_of(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, test in vars(module).items():
        if hasattr(test, "piece"):
            yield name, test.piece

"""Measure with one MPI after another, and write what was found into README.md.

    python examples/benchmark/update.py [PYTHON ...] [-- OPTION ...]

Each PYTHON is the interpreter of an environment with one MPI and the extra `bench`; each OPTION is one of the benchmark's. What was
found is kept in results/. Without any PYTHON the tables are written anew from what is there.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contenders import HERE
from report import number

README, RESULTS = HERE / "README.md", HERE / "results"
_REACHED = {True: "yes", False: "no", None: ""}


def main() -> None:
    """Measure what is asked for, then write the tables."""
    separator = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    for python in sys.argv[1:separator]:
        measure(python, sys.argv[separator + 1 :])
    README.write_text(updated(README.read_text()))


def measure(python: str, options: list[str]) -> None:
    """Run the benchmark and the budget with an interpreter, and keep what they find, with other shapes that the same commit has."""
    with tempfile.TemporaryDirectory() as folder:
        shapes, budget = Path(folder, "shapes.json"), Path(folder, "budget.json")
        subprocess.run([python, str(HERE), "--json", str(shapes), *options], check=False)  # its status says that a contender failed
        subprocess.run([python, str(HERE / "budget.py"), "--json", str(budget)], check=True)
        found = {**json.loads(shapes.read_text()), "budget": json.loads(budget.read_text())}
    name = found["mpi"].rpartition(" ")[0].replace(" ", "-").lower()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    before = json.loads(file.read_text()) if file.exists() else found
    if before["from"]["commit"] == found["from"]["commit"]:
        found["shapes"] = {**before["shapes"], **found["shapes"]}
    file.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def updated(readme: str) -> str:
    """Return the README with its tables written anew, between the marks that it has for them."""
    order = {"MPICH": 0, "Open": 1, "Intel": 2}
    results = [json.loads(file.read_text()) for file in RESULTS.glob("*.json")]
    results.sort(key=lambda result: order.get(result["mpi"].split()[0], len(order)))
    return between(between(readme, "shapes", shapes_table(results)), "budget", budget_table(results))


def between(text: str, mark: str, lines: Iterator[str]) -> str:
    """Replace what is between two marks."""
    new = "\n".join((f"<!-- {mark} -->", *lines, f"<!-- /{mark} -->"))
    return re.sub(f"<!-- {mark} -->.*<!-- /{mark} -->", lambda _: new, text, flags=re.DOTALL)


def shapes_table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the figures of all MPIs side by side, and where they come from."""
    for result in results:
        source = result["from"]
        versions = f"commit {source['commit']}, Python {source['Python']}, {source['packages']}"
        yield f"- {result['mpi']}: {versions}; {source['processor']}"
    yield ""
    yield f"| shape | who | goal | {' | '.join(result['mpi'] for result in results)} |"
    yield "|---" * (3 + len(results)) + "|"
    before = None
    for shape, figure, who in rows(results):
        found = [row_of(result, shape, figure, who) for result in results]
        goals = next((row["goals"] for row in found if row and row["goals"]), [])
        unit = next(result["shapes"][shape]["figures"][figure]["unit"] for result in results if shape in result["shapes"])
        title = f"{shape}: {figure}, {unit}" if (shape, figure) != before else ""
        before = shape, figure
        yield f"| {title} | {who} | {'; '.join(goal['goal'] for goal in goals)} | {' | '.join(map(cell, found))} |"


def rows(results: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield each shape, figure and contender that any result has, once."""
    seen = {}
    for result in results:
        for shape, data in result["shapes"].items():
            for figure, part in data["figures"].items():
                seen.update(dict.fromkeys((shape, figure, row["who"]) for row in part["rows"]))
    order = {shape: index for index, shape in enumerate(dict.fromkeys(shape for shape, _, _ in seen))}
    yield from sorted(seen, key=lambda row: order[row[0]])  # stable: figures and contenders stay in their order


def row_of(result: dict[str, Any], shape: str, figure: str, who: str) -> dict[str, Any] | None:
    """Return what a result has there."""
    part = result["shapes"].get(shape, {"figures": {}})["figures"].get(figure, {"rows": []})
    return next((row for row in part["rows"] if row["who"] == who), None)


def cell(row: dict[str, Any] | None) -> str:
    """Show a figure; beside it, how many times theirs ours is, and whether that reaches the goal."""
    if row is None:
        return "-"
    ratio = f" ({number(row['ours to theirs'])}x)" if "ours to theirs" in row else ""
    reached = ", ".join(f"**{_REACHED[goal['reached']]}**" for goal in row["goals"] if goal["reached"] is not None)
    return f"{number(row['median'])}{ratio} {reached}".strip()


def budget_table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the budgets of all MPIs side by side; the limits are those of the first."""
    yield f"| where | what | {' | '.join(result['mpi'] for result in results)} | limit | which is |"
    yield "|---" * (4 + len(results)) + "|"
    for parts in zip(*(result["budget"] for result in results)):
        figures = " | ".join(number(part["us"]) for part in parts)
        limit = "" if parts[0]["limit"] is None else number(parts[0]["limit"])
        yield f"| {parts[0]['where']} | {parts[0]['what']} | {figures} | {limit} | {parts[0]['why']} |"


if __name__ == "__main__":
    main()

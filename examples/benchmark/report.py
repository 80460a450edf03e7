"""What was found: our figures beside those of others, the goals, as a table and as a plot."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from contenders import CHANNEL, OURS
from goals import SHAPES, Figure, Goal

# A goal is for MPICH; the others are to come so near.
_ELSEWHERE = 0.7
_WIDTHS = (18, 15, 31, 19, 11, 38, 7)


def label(name: str, workers: int | None) -> str:
    """Name a contender that takes part a second time, with another number of workers."""
    return name if workers is None else f"{name}, {workers} workers"


def ourselves(name: str) -> str:
    """Return the contender whose goals these are."""
    shape = SHAPES[name]
    return label(CHANNEL if shape.kind == "channel" else OURS, shape.workers[-1] if len(shape.workers) > 1 else None)


# -- comparing ---------------------------------------------------------------------------------------------------------------------


def compared(name: str, runs: dict[str, list[dict[str, float]]], failed: dict[str, str], mpi: str | None) -> dict[str, Any]:
    """Make what a shape's runs come to: for each figure, for each contender, the median, the ratio, the goal."""
    ours = ourselves(name)
    shape = SHAPES[name]
    figures = {}
    for figure_name, figure in shape.figures.items():
        rows = []
        for who in sorted(runs, key=lambda who: who != ours):  # ourselves first
            found = [run[figure_name] for run in runs[who] if figure_name in run]
            if found:
                row: dict[str, Any] = {"who": who, "median": median(found), "runs": found}
                if who != ours and (ratio := _ratio(runs, ours, figure_name, who, figure_name)) is not None:
                    row["ours to theirs"] = ratio
                goals = [goal for goal in figure.goals if _beside(goal, ours) == who]
                row["goals"] = [_judged(goal, figure, figure_name, runs, ours, mpi) for goal in goals]
                rows.append(row)
        figures[figure_name] = {"unit": figure.unit, "more is better": figure.more, "rows": rows}
    return {"shows": shape.doc, "figures": figures, "failed": failed}


def _beside(goal: Goal, ours: str) -> str:
    """Return the contender in whose row the goal is shown."""
    return ours if goal.of is None or goal.figure is not None else goal.of


def _ratio(runs, ours: str, figure: str, theirs: str, their_figure: str) -> float | None:
    """Return the median of our figure to theirs, turn by turn; None if there is no turn that has both."""
    pairs = zip(runs.get(ours, ()), runs.get(theirs, ()))
    ratios = [own[figure] / other[their_figure] for own, other in pairs if figure in own and other.get(their_figure)]
    return median(ratios) if ratios else None


def _judged(goal: Goal, figure: Figure, name: str, runs, ours: str, mpi: str | None) -> dict[str, Any]:
    if goal.absolute:
        own = [run[name] for run in runs.get(ours, ()) if name in run]
        found = median(own) if own else None
    else:
        found = _ratio(runs, ours, name, goal.of or ours, goal.figure or name)
    times = f"{goal.times:,g}" + (f" {figure.unit}" if goal.absolute else "x")
    text = " ".join(filter(None, ("at least" if figure.more else "at most", times, goal.of, goal.figure)))
    return {"goal": text, "found": found, "reached": None if found is None else _reached(goal, found, mpi, more=figure.more)}


def _reached(goal: Goal, found: float, mpi: str | None, *, more: bool) -> bool:
    share = 1 if mpi is None or mpi.startswith("MPICH") else _ELSEWHERE
    return found >= goal.times * share if more else found <= goal.times / share


# -- the table ---------------------------------------------------------------------------------------------------------------------


def heading(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines above the table."""
    for name, value in result["from"].items():
        yield f"{name}: {value}"
    if result["not installed"]:
        yield f"not installed: {', '.join(result['not installed'])}"
    if result["options"]["quick"]:
        yield "--quick: no figure means anything"
    yield ""
    yield _line("shape", "figure", "who", "median", "ours/theirs", "goal", "reached")
    yield _line(*("-" * width for width in _WIDTHS))


def table(name: str, shape: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a shape, in Markdown."""
    for figure_name, figure in shape["figures"].items():
        for row in figure["rows"]:
            ratio = row.get("ours to theirs")
            goals = row["goals"] or [{"goal": "", "reached": None}]
            for goal in goals:
                yield _line(
                    name,
                    f"{figure_name}",
                    row["who"],
                    f"{number(row['median'])} {figure['unit']}",
                    "" if ratio is None else f"{number(ratio)}x",
                    goal["goal"],
                    {True: "yes", False: "no", None: ""}[goal["reached"]],
                )
    for who in shape["failed"]:
        yield _line(name, "", who, "failed", "", "", "")


def number(value: float) -> str:
    """Write a number with about three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(cells, _WIDTHS)) + " |"


# -- the plot ----------------------------------------------------------------------------------------------------------------------


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw how many times as good as ours the others' figures are, one line a figure."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = [(name, figure, data) for name, shape in result["shapes"].items() for figure, data in shape["figures"].items()]
    names = [f"{name}: {figure} ({data['unit']})" for name, figure, data in lines]
    points: dict[str, tuple[list[float], list[int]]] = {}
    for height, (_, _, data) in enumerate(lines):
        for row in data["rows"]:
            if (ratio := row.get("ours to theirs", 1 if row is data["rows"][0] else 0)) > 0:
                horizontal, vertical = points.setdefault(row["who"], ([], []))
                horizontal.append(1 / ratio if data["more is better"] else ratio)
                vertical.append(height)
    figure, axes = pyplot.subplots(figsize=(11, 2 + 0.35 * len(lines)), layout="constrained")
    for who, (horizontal, vertical) in points.items():
        axes.scatter(horizontal, vertical, label=who)
    axes.set(xscale="log", xlabel="times as good as ours", yticks=range(len(lines)), yticklabels=names)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{result['mpi']}, commit {result['from']['commit']}")
    figure.savefig(file)

"""Measure mpiexecutor beside others: the same shapes for each, one after another, several times over.

    python examples/benchmark [--shape NAME ...] [--peer NAME ...] [--json FILE] [--plot FILE]

The contenders take turns at a shape, A B C A B C, while the others are stopped, so that what else goes on in the machine hits all
alike. Only ratios mean anything: each is the median of those within a turn.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import machine
import report
from contenders import CONTENDERS, OUR_OWN, Contender
from entrant import Entrant, EntrantError
from goals import SHAPES, Shape

_QUICK_WORKERS = 4  # at most


def main() -> None:
    """Run the shapes, show the table, and write what was asked for."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as after Ctrl-C, nothing is left behind
    result = {
        "from": machine.describe(),
        "options": {"workers": options.workers, "repeat": options.repeat, "quick": options.quick},
        "not installed": [contender.name for contender in CONTENDERS if not contender.installed],
        "shapes": {},
    }
    for line in report.heading(result):
        print(line)
    with Field(options.hosts) as field:
        for name in options.shapes:
            runs, failed = _measure(name, field, options)
            result["shapes"][name] = report.compared(name, runs, failed, field.mpi)
            for line in report.table(name, result["shapes"][name]):
                print(line, flush=True)
        result["mpi"] = field.mpi
    print(f"\nMPI: {result['mpi']}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if options.plot:
        report.plot(result, options.plot)
    sys.exit(any(shape["failed"] for shape in result["shapes"].values()))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python examples/benchmark", description=__doc__.splitlines()[0])
    peers = [contender.name for contender in CONTENDERS if contender.name not in OUR_OWN]
    parser.add_argument("--shape", nargs="+", choices=SHAPES, metavar="NAME", help=f"only these: {', '.join(SHAPES)}")
    parser.add_argument("--peer", nargs="*", choices=peers, metavar="NAME", help=f"only these others: {', '.join(peers)}")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="turns of each (%(default)s)")
    parser.add_argument("--patience", type=float, default=30, metavar="SECONDS", help="after which there are no more (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of each executor (%(default)s)")
    parser.add_argument("--large", action="store_true", help="also what takes 10 GiB of memory, or some minutes")
    parser.add_argument("--hosts", metavar="COMMAND", help="also on several hosts, by '{mpiexec} ... -n {ranks}'")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that all of it works: no figure means anything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it (PNG, SVG or PDF, by the name)")
    options = parser.parse_args()
    far = [name for name in options.shape or () if SHAPES[name].kind == "hosts"]
    if far and options.hosts is None:
        parser.error(f"{far[0]} needs --hosts")
    options.shapes = options.shape or [name for name, shape in SHAPES.items() if _is_usual(shape, options)]
    return options


def _is_usual(shape: Shape, options: argparse.Namespace) -> bool:
    """Whether a shape is run without being named."""
    return (options.large or not shape.large) and (options.hosts is not None or shape.kind != "hosts")


class Field:
    """The contenders that are running."""

    def __init__(self, hosts: str | None):
        self._hosts = hosts
        self._entrants: dict[tuple[str, int, bool], Entrant] = {}
        self.mpi: str | None = None  # which MPI they say that they run on

    def entrant(self, contender: Contender, workers: int, *, far: bool) -> Entrant:
        """Return a contender, started if it is not running; with `far`, on several hosts."""
        key = contender.name, workers, far
        if key not in self._entrants:
            self._entrants[key] = Entrant(contender, workers, self._hosts if far else None)
            self.mpi = self.mpi or self._entrants[key].mpi
        return self._entrants[key]

    def keep(self, wanted) -> None:
        """End all others."""
        keys = [(contender.name, workers, far) for contender, workers, far in wanted]
        for key in [key for key in self._entrants if key not in keys]:
            self._entrants.pop(key).end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_):
        """End all; after Ctrl-C, or an error, by force."""
        while self._entrants:
            self._entrants.popitem()[1].end(by_force=kind is not None)


def _measure(name: str, field: Field, options: argparse.Namespace):
    """Have all contenders run a shape in turn; return the figures of each turn, and the errors, by contender."""
    shape = SHAPES[name]
    places = dict(_line_up(shape, options))
    runs: dict[str, list[dict[str, float]]] = {}
    failed: dict[str, str] = {}
    spent = dict.fromkeys(places, 0.0)
    field.keep(() if shape.once else places.values())
    for _ in range(1 if shape.once else options.repeat):
        for label, (contender, workers, far) in places.items():
            if label in failed or spent[label] > options.patience:
                continue
            try:
                entrant = field.entrant(contender, workers, far=far)
                began = time.monotonic()
                runs.setdefault(label, []).append(entrant.run(name, tiny=options.quick))
                spent[label] += time.monotonic() - began
            except EntrantError as error:
                failed[label] = str(error)
                print(f"{name}: {label} {error}", file=sys.stderr)
                field.keep(place for other, place in places.items() if other != label)
    return runs, failed


def _line_up(shape: Shape, options: argparse.Namespace) -> Iterator[tuple[str, tuple[Contender, int, bool]]]:
    """Yield the participants: the name of each, the contender, its workers, whether they are far."""
    far = shape.kind == "hosts"
    for index, workers in enumerate(shape.workers):
        count = workers or options.workers
        for contender in CONTENDERS:
            chosen = contender.name in OUR_OWN or options.peer is None or contender.name in options.peer
            if chosen and contender.installed and shape.admits(contender):
                label = report.label(contender.name, workers if index else None)
                yield label, (contender, min(count, _QUICK_WORKERS) if options.quick else count, far)


if __name__ == "__main__":
    main()

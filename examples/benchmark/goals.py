"""All shapes: what each finds, who takes part, and the goals for our own figures.

The goals are those for MPICH and two workers on two cores.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import channels
import shapes
from contenders import FUTURES_AT_BEST, LOKY, OURS, PROCESSES, QUEUE, SEED, THREADS


@dataclass(frozen=True, slots=True)
class Goal:
    """What our figure is to be: so many times another one, or so much."""

    times: float
    of: str | None = None  # a contender; None: ourselves
    figure: str | None = None  # another one; None: the same

    @property
    def absolute(self):
        """Whether `times` is the figure itself."""
        return self.of is None and self.figure is None


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that a shape finds out."""

    unit: str
    more: bool  # more is better: a goal is a least figure; else a most
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape: its function, its figures, and its participants."""

    run: Callable[..., dict[str, float]]
    figures: Mapping[str, Figure]
    quick: Mapping[str, float]  # the arguments that make it tiny: for tests, and to warm up
    full: Mapping[str, float] = field(default_factory=dict)  # those that make it what it is, if not by default
    kind: str = "executor"  # of contenders
    only: tuple[str, ...] = ()  # of these, if not all
    workers: tuple[int | None, ...] = (None,)  # how many; None: as asked for
    once: bool = False  # memory that was used before is used again: a second run in the same process would find less
    large: bool = False  # left out unless asked for

    @property
    def doc(self):
        """Say what it shows."""
        return " ".join((self.run.__doc__ or "").split())

    def admits(self, contender):
        """Whether a contender can take part."""
        if self.only:
            return contender.name in self.only
        if self.kind == "hosts":
            return contender.kind == "executor" and contender.start != "alone"
        return contender.kind == self.kind


def rate(*goals, unit="calls/s"):
    return Figure(unit, True, goals)


def at_most(unit, *goals):
    return Figure(unit, False, goals)


_MANY = Goal(8, PROCESSES), Goal(20, FUTURES_AT_BEST), Goal(1, THREADS)
_ALONE = (OURS, THREADS, PROCESSES)
_CHANNEL_SPREAD = rate(Goal(0.7, figure="1 to 1"), unit="messages/s")

SHAPES: dict[str, Shape] = {
    "calls": Shape(shapes.calls, {"rate": rate(*_MANY)}, {"n": 50}),
    "map": Shape(shapes.map_calls, {"rate": rate(*_MANY)}, {"n": 50}),
    "one-call": Shape(shapes.one_call, {"time": at_most("us", Goal(0.4, PROCESSES), Goal(1, THREADS))}, {"n": 5}),
    "one-call-busy": Shape(
        shapes.busy(shapes.one_call), {"time": at_most("us", Goal(1, PROCESSES))}, {"n": 2}, only=(OURS, PROCESSES)
    ),
    "map-of-8": Shape(shapes.map_of_8, {"time": at_most("us", Goal(0.4, PROCESSES))}, {"n": 2}),
    "map-of-8-busy": Shape(
        shapes.busy(shapes.map_of_8), {"time": at_most("us", Goal(1, PROCESSES))}, {"n": 2}, only=(OURS, PROCESSES)
    ),
    "long-map": Shape(
        shapes.long_map,
        {"rate": rate(Goal(5, THREADS), Goal(0.5, PROCESSES, "best chunksize")), "best chunksize": rate()},
        {"n": 100},
        only=_ALONE,
    ),
    "computing": Shape(
        shapes.computing,
        {"time": at_most("s", Goal(0.95, PROCESSES)), "processor time": at_most("s", Goal(1, PROCESSES))},
        {"n": 10},
        only=(OURS, PROCESSES),
    ),
    "computing-busy": Shape(
        shapes.busy(shapes.computing), {"time": at_most("s", Goal(1, PROCESSES))}, {"n": 10}, only=(OURS, PROCESSES)
    ),
    "computing-short": Shape(
        shapes.computing,
        {"time": at_most("s", Goal(0.45, PROCESSES)), "processor time": at_most("s", Goal(1, PROCESSES))},
        {"n": 10, "seconds": 0.0001},
        {"n": 4000, "seconds": 0.0001},
        only=(OURS, PROCESSES),
    ),
    "after-idleness": Shape(shapes.after_idleness, {"time": at_most("us", Goal(0.8, PROCESSES))}, {"n": 1, "seconds": 0.01}),
    "after-work": Shape(shapes.after_work, {"time": at_most("us", Goal(0.8, PROCESSES))}, {"n": 2}),
    "after-work-busy": Shape(
        shapes.busy(shapes.after_work), {"time": at_most("us", Goal(1, PROCESSES))}, {"n": 2}, only=(OURS, PROCESSES)
    ),
    "array": Shape(
        shapes.array, {"16 MiB": rate(Goal(6, PROCESSES), Goal(1 / 0.7, FUTURES_AT_BEST), unit="MiB/s")}, {"n": 1, "mib": 1}
    ),
    "common-array": Shape(shapes.common_array, {"rate": rate(Goal(10, PROCESSES))}, {"n": 4, "mib": 1}),
    "uneven": Shape(shapes.uneven, {"time": at_most("s", Goal(1.1, PROCESSES))}, {"short": 4, "long": 1, "long_seconds": 0.01}),
    "suddenly-long": Shape(
        shapes.suddenly_long, {"time": at_most("s", Goal(1.1, PROCESSES))}, {"n": 50, "long": 2, "seconds": 0.01}
    ),
    "busy-root": Shape(shapes.busy_root, {"rate": rate(Goal(3, PROCESSES))}, {"n": 50}),
    "idle": Shape(
        shapes.idle,
        {"root": at_most("% of a core", Goal(1)), "worker": at_most("% of a core", Goal(0.5))},
        {"pause": 0, "seconds": 0.1},
        workers=(4,),
    ),
    "crowd": Shape(shapes.calls, {"rate": rate(Goal(0.8, OURS))}, {"n": 50}, only=(OURS, PROCESSES, LOKY), workers=(None, 32)),
    "isolated": Shape(
        shapes.isolated,
        {
            "one call": at_most("x the time", Goal(1.5)),
            "calls": rate(Goal(0.7), unit="x the rate"),
            "map": rate(Goal(0.7), unit="x the rate"),
            "array": rate(Goal(0.7), unit="x the rate"),
        },
        {"rounds": 1, "n": 5},
        only=(OURS,),
    ),
    "pending": Shape(shapes.pending, {"memory": at_most("bytes/call", Goal(1500))}, {"n": 100}, once=True),
    "million-pending": Shape(
        shapes.pending,
        {"memory": at_most("bytes/call", Goal(1500))},
        {"n": 100},
        {"n": 10**6},
        only=_ALONE,
        once=True,
        large=True,
    ),
    "large-array": Shape(
        shapes.large_array,
        {
            "16 MiB": rate(unit="MiB/s"),
            "1 GiB": rate(Goal(1, figure="16 MiB"), unit="MiB/s"),
            "root's memory": at_most("payloads", Goal(1.5)),
            "worker's memory": at_most("payloads", Goal(1.5)),
        },
        {"mib": 1, "gib": 1 / 1024},
        once=True,
        large=True,
    ),
    "endless-map": Shape(
        shapes.endless_map, {"growth": at_most("MiB", Goal(10))}, {"n": 2000}, only=(OURS,), once=True, large=True
    ),
    "channel": Shape(
        channels.streams,
        {
            "1 to 1": rate(Goal(20, SEED), Goal(0.4, QUEUE), unit="messages/s"),
            "1 to 3": _CHANNEL_SPREAD,
            "3 to 1": _CHANNEL_SPREAD,
            "2 to 2": _CHANNEL_SPREAD,
            "1 to 1, many": rate(Goal(2, QUEUE, "1 to 1"), unit="messages/s"),
        },
        {"n": 60, "many": 600},
        kind="channel",
        workers=(3,),
    ),
    "two-hosts-calls": Shape(shapes.calls, {"rate": rate(Goal(6, FUTURES_AT_BEST))}, {"n": 50}, kind="hosts"),
    "two-hosts-one-call": Shape(shapes.one_call, {"time": at_most("us", Goal(1, FUTURES_AT_BEST))}, {"n": 5}, kind="hosts"),
}

"""Wait for other ranks by checking a condition again and again, at growing intervals."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from .seconds import PATIENCE

logger = logging.getLogger("mpiexecutor")

SHORTEST: Final = 50e-6  # seconds between the first two checks
LONGEST: Final = 0.02  # seconds between two checks, later
GROWTH: Final = 1.2  # factor from one interval to the next: 1 ms after 5 ms in all, 20 ms after 0.12 s in all


def intervals(shortest: float = SHORTEST, longest: float = LONGEST) -> Iterator[float]:
    """Yield growing intervals between two checks, in seconds, without end."""
    interval = shortest
    while True:
        yield interval
        interval = min(interval * GROWTH, longest)


def wait_for_ranks(done: Callable[[], bool], complaint: Callable[[], str] | None = None, patience: float = PATIENCE) -> None:
    """Wait until `done` returns True. After `patience` seconds log a warning once, with the text that `complaint` returns."""
    since, pauses = time.monotonic(), intervals()
    while not done():
        time.sleep(next(pauses))
        if complaint is not None and time.monotonic() - since > patience:
            logger.warning(complaint())
            complaint = None

"""Waiting for other ranks by looking again and again, at growing intervals."""

import logging
import time
from collections.abc import Callable
from typing import Final

from .seconds import PATIENCE as _PATIENCE

logger = logging.getLogger("mpiexecutor")

SHORTEST: Final = 50e-6  # seconds between two looks, at first
LONGEST: Final = 0.02
GROWTH: Final = 1.2  # of each interval over the one before: 1 ms after 16, and 5 ms in all; 20 ms after 33, and 0.12 s in all


def wait_for_ranks(done: Callable[[], bool], complaint: Callable[[], str] | None = None, patience: float = _PATIENCE) -> None:
    """Wait until the other ranks have come, too; complain, once, if that takes longer than `patience`, in seconds."""
    since, pause = time.monotonic(), SHORTEST
    while not done():
        time.sleep(pause)
        pause = min(pause * GROWTH, LONGEST)
        if complaint is not None and time.monotonic() - since > patience:
            logger.warning(complaint())
            complaint = None

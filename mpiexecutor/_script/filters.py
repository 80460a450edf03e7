"""The warning filters of the script in its workers. Their categories may be classes of the script, so they are pickled."""

import logging
import warnings
from typing import Any

from .pickling import dumps, load_definitions
from .surroundings import set_filters

logger = logging.getLogger("mpiexecutor")


def dump_filters(names: set[str]) -> list[bytes]:
    """Return the pickled warning filters of this process; add the globals that they need to `names`.

    Each is pickled alone, so that one that cannot be loaded does not affect the others.
    """
    return [bytes(dumps(tuple(item), names)[0]) for item in warnings.filters]


def load_filters(pickled: list[bytes]) -> None:
    """Set the warning filters of the script. One that cannot be loaded here is logged and left out."""
    filters: list[Any] = []
    for data in pickled:
        try:
            filters.append(tuple(load_definitions(data)))
        except Exception:
            logger.exception("a warning filter of the script cannot be used in its workers")
    set_filters(filters)

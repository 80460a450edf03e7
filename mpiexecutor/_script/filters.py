"""The warning filters of the script in its workers. Their categories may be classes of any module, or of the script."""

import logging
import warnings
from typing import Any

from .pickling import dumps, load_definitions
from .surroundings import set_filters

logger = logging.getLogger("mpiexecutor")


def dump_filters(names: set[str]) -> list[bytes]:
    """Pickle the warning filters of this process one by one, as their categories may be of any module; collect needed globals."""
    return [bytes(dumps(tuple(item), names)[0]) for item in warnings.filters]


def load_filters(pickled: list[bytes]) -> None:
    """Have the warning filters of the script. One that cannot be loaded here is left out, with a word."""
    filters: list[Any] = []
    for data in pickled:
        try:
            filters.append(tuple(load_definitions(data)))
        except Exception:
            logger.exception("a warning filter of the script cannot be used in its workers")
    set_filters(filters)

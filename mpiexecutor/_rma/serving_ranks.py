"""The ranks that run calls for this one: they take part in no other collective operation, such as making a channel."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final


class ServingRanks:
    """Ranks of MPI.COMM_WORLD."""

    def __init__(self) -> None:
        self._ranks: Counter[int] = Counter()
        self._reason = ""
        self._take_part = False

    def add(self, ranks: Iterable[int], reason: str) -> None:
        """Note that these ranks serve from now on. A rank may serve in two communicators, and then is added twice.

        `reason` is the text of the error if this process then makes a channel with one of them.
        """
        self._ranks.update(ranks)
        self._reason = reason

    def remove(self, ranks: Iterable[int]) -> None:
        """Note that these ranks have stopped serving."""
        self._ranks.subtract(ranks)

    @contextlib.contextmanager
    def take_part(self) -> Iterator[None]:
        """Have them take part: they make with this rank the channels that connect them."""
        self._take_part = True
        try:
            yield
        finally:
            self._take_part = False

    def check(self, ranks: Callable[[], Iterable[int]]) -> None:
        """Raise RuntimeError if one of these ranks serves: it would not take part in making a channel."""
        if self._ranks and not self._take_part and any(self._ranks[rank] > 0 for rank in ranks()):
            raise RuntimeError(self._reason)


SERVING_RANKS: Final = ServingRanks()  # of this process

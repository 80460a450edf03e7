"""The interface between the ring, which knows no MPI, and the memory that it lies in."""

import errno
import mmap
from collections.abc import Sequence
from typing import Final, Protocol

WORD: Final = 8  # bytes


class Memory(Protocol):
    """A handle on memory that several parties share. One handle serves one thread at a time.

    Offsets are in bytes. A word is eight bytes, signed, aligned to eight.

    Order. Between two calls of ``flush`` the effects of ``read``, ``store``, ``write`` and ``store_once`` come in any order; after
    it they are complete, and seen by every party. ``load`` and ``fetch`` are complete when they return, and come in the order in
    which they are called; when ``fetch`` returns, all calls before it are complete, too.

    How often a word is set. Until the next flush ``store`` and ``write`` may set a word more than once: a copy does, that of the C
    library for one, where the pieces that it moves overlap. Another party that sees the word, and sets it in turn, may then find
    its own overwritten. So they are for words that one party alone sets, and for bytes that no other party looks at before that
    flush. For all other words there is ``store_once``. (A sleeper's byte is set by itself and by its waker, which notifies it after
    the flush: to set it twice does no harm.)
    """

    def load(self, at: int) -> int:
        """Return the word at `at`."""

    def fetch(self, at: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `at` on; each word of them is of some moment during the call."""

    def read(self, at: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `at` on, by the next flush."""

    def store(self, at: int, word: int) -> None:
        """Set the word at `at`, by the next flush."""

    def store_once(self, at: int, olds: Sequence[int], words: Sequence[int]) -> None:
        """Set the words from `at` on, once each, by the next flush.

        They are `olds` now, and no other party sets one of them before it sees the new word.
        """

    def write(self, at: int, data: memoryview) -> None:
        """Copy `data` to `at`, by the next flush; until then it must not change."""

    def compare_swap(self, at: int, expected: int, word: int) -> int:
        """Set the word at `at` if it is `expected`, in one atomic step, and return what it was. It is a flush of its own."""

    def allocate(self, size: int) -> memoryview:
        """Return memory of this party's own to read into, not cleared. MemoryError if there is none."""

    def flush(self) -> None:
        """Complete all calls so far: a full fence between what comes before and what comes after."""


def mapped(file: int, size: int, **options: int) -> mmap.mmap:
    """Map a file, or fresh pages if its descriptor is -1. MemoryError if there is no room."""
    try:
        return mmap.mmap(file, size, **options)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"there is no room for {size} bytes") from error

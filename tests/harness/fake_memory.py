"""Shared memory as weak as the protocol allows, and a turnstile that says which party moves: races without luck.

A `Turnstile` runs each party in a thread of its own, and lets one of them run at a time. It changes hands only where a party
touches the memory. A *schedule*, a few bytes that Hypothesis draws, says which party is next: the same bytes give the same run.

A `FakeMemory` is one party's handle. What was asked for between two flushes happens at the later one, a word at a time, in an
order that is drawn, too, and some of it twice, as it may be; others may move between any two words.
"""

import sys
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

WORD = 8

# How many steps a party goes on for, by the upper three bits of a byte of the schedule: mostly short, sometimes a whole operation.
_RUNS = (1, 1, 2, 3, 5, 8, 16, 48)
_TAIL_RUN = 5  # once the schedule is used up, each has a turn
_MOST_STEPS = 200_000
_MOST_WAITS = 500


class Stuck(AssertionError):
    """The parties did not come to an end: a livelock, or a wake-up that no party can send."""


class _Abandoned(BaseException):
    """Another party has failed: this one is to end."""


class Death(BaseException):
    """This party's rank is dead: it never touches the memory again."""


class Life:
    """How long a rank lives, with all its handles together: so many steps after so many swaps, won or in vain; None: for ever."""

    def __init__(self, swaps: int | None = None, steps: int = 0) -> None:
        self._swaps = swaps
        self._steps = steps

    def step(self) -> None:
        if self._swaps is not None and self._swaps <= 0:
            self._steps -= 1
            if self._steps < 0:
                raise Death

    def swap(self) -> None:
        if self._swaps is not None:
            self._swaps -= 1


class Turnstile:
    """Lets one party take the next step, by a schedule."""

    def __init__(self, schedule: bytes = b"", orders: bytes = b"") -> None:
        self._schedule = schedule
        self._orders = orders or b"\0"
        self._drawn = self._ordered = 0
        self._left = 0  # steps that the running party has still to take
        self._steps = self._waits = 0
        self._names: list[str] = []  # parties that have not ended, in the order of their turns
        self._gates: dict[str, threading.Lock] = {}  # open for the running party
        self._current = ""
        self._error: BaseException | None = None
        self._over = threading.Lock()

    def run(self, parties: Mapping[str, Callable[[], None]]) -> None:
        """Run all parties to their end; the first error ends them all, and is raised."""
        self._names = list(parties)
        self._gates = {name: threading.Lock() for name in parties}
        threads = [threading.Thread(target=self._party, args=(name, body), daemon=True) for name, body in parties.items()]
        for gate in (self._over, *self._gates.values()):
            gate.acquire()
        for thread in threads:
            thread.start()
        self._hand_over()
        self._over.acquire()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def step(self) -> None:
        """Be at a point where others may move."""
        if not self._current:
            return  # no party runs: the test itself looks
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise Stuck(f"no end after {_MOST_STEPS} steps")
        if self._left > 0:
            self._left -= 1
        else:
            self._pass(self._next())

    def order(self, count: int) -> int:
        """Choose one of so many things that happen in no particular order."""
        choice = self._orders[self._ordered % len(self._orders)] % count
        self._ordered += 1
        return choice

    def until(self, attempt: Callable[[], T | None]) -> T:
        """Try until it succeeds; in between, the others move."""
        while (found := attempt()) is None:
            self._waits += 1
            if self._waits > _MOST_WAITS or not self._current:  # outside of a run there is nobody to wait for
                raise Stuck(f"everybody waits: {', '.join(self._names)}")
            index = self._names.index(self._current)
            self._left = _TAIL_RUN
            self._pass(self._names[(index + 1) % len(self._names)])
        self._waits = 0
        return found

    def _next(self) -> str:
        if self._drawn < len(self._schedule):
            drawn = self._schedule[self._drawn]
            self._drawn += 1
            self._left = _RUNS[drawn >> 5] - 1
            return self._names[drawn % len(self._names)]
        self._left = _TAIL_RUN
        index = self._names.index(self._current) if self._current in self._names else -1
        return self._names[(index + 1) % len(self._names)]

    def _pass(self, name: str) -> None:
        me = self._current
        if name != me:
            self._current = name
            self._gates[name].release()
            self._gates[me].acquire()
        if self._error is not None:
            raise _Abandoned

    def _party(self, name: str, body: Callable[[], None]) -> None:
        self._gates[name].acquire()
        try:
            if self._error is None:
                body()
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = error
        self._names.remove(name)
        self._hand_over()

    def _hand_over(self) -> None:
        if not self._names:
            self._current = ""
            self._over.release()
            return
        self._current = self._next()
        self._gates[self._current].release()


class FakeMemory:
    """One party's handle on shared memory; a `Memory`.

    An interrupt comes where a real one may: before a call, or after it, before its result is seen. `interrupt_after` says
    after how many such places; None is never.
    """

    def __init__(self, shared: bytearray, turnstile: Turnstile, life: Life | None = None) -> None:
        self._shared = memoryview(shared)
        self._turnstile = turnstile
        self._life = life or Life()
        self._pending: list[tuple[memoryview, memoryview, bool]] = []  # (from, to, maybe twice), a word or less each
        self.interrupt_after: int | None = None
        self.room: int | None = None  # bytes that this party can allocate at a time

    def load(self, at: int) -> int:
        self._place()
        if self._turnstile.order(2):  # what was asked for before may be complete, or not
            self._complete()
        self._step()
        word = self._word(at)
        self._place()
        return word

    def fetch(self, at: int, into: memoryview) -> None:
        """A word at a time, each of its own moment."""
        self._place()
        self._complete()
        assert 0 <= at <= at + len(into) <= len(self._shared), "outside of the memory"
        done = 0
        while done < len(into):
            size = min(WORD - (at + done) % WORD, len(into) - done)
            self._step()
            into[done : done + size] = self._shared[at + done : at + done + size]
            done += size
        self._place()

    def read(self, at: int, into: memoryview) -> None:
        self._place()
        self._ask(at, into, to_memory=False)
        self._place()

    def store(self, at: int, word: int) -> None:
        assert at % WORD == 0
        self.write(at, memoryview(word.to_bytes(WORD, sys.byteorder, signed=True)))

    def store_once(self, at: int, olds: Sequence[int], words: Sequence[int]) -> None:
        """Once; it is an error if a word is not what it was said to be."""
        for place, old, word in zip(range(at, len(self._shared), WORD), olds, words, strict=False):
            assert self._word(place) == old, f"{place} holds {self._word(place)}, not {old}"
            self._place()
            there, here = self._shared[place : place + WORD], memoryview(word.to_bytes(WORD, sys.byteorder, signed=True))
            self._pending.append((here, there, False))
            self._place()

    def write(self, at: int, data: memoryview) -> None:
        self._place()
        self._ask(at, data, to_memory=True)
        self._place()

    def compare_swap(self, at: int, expected: int, word: int) -> int:
        self._place()
        self._complete()
        found = self._word(at)
        if found == expected:
            self._set(at, word)
        self._life.swap()
        self._place()
        return found

    def allocate(self, size: int) -> memoryview:
        if self.room is not None and size > self.room:
            raise MemoryError
        return memoryview(bytearray(b"\xaa" * size))

    def flush(self) -> None:
        self._place()
        self._complete()
        self._place()

    def _ask(self, at: int, data: memoryview, *, to_memory: bool) -> None:
        assert 0 <= at <= at + len(data) <= len(self._shared), "outside of the memory"
        done = 0
        while done < len(data):
            size = min(WORD - (at + done) % WORD, len(data) - done)
            there, here = self._shared[at + done : at + done + size], data[done : done + size]
            self._pending.append((here, there, True) if to_memory else (there, here, False))
            done += size

    def _complete(self) -> None:
        """Have happen what was asked for; the others may move before each word of it, and before what comes next."""
        while self._pending:
            self._step()
            if not self._pending:
                break  # another thread of the host, which is alone at this end, has seen to it
            source, target, again = self._pending.pop(self._turnstile.order(len(self._pending)))
            target[:] = source
            if again and self._turnstile.order(2):
                self._pending.append((source, target, False))
        self._step()

    def _step(self) -> None:
        """Let others move, or die: then nothing that was still to come happens."""
        self._turnstile.step()
        self._life.step()

    def _place(self) -> None:
        """Be at a point where an interrupt may come."""
        if self.interrupt_after is None:
            return
        self.interrupt_after -= 1
        if self.interrupt_after < 0:
            self.interrupt_after = None
            raise KeyboardInterrupt

    def _word(self, at: int) -> int:
        assert at % WORD == 0
        return array("q", bytes(self._shared[at : at + WORD]))[0]

    def _set(self, at: int, word: int) -> None:
        self._shared[at : at + WORD] = word.to_bytes(WORD, sys.byteorder, signed=True)

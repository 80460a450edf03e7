"""What a worker writes down of itself, in memory that its supervisor and its root share: nothing is sent.

Theory of operation
    A page of words of 8 bytes, each written by one thread of the rank at a time, as a whole. Others only read.

    BEGUN  number of the call that was begun last, or NOTHING, or INITIALIZER: written before anything of the call is unpickled
    SINCE  when that call was begun, in seconds; 0 while none runs: written after BEGUN, and after LIMIT
    LIMIT  seconds that a call may run; 0: any time
    SEEN   when the rank last had time for it: by a thread of its own, every second
    HELD   bytes behind the page that are outcomes which were not put into the reply channel yet: written after those bytes, and set
           to 0 after the put. Read once the rank is dead: some of them may have been put all the same

    Times are of the monotonic clock, which all processes of a node share. Who sees a call that is overdue stops the rank, and looks
    once more, before it does anything about it: a rank that is stopped writes nothing, so all words are of one moment then.
"""

import mmap
import os
import time
from typing import Final, NamedTuple

NOTHING: Final = -1  # has been begun of the message that came last
INITIALIZER: Final = -2  # is being run

_BEGUN, _SINCE, _LIMIT, _SEEN, _HELD = range(5)
LARGE: Final = 256 << 10  # bytes of outcomes that are put at once; a longer one is not held
_ROOM = 2 * LARGE + (128 << 10)  # bytes: what is held, the last outcome, and what their pickles need besides


class Signs(NamedTuple):
    """What a slate said of the running call, and of life, when that was told; times as there."""

    running_since: float | None
    seen: float
    told: float


class Slate:
    """The page, and what lies behind it. Whoever has the descriptor can read it."""

    def __init__(self, descriptor: int = -1) -> None:
        """Map a page that another process has made, or, without a descriptor, make one that no other sees."""
        self.holds = descriptor != -1  # whether anybody sees what is kept
        self._room = _ROOM if self.holds else 0
        memory = memoryview(mmap.mmap(descriptor, mmap.PAGESIZE + self._room))
        words = memory[: mmap.PAGESIZE]
        self._numbers = words.cast("q")
        self._times = words.cast("d")
        self._outcomes = memory[mmap.PAGESIZE :]
        if descriptor == -1:
            self.wipe()

    @classmethod
    def new(cls) -> tuple["Slate", int]:
        """Make a page that can be shared, and give its descriptor, too."""
        descriptor = os.memfd_create("mpiexecutor-slate")
        os.truncate(descriptor, mmap.PAGESIZE + _ROOM)
        slate = cls(descriptor)
        slate.wipe()
        return slate, descriptor

    def wipe(self) -> None:
        """Say that nothing was begun of this message yet."""
        self._numbers[_BEGUN] = NOTHING

    def begin(self, number: int, now: float) -> None:
        """Say that a call begins, or an initializer."""
        self._numbers[_BEGUN] = number
        self._times[_SINCE] = now

    def run(self, now: float) -> None:
        """Say that what has begun runs from now on."""
        self._times[_SINCE] = now

    def finish(self) -> None:
        """Say that it has come to its end; what came of it is still to be put."""
        self._times[_SINCE] = 0.0

    def hold(self, data: bytes) -> None:
        """Keep what became of a call, in case this rank dies before that is put; unless there is no room."""
        start = self._numbers[_HELD]
        if start + len(data) <= self._room:
            self._outcomes[start : start + len(data)] = data
            self._numbers[_HELD] = start + len(data)

    def let_go(self) -> None:
        """Keep nothing: all was put."""
        self._numbers[_HELD] = 0

    @property
    def held(self) -> bytes:
        """What is kept, one behind the other."""
        return bytes(self._outcomes[: max(0, min(self._numbers[_HELD], self._room))])

    def limit(self, seconds: float) -> None:
        """Say how long each call may run from now on; 0: as long as it likes."""
        self._times[_LIMIT] = seconds

    def pulse(self) -> None:
        self._times[_SEEN] = time.monotonic()

    @property
    def begun(self) -> int:
        return self._numbers[_BEGUN]

    @property
    def running_since(self) -> float | None:
        return self._times[_SINCE] or None

    @property
    def seen(self) -> float:
        return self._times[_SEEN]

    @property
    def most(self) -> float:
        """How many seconds a call may run; 0: as long as it likes."""
        return self._times[_LIMIT]

    def left(self, now: float) -> float | None:
        """Give the seconds that there are, at the least, until a call is overdue; None if none will be."""
        most, since = self.most, self.running_since
        if not most:
            return None
        return most if since is None else since + most - now

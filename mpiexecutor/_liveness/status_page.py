"""The status page of a rank: shared memory that the rank writes, and its supervisor and its root read. Nothing is sent.

Theory of operation
    A page of words of 8 bytes. The rank writes each as a whole, by one thread at a time. Other processes only read.

    BEGUN  number of the call that was begun last, or NOTHING, INITIALIZER or SENT: written before anything of the call is unpickled
    SINCE  when that call was begun, in seconds; negative until it is unpickled, as that does not count for LIMIT; 0 while none is
           begun: written after BEGUN, and after LIMIT
    LIMIT  seconds that a call may run; 0: any time
    SEEN   when the rank last had time for it: by a thread of its own, every second
    HELD   how many of the bytes behind the page are outcomes that were not put into the reply channel yet: written after those
           bytes, and set to 0 after the put. Read once the rank has died: some of them may have been put all the same
    RUNNER process id of the child that runs the calls of this message and writes BEGUN, SINCE, HELD and CALLS meanwhile (see
           children.py); 0: the rank does so itself. Written by the rank; set to 0 by the supervisor when the child has died
    BEAT   when the child last had time for it, as SEEN; also written when it becomes the RUNNER
    CALLS  calls that this process has begun since its start
    DEATHS children that have died
    CANCELLED  how many of the words behind it are numbers of calls that are not to run: written by the supervisor

    Times are of the monotonic clock, which all processes of a node share. A supervisor that sees an overdue call stops the rank
    and reads the page once more before it kills it: a stopped rank writes nothing, so all words are of one moment. For a cancelled
    call it does the same, after it has written CANCELLED: a call that it does not find begun sees that word when it is.
"""

import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from mpiexecutor._util.seconds import PULSE

NOTHING: Final = -1  # has been begun of the message that came last
INITIALIZER: Final = -2  # is being run
SENT: Final = -3  # to the child, which has not taken the message yet

_BEGUN, _SINCE, _LIMIT, _SEEN, _HELD, _RUNNER, _BEAT, _CALLS, _DEATHS, _CANCELLED = range(10)
MOST_CANCELLED: Final = 256  # numbers that a page has room for
LARGE: Final = 256 << 10  # bytes of outcomes that are put at once; a longer one is not held
_ROOM = 2 * LARGE + (128 << 10)  # bytes: what is held, the last outcome, and what their pickles need besides


def start_pulse(pulse: Callable[[], object]) -> threading.Event:
    """Have a thread give signs of life until this event is set. It cannot while a call holds the GIL, or the process is stopped."""
    resting = threading.Event()

    def run() -> None:
        while not resting.is_set():
            pulse()
            resting.wait(PULSE)

    threading.Thread(target=run, name="mpiexecutor pulse", daemon=True).start()
    return resting


class Signs(NamedTuple):
    """What a page said about the call that was begun and the last sign of life at the time `told`; times as on the page."""

    busy_since: float | None
    seen: float
    told: float
    runner: int = 0  # see the page
    calls: int = 0
    deaths: int = 0


class StatusPage:
    """The page, and the outcomes behind it. A process that has its descriptor can map it."""

    def __init__(self, descriptor: int = -1) -> None:
        """Map the page that another process has made. Without a descriptor make one that no other process reads."""
        self.holds = descriptor != -1  # another process reads what is held
        self._room = _ROOM if self.holds else 0
        memory = memoryview(mmap.mmap(descriptor, mmap.PAGESIZE + self._room))
        words = memory[: mmap.PAGESIZE]
        self._numbers = words.cast("q")
        self._times = words.cast("d")
        self._outcomes = memory[mmap.PAGESIZE :]
        if descriptor == -1:
            self.wipe()

    @classmethod
    def new(cls) -> tuple["StatusPage", int]:
        """Make a page that can be shared. Return it and its descriptor."""
        descriptor = os.memfd_create("mpiexecutor-status")
        os.truncate(descriptor, mmap.PAGESIZE + _ROOM)
        page = cls(descriptor)
        page.wipe()
        return page, descriptor

    def wipe(self) -> None:
        """Note that no call of this message was begun yet."""
        self._numbers[_BEGUN] = NOTHING

    def begin(self, number: int, now: float) -> None:
        """Note that a call, or an initializer, begins."""
        self._numbers[_BEGUN] = number
        self._times[_SINCE] = now
        self._numbers[_CALLS] += number >= 0

    def prepare(self, number: int, now: float) -> None:
        """Note that a call begins: it is unpickled, and then runs."""
        self.begin(number, -now)

    def is_cancelled(self, number: int) -> bool:
        """Return whether a call that has begun is not to run."""
        cancelled = self._numbers[_CANCELLED]
        return cancelled != 0 and number in self._numbers[_CANCELLED + 1 : _CANCELLED + 1 + cancelled].tolist()

    def run(self, now: float) -> None:
        """Note that what has begun runs from now on."""
        self._times[_SINCE] = now

    def finish(self) -> None:
        """Note that it has ended; its outcome is still to be put."""
        self._times[_SINCE] = 0.0

    def hold(self, data: bytes) -> None:
        """Hold the outcome of a call, in case this rank dies before it is put; unless there is no room."""
        start = self._numbers[_HELD]
        end = start + len(data)
        if end <= self._room:
            self._outcomes[start:end] = data
            self._numbers[_HELD] = end

    def let_go(self) -> None:
        """Hold nothing: all outcomes were put."""
        self._numbers[_HELD] = 0

    @property
    def held(self) -> bytes:
        """The outcomes that are held, one behind the other."""
        return bytes(self._outcomes[: max(0, min(self._numbers[_HELD], self._room))])

    def limit(self, seconds: float) -> None:
        """Set the seconds that each call may run from now on; 0: no limit."""
        self._times[_LIMIT] = seconds

    def pulse(self) -> None:
        """Give a sign of life."""
        self._times[_SEEN] = time.monotonic()

    def pulse_of_child(self) -> None:
        """Give a sign of life of this child, if it is the one that runs calls."""
        if self._numbers[_RUNNER] == os.getpid():
            self._times[_BEAT] = time.monotonic()

    def send(self, runner: int, calls: int) -> None:
        """Note that a message is sent to a child, which has begun so many calls before."""
        self._numbers[_BEGUN] = SENT
        self._numbers[_CALLS] = calls
        self.expect(runner)

    def expect(self, runner: int) -> None:
        """Expect signs of life from this child, too; 0: from none."""
        self._times[_BEAT] = time.monotonic()
        self._numbers[_RUNNER] = runner

    def run_here(self, calls: int) -> None:
        """Note that the rank itself runs the next message. It has begun so many calls before."""
        self._numbers[_RUNNER] = 0
        self._numbers[_CALLS] = calls

    def note_death(self) -> None:
        """Count a child that has died."""
        self._numbers[_DEATHS] += 1

    def bury(self, runner: int) -> None:
        """By the supervisor: note that a child has ended, and so runs nothing."""
        if self._numbers[_RUNNER] == runner:
            self._times[_SINCE] = 0.0
            self._numbers[_RUNNER] = 0

    def cancel(self, numbers: Sequence[int]) -> None:
        """By the supervisor: note which calls are not to run, in the place of those noted before."""
        self._numbers[_CANCELLED] = 0
        for at, number in enumerate(numbers[:MOST_CANCELLED], _CANCELLED + 1):
            self._numbers[at] = number
        self._numbers[_CANCELLED] = min(len(numbers), MOST_CANCELLED)

    @property
    def runner(self) -> int:
        """Process id of the child that runs calls; 0: there is none."""
        return self._numbers[_RUNNER]

    @property
    def calls(self) -> int:
        """Calls that the process which runs them has begun."""
        return self._numbers[_CALLS]

    @property
    def deaths(self) -> int:
        """Children that have died."""
        return self._numbers[_DEATHS]

    @property
    def begun(self) -> int:
        return self._numbers[_BEGUN]

    @property
    def busy_since(self) -> float | None:
        """When the call was begun that is unpickled or runs."""
        return abs(self._times[_SINCE]) or None

    @property
    def running_since(self) -> float | None:
        """When the call was begun that runs."""
        since = self._times[_SINCE]
        return since if since > 0 else None

    @property
    def seen(self) -> float:
        """When there was a sign of life last: of the rank, and of the child that runs its calls."""
        seen = self._times[_SEEN]
        return min(seen, self._times[_BEAT]) if self._numbers[_RUNNER] else seen

    @property
    def most(self) -> float:
        """Seconds that a call may run; 0: no limit."""
        return self._times[_LIMIT]

    def left(self, now: float) -> float | None:
        """Return the least seconds until a call is overdue; None if there is no limit."""
        most, since = self.most, self.running_since
        if not most:
            return None
        return most if since is None else since + most - now

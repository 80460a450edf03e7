"""The state that the parts of the scheduler share, and its lock.

Theory of operation
    Threads that submit, close and wait, the collector, and the recovery thread work on the sessions, under one lock. A reply
    removes tasks from their session under the lock. Unpickling their results and settling their futures are steps (see
    settling.py), which the collector does in order, after it has released the lock.

Invariants
    A task is in its session's backlog, or in its session's `sent`, or in one step of one thread.
    Submit appends to a backlog without the lock. Everything else changes under the lock.
    A session is idle once its futures are settled, and their callbacks have returned: `unsettled` counts down only then.
    Nothing here refers to a result, or to arguments, once the future is settled.
"""

import itertools
import threading
import time
from collections import Counter

from mpiexecutor._calls.messages import MOST_ROWS
from mpiexecutor._calls.outcomes import Location

from .series import Batch
from .session import Session

PER_WORKER = 2  # messages under way: one whose calls run, and one that waits


class SchedulerState:
    """The sessions, the workers, and how long calls take."""

    def __init__(self, workers: int, location: Location) -> None:
        self.location = location
        self.sessions: dict[int, Session] = {}  # by number; a finalizer may remove one at any time: iterate over a copy
        self.all_workers = workers
        self.lost: set[int] = set()  # ranks
        self.most_messages = PER_WORKER * workers  # of a session that may be under way, for the workers that live
        self.numbers = itertools.count(0, MOST_ROWS)  # of calls; those of a map have the numbers between, from their block's on
        self.seconds: dict[object, float] = {}  # expected duration of a call, by kind
        self.done: Counter[int] = Counter()  # calls with an outcome, by rank
        self.streaming = False  # a message is being put in the background: it has no number yet
        self._soon: dict[Batch, float] = {}  # messages that are expected to be done soon, and until when; some of them are done
        self.failure = ""  # why no session can be opened any more
        self.settlers: set[threading.Thread] = set()  # threads that settle futures, and run their callbacks
        self.renew_lock()

    def renew_lock(self) -> None:
        """Make a lock that no thread holds."""
        self.lock = threading.RLock()  # reentrant: a callback may submit under it
        self.changed = threading.Condition(self.lock)

    @property
    def workers(self) -> int:
        """The number of workers that live."""
        return self.all_workers - len(self.lost)

    def expect_reply(self, batch: Batch, seconds: float) -> None:
        """Note that this message, which was sent, is expected to be done within so many seconds. The lock is held."""
        now = time.monotonic()
        if len(self._soon) > 2 * self.most_messages:  # as many can be under way: the others are done
            self._soon = {each: until for each, until in list(self._soon.items()) if each.left and now < until}
        self._soon[batch] = now + seconds

    def expects_reply_soon(self) -> bool:
        """Whether such a message is not done, and its time is not over. No lock is needed."""
        now = time.monotonic()
        for batch, until in list(self._soon.items()):
            if batch.left and now < until:
                return True
            self._soon.pop(batch, None)
        return False

    def note_lost(self, rank: int) -> None:
        """Count a worker as lost. The lock is held."""
        self.lost.add(rank)
        self.most_messages = PER_WORKER * self.workers

    def note_regained(self, rank: int) -> None:
        """Count a worker as living again. The lock is held."""
        self.lost.discard(rank)
        self.most_messages = PER_WORKER * self.workers

    def is_settling(self) -> bool:
        """Whether this thread settles futures: then it must not wait for one. No lock is needed."""
        return threading.current_thread() in self.settlers

    def forget_done(self) -> None:
        """Forget the sessions that are closed and idle. The lock is held."""
        for session in list(self.sessions.values()):  # a finalizer may come between the lines, and do the same
            if session.closed and session.idle:
                self.sessions.pop(session.number, None)

    def open_sessions(self) -> list[Session]:
        """Return the sessions that are open, or not idle."""
        with self.lock:
            return list(self.sessions.values())

"""What the parts of the scheduler share, and the lock that guards it.

Theory of operation
    Threads that submit, close and wait, the collector, and those that learn of failed workers all work on the sessions, a method at
    a time, under one lock. Replies take calls off the sessions under the lock; what is then left to do, to unpickle results and to
    settle futures, is data (see settling.py), done after the lock is released, in the order in which it was noted.

Invariants
    A task is in one place: in its session's backlog, in its session's `sent`, or in the hands of one thread that will settle it.
    A session's backlog is appended to without the lock, in submit. All else changes under it.
    A session is idle once its futures are settled, callbacks included: only then is `unsettled` counted down.
    No result of a call, and no argument, is referred to once its future is settled.
"""

import threading
from collections import Counter

from mpiexecutor._calls.outcomes import Location

from .session import Session

PER_WORKER = 2  # messages on their way: one that is run, and one that waits for it


class SchedulerState:
    """The sessions, the workers, and what is known of the calls."""

    def __init__(self, workers: int, location: Location) -> None:
        self.location = location
        self.sessions: dict[int, Session] = {}  # a finalizer may close one at any time: iterate over a copy
        self.all_workers = workers
        self.lost: set[int] = set()  # ranks
        self.most_messages = PER_WORKER * workers  # of a session on their way, for the workers that are left
        self.seconds: dict[object, float] = {}  # expected duration of a call, by kind
        self.done: Counter[int] = Counter()  # calls with an outcome, by rank
        self.streaming = False  # a message that had no room is being put in the background: its number is not known yet
        self.failure = ""  # why nothing is collected any more
        self.settlers: set[threading.Thread] = set()  # threads that settle futures, and so run their callbacks
        self.renew_lock()

    def renew_lock(self) -> None:
        """Have a lock that no other thread holds."""
        self.lock = threading.RLock()  # a callback of a future that is done already runs at once
        self.changed = threading.Condition(self.lock)

    @property
    def workers(self) -> int:
        """How many are left."""
        return self.all_workers - len(self.lost)

    def note_lost(self, rank: int) -> None:
        """Have one worker less. The lock is held, as for all that follows."""
        self.lost.add(rank)
        self.most_messages = PER_WORKER * self.workers

    def note_regained(self, rank: int) -> None:
        """Have a worker again."""
        self.lost.discard(rank)
        self.most_messages = PER_WORKER * self.workers

    def is_settling(self) -> bool:
        """Whether this thread settles futures. No lock is needed."""
        return threading.current_thread() in self.settlers

    def forget_done(self) -> None:
        """Forget the sessions that are closed and idle."""
        for session in list(self.sessions.values()):  # a finalizer may come in between, and do the same
            if session.closed and session.idle:
                self.sessions.pop(session.number, None)

    def open_sessions(self) -> list[Session]:
        """Return the sessions that are not forgotten."""
        with self.lock:
            return list(self.sessions.values())

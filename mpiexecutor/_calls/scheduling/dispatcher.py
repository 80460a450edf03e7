"""Sends calls. No thread of its own: whatever makes it possible sends, a thread that submits or the collector.

At most a few messages a worker are on their way, so that what waits can be cancelled, and so that batches grow only when calls come
faster than they are run.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from mpiexecutor._calls.messages import Calls
from mpiexecutor._calls.outcomes import with_cause
from mpiexecutor._util.periodic import PeriodicCheck
from mpiexecutor.channel import ChannelFull, RemoteChannel

from .session import Batch, Session, Task
from .settling import quietly
from .state import PER_WORKER, SchedulerState

_FEEDING = 25e-6  # seconds that the root needs, at the least, to feed a worker with a call
_MOST = 256  # calls a message
_MOST_BYTES = 256 << 10  # of several calls in one message
_MOST_SECONDS = 1e-3  # that the calls of one message are expected to run, so that none waits long for another
_TICK = 5e-3  # seconds between two looks whether calls wait while workers do: a message that is seen twice is one of long calls
_TICKS = 10  # looks in vain before nobody looks any more


class Dispatcher:
    """Puts messages of calls into the work channel."""

    def __init__(self, state: SchedulerState, work: RemoteChannel[Calls, Calls], after_stream: Callable[[], None]) -> None:
        """`after_stream` is called, without the lock, when a message that was put in the background has its number."""
        self._state = state
        self._work = work
        self._after_stream = after_stream
        self._slow_check = PeriodicCheck("mpiexecutor slow calls", self._see_who_is_slow, every=_TICK, times=_TICKS)
        self.watch, self.stop = self._slow_check.watch, self._slow_check.stop

    def dispatch(self) -> None:
        """Send what may be sent, one message of each session in turn; the lock is held."""
        state = self._state
        moved = True
        while moved:
            moved = False
            for session in list(state.sessions.values()):  # a finalizer may close one at any time
                if not session.backlog or state.streaming:
                    continue
                limit = self.limit(session, session.backlog[0].kind)
                if len(session.under_way) < limit:
                    moved = self._send_next(session, limit) or moved
                elif limit < min(session.limit, state.most_messages):
                    self.watch()

    def limit(self, session: Session, kind: object) -> int:
        """Return how many messages may be on their way while calls of this kind are next.

        No more than keep those workers busy that the root can feed. The shorter the calls, the fewer these are, and the more calls
        wait here until they make up a message together. What turns out to be slow does not count: others are not to wait for it.
        """
        most = min(session.limit, self._state.most_messages)
        seconds = self._state.seconds.get(kind)
        if seconds is None:
            return most
        return min(most, PER_WORKER * (2 + int(seconds / _FEEDING)) + len(session.slow))

    def _see_who_is_slow(self) -> bool:
        """Send what waits for messages that are not done as soon as was expected; whether something waits still."""
        state = self._state
        with state.lock:
            sessions = [session for session in list(state.sessions.values()) if session.backlog]  # a finalizer: as in dispatch
            for session in sessions:
                session.see_who_is_slow()
            self.dispatch()
            return any(session.backlog and len(session.under_way) < min(session.limit, state.most_messages) for session in sessions)

    def _send_next(self, session: Session, limit: int) -> bool:
        share = -(-len(session.backlog) // limit)  # leave the others something, too
        tasks = session.next_batch(min(_MOST, share), _MOST_BYTES, self._state.seconds, _MOST_SECONDS)
        if not tasks:  # all were cancelled
            self._state.changed.notify_all()
            return False
        batch = session.send(tasks)
        initializer = session.initializer.number if session.initializer else None
        try:
            self._put(Calls(session.number, initializer, session.task_timeout, [task.call for task in tasks]), batch)
        except Exception as error:  # noqa: BLE001 - more than a channel can carry: they fail alone
            self._fail(session, tasks, error)
        except BaseException:  # Ctrl-C in the thread that submits
            session.take_back(tasks)
            raise
        return True

    def _put(self, message: Calls, batch: Batch) -> None:
        try:
            self._work.put_nowait(message)
        except ChannelFull:
            # In the background, as the others are taken; the collector must not wait for it, or nobody would make room.
            future = self._work.putf(message, copy=False)
            self._state.streaming = True
            future.add_done_callback(partial(self._streamed, batch))
        else:
            batch.number = self._work.count - 1

    def _streamed(self, batch: Batch, future: Future[None]) -> None:
        error = future.exception()
        with self._state.lock:
            self._state.streaming = False
            if error is None:
                batch.number = self._work.count - 1  # nothing else was put meanwhile
            else:
                self._fail_batch(batch, error)
            self.dispatch()
        self._after_stream()

    def _fail_batch(self, batch: Batch, error: BaseException) -> None:
        """Fail the calls of a message that could not be put in the background; the lock is held."""
        for session in list(self._state.sessions.values()):
            if tasks := session.tasks_of(batch):
                self._fail(session, tasks, error)

    def _fail(self, session: Session, tasks: list[Task], error: BaseException) -> None:
        session.drop(tasks)  # first: a callback that submits may wait for room
        for task in tasks:
            quietly(task.future.set_exception, with_cause(error, self._state.place))
        self._state.changed.notify_all()

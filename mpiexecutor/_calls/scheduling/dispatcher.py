"""Sends calls. It has no thread: a thread that submits sends them, or the collector when there is room.

At most two messages for each worker are under way. So waiting calls can be cancelled, and a message carries several calls only if
calls are submitted faster than they run.
"""

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from mpiexecutor._calls.functions import Function
from mpiexecutor._calls.messages import MOST_ROWS, Calls, MapCalls, Reply, SharedMemory
from mpiexecutor._calls.outcomes import with_cause
from mpiexecutor._util.periodic import PeriodicCheck
from mpiexecutor._util.processors import processors_lacking
from mpiexecutor._util.segments import SMALLEST
from mpiexecutor.channel import ChannelFull, RemoteChannel

from .series import Batch, Block
from .session import Session, Task
from .settling import quietly
from .state import PER_WORKER, SchedulerState

_FEEDING = 25e-6  # least seconds that the root takes to send a call and to collect its result
_MOST = 256  # most calls of a message
_MOST_BYTES = 256 << 10  # most bytes of a message of several calls
_MOST_SECONDS = 1e-3  # most seconds that the calls of a message are expected to run: none waits long for another
_FEEDING_OF_MAP = 1.5e-6  # the same for a call of a map
_LEAST_SECONDS_OF_MAP = (
    1e-4  # that the calls of a map in one message are expected to run, if there are as many: a message takes as long
)
_MOST_SECONDS_OF_MAP = 4e-3  # the same at most; no result waits as long as that
_SHORT = 5e-4  # seconds: the collector spins only for messages that are expected to run for less, as it spins so long at most
_TINY = 1e-7  # least seconds that a call takes
_TICK = 5e-3  # seconds between two looks for slow messages: one that is under way at both is slow
_TICKS = 10  # looks at which nothing waits before the thread sleeps


class Dispatcher:
    """Puts messages of calls into the work channel."""

    def __init__(
        self,
        state: SchedulerState,
        work: RemoteChannel[Calls | MapCalls, Calls | MapCalls],
        replies: RemoteChannel[Reply, Reply],
        memory: SharedMemory,
        after_stream: Callable[[], None],
    ) -> None:
        """`after_stream` is called, without the lock, when a message was put in the background, and its number is known."""
        self._state = state
        self._work = work
        self._replies = replies
        self._memory = memory
        self._after_stream = after_stream
        self._short_messages = 0  # that were sent
        self._slow_check = PeriodicCheck("mpiexecutor slow calls", self._see_slow_messages, every=_TICK, times=_TICKS)
        self.watch, self.stop = self._slow_check.watch, self._slow_check.stop

    def dispatch(self) -> None:
        """Send messages while there is room, one of each session in turn. The lock is held."""
        state = self._state
        before = self._short_messages
        moved = True
        while moved:
            moved = False
            for session in list(state.sessions.values()):  # a finalizer may close one at any time
                if not session.backlog or state.streaming:
                    continue
                first = session.backlog[0]
                limit = self.limit(session, first.kind, of_map=not isinstance(first, Task))
                if len(session.under_way) < limit:
                    moved = self._send_next(session, limit) or moved
                elif limit < min(session.limit, state.most_messages):
                    self.watch()
        if self._short_messages != before and self._replies.sleeps and processors_lacking() <= 0:
            self._replies.rouse()

    def limit(self, session: Session, kind: object, *, of_map: bool = False) -> int:
        """Return the most messages that may be under way while calls of this kind are next.

        They keep as many workers busy as the root can supply with calls. The shorter the calls, the fewer workers these are, and
        the more calls wait here and share a message. Slow messages do not count, so that other calls do not wait for them.
        """
        most = min(session.limit, self._state.most_messages)
        seconds = self._state.seconds.get(kind)
        if seconds is None:
            return most
        feeding = _FEEDING_OF_MAP if of_map else _FEEDING
        return min(most, PER_WORKER * (2 + int(seconds / feeding)) + len(session.slow))

    def _see_slow_messages(self) -> bool:
        """Send calls that wait for slow messages. Return whether some still wait."""
        state = self._state
        with state.lock:
            sessions = [session for session in list(state.sessions.values()) if session.backlog]  # a finalizer: as in dispatch
            for session in sessions:
                session.see_slow_messages()
            self.dispatch()
            return any(session.backlog and len(session.under_way) < min(session.limit, state.most_messages) for session in sessions)

    def _send_next(self, session: Session, limit: int) -> bool:
        first = session.backlog[0]
        share = -(-(len(session.backlog) - 1 + first.count) // limit)  # leave calls for the other messages
        if not isinstance(first, Task):
            return self._send_block(session, first.kind, share)
        tasks = session.next_batch(min(session.per_child or _MOST, _MOST, share), _MOST_BYTES, self._state.seconds, _MOST_SECONDS)
        if not tasks:  # all were cancelled
            self._state.changed.notify_all()
            return False
        self._send(session, tasks, partial(self._message_of, session, tasks))
        return True

    def _message_of(self, session: Session, tasks: list[Task], batch: Batch) -> Calls:
        calls = [task.call for task in tasks]
        if tasks[0].size >= SMALLEST:  # it has no others beside it
            calls = [(*call[:3], *self._memory.put(*call[3:], weakref.ref(batch))) for call in calls]
        return Calls(*_options_of(session, batch), calls)

    def _send_block(self, session: Session, kind: object, share: int) -> bool:
        """Send calls of a map: their share, within limits of their expected duration; one if the duration is not known."""
        expected = self._state.seconds.get(kind, _MOST_SECONDS_OF_MAP)
        least, most = int(_LEAST_SECONDS_OF_MAP / max(expected, _TINY)), int(_MOST_SECONDS_OF_MAP / max(expected, _TINY))
        most = min(most, session.per_child or MOST_ROWS, MOST_ROWS)
        block = session.next_block(next(self._state.numbers), max(1, min(max(share, least), most)), _MOST_BYTES)
        if block is None:  # all were cancelled
            self._state.changed.notify_all()
            return True
        series = block.series
        state = None if series.state is None else series.state.number
        called = series.function.number if isinstance(series.function, Function) else series.function
        self._send(session, [block], lambda batch: MapCalls(*_options_of(session, batch), block.number, state, called, block.rows))
        return True

    def _send(self, session: Session, tasks: Sequence[Task | Block], make: Callable[[Batch], Calls | MapCalls]) -> None:
        batch = session.send(tasks)
        # The first call stands for all: most messages have calls of one kind.
        is_short = self._state.seconds.get(tasks[0].kind, 0.0) * sum(task.count for task in tasks) < _SHORT
        try:
            if is_short:
                self._state.expect_reply(batch, _SHORT)
            self._put(make(batch), session, batch)
            self._short_messages += is_short
        except Exception as error:  # noqa: BLE001 - too long for a channel, say: these calls fail alone
            self._fail(session, tasks, error)
        except BaseException:  # Ctrl-C in the thread that submits
            session.take_back(tasks)
            raise

    def _put(self, message: Calls | MapCalls, session: Session, batch: Batch) -> None:
        try:
            self._work.put_nowait(message)
        except ChannelFull:
            # In the background: if the collector waited for room here nothing would make room.
            future = self._work.putf(message, copy=False)
            self._state.streaming = True
            future.add_done_callback(partial(self._streamed, session, batch))
        else:
            batch.number = self._work.count - 1

    def _streamed(self, session: Session, batch: Batch, future: Future[None]) -> None:
        error = future.exception()
        with self._state.lock:
            self._state.streaming = False
            if error is None:
                batch.number = self._work.count - 1  # nothing else was put meanwhile
            else:
                self._fail(session, session.tasks_of(batch), error)
            self.dispatch()
        self._after_stream()

    def _fail(self, session: Session, tasks: Sequence[Task | Block], error: BaseException) -> None:
        session.drop(tasks)  # before settling: a callback that submits needs room
        for task in tasks:
            quietly(task.future.set_exception, with_cause(error, self._state.location))
        self._state.changed.notify_all()


def _options_of(session: Session, batch: Batch) -> tuple[int, int | None, float, int, int | None]:
    """Return what each message of calls begins with."""
    initializer = session.initializer.number if session.initializer else None
    return session.number, initializer, session.task_timeout, batch.serial, session.per_child

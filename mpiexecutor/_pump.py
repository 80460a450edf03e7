"""Between the futures and the channels, on the root: the dispatcher sends calls, the collector settles futures.

    submit ──> backlog ──dispatch──> work channel ──> workers ──> reply channel ──collector──> future
                  ^                                                                 |
                  └────────────── each message that is done makes room ─────────────┘

Dispatching is no thread: it is done by whoever made it possible, the thread that submits or the collector. At most a few messages
a worker are on their way, so that what waits can be cancelled, and so that batches grow only when calls come faster than they are
run.

One lock guards everything below. Futures are settled, and results unpickled, without it.
"""

import itertools
import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from typing import Any

from ._functions import Catalogue, Function
from ._futures import Batch, Session, Task
from ._outcomes import Failure, Place, RemoteTraceback, error_from, unship, with_cause
from ._parcels import Parcels
from ._worker import Outcome, Reply, Work
from .channel import ChannelFull, RemoteChannel

logger = logging.getLogger("mpiexecutor")

_PER_WORKER = 2  # messages on their way: one that is run, and one that waits for it
_FEEDING = 25e-6  # seconds that the root needs, at the least, to feed a worker with a call
_MOST = 256  # calls a message
_MOST_BYTES = 256 << 10  # of several calls in one message
_MOST_SECONDS = 1e-3  # that the calls of one message are expected to run, so that none waits long for another
_LONG = 2e-3  # seconds that a call is expected to take, at the least, after others have waited for one of its kind
_WEIGHT = 0.25  # of the newest duration in the expected one
_REPLIES = 64  # messages that the collector takes at a time


class Pump:
    """Sends the calls of all executors of this process, and settles their futures."""

    def __init__(
        self,
        work: RemoteChannel[Work, Work],
        replies: RemoteChannel[Reply, Reply],
        parcels: Parcels,
        workers: int,
        place: Place,
    ) -> None:
        self._work = work
        self._replies = replies
        self._parcels = parcels
        self.catalogue = Catalogue()
        self._workers = workers
        self._place = place
        self._lock = threading.RLock()  # a callback of a future that is done already runs at once
        self._idle = threading.Condition(self._lock)
        self._sessions: dict[int, Session] = {}
        self._numbers = itertools.count()
        self._session_numbers = itertools.count()
        self._seconds: dict[object, float] = {}  # expected duration of a call, by kind
        self._failure = ""  # why nothing is collected any more
        self._streaming = False  # a message longer than the room there was is still being put
        self._collector = threading.Thread(target=self._collect, name="mpiexecutor collector", daemon=True)
        self._collector.start()

    # -- what executors call ---------------------------------------------------------------------------------------------------

    def open(self, most_workers: int, initializer: Function | None) -> Session:
        """Begin a session for an executor that may use so many workers."""
        # With fewer than all workers, only one message each: any worker may take it, so only their number keeps them few.
        limit = _PER_WORKER * self._workers if most_workers >= self._workers else most_workers
        with self._lock:
            if self._failure:
                raise BrokenExecutor(self._failure)
            session = Session(next(self._session_numbers), limit, initializer)
            self._sessions[session.number] = session
            return session

    def submit(
        self, session: Session, future: Future[Any], shipped: tuple[Any, ...], size: int, kind: object, function: Function | None
    ) -> None:
        """Queue a call, and send it at once if it is its turn. RuntimeError if the session takes no more.

        The lock is taken only to send. Who makes room sends what it then finds queued, so either sees the other; and who closes
        the session, or breaks it, either finds the call queued or is found to have done so here.
        """
        self.check_open(session)
        task = Task(next(self._numbers), future, shipped, size, kind, function)
        session.backlog.append(task)
        if session.messages < self._limit(session, kind):
            with self._lock:
                self._dispatch()
        if session.closed or session.broken:
            with self._lock:
                if session.withdraw(task):
                    self._idle.notify_all()  # who waits for the session may have found it queued
                    self.check_open(session)

    def check_open(self, session: Session) -> None:
        """Raise what submit would raise."""
        if session.broken:
            raise BrokenExecutor(session.broken) from session.broken_cause
        if session.closed:
            raise RuntimeError(session.closed)

    def close(self, session: Session, reason: str, *, cancel: bool = False) -> None:
        """Take no more calls; with `cancel`, drop those not sent yet."""
        dropped: list[Task] = []
        with self._lock:
            session.closed = session.closed or reason
            if cancel:
                dropped = session.drop_unsent()
            self._forget_done()
            self._idle.notify_all()
        for task in dropped:
            _quietly(_cancel, task.future)

    def wait(self, session: Session) -> None:
        """Wait until every call of the session has its outcome."""
        if threading.current_thread() is self._collector and not session.idle:
            raise RuntimeError("a callback of a future cannot wait for its executor: the futures are settled by this thread")
        with self._idle:
            self._dispatch()  # what a submit has queued that was interrupted then; not in close, which finalizers call anywhere
            self._idle.wait_for(lambda: session.idle)

    def sessions(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def disown(self, reason: str) -> None:
        """In a forked child: nothing of this is its own, and the locks may be held by threads that it does not have."""
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        for session in self._sessions.values():
            session.closed = reason
            session.sent.clear()
            session.backlog.clear()
            session.unsettled = 0

    def stop(self) -> None:
        """End the workers' loops and the collector; every session is done."""
        self._work.close()
        self._replies.close()
        self._collector.join()

    # -- the dispatcher ----------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Send what may be sent, one message of each session in turn; the lock is held."""
        moved = True
        while moved:
            moved = False
            for session in list(self._sessions.values()):  # a finalizer may close one at any time
                if not session.backlog or self._streaming:
                    continue
                limit = self._limit(session, session.backlog[0].kind)
                if session.messages < limit:
                    moved = self._send_next(session, limit) or moved

    def _limit(self, session: Session, kind: object) -> int:
        """Give how many messages may be on their way while calls of this kind are next.

        No more than keep those workers busy that the root can feed. The shorter the calls, the fewer these are, and the more calls
        wait here until they make up a message together.
        """
        seconds = self._seconds.get(kind)
        if seconds is None:
            return session.limit
        return min(session.limit, _PER_WORKER * (2 + int(seconds / _FEEDING)))

    def _send_next(self, session: Session, limit: int) -> bool:
        share = -(-len(session.backlog) // limit)  # leave the others something, too
        tasks = session.next_batch(min(_MOST, share), _MOST_BYTES, self._seconds, _MOST_SECONDS)
        if not tasks:  # all were cancelled
            self._idle.notify_all()
            return False
        batch = Batch(len(tasks))
        session.unsettled += len(tasks)
        for task in tasks:
            task.batch = batch
            session.sent[task.number] = task
        session.messages += 1
        initializer = session.initializer.number if session.initializer else 0
        try:
            self._put((session.number, initializer, [task.call() for task in tasks]))
        except Exception as error:  # noqa: BLE001 - more than a channel can carry: they fail alone
            self._fail(session, tasks, error)
        except BaseException:  # Ctrl-C in the thread that submits
            self._take_back(session, tasks)
            raise
        return True

    def _fail(self, session: Session, tasks: list[Task], error: Exception) -> None:
        for task in tasks:
            session.sent.pop(task.number, None)
            self._leave_batch(session, task)
            _quietly(task.future.set_exception, with_cause(error, self._place))
        session.unsettled -= len(tasks)
        self._idle.notify_all()

    def _take_back(self, session: Session, tasks: list[Task]) -> None:
        """Have tasks that were sent, and not begun, be sent once more."""
        for task in tasks:
            self._leave_batch(session, task)
        session.unsettled -= len(tasks)
        session.take_back(tasks)

    @staticmethod
    def _leave_batch(session: Session, task: Task) -> None:
        assert task.batch is not None
        task.batch.left -= 1
        if task.batch.left == 0:
            session.messages -= 1

    def _put(self, message: Work) -> None:
        try:
            self._work.put_nowait(message)
        except ChannelFull:
            # In the background, as the others are taken; the collector must not wait for it, or nobody would make room.
            future = self._work.putf(message, copy=False)
            self._streaming = True
            future.add_done_callback(self._streamed)

    def _streamed(self, future: Future[None]) -> None:
        with self._lock:
            self._streaming = False
            if future.exception() is None:
                self._dispatch()

    # -- the collector -----------------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        try:
            while self._collect_some():
                pass
        except BaseException as error:  # noqa: BLE001 - a collector that fails must not leave anybody waiting
            self._break_all(error)

    def _collect_some(self) -> bool:
        """Settle the futures of the replies that have come; False once none will come any more."""
        replies = self._replies.take_many(_REPLIES)
        if not replies:
            return False
        done, broken = self._note_all(replies)
        replies.clear()
        for session, (name, text, trace, _) in broken:
            self._break(session, f"the initializer failed in a worker, {name}: {text}", RemoteTraceback(trace))
        for session, settled in done:
            count = len(settled)
            settled.reverse()
            while settled:  # so that nothing here holds on to a result while the next one is unpickled
                self._settle(*settled.pop())
            with self._idle:
                session.unsettled -= count  # only now: who waits for the session finds its futures done
                self._forget_done()
                self._idle.notify_all()
        return True

    def _note_all(
        self, replies: list[Reply]
    ) -> tuple[list[tuple[Session, list[tuple[Task, Outcome]]]], list[tuple[Session, Failure]]]:
        """Take what has an outcome off the lists, and send what has room now: workers first, futures afterwards."""
        done: list[tuple[Session, list[tuple[Task, Outcome]]]] = []
        broken: list[tuple[Session, Failure]] = []
        with self._lock:
            for rank, number, outcomes, given_back, failure, wanted in replies:
                if wanted:
                    function = self.catalogue.find(wanted)
                    self._parcels.send(rank, function.blob if function else None)
                session = self._sessions.get(number)
                if session is None or session.broken:
                    continue
                if failure is not None:
                    broken.append((session, failure))
                if outcomes:
                    done.append((session, self._note(session, outcomes)))
                self._note_given_back(session, given_back)
            self._dispatch()
        return done, broken

    def _note(self, session: Session, outcomes: Sequence[Outcome]) -> list[tuple[Task, Outcome]]:
        """Take the tasks that have an outcome off the list; the lock is held."""
        found = []
        expected = self._seconds
        for outcome in outcomes:
            task = session.sent.pop(outcome[0], None)
            if task is not None:
                found.append((task, outcome))
                self._leave_batch(session, task)
                before = expected.get(task.kind, outcome[1])
                expected[task.kind] = before + _WEIGHT * (outcome[1] - before)
        return found

    def _note_given_back(self, session: Session, numbers: Sequence[int]) -> None:
        """Queue calls again that waited behind a long one; calls of their kind are not expected to be short for a while."""
        for number in reversed(numbers):
            task = session.sent.get(number)
            if task is not None:
                self._seconds[task.kind] = max(self._seconds.get(task.kind, 0.0), _LONG)
                self._take_back(session, [task])

    def _settle(self, task: Task, outcome: Outcome) -> None:
        _, _, shipped, failure = outcome
        if failure is not None:
            _quietly(task.future.set_exception, error_from(failure))
            return
        assert shipped is not None
        try:
            value = unship(shipped)
        except BaseException as error:  # noqa: BLE001 - the result's own code: it fails alone
            _quietly(task.future.set_exception, with_cause(error, self._place))
        else:
            _quietly(task.future.set_result, value)

    def _forget_done(self) -> None:
        for session in list(self._sessions.values()):  # a finalizer may come in between, and do the same
            if session.closed and session.idle:
                self._sessions.pop(session.number, None)

    # -- when it goes wrong ------------------------------------------------------------------------------------------------------

    def _break(self, session: Session, reason: str, cause: BaseException | None) -> None:
        """Fail every call of a session, those to come too."""
        with self._lock:
            session.broken_cause, session.broken = cause, reason
            tasks = session.drop_all()  # settled below
        for task in tasks:
            error = BrokenExecutor(reason)
            error.__cause__ = cause
            if task.future.running() or task.future.set_running_or_notify_cancel():
                _quietly(task.future.set_exception, error)
        with self._idle:
            session.unsettled -= len(tasks)
            self._idle.notify_all()

    def _break_all(self, error: BaseException) -> None:
        reason = f"the collector failed: {error!r}"
        cause = RemoteTraceback("".join(traceback.format_exception(error)))
        with self._lock:
            self._failure = reason
        for session in self.sessions():
            self._break(session, reason, cause)


def _cancel(future: Future[Any]) -> None:
    if future.cancel():
        future.set_running_or_notify_cancel()


def _quietly(settle: Callable[[Any], None], value: Any) -> None:
    """Settle a future; a callback of its owner's that exits must not take the collector with it."""
    try:
        settle(value)
    except BaseException:
        logger.exception("a callback of a future has failed")

"""Between the futures and the channels, on the root: the dispatcher sends calls, the collector settles futures.

    submit ──> backlog ──dispatch──> work channel ──> workers ──> reply channel ──collector──> future
                  ^                                                                 |
                  └────────────── each message that is done makes room ─────────────┘

Dispatching is no thread: it is done by whoever made it possible, the thread that submits or the collector. At most a few messages
a worker are on their way, so that what waits can be cancelled, and so that batches grow only when calls come faster than they are
run.

One lock guards everything below. Futures are settled, and results unpickled, without it.
"""

import contextlib
import itertools
import logging
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pickle import PicklingError
from typing import Any

from mpiexecutor._liveness.monitor import Loss
from mpiexecutor._liveness.status_page import INITIALIZER
from mpiexecutor._script.main_module import NotAdmitted
from mpiexecutor._script.state import Registry, State
from mpiexecutor._util.periodic import Sentry
from mpiexecutor._util.pickling import loads
from mpiexecutor.channel import ChannelClosed, ChannelError, ChannelFull, ChannelMemoryError, RemoteChannel, Share

from .bulk import Parcels
from .functions import Function
from .messages import (
    OF_ONE_CALL,
    Barrier,
    Calls,
    CallTooLarge,
    GivenBack,
    InitializerFailed,
    Outcome,
    Reply,
    Results,
    SpareResult,
    TopLevelFailed,
    Wanted,
    load_outcomes,
)
from .outcomes import Blob, BrokenWorkerError, Failure, Place, RemoteTraceback, error_from, with_cause
from .session import Batch, Session, Task

logger = logging.getLogger("mpiexecutor")

_PER_WORKER = 2  # messages on their way: one that is run, and one that waits for it
_FEEDING = 25e-6  # seconds that the root needs, at the least, to feed a worker with a call
_MOST = 256  # calls a message
_MOST_BYTES = 256 << 10  # of several calls in one message
_MOST_SECONDS = 1e-3  # that the calls of one message are expected to run, so that none waits long for another
_LONG = 2e-3  # seconds that a call is expected to take, at the least, after others have waited for one of its kind
_WEIGHT = 0.25  # of the newest duration in the expected one
_TICK = 5e-3  # seconds between two looks whether calls wait while workers do: a message that is seen twice is one of long calls
_TICKS = 10  # looks in vain before nobody looks any more
_REFUSALS = 20  # of workers that another executor has, until one has both
_REPLIES = 64  # messages that the collector takes at a time


class Pump:
    """Sends the calls of all executors of this process, and settles their futures."""

    def __init__(
        self,
        work: RemoteChannel[Calls, Calls],
        replies: RemoteChannel[Reply, Reply],
        parcels: Parcels,
        workers: int,
        place: Place,
    ) -> None:
        self._work = work
        self._replies = replies
        self._parcels = parcels
        self.registry = Registry()
        self._opened: dict[int, set[int]] = {}  # by rank: executors of which it has a __main__
        self._workers = workers
        self._lost: set[int] = set()  # ranks
        self._most_messages = _PER_WORKER * workers  # of a session on their way, for the workers that are left
        self._place = place
        self._lock = threading.RLock()  # a callback of a future that is done already runs at once
        self._changed = threading.Condition(self._lock)
        self._sessions: dict[int, Session] = {}
        self._numbers = itertools.count()
        self._session_numbers = itertools.count()
        self._seconds: dict[object, float] = {}  # expected duration of a call, by kind
        self._told: set[int] = set()  # executors of which it was told that the top level has failed
        self._failing: threading.Thread | None = None  # who settles futures, if it is not the collector
        self._failure = ""  # why nothing is collected any more
        self._done: Counter[int] = Counter()  # calls, by rank
        self._orders: deque[Callable[[], list[Callable[[], None]]]] = deque()  # each gives what is left to do for futures
        self._postponed: list[Callable[[], list[Callable[[], None]]]] = []  # orders that wait until its number is known
        self._unread = 0  # replies that were too large, and whose spare ones are still to come, unless their workers have died
        self._streaming = False  # a message longer than the room there was is still being put
        self._sentry = Sentry("mpiexecutor sentry", self._see_who_is_slow, every=_TICK, times=_TICKS)
        self._collector = threading.Thread(target=self._collect, name="mpiexecutor collector", daemon=True)
        self._collector.start()

    # -- what executors call ---------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """How many are left."""
        return self._workers - len(self._lost)

    def done_by(self, rank: int) -> int:
        """How many calls of a worker have an outcome."""
        return self._done[rank]

    def open(self, most_workers: int, initializer: Function | None, **options: Any) -> Session:
        """Begin a session for an executor that may use so many workers; for the options see Session."""
        # With fewer than all workers, only one message each. Any worker may take it: one too many gives it back.
        limit = _PER_WORKER * self._workers if most_workers >= self._workers else most_workers
        with self._lock:
            if self._failure:
                raise BrokenProcessPool(self._failure)
            self._forget_done()
            session = Session(next(self._session_numbers), limit, initializer, **options)
            session.ranks = None if most_workers >= self._workers else set()
            self._sessions[session.number] = session
            return session

    def submit(
        self,
        session: Session,
        future: Future[Any],
        blob: Blob,
        size: int,
        kind: object,
        function: Function | str | None,
        state: State | None,
    ) -> None:
        """Queue a call, and send it at once if it is its turn. RuntimeError if the session takes no more, see check_open.

        Waits if the session is full, but not in a callback of a future, which is to be done with before there is room.

        The lock is taken only to send. Who makes room sends what it then finds queued, so either sees the other; and who closes
        the session, or breaks it, either finds the call queued or is found to have done so here.
        """
        if session.closed or session.broken:
            self.check_open(session)
        number = next(self._numbers)
        called = function.number if isinstance(function, Function) else function
        call = (number, None if state is None else state.number, called, *blob)
        task = Task(number, future, call, size, kind, function, state)
        if session.max_pending is None or self._is_settling():
            session.backlog.append(task)
        else:
            future.add_done_callback(self._note_cancelled)
            with self._changed:
                self._changed.wait_for(lambda: not session.is_full)
                self.check_open(session)
                session.backlog.append(task)
        messages = len(session.under_way)
        if messages < session.limit and messages < self._most_messages:
            if messages < self._limit(session, kind):
                with self._lock:
                    self._dispatch()
            else:
                self._sentry.watch()
        if session.closed or session.broken:
            with self._lock:
                if session.withdraw(task):
                    self._changed.notify_all()  # who waits for the session may have found it queued
                    self.check_open(session)

    def _note_cancelled(self, future: Future[Any]) -> None:
        if future.cancelled():  # it makes room
            with self._changed:
                self._changed.notify_all()

    def check_open(self, session: Session) -> None:
        """Raise what submit would raise."""
        if session.broken:
            raise BrokenProcessPool(session.broken) from session.broken_cause
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
            self._changed.notify_all()
        for task in dropped:
            _quietly(_cancel, task.future)

    def drop(self, session: Session) -> None:
        """Close a session whose executor is gone. The collector of garbage calls this, in any thread: no lock is awaited."""
        session.closed = session.closed or "the executor is gone"
        if self._lock.acquire(blocking=False):
            try:
                self._forget_done()
            finally:
                self._lock.release()

    def wait(self, session: Session) -> None:
        """Wait until every call of the session has its outcome."""
        if self._is_settling() and not session.idle:
            raise RuntimeError("a callback of a future cannot wait for its executor: the futures are settled by this thread")
        with self._changed:
            self._dispatch()  # what a submit has queued that was interrupted then
            self._changed.wait_for(lambda: session.idle)

    def _is_settling(self) -> bool:
        """Whether this thread settles futures."""
        return threading.current_thread() in {self._collector, self._failing}

    def sessions(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def disown(self, reason: str) -> None:
        """In a forked child: nothing of this is its own, and the locks may be held by threads that it does not have."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
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
        self._sentry.stop()

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
                elif limit < self._most(session):
                    self._sentry.watch()

    def _most(self, session: Session) -> int:
        """Give how many messages may be on their way at all."""
        return min(session.limit, self._most_messages)

    def _limit(self, session: Session, kind: object) -> int:
        """Give how many messages may be on their way while calls of this kind are next.

        No more than keep those workers busy that the root can feed. The shorter the calls, the fewer these are, and the more calls
        wait here until they make up a message together. What turns out to be slow does not count: others are not to wait for it.
        """
        seconds = self._seconds.get(kind)
        if seconds is None:
            return self._most(session)
        return min(self._most(session), _PER_WORKER * (2 + int(seconds / _FEEDING)) + len(session.slow))

    def _see_who_is_slow(self) -> bool:
        """Send what waits for messages that are not done as soon as was expected; whether something waits still."""
        with self._lock:
            sessions = [session for session in list(self._sessions.values()) if session.backlog]  # a finalizer: as in _dispatch
            for session in sessions:
                session.slow, session.seen = session.under_way & session.seen, frozenset(session.under_way)
            self._dispatch()
            return any(session.backlog and session.messages < self._most(session) for session in sessions)

    def _send_next(self, session: Session, limit: int) -> bool:
        share = -(-len(session.backlog) // limit)  # leave the others something, too
        tasks = session.next_batch(min(_MOST, share), _MOST_BYTES, self._seconds, _MOST_SECONDS)
        if not tasks:  # all were cancelled
            self._changed.notify_all()
            return False
        batch = Batch(tuple(task.number for task in tasks), len(tasks))
        session.unsettled += len(tasks)
        for task in tasks:
            task.batch = batch
            session.sent[task.number] = task
        session.under_way.add(batch)
        initializer = session.initializer.number if session.initializer else None
        try:
            self._put(Calls(session.number, initializer, session.task_timeout, [task.call for task in tasks]), batch)
        except Exception as error:  # noqa: BLE001 - more than a channel can carry: they fail alone
            self._fail(session, tasks, error)
        except BaseException:  # Ctrl-C in the thread that submits
            self._take_back(session, tasks)
            raise
        return True

    def _fail_batch(self, batch: Batch, error: BaseException) -> None:
        """Fail the calls of a message that could not be put in the background; the lock is held."""
        for session in list(self._sessions.values()):
            if tasks := [task for number in batch.calls if (task := session.sent.get(number)) and task.batch is batch]:
                self._fail(session, tasks, error)

    def _fail(self, session: Session, tasks: list[Task], error: BaseException) -> None:
        session.unsettled -= len(tasks)  # first: a callback that submits may wait for room
        for task in tasks:
            session.sent.pop(task.number, None)
            self._leave_batch(session, task)
            _quietly(task.future.set_exception, with_cause(error, self._place))
        self._changed.notify_all()

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
            session.under_way.discard(task.batch)
            session.slow.discard(task.batch)

    def _put(self, message: Calls, batch: Batch) -> None:
        try:
            self._work.put_nowait(message)
        except ChannelFull:
            # In the background, as the others are taken; the collector must not wait for it, or nobody would make room.
            future = self._work.putf(message, copy=False)
            self._streaming = True
            future.add_done_callback(partial(self._streamed, batch))
        else:
            batch.number = self._work.count - 1

    def _streamed(self, batch: Batch, future: Future[None]) -> None:
        error = future.exception()
        with self._lock:
            self._streaming = False
            if error is None:
                batch.number = self._work.count - 1  # nothing else was put meanwhile
            else:
                self._fail_batch(batch, error)
            self._dispatch()
            postponed, self._postponed = self._postponed, []
        for order in postponed:
            self._order(order)

    # -- the collector -----------------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        try:
            while self._collect_some():
                pass
        except BaseException as error:  # noqa: BLE001 - a collector that fails must not leave anybody waiting
            self._break_all(error)
        else:
            return
        while self._drain_one():
            pass

    def _drain_one(self) -> bool:
        """Throw away what comes, so that no worker waits for room, or for a function, and all can leave; False once all have."""
        try:
            replies = self._replies.take_many(1)
        except ChannelClosed:
            return False
        except Exception as error:  # noqa: BLE001 - no memory, perhaps, for what is thrown away
            with contextlib.suppress(ChannelError, MemoryError):
                if isinstance(error, ChannelMemoryError) and self._replies.skip(error.number):
                    return True
            time.sleep(_TICK)
            return True
        self._refuse(replies)
        return bool(replies)

    def _refuse(self, replies: list[Reply]) -> None:
        for reply in replies:
            if isinstance(reply, Wanted):
                self._parcels.send(reply.rank, None)

    def _collect_some(self) -> bool:
        """Settle the futures of the replies that have come; False once none will come any more."""
        try:
            replies = self._replies.take_many(_REPLIES)
        except ChannelMemoryError as error:
            if error.size < OF_ONE_CALL:
                raise
            self._unread += self._replies.skip(error.number)  # its worker tells what it was about
            return True
        if not replies:
            return False
        steps: deque[Callable[[], None]] = deque()
        try:
            self._note_all(replies, steps)
        except BaseException:
            self._refuse(replies)
            raise
        finally:
            while steps:  # what was taken off the lists is nobody else's any more
                steps.popleft()()
        return True

    def _note_all(self, replies: list[Reply], steps: deque[Callable[[], None]]) -> None:
        """Take what has an outcome off the lists, and send what has room now. Note what is left to do: futures come last."""
        with self._lock:
            while replies:  # so that nothing here holds on to results
                reply = replies.pop(0)
                if isinstance(reply, Results):
                    steps += self._note_outcomes(reply.rank, reply.executor, reply.outcomes)
                else:
                    steps += self._note_other(reply)
                del reply
            self._dispatch()

    def _note_other(self, reply: Reply) -> list[Callable[[], None]]:
        steps: list[Callable[[], None]] = []
        if isinstance(reply, GivenBack):
            self._note_given_back(reply)
        elif isinstance(reply, SpareResult):
            steps = self._note_spare(reply)
        elif isinstance(reply, Wanted):
            # Not under the lock: it may pickle, and start a thread and wait for it, and garbage may be collected there.
            steps.append(partial(self._answer, reply.rank, reply.executor, reply.number, reply.known))
        elif isinstance(reply, InitializerFailed):
            steps = self._note_initializer_failed(reply)
        elif isinstance(reply, TopLevelFailed):
            self._note_top_level(reply.executor, reply.failure)
        elif isinstance(reply, CallTooLarge):
            steps = self._fail_unread(reply.message, reply.failure)
        elif isinstance(reply, Barrier):
            steps = self._orders.popleft()()
        else:
            raise TypeError(f"no reply: {reply!r:.50}")
        return steps

    def _note_outcomes(self, rank: int, executor: int, outcomes: Sequence[Outcome]) -> list[Callable[[], None]]:
        session = self._sessions.get(executor)
        if session is None or session.broken or not (found := self._note(session, outcomes)):
            return []
        self._done[rank] += len(found)
        return [partial(self._settle_all, session, found)]

    def _note_spare(self, reply: SpareResult) -> list[Callable[[], None]]:
        if not self._unread:
            return []
        outcome = (reply.number, reply.seconds, True, *reply.failure.dumps())
        steps = self._note_outcomes(reply.rank, reply.executor, [outcome])
        self._unread -= bool(steps)
        return steps

    def _note_initializer_failed(self, reply: InitializerFailed) -> list[Callable[[], None]]:
        session = self._sessions.get(reply.executor)
        if session is None or session.broken:
            return []
        reason = f"the initializer failed in a worker, {reply.failure.name}: {reply.failure.text}"
        return [partial(self._break, session, reason, RemoteTraceback(reply.failure.trace))]

    def _answer(self, rank: int, number: int, wanted: int, known: int) -> None:
        """Give a worker what its calls need: nothing, if nobody waits for these calls any more."""
        shared = self.registry.find(wanted)
        if shared is None:
            self._parcels.send(rank, None)
            return
        with self._lock:
            if isinstance(shared, State) and not self._admit(rank, number):
                self._parcels.send(rank, Blob.of(NotAdmitted()))
                return
            opened = self._opened.setdefault(rank, set())
            ended = opened - self._sessions.keys()
            opened -= ended
            opened.add(number)
        try:
            blob = Blob(*shared.pickled(known, sorted(ended)))
        except BaseException as error:  # noqa: BLE001 - its own code: the worker raises it
            reason = PicklingError(f"the script's globals cannot be pickled: {type(error).__name__}: {error}")
            blob = Blob.of(with_cause(reason, self._place))
        self._parcels.send(rank, blob)

    def _admit(self, rank: int, number: int) -> bool:
        """Have a worker run calls of an executor, unless that has as many workers as it may have; the lock is held."""
        session = self._sessions.get(number)
        if session is None or session.ranks is None or rank in session.ranks:
            return True
        if len(session.ranks - self._lost) >= session.limit:
            return False
        taken: set[int] = set()
        for other in self._sessions.values():
            taken |= other.ranks or set()
        free = set(range(self._place.ranks)) - {self._place.rank} - self._lost - taken
        if free and rank in taken and session.refusals < _REFUSALS:  # those with few workers have others, unless these are busy
            session.refusals += 1
            return False
        session.ranks.add(rank)
        return True

    def _note_top_level(self, number: int, failure: Failure) -> None:
        """Tell once that the top level of the script has failed in a worker."""
        if number not in self._told:
            self._told.add(number)
            name, text, trace, _ = failure
            logger.warning("the top level of the script ended early in a worker, %s: %s%s", name, text, trace)

    def _settle_all(self, session: Session, settled: list[tuple[Task, Outcome]]) -> None:
        count = len(settled)
        settled.reverse()
        while settled:  # so that nothing here holds on to a result while the next one is unpickled
            self._settle(*settled.pop())
        self._note_settled(session, count)

    def _note_settled(self, session: Session, count: int) -> None:
        with self._changed:
            session.unsettled -= count  # only now: who waits for the session finds its futures done
            self._forget_done()
            self._changed.notify_all()

    def _note(self, session: Session, outcomes: Sequence[Outcome]) -> list[tuple[Task, Outcome]]:
        """Take the tasks that have an outcome off the list; the lock is held."""
        found = []
        expected = self._seconds
        for outcome in outcomes:
            number, seconds, *_ = outcome
            task = session.sent.pop(number, None)
            if task is not None:
                found.append((task, outcome))
                self._leave_batch(session, task)
                before = expected.get(task.kind, seconds)
                expected[task.kind] = before + _WEIGHT * (seconds - before)
        return found

    def _note_given_back(self, reply: GivenBack) -> None:
        """Queue calls again. If they waited behind a long one, calls of their kind are not expected to be short for a while."""
        session = self._sessions.get(reply.executor)
        if session is None or session.broken:
            return
        for number in reversed(reply.numbers):
            task = session.sent.get(number)
            if task is not None:
                if reply.behind_long_call:
                    self._seconds[task.kind] = max(self._seconds.get(task.kind, 0.0), _LONG)
                self._take_back(session, [task])

    def _settle(self, task: Task, outcome: Outcome) -> None:
        _, _, failed, data, buffers = outcome
        settle: Callable[[Any], None] = task.future.set_exception if failed else task.future.set_result
        try:
            value = error_from(Failure.loads(data, buffers)) if failed else loads(data, buffers)
        except BaseException as error:  # noqa: BLE001 - the result's own code: it fails alone
            settle, value = task.future.set_exception, with_cause(error, self._place)
        _quietly(settle, value)

    def _forget_done(self) -> None:
        for session in list(self._sessions.values()):  # a finalizer may come in between, and do the same
            if session.closed and session.idle:
                self._sessions.pop(session.number, None)

    # -- when it goes wrong ------------------------------------------------------------------------------------------------------

    def lose(self, loss: Loss, share: Share | None) -> None:
        """Note that a worker has died; what it had put before that is collected first."""
        self._order(partial(self._bury, loss, share))

    def _order(self, order: Callable[[], list[Callable[[], None]]]) -> None:
        """Have the collector do something, under the lock, when it has collected all that has been put so far."""
        self._orders.append(order)
        with contextlib.suppress(ChannelClosed):
            self._replies.put(Barrier())

    def regain(self, rank: int) -> None:
        """Note that a worker lives that was taken to be lost."""
        with self._lock:
            self._lost.discard(rank)
            self._most_messages = _PER_WORKER * self.workers
            self._dispatch()

    def renumber(self, kept: list[int], first: int) -> None:
        """Note that the messages of work with these numbers have other ones now, from the first on."""
        new = {old: first + index for index, old in enumerate(kept)}
        with self._lock:
            batches = {task.batch for session in list(self._sessions.values()) for task in session.sent.values()}
            for batch in batches:
                if batch is not None and batch.number in new:
                    batch.number = new[batch.number]

    def give_up(self, reason: str) -> None:
        """Fail everything, for good."""
        with self._lock:
            self._failure = reason
            self._failing = threading.current_thread()
        for session in self.sessions():
            self._break(session, reason, None)

    def is_stuck(self, seconds: float) -> bool:
        """Whether some thread is at work here, and does not come back in time."""
        if self._lock.acquire(timeout=seconds):
            self._lock.release()
            return False
        return True

    def _bury(self, loss: Loss, share: Share | None) -> list[Callable[[], None]]:
        """Note that there is one worker less, and see to its calls."""
        self._lost.add(loss.rank)
        self._most_messages = _PER_WORKER * self.workers
        steps = self._take_over(loss)
        steps += [] if share is None else self._see_to_calls(loss, share)
        if not self.workers:
            steps.append(partial(self.give_up, f"all workers are lost; the last of them, {loss}"))
        return steps

    def _take_over(self, loss: Loss) -> list[Callable[[], None]]:
        """Take the outcomes that a dead worker has left. Those that it had put as well are known by now, and are nobody's."""
        steps: list[Callable[[], None]] = []
        outcomes: list[Outcome] = []
        try:
            outcomes.extend(load_outcomes(loss.held))
        except Exception:
            logger.exception("not all of what a dead worker had run can be read")
        for session in list(self._sessions.values()):
            if found := self._note(session, outcomes):
                self._done[loss.rank] += len(found)
                steps.append(partial(self._settle_all, session, found))
        return steps

    def _see_to_calls(self, loss: Loss, share: Share) -> list[Callable[[], None]]:
        """Fail what a dead worker had begun, or have it run again if it may be; the rest of its message was not lost."""
        for session in list(self._sessions.values()):
            if tasks := session.tasks_in(share.messages):
                return self._divide(session, loss, tasks)
        if self._streaming:  # that message's number is still to be noted, and it may be the one
            self._postponed.append(partial(self._see_to_calls, loss, share))
        return []

    def _fail_unread(self, message: int, failure: Failure) -> list[Callable[[], None]]:
        """Fail the calls of a message that a worker could not receive."""
        for session in list(self._sessions.values()):
            if tasks := session.tasks_in({message}):
                for task in tasks:
                    del session.sent[task.number]
                    self._leave_batch(session, task)
                outcomes = [(task, (task.number, 0.0, True, *failure.dumps())) for task in tasks]
                return [partial(self._settle_all, session, outcomes)]
        if self._streaming:  # as above
            self._postponed.append(partial(self._fail_unread, message, failure))
        return []

    def _divide(self, session: Session, loss: Loss, tasks: list[Task]) -> list[Callable[[], None]]:
        """Tell apart the calls of one message, which have no outcome: those that were begun, and the others."""
        if loss.begun == INITIALIZER:
            return [partial(self._break, session, f"the initializer was being run when {loss}", None)]
        assert tasks[0].batch is not None
        calls = tasks[0].batch.calls
        last = len(calls) if loss.begun is None else calls.index(loss.begun) + 1 if loss.begun in calls else 0
        begun = set(calls[:last])
        overdue = loss.begun if loss.overdue else None
        again = [task for task in tasks if task.number != overdue and session.is_to_be_run_again(task, begun=task.number in begun)]
        self._take_back(session, again)
        lost = [task for task in tasks if session.sent.pop(task.number, None)]
        for task in lost:
            self._leave_batch(session, task)
        return [partial(self._fail_lost, session, loss, lost)]

    def _fail_lost(self, session: Session, loss: Loss, tasks: list[Task]) -> None:
        text = f"{loss} while it ran this call, or before the result was there"
        for task in tasks:
            if loss.overdue and task.number == loss.begun:
                error: Exception = TimeoutError(f"this call ran longer than task_timeout, {loss.overdue:g} s: {loss}")
            else:
                error = BrokenWorkerError(text, loss.rank, loss.host, loss.pid, loss.end)
            _quietly(task.future.set_exception, error)
        self._note_settled(session, len(tasks))

    def _break(self, session: Session, reason: str, cause: BaseException | None) -> None:
        """Fail every call of a session, those to come too."""
        with self._lock:
            session.broken_cause, session.broken = cause, reason
            tasks = session.drop_all()  # settled below
        for task in tasks:
            error = BrokenProcessPool(reason)
            error.__cause__ = cause
            if task.future.running() or task.future.set_running_or_notify_cancel():
                _quietly(task.future.set_exception, error)
        with self._changed:
            session.unsettled -= len(tasks)
            self._changed.notify_all()

    def _break_all(self, error: BaseException) -> None:
        reason, cause = f"the collector failed: {error!r}", None
        with contextlib.suppress(MemoryError):
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

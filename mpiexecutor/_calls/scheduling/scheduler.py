"""The interface of the scheduler: for executors, and for the recovery of failed workers."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from mpiexecutor._calls.bulk import BulkTransfer
from mpiexecutor._calls.functions import Function
from mpiexecutor._calls.messages import Calls, MapCalls, Reply, Row, SharedMemory
from mpiexecutor._calls.options import Options
from mpiexecutor._calls.outcomes import Location
from mpiexecutor._liveness.status_page import MOST_CANCELLED
from mpiexecutor._script.state import Registry, State
from mpiexecutor._util.pickling import Pickled
from mpiexecutor.channel import RemoteChannel

from .collector import Collector
from .dispatcher import Dispatcher
from .futures import CallFuture
from .lost_calls import LostCalls
from .series import Series
from .session import Session, Task
from .settling import Requests, Settler, cancel_quietly
from .state import PER_WORKER, SchedulerState


class Scheduler:
    """Has workers run the calls of all executors of a communicator, and settles their futures."""

    def __init__(
        self,
        work: RemoteChannel[Calls | MapCalls, Calls | MapCalls],
        replies: RemoteChannel[Reply, Reply],
        bulk: BulkTransfer,
        workers: int,
        location: Location,
        memory: SharedMemory | None = None,
        cancel: Callable[[list[int]], object] = lambda _: None,
    ) -> None:
        """`cancel` has workers not run calls of these numbers, and kill the children that run one."""
        self._work = work
        self._replies = replies
        self.registry = Registry()
        self._session_numbers = itertools.count()
        self._cancel = cancel
        self._state = SchedulerState(workers, location)
        memory = memory or SharedMemory()
        requests = Requests(self._state, self.registry, bulk)
        lost_calls = LostCalls(self._state, replies)
        settler = Settler(self._state, requests)
        self._dispatcher = Dispatcher(self._state, work, replies, memory, lost_calls.queue_postponed)
        self._collector = Collector(self._state, replies, memory, self._dispatcher, lost_calls, requests, settler)
        # The parts do these themselves; for what they do see there.
        self.sessions, self.lose, self.give_up = self._state.open_sessions, lost_calls.lose, settler.give_up

    @property
    def workers(self) -> int:
        """The number of workers that live."""
        return self._state.workers

    @property
    def failure(self) -> str:
        """Why no session can be opened any more; empty if one can."""
        return self._state.failure

    def done_by(self, rank: int) -> int:
        """Return the number of calls that a worker has run."""
        return self._state.done[rank]

    def open(self, most_workers: int, initializer: Function | None, options: Options, *, isolable: bool = True) -> Session:
        """Open a session for an executor that may use `most_workers` workers. `isolable`: workers can have child processes."""
        # With fewer than all workers one message for each is under way. Any worker may take it: one too many gives it back.
        state = self._state
        uses_all = most_workers >= state.all_workers
        limit = PER_WORKER * state.all_workers if uses_all else most_workers
        with state.lock:
            if state.failure:
                raise BrokenProcessPool(state.failure)
            state.forget_done()
            seconds = float(options.task_timeout or 0.0)  # of no class of its own: it is part of messages
            session = Session(next(self._session_numbers), limit, initializer, options.retries, seconds, options.max_pending)
            session.per_child = options.per_child if isolable else None
            session.ranks = None if uses_all else set()
            state.sessions[session.number] = session
            return session

    def submit(
        self,
        session: Session,
        future: CallFuture,
        kind: object,
        function: Function | str | None,
        state: State | None,
        pickle: Pickled,
        size: int,
    ) -> None:
        """Queue a call, and send it at once if it is its turn. Raise as `check_open`.

        Block while `max_pending` is reached, except in a callback of a future, which runs in the thread that makes room.

        The lock is taken only to send. Queueing and making room are a store/load handshake: this thread appends, then reads how
        much is under way; the collector removes what is done, then reads the backlog. At least one of them sees the other's write.
        So are queueing and closing: this thread appends, then reads `closed` and `broken`; the other sets them, then reads the
        backlog.
        """
        if session.closed or session.broken:
            self.check_open(session)
        number = next(self._state.numbers)
        called = function.number if isinstance(function, Function) else function
        if session.per_child is not None:
            future.end = partial(self._end, session, number)
        call = (number, None if state is None else state.number, called, *pickle)
        task = Task(number, future, call, size, kind, function, state)
        if session.max_pending is None or self._state.is_settling():
            session.backlog.append(task)
        else:
            future.add_done_callback(self._note_cancelled)
            with self._state.changed:
                self._state.changed.wait_for(lambda: not session.is_full)
                self.check_open(session)
                session.backlog.append(task)
        self._send_if_there_is_room(session, kind)
        if session.closed or session.broken:
            with self._state.lock:
                if session.withdraw(task):
                    self._state.changed.notify_all()  # `wait` may have seen it in the backlog
                    self.check_open(session)

    def append(self, session: Session, series: Series, rows: Sequence[Row]) -> None:
        """Queue calls of a map, and send them at once if it is their turn. Raise and block as `submit`."""
        if session.closed or session.broken:
            self.check_open(session)
        if session.max_pending is None or self._state.is_settling():
            series.rows.extend(rows)
            session.backlog.extend(itertools.repeat(series, len(rows)))
        else:
            for row in rows:
                with self._state.changed:
                    self._state.changed.wait_for(lambda: not session.is_full)
                    self.check_open(session)
                    series.rows.append(row)
                    session.backlog.append(series)
                self._send_if_there_is_room(session, series.kind, of_map=True)
        self._send_if_there_is_room(session, series.kind, of_map=True)
        if session.closed or session.broken:
            with self._state.lock:
                if [row for row in rows if session.withdraw(series)]:
                    self._state.changed.notify_all()
                    self.check_open(session)

    def _send_if_there_is_room(self, session: Session, kind: object, *, of_map: bool = False) -> None:
        messages = len(session.under_way)
        if messages < session.limit and messages < self._state.most_messages:
            if messages < self._dispatcher.limit(session, kind, of_map=of_map):
                with self._state.lock:
                    self._dispatcher.dispatch()
            else:
                self._dispatcher.watch()

    def note_cancelled(self, session: Session) -> None:
        """Note that calls of a map that wait were cancelled: there may be room for others. A finalizer may call this."""
        if session.max_pending is not None:
            with self._state.changed:
                self._state.changed.notify_all()

    def _end(self, session: Session, number: int, future: CallFuture) -> bool:
        """Cancel a future whose call was sent, and have the call ended. Return False if it has an outcome."""
        with self._state.changed:
            sent = [task for each in self._state.open_sessions() for task in each.sent.values() if isinstance(task, Task)]
            cancelled = [task.number for task in sent if task.future.cancelled()]
            if not session.has(number) or len(cancelled) >= MOST_CANCELLED or not future.set_cancelled():
                return False
            self._cancel([*cancelled, number])
            self._state.changed.notify_all()  # it may be in the backlog
        future.invoke_callbacks()
        return True

    def _note_cancelled(self, future: Future[Any]) -> None:
        if future.cancelled():  # there is room for another
            with self._state.changed:
                self._state.changed.notify_all()

    def check_open(self, session: Session) -> None:
        """Raise RuntimeError if the session is closed, BrokenProcessPool if it is broken."""
        if session.broken:
            raise BrokenProcessPool(session.broken) from session.broken_cause
        if session.closed:
            raise RuntimeError(session.closed)

    def close(self, session: Session, reason: str, *, cancel: bool = False) -> None:
        """Accept no more calls. With `cancel`, cancel those that were never sent."""
        dropped: list[Task | Series] = []
        with self._state.lock:
            session.close(reason)
            if cancel:
                dropped = session.drop_unsent()
            self._state.forget_done()
            self._state.changed.notify_all()
        for task in dropped:
            cancel_quietly(task.future)

    def drop(self, session: Session) -> None:
        """Close a session whose executor is gone. Never blocks: a finalizer calls this, in any thread, at any line."""
        session.close("the executor is gone")
        if self._state.lock.acquire(blocking=False):
            try:
                self._state.forget_done()
            finally:
                self._state.lock.release()

    def wait(self, session: Session) -> None:
        """Wait until the futures of all calls are settled. RuntimeError in a callback of a future: it would wait for itself."""
        if self._state.is_settling() and not session.idle:
            raise RuntimeError("a callback of a future cannot wait for its executor: the futures are settled by this thread")
        with self._state.changed:
            self._dispatcher.dispatch()  # a submit may have been interrupted between queueing and sending
            self._state.changed.wait_for(lambda: session.idle)

    def disown(self, reason: str) -> None:
        """In a forked child: forget all calls. The lock may be held by a thread that the child does not have."""
        self._state.renew_lock()
        for session in self._state.sessions.values():
            session.disown(reason)

    def stop(self) -> None:
        """End the workers' loops and the collector, once every session is idle."""
        self._work.close()
        self._replies.close()
        self._collector.thread.join()
        self._dispatcher.stop()

    # -- what the recovery of failed workers calls ------------------------------------------------------------------------------

    def regain(self, rank: int) -> None:
        """Note that a worker lives that was counted as lost."""
        with self._state.lock:
            self._state.note_regained(rank)
            self._dispatcher.dispatch()

    def renumber(self, kept: list[int], first: int) -> None:
        """Note that messages of the work channel have new numbers: those in `kept`, in order, are numbered from `first` on."""
        new = {old: first + index for index, old in enumerate(kept)}
        with self._state.lock:
            batches = {task.batch for session in list(self._state.sessions.values()) for task in session.sent.values()}
            for batch in batches:
                if batch is not None and batch.number in new:
                    batch.number = new[batch.number]

    def is_stuck(self, seconds: float) -> bool:
        """Whether another thread holds the lock for this number of seconds."""
        if self._state.lock.acquire(timeout=seconds):
            self._state.lock.release()
            return False
        return True

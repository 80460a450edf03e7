"""How executors end, in the scheduler: shut down, dropped, broken, forked; and what a fault of ours does. No MPI: see fakes.py."""

import threading
from collections import deque
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool

import pytest
from fakes import LIMIT, FakeWorker, fake_crew, in_a_thread, reply_nonsense, until

from mpiexecutor._calls.outcomes import RemoteTraceback


@pytest.fixture
def crew():
    with fake_crew(workers=2) as crew:
        yield crew


def work_off(crew, worker):
    """Have a worker answer whatever is sent until nothing more is; return the names of the calls."""
    taken = []
    while crew.work:
        taken += worker.take()
        worker.answer()
        crew.settle()
    return taken


# -- shutdown


def test_what_was_submitted_before_the_end_is_run(crew):
    """No other call is taken; a wait for the end waits for all of them."""
    futures = crew.submit(*range(10))
    crew.scheduler.close(crew.session, "this is the end")
    with pytest.raises(RuntimeError, match="this is the end"):
        crew.submit("late")
    waiting = in_a_thread(crew.scheduler.wait, crew.session)
    assert work_off(crew, FakeWorker(crew, 1)) == [*range(10)]
    waiting.result(LIMIT)
    assert [future.result(0) for future in futures] == [*range(10)]


def test_the_first_reason_for_the_end_counts(crew):
    """What comes later is no news."""
    crew.scheduler.close(crew.session, "the first")
    crew.scheduler.close(crew.session, "the second")
    with pytest.raises(RuntimeError, match="the first"):
        crew.submit("late")


def test_what_was_not_sent_is_cancelled_if_that_is_wanted(crew):
    """What was sent comes to its end."""
    futures = crew.submit(*range(10))
    crew.scheduler.close(crew.session, "this is the end", cancel=True)
    for future in futures[4:]:
        with pytest.raises(CancelledError):
            future.result(LIMIT)
    assert work_off(crew, FakeWorker(crew, 1)) == [*range(4)]
    crew.scheduler.wait(crew.session)
    assert [future.result(0) for future in futures[:4]] == [*range(4)]


def test_what_was_sent_and_waits_again_is_not_cancelled(crew):
    """Its worker has died, or has given it back: its future has been running."""
    futures, worker = crew.send_together("a", "b", "c")
    session = crew.session_of(worker)
    futures += crew.submit("d", session=session)
    worker.give_back("b", "c")
    crew.settle()
    crew.scheduler.close(session, "this is the end", cancel=True)
    assert [future.cancelled() for future in futures] == [False, False, False, True]
    worker.answer("a")
    crew.settle()
    assert work_off(crew, worker) == ["b", "c"]


def test_the_end_of_one_executor_is_not_that_of_another(crew):
    """A wait for it does not wait for others' calls."""
    first, second = crew.open(), crew.open()
    crew.submit("a", session=second)
    crew.scheduler.close(first, "this is the end")
    crew.scheduler.wait(first)
    assert crew.submit_one("b", session=second).running()


def test_an_executor_that_is_done_is_forgotten(crew):
    """Once it is closed, and its last call has its outcome."""
    first, second = crew.open(), crew.open()
    crew.submit("a", session=first)
    for session in (first, second):
        crew.scheduler.close(session, "this is the end")
    assert crew.scheduler.sessions() == [first]
    work_off(crew, FakeWorker(crew, 1))
    assert crew.scheduler.sessions() == []


def test_a_submit_that_comes_too_late_leaves_no_thread_waiting(crew):
    """It has found the executor open, and queues its call when that is closed and another thread waits for its end."""
    session = crew.session
    waiting = []

    class Backlog(deque):
        def append(self, task):
            crew.scheduler.close(session, "closed in between")
            super().append(task)
            waiting.append(in_a_thread(crew.scheduler.wait, session))
            until(lambda: crew.scheduler._state.changed._waiters or waiting[0].done())

    session.backlog = Backlog()
    session.limit = 0  # or it would be sent
    with pytest.raises(RuntimeError, match="closed in between"):
        crew.submit("a")
    waiting[0].result(LIMIT)


def test_a_submit_that_is_interrupted_leaves_no_thread_waiting(crew):
    """Its call is queued and not sent: the thread that waits for the end sends it."""

    class Backlog(deque):
        def append(self, task):
            super().append(task)
            raise KeyboardInterrupt

    crew.session.backlog = Backlog()
    with pytest.raises(KeyboardInterrupt):
        crew.submit("a")
    waiting = in_a_thread(crew.scheduler.wait, crew.session)
    until(lambda: crew.work)
    assert work_off(crew, FakeWorker(crew, 1)) == ["a"]
    waiting.result(LIMIT)


def test_a_wait_does_not_include_what_was_cancelled(crew):
    """All that is left to send was; here it could not be sent before, as another executor's message took long to put."""
    other, session = crew.open(), crew.open()
    crew.work.room = 0
    crew.submit("long", session=other)
    futures = crew.submit("a", "b", session=session)
    waiting = in_a_thread(crew.scheduler.wait, session)
    until(lambda: crew.scheduler._state.changed._waiters)
    assert [future.cancel() for future in futures] == [True, True]
    crew.work.end_stream()
    waiting.result(LIMIT)
    assert crew.take_all() == [["long"]]


def test_a_dropped_executor_waits_for_no_lock(crew):
    """The garbage collector drops it, in any thread, at any line: its calls are run, and then it is forgotten."""
    (future,) = crew.submit("a")
    with held_elsewhere(crew.scheduler):
        in_a_thread(crew.scheduler.drop, crew.session).result(LIMIT)
    with pytest.raises(RuntimeError, match="the executor is gone"):
        crew.submit("late")
    work_off(crew, FakeWorker(crew, 1))
    assert future.result(LIMIT) == "a"
    assert crew.scheduler.sessions() == []


def test_in_a_forked_child_no_thread_waits_for_locks_or_calls(crew):
    """They are the parent's: the threads that hold the locks, or would settle the futures, are not there."""
    crew.submit(*range(10))
    session = crew.session
    with held_elsewhere(crew.scheduler):
        in_a_thread(crew.scheduler.disown, "this executor is another process's").result(LIMIT)
        in_a_thread(crew.scheduler.wait, session).result(LIMIT)
        with pytest.raises(RuntimeError, match="another process's"):
            in_a_thread(crew.submit, "late").result(LIMIT)


class held_elsewhere:  # noqa: N801 - reads as what it does
    """Have another thread hold the scheduler's lock."""

    def __init__(self, scheduler):
        self._lock = scheduler._state.lock
        self._held, self._over = threading.Event(), threading.Event()

    def __enter__(self):
        self._holder = in_a_thread(self._hold)
        assert self._held.wait(LIMIT)

    def __exit__(self, *_):
        self._over.set()
        self._holder.result(LIMIT)

    def _hold(self):
        with self._lock:
            self._held.set()
            assert self._over.wait(LIMIT)


def test_it_can_be_seen_whether_a_thread_is_stuck_in_the_scheduler(crew):
    """It has the lock, and does not come back."""
    assert not crew.scheduler.is_stuck(0.0)
    with held_elsewhere(crew.scheduler):
        assert crew.scheduler.is_stuck(0.0)
    assert not crew.scheduler.is_stuck(LIMIT)


def test_the_scheduler_stops_when_all_is_done(crew):
    """Both channels are closed, so that the workers leave, too; its threads have ended."""
    crew.submit("a")
    work_off(crew, FakeWorker(crew, 1))
    crew.scheduler.stop()
    assert crew.work.take_many(1) == []
    assert not crew.scheduler._collector.thread.is_alive()


# -- broken executors


def test_an_initializer_that_fails_breaks_its_executor(crew):
    """What is sent, what waits, and what comes later; the others go on. Later outcomes of its calls are ignored."""
    broken, other = crew.open(initializer=crew.initializer(print)), crew.open()
    futures = crew.submit(*range(10), session=broken)
    (others,) = crew.submit("other", session=other)
    first, second = FakeWorker(crew, 1), FakeWorker(crew, 2)
    first.take()
    second.take()
    first.fail_initializer(LookupError("no licence"))
    for future in futures:
        error = future.exception(LIMIT)
        assert type(error) is BrokenProcessPool
        assert str(error) == "the initializer failed in a worker, LookupError: no licence"
        assert type(error.__cause__) is RemoteTraceback
    second.fail_initializer(LookupError("another reason"))
    crew.settle()
    with pytest.raises(BrokenProcessPool, match="no licence"):
        crew.submit("late", session=broken)
    crew.scheduler.wait(broken)
    work_off(crew, FakeWorker(crew, 2))
    assert others.result(LIMIT) == "other"


def test_a_wait_for_a_broken_executor_lasts_until_its_futures_are_done(crew):
    """All of them."""
    futures = crew.submit("a", "b")
    done = []

    def wait(_):
        waiting = in_a_thread(crew.scheduler.wait, crew.session)
        waiting.add_done_callback(lambda _: done.append([future.done() for future in futures]))
        until(lambda: crew.scheduler._state.changed._waiters or waiting.done())

    futures[0].add_done_callback(wait)
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.fail_initializer(LookupError("no licence"))
    crew.settle()
    until(lambda: done)
    assert done == [[True, True]]


def test_giving_up_fails_everything_for_good(crew):
    """In the thread that does so, whose callbacks do not wait for themselves."""
    futures = crew.submit(*range(10))
    other = crew.open()
    said = []

    def wait(_):
        try:
            crew.scheduler.wait(crew.session)
        except RuntimeError as error:
            said.append(str(error))

    futures[0].add_done_callback(wait)
    in_a_thread(crew.scheduler.give_up, "mpiexec was killed").result(LIMIT)
    for future in futures:
        assert type(future.exception(LIMIT)) is BrokenProcessPool
        assert str(future.exception()) == "mpiexec was killed"
    for late in (lambda: crew.submit("late"), lambda: crew.submit("late", session=other), crew.open):
        with pytest.raises(BrokenProcessPool, match="mpiexec was killed"):
            late()
    assert said == ["a callback of a future cannot wait for its executor: the futures are settled by this thread"]


def test_a_submit_that_waits_for_room_is_told_that_the_executor_is_broken(crew):
    """And does not wait for ever."""
    session = crew.open(max_pending=1)
    crew.submit("a", session=session)
    second = in_a_thread(crew.submit, "b", session=session)
    until(lambda: crew.scheduler._state.changed._waiters)
    crew.scheduler.give_up("mpiexec was killed")
    with pytest.raises(BrokenProcessPool, match="mpiexec was killed"):
        second.result(LIMIT)


# -- faults of ours


def test_a_fault_of_the_collector_fails_everything(crew):
    """It says so, with its traceback; no thread waits for ever."""
    futures = crew.submit(*range(10))
    reply_nonsense(crew)
    for future in futures:
        error = future.exception(LIMIT)
        assert type(error) is BrokenProcessPool
        assert str(error).startswith("the collector failed: TypeError(")
        assert "_note_all" in str(error.__cause__)
    for late in (lambda: crew.submit("late"), crew.open):
        with pytest.raises(BrokenProcessPool, match="the collector failed"):
            late()
    crew.scheduler.wait(crew.session)


def test_a_take_that_fails_is_a_fault_of_the_collector(crew):
    """As if the channel's bytes were no message."""
    futures = crew.submit("a")
    crew.replies.fail(ZeroDivisionError("a fault of ours"))
    assert str(futures[0].exception(LIMIT)) == "the collector failed: ZeroDivisionError('a fault of ours')"


def test_what_came_together_with_a_fault_is_settled(crew):
    """No other thread knows the calls that were taken off the lists."""
    futures = crew.submit("a", "b")
    worker = FakeWorker(crew, 1)
    worker.take()
    with crew.replies.together():
        worker.answer()
        reply_nonsense(crew)
    assert futures[0].result(LIMIT) == "a"
    assert type(futures[1].exception(LIMIT)) is BrokenProcessPool


def test_after_a_fault_no_worker_waits_for_room_or_for_a_function(crew):
    """What comes is thrown away, and what is wanted is refused: also what came together with the fault, or is too large."""
    function = crew.function(abs)
    futures = crew.submit("a", "b", function=function)
    workers = [FakeWorker(crew, rank) for rank in (1, 2)]
    for worker in workers:
        worker.take()
    with crew.replies.together():
        reply_nonsense(crew)
        workers[0].ask()
    assert type(futures[0].exception(LIMIT)) is BrokenProcessPool
    workers[1].ask()
    workers[1].answer_at_length("b", size=1 << 30)
    crew.settle()
    assert crew.given == [(1, None), (2, None)]
    crew.scheduler.stop()


def test_a_death_after_a_fault_is_of_no_interest(crew):
    """Everything has failed already."""
    futures = crew.submit("a")
    reply_nonsense(crew)
    worker = FakeWorker(crew, 1)
    worker.take()
    assert type(futures[0].exception(LIMIT)) is BrokenProcessPool
    worker.die(begun="a")
    crew.settle()
    assert crew.scheduler._collector.thread.is_alive()

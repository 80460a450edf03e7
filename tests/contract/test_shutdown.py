"""The end of an executor: shutdown, the with statement, garbage collection."""

import gc
import threading
import weakref
from collections import deque
from concurrent.futures import CancelledError

import pytest
from gates import LIMIT, executor_of, occupy, square, touch, until

from mpiexecutor import RMAChannelExecutor


class Slow:
    """Takes as long to unpickle on the root as `rebuilt` says."""

    def __reduce__(self):
        return rebuild, ()


beginning, may_end = threading.Event(), threading.Event()


def rebuild():
    beginning.set()
    may_end.wait(0.5)
    return "rebuilt"


def test_shutdown_waits_for_all_calls(tmp_path):
    """When shutdown returns every call has been run, and every future is done."""
    executor = executor_of()
    futures = [executor.submit(touch, tmp_path / str(number)) for number in range(50)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert len(list(tmp_path.iterdir())) == 50


def test_shutdown_waits_until_the_results_are_unpickled():
    """A result that has come, but is still being unpickled, is waited for, too."""
    beginning.clear()
    may_end.clear()
    executor = executor_of()
    future = executor.submit(Slow)
    assert beginning.wait(LIMIT)
    executor.shutdown()
    done = future.done()
    may_end.set()
    assert done
    assert future.result(LIMIT) == "rebuilt"


def test_shutdown_need_not_wait(gate):
    """With wait=False shutdown returns at once, and the calls are run all the same."""
    executor = executor_of()
    futures = occupy(executor, gate)
    executor.shutdown(wait=False)
    assert not futures[0].done()
    gate.open()
    assert [future.result(LIMIT) for future in futures] == list(range(len(futures)))


def test_shutdown_may_cancel_what_is_pending(gate, tmp_path):
    """With cancel_futures the calls that have not been sent are cancelled; those that run come to their end."""
    executor = executor_of()
    busy = occupy(executor, gate)
    pending = [executor.submit(touch, tmp_path / str(number)) for number in range(20)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in pending)
    with pytest.raises(CancelledError):
        pending[0].result(0)
    gate.open()
    executor.shutdown()
    assert all(future.cancelled() or future.result(0) == number for number, future in enumerate(busy))
    assert sum(not future.cancelled() for future in busy) >= executor.num_workers
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


def test_shutdown_can_be_called_again(gate):
    """A second shutdown may wait, or cancel, where the first did not; a third does nothing."""
    executor = executor_of()
    futures = occupy(executor, gate)
    last = executor.submit(square, 2)
    executor.shutdown(wait=False)
    executor.shutdown(wait=False, cancel_futures=True)
    assert last.cancelled()
    gate.open()
    executor.shutdown()
    assert all(future.done() for future in futures)
    executor.shutdown(cancel_futures=True)


@pytest.mark.parametrize("wait", [True, False])
def test_nothing_can_be_submitted_afterwards(wait):
    """After shutdown submit, map and starmap raise RuntimeError."""
    executor = executor_of()
    executor.shutdown(wait=wait)
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        executor.submit(square, 1)
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        executor.map(square, [1])
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        executor.starmap(square, [(1,)])
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        executor.submit(square, threading.Lock())


def test_shutdown_of_one_that_was_never_used():
    """An executor without calls can be shut down."""
    executor_of().shutdown()
    with executor_of():
        pass


def test_threads_may_all_wait_in_shutdown(gate):
    """Several threads that shut the executor down at the same time all return when the calls are done."""
    executor = executor_of()
    futures = occupy(executor, gate)
    done = []
    threads = [
        threading.Thread(target=lambda: (executor.shutdown(), done.append(all(future.done() for future in futures))), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(LIMIT)
    assert done == [True] * 4


def test_the_with_statement_waits_for_all_calls(tmp_path):
    """At the end of a with statement every call has been run."""
    with executor_of() as executor:
        assert isinstance(executor, RMAChannelExecutor)
        futures = [executor.submit(touch, tmp_path / str(number)) for number in range(20)]
    assert all(future.done() for future in futures)
    assert len(list(tmp_path.iterdir())) == 20
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_an_error_in_the_with_statement_passes_through(tmp_path):
    """An error in the body is raised after the calls have been run, as in the standard library."""
    with pytest.raises(LookupError, match="in the body"), executor_of() as executor:
        futures = [executor.submit(touch, tmp_path / str(number)) for number in range(20)]
        raise LookupError("in the body")
    assert all(future.done() for future in futures)
    assert len(list(tmp_path.iterdir())) == 20


def test_a_dropped_executor_runs_the_calls_that_it_has(gate):
    """With no reference left to the executor its calls still come to their end; the executor itself is freed."""
    executor = executor_of()
    futures = occupy(executor, gate)
    futures.append(executor.submit(square, 3))
    reference = weakref.ref(executor)
    del executor
    gc.collect()
    assert reference() is None
    gate.open()
    assert [future.result(LIMIT) for future in futures] == [*range(len(futures) - 1), 9]


def test_an_iterator_does_not_keep_its_executor_alive(gate):
    """An executor is freed though an iterator of its results is still read."""
    executor = executor_of()
    results = executor.map(gate.wait, range(3), timeout=LIMIT)
    reference = weakref.ref(executor)
    del executor
    gc.collect()
    assert reference() is None
    gate.open()
    assert list(results) == [0, 1, 2]


def test_executors_in_cycles_may_be_collected_at_any_time():
    """An executor that the garbage collector finds, in whatever thread and line, disturbs no other one."""
    with executor_of() as executor:
        thresholds = gc.get_threshold()
        gc.freeze()  # what there was before takes long to look at
        try:
            for number in range(10, 200):  # each lets the collector come a little later
                gc.collect()
                gc.set_threshold(number)
                dropped = executor_of()
                dropped.itself = dropped
                del dropped
                assert executor.submit(square, number).result(LIMIT) == number * number
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()


def test_many_are_made_and_dropped():
    """Executors cost nothing once they are gone: a hundred of them, one after another, are no trouble."""
    for number in range(100):
        with executor_of() as executor:
            assert executor.submit(square, number).result(LIMIT) == number * number


def test_the_root_keeps_nothing_of_an_executor_that_is_done():
    """After shutdown nothing keeps the futures' results alive but the futures."""
    with executor_of() as executor:
        future = executor.submit(set, [1])
        reference = weakref.ref(future.result(LIMIT))
    del future
    until(lambda: reference() is None)


def test_a_submit_that_comes_too_late_leaves_no_thread_waiting():
    """It has found the executor open, and queues its call when that is closed and another thread waits for its end."""
    executor = executor_of()
    scheduler, session = executor._scheduler, executor._session
    waiting = threading.Thread(target=scheduler.wait, args=(session,), daemon=True)

    class Backlog(deque):
        def append(self, task):
            scheduler.close(session, "closed in between")
            super().append(task)
            waiting.start()
            until(lambda: scheduler._state.changed._waiters)

    session.backlog = Backlog()
    with pytest.raises(RuntimeError, match="closed in between"):
        executor.submit(int)
    waiting.join(LIMIT)
    assert not waiting.is_alive()


def test_a_submit_that_is_interrupted_leaves_no_thread_waiting():
    """Its call is queued and not sent: the thread that waits for the end sends it."""
    executor = executor_of()

    class Backlog(deque):
        def append(self, task):
            super().append(task)
            raise KeyboardInterrupt

    executor._session.backlog = Backlog()
    with pytest.raises(KeyboardInterrupt):
        executor.submit(int)
    waiting = threading.Thread(target=executor.shutdown, daemon=True)
    waiting.start()
    waiting.join(LIMIT)
    assert not waiting.is_alive()

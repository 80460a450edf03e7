"""max_pending: submit waits while so many futures are not done."""

import threading
from concurrent.futures import Future, wait

import pytest
from gates import LIMIT, executor_of, identity, occupy, square, until


def not_done(futures):
    return sum(not future.done() for future in futures)


@pytest.mark.parametrize("most", [1, 7])
def test_never_more_futures_are_pending_than_were_asked_for(most):
    """Counted by each thread that submits; all have their results in the end."""
    with executor_of(max_pending=most) as executor:
        futures = []
        for number in range(300):
            futures.append(executor.submit(square, number))
            assert not_done(futures) <= most
        assert [future.result(LIMIT) for future in futures] == [number * number for number in range(300)]


def test_many_threads_together_keep_to_it():
    """At no time were more than so many calls submitted that are not done."""
    futures = []
    most = []

    def submit(executor):
        for number in range(20):
            futures.append(executor.submit(square, number))
            most.append(not_done(list(futures)))

    with executor_of(max_pending=3) as executor:
        threads = [threading.Thread(target=submit, args=(executor,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert sum(future.result(LIMIT) for future in futures) == 20 * sum(number * number for number in range(20))
    assert max(most) <= 3
    assert len(futures) == 400


def test_a_put_that_waits_for_room_is_told_that_there_will_be_none(gate):
    """Shutdown, in another thread: RuntimeError, as for any submit after it."""
    executor = executor_of(max_pending=1)
    call = executor.submit(gate.wait, 1)
    said = Future()

    def submit():
        try:
            said.set_result(executor.submit(square, 2))
        except RuntimeError as error:
            said.set_exception(error)

    thread = threading.Thread(target=submit)
    thread.start()
    until(lambda: executor._scheduler._state.changed._waiters)  # it is waiting there
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        said.result(LIMIT)
    gate.open()
    assert call.result(LIMIT) == 1
    thread.join(LIMIT)


def test_a_callback_may_submit_though_the_executor_is_full():
    """It would wait for itself: the thread that runs callbacks is the one that makes room."""
    more = []
    with executor_of(max_pending=1) as executor:
        first = executor.submit(identity, 1)
        first.add_done_callback(lambda _: more.extend(executor.submit(square, number) for number in range(10)))
        wait([first], LIMIT)
        until(lambda: len(more) == 10)
        assert [future.result(LIMIT) for future in more] == [number * number for number in range(10)]


def test_cancelled_calls_make_room(gate):
    """At once, for the next submit and for one that waits already, though the others run on."""
    with executor_of() as probe:
        busy = 3 * probe.num_workers
    with executor_of(max_pending=busy + 5) as executor:
        blocked = occupy(executor, gate)
        waiting = [executor.submit(square, number) for number in range(5)]
        assert all(future.cancel() for future in waiting)
        waiting = [executor.submit(square, number) for number in range(5)]
        thread = threading.Thread(target=lambda: waiting.append(executor.submit(square, 5)))
        thread.start()
        until(lambda: executor._scheduler._state.changed._waiters)
        assert waiting[0].cancel()
        thread.join(LIMIT)
        assert len(waiting) == 6
        gate.open()
        assert [future.result(LIMIT) for future in waiting[1:]] == [1, 4, 9, 16, 25]
        assert [future.result(LIMIT) for future in blocked] == [*range(busy)]

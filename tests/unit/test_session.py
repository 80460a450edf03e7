"""Sessions: what makes up the next message; and the futures themselves."""

import time
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from mpiexecutor._calls.scheduling.futures import slim_future
from mpiexecutor._calls.scheduling.session import Batch, Session, Task

MANY, MUCH, LONG = 1000, 1 << 30, 1e9  # of calls, bytes and seconds: no limit


def session_of(*tasks):
    session = Session(0, 4, None)
    session.backlog.extend(tasks)
    return session


def task(number, size=10, kind="kind"):
    return Task(number, Future(), (number, None, None, bytes(size), ()), size, kind)


def numbers(batch):
    return [task.number for task in batch]


def test_a_batch_is_taken_in_order():
    """Calls are sent in the order in which they were submitted, and leave the backlog."""
    session = session_of(*map(task, range(5)))
    seconds = {"kind": 0.0}
    assert numbers(session.next_batch(3, MUCH, seconds, LONG)) == [0, 1, 2]
    assert numbers(session.next_batch(3, MUCH, seconds, LONG)) == [3, 4]
    assert session.next_batch(3, MUCH, seconds, LONG) == []


def test_a_batch_that_is_taken_is_running():
    """What is on its way cannot be cancelled; what is left can."""
    session = session_of(task(0), task(1))
    (taken,) = session.next_batch(1, MUCH, {}, LONG)
    assert taken.future.running()
    assert not taken.future.cancel()
    assert session.backlog[0].future.cancel()


def test_calls_of_unknown_length_go_alone():
    """A kind that has not been run yet is expected to take the whole time of a batch."""
    session = session_of(*map(task, range(3)))
    assert numbers(session.next_batch(MANY, MUCH, {}, 1e-3)) == [0]


@pytest.mark.parametrize(("seconds", "expected"), [(1e-5, 100), (1e-4, 10), (0.5e-3, 2), (0.6e-3, 1), (1.0, 1)])
def test_a_batch_is_as_long_as_its_calls_are_expected_to_run(seconds, expected):
    """As many calls as fit into the time, but at least one."""
    session = session_of(*map(task, range(200)))
    assert abs(len(session.next_batch(MANY, MUCH, {"kind": seconds}, 1e-3)) - expected) <= (expected > 2)  # rounding


def test_a_long_call_ends_a_batch_of_short_ones():
    """A short call is not sent together with a long one behind it, nor with one that it would have to wait for."""
    session = session_of(task(0), task(1), task(2, kind="long"), task(3), task(4))
    seconds = {"kind": 1e-6, "long": 1.0}
    assert numbers(session.next_batch(MANY, MUCH, seconds, 1e-3)) == [0, 1]
    assert numbers(session.next_batch(MANY, MUCH, seconds, 1e-3)) == [2]
    assert numbers(session.next_batch(MANY, MUCH, seconds, 1e-3)) == [3, 4]


@pytest.mark.parametrize(("size", "expected"), [(10, 10), (50, 2), (51, 1), (1000, 1)])
def test_a_batch_has_a_limit_in_bytes(size, expected):
    """As many calls as fit into the bytes, but at least one."""
    session = session_of(*(task(number, size) for number in range(20)))
    assert len(session.next_batch(MANY, 100, {"kind": 0.0}, 1.0)) == expected


def test_cancelled_calls_are_left_out():
    """Cancelled calls are dropped on the way, and threads that wait for them are told."""
    tasks = [task(number) for number in range(6)]
    for number in (0, 2, 3):
        tasks[number].future.cancel()
    session = session_of(*tasks)
    assert numbers(session.next_batch(2, MUCH, {"kind": 0.0}, 1.0)) == [1, 4]
    assert [task.future._state for task in tasks[:4]] == ["CANCELLED_AND_NOTIFIED", "RUNNING"] + ["CANCELLED_AND_NOTIFIED"] * 2


def test_cancelled_calls_take_no_room():
    """A large, or long, call that was cancelled leaves its place to the next ones."""
    tasks = [task(0), task(1, size=1000), task(2, kind="long"), task(3)]
    tasks[1].future.cancel()
    tasks[2].future.cancel()
    session = session_of(*tasks)
    assert numbers(session.next_batch(MANY, 100, {"kind": 0.0, "long": 5.0}, 1.0)) == [0, 3]


def test_nothing_is_taken_if_all_are_cancelled():
    """A backlog of cancelled calls gives no batch, and is empty afterwards."""
    tasks = [task(number) for number in range(3)]
    for cancelled in tasks:
        cancelled.future.cancel()
    session = session_of(*tasks)
    assert session.next_batch(MANY, MUCH, {}, LONG) == []
    assert not session.backlog


def test_a_session_is_idle_without_calls():
    """Neither calls that wait nor calls without a settled future."""
    session = session_of()
    assert session.idle
    session.backlog.append(task(0))
    assert not session.idle
    session.next_batch(1, MUCH, {}, LONG)
    session.unsettled = 1
    assert not session.idle
    session.unsettled = 0
    assert session.idle


def test_all_are_dropped_sent_and_waiting():
    """Sent ones first; all are unsettled until they are settled, and nothing is on its way."""
    session = session_of(task(2), task(3))
    session.sent = {1: task(1)}
    session.unsettled = 1
    session.under_way = {Batch(1, (1,), 1)}
    tasks, count = session.break_off("a reason", None)
    assert (numbers(tasks), count) == ([1, 2, 3], 3)
    assert (session.unsettled, len(session.under_way), session.sent, list(session.backlog)) == (3, 0, {}, [])


def test_a_slim_future_is_waited_for_as_any_other():
    """By several threads, in time and out of time."""
    future = slim_future()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(future.result, 60) for _ in range(3)]
        until_waited_for(future, 3)
        future.set_result(7)
        assert [each.result(60) for each in waiting] == [7, 7, 7]


def until_waited_for(future, threads):
    """Look until so many threads wait for a future."""
    while len(future._condition._waiters) < threads:
        time.sleep(0.001)


def test_a_slim_future_takes_little_memory():
    """Less than 1,000 bytes, on average of many."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    futures = [slim_future() for _ in range(1000)]
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken / len(futures) < 1000


def test_a_task_is_withdrawn_while_it_waits_only():
    """The thread that has queued it learns whether it was sent, or dropped, meanwhile."""
    first, second = task(1), task(2)
    session = session_of(first, second)
    assert session.withdraw(second)
    assert not session.withdraw(second)
    assert numbers(session.backlog) == [1]


def test_tasks_and_sessions_are_what_they_are():
    """They are compared by identity, and can be kept in sets."""
    assert task(1) != task(1)
    assert len({session_of(), session_of(), Batch(1, (1,), 1)}) == 3


@pytest.mark.parametrize(("begun", "deaths"), [(True, 2), (False, 5)])
def test_a_task_is_run_again_as_often_as_it_may(begun, deaths):
    """So many workers may die of it; a few more if it was not begun, since it was not lost."""
    session = Session(1, 4, None, retries=2)
    dies = task(7)
    assert [session.is_to_be_run_again(dies, begun=begun) for _ in range(deaths + 1)] == [True] * deaths + [False]


def test_what_was_slow_is_forgotten_with_all_that_is_dropped():
    """It does not let others through any more."""
    session = session_of()
    session.under_way = {Batch(1, (1,), 1)}
    session.slow = set(session.under_way)
    session.break_off("a reason", None)
    assert (session.under_way, session.slow) == (set(), set())


def test_the_first_workers_that_ask_run_the_calls_of_a_small_executor():
    """Up to its limit of those that live."""
    session = Session(1, 2, None)
    session.ranks = set()
    assert [session.admit(rank, set(), others_are_free=False) for rank in (1, 2, 3, 1)] == [True, True, False, True]
    assert session.admit(3, {1}, others_are_free=False)
    assert Session(2, 2, None).admit(3, set(), others_are_free=True)


def test_a_worker_of_another_executor_is_refused_while_others_are_free():
    """But not for ever: those may be busy."""
    session = Session(1, 2, None)
    session.ranks = set()
    answers = [session.admit(1, set(), others_are_free=True) for _ in range(21)]
    assert answers == [False] * 20 + [True]

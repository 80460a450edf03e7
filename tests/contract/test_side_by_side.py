"""Executors beside and after each other, and how many calls each of them runs at a time."""

import os
import threading

import pytest
from gates import LIMIT, Gate, executor_of, identity, occupy, square

from mpiexecutor import RMAChannelExecutor


def in_a_place(folder, places, number):
    """Take one of so many places while running; LookupError if all are taken."""
    for place in range(places):
        try:
            os.close(os.open(folder / f"place-{place}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        try:
            return sum(range(1000)) and number
        finally:
            (folder / f"place-{place}").unlink()
    raise LookupError("more calls at a time than there are places")


def test_one_after_another():
    """An executor works after others were shut down."""
    for number in range(5):
        with executor_of() as executor:
            assert list(executor.map(square, range(number), timeout=LIMIT)) == [square(other) for other in range(number)]


def test_two_side_by_side_have_their_own_calls():
    """Two executors, used in turn, do not get in each other's way."""
    with executor_of() as first, executor_of() as second:
        pairs = [(first.submit(square, number), second.submit(identity, number)) for number in range(200)]
        assert [(one.result(LIMIT), other.result(LIMIT)) for one, other in pairs] == [(n * n, n) for n in range(200)]


def test_shutting_one_down_leaves_the_other():
    """An executor goes on after its neighbour was shut down, and cancelled its calls."""
    with executor_of() as first:
        second = executor_of()
        futures = [first.submit(square, number) for number in range(20)]
        for number in range(20):
            second.submit(square, number)
        second.shutdown(cancel_futures=True)
        assert [future.result(LIMIT) for future in futures] == [number * number for number in range(20)]
        assert first.submit(square, 7).result(LIMIT) == 49


def test_shutdown_waits_for_its_own_calls_only(gate):
    """An executor's shutdown does not wait for what another one has submitted."""
    first, second = executor_of(), executor_of()
    if first.num_workers == 1:
        pytest.skip("one worker runs calls in order")
    slow = first.submit(gate.wait, "slow")
    gate.until_arrived(1)
    quick = [second.submit(square, number) for number in range(20)]
    second.shutdown()
    assert all(future.done() for future in quick)
    assert not slow.done()
    gate.open()
    assert slow.result(LIMIT) == "slow"
    first.shutdown()


def test_threads_have_executors_of_their_own():
    """Eight threads that each make, use and shut down an executor at the same time."""
    start = threading.Barrier(8)
    results = {}
    executors = [executor_of() for _ in range(8)]

    def use(thread):
        start.wait(LIMIT)
        with executors[thread] as executor:
            results[thread] = list(executor.map(identity, [(thread, number) for number in range(50)], timeout=LIMIT))

    threads = [threading.Thread(target=use, args=[number], daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert results == {thread: [(thread, number) for number in range(50)] for thread in range(8)}


def test_threads_may_make_executors_at_the_same_time():
    """The constructor may be called by several threads at once."""
    start = threading.Barrier(4)
    results = []
    comm_of_one_warns = executor_of()  # the pool is there already, as when a program makes its second executor

    def use():
        start.wait(LIMIT)
        with RMAChannelExecutor() as executor:
            results.extend(executor.map(square, range(3), timeout=LIMIT))

    threads = [threading.Thread(target=use, daemon=True) for _ in range(4)]
    if comm_of_one_warns.num_workers == 1:
        comm_of_one_warns.shutdown()
        pytest.skip("warnings are not caught in threads")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    comm_of_one_warns.shutdown()
    assert sorted(results) == sorted([0, 1, 4] * 4)


@pytest.mark.parametrize("most", [1, 2])
def test_max_workers_bounds_how_many_calls_run_at_a_time(tmp_path, most):
    """Never more than `max_workers` calls of an executor run at a time, short as they are."""
    with executor_of() as everybody:
        most = min(most, everybody.num_workers)
    with executor_of(most) as executor:
        assert executor.num_workers == most
        calls = executor.map(in_a_place, [tmp_path] * 300, [most] * 300, range(300), timeout=LIMIT)
        assert list(calls) == list(range(300))


def test_max_workers_are_used(tmp_path):
    """As many calls as `max_workers` do run at a time."""
    with executor_of() as everybody:
        workers = everybody.num_workers
    for most in range(1, workers + 1):
        gate = Gate(tmp_path / str(most))
        gate.folder.mkdir()
        with executor_of(most) as executor:
            futures = [executor.submit(gate.wait, number) for number in range(most)]
            gate.until_arrived(most)
            gate.open()
            assert [future.result(LIMIT) for future in futures] == list(range(most))


def test_a_bounded_executor_leaves_the_other_workers_to_others(gate):
    """While an executor with one worker is busy, another one gets its calls run."""
    with executor_of(1) as bounded, executor_of() as other:
        if other.num_workers == 1:
            pytest.skip("one worker runs calls in order")
        busy = occupy(bounded, gate)
        assert gate.arrived == 1
        assert list(other.map(square, range(50), timeout=LIMIT)) == [number * number for number in range(50)]
        gate.open()
        assert [future.result(LIMIT) for future in busy] == list(range(len(busy)))


def test_calls_of_a_busy_executor_do_not_starve_another_one(gate, tmp_path):
    """An executor with a long backlog and one with a single call take turns."""
    with executor_of() as first, executor_of() as second:
        ready = Gate(tmp_path)
        meeting = occupy(second, ready)  # all workers are ready for it: isolated calls need processes
        ready.open()
        assert [future.result(LIMIT) for future in meeting] == list(range(len(meeting)))
        busy = occupy(first, gate)
        backlog = [first.submit(square, number) for number in range(2000)]
        single = second.submit(square, 3)
        last = []
        backlog[-1].add_done_callback(lambda _: last.append(single.done()))
        gate.open()
        assert single.result(LIMIT) == 9
        assert [future.result(LIMIT) for future in busy] == list(range(len(busy)))
        assert backlog[-1].result(LIMIT) == 1999 * 1999
    assert last == [True]

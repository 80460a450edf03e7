"""The initializer: once in each worker, before its first call; and what happens if it fails."""

import importlib
import os
import threading
from concurrent.futures.process import BrokenProcessPool

import pytest
from gates import LIMIT, executor_of, square, until

from mpiexecutor import RemoteTraceback, RMAChannelExecutor

state: dict[str, list[object]] = {}  # of each worker


def note(name, *values):
    state.setdefault(name, []).extend(values)


def noted(name):
    return list(state.get(name, []))


def log(path):
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")


def fail_with(error):
    raise error


def fail_at(gate, error):
    gate.wait()
    raise error


def fail_once(gate, others=None):
    """Fail in one worker only, once the gate is open, and another worker has left its trace there."""
    gate.wait()
    try:
        os.close(os.open(gate.folder / "first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if others is not None:
        until(lambda: list(others.glob("ran-*")))
    raise ValueError("in one worker only")


class FailsToUnpickle:
    def __reduce__(self):
        return fail_with, (LookupError("not to be had"),)


def test_runs_before_the_first_call_with_its_arguments():
    """Every call finds what the initializer has done in its worker."""
    with executor_of(initializer=note, initargs=("before", 1, 2)) as initialized:
        assert list(initialized.map(noted, ["before"] * 50, timeout=LIMIT)) == [[1, 2]] * 50


def test_runs_once_in_each_worker(gate, tmp_path):
    """However many calls there are, each worker has run it once."""
    with executor_of(initializer=log, initargs=(tmp_path / "log",)) as executor:
        futures = [executor.submit(gate.wait) for _ in range(executor.num_workers)]
        gate.until_arrived(executor.num_workers)
        gate.open()
        assert [future.result(LIMIT) for future in futures] == [None] * executor.num_workers
        list(executor.map(square, range(100), timeout=LIMIT))
    pids = (tmp_path / "log").read_text().split()
    assert len(pids) == len(set(pids)) == executor.num_workers


def test_each_executor_has_its_own():
    """The workers are shared, the initializers are not: each executor's is run."""
    with executor_of(initializer=note, initargs=("one", 1)) as first, executor_of(initializer=note, initargs=("two", 2)) as second:
        assert list(first.map(noted, ["one"] * 20, timeout=LIMIT)) == [[1]] * 20
        assert list(second.map(noted, ["two"] * 20, timeout=LIMIT)) == [[2]] * 20
    with executor_of(initializer=note, initargs=("one", 3)) as third:
        assert list(third.map(lambda name: noted(name)[-1], ["one"] * 20, timeout=LIMIT)) == [3] * 20


def test_may_be_a_closure():
    """The initializer and its arguments are pickled as calls are."""
    values = [1, 2]

    def initialize(more):
        importlib.import_module("test_initializer").note("closure", *values, *more)

    with executor_of(initializer=initialize, initargs=([3],)) as executor:
        assert executor.submit(lambda: importlib.import_module("test_initializer").noted("closure")).result(LIMIT) == [1, 2, 3]


def test_one_that_cannot_be_pickled_is_refused():
    """The constructor raises what pickling the initializer raised."""
    with pytest.raises(TypeError, match="cannot pickle"):
        RMAChannelExecutor(initializer=print, initargs=(threading.Lock(),))


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_if_it_fails_every_call_fails(error, gate, ranks):
    """Pending and later calls get BrokenProcessPool, with the worker's traceback as cause; other executors go on."""
    with executor_of() as other:
        executor = executor_of(initializer=fail_at, initargs=(gate, error("no licence")))
        futures = [executor.submit(square, number) for number in range(30)]
        gate.open()
        for future in futures:
            broken = future.exception(LIMIT)
            assert type(broken) is BrokenProcessPool
            assert str(broken) == f"the initializer failed in a worker, {error.__name__}: no licence"
            assert isinstance(broken.__cause__, RemoteTraceback)
            assert f" of {ranks} on " in str(broken.__cause__)
            assert "in fail_at" in str(broken.__cause__)
            assert f"{error.__name__}: no licence" in str(broken.__cause__)
        assert (executor.num_workers, executor.size) == (0, 1)
        for submit in (lambda: executor.submit(square, 1), lambda: executor.map(square, [1])):
            with pytest.raises(BrokenProcessPool, match="no licence") as raised:
                submit()
            assert isinstance(raised.value.__cause__, RemoteTraceback)
        executor.shutdown()
        with pytest.raises(RuntimeError):
            executor.submit(square, 1)
        assert list(other.map(square, range(50), timeout=LIMIT)) == [number * number for number in range(50)]


def test_if_it_cannot_be_unpickled_every_call_fails():
    """An initializer that cannot be rebuilt in a worker has failed there."""
    executor = executor_of(initializer=print, initargs=(FailsToUnpickle(),))
    broken = executor.submit(square, 1).exception(LIMIT)
    assert type(broken) is BrokenProcessPool
    assert "not to be had" in str(broken)
    executor.shutdown()


def test_if_it_fails_in_one_worker_only_the_executor_is_broken_and_can_be_shut_down(gate):
    """Calls that other workers have run meanwhile have their results, the rest fail; shutdown returns."""
    executor = executor_of(initializer=fail_once, initargs=(gate,))
    futures = [executor.submit(square, number) for number in range(40)]
    gate.open()
    for number, future in enumerate(futures):
        error = future.exception(LIMIT)
        assert isinstance(error, BrokenProcessPool) if error else future.result() == number * number
    until(lambda: is_broken(executor))
    shut_down = threading.Thread(target=executor.shutdown, daemon=True)
    shut_down.start()
    shut_down.join(LIMIT)
    assert not shut_down.is_alive()


def test_shutdown_waits_until_the_calls_of_a_broken_one_have_failed(gate):
    """When shutdown of a broken executor returns, all its futures are done."""
    executor = executor_of(initializer=fail_at, initargs=(gate, ValueError("no licence")))
    futures = [executor.submit(square, number) for number in range(10)]
    found = []

    def shut_down():
        executor.shutdown()
        found.append(all(future.done() for future in futures))

    thread = threading.Thread(target=shut_down, daemon=True)
    begun = threading.Event()

    def in_the_middle(_):
        if not begun.is_set():
            begun.set()
            thread.start()
            thread.join(0.3)  # as long as shutdown waits, it does so until the others have failed, too

    for future in futures[:-1]:
        future.add_done_callback(in_the_middle)
    gate.open()
    for future in futures:
        assert isinstance(future.exception(LIMIT), BrokenProcessPool)
    thread.join(LIMIT)
    assert found == [True]


def is_broken(executor):
    """Whether the failure has been found out: until then calls are taken."""
    try:
        executor.submit(square, 1)
    except BrokenProcessPool:
        return True
    return False

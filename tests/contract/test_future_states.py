"""Futures: pending, running, done, cancelled; waiting for them in every way that the standard library has."""

import asyncio
import logging
import sys
import threading
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    as_completed,
    wait,
)

import pytest
from gates import LIMIT, identity, occupy, square, touch


def fail(text):
    raise ValueError(text)


def exit_with(status):
    sys.exit(status)


def test_is_running_while_its_call_runs(executor, gate):
    """Neither done nor cancelled before its call is over; done, and not running, afterwards."""
    future = executor.submit(gate.wait, 1)
    gate.until_arrived(1)
    assert (future.running(), future.done(), future.cancelled()) == (True, False, False)
    gate.open()
    assert future.result(LIMIT) == 1
    assert (future.running(), future.done(), future.cancelled()) == (False, True, False)


def test_a_running_one_cannot_be_cancelled(executor, gate):
    """Cancelling a call that runs does nothing, and says so. (In a child process it can be: see test_isolated.py.)"""
    future = executor.submit(gate.wait, 1)
    gate.until_arrived(1)
    assert not Future.cancel(future)
    gate.open()
    assert future.result(LIMIT) == 1


def test_a_done_one_cannot_be_cancelled(executor):
    """Cancelling a call that is over does nothing, and says so."""
    future = executor.submit(square, 2)
    assert future.result(LIMIT) == 4
    assert not future.cancel()
    assert not future.cancelled()


def test_a_pending_one_can_be_cancelled_and_is_never_run(executor, gate, tmp_path):
    """A call that waits for a worker can be cancelled; those before and behind it are run."""
    busy = occupy(executor, gate)
    before, cancelled, behind = [executor.submit(touch, tmp_path / name) for name in ("before", "cancelled", "behind")]
    assert not cancelled.running()
    assert cancelled.cancel()
    assert cancelled.cancelled()
    assert cancelled.done()
    gate.open()
    wait([*busy, before, behind], LIMIT)
    executor.shutdown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "behind", "gate"]
    with pytest.raises(CancelledError):
        cancelled.result(LIMIT)


def test_all_that_are_pending_can_be_cancelled(executor, gate):
    """With every pending call cancelled the executor still comes to its end, and waiters are told."""
    busy = occupy(executor, gate)
    futures = [executor.submit(square, number) for number in range(50)]
    assert all(future.cancel() for future in futures)
    gate.open()
    assert wait(futures, LIMIT).not_done == set()
    assert [future.result(LIMIT) for future in busy] == list(range(len(busy)))
    executor.shutdown()


def test_result_times_out_and_can_be_asked_for_again(executor, gate):
    """Waiting too short a time is TimeoutError, and changes nothing."""
    future = executor.submit(gate.wait, 1)
    for ask in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            ask(timeout=0)
    gate.open()
    assert future.result(LIMIT) == 1


def test_exception_gives_what_result_raises(executor):
    """exception() returns the error that result() raises; None for a call that succeeded."""
    future = executor.submit(fail, "planned")
    with pytest.raises(ValueError, match="^planned$") as raised:
        future.result(LIMIT)
    assert future.exception() is raised.value
    assert executor.submit(square, 1).exception(LIMIT) is None


def test_callbacks_get_the_future_in_order_once_it_is_done(executor, gate):
    """Callbacks are called with the future, in the order in which they were added; late ones at once."""
    called = []
    future = executor.submit(gate.wait, 1)
    gate.until_arrived(1)
    for number in range(3):
        future.add_done_callback(lambda done, number=number: called.append((number, done is future, done.result(0))))
    assert called == []
    last = threading.Event()
    future.add_done_callback(lambda _: last.set())
    gate.open()
    assert last.wait(LIMIT)
    future.add_done_callback(lambda _: called.append("late"))
    assert called == [(0, True, 1), (1, True, 1), (2, True, 1), "late"]


def test_cancelling_calls_the_callbacks(executor, gate):
    """The callbacks of a cancelled call are called at once."""
    called = []
    occupy(executor, gate)
    future = executor.submit(square, 1)
    future.add_done_callback(called.append)
    future.cancel()
    assert called == [future]
    gate.open()


def test_a_callback_that_fails_is_logged(executor, gate, caplog):
    """An error in a callback is logged by the standard library; other callbacks and calls are not affected."""
    future = executor.submit(gate.wait, 1)
    future.add_done_callback(lambda _: fail("in the callback"))
    last = threading.Event()
    future.add_done_callback(lambda _: last.set())
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        gate.open()
        assert last.wait(LIMIT)
    assert "in the callback" in caplog.text
    assert executor.submit(square, 2).result(LIMIT) == 4


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_exits_stops_nothing(executor, gate, error):
    """A callback that asks a call that exited for its result exits, too: that ends neither other calls nor the executor."""

    def interrupted():
        gate.wait()
        raise error("planned")

    future = executor.submit(interrupted)
    others = [executor.submit(square, number) for number in range(20)]
    future.add_done_callback(lambda done: done.result())
    gate.open()
    assert isinstance(future.exception(LIMIT), error)
    assert [other.result(LIMIT) for other in others] == [number * number for number in range(20)]
    assert executor.submit(square, 2).result(LIMIT) == 4


def test_as_completed_gives_them_as_they_are_done(executor, gate):
    """What is done first comes first, whatever was submitted first."""
    if executor.num_workers == 1:
        pytest.skip("one worker runs calls in order")
    slow = executor.submit(gate.wait, "slow")
    gate.until_arrived(1)
    quick = [executor.submit(square, number) for number in range(10)]
    order = as_completed([slow, *quick], LIMIT)
    assert {next(order) for _ in quick} == set(quick)
    gate.open()
    assert list(order) == [slow]


def test_as_completed_times_out(executor, gate):
    """as_completed raises TimeoutError for those that are not done in time."""
    future = executor.submit(gate.wait)
    with pytest.raises(TimeoutError, match=r"1 \(of 1\) futures unfinished"):
        list(as_completed([future], timeout=0))


def test_wait_for_the_first(executor, gate):
    """wait returns once any of them is done."""
    first, second = executor.submit(square, 2), executor.submit(gate.wait)
    done, pending = wait([first, second], LIMIT, FIRST_COMPLETED)
    assert first in done
    assert second in pending


def test_wait_for_the_first_that_fails(executor, gate):
    """wait returns once any of them has failed."""
    failed, second = executor.submit(fail, "planned"), executor.submit(gate.wait)
    done, pending = wait([failed, second], LIMIT, FIRST_EXCEPTION)
    assert failed in done
    assert second in pending


def test_wait_for_all(executor):
    """wait returns once all of them are done, whether they failed or not."""
    futures = [executor.submit(square, 2), executor.submit(fail, "planned"), executor.submit(square, 3)]
    assert wait(futures, LIMIT, ALL_COMPLETED) == (set(futures), set())


def test_wait_times_out(executor, gate):
    """wait gives those that are not done in time."""
    future = executor.submit(gate.wait)
    assert wait([future], timeout=0) == (set(), {future})


def test_wait_knows_of_cancelled_ones(executor, gate):
    """A cancelled call is done for wait, once its turn has come."""
    occupy(executor, gate)
    future = executor.submit(square, 1)
    future.cancel()
    gate.open()
    assert wait([future], LIMIT).done == {future}


def test_asyncio_waits_for_them(executor):
    """asyncio.wrap_future and run_in_executor give results and errors to coroutines."""

    async def main():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, square, number) for number in range(20)]
        assert await asyncio.gather(*calls) == [number * number for number in range(20)]
        assert await asyncio.wrap_future(executor.submit(square, 3)) == 9
        with pytest.raises(ValueError, match="planned"):
            await loop.run_in_executor(executor, fail, "planned")

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_asyncio_cancels_them(executor, gate):
    """Cancelling the asyncio side of a pending call cancels the call."""

    async def main():
        future = executor.submit(square, 2)
        wrapped = asyncio.wrap_future(future)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        return future

    occupy(executor, gate)
    future = asyncio.run(asyncio.wait_for(main(), LIMIT))
    assert future.cancelled()
    gate.open()


def test_asyncio_gets_an_exit(executor):
    """A coroutine that awaits a call which exits gets SystemExit, or its loop ends with it: as with any executor."""
    future = executor.submit(exit_with, 3)
    assert future.exception(LIMIT).code == 3

    async def main():
        await asyncio.wrap_future(future)

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert executor.submit(identity, 1).result(LIMIT) == 1

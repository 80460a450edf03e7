"""Operations in the background: one at a time, in order, each with a future."""

import threading
from concurrent.futures import CancelledError, Future, wait

import pytest

from mpiexecutor.channel._ends.background import Background, ChannelFuture

LONG = 30  # seconds: what a deadlock costs a test that fails, no less


class Gate:
    """An operation that is under way until it is told to end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.end = threading.Event()

    def __call__(self, future: ChannelFuture[str]) -> str | None:
        def pass_gate() -> str:
            self.begun.set()
            self.end.wait(LONG)
            return "passed"

        return future.begin(lambda: "through") and pass_gate()


@pytest.fixture
def rings():
    """Count how often the waiting thread was woken."""
    return []


@pytest.fixture
def background(rings):
    background = Background("test", lambda: rings.append(1))
    yield background
    background.stop()


@pytest.fixture
def gate(background):
    """Hold the background up, until the test lets it go on."""
    gate = Gate()
    gate.future = background.submit(gate)
    assert gate.begun.wait(LONG)
    yield gate
    gate.end.set()


def step_of(log, name):
    """Make an operation that notes in its step that it was carried out."""
    return lambda future: future.begin(lambda: log.append(name) or name)


def test_operations_are_carried_out_in_the_order_asked_for(background):
    """Each after the one before, and its result becomes the future's."""
    log = []
    futures = [background.submit(step_of(log, number)) for number in range(1, 20)]
    assert [future.result(LONG) for future in futures] == log == list(range(1, 20))


def test_one_operation_at_a_time(background, gate):
    """Nothing begins while another is under way."""
    log = []
    future = background.submit(step_of(log, "second"))
    assert background.busy
    assert not future.running()
    assert log == []
    gate.end.set()
    assert future.result(LONG) == "second"


def test_no_thread_before_it_is_needed():
    """A channel that never uses the background has no thread for it."""
    before = threading.active_count()
    background = Background("test", lambda: None)
    assert threading.active_count() == before
    assert not background.busy
    background.join()
    background.stop()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_becomes_the_futures_and_the_next_goes_on(background, error, begun):
    """Whatever is raised, before the step or after: the very exception, and the thread lives on."""

    def fail(future):
        if begun:
            future.begin(lambda: True)
        raise error

    failed, after = background.submit(fail), background.submit(step_of([], "after"))
    assert failed.exception(LONG) is error
    assert after.result(LONG) == "after"


def test_what_is_cancelled_before_it_begins_is_not_done(background, gate, rings):
    """Its step is not taken, the waiting thread is woken to see that, and the next one is carried out."""
    log = []
    cancelled, after = background.submit(step_of(log, "cancelled")), background.submit(step_of(log, "after"))
    assert cancelled.cancel()
    assert rings
    gate.end.set()
    assert after.result(LONG) == "after"
    assert log == ["after"]
    with pytest.raises(CancelledError):
        cancelled.result(0)


def test_a_cancelled_future_is_done_for_threads_that_wait_for_several(background, gate):
    """concurrent.futures.wait and as_completed learn of it, too, once its turn has come."""
    cancelled = background.submit(step_of([], "cancelled"))
    cancelled.cancel()
    gate.end.set()
    background.submit(step_of([], "after")).result(LONG)
    done, _ = wait([cancelled], timeout=0)
    assert done == {cancelled}


def test_what_has_begun_cannot_be_cancelled(background, gate):
    """The message is reserved, or claimed: it is too late."""
    assert gate.future.running()
    assert not gate.future.cancel()
    gate.end.set()
    assert gate.future.result(LONG) == "passed"
    assert not gate.future.cancel()


def test_a_step_that_came_to_nothing_leaves_the_future_cancellable():
    """No room, no message: the future is as it was."""
    future = ChannelFuture()
    assert future.begin(lambda: None) is None
    assert not future.running()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.begin(lambda: pytest.fail("a step of a cancelled future was taken"))


def test_no_cancel_between_a_step_and_the_note_of_it():
    """A cancel meanwhile waits for the step, and is then too late."""
    future, tried = ChannelFuture(), []
    canceller = threading.Thread(target=lambda: tried.append(future.cancel()))

    def step():
        canceller.start()
        assert tried == []
        return "found"

    assert future.begin(step) == "found"
    canceller.join(LONG)
    assert tried == [False]
    assert future.running()


def test_a_callback_may_cancel_the_future_that_calls_it():
    """It learns of a cancellation; a second one is harmless, and does not wait for itself."""
    future, seen = ChannelFuture(), []
    future.add_done_callback(lambda each: seen.append(each.cancel()))
    canceller = threading.Thread(target=future.cancel, daemon=True)
    canceller.start()
    canceller.join(2)
    assert not canceller.is_alive(), "cancel waits for itself"
    assert seen == [True]


def test_a_callback_that_raises_does_not_end_the_thread(background):
    """Futures log that, and go on."""
    future: Future[str] = background.submit(step_of([], "first"))
    future.add_done_callback(lambda each: each.unknown)
    future.result(LONG)
    assert background.submit(step_of([], "second")).result(LONG) == "second"


def test_join_waits_until_everything_is_done(background, gate):
    """All that was asked for before, not only what is under way."""
    futures = [background.submit(step_of([], number)) for number in range(1, 4)]
    gate.end.set()
    background.join()
    assert all(future.done() for future in futures)
    assert not background.busy


def test_stop_ends_the_thread_and_wakes_what_waits(rings):
    """The operation under way is woken to find out that it is to end."""
    gate = Gate()
    background = Background("test", lambda: rings.append(gate.end.set()))
    future = background.submit(gate)
    assert gate.begun.wait(LONG)
    background.stop()
    assert future.result(0) == "passed"
    assert rings
    assert background._thread is not None
    assert not background._thread.is_alive()


def test_stop_leaves_no_future_undone():
    """What was queued is done in the end, one way or another: no thread waits for it for ever."""
    gate, log = Gate(), []
    background = Background("test", gate.end.set)
    background.submit(gate)
    assert gate.begun.wait(LONG)
    queued = background.submit(step_of(log, "queued"))
    background.stop()
    assert queued.done()


def test_stop_begins_nothing_more():
    """What is queued behind the operation under way is not carried out."""
    gate, log = Gate(), []
    background = Background("test", gate.end.set)
    background.submit(gate)
    assert gate.begun.wait(LONG)
    background.submit(step_of(log, "queued"))
    background.stop()
    assert log == []


def test_an_operation_may_stop_the_background_itself():
    """It does not wait for its own end."""
    background = Background("test", lambda: None)
    future = background.submit(lambda each: each.begin(lambda: background.stop() or "stopped"))
    assert future.result(LONG) == "stopped"

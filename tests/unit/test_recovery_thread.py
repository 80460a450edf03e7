"""The thread that recovers from failures, and its watchdog, at which another thread looks. Both are here without any MPI."""

import threading

import pytest
from fakes import LIMIT, FakeClock

from mpiexecutor._rma import recovery_thread
from mpiexecutor._rma.recovery_thread import Watchdog, start_recovery_thread
from mpiexecutor._util.inbox import Inbox


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(recovery_thread, "time", clock)
    return clock


def test_a_limit_is_kept_by_the_thread_that_looks(clock):
    """When it is over that is seen to, once."""
    calls = []
    watchdog = Watchdog()
    assert watchdog.left() is None
    with watchdog.limit(9, lambda: calls.append("stuck")):
        clock.now += 4
        assert watchdog.left() == 5
        clock.now += 5
        assert calls == []
        assert watchdog.left() is None
        assert watchdog.left() is None
    assert calls == ["stuck"]


def test_what_is_done_in_time_is_not_stuck(clock):
    """Nor is it if it fails."""
    calls = []
    watchdog = Watchdog()
    with pytest.raises(ZeroDivisionError), watchdog.limit(9, lambda: calls.append("stuck")):
        _ = 1 // 0
    clock.now += 100
    assert watchdog.left() is None
    assert calls == []


def test_the_thread_that_looks_is_woken_when_there_is_a_limit():
    """Or it would wait for something else."""
    wakes = []
    watchdog = Watchdog(lambda: wakes.append(watchdog.left()))
    with watchdog.limit(9, lambda: None):
        pass
    (left,) = wakes
    assert 0 < left <= 9


def recover_from(failures, recover):
    """Have these recovered from, in order, until the thread ends."""
    inbox = Inbox()
    for failure in (*failures, None):
        inbox.put(failure)
    thread = start_recovery_thread(inbox, recover)
    thread.join(LIMIT)
    assert not thread.is_alive()


def test_failures_are_recovered_from_in_order():
    """Then it ends, if there will be none any more."""
    seen = []
    recover_from([1, 2, 3], lambda failure: seen.append(failure) or True)
    assert seen == [1, 2, 3]


def test_what_cannot_be_recovered_yet_is_tried_again(monkeypatch):
    """Without another failure."""
    monkeypatch.setattr(recovery_thread, "_AGAIN", 0.0)
    inbox, seen, done = Inbox(), [], threading.Event()
    answers = [False, False, True]

    def recover(failure):
        seen.append(failure)
        if answers[0]:
            done.set()
        return answers.pop(0)

    thread = start_recovery_thread(inbox, recover)
    inbox.put(1)
    assert done.wait(LIMIT)
    inbox.put(None)
    thread.join(LIMIT)
    assert seen == [1, 1, 1]

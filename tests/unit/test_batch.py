"""The batch of a worker, and what is kept of outcomes in case it dies: step by step, without a channel."""

import os
import threading

import pytest
from fakes import bare_call as call
from fakes import bare_outcome as outcome

from mpiexecutor._calls import batch as batch_module
from mpiexecutor._calls.batch import BatchFlusher, CurrentBatch, CurrentBlock
from mpiexecutor._calls.messages import load_outcomes
from mpiexecutor._liveness.status_page import LARGE, StatusPage

LIMIT = 30  # seconds


@pytest.fixture
def page():
    page, descriptor = StatusPage.new()
    os.close(descriptor)
    return page


@pytest.fixture
def batch(page):
    return CurrentBatch(page)


@pytest.fixture
def block(page):
    return CurrentBlock(page, *[pytest.fail] * 4)


def held(page):
    return [number for number, *_ in load_outcomes(page.held)]


def test_outcomes_are_kept_until_all_that_were_taken_away_are_sent(batch, page):
    """Those that the flusher has taken are still on their way while the worker goes on, and sends its own before."""
    batch.held = 60.0
    batch.sent_at = float("inf")
    batch.calls.extend(map(call, range(4)))
    assert batch.begin_next() == call(0)
    assert batch.finish(outcome(0), 5) == ([], call(1))
    taken, given_back = batch.clear_if_still(1)
    assert (taken, given_back) == ([outcome(0)], [2, 3])
    assert held(page) == [0]
    assert batch.finish(outcome(1), 5) == ([outcome(1)], None)
    batch.note_sent()
    assert held(page) == [0, 1]
    batch.note_sent()
    assert held(page) == []


def test_what_still_is_in_the_batch_is_kept_when_others_are_sent(batch, page):
    """It has not gone with them."""
    batch.held = 60.0
    batch.sent_at = float("inf")
    batch.calls.extend(map(call, range(3)))
    batch.begin_next()
    batch.finish(outcome(0), 5)
    assert batch.clear_if_still(1)[0] == [outcome(0)]
    batch.calls.append(call(5))
    assert batch.finish(outcome(1), 5) == ([], call(5))
    batch.note_sent()
    assert 1 in held(page)


def test_the_worker_does_not_go_on_while_the_flusher_has_something_in_hand(batch, block):
    """The worker would claim other work, reply for another executor, and lose what is given back if it died."""
    batch.calls.extend(map(call, range(2)))
    batch.begin_next()
    said = []
    sending, may_send = threading.Event(), threading.Event()

    def send(outcomes, given_back):
        sending.set()
        may_send.wait(LIMIT)
        said.append((outcomes, given_back))

    def go_on():
        flusher.wait()
        said.append("gone on")

    flusher = BatchFlusher(batch, block, send, fail=pytest.fail)
    flusher.watch()
    assert sending.wait(LIMIT)
    worker = threading.Thread(target=go_on)
    worker.start()
    worker.join(0.1)
    may_send.set()
    worker.join(LIMIT)
    flusher.stop()
    assert said == [([], [1]), "gone on"]


def test_a_flusher_that_cannot_send_has_its_worker_fail(page):
    """What it has in hand is lost, unless this worker dies."""
    batch = CurrentBatch(page)
    batch.calls.extend(map(call, range(2)))
    batch.begin_next()
    failed = threading.Event()

    def send(_outcomes, _given_back):
        raise ZeroDivisionError("a fault of ours")

    flusher = BatchFlusher(batch, CurrentBlock(page, *[pytest.fail] * 4), send, failed.set)
    flusher.watch()
    assert failed.wait(LIMIT)
    flusher.stop()


def test_a_long_outcome_is_not_kept(batch, page):
    """It is sent at once."""
    batch.calls.extend(map(call, range(2)))
    batch.begin_next()
    assert batch.finish(outcome(0), LARGE + 1)[0] == [outcome(0)]
    assert held(page) == []


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(batch_module, "time", clock)
    return clock


def test_outcomes_wait_for_others_a_millisecond_at_most(page, clock):
    """Then they are sent, with the one that comes then; those of the last call at once."""
    batch = CurrentBatch(page)
    batch.calls.extend(map(call, range(5)))
    batch.begin_next()
    assert batch.finish(outcome(0), 5) == ([], call(1))
    clock.now = 0.9e-3
    assert batch.finish(outcome(1), 5) == ([], call(2))
    clock.now = 1.1e-3
    assert batch.finish(outcome(2), 5) == ([outcome(0), outcome(1), outcome(2)], None)
    batch.begin_next()
    assert batch.finish(outcome(3), 5) == ([], call(4))
    assert batch.finish(outcome(4), 5) == ([outcome(3), outcome(4)], None)


def test_outcomes_wait_until_they_are_many_bytes(page, clock):
    """All together."""
    batch = CurrentBatch(page)
    batch.calls.extend(map(call, range(5)))
    batch.begin_next()
    assert batch.finish(outcome(0), LARGE - 5)[0] == []
    assert batch.finish(outcome(1), 5)[0] == []
    assert batch.finish(outcome(2), 1)[0] == [outcome(0), outcome(1), outcome(2)]


def test_with_a_limit_no_outcome_waits(page, clock):
    """The call behind it may be killed."""
    batch = CurrentBatch(page)
    batch.held = 0.0
    batch.calls.extend(map(call, range(2)))
    batch.begin_next()
    clock.now = 1e-6
    assert batch.finish(outcome(0), 5) == ([outcome(0)], None)

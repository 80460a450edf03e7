"""The desk of a worker, and what is kept of outcomes in case it dies: step by step, without a channel."""

import os
import threading

import pytest
from fakes import bare_call as call
from fakes import bare_outcome as outcome

from mpiexecutor._calls.messages import Calls, Results, SpareResult, load_outcomes
from mpiexecutor._calls.outcomes import Blob, Place, error_from
from mpiexecutor._calls.worker import Courier, Desk, Worker
from mpiexecutor._liveness.status_page import LARGE, StatusPage

LIMIT = 30  # seconds


@pytest.fixture
def page():
    page, descriptor = StatusPage.new()
    os.close(descriptor)
    return page


@pytest.fixture
def desk(page):
    return Desk(page)


def held(page):
    return [number for number, *_ in load_outcomes(page.held)]


def test_outcomes_are_kept_until_all_that_were_taken_away_are_sent(desk, page):
    """Those that the courier has taken are still on their way while the worker goes on, and sends its own before."""
    desk.held = 60.0
    desk.sent_at = float("inf")
    desk.calls.extend(map(call, range(4)))
    assert desk.begin_next() == call(0)
    assert desk.finish(outcome(0), 5) == ([], call(1))
    taken, given_back = desk.clear_if_still(1)
    assert (taken, given_back) == ([outcome(0)], [2, 3])
    assert held(page) == [0]
    assert desk.finish(outcome(1), 5) == ([outcome(1)], None)
    desk.note_sent()
    assert held(page) == [0, 1]
    desk.note_sent()
    assert held(page) == []


def test_what_still_lies_on_the_desk_is_kept_when_others_are_sent(desk, page):
    """It has not gone with them."""
    desk.held = 60.0
    desk.sent_at = float("inf")
    desk.calls.extend(map(call, range(3)))
    desk.begin_next()
    desk.finish(outcome(0), 5)
    assert desk.clear_if_still(1)[0] == [outcome(0)]
    desk.calls.append(call(5))
    assert desk.finish(outcome(1), 5) == ([], call(5))
    desk.note_sent()
    assert 1 in held(page)


def test_nobody_goes_on_while_the_courier_has_something_in_hand(desk):
    """The worker would claim other work, reply for another executor, and lose what is given back if it died."""
    desk.calls.extend(map(call, range(2)))
    desk.begin_next()
    said = []
    sending, may_send = threading.Event(), threading.Event()

    def send(outcomes, given_back):
        sending.set()
        may_send.wait(LIMIT)
        said.append((outcomes, given_back))

    def go_on():
        courier.wait()
        said.append("gone on")

    courier = Courier(desk, send, fail=pytest.fail)
    courier.watch()
    assert sending.wait(LIMIT)
    worker = threading.Thread(target=go_on)
    worker.start()
    worker.join(0.1)
    may_send.set()
    worker.join(LIMIT)
    courier.stop()
    assert said == [([], [1]), "gone on"]


class Channel:
    """Has one message to be taken, and notes what is put."""

    def __init__(self, *messages):
        self.messages = list(messages)
        self.put_messages = []

    def take_many(self, _most):
        return [self.messages.pop()] if self.messages else []

    def put(self, message):
        if isinstance(message, Results):
            message = message._replace(outcomes=[*message.outcomes])
        self.put_messages.append(message)


def test_a_long_outcome_travels_alone_and_has_a_spare_one(page):
    """After those before it: if the root cannot receive it, it is told so of this call, and of no other."""
    calls = [(number, None, None, *Blob.of((bytes, (size,), {}))) for number, size in enumerate([10, LARGE + 1, 20])]
    replies = Channel()
    worker = Worker(Channel(Calls(5, None, 0.0, calls)), replies, None, Place.here(1, 2), page, fail=pytest.fail)
    worker._desk.held = 60.0
    worker._courier.watch = int  # or it might be faster
    worker.serve()
    first, long, spare, last = replies.put_messages
    assert [[number for number, *_ in results.outcomes] for results in (first, long, last)] == [[0], [1], [2]]
    assert type(spare) is SpareResult
    assert spare.number == 1
    failure = spare.failure
    assert failure[:2] == ("MemoryError", str(error_from(failure)))
    assert "the result of this call is too large for the memory of the script's process" in failure.text
    assert held(page) == []


def test_a_long_outcome_is_not_kept(desk, page):
    """It is sent at once."""
    desk.calls.extend(map(call, range(2)))
    desk.begin_next()
    assert desk.finish(outcome(0), LARGE + 1)[0] == [outcome(0)]
    assert held(page) == []

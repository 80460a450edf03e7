"""Isolated calls on the root: what becomes of the calls of a dead child, and of calls that are cancelled while they run."""

import pytest
from fakes import LIMIT, fake_crew

from mpiexecutor import BrokenWorkerError
from mpiexecutor._calls.messages import ChildDied
from mpiexecutor._calls.scheduling.futures import CallFuture
from mpiexecutor._liveness.status_page import INITIALIZER, NOTHING


@pytest.fixture
def crew():
    with fake_crew(workers=4) as crew:
        yield crew


def died(worker, begun, *, overdue=0.0, cancelled=False, serial=1):
    """Tell of the death of the child that had the first message."""
    text = "was killed by SIGKILL"
    worker._crew.replies.put(ChildDied(worker.rank, worker.executor, serial, "host", 7, text, begun, overdue, cancelled, b""))


def sent_together(crew, *names, **options):
    """Have these calls sent in one message; return their futures, the worker that has it, and their session."""
    futures, worker = crew.send_together(*names, isolate=True, **options)
    return futures, worker, crew.session_of(worker)


def serial_of(session):
    (batch,) = session.under_way
    return batch.serial


def test_the_call_that_was_begun_is_lost_and_those_behind_it_are_sent_again(crew):
    """However often children die: a call that was not begun has nothing to do with it."""
    futures, worker, session = sent_together(crew, "a", "b", "c")
    worker.answer("a")
    died(worker, worker._numbers["b"], serial=serial_of(session))
    assert futures[0].result(LIMIT) == "a"
    assert type(futures[1].exception(LIMIT)) is BrokenWorkerError
    assert worker.take() == ["c"]
    worker.answer()
    assert futures[2].result(LIMIT) == "c"


def test_a_call_that_no_worker_has_begun_is_not_sent_for_ever(crew):
    """A script whose top level kills each child has an end."""
    futures, worker, session = sent_together(crew, "a")
    for _ in range(4):
        died(worker, NOTHING, serial=serial_of(session))
        crew.settle()
        if not futures[0].done():
            assert worker.take() == ["a"]
    assert type(futures[0].exception(LIMIT)) is BrokenWorkerError


def test_an_initializer_that_dies_breaks_its_executor(crew):
    futures, worker, session = sent_together(crew, "a")
    died(worker, INITIALIZER, serial=serial_of(session))
    assert "the initializer was being run when" in str(futures[0].exception(LIMIT))


def test_a_death_that_is_about_no_call_changes_nothing(crew):
    """All of them have outcomes."""
    futures, worker, session = sent_together(crew, "a", "b")
    serial = serial_of(session)
    worker.answer()
    assert [future.result(LIMIT) for future in futures] == ["a", "b"]
    died(worker, worker._numbers["b"], serial=serial)
    assert crew.submit_one("c", session=session) is not None


def test_a_cancelled_call_has_no_other_outcome(crew):
    """Neither its result, nor the death of its child; and it is not sent again."""
    told = []
    crew.scheduler._cancel = told.append
    futures, worker, session = sent_together(crew, "a", "b", retries=9)
    numbers = worker._numbers
    assert futures[0].cancel()
    assert futures[1].cancel()
    assert told == [[numbers["a"]], [numbers["a"], numbers["b"]]]
    worker.answer("a")
    died(worker, numbers["b"], cancelled=True, serial=serial_of(session))
    crew.settle()
    crew.submit("c", session=session)
    assert worker.take() == ["c"]
    assert all(future.cancelled() for future in futures)


def test_a_future_of_a_worker_that_runs_its_calls_itself_cannot_be_cancelled():
    """As in the standard library."""
    future = CallFuture()
    future.set_running_or_notify_cancel()
    assert not future.cancel()
    assert not future.is_over

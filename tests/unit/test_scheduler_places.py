"""Which workers run the calls of executors that may have fewer than there are; and what they learn of executors that have ended."""

import sys
import time
from types import SimpleNamespace

import pytest
from fakes import LIMIT, UNKNOWN, FakeWorker, fake_crew, real_worker, serve
from script_pair import script_of

from mpiexecutor._calls import worker as worker_module
from mpiexecutor._calls.scheduling.session import _REFUSALS
from mpiexecutor._script.root.script import Script
from mpiexecutor._script.state import Origin

pytestmark = pytest.mark.usefixtures("main")


@pytest.fixture
def crew():
    with fake_crew(workers=2) as crew:
        yield crew


@pytest.fixture
def script(crew):
    """Return the globals of a script."""
    return new_script(crew)


def new_script(crew):
    script_of("def f(): return 'f'\ndef g(): return 'g'\n")
    return Script(crew.scheduler.registry, Origin.NOTHING)


def run(worker, name):
    """Have a worker take a call; return whether it may run it, and if so has done so."""
    assert worker.take() == [name]
    if worker.ask_for_state() is None:
        return False
    worker.answer()
    worker._crew.settle()
    return True


# -- places


def test_two_executors_of_one_worker_each_have_different_workers(crew, script):
    """One that is busy with a call of the first does not keep the second waiting; each keeps the worker that it has."""
    first, second = crew.open(1), crew.open(1)
    workers = FakeWorker(crew, 1), FakeWorker(crew, 2)
    future = crew.submit_named("f", script, session=first)
    assert run(workers[0], "f")
    assert future.result(LIMIT) == "f"
    future = crew.submit_named("g", script, session=second)
    assert not run(workers[0], "g")
    assert not future.done()
    assert run(workers[1], "g")
    assert future.result(LIMIT) == "g"
    for session, own in ((first, 0), (second, 1)) * 2:
        future = crew.submit_named("f", script, session=session)
        assert not run(workers[1 - own], "f")
        assert run(workers[own], "f")
        assert future.result(LIMIT) == "f"
    assert crew.scheduler._state.seconds[UNKNOWN] == 0  # what is given back so is not taken to be long


def test_a_worker_has_two_executors_if_no_other_comes(crew, script):
    """The other workers are busy, for as long as they like."""
    first, second = crew.open(1), crew.open(1)
    worker = FakeWorker(crew, 1)
    crew.submit_named("f", script, session=first)
    assert run(worker, "f")
    future = crew.submit_named("g", script, session=second)
    for _ in range(_REFUSALS):
        assert not run(worker, "g")
    assert run(worker, "g")
    assert future.result(LIMIT) == "g"


def test_a_worker_has_two_executors_if_all_have_one(crew, script):
    """At once."""
    sessions = [crew.open(1) for _ in range(3)]
    for session, rank in zip(sessions, (1, 2, 1), strict=True):
        crew.submit_named("f", script, session=session)
        assert run(FakeWorker(crew, rank), "f")


def test_the_place_of_a_worker_that_has_died_is_anothers(crew, script):
    """Or the executor would have none."""
    session = crew.open(1)
    crew.submit_named("f", script, session=session)
    worker = FakeWorker(crew, 1)
    assert run(worker, "f")
    worker.message = None
    worker.die()
    crew.settle()
    future = crew.submit_named("g", script, session=session)
    assert run(FakeWorker(crew, 2), "g")
    assert future.result(LIMIT) == "g"


def test_an_executor_with_all_workers_has_all(crew, script):
    """Whatever others have."""
    limited = crew.open(1)
    crew.submit_named("f", script, session=limited)
    assert run(FakeWorker(crew, 1), "f")
    for rank in (1, 2):
        crew.submit_named("g", script)
        assert run(FakeWorker(crew, rank), "g")


def test_a_worker_that_may_not_run_calls_gives_them_back(crew, script, monkeypatch):
    """A real one; it keeps nothing of that executor, and rests, so that another takes them."""
    rests = []
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=rests.append))
    session = crew.open(1)
    other = FakeWorker(crew, 2)
    crew.submit_named("f", script, session=session)
    assert run(other, "f")
    future = crew.submit_named("g", script, session=session)
    worker = real_worker(crew, messages=3)
    worker.serve()
    crew.settle()
    assert rests == [worker_module._SHORTEST_REST * factor for factor in (1, 2, 4)]
    assert not worker._modules._modules
    assert not future.done()
    assert run(other, "g")
    assert future.result(LIMIT) == "g"


# -- ends


def test_a_worker_is_told_once_which_executors_have_ended(crew, script):
    """Of those that it has a `__main__` of, when it asks for a state next; those that have calls have not ended."""
    first, second, third = (crew.open() for _ in range(3))
    told = {}
    for session, rank in ((first, 1), (second, 1), (second, 2)):
        crew.submit_named("f", script, session=session)
        worker = FakeWorker(crew, rank)
        worker.take()
        told[session.number, rank] = worker.ask_for_state().ended
        if session is first:
            worker.answer()
            crew.settle()
            crew.scheduler.close(first, "shut down")
    assert told == {(first.number, 1): [], (second.number, 1): [first.number], (second.number, 2): []}
    crew.scheduler.close(second, "shut down")
    crew.submit_named("f", script, session=third)
    worker = FakeWorker(crew, 1)
    worker.take()
    assert worker.ask_for_state().ended == []  # the second one still has calls


def test_a_worker_keeps_nothing_of_executors_that_have_ended(crew):
    """Neither their `__main__` nor their functions, from the next executor's first call on."""
    script = new_script(crew)
    main = sys.modules["__main__"]
    first, second = crew.open(), crew.open()
    worker = real_worker(crew)
    future = crew.submit_named("f", script, session=first)
    closure = crew.submit("x", session=first, function=crew.function(lambda x: x))
    serve(worker, 2)
    assert (future.result(LIMIT), closure[0].result(LIMIT)) == ("f", "x")
    crew.settle()
    assert set(worker._modules._modules) == {first.number}
    assert len(worker._cache._kept) == 1
    crew.scheduler.close(first, "shut down")
    sys.modules["__main__"] = main
    future = crew.submit_named("g", Script(crew.scheduler.registry, Origin.NOTHING), session=second)
    serve(worker, 1)
    assert future.result(LIMIT) == "g"
    assert set(worker._modules._modules) == {second.number}
    assert not worker._cache._kept

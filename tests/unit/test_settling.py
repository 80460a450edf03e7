"""What is left to do once the lock is released: the settler alone, with tasks that no message carries."""

from collections import deque
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from mpiexecutor import BrokenWorkerError, RemoteTraceback
from mpiexecutor._calls.messages import Wanted
from mpiexecutor._calls.outcomes import Location, failure_of, pickled
from mpiexecutor._calls.scheduling.session import Session, Task
from mpiexecutor._calls.scheduling.settling import Break, FailLost, GiveUp, Settle, Settler
from mpiexecutor._calls.scheduling.state import SchedulerState
from mpiexecutor._liveness.monitor import WorkerFailure

HERE = Location(0, 3, "host", 1000)
LOSS = WorkerFailure(1, "host", 1001, "was killed by SIGKILL", 0)


class Requests:
    """Notes what is asked for."""

    def __init__(self):
        self.answered = []

    def answer(self, request):
        self.answered.append(request)


class Scene:
    """A settler, and a session whose calls were sent."""

    def __init__(self):
        self.state = SchedulerState(2, HERE)
        self.requests = Requests()
        self.settler = Settler(self.state, self.requests)
        self.session = Session(0, 4, None)
        self.state.sessions[0] = self.session

    def tasks(self, count):
        """Return tasks that are neither queued nor under way any more, and not settled."""
        tasks = []
        for number in range(count):
            future = Future()
            future.set_running_or_notify_cancel()
            tasks.append(Task(number, future, (number, None, None, b"", ()), 10, "kind"))
        self.session.unsettled += count
        return tasks

    def run(self, *steps):
        left = deque(steps)
        self.settler.run(left)
        assert not left


@pytest.fixture
def scene():
    return Scene()


def value(number, result):
    return number, 0.0, False, *pickled(result)


def fail(error):
    raise error


def error(number, raised):
    try:
        fail(raised)
    except BaseException as caught:
        return number, 0.0, True, *failure_of(caught, Location(1, 3, "host", 1001)).dumps()


class Unloadable:
    """Raises when it is unpickled."""

    def __reduce__(self):
        return fail, (LookupError("planned"),)


def test_results_and_errors_become_those_of_the_futures(scene):
    """One whose pickle fails here fails alone, and says where."""
    tasks = scene.tasks(4)
    outcomes = [value(0, "a"), error(1, ValueError("b")), value(2, Unloadable()), value(3, "d")]
    scene.run(Settle(scene.session, [(task.future, outcome) for task, outcome in zip(tasks, outcomes, strict=True)]))
    assert [tasks[number].future.result(0) for number in (0, 3)] == ["a", "d"]
    raised, failed = (tasks[number].future.exception(0) for number in (1, 2))
    assert (type(raised), str(raised), "rank 1 of 3" in str(raised.__cause__)) == (ValueError, "b", True)
    assert (type(failed), str(failed), "rank 0 of 3" in str(failed.__cause__)) == (LookupError, "planned", True)
    assert scene.session.idle


def test_a_session_is_not_idle_before_the_callbacks_have_returned(scene):
    """They may submit more."""
    (task,) = scene.tasks(1)
    seen = []
    task.future.add_done_callback(lambda _: seen.append(scene.session.idle))
    scene.run(Settle(scene.session, [(task.future, value(0, "a"))]))
    assert (seen, scene.session.idle) == ([False], True)


def test_a_callback_that_exits_is_logged_and_keeps_no_other_step_from_being_done(scene, caplog):
    """The collector goes on."""
    tasks = scene.tasks(2)
    tasks[0].future.add_done_callback(lambda _: fail(SystemExit(3)))
    steps = [Settle(scene.session, [(task.future, value(task.number, "a"))]) for task in tasks]
    scene.run(*steps, wanted := Wanted(1, 0, 7, 0))
    assert tasks[1].future.result(0) == "a"
    assert scene.requests.answered == [wanted]
    assert "a callback of a future has failed" in caplog.text


def test_a_closed_session_is_forgotten_once_it_is_idle(scene):
    """Nothing else refers to it."""
    tasks = scene.tasks(2)
    scene.session.close("over")
    scene.run(Settle(scene.session, [(tasks[0].future, value(0, "a"))]))
    assert scene.state.sessions
    scene.run(Settle(scene.session, [(tasks[1].future, value(1, "a"))]))
    assert not scene.state.sessions


def test_lost_calls_say_which_worker_has_died(scene):
    """By a sentence, and by attributes."""
    tasks = scene.tasks(2)
    scene.run(FailLost(scene.session, LOSS, tasks))
    for task in tasks:
        error = task.future.exception(0)
        assert type(error) is BrokenWorkerError
        assert (error.rank, error.host, error.pid, error.end) == (1, "host", 1001, "was killed by SIGKILL")
        assert str(error) == f"{LOSS} while it ran this call, or before the result was there"
    assert scene.session.idle


def test_the_call_that_was_overdue_timed_out_and_the_others_are_lost(scene):
    """Only this one has run longer than it may."""
    tasks = scene.tasks(2)
    scene.run(FailLost(scene.session, WorkerFailure(1, "host", 1001, "was killed", 1, 2.5), tasks))
    assert [type(task.future.exception(0)) for task in tasks] == [BrokenWorkerError, TimeoutError]
    assert str(tasks[1].future.exception(0)).startswith("this call ran longer than task_timeout: ")


def test_a_broken_session_fails_what_it_has_and_what_comes(scene):
    """Each with an error of its own and the same cause; a cancelled call stays cancelled."""
    sent, waiting, cancelled = scene.tasks(3)
    scene.session.unsettled = 1
    scene.session.sent[0] = sent
    waiting.future, cancelled.future = Future(), Future()
    cancelled.future.cancel()
    scene.session.backlog.extend([waiting, cancelled])
    cause = RemoteTraceback("why")
    scene.run(Break(scene.session, "the reason", cause))
    errors = [task.future.exception(0) for task in (sent, waiting)]
    assert [(type(error), str(error), error.__cause__) for error in errors] == [(BrokenProcessPool, "the reason", cause)] * 2
    assert errors[0] is not errors[1]
    assert cancelled.future.cancelled()
    assert (scene.session.broken, scene.session.idle) == ("the reason", True)


def test_to_give_up_breaks_all_sessions_for_good(scene):
    """No session can be opened any more."""
    other = Session(1, 4, None)
    scene.state.sessions[1] = other
    scene.run(GiveUp("the reason"))
    assert (scene.state.failure, scene.session.broken, other.broken) == ("the reason",) * 3

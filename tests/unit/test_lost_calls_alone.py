"""Which calls of a dead worker are lost, and which are sent again: the part of the scheduler that decides it, alone."""

from concurrent.futures import Future

import pytest

from mpiexecutor._calls.messages import Barrier, dump_outcome
from mpiexecutor._calls.outcomes import Location
from mpiexecutor._calls.scheduling.lost_calls import LostCalls
from mpiexecutor._calls.scheduling.session import Session, Task
from mpiexecutor._calls.scheduling.settling import Break, FailLost, GiveUp, Settle
from mpiexecutor._calls.scheduling.state import SchedulerState
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._liveness.status_page import INITIALIZER, NOTHING
from mpiexecutor.channel import ChannelClosed, Share


class Scene:
    """The part, and the reply channel, of which it needs only `put`."""

    def __init__(self, workers=2):
        self.state = SchedulerState(workers, Location(0, workers + 1, "host", 1000))
        self.barriers = 0
        self.closed = False
        self.part = LostCalls(self.state, self)

    def put(self, message):
        assert message == Barrier()
        if self.closed:
            raise ChannelClosed("closed")
        self.barriers += 1

    def send(self, message, count, **options):
        """Have so many calls of a new session in one message; return it and its tasks."""
        session = Session(len(self.state.sessions), 4, None, **options)
        self.state.sessions[session.number] = session
        first = 10 * session.number
        tasks = [Task(first + index, Future(), (first + index, None, None, b"", ()), 10, "kind") for index in range(count)]
        session.send(tasks).number = message
        return session, tasks

    def die(self, rank, begun=NOTHING, message=None, **how):
        share = None if message is None else Share(rank, range(message, message + 1), received=True)
        self.part.lose(WorkerFailure(rank, "host", 1000 + rank, "was killed", begun, **how), share)

    def next(self):
        with self.state.lock:
            return self.part.next()


@pytest.fixture
def scene():
    return Scene()


def test_a_death_is_handled_when_its_barrier_has_come(scene):
    """Until then replies of the failed worker may arrive."""
    session, tasks = scene.send(5, 2)
    scene.die(1, message=5)
    assert (scene.barriers, scene.state.workers, session.unsettled) == (1, 2, 2)
    assert scene.next() == [FailLost(session, WorkerFailure(1, "host", 1001, "was killed", NOTHING), [])]
    assert (scene.state.workers, list(session.backlog), session.unsettled) == (1, tasks, 0)


def test_what_was_begun_is_lost_and_the_rest_is_sent_again(scene):
    """In order, before other calls; calls of other messages are not touched."""
    others, _ = scene.send(4, 1)
    session, tasks = scene.send(5, 3)
    session.backlog.append(later := Task(99, Future(), (99, None, None, b"", ()), 10, "kind"))
    scene.die(1, begun=11, message=5)
    (step,) = scene.next()
    assert (type(step), step.tasks) == (FailLost, tasks[:2])
    assert list(session.backlog) == [tasks[2], later]
    assert (session.unsettled, others.unsettled) == (2, 1)


def test_calls_run_again_as_often_as_retries_say(scene):
    """Then they are lost."""
    session, tasks = scene.send(5, 1, retries=1)
    for again in (True, False):
        scene.die(1, begun=0, message=5)
        (step,) = scene.next()
        assert step.tasks == ([] if again else tasks)
        if again:
            session.send(session.next_batch(1, 100, {}, 1.0)).number = 5


def test_an_overdue_call_does_not_run_again(scene):
    """It would be overdue again."""
    session, tasks = scene.send(5, 1, retries=5)
    scene.die(1, begun=0, message=5, overdue=2.5)
    assert scene.next()[0].tasks == tasks
    assert not session.backlog


def test_outcomes_on_the_status_page_count(scene):
    """They were perhaps not put; those that were are known."""
    _, tasks = scene.send(5, 2)
    held = b"".join(dump_outcome((number, 0.0, False, b"value", ())) for number in (0, 7))
    scene.die(1, begun=1, message=5, held=held)
    settle, lost = scene.next()
    assert type(settle) is Settle
    assert [future for future, _ in settle.found] == [tasks[0].future]
    assert lost.tasks == [tasks[1]]
    assert scene.state.done == {1: 1}


def test_a_death_in_the_initializer_breaks_its_executor(scene):
    """It may kill every worker."""
    session, _ = scene.send(5, 1)
    scene.die(1, begun=INITIALIZER, message=5)
    (step,) = scene.next()
    assert (type(step), step.session) == (Break, session)


def test_without_workers_everything_is_given_up():
    """By the last death."""
    scene = Scene(workers=1)
    scene.die(1)
    (step,) = scene.next()
    assert type(step) is GiveUp
    assert step.reason == "all workers are lost; the last of them, the worker on rank 1, host host, pid 1001, was killed"


def test_a_claim_of_a_message_that_is_still_being_put_is_looked_up_again(scene):
    """Its number is known then. The worker is not counted as lost a second time: it may have come back."""
    session, tasks = scene.send(None, 1)
    scene.state.streaming = True
    scene.die(1, begun=None, message=5)
    assert scene.next() == []
    assert scene.state.workers == 1
    scene.state.note_regained(1)
    tasks[0].batch.number, scene.state.streaming = 5, False
    scene.part.queue_postponed()
    assert scene.barriers == 2
    (step,) = scene.next()
    assert (step.tasks, scene.state.workers) == (tasks, 2)
    scene.part.queue_postponed()
    assert scene.barriers == 2
    assert session.sent == {}


def test_after_the_end_a_death_is_ignored(scene):
    """No reply is collected any more."""
    scene.closed = True
    scene.die(1)
    assert scene.barriers == 0

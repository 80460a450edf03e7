"""What the collector makes of each reply: the collector alone, over a fake channel. What it passes on to is noted."""

import contextlib
from concurrent.futures import Future

import pytest
from fakes import FakeChannel, in_a_thread, until

from mpiexecutor._calls.messages import Barrier, Calls, GivenBack, InitializerFailed, Results, SharedMemory, TopLevelFailed, Wanted
from mpiexecutor._calls.outcomes import Failure, Location
from mpiexecutor._calls.scheduling.collector import Collector
from mpiexecutor._calls.scheduling.session import Session, Task
from mpiexecutor._calls.scheduling.settling import Break, Settle
from mpiexecutor._calls.scheduling.state import SchedulerState

HERE = Location(0, 3, "host", 1000)


class Scene:
    """A collector; it stands for the dispatcher, the settler, lost calls and requests, and notes what these are to do."""

    def __init__(self):
        self.state = SchedulerState(2, HERE)
        self.replies = FakeChannel()
        self.dispatched = 0
        self.steps = []
        self.reasons = []
        self.refused = []
        self.collector = Collector(self.state, self.replies, SharedMemory(), self, self, self, self)
        self.session = Session(0, 4, None)
        self.state.sessions[0] = self.session

    def dispatch(self):
        assert self.state.lock._is_owned()
        self.dispatched += 1

    def run(self, steps):
        assert not self.state.lock._is_owned()
        self.steps.extend(steps)

    def next(self):
        return ["what becomes of lost calls"]

    def give_up(self, reason, cause):
        self.reasons.append((reason, cause))

    def refuse(self, request):
        self.refused.append(request)

    def send(self, count, kind="kind", first=0):
        """Have so many calls under way in one message."""
        tasks = [Task(number, Future(), (number, None, None, b"", ()), 10, kind) for number in range(first, first + count)]
        self.session.send(tasks)
        return tasks

    def collect(self, *replies):
        """Put replies, to be taken together, and wait until they are handled."""
        with self.replies.together():
            for reply in replies:
                self.replies.put(reply)
        self.replies.wait_until_read()
        steps, self.steps = self.steps, []
        return steps


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.replies.error = None
    with contextlib.suppress(Exception):
        scene.replies.close()
    in_a_thread(scene.collector.thread.join).result(20)


def outcome(number, seconds=0.5):
    return number, seconds, False, b"value", ()


def test_a_reply_is_expected_soon_while_a_short_message_is_not_done_and_its_time_is_not_over(scene):
    """Otherwise the collector sleeps at once. The next short message rouses it."""
    assert not scene.replies.expected()
    batches = [scene.send(1, first=number)[0].batch for number in range(3)]
    for batch, seconds in zip(batches, (1000.0, 1000.0, 0.0), strict=True):
        scene.state.expect_reply(batch, seconds)
    scene.collect(Results(1, 0, (outcome(0),)))
    assert scene.replies.expected()
    scene.collect(Results(1, 0, (outcome(1),)))
    assert not scene.replies.expected()
    assert not scene.state._soon  # nothing is kept


def test_messages_that_are_done_are_forgotten_even_if_the_collector_never_waits(scene):
    """It would ask whether a reply is expected. A message is forgotten, too, once its time is over."""
    for number in range(1000):
        (task,) = scene.send(1, first=number)
        scene.state.expect_reply(task.batch, 1000.0 if number % 2 else 0.0)
        scene.session.take_outcomes([outcome(number)], {})
    assert len(scene.state._soon) <= 2 * scene.state.most_messages + 1
    assert not scene.replies.expected()


def test_outcomes_are_to_be_settled_without_the_lock(scene):
    """The worker has done so many; what has room is sent at once; calls of this kind are expected to take as long."""
    tasks = scene.send(3)
    (step,) = scene.collect(Results(2, 0, [outcome(0), outcome(2)]))
    assert type(step) is Settle
    assert [future for future, _ in step.found] == [tasks[0].future, tasks[2].future]
    assert (scene.state.done, scene.state.seconds, scene.dispatched) == ({2: 2}, {"kind": 0.5}, 1)
    assert (list(scene.session.sent), scene.session.unsettled) == ([1], 3)


def test_an_outcome_is_noted_once(scene):
    """It may come twice: from a status page, and by the channel."""
    scene.send(1)
    assert len(scene.collect(Results(1, 0, [outcome(0)]), Results(1, 0, [outcome(0)]))) == 1
    assert scene.state.done == {1: 1}


def test_outcomes_of_executors_that_are_gone_or_broken_are_ignored(scene):
    """Their futures are settled."""
    scene.send(1)
    scene.session.broken = "why"
    assert scene.collect(Results(1, 0, [outcome(0)]), Results(1, 77, [outcome(0)]), GivenBack(1, 77, True, (0,))) == []
    assert scene.state.done == {}


@pytest.mark.parametrize("behind_long_call", [True, False])
def test_calls_that_are_given_back_are_queued_again(scene, behind_long_call):
    """Before all others, in order; behind a long call, calls of their kind are expected to be long."""
    tasks = scene.send(3)
    scene.session.backlog.append(later := Task(9, Future(), (9, None, None, b"", ()), 10, "kind"))
    scene.state.seconds["kind"] = 0.0
    scene.collect(GivenBack(1, 0, behind_long_call, (1, 2)))
    assert list(scene.session.backlog) == [*tasks[1:], later]
    assert (scene.state.seconds["kind"] > 0) is behind_long_call
    assert scene.session.unsettled == 1


def test_requests_and_deaths_are_steps_in_their_order(scene):
    """What a worker had put before it died comes first."""
    scene.send(1)
    wanted = Wanted(1, 0, 7, 0)
    assert scene.collect(wanted, Results(1, 0, [outcome(0)]), Barrier())[::2] == [wanted, "what becomes of lost calls"]


def test_an_initializer_that_failed_breaks_its_executor(scene):
    """The text is the reason, the traceback of the worker the cause."""
    (step,) = scene.collect(InitializerFailed(1, 0, "ValueError: planned", "its traceback"))
    assert type(step) is Break
    assert (step.session, step.reason) == (scene.session, "the initializer failed in a worker, ValueError: planned")
    assert str(step.cause) == "its traceback"


def test_a_top_level_that_failed_is_logged_once_for_each_executor(scene, caplog):
    """Every worker may say so."""
    scene.collect(*(TopLevelFailed(rank, 0, "ValueError: planned", "\nits traceback") for rank in (1, 2)))
    assert caplog.messages == ["the top level of the script ended early in a worker, ValueError: planned\nits traceback"]


@pytest.mark.parametrize("failed", [False, True])
def test_an_outcome_without_memory_is_replaced_by_an_error(scene, failed):
    """Of the same call and worker; those behind it are collected."""
    scene.send(2)
    scene.replies.sizes[0] = 1 << 30
    steps = scene.collect(
        Results(2, 0, [(0, 0.5, failed, bytes(100_000), [memoryview(bytes(100_000))])]), Results(1, 0, [outcome(1)])
    )
    ((_, (number, seconds, is_error, data, buffers)),) = steps[0].found
    assert (number, seconds, is_error) == (0, 0.5, True)
    what = "what this call raised" if failed else "the result of this call"
    text = f"{what} is too large for the memory of the script's process, {1 << 30} bytes when pickled"
    assert Failure.loads(data, buffers)[:2] == ("MemoryError", text)
    assert steps[1].found[0][1][0] == 1
    assert scene.state.done == {1: 1, 2: 1}


@pytest.mark.parametrize("how", ["a message that is no reply", "an error of the channel"])
def test_after_a_fault_everything_is_given_up_and_no_worker_waits(scene, how):
    """Neither for a function nor for room."""
    if how == "an error of the channel":
        scene.replies.fail(OSError("planned"))
        until(lambda: scene.reasons)
        scene.replies.error = None
    else:
        scene.collect(Calls(0, None, 0.0, 1, None, []))
    ((reason, cause),) = scene.reasons
    assert reason.startswith("the collector failed: ")
    assert "Traceback" in str(cause)
    scene.collect(Wanted(2, 0, 7, 0), Results(1, 0, [outcome(0)]))
    until(lambda: scene.refused == [Wanted(2, 0, 7, 0)])
    assert scene.dispatched == 0


def test_the_collector_ends_with_the_channel(scene):
    """What is in it is collected first."""
    scene.send(1)
    scene.replies.put(Results(1, 0, [outcome(0)]))
    scene.replies.close()
    in_a_thread(scene.collector.thread.join).result(20)
    assert len(scene.steps) == 1
    assert not scene.reasons

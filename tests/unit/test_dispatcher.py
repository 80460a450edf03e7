"""Which calls go in which message, and when: the dispatcher alone, over a fake channel. No workers, no collector."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from fakes import FakeChannel, StillCheck, bare_call

from mpiexecutor._calls.messages import SharedMemory
from mpiexecutor._calls.outcomes import Location, RemoteTraceback
from mpiexecutor._calls.scheduling import dispatcher as its_module
from mpiexecutor._calls.scheduling import state as state_module
from mpiexecutor._calls.scheduling.dispatcher import Dispatcher
from mpiexecutor._calls.scheduling.series import Runs, Series
from mpiexecutor._calls.scheduling.session import Session, Task
from mpiexecutor._calls.scheduling.state import SchedulerState

SHORT, LONG = "a kind of short calls", "a kind of long calls"
HERE = Location(0, 3, "host", 1000)


class Scene:
    """A dispatcher for two workers, its sessions, and what it has sent."""

    def __init__(self):
        self.state = SchedulerState(2, HERE)
        self.state.seconds |= {SHORT: 0.0, LONG: 1.0}
        self.work, self.replies = FakeChannel(), FakeChannel()
        self.streamed = 0
        self.dispatcher = Dispatcher(self.state, self.work, self.replies, SharedMemory(), self._after_stream)
        self._numbers = iter(range(10**6))

    def _after_stream(self):
        """Nothing holds the lock: another thread could take it."""
        assert not self.state.lock._is_owned()
        self.streamed += 1

    def open(self, limit=4, **options):
        session = Session(len(self.state.sessions), limit, None, **options)
        self.state.sessions[session.number] = session
        return session

    def queue(self, session, count, kind=LONG):
        """Queue calls of a session, and return their futures."""
        futures = []
        for _ in range(count):
            number = next(self._numbers)
            future = Future()
            session.backlog.append(Task(number, future, bare_call(number), 10, kind))
            futures.append(future)
        return futures

    def dispatch(self):
        with self.state.lock:
            self.dispatcher.dispatch()

    def sent(self):
        """Take all messages: the executor of each, and the numbers of its calls."""
        messages = self.work.take_many(1000) if len(self.work) else []
        return [(message.executor, [number for number, *_ in message.calls]) for message in messages]


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(its_module, "PeriodicCheck", StillCheck)
    return Scene()


@pytest.fixture
def asleep(scene, monkeypatch):
    """Return the scene: the collector sleeps, a processor is free, and time stands still."""
    monkeypatch.setattr(its_module, "processors_lacking", lambda: 0)
    monkeypatch.setattr(state_module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    scene.replies.sleeps = True
    return scene


def test_a_collector_that_sleeps_is_roused_for_replies(asleep):
    """Once for all messages that are sent."""
    asleep.dispatch()
    assert asleep.replies.roused == 0  # nothing was sent
    asleep.queue(asleep.open(), 2, SHORT)
    asleep.dispatch()
    assert asleep.replies.roused == 1


@pytest.mark.parametrize(("sleeps", "is_free"), [(False, True), (True, False)])
def test_a_collector_is_not_roused_if_it_does_not_sleep_or_no_processor_is_free(asleep, monkeypatch, sleeps, is_free):
    """To spin, it would take one from what computes."""
    monkeypatch.setattr(its_module, "processors_lacking", lambda: 0 if is_free else 1)
    asleep.replies.sleeps = sleeps
    asleep.queue(asleep.open(), 2, SHORT)
    asleep.dispatch()
    assert asleep.replies.roused == 0


@pytest.mark.parametrize(("seconds", "calls", "is_short"), [(None, 3, True), (1e-4, 4, True), (1e-4, 6, False), (0.1, 1, False)])
@pytest.mark.parametrize("of_map", [False, True])
def test_the_collector_spins_for_messages_that_are_short_only(asleep, seconds, calls, is_short, of_map):
    """Whose calls are expected to take half a millisecond together, or are not known."""
    if seconds is not None:
        asleep.state.seconds["kind"] = seconds
    session = asleep.open(limit=1)
    if of_map:
        series = Series(Runs(), "kind", "f", None, 0)
        series.rows.extend([(1,)] * calls)
        session.backlog.extend([series] * calls)
    else:
        asleep.queue(session, calls, "kind")
    asleep.dispatch()
    assert (asleep.state.expects_reply_soon(), asleep.replies.roused) == (is_short, is_short)


def test_a_long_message_rouses_no_collector_beside_a_short_one(asleep):
    """That one has done so when it was sent."""
    for kind in (SHORT, LONG):
        asleep.queue(asleep.open(limit=1), 1, kind)
        asleep.dispatch()
    assert (asleep.state.expects_reply_soon(), asleep.replies.roused) == (True, 1)


def test_two_messages_for_each_worker_are_under_way(scene):
    """One that runs, and one that waits; the next goes when one is done."""
    session = scene.open()
    scene.queue(session, 6)
    scene.dispatch()
    assert scene.sent() == [(0, [number]) for number in range(4)]
    session.take_outcomes([(0, 1.0, False, b"", ())], {})
    scene.dispatch()
    assert scene.sent() == [(0, [4])]


def test_sessions_send_in_turn(scene):
    """No executor waits until another one has sent all that it may."""
    for _ in range(2):
        scene.queue(scene.open(), 3)
    scene.dispatch()
    assert [executor for executor, _ in scene.sent()] == [0, 1, 0, 1, 0, 1]


def test_short_calls_travel_together_and_long_ones_alone(scene):
    """What waits is divided among the messages that may be under way."""
    session = scene.open()
    scene.queue(session, 8, SHORT)
    scene.queue(session, 2, LONG)
    scene.dispatch()
    assert [len(calls) for _, calls in scene.sent()] == [3, 2, 2, 1]


def test_a_cancelled_call_is_not_sent(scene):
    """Threads that wait for room are told."""
    session = scene.open()
    futures = scene.queue(session, 2)
    assert futures[0].cancel()
    scene.dispatch()
    assert scene.sent() == [(0, [1])]
    assert not session.backlog


def test_slow_messages_do_not_count(scene):
    """Calls that are expected to be short are not held up by some that turn out to be long."""
    session = scene.open(limit=100)
    scene.state.most_messages = 100
    scene.queue(session, 8, SHORT)
    scene.dispatch()
    assert len(scene.sent()) == 4
    assert [task.number for task in session.backlog] == [6, 7]
    scene.dispatch()
    assert scene.sent() == []
    assert scene.dispatcher._slow_check.wanted
    assert scene.dispatcher._slow_check.look()
    assert scene.sent() == []
    assert not scene.dispatcher._slow_check.look()
    assert scene.sent() == [(0, [6]), (0, [7])]


def test_calls_that_cannot_be_put_fail_alone(scene):
    """With the error of the put, and its place; they count no more."""
    session = scene.open()
    (future,) = scene.queue(session, 1)
    session.backlog[0].call = (0, None, None, object(), ())
    others = scene.queue(session, 1)
    scene.dispatch()
    error = future.exception(0)
    assert isinstance(error, (TypeError, ValueError))
    assert isinstance(error.__cause__, RemoteTraceback)
    assert not others[0].done()
    assert (scene.sent(), session.unsettled) == ([(0, [1])], 1)


def test_an_interrupted_put_leaves_its_calls_where_they_were(scene, monkeypatch):
    """Ctrl-C in the thread that submits: a later submit sends them, in order."""
    session = scene.open()
    scene.queue(session, 2)

    def interrupt(_message):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(scene.work, "put_nowait", interrupt)
        scene.dispatch()
    assert [task.number for task in session.backlog] == [0, 1]
    assert (session.unsettled, session.under_way) == (0, set())
    scene.dispatch()
    assert scene.sent() == [(0, [0]), (0, [1])]


def test_without_room_a_message_is_put_in_the_background(scene):
    """Nothing else is sent until it is put: then its number is known, which is told without the lock."""
    session = scene.open()
    scene.work.room = 0
    scene.queue(session, 2)
    scene.dispatch()
    assert scene.sent() == [(0, [0])]
    assert (scene.state.streaming, session.sent[0].batch.number, scene.streamed) == (True, None, 0)
    scene.work.room = 10
    scene.work.end_stream()
    assert (scene.state.streaming, session.sent[0].batch.number, scene.streamed) == (False, 0, 1)
    assert scene.sent() == [(0, [1])]


def test_calls_that_cannot_be_put_in_the_background_fail_alone(scene):
    """Those behind them are sent."""
    session = scene.open()
    scene.work.room = 0
    futures = scene.queue(session, 2)
    scene.dispatch()
    scene.work.room = 10
    scene.work.end_stream(OSError("planned"))
    assert str(futures[0].exception(0)) == "planned"
    assert list(session.sent) == [1]


def test_a_session_that_ends_meanwhile_is_passed_over(scene):
    """A finalizer may close one between any two lines."""
    scene.queue(scene.open(), 1)
    other = scene.open()
    scene.queue(other, 1)
    sessions = scene.state.sessions
    scene.state.sessions = SimpleNamespace(values=lambda: [sessions[0]])
    scene.dispatch()
    assert scene.sent() == [(0, [0])]
    assert other.backlog

"""Real workers at a real scheduler, over a channel made of a deque: what they say and keep, in which order, and what waits."""

import threading

import pytest
from fakes import LIMIT, FakeWorker, fake_crew, in_a_thread, new_page, real_worker, until

from mpiexecutor._calls.messages import Calls, Results, load_outcomes
from mpiexecutor._calls.outcomes import Location, pickled
from mpiexecutor._calls.worker import Worker
from mpiexecutor._liveness.status_page import INITIALIZER, LARGE
from mpiexecutor.channel import ChannelMemoryError


@pytest.fixture
def crew():
    with fake_crew(workers=2) as crew:
        yield crew


@pytest.fixture
def page():
    return new_page()


LOG = []  # what calls have noted: they run in this process
PAGES = {}  # that they look at
GATES = {}  # where they wait


@pytest.fixture(autouse=True)
def log():
    LOG.clear()
    return LOG


def note(what):
    LOG.append(what)
    return what


def look_at(page_of):
    """Note what the page says of the call that is running."""
    page = PAGES[page_of]
    LOG.append((page.begun, page.running_since is not None))


# -- the page


def test_the_status_page_says_what_is_run(crew, page):
    """Before anything of a call is unpickled; the number stays when the call is over, until the next message has come."""
    PAGES["here"] = page
    crew.submit_call(look_at, "here")
    crew.submit_call(note, "second")
    worker = real_worker(crew, messages=1, page=page)
    worker.serve()
    ((begun, running),) = LOG
    assert begun >= 0
    assert running
    assert (page.begun, page.running_since) == (begun, None)
    real_worker(crew, messages=1, page=page).serve()
    assert LOG[1] == "second"
    assert page.begun > begun


def test_the_status_page_says_that_an_initializer_is_run(crew, page):
    """And of the call behind it that it was not begun meanwhile."""
    PAGES["here"] = page
    session = crew.open(initializer=crew.initializer(look_at, "here"))
    crew.submit_call(look_at, "here", session=session)
    real_worker(crew, messages=1, page=page).serve()
    (first, running), (second, _) = LOG
    assert first == INITIALIZER
    assert running
    assert second >= 0


def test_what_is_sent_is_kept_no_longer(crew, page):
    """The root has it."""
    futures = crew.submit("a", "b", "c")
    real_worker(crew, messages=3, page=page).serve()
    assert [future.result(LIMIT) for future in futures] == ["a", "b", "c"]
    assert list(load_outcomes(page.held)) == []


# -- initializers


def test_an_initializer_is_run_once_by_each_worker_before_its_first_call(crew):
    """Of each executor its own."""
    sessions = [crew.open(initializer=crew.initializer(note, f"initializer {number}")) for number in (1, 2)]
    for _ in range(2):
        for number, session in enumerate(sessions, 1):
            crew.submit_call(note, f"call {number}", session=session)
    real_worker(crew, messages=3).serve()
    assert LOG == ["initializer 1", "call 1", "initializer 2", "call 2", "call 1"]
    LOG.clear()
    real_worker(crew, messages=1, rank=2).serve()
    assert LOG == ["initializer 2", "call 2"]


def fail_with(error):
    raise error


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_initializer_that_fails_is_told_of_and_no_call_is_run(crew, kind):
    """Neither then nor later; others' are."""
    session = crew.open(initializer=crew.initializer(fail_with, kind("planned")))
    futures = [crew.submit_call(note, number, session=session) for number in range(3)]
    other = crew.submit_call(note, "other", session=crew.open())
    real_worker(crew, messages=4).serve()
    assert other.result(LIMIT) == "other"
    assert LOG == ["other"]
    for future in futures:
        assert str(future.exception(LIMIT)) == f"the initializer failed in a worker, {kind.__name__}: planned"


# -- limits


def test_a_limit_is_said_before_the_calls_that_it_is_for(crew):
    """And only when it changes. An initializer has none."""
    page = new_page()

    def limit(seconds):
        page.limit(seconds)
        note(seconds)

    patient, impatient = crew.open(), crew.open(task_timeout=2.5)
    first = crew.open(initializer=crew.initializer(note, "initializer"), task_timeout=2.5)
    for session, name in ((patient, "a"), (impatient, "b"), (impatient, "c"), (first, "d"), (patient, "e")):
        crew.submit_call(note, name, session=session)
    real_worker(crew, messages=5, page=page, enforce_limit=limit).serve()
    assert LOG == ["a", 2.5, "b", "c", 0.0, "initializer", 2.5, "d", 0.0, "e"]


# -- what is too large


def test_a_call_that_is_too_large_for_the_worker_is_thrown_away_and_told_of(crew):
    """It goes on with the next one."""
    futures = crew.submit("large", "b")
    crew.work.sizes[0] = 1 << 30
    real_worker(crew, messages=2).serve()
    error = futures[0].exception(LIMIT)
    assert type(error) is MemoryError
    assert str(error) == f"this call is too large for its worker's memory, {1 << 30} bytes when pickled"
    assert futures[1].result(LIMIT) == "b"


def test_a_call_that_another_worker_has_taken_meanwhile_is_not_told_of(crew):
    """That one may have had memory for it."""
    future = crew.submit_one("large")
    crew.work.sizes[0] = 1 << 30
    other = FakeWorker(crew, 2)
    worker = real_worker(crew, messages=2)

    def take_first(number):
        del crew.work.sizes[number]
        other.take()
        return False

    worker._work.skip = take_first
    serving = in_a_thread(worker.serve)
    until(lambda: not crew.work)
    other.answer()
    assert future.result(LIMIT) == "large"
    crew.work.close()
    serving.result(LIMIT)


def test_with_no_memory_for_a_short_message_the_worker_dies(crew):
    """Nothing can go on in there."""
    crew.submit("a")
    crew.work.sizes[0] = 100
    with pytest.raises(ChannelMemoryError):
        real_worker(crew, messages=1).serve()
    crew.work.sizes.clear()


# -- the root has gone on without it


def test_a_worker_whose_root_listens_no_more_comes_to_its_end(crew):
    """What it has to say is of no interest; that it wants a function neither, and such a call is not run."""
    function = crew.function(note)
    crew.submit("a")
    crew.submit("b", function=function)
    crew.replies.close()
    real_worker(crew, messages=2).serve()
    assert LOG == []
    assert crew.given == []


# -- waiting


class Gate:
    """Where calls of this process wait."""

    def __init__(self):
        self.arrived, self.opened = threading.Event(), threading.Event()

    def wait(self, result):
        self.arrived.set()
        assert self.opened.wait(LIMIT)
        return result


@pytest.fixture
def gate():
    GATES["here"] = gate = Gate()
    yield gate
    gate.opened.set()


def wait_at_gate(result):
    return GATES["here"].wait(result)


def together(crew, *calls):
    """Submit calls that go in one message; return their futures, when the message is there."""
    crew.teach("short", 0.0)
    session = crew.open(1)
    crew.submit("goes before", session=session, kind="short")
    futures = [crew.submit_call(function, argument, session=session, kind="short") for function, argument in calls]
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.answer()
    crew.settle()
    return futures


def test_no_call_waits_for_one_that_is_unexpectedly_long(crew, gate):
    """What was run before it is sent; those behind it are given back, and run by another worker: in order."""
    futures = together(crew, (note, "before"), (wait_at_gate, "long"), (note, "b"), (note, "c"))
    serving = in_a_thread(real_worker(crew, messages=1).serve)
    assert gate.arrived.wait(LIMIT)
    assert futures[0].result(LIMIT) == "before"
    until(lambda: crew.scheduler.sessions()[-1].backlog)
    assert LOG == ["before"]
    assert not futures[1].done()
    gate.opened.set()
    serving.result(LIMIT)
    assert futures[1].result(LIMIT) == "long"
    crew.settle()
    for _ in "bc":
        real_worker(crew, messages=1, rank=2).serve()
        crew.settle()
    assert [future.result(LIMIT) for future in futures] == ["before", "long", "b", "c"]
    assert LOG == ["before", "b", "c"]


def test_a_large_result_does_not_wait_for_others(crew):
    """It goes by itself, after those before it."""
    futures = together(crew, (note, "before"), (bytes, LARGE + 1), (note, "behind"))
    real_worker(crew, messages=1).serve()
    assert [len(future.result(LIMIT)) for future in futures] == [6, LARGE + 1, 6]


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


def test_a_long_outcome_travels_alone(page):
    """After those before it: if the root cannot receive it, this concerns no other call."""
    calls = [(number, None, None, *pickled((bytes, (size,), {}))) for number, size in enumerate([10, LARGE + 1, 20])]
    replies = Channel()
    worker = Worker(Channel(Calls(5, None, 0.0, 1, None, calls)), replies, None, Location.here(1, 2), page, fail=pytest.fail)
    worker._batch.held = 60.0
    worker._flusher.watch = int  # or it might be faster
    worker.serve()
    first, long, last = replies.put_messages
    assert [[number for number, *_ in results.outcomes] for results in (first, long, last)] == [[0], [1], [2]]
    assert page.held == b""

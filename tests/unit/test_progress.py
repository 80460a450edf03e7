"""The thread that makes progress for other nodes: when it is inside MPI, and when it sleeps. See fake_mpi.py."""

import threading

import pytest
from fake_mpi import fake_mpi
from fakes import LIMIT, FakeClock, in_a_thread, until

LONG = 1.0  # seconds after which it is cold again, at the latest


@pytest.fixture
def progress():
    with fake_mpi() as mpi:
        yield mpi.module("_rma.progress")


@pytest.fixture
def clock(progress, monkeypatch):
    """The time goes by as a test has it: hot threads stay so until then."""
    clock = FakeClock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Scene:
    """Progress threads, and how often one went into MPI, and came out of it."""

    def __init__(self, progress, clock):
        self.clock = clock
        self.entered = self.left = 0
        self.progress = progress.ProgressThreads()
        receive = self.progress._own.Recv

        def note(*arguments):
            self.entered += 1
            receive(*arguments)
            self.left += 1

        self.progress._own.Recv = note

    @property
    def is_hot(self):
        return self.entered > self.left

    def pass_time(self):
        """Have time go by until it is cold."""

        def is_cold():
            self.clock.now += LONG
            return not self.is_hot

        until(is_cold)


@pytest.fixture
def scene(progress, clock):
    scene = Scene(progress, clock)
    yield scene
    clock.now += LONG
    in_a_thread(scene.progress.stop).result(LIMIT)


class Requests:
    """Those at one channel."""

    def __init__(self):
        self.come = False
        self.looks = 0

    def __call__(self):
        self.looks += 1
        come, self.come = self.come, False
        return come

    def wait_for_looks(self, more=2):
        """Wait until it was looked for them so often again."""
        before = self.looks
        until(lambda: self.looks >= before + more)


def test_a_window_that_is_served_is_about_to_get_requests(scene):
    """It is hot at once, without a request, and cold again if none comes."""
    assert not scene.entered
    requests = Requests()
    scene.progress.serve(requests)
    until(lambda: scene.is_hot)
    scene.pass_time()
    requests.wait_for_looks()
    assert (scene.entered, scene.left) == (1, 1)


def test_a_request_makes_it_hot_and_it_stays_so_a_while(scene):
    """While it is hot more requests make no difference, but that it stays so longer."""
    requests = Requests()
    scene.progress.serve(requests)
    until(lambda: scene.is_hot)
    scene.pass_time()
    requests.come = True
    until(lambda: scene.entered == 2)
    for _ in range(3):
        requests.come = True
        requests.wait_for_looks()
        scene.clock.now += 0.04  # less than it lingers
        assert scene.is_hot
    assert scene.entered == 2
    scene.pass_time()


def test_it_is_hot_when_it_is_told_so(scene):
    """By a thread of this process that is about to wake another rank."""
    requests = Requests()
    scene.progress.serve(requests)
    until(lambda: scene.is_hot)
    scene.pass_time()
    scene.progress.request()
    until(lambda: scene.entered == 2)


def test_all_requests_are_received(scene):
    """At each channel, though the first would be reason enough."""
    requests = Requests()
    scene.progress.serve(lambda: True)
    scene.progress.serve(requests)
    requests.wait_for_looks()


def test_a_window_that_is_left_is_not_looked_at_any_more(scene):
    """Not from the moment on at which that is known; others are."""
    first, second = Requests(), Requests()
    scene.progress.serve(first)
    scene.progress.serve(second)
    scene.progress.leave(first)
    looks = first.looks
    second.wait_for_looks()
    assert first.looks == looks
    scene.progress.leave(first)  # once more is as good
    scene.progress.leave(second)
    until(lambda: not scene.is_hot)


class Stuck:
    """Requests that are being looked for until the test has an end of that."""

    def __init__(self):
        self.looking, self.over = threading.Event(), threading.Event()

    def __call__(self):
        self.looking.set()
        self.over.wait(LIMIT)
        return False


def test_a_rank_that_leaves_waits_for_a_look(scene):
    """It uses what will be freed."""
    requests = Stuck()
    scene.progress.serve(requests)
    assert requests.looking.wait(LIMIT)
    leaving = in_a_thread(scene.progress.leave, requests)
    assert not leaving.done()
    requests.over.set()
    leaving.result(LIMIT)
    assert scene.progress._hosted == []


def test_a_rank_that_leaves_does_not_wait_for_ever(scene, progress, monkeypatch):
    """A look may be stuck inside MPI, after a death."""
    monkeypatch.setattr(progress, "LOOK", 0.01)
    requests = Stuck()
    scene.progress.serve(requests)
    assert requests.looking.wait(LIMIT)
    in_a_thread(scene.progress.leave, requests).result(LIMIT)
    assert scene.progress._hosted == []
    requests.over.set()


@pytest.mark.parametrize("hot", [True, False])
def test_it_stops_whatever_it_is(scene, hot):
    """Before MPI ends: nothing is inside it then."""
    scene.progress.serve(Requests())
    until(lambda: scene.is_hot)
    if not hot:
        scene.pass_time()
    in_a_thread(scene.progress.stop).result(LIMIT)
    assert not [thread for thread in scene.progress._threads if thread.is_alive()]
    assert scene.entered == scene.left


def test_in_a_forked_child_there_is_nothing_to_stop(scene):
    """The threads are the parent's, and perhaps have its lock."""
    process, scene.progress._process = scene.progress._process, -1
    requests = Requests()
    scene.progress.serve(requests)
    with scene.progress._looking:
        in_a_thread(scene.progress.leave, requests).result(LIMIT)
        in_a_thread(scene.progress.stop).result(LIMIT)
    assert scene.progress._hosted == [requests]
    scene.progress._process = process

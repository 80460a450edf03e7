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
    """An attendant, and how often it went into MPI, and came out of it."""

    def __init__(self, progress, clock):
        self.clock = clock
        self.entered = self.left = 0
        self.attendant = progress.Attendant()
        receive = self.attendant._own.Recv

        def note(*arguments):
            self.entered += 1
            receive(*arguments)
            self.left += 1

        self.attendant._own.Recv = note

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
    in_a_thread(scene.attendant.stop).result(LIMIT)


class Knocks:
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


def test_who_is_attended_to_is_about_to_be_knocked_at(scene):
    """It is hot at once, without a knock, and cold again if none comes."""
    assert not scene.entered
    knocks = Knocks()
    scene.attendant.attend(knocks)
    until(lambda: scene.is_hot)
    scene.pass_time()
    knocks.wait_for_looks()
    assert (scene.entered, scene.left) == (1, 1)


def test_a_knock_makes_it_hot_and_it_stays_so_a_while(scene):
    """While it is hot more knocks make no difference, but that it stays so longer."""
    knocks = Knocks()
    scene.attendant.attend(knocks)
    until(lambda: scene.is_hot)
    scene.pass_time()
    knocks.come = True
    until(lambda: scene.entered == 2)
    for _ in range(3):
        knocks.come = True
        knocks.wait_for_looks()
        scene.clock.now += 0.04  # less than it lingers
        assert scene.is_hot
    assert scene.entered == 2
    scene.pass_time()


def test_it_is_hot_when_it_is_told_so(scene):
    """By a thread of this process that is about to wake another rank."""
    knocks = Knocks()
    scene.attendant.attend(knocks)
    until(lambda: scene.is_hot)
    scene.pass_time()
    scene.attendant.poke()
    until(lambda: scene.entered == 2)


def test_all_knocks_are_received(scene):
    """At each channel, though the first would be reason enough."""
    knocks = Knocks()
    scene.attendant.attend(lambda: True)
    scene.attendant.attend(knocks)
    knocks.wait_for_looks()


def test_who_is_left_is_not_looked_at_any_more(scene):
    """Not from the moment on at which that is known; others are."""
    first, second = Knocks(), Knocks()
    scene.attendant.attend(first)
    scene.attendant.attend(second)
    scene.attendant.leave(first)
    looks = first.looks
    second.wait_for_looks()
    assert first.looks == looks
    scene.attendant.leave(first)  # once more is as good
    scene.attendant.leave(second)
    until(lambda: not scene.is_hot)


class Stuck:
    """Knocks that are being looked for until the test has an end of that."""

    def __init__(self):
        self.looking, self.over = threading.Event(), threading.Event()

    def __call__(self):
        self.looking.set()
        self.over.wait(LIMIT)
        return False


def test_who_leaves_waits_for_a_look(scene):
    """It uses what will be freed."""
    knocks = Stuck()
    scene.attendant.attend(knocks)
    assert knocks.looking.wait(LIMIT)
    leaving = in_a_thread(scene.attendant.leave, knocks)
    assert not leaving.done()
    knocks.over.set()
    leaving.result(LIMIT)
    assert scene.attendant._hosted == []


def test_who_leaves_does_not_wait_for_ever(scene, progress, monkeypatch):
    """A look may be stuck inside MPI, after a death."""
    monkeypatch.setattr(progress, "_PATIENCE", 0.01)
    knocks = Stuck()
    scene.attendant.attend(knocks)
    assert knocks.looking.wait(LIMIT)
    in_a_thread(scene.attendant.leave, knocks).result(LIMIT)
    assert scene.attendant._hosted == []
    knocks.over.set()


@pytest.mark.parametrize("hot", [True, False])
def test_it_stops_whatever_it_is(scene, hot):
    """Before MPI ends: nothing is inside it then."""
    scene.attendant.attend(Knocks())
    until(lambda: scene.is_hot)
    if not hot:
        scene.pass_time()
    in_a_thread(scene.attendant.stop).result(LIMIT)
    assert not [thread for thread in scene.attendant._threads if thread.is_alive()]
    assert scene.entered == scene.left


def test_in_a_forked_child_there_is_nothing_to_stop(scene):
    """The threads are the parent's, and perhaps have its lock."""
    process, scene.attendant._process = scene.attendant._process, -1
    knocks = Knocks()
    scene.attendant.attend(knocks)
    with scene.attendant._looking:
        in_a_thread(scene.attendant.leave, knocks).result(LIMIT)
        in_a_thread(scene.attendant.stop).result(LIMIT)
    assert scene.attendant._hosted == [knocks]
    scene.attendant._process = process

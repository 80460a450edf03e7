"""A thread that looks now and then: it rests, and is woken. What it sees is given here step by step."""

import threading

import pytest

from mpiexecutor._util.inbox import Inbox
from mpiexecutor._util.periodic import PeriodicCheck

LIMIT = 20  # seconds that a look may be waited for


class Scene:
    """What there is to see."""

    def __init__(self):
        self.looks: Inbox[None] = Inbox()
        self.answers: Inbox[bool] = Inbox()

    def look(self):
        self.looks.put(None)
        return self.answers.get(timeout=LIMIT)

    def show(self, *answers):
        """Have the thread look once for each of these."""
        for answer in answers:
            self.looks.get(timeout=LIMIT)
            self.answers.put(answer)


@pytest.fixture
def scene():
    return Scene()


@pytest.fixture
def check(scene):
    check = PeriodicCheck("check", scene.look, every=1e-3, times=2)
    yield check
    check.stop()


def rests(check):
    """Whether the thread has gone to rest, or is at its last look."""
    return not check._wanted.is_set()


def test_it_rests_after_some_looks_in_vain_and_one_more(scene, check):
    """Those before something was seen do not count. There is no look before one is wanted."""
    assert rests(check)
    assert not scene.looks._items
    check.watch()
    scene.show(False, True, False, False)
    scene.looks.get(timeout=LIMIT)
    assert rests(check)
    scene.answers.put(False)


def test_what_comes_just_when_it_goes_to_rest_is_seen(scene, check):
    """A thread that wanted a look then may have found it awake."""
    check.watch()
    scene.show(False, False, True, True, False, False, False)
    check.watch()
    scene.show(False, False, False)


def test_it_stops_while_it_rests_and_while_it_looks(scene):
    """And its thread with it."""
    PeriodicCheck("check", scene.look, every=1e-3, times=1).stop()
    check = PeriodicCheck("check", scene.look, every=1e-3, times=1)
    check.watch()
    scene.looks.get(timeout=LIMIT)
    stopping = threading.Thread(target=check.stop)
    stopping.start()
    scene.answers.put(True)
    stopping.join(LIMIT)
    assert not check._thread.is_alive()


def test_a_look_that_fails_is_not_the_last(scene, caplog):
    """It counts as one in vain."""
    check = PeriodicCheck("check", lambda: 1 // scene.look(), every=1e-3, times=3)
    check.watch()
    scene.show(False, True, False, False, False, False)
    assert "a look has failed" in caplog.text
    check.stop()

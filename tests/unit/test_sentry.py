"""A thread that looks now and then: it rests, and is woken. What it sees is given here step by step."""

import threading

import pytest

from mpiexecutor._util.inbox import Inbox
from mpiexecutor._util.periodic import Sentry

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
        """Have the sentry look once for each of these."""
        for answer in answers:
            self.looks.get(timeout=LIMIT)
            self.answers.put(answer)


@pytest.fixture
def scene():
    return Scene()


@pytest.fixture
def sentry(scene):
    sentry = Sentry("sentry", scene.look, every=1e-3, times=2)
    yield sentry
    sentry.stop()


def rests(sentry):
    """Whether the sentry has gone to rest, or is at its last look."""
    return not sentry._wanted.is_set()


def test_it_rests_after_some_looks_in_vain_and_one_more(scene, sentry):
    """Those before something was seen do not count. Nobody looks before that is wanted."""
    assert rests(sentry)
    assert not scene.looks._items
    sentry.watch()
    scene.show(False, True, False, False)
    scene.looks.get(timeout=LIMIT)
    assert rests(sentry)
    scene.answers.put(False)


def test_what_comes_just_when_it_goes_to_rest_is_seen(scene, sentry):
    """Whoever wanted a look then may have found it awake."""
    sentry.watch()
    scene.show(False, False, True, True, False, False, False)
    sentry.watch()
    scene.show(False, False, False)


def test_it_stops_while_it_rests_and_while_it_looks(scene):
    """And its thread with it."""
    Sentry("sentry", scene.look, every=1e-3, times=1).stop()
    sentry = Sentry("sentry", scene.look, every=1e-3, times=1)
    sentry.watch()
    scene.looks.get(timeout=LIMIT)
    stopping = threading.Thread(target=sentry.stop)
    stopping.start()
    scene.answers.put(True)
    stopping.join(LIMIT)
    assert not sentry._thread.is_alive()


def test_a_look_that_fails_is_not_the_last(scene, caplog):
    """It counts as one in vain."""
    sentry = Sentry("sentry", lambda: 1 // scene.look(), every=1e-3, times=3)
    sentry.watch()
    scene.show(False, True, False, False, False, False)
    assert "a look has failed" in caplog.text
    sentry.stop()

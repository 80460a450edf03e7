"""A thread that looks now and then: it rests, and is woken. What it sees is given here step by step."""

from queue import SimpleQueue

import pytest

from mpiexecutor._sentry import Sentry

LIMIT = 20  # seconds that a look may be waited for


class Scene:
    """What there is to see."""

    def __init__(self):
        self.looks: SimpleQueue[None] = SimpleQueue()
        self.answers: SimpleQueue[bool] = SimpleQueue()

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
    """Whether the sentry has gone to rest, or does so soon."""
    return not sentry._wanted.is_set()


def test_it_rests_after_some_looks_in_vain_and_one_more(scene, sentry):
    """Those before something was seen do not count. Nobody looks before that is wanted."""
    assert rests(sentry)
    assert scene.looks.empty()
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
    scene.show(True)
    for _ in range(3):
        scene.answers.put(False)
    sentry.stop()
    assert not sentry._thread.is_alive()

"""A step that may hang runs in a thread that is left then."""

import threading

import pytest

from mpiexecutor._util.watched import run_watched


def never():
    raise AssertionError("a step that is done needs no check")


def test_what_the_step_returns_is_returned():
    """At once, without a check."""
    assert run_watched(lambda: 7, never, every=60) == 7


def test_what_the_step_raises_is_raised():
    """With its traceback."""
    with pytest.raises(ZeroDivisionError) as raised:
        run_watched(lambda: 1 // 0, never, every=60)
    assert "<lambda>" in {entry.name for entry in raised.traceback}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_step_that_hangs_is_left(error):
    """The error of the check is raised; also Ctrl-C, which comes to the thread that checks."""
    release = threading.Event()

    def check():
        raise error

    with pytest.raises(error):
        run_watched(release.wait, check, every=0.001)
    release.set()


def test_where_no_thread_can_be_started_the_step_runs_without_checks(monkeypatch):
    """As in a process that is ending."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert run_watched(threading.get_ident, never, every=60) == threading.get_ident()

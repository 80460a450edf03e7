"""What a process does when it ends: in which order, and that a forked child does none of it."""

import atexit
import os
import warnings

import pytest

from mpiexecutor._util.process_end import ProcessEnd, Stage


@pytest.fixture
def end():
    end = ProcessEnd()
    yield end
    end.forget()
    atexit.unregister(end.run_last)


def test_the_last_steps_have_an_order_of_their_own(end):
    """Not that in which they were added; of one stage the last that was added comes first."""
    steps = []
    for stage, name in ((Stage.MPI, "mpi"), (Stage.PARTING, "first"), (Stage.PROGRESS, "progress"), (Stage.PARTING, "second")):
        end.add(lambda name=name: steps.append(name), stage)
    end.run_last()
    assert steps == ["second", "first", "progress", "mpi"]
    end.run_last()
    assert len(steps) == 4


def test_a_step_that_fails_does_not_keep_others_from_being_taken(end):
    """Its error is the handler's."""
    steps = []
    end.add(lambda: steps.append("mpi"), Stage.MPI)
    end.add(lambda: 1 // 0, Stage.PARTING)
    with pytest.raises(ZeroDivisionError):
        end.run_last()
    assert steps == ["mpi"]


def test_a_step_may_add_another(end):
    """It is taken in its turn."""
    steps = []
    end.add(lambda: steps.append("mpi"), Stage.MPI)
    end.add(lambda: end.add(lambda: steps.append("progress"), Stage.PROGRESS), Stage.PARTING)
    end.run_last()
    assert steps == ["progress", "mpi"]


def test_what_is_removed_is_not_called(end, monkeypatch):
    """It is known by being equal, as methods are."""
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(atexit, "unregister", registered.remove)
    steps = []
    end.add(steps.clear)
    end.remove(steps.clear)
    assert registered == []
    monkeypatch.undo()


def test_a_forked_child_has_nothing_to_end(end):
    """It disowns what lives; the parent ends as ever."""

    class Owner:
        disowned = False

        def disown(self):
            self.disowned = True

    steps = []
    end.add(lambda: steps.append("mpi"), Stage.MPI)
    lives, dead = Owner(), Owner()
    end.disown_in_child(dead.disown)
    end.disown_in_child(lives.disown)
    del dead
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads
        child = os.fork()
    if not child:
        end.forget()
        end.run_last()
        os._exit(0 if lives.disowned and not steps else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    end.run_last()
    assert steps == ["mpi"]
    assert not lives.disowned

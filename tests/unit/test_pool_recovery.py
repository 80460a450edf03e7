"""What is done about a failure, in order: both channels are recovered, then the scheduler is told. Channels are scripts."""

import logging
import secrets
import threading

import pytest
from fakes import LIMIT

from mpiexecutor._liveness import recovery
from mpiexecutor._liveness.monitor import FailureMonitor, WorkerFailure
from mpiexecutor._liveness.recovery import PoolRecovery
from mpiexecutor._rma.recovery_thread import Watchdog
from mpiexecutor._util.inbox import Inbox
from mpiexecutor.channel import ChannelBroken, ChannelClosed, Share


def failure_of(rank):
    return WorkerFailure(rank, "host", 1000 + rank, "was killed by SIGKILL", None)


def share_of(rank, message):
    return Share(rank, range(message, message + 1), received=True)


class ScriptedChannel:
    """Recovers as a test says: by giving shares, raising something, or calling something."""

    def __init__(self, name, log):
        self._name = name
        self._log = log
        self.script = []

    def recover(self, failed, *, renumber=None, silent=()):
        self._log.append((self._name, set(failed), set(silent)))
        step = self.script.pop(0) if self.script else []
        if isinstance(step, Exception):
            raise step
        if callable(step):
            step = step()
        if renumber is not None:
            renumber([3, 5], 7)
        return step


class FakeMonitor:
    """Has the failures that a test gives it."""

    def __init__(self, log):
        self.failures = Inbox()
        self.failed, self.silent = set(), set()
        self.expected = set()
        self.supervised = {1, 2, 3}  # those who have supervisors
        self.watchdog = Watchdog()
        self._log = log

    def lose(self, *ranks, silent=False):
        for rank in ranks:
            self.failed.add(rank)
            if silent:
                self.silent.add(rank)
        for rank in ranks:
            self.failures.put(failure_of(rank))

    def kill(self, rank):
        self._log.append(("killed", rank))
        return rank in self.supervised - self.failed

    def is_expected(self, rank):
        return rank in self.expected


class Scene:
    """A recovery thread, and all that it says and does, in order."""

    def __init__(self, monitor=None):
        self.log = []
        self.monitor = FakeMonitor(self.log) if monitor is None else monitor
        self.work, self.replies = (ScriptedChannel(name, self.log) for name in ("work", "replies"))
        self.given_up = threading.Event()
        self._recovery = PoolRecovery(
            self.monitor,
            (self.work, self.replies),
            renumber=lambda kept, first: self.log.append(("renumbered", kept, first)),
            lose=lambda failure, share: self.log.append(("lost", failure.rank, share)),
            give_up=self._give_up,
            note=lambda: self.log.append("noted"),
        )

    def _give_up(self, reason):
        self.log.append(("given up", reason))
        self.given_up.set()

    def end(self):
        """Have it do all that there is to do, and end; return what it has done."""
        self.monitor.failures.put(None)
        self._recovery.thread.join(LIMIT)
        assert not self._recovery.thread.is_alive()
        return self.log


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.end()


def test_both_channels_are_recovered_before_the_scheduler_is_told(scene):
    """First the failure is noted. The scheduler learns the last claims of work, and which numbers its messages have."""
    scene.work.script = [[share_of(2, 17)]]
    scene.replies.script = [[share_of(2, 99)]]
    scene.monitor.lose(2)
    assert scene.end() == [
        "noted",
        ("work", {2}, set()),
        ("renumbered", [3, 5], 7),
        ("replies", {2}, set()),
        ("lost", 2, share_of(2, 17)),
    ]
    assert scene.monitor.watchdog.left() is None


def test_one_that_had_claimed_nothing_is_buried_too(scene):
    """With no share."""
    scene.monitor.lose(2)
    assert scene.end()[-1] == ("lost", 2, None)


def test_more_may_die_meanwhile(scene):
    """Both are recovered from at once; the claim of each is reported with its own death, as it was known first."""
    scene.work.script = [[share_of(1, 4), share_of(2, 5)], []]
    scene.monitor.lose(1, 2)
    log = scene.end()
    assert log[1] == ("work", {1, 2}, set())
    assert [each for each in log if each[0] == "lost"] == [("lost", 1, share_of(1, 4)), ("lost", 2, share_of(2, 5))]


def test_the_channels_are_told_which_ranks_perhaps_live(scene):
    """One that is silent counts as dead only if it is not in the middle of a message."""
    scene.monitor.lose(2, silent=True)
    log = scene.end()
    assert log[1] == ("work", {2}, {2})
    assert log[3] == ("replies", {2}, {2})


@pytest.mark.parametrize("which", ["work", "replies"])
def test_a_living_worker_that_keeps_a_channel_from_being_recovered_is_killed(scene, which):
    """It was stopped in the middle of a message: no rank can do anything meanwhile. Then it is tried again."""
    getattr(scene, which).script = [ChannelBroken("ranks [1, 3] live", [1, 3])]
    scene.monitor.lose(2)
    log = scene.end()
    broken = [each[0] for each in log].index(which)
    assert log[broken + 1 : broken + 4] == [("killed", 1), ("killed", 3), (which, {2}, set())]
    assert log[-1] == ("lost", 2, None)


def test_what_it_had_claimed_is_kept_while_that_is_tried_again(scene):
    """The second time the channel does not return it any more."""
    scene.work.script = [[share_of(2, 17)], []]
    scene.replies.script = [ChannelBroken("ranks [1] live", [1])]
    scene.monitor.lose(2)
    assert scene.end()[-1] == ("lost", 2, share_of(2, 17))


def test_if_no_worker_can_be_killed_everything_is_given_up(scene):
    """They have no supervisors, or are dead, as far as is known: the channel is of no use."""
    scene.work.script = [ChannelBroken("ranks [7] live", [7])]
    scene.monitor.lose(2)
    log = scene.end()
    reason = f"{failure_of(2)}, and the channels cannot be recovered: ranks [7] live"
    assert log[-1] == ("given up", reason)
    assert scene.monitor.watchdog.left() is None


def test_a_fault_of_ours_is_given_up_for_too(scene, caplog):
    """It is logged; later deaths are looked at as ever."""
    scene.replies.script = [ZeroDivisionError("a fault of ours")]
    scene.monitor.lose(1)
    scene.monitor.lose(2)
    log = scene.end()
    assert [each for each in log if each[0] in {"given up", "lost"}] == [
        ("given up", f"{failure_of(1)}, and the channels cannot be recovered: a fault of ours"),
        ("lost", 2, None),
    ]
    assert "the channels of a pool were not recovered after a failure" in caplog.text


def test_after_the_end_there_is_nothing_to_recover(scene):
    """The channels are freed: no calls are looked for, and nothing is given up."""
    scene.work.script = [ChannelClosed("the channel was freed")]
    scene.monitor.lose(2)
    assert scene.end() == ["noted", ("work", {2}, set())]


def test_an_unexpected_death_is_a_warning_and_another_is_none(scene, caplog):
    """That this process wanted it is no reason to worry."""
    scene.monitor.expected.add(2)
    with caplog.at_level(logging.INFO, "mpiexecutor"):
        scene.monitor.lose(1, 2)
        scene.end()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", str(failure_of(1))),
        ("INFO", str(failure_of(2))),
    ]


@pytest.mark.parametrize("which", ["work", "replies"])
def test_if_this_process_is_stuck_inside_mpi_everything_is_given_up(which, monkeypatch):
    """A rank has died in there, and holds a lock. Waiting calls fail, though this thread does not return."""
    monitor = FailureMonitor(secrets.token_hex(8), "token")
    scene = Scene(monitor)

    def wait_for(seconds):
        monkeypatch.setattr(recovery, "WEDGED", seconds)

    def be_stuck():
        assert scene.given_up.wait(LIMIT)
        wait_for(1e6)  # before anything else
        return []

    wait_for(0.01 if which == "work" else 1e6)
    scene.work.script = [be_stuck if which == "work" else lambda: wait_for(0.01) or []]
    scene.replies.script = [be_stuck] if which == "replies" else []
    monitor.lose(failure_of(2))
    reason = f"{failure_of(2)}, inside MPI, where it holds a lock that no rank can take any more"
    assert [each for each in scene.end() if each[0] == "given up"] == [("given up", reason)]
    monitor.stop()

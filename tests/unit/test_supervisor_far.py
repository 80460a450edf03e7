"""A supervisor on another node than the root turns from one monitor to the next, until none is left. The test is the monitors.

The supervisor is a thread of this process, its rank a process that sleeps. All else of supervisors: see test_supervisor.py.
"""

import json
import os
import secrets
import signal
import socket
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from fakes import LIMIT, in_a_thread

from mpiexecutor._liveness import supervised, supervisor
from mpiexecutor._liveness.commands import BYE, KILL, LEAVE, NEWS, TERMINATE, Service
from mpiexecutor._liveness.status_page import NOTHING, StatusPage

pytestmark = pytest.mark.skipif(not supervised.possible(), reason="supervisors need Linux 5.3")


class FailureMonitor:
    """One that listens for the supervisor."""

    def __init__(self, stack):
        self.address = "\0" + secrets.token_hex(8)
        self.listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.listener.settimeout(LIMIT)
        self.listener.bind(self.address)
        self.listener.listen()
        self._stack = stack

    def accept(self):
        """Return what a supervisor that comes says of itself; it still waits for a welcome."""
        self.supervisor = self._stack.enter_context(self.listener.accept()[0])
        self.supervisor.settimeout(LIMIT)
        data, descriptors, _, _ = socket.recv_fds(self.supervisor, 1000, 1)
        os.close(*descriptors)
        return json.loads(data)

    def welcome(self):
        hello = self.accept()
        self.supervisor.send(b"!")
        return hello

    def hears(self):
        """Return what the supervisor tells next; nothing if it has gone."""
        return self.supervisor.recv(1000)

    def hears_of_death(self):
        return json.loads(self.hears())

    def go(self):
        self.listener.close()
        if hasattr(self, "supervisor"):
            self.supervisor.close()


class Scene:
    """A supervisor and its rank, and monitors."""

    def __init__(self, stack):
        self.monitors = [FailureMonitor(stack) for _ in range(3)]
        self.rank = os.posix_spawnp("sleep", ["sleep", str(10 * LIMIT)], os.environ)  # nobody else is to wait for it
        self.page, descriptor = StatusPage.new()
        mine, self.line = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.line.settimeout(LIMIT)
        self.supervisor = supervisor.Supervisor(self.rank, mine, self.page, descriptor, b"", {})
        self.running = in_a_thread(self.supervisor.run)
        stack.callback(os.close, descriptor)
        stack.callback(os.close, self.supervisor._end)
        stack.callback(self.end)

    def serve(self, *, far=True, files=()):
        """Have the rank serve: its supervisor meets a monitor."""
        addresses = [monitor.address for monitor in self.monitors]
        self.line.send(json.dumps(asdict(Service(addresses, "token", 7, far, None, list(files)))).encode())

    def kill(self, number=signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(self.rank, number)

    @property
    def is_there(self):
        """Whether the rank is: a dead one is until its supervisor has seen that."""
        return Path(f"/proc/{self.rank}").exists()

    def end(self):
        """Have all go, and the supervisor with them."""
        for monitor in self.monitors:
            monitor.go()
        self.kill()
        self.running.result(LIMIT)


@pytest.fixture
def scene():
    with ExitStack() as stack:
        yield Scene(stack)


KILLED = {"end": "was killed by SIGKILL", "begun": NOTHING, "overdue": 0.0}


def test_it_comes_to_the_first_watch_and_tells_its_rank_so(scene):
    """Only then does the rank begin: it is not to die unseen."""
    scene.serve()
    hello = scene.monitors[0].welcome()
    assert hello == {"token": "token", "rank": 7, "pid": scene.rank, "host": socket.gethostname()}
    assert scene.line.recv(1) == b"!"


def test_it_turns_to_the_next_if_one_has_gone(scene):
    """With its worker, which has died: the rank goes on, and its death is reported there."""
    scene.serve()
    scene.monitors[0].welcome()
    scene.monitors[0].go()
    scene.monitors[1].welcome()
    scene.kill()
    assert scene.monitors[1].hears_of_death() == KILLED


def test_a_monitor_that_is_gone_already_is_passed_over(scene):
    """Its worker has died before this one began to serve."""
    scene.monitors[0].go()
    scene.serve()
    scene.monitors[1].welcome()
    assert scene.line.recv(1) == b"!"


class NoTimeAtFirst:
    """Seconds: none when they are asked for first, and then enough."""

    def __init__(self):
        self._left = [LIMIT, 0]

    def __index__(self):
        return self._left.pop()


def test_a_monitor_that_does_not_welcome_it_is_passed_over(scene, monkeypatch):
    """Its worker is stopped, say."""
    monkeypatch.setattr(supervisor, "WELCOME", NoTimeAtFirst())
    scene.serve()
    scene.monitors[0].accept()
    scene.monitors[1].welcome()
    assert scene.line.recv(1) == b"!"


def test_a_death_is_told_once_more_if_the_first_monitor_has_gone(scene):
    """It may have passed nothing on."""
    scene.serve()
    scene.monitors[0].welcome()
    scene.kill()
    assert scene.monitors[0].hears_of_death() == KILLED
    scene.monitors[0].go()
    scene.monitors[1].welcome()
    assert scene.monitors[1].hears_of_death() == KILLED


def test_the_supervisor_of_a_failed_rank_leaves_if_no_monitor_is_left(scene, tmp_path):
    """For the process manager all is well; what MPI would have removed is removed."""
    file = tmp_path / "file"
    file.touch()
    scene.serve(files=[str(file)])
    scene.monitors[0].welcome()
    scene.kill()
    scene.monitors[0].hears_of_death()
    for monitor in scene.monitors:
        monitor.go()
    assert scene.running.result(LIMIT) == 0
    assert not file.exists()


def test_a_rank_goes_on_without_a_monitor(scene):
    """If it dies then only the process manager is told, that all is well."""
    scene.serve()
    scene.monitors[0].welcome()
    assert scene.line.recv(1) == b"!"
    for monitor in scene.monitors[::-1]:
        monitor.go()
    assert scene.is_there
    scene.kill()
    assert scene.running.result(LIMIT) == 0


def test_a_supervisor_that_is_to_leave_ends_its_rank(scene, tmp_path):
    """Whether it lives or not. It says that this is no failure."""
    file = tmp_path / "file"
    file.touch()
    scene.serve(files=[str(file)])
    scene.monitors[0].welcome()
    scene.monitors[0].supervisor.send(LEAVE)
    assert scene.monitors[0].hears() == BYE
    assert scene.running.result(LIMIT) == 0
    assert not scene.is_there
    assert not file.exists()


@pytest.mark.parametrize("wish", [KILL, TERMINATE])
def test_a_wish_that_comes_too_late_is_no_error(scene, wish):
    """The rank is dead already."""
    scene.serve()
    scene.monitors[0].welcome()
    scene.kill()
    assert scene.monitors[0].hears_of_death() == KILLED
    scene.monitors[0].supervisor.send(wish)
    scene.monitors[0].supervisor.send(LEAVE)
    assert scene.monitors[0].hears() == BYE
    assert scene.running.result(LIMIT) == 0


def test_news_are_passed_on_to_the_rank(scene):
    """As they are."""
    scene.serve()
    scene.monitors[0].welcome()
    assert scene.line.recv(1) == b"!"
    scene.monitors[0].supervisor.send(NEWS + b"[1, 2]")
    assert scene.line.recv(100) == NEWS + b"[1, 2]"


def test_one_whose_rank_serves_no_more_takes_its_leave_of_the_watch(scene):
    """And ends as its rank does, as before."""
    scene.serve()
    scene.monitors[0].welcome()
    scene.line.send(json.dumps(None).encode())
    assert scene.monitors[0].hears() == BYE
    scene.kill(signal.SIGTERM)
    assert os.WTERMSIG(scene.running.result(LIMIT)) == signal.SIGTERM


def test_on_the_roots_node_the_end_of_the_watch_is_the_end(scene, tmp_path):
    """The job is being ended: the rank goes with it, and no other monitor is asked."""
    file = tmp_path / "file"
    file.touch()
    scene.serve(far=False, files=[str(file)])
    scene.monitors[0].welcome()
    scene.monitors[0].go()
    assert os.waitstatus_to_exitcode(scene.running.result(LIMIT)) == 1
    assert not file.exists()
    assert not scene.is_there


def test_when_the_root_has_gone_its_files_are_removed_first(scene, monkeypatch):
    """Before the rank is ended, which takes longer: the process manager may kill the supervisor at any moment."""
    seen = []
    monkeypatch.setattr(supervisor.process_manager, "remove", lambda files: seen.append((files, scene.is_there)))
    scene.serve(far=False, files=["file"])
    scene.monitors[0].welcome()
    scene.monitors[0].go()
    scene.running.result(LIMIT)
    assert seen == [(["file"], True)]

"""The root's monitor of supervisors: which connect, what they are sent, what they report. Here the test is the supervisors."""

import contextlib
import json
import os
import secrets
import socket
import threading
import warnings
from pathlib import Path
from queue import Empty

import pytest
from fakes import LIMIT, FakeClock, in_a_thread, until

from mpiexecutor._liveness import monitor as its_module
from mpiexecutor._liveness.commands import BYE, KILL, LEAVE, NEWS, TERMINATE
from mpiexecutor._liveness.monitor import FailureMonitor, WorkerFailure, address_of
from mpiexecutor._liveness.status_page import NOTHING, Signs, StatusPage
from mpiexecutor._util.seconds import PULSE

pytestmark = pytest.mark.skipif(not its_module.possible(), reason="supervisors need Linux 5.3")
TOKEN = "token"


class Supervisor:
    """A process that connects to a monitor, and its first message."""

    def __init__(self, name, rank=1, *, token=TOKEN, hello=None):
        self.page, descriptor = StatusPage.new()
        self.page.pulse()
        self.line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.settimeout(LIMIT)
        self.line.connect(address_of(name))
        if hello is None:
            hello = json.dumps({"token": token, "rank": rank, "pid": 1000 + rank, "host": "host"}).encode()
        if hello:
            socket.send_fds(self.line, [hello], [descriptor])
        os.close(descriptor)

    def hears(self):
        """Return what it is told next; nothing if it is sent away."""
        return self.line.recv(100)

    def tell_end(self, end, begun=NOTHING):
        self.line.send(json.dumps({"end": end, "begun": begun, "overdue": 0.0}).encode())

    def go(self):
        self.line.close()
        self.page = None


@pytest.fixture
def name():
    return secrets.token_hex(8)


@pytest.fixture
def monitor(name):
    monitor = FailureMonitor(name, TOKEN)
    yield monitor
    if monitor._thread.is_alive():
        monitor.stop()


@pytest.fixture
def come(name):
    """Yield a function that has a supervisor come."""
    came = []

    def come(*arguments, **options):
        came.append(Supervisor(name, *arguments, **options))
        return came[-1]

    yield come
    for supervisor in came:
        supervisor.go()


@pytest.fixture
def welcomed(monitor, come):
    """Return a function that has a supervisor come, and be known."""

    def welcomed(rank=1):
        supervisor = come(rank)
        assert supervisor.hears() == b"!"
        until(lambda: rank in monitor._supervisors)  # the last that is noted
        return supervisor

    return welcomed


def next_failure(monitor):
    return monitor.failures.get(timeout=LIMIT)


def no_more_failures(monitor):
    """Have the monitor receive everything, and see that no other worker was lost."""
    look, seen = os.pipe()
    heard = threading.Event()
    monitor.attend(look, heard.set)
    os.write(seen, b"!")
    assert heard.wait(LIMIT)
    os.close(look)
    os.close(seen)
    with pytest.raises(Empty):
        monitor.failures.get(timeout=0)


# -- connections


def test_a_supervisor_that_comes_is_welcomed_and_known(monitor, welcomed):
    """By its rank; a thread that waits for it goes on."""
    waiting = in_a_thread(monitor.await_supervisors, [1, 2])
    welcomed(1)
    assert not waiting.done()
    welcomed(2)
    waiting.result(LIMIT)
    assert monitor.known == {1, 2}


def test_supervisors_that_never_come_are_not_waited_for_for_ever(monitor, come, monkeypatch):
    """Nothing is known of their workers, and no command can be sent to them."""
    monkeypatch.setattr(its_module, "COMING", 0.0)
    monitor.await_supervisors([1])
    assert monitor.state_of(1) == ("unknown", None)
    assert not monitor.kill(1)
    assert not monitor.is_stopped(1)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    "stranger",
    [
        {"token": "wrong"},
        {"token": None},
        {"hello": b"nonsense"},
        {"hello": b"[]"},
        {"hello": b'{"rank": 1}'},
    ],
    ids=str,
)
def test_a_stranger_is_sent_away(monitor, welcomed, come, stranger):
    """And those that connect after it are admitted."""
    files = open_files()
    supervisor = come(7, **stranger)
    assert supervisor.hears() == b""
    supervisor.go()
    until(lambda: open_files() <= files)  # what it has sent is closed, too
    welcomed(1)
    assert monitor.known == {1}


def test_one_that_says_nothing_is_sent_away_after_a_while(monitor, welcomed, come, monkeypatch):
    """Others do not wait for it for ever; nor for one that has gone again."""
    monkeypatch.setattr(its_module, "HELLO", 0.01)
    assert come(7, hello=b"").hears() == b""
    monkeypatch.setattr(its_module, "HELLO", LIMIT)
    come(7, hello=b"").go()
    welcomed(1)


# -- what they tell


def test_a_death_is_told_with_all_that_is_known_of_it(monitor, welcomed):
    """Rank, host, how it ended, which call it had begun, and what it held."""
    supervisor = welcomed()
    supervisor.page.hold(b"outcome")
    supervisor.tell_end("was killed by SIGSEGV", 42)
    failure = next_failure(monitor)
    assert failure == WorkerFailure(1, "host", 1001, "was killed by SIGSEGV", 42, 0.0, held=supervisor.page.held)
    assert failure.held
    assert str(failure) == "the worker on rank 1, host host, pid 1001, was killed by SIGSEGV"
    assert monitor.failed == {1}
    assert monitor.state_of(1) == ("lost", None)


def test_a_death_is_told_once(monitor, welcomed):
    """Its supervisor goes later."""
    supervisor = welcomed()
    supervisor.tell_end("was killed by SIGKILL")
    assert next_failure(monitor).end == "was killed by SIGKILL"
    supervisor.go()
    until(lambda: not monitor._supervisors)
    no_more_failures(monitor)


def test_one_whose_supervisor_is_gone_without_a_word_is_lost(monitor, welcomed):
    """It goes with its supervisor. What it held is not read: it may still write."""
    supervisor = welcomed()
    supervisor.page.hold(b"outcome")
    supervisor.go()
    failure = next_failure(monitor)
    assert (failure.rank, failure.end, failure.begun, failure.held) == (1, "was lost together with its supervisor", None, b"")
    assert monitor.first_lost == failure  # the reason why the job will end
    assert not monitor.kill(1)


def test_a_supervisor_that_takes_its_leave_has_lost_no_rank(monitor, welcomed):
    """Its rank serves no more."""
    supervisor = welcomed()
    supervisor.line.send(BYE)
    until(lambda: not monitor._supervisors)
    no_more_failures(monitor)
    assert not monitor.failed
    assert not monitor.tell(1, KILL)


def test_a_supervisor_that_takes_its_leave_need_not_have_read_all(monitor, welcomed):
    """It is told again and again of deaths, at its end, too."""
    supervisor = welcomed()
    with held_up(monitor):
        monitor.tell(1, NEWS + b"[]")
        supervisor.line.send(BYE)
        supervisor.go()
    until(lambda: not monitor._supervisors)
    no_more_failures(monitor)


@contextlib.contextmanager
def held_up(monitor):
    """Have the monitor hear nothing meanwhile."""
    began, go_on = threading.Event(), threading.Event()

    def wait():
        began.set()
        go_on.wait(LIMIT)

    reading, writing = os.pipe()
    os.write(writing, b"!")
    monitor.attend(reading, wait)
    assert began.wait(LIMIT)
    try:
        yield
    finally:
        go_on.set()
        os.close(reading)
        os.close(writing)


# -- what they are told


def test_a_worker_is_killed_by_its_supervisor(monitor, welcomed):
    """If there is one, and it is not dead already."""
    supervisor = welcomed()
    assert monitor.kill(1)
    assert supervisor.hears() == KILL
    assert not monitor.kill(2)
    supervisor.tell_end("was killed by SIGKILL")
    next_failure(monitor)
    assert not monitor.kill(1)


@pytest.mark.parametrize("how", [KILL, TERMINATE])
def test_one_that_is_to_end_is_told_so_even_if_its_supervisor_is_still_to_come(monitor, welcomed, how):
    """After it has been welcomed; and its death is no surprise."""
    early = welcomed(1)
    monitor.kill_on_connect(1, how)
    monitor.kill_on_connect(2, how)
    assert early.hears() == how
    late = welcomed(2)
    assert late.hears() == how
    assert monitor.ending == {1, 2}
    assert [monitor.is_expected(rank) for rank in (1, 2, 3)] == [True, True, False]


def test_when_the_job_is_ended_all_deaths_are_foreseen(monitor, welcomed):
    """Of all that have connected."""
    welcomed()
    monitor.expect_failures()
    assert monitor.is_expected(1)


def test_supervisors_are_seen_off_and_waited_for(monitor, welcomed):
    """Each has its rank end, leaves the process manager, and ends. Meanwhile reports of other nodes are received."""
    supervisors = [welcomed(rank) for rank in (1, 2)]
    heard = threading.Event()
    monitor.hear_by(heard.set)
    seeing = in_a_thread(monitor.shut_down_supervisors)
    for supervisor in supervisors:
        assert supervisor.hears() == LEAVE
        assert heard.wait(LIMIT)
        assert not seeing.done()
        supervisor.line.send(BYE)
        supervisor.go()
    seeing.result(LIMIT)
    assert not monitor.failed


def test_only_some_are_shut_down(monitor, welcomed):
    """For example those of failed workers."""
    one, other = welcomed(1), welcomed(2)
    seeing = in_a_thread(monitor.shut_down_supervisors, {1})
    assert one.hears() == LEAVE
    one.line.send(BYE)
    seeing.result(LIMIT)
    assert monitor.kill(2)
    assert other.hears() == KILL


def test_one_that_does_not_go_is_not_waited_for_for_ever(monitor, welcomed, monkeypatch):
    """It has been told."""
    monkeypatch.setattr(its_module, "LEAVING", 0.0)
    supervisor = welcomed()
    monitor.shut_down_supervisors()
    assert supervisor.hears() == LEAVE


def test_the_end_of_a_monitor_lets_its_supervisors_go(monitor, welcomed, name):
    """They find that it is gone; the thread that waits for failures learns that no more will come."""
    supervisor = welcomed()
    monitor.stop()
    assert supervisor.hears() == b""
    assert next_failure(monitor) is None
    assert not monitor._thread.is_alive()
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
        late.connect(address_of(name))


# -- what is known of workers


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(its_module, "time", clock)
    return clock


def test_what_a_worker_does_is_known_from_its_slate(monitor, clock):
    """Idle, or running since some time, as long as it gives signs of life; without, silent since the last."""
    page = StatusPage.new()[0]
    page._times[3] = clock.monotonic()
    monitor.admit(1, FakeLine(), page)
    assert monitor.state_of(1) == ("idle", None)
    clock.now += 2
    page.prepare(7, clock.monotonic())
    assert monitor.state_of(1) == ("running", clock.time())
    page.run(clock.monotonic())
    clock.now += 0.5
    assert monitor.state_of(1) == ("running", clock.time() - 0.5)
    assert not monitor.is_stopped(1)
    clock.now += 3 * PULSE
    assert monitor.state_of(1) == ("silent", clock.time() - 2.5 - 3 * PULSE)
    assert monitor.is_stopped(1)
    page._times[3] = clock.monotonic()
    assert monitor.state_of(1)[0] == "running"
    monitor.lose(WorkerFailure(1, "host", 1001, "was killed", None))
    assert monitor.state_of(1) == ("lost", None)
    clock.now += 100
    assert not monitor.is_stopped(1)


def test_a_worker_on_another_node_is_stopped_only_if_a_forwarder_says_so(monitor, clock):
    """If there was no report about it for long, perhaps its forwarder had no time."""
    monitor.admit(1, FakeLine(), Signs(None, seen=clock.monotonic() - 100, told=clock.monotonic()))
    assert monitor.is_stopped(1)
    clock.now += 3 * PULSE + 0.1
    assert not monitor.is_stopped(1)
    assert monitor.state_of(1)[0] == "silent"


def test_signs_of_life_are_of_those_that_live(monitor, clock):
    """For the forwarder: when its call was begun, when it was seen, and when this is reported."""
    for rank in (1, 2):
        monitor.admit(rank, FakeLine(), Signs(3.0, seen=4.0, told=4.5))
    monitor.lose(WorkerFailure(2, "host", 1002, "was killed", None))
    assert dict(monitor.signs()) == {1: Signs(3.0, 4.0, clock.monotonic())}


def test_one_that_was_given_up_may_live(monitor, caplog):
    """It does not count as failed any more, can be sent commands again, and its return is reported."""
    returned = []
    monitor.returned = returned.append
    monitor.silent.add(1)
    monitor.lose(WorkerFailure(1, "host", 1001, "was not heard of", None, silent=True))
    monitor.forget_supervisor(1)
    assert next_failure(monitor).silent
    line = FakeLine()
    monitor.take_back(1, line)
    assert (monitor.failed, monitor.silent, returned) == (set(), set(), [1])
    assert monitor.kill(1)
    assert line.said == [KILL]
    assert "the worker on rank 1 was heard of again" in caplog.text
    monitor.lose(WorkerFailure(1, "host", 1001, "was killed by SIGKILL", None))
    assert next_failure(monitor).end == "was killed by SIGKILL"


class FakeLine:
    def __init__(self):
        self.said = []
        self.send = self.said.append

    def close(self):
        """Be closed."""


# -- what else it does, as it has a thread that waits


def test_it_keeps_the_time_of_what_may_get_stuck(monitor):
    """Though nothing is sent to it."""
    stuck = threading.Event()
    with monitor.watchdog.limit(0.01, stuck.set):
        assert stuck.wait(LIMIT)


def test_something_else_is_attended_to_once(monitor):
    """When there is something to read: the end of mpiexec, say."""
    look, seen = os.pipe()
    calls = []
    happened = threading.Event()
    monitor.attend(look, lambda: (calls.append(1), happened.set()))
    no_more_failures(monitor)
    assert calls == []
    os.write(seen, b"!")
    assert happened.wait(LIMIT)
    no_more_failures(monitor)
    assert calls == [1]
    os.close(look)
    os.close(seen)


def test_a_monitor_is_quiet_in_a_forked_child(monitor, welcomed):
    """Its connections are its parent's: they are closed without a word."""
    supervisor = welcomed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads
        child = os.fork()
    if not child:
        os._exit(0 if monitor._selector.get_map() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert monitor.kill(1)
    assert supervisor.hears() == KILL

"""How the root parts from its workers in the end, and how --spmd tells all of a death. The ranks are in this process."""

import json
import logging
from types import SimpleNamespace

import pytest
from fake_mpi import fake_mpi
from fakes import LIMIT, FakeClock, in_a_thread, until

from mpiexecutor._cli import spmd
from mpiexecutor._liveness.commands import KILL, NEWS
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._liveness.status_page import StatusPage
from mpiexecutor._pool import membership, registration
from mpiexecutor._pool.membership import Root
from mpiexecutor._pool.registration import Registration
from mpiexecutor._rma.recovery_thread import Watchdog
from mpiexecutor._util.inbox import Inbox

REGISTRATIONS = {rank: Registration("host", 1000 + rank, "node", supervised=True) for rank in (1, 2, 3)}


@pytest.fixture
def comms():
    with fake_mpi() as mpi:
        yield mpi.comms(4)


@pytest.fixture
def clock(monkeypatch):
    """The patience of the root is over from the start, and the time is the test's."""
    clock = FakeClock()
    monkeypatch.setattr(membership, "time", clock)
    monkeypatch.setattr(registration, "PATIENCE", 0.0)
    return clock


class FakeMonitor:
    def __init__(self):
        self.failed, self.ending, self.stopped = set(), set(), set()
        self.expected, self.told = [], []
        self.failures = Inbox()
        self.looks = 0

    def is_stopped(self, rank):
        self.looks += 1
        return rank in self.stopped

    def page_of(self, rank):
        return StatusPage()

    def kill_on_connect(self, rank, how):
        self.expected.append((rank, how))
        self.ending.add(rank)

    def tell(self, rank, wish):
        self.told.append((rank, wish))

    def wait_for_looks(self):
        before = self.looks
        until(lambda: self.looks > before + 3)  # a whole round of them


@pytest.fixture
def monitor():
    return FakeMonitor()


@pytest.fixture
def parting(comms, monitor, monkeypatch):
    """The root's side, once all have joined. What it has to do at the end of the process is in its `state`."""
    root = Root.__new__(Root)
    root.comm, root.monitor, root.registrations = comms[0], monitor, REGISTRATIONS
    root._forwarder_root, root._stopped_since, root._killed, root.of_all = None, {}, set(), False
    root.state = SimpleNamespace(to_shut_down=[])
    monkeypatch.setattr(membership, "PROCESS", root.state)
    return root


def part(root, stopped="kill"):
    """Have all part, in a thread."""
    return in_a_thread(lambda: (root.await_leavers(stopped), root.part())[1])


def leave(comms, *ranks):
    """Have these workers say that they have left their loops."""
    for rank in ranks:
        comms[rank].send(None, 0, registration._TAG)


def told(comms, rank):
    """What a worker is told: whether all live; None if nothing."""
    return comms[rank].recv(0, registration._TAG) if comms[rank].Iprobe(0, registration._TAG) else None


def test_all_part_when_all_have_left_their_loops(comms, monitor, parting):
    """And are told that MPI can be used as ever; none is told before."""
    leave(comms, 1, 3)
    ending = part(parting)
    until(lambda: not comms[0].Iprobe())
    assert [told(comms, rank) for rank in (1, 2, 3)] == [None] * 3
    assert not parting.of_all
    leave(comms, 2)
    assert ending.result(LIMIT) is True
    assert [told(comms, rank) for rank in (1, 2, 3)] == [True] * 3
    assert parting.of_all
    assert parting.state.to_shut_down == []


def test_failed_workers_are_not_waited_for(comms, monitor, parting):
    """Also if they die meanwhile. The others learn that MPI is not to be finalised; nothing is sent to the failed ones."""
    monitor.failed.add(1)
    leave(comms, 2)
    ending = part(parting)
    until(lambda: not comms[0].Iprobe())
    assert not ending.done()
    monitor.failed.add(3)
    assert ending.result(LIMIT) is False
    assert [told(comms, rank) for rank in (1, 2, 3)] == [None, False, None]
    assert not parting.of_all
    assert parting.state.to_shut_down == [monitor]


def test_one_that_is_about_to_be_killed_does_not_count_as_alive(comms, monitor, parting):
    """It has left its loop, and `kill_workers` has asked for its end: no collective step waits for it, and it is sent nothing."""
    monitor.ending.add(2)
    leave(comms, 1, 2, 3)
    assert part(parting).result(LIMIT) is False
    assert [told(comms, rank) for rank in (1, 2, 3)] == [False, None, False]
    assert not parting.of_all
    assert parting.state.to_shut_down == [monitor]


def test_one_that_is_stopped_is_killed_in_the_end(comms, monitor, clock, caplog, parting):
    """It blocks the end of the job, and to wait would not help. The root waits for one that gives signs of life."""
    monitor.stopped.add(2)
    leave(comms, 1)
    ending = part(parting)
    monitor.wait_for_looks()
    clock.now += 2.9
    monitor.wait_for_looks()
    assert monitor.expected == []
    clock.now += 0.2
    until(lambda: monitor.expected)
    warning = "the worker on rank 2, host host, pid 1002, gives no signs of life, and keeps this job from its end: it is killed"
    assert caplog.messages == [warning]
    clock.now += 100
    monitor.wait_for_looks()
    monitor.failed.add(2)
    leave(comms, 3)
    assert ending.result(LIMIT) is False
    assert monitor.expected == [(2, KILL)]
    assert [told(comms, rank) for rank in (1, 2, 3)] == [False, None, False]


def test_one_that_goes_on_in_time_is_not_killed(comms, monitor, clock, parting):
    """And may be stopped again: that counts anew."""
    ending = part(parting)
    for _ in range(5):
        monitor.stopped.add(2)
        monitor.wait_for_looks()
        clock.now += 2.9
        monitor.wait_for_looks()
        monitor.stopped.discard(2)
        monitor.wait_for_looks()
    leave(comms, 1, 2, 3)
    assert ending.result(LIMIT) is True
    assert monitor.expected == []


def test_one_that_has_something_else_to_do_later_is_not_killed(comms, monitor, clock, caplog, parting):
    """One warning says that the root waits for it: the MPI program goes on after this."""
    monitor.stopped.add(2)
    ending = part(parting, "warn")
    for _ in range(5):
        monitor.wait_for_looks()
        clock.now += 3.1
    monitor.wait_for_looks()
    leave(comms, 1, 2, 3)
    assert ending.result(LIMIT) is True
    assert monitor.expected == []
    (said,) = caplog.messages
    assert said.endswith(
        "rank 2, host host, pid 1002, gives no signs of life, and keeps this job from its end: continue it, or kill it"
    )


def test_one_that_may_still_be_busy_is_waited_for(comms, monitor, clock, caplog, parting):
    """With --spmd it runs its script, which may hold the GIL for long: nothing is logged, and no rank is killed."""
    monitor.stopped.add(2)
    ending = part(parting, "wait")
    clock.now += 100
    for rank in (1, 3):
        leave(comms, rank)
        until(lambda: not comms[0].Iprobe())
    leave(comms, 2)
    assert ending.result(LIMIT) is True
    assert (monitor.expected, monitor.looks, caplog.messages) == ([], 0, [])


# -- the news of deaths, with --spmd


@pytest.fixture
def deaths(monkeypatch):
    """What this process's channels are told."""

    class FailedRanks:
        def __init__(self):
            self.told = []
            self.watchdog = Watchdog()

        def report(self, *death):
            self.told.append(death)

    deaths = FailedRanks()
    monkeypatch.setattr(spmd, "FAILED_RANKS", deaths)
    return deaths


class Telling:
    """Rank 0 of a script with --spmd, without the rest of it."""

    def __init__(self, monitor):
        self.root = spmd._Root.__new__(spmd._Root)
        self.root._members, self.root._monitor = SimpleNamespace(registrations=REGISTRATIONS), monitor
        self._passing = in_a_thread(self.root._pass_on)
        self._monitor = monitor

    def lose(self, rank, end, *, silent=False):
        self._monitor.failed.add(rank)
        self._monitor.failures.put(WorkerFailure(rank, "host", 1000 + rank, end, None, silent=silent))

    def end(self):
        self._monitor.failures.put(None)
        self._passing.result(LIMIT)


def news(*deaths):
    return NEWS + json.dumps(deaths).encode()


FIRST = [2, "rank 2, host host, pid 1002, was killed by SIGKILL", False]
SECOND = [3, "rank 3, host host, pid 1003, was not heard of for 30 s", True]


def test_all_living_ranks_are_told_of_a_death_by_their_supervisors(monitor, deaths, caplog):
    """This rank's own channels first; a later one is told together with those before it. It is a line in the log."""
    telling = Telling(monitor)
    telling.lose(2, "was killed by SIGKILL")
    until(lambda: len(monitor.told) == 2)
    telling.lose(3, "was not heard of for 30 s", silent=True)
    telling.end()
    assert monitor.told == [(1, news(FIRST)), (3, news(FIRST)), (1, news(FIRST, SECOND))]
    assert deaths.told == [tuple(FIRST), tuple(SECOND)]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [FIRST[1], SECOND[1]]


def test_deaths_are_told_several_times(monitor, deaths, monkeypatch):
    """The rank that was to forward it may have died, too. But not for ever."""
    monkeypatch.setattr(spmd, "_ONCE_MORE", 0.0)
    telling = Telling(monitor)
    telling.lose(2, "was killed by SIGKILL")
    until(lambda: len(monitor.told) == 2 * 6)
    telling.end()
    assert monitor.told == [(1, news(FIRST)), (3, news(FIRST))] * 6
    assert deaths.told == [tuple(FIRST)]


def test_one_that_was_given_up_and_is_heard_of_again_learns_that(monitor, deaths):
    """It counts as dead, for good: by the others."""
    telling = Telling(monitor)
    telling.root._tell_returned(2)
    assert monitor.told == [(2, news([2, "rank 2, host host, pid 1002, was not heard of for long", True]))]
    telling.end()

"""How the root hears of workers on other nodes, and they of its wishes. The ranks are all in this process: see fake_mpi.py."""

import time
from dataclasses import asdict, replace

import pytest
from fake_mpi import fake_mpi
from fakes import LIMIT, FakeClock, in_a_thread, until

from mpiexecutor._liveness import monitor as its_module
from mpiexecutor._liveness.commands import KILL, LEAVE
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._liveness.status_page import Signs
from mpiexecutor._util.inbox import Inbox

NEWS, COMMANDS = 0, 1  # tags
LOST_AFTER = 30.0
FAR = {2: ("far", 1002), 3: ("far", 1003)}  # host and pid of those on the other node, by rank


@pytest.fixture
def mpi():
    with fake_mpi() as mpi:
        yield mpi


@pytest.fixture
def relay(mpi):
    return mpi.module("_liveness.forwarder")


@pytest.fixture
def clock(relay, monkeypatch):
    clock = FakeClock()
    for module in (relay, its_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


class FakeMonitor:
    """Notes what it is told."""

    def __init__(self):
        self.failures = Inbox()
        self.failed, self.silent = set(), set()
        self.lost, self.forgotten, self.shut_down = [], [], []
        self.pages = {}
        self.lines = {}
        self.returned = []
        self.told = []
        self.looks = []
        self.stopped = False
        self.hear_by = self.looks.append

    # of the root
    def lose(self, failure):
        if failure.rank not in self.failed:
            self.failed.add(failure.rank)
            self.lost.append(failure)

    def admit(self, rank, line, page):
        self.lines[rank], self.pages[rank] = line, page

    def take_back(self, rank, line):
        self.failed.discard(rank)
        self.silent.discard(rank)
        self.lines[rank] = line
        self.returned.append(rank)

    # of both
    def forget_supervisor(self, rank):
        self.forgotten.append(rank)

    # of a worker
    @property
    def known(self):
        return frozenset(self.pages)

    def signs(self):
        return [(rank, sign) for rank, sign in self.pages.items() if rank not in self.failed]

    def tell(self, rank, wish):
        self.told.append((rank, wish))

    def shut_down_supervisors(self, ranks):
        self.shut_down.append(set(ranks))

    def stop(self):
        self.stopped = True


class ProgressThreads:
    """Attends to nothing: a test looks by itself."""

    def __init__(self):
        self.hosted = []
        self.serve, self.leave = self.hosted.append, self.hosted.remove


@pytest.fixture
def progress(relay, monkeypatch):
    progress = ProgressThreads()
    monkeypatch.setattr(relay, "progress_threads", lambda: progress)
    return progress


class Scene:
    """The root's side, with a monitor of its own; and the communicator as the workers have it."""

    def __init__(self, relay, comms):
        self.comms = comms
        self.monitor = FakeMonitor()
        self.root_side = relay.ForwarderRoot(relay.ControlChannel(comms[0]), self.monitor, dict(FAR), LOST_AFTER)
        self.look = self.root_side.look

    def tell(self, source, what, said=None):
        self.comms[source].send((what, said), 0, NEWS)

    def tell_of_living(self, source, *ranks):
        self.tell(source, "alive", dict.fromkeys(ranks, (None, 0.0)))

    def wishes(self, rank):
        """Return the wishes that a rank has been sent."""
        found = []
        while self.comms[rank].Iprobe(0, COMMANDS):
            found.append(self.comms[rank].recv(0, COMMANDS))
        return found


@pytest.fixture
def scene(relay, clock, progress, mpi):
    return Scene(relay, mpi.comms(4))


# -- the root hears


def test_the_root_hears_whenever_a_thread_attends_or_awaits(scene, progress):
    """It has no thread of its own for that."""
    assert progress.hosted == scene.monitor.looks == [scene.look]


def test_a_living_worker_is_known_with_what_it_does(scene, clock):
    """Since when its call runs, and when it was seen, by the clock of this node: clocks of nodes have nothing in common."""
    scene.tell(2, "alive", {2: (None, 0.5), 3: (4.0, 1.5)})
    scene.look()
    now = clock.now
    assert scene.monitor.pages == {2: Signs(None, now - 0.5, now), 3: Signs(now - 4.0, now - 1.5, now)}


def test_a_failure_is_forwarded_with_what_the_worker_held(scene):
    """In pieces before it, by the same worker: those of another do not count."""
    failure = WorkerFailure(3, "far", 1003, "was killed by SIGKILL", 41, 1.5)
    scene.tell(3, "held", (3, b"of another"))
    for piece in (b"out", b"comes"):
        scene.tell(2, "held", (3, piece))
    scene.tell(2, "lost", asdict(failure))
    scene.look()
    assert scene.monitor.lost == [replace(failure, held=b"outcomes")]
    assert scene.monitor.forgotten == [3]


def test_news_are_heard_in_order(scene):
    """Of a worker that lives, dies, and whose death is reported a second time by another."""
    failure = WorkerFailure(3, "far", 1003, "was killed by SIGKILL", 41)
    scene.tell_of_living(2, 2, 3)
    scene.tell(2, "lost", asdict(failure))
    scene.tell(2, "lost", asdict(failure))
    scene.look()
    assert set(scene.monitor.pages) == {2, 3}
    assert scene.monitor.lost == [failure]
    scene.monitor.pages.clear()
    scene.tell_of_living(2, 2, 3)
    scene.look()
    assert set(scene.monitor.pages) == {2}


def test_a_look_that_meets_a_death_is_no_error(scene):
    """Some MPIs say so when they look for messages; the next look finds what there is."""
    scene.tell_of_living(2, 2)
    found = scene.comms[0].improbe

    def die(*_):
        scene.comms[0].improbe = found
        raise scene.root_side.look.__globals__["MPI"].Exception

    scene.comms[0].improbe = die
    scene.look()
    assert 2 in scene.monitor.pages


# -- silence


def look_for(scene, clock, seconds, *telling):
    """Look each half second for so long, while these tell that they live."""
    until = clock.now + seconds
    while clock.now < until:
        clock.now += 0.5
        for rank in telling:
            scene.tell_of_living(rank, rank)
        scene.look()


def test_a_worker_that_is_not_heard_of_for_long_is_given_up(scene, clock):
    """Each for itself. It is the silence that counts, not that nothing comes."""
    look_for(scene, clock, LOST_AFTER, 2, 3)
    look_for(scene, clock, LOST_AFTER, 2)
    assert scene.monitor.lost == []
    look_for(scene, clock, 0.5, 2)
    assert scene.monitor.lost == [WorkerFailure(3, "far", 1003, "was not heard of for 30 s", None, silent=True)]
    assert scene.monitor.silent == {3}
    assert scene.monitor.forgotten == [3]


def test_a_worker_that_another_tells_of_is_not_silent(scene, clock):
    """Its own messages may come through no other way."""
    for _ in range(100):
        clock.now += 0.9
        scene.tell_of_living(2, 2, 3)
        scene.look()
    assert scene.monitor.lost == []


def test_a_root_that_had_no_time_gives_up_no_worker(scene, clock):
    """It was stopped, or its script held the GIL: it cannot say which workers were silent meanwhile, and begins to count again."""
    for _ in range(10):
        clock.now += LOST_AFTER
        scene.look()
    assert scene.monitor.lost == []
    look_for(scene, clock, LOST_AFTER + 0.5)
    assert {failure.rank for failure in scene.monitor.lost} == {2, 3}


def test_one_that_was_given_up_and_speaks_is_taken_back(scene, clock):
    """Whatever it says; and it may be given up again."""
    look_for(scene, clock, LOST_AFTER + 0.5, 2)
    scene.tell_of_living(3, 3)
    scene.look()
    assert scene.monitor.returned == [3]
    assert 3 in scene.monitor.pages
    look_for(scene, clock, LOST_AFTER + 0.5, 2)
    assert [failure.rank for failure in scene.monitor.lost] == [3, 3]


def test_what_others_tell_of_one_that_was_given_up_is_no_reason_to_take_it_back(scene, clock):
    """They may not know better."""
    look_for(scene, clock, LOST_AFTER + 0.5, 2)
    scene.monitor.pages.clear()
    scene.tell_of_living(2, 2, 3)
    scene.look()
    assert set(scene.monitor.pages) == {2}
    assert scene.monitor.returned == []
    assert scene.monitor.failed == {3}


# -- wishes


def test_a_command_goes_to_the_monitor_of_the_worker(scene):
    """Which forwards it to the supervisor; but LEAVE goes to the rank itself."""
    scene.tell_of_living(2, 3)
    scene.look()
    scene.monitor.lines[3].send(KILL)
    scene.monitor.lines[3].send(LEAVE)
    scene.monitor.lines[3].close()
    assert scene.wishes(2) == [(3, KILL)]
    assert scene.wishes(3) == [(3, LEAVE)]


def test_nothing_is_sent_to_a_rank_that_is_known_to_have_failed_and_the_command_waits(scene):
    """Until another one reports the worker: MPI may wait for ever if there is no receiver."""
    scene.tell_of_living(2, 3)
    scene.look()
    scene.monitor.failed.add(2)
    line = scene.monitor.lines[3]
    line.send(KILL)
    scene.look()
    assert scene.wishes(2) == []
    scene.tell_of_living(3, 3)
    scene.look()
    assert scene.wishes(3) == [(3, KILL)]
    scene.tell_of_living(3, 3)
    scene.look()
    assert scene.wishes(3) == []


def test_a_command_without_a_receiver_is_no_error(scene):
    """MPI knows of the death before any other part does."""
    scene.tell_of_living(2, 3)
    scene.look()
    scene.comms[0].failed.add(2)
    scene.monitor.lines[3].send(KILL)
    assert scene.wishes(2) == []


# -- the end


def test_the_root_waits_until_all_have_said_that_they_are_gone(scene, progress):
    """And then gives back what it has heard them by."""
    scene.tell(2, "gone")
    ending = in_a_thread(scene.root_side.stop)
    until(lambda: scene.monitor.forgotten == [2])
    assert not ending.done()
    scene.tell(3, "gone")
    ending.result(LIMIT)
    assert scene.comms[0].freed
    assert progress.hosted == []


def test_one_that_is_gone_is_not_silent(scene, clock):
    """It has nothing to say any more."""
    scene.tell(3, "gone")
    look_for(scene, clock, 2 * LOST_AFTER, 2)
    assert scene.monitor.lost == []


# -- the worker's side


class Forwarder:
    """A worker's forwarder, and the root's side of what it goes by."""

    def __init__(self, relay, comms, lost_after=LOST_AFTER):
        self.root = comms[0]
        self.monitor = FakeMonitor()
        self.left = []
        self.forwarder = relay.Forwarder(comms[2], 0, self.monitor, lost_after, lambda: self.left.append(True))

    def news(self, but_for=()):
        """Return what it says next."""
        end = time.monotonic() + LIMIT
        while True:
            what, said = self.root.recv(2, NEWS)
            if what not in but_for:
                return what, said
            assert time.monotonic() < end, f"it says nothing but {but_for}"


@pytest.fixture
def forwarder(relay, mpi):
    forwarder = Forwarder(relay, mpi.comms(4))
    yield forwarder
    if forwarder.forwarder._thread.is_alive():
        forwarder.forwarder.stop()


def test_a_forwarder_tells_at_once_of_a_new_worker(clock, forwarder):
    """And of none at first. No time goes by here."""
    assert forwarder.news() == ("alive", {})
    forwarder.monitor.pages[3] = Signs(None, 0.0, 0.0)
    what, said = forwarder.news()
    assert (what, set(said)) == ("alive", {3})
    running, unseen, *_ = said[3]
    assert running is None
    assert unseen > 0


def test_a_forwarder_tells_again_and_again_that_they_live(relay, mpi):
    """Several times until they would be given up."""
    forwarder = Forwarder(relay, mpi.comms(4), lost_after=0.06)
    assert [forwarder.news()[0] for _ in range(3)] == ["alive"] * 3
    forwarder.forwarder.stop()


def test_a_forwarder_tells_of_a_death_in_pieces(forwarder):
    """Each so short that it has come as a whole once it is seen: its sender may die, too."""
    failure = WorkerFailure(3, "far", 1003, "was killed by SIGKILL", 41, 1.5, held=bytes(9000))
    forwarder.monitor.failures.put(failure)
    pieces = [forwarder.news({"alive"}) for _ in range(3)]
    assert pieces == [("held", (3, bytes(size))) for size in (4096, 4096, 808)]
    assert forwarder.news({"alive"}) == ("lost", asdict(replace(failure, held=b"")))


def test_what_a_post_tells_is_what_the_root_hears(relay, clock, progress, mpi, monkeypatch):
    """Both sides agree on what the messages look like."""
    comms = mpi.comms(4)
    scene = Scene(relay, comms)
    forwarder = Forwarder(relay, comms)
    failure = WorkerFailure(3, "far", 1003, "was killed by SIGKILL", 41, 1.5, held=bytes(9000))
    forwarder.monitor.pages[2] = Signs(clock.now - 3.0, clock.now - 1.0, clock.now)
    forwarder.monitor.failures.put(failure)
    until(lambda: scene.look() or (scene.monitor.lost and scene.monitor.pages))
    assert scene.monitor.lost == [failure]
    assert scene.monitor.pages[2] == Signs(clock.now - 3.0, clock.now - 1.0, clock.now)
    scene.monitor.lines[2].send(KILL)
    until(lambda: forwarder.monitor.told)
    assert forwarder.monitor.told == [(2, KILL)]
    forwarder.forwarder.stop()
    scene.look()
    assert scene.monitor.forgotten == [3, 2]


def test_a_forwarder_that_is_to_leave_shuts_down_the_supervisors_of_its_dead(forwarder):
    """Then it says that it is gone, and its process ends."""
    forwarder.monitor.failed.add(3)
    forwarder.root.send((2, LEAVE), 2, COMMANDS)
    assert forwarder.news({"alive"}) == ("gone", None)
    until(lambda: forwarder.left)
    assert forwarder.monitor.shut_down == [{3}]


def test_a_forwarder_that_stops_says_that_it_is_gone(forwarder):
    """All workers live: there is nothing to leave."""
    forwarder.forwarder.stop()
    assert forwarder.news({"alive"}) == ("gone", None)
    assert forwarder.monitor.stopped
    assert not forwarder.forwarder._thread.is_alive()

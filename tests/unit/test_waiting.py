"""Waiting: in which order a waiter looks, marks and sleeps. The clock, the doorbell and the ring are fakes."""

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty

import pytest

from mpiexecutor._rma import doorbell
from mpiexecutor._rma.doorbell import Doorbell, Notifier, address_of, node_name
from mpiexecutor._util import polling
from mpiexecutor._util.inbox import Inbox
from mpiexecutor.channel._ends import waiter
from mpiexecutor.channel._ends.waiter import Waiter

LOOKS = 9  # before sleeping, with a clock that moves by an eighth of the time for them at each yield


class World:
    """A clock that moves only while a thread sleeps, or yields, and a log of all events."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []
        self.naps: list[float] = []
        self.rung: set[int] = set()  # the sleeps, by number, that a ring ends
        self.on = {}  # functions: what else happens at an event, once
        self.flag = 0
        self.is_open = False
        self.looks = itertools.count(1)
        self.found_at: int | None = None  # the number of the look that finds something

    def open(self) -> None:
        """Be reachable: before the first mark, or a ring would be lost."""
        assert self.is_open or "mark" not in " ".join(self.log)
        self.is_open = True
        self.on.pop("open", bool)()

    def ring(self) -> None:
        self.log.append("ring")

    def monotonic(self) -> float:
        return self.now

    def release_gil(self) -> None:
        self.on.pop("spin", bool)()
        self.now += waiter._SPIN * 1.001 / 8

    def sleep(self, seconds: float) -> bool:
        """Be the doorbell."""
        self.naps.append(seconds)
        self.log.append("sleep")
        self.on.pop("sleep", bool)()
        if len(self.naps) in self.rung:
            return True
        self.now += seconds
        return False

    def mark(self, flag: int) -> None:
        self.flag = flag
        self.log.append(f"mark {flag}")
        self.on.pop(f"mark {flag}", bool)()

    def look(self) -> str | None:
        self.log.append("look")
        return "found" if next(self.looks) == self.found_at else None

    def waiter(self, *, longest: float = 1.0, may_spin=None) -> Waiter:
        return Waiter(self, self.mark, longest=longest, may_spin=may_spin)


@pytest.fixture
def world(monkeypatch):
    world = World()
    for module in (waiter, doorbell):
        monkeypatch.setattr(module, "time", world)
    monkeypatch.setattr(waiter, "release_gil", world.release_gil)
    monkeypatch.setattr(waiter, "processors_lacking", lambda: 0)
    return world


def test_what_is_there_is_found_at_the_first_look(world):
    """No mark, no sleep."""
    world.found_at = 1
    assert world.waiter().wait(world.look, None, 1) == "found"
    assert world.log == ["look"]


def test_something_that_is_false_is_something(world):
    """Only None is nothing."""
    assert world.waiter().wait(lambda: 0, None, 1) == 0


def test_a_waiter_looks_a_while_before_it_sleeps(world):
    """Going to sleep costs fifty looks."""
    world.found_at = LOOKS
    assert world.waiter().wait(world.look, None, 1) == "found"
    assert world.log == ["look"] * LOOKS


@pytest.mark.parametrize(
    ("lacking", "rounds"),
    [([1, 1, 1], 2), ([2, 1], 1), ([3], 0), ([9], 0), ([1, 1, 0, 1, 1, 1], 5), ([2, -1, 2, 0, 1, 2], 5)],
)
def test_a_waiter_stops_spinning_while_processors_are_lacking(world, monkeypatch, lacking, rounds):
    """To spin on would take one from what computes. Checks in vain may be of threads that soon sleep; of many, one is enough."""
    answers = iter(lacking)
    monkeypatch.setattr(waiter, "processors_lacking", lambda: next(answers))
    monkeypatch.setattr(waiter, "release_gil", lambda: None)  # and no time goes by
    looks = 1 + waiter._LOOKS * rounds
    world.found_at = looks + 1
    assert world.waiter().wait(world.look, None, 1) == "found"
    assert world.log == ["look"] * looks + ["mark 1", "look", "mark 0"]
    assert list(answers) == []


@pytest.fixture
def resting(world):
    """Return a waiter that expects something only once a test says so."""
    waiter = world.waiter()
    world.expected = False
    waiter.expected = lambda _: world.expected
    return waiter


def rouse(world, waiter):
    """Be another thread that changes what is expected."""
    world.expected = True
    waiter.rouse()


def test_a_waiter_that_expects_nothing_sleeps_at_once(world, resting):
    """What comes all the same ends its sleep."""
    world.rung = {1}
    world.found_at = 3
    assert resting.wait(world.look, None, 1) == "found"
    assert world.log == ["look", "mark 1", "look", "sleep", "look", "mark 0"]


def test_a_waiter_is_asked_for_what_it_waits(world, resting):
    """In the middle of a message it may expect the rest."""
    asked = []
    resting.expected = lambda flag: not asked.append(flag)
    world.found_at = 2
    resting.wait(world.look, None, 2)
    assert asked == [2]


@pytest.mark.parametrize("spins_first", [False, True])
def test_a_waiter_spins_once_it_is_roused_from_its_sleep(world, resting, spins_first):
    """It looks in vain, and spins as if it had not slept. Then it sleeps as before."""
    world.expected = spins_first
    world.on["sleep"] = lambda: rouse(world, resting)
    world.rung = {1}
    looks = ["look"] * (LOOKS - 1)
    before = ["look", *looks * spins_first, "mark 1", "look", "sleep", "ring", "look", "look", "mark 0"]
    world.found_at = before.count("look") + LOOKS
    assert resting.wait(world.look, None, 1) == "found"
    assert world.log == [*before, *looks, "mark 1", "look", "mark 0"]


@pytest.mark.parametrize("event", ["asked", "open", "mark 1"])
def test_a_waiter_that_is_about_to_sleep_is_roused(world, resting, event):
    """The handshake: it notes that it sleeps before it asks what is expected. A change after that rouses it."""

    def expected(_):
        now = world.expected
        world.on.pop("asked", bool)()
        return now

    resting.expected = expected
    world.on[event] = lambda: rouse(world, resting)
    world.rung = {1}
    world.found_at = LOOKS
    assert resting.wait(world.look, None, 1) == "found"
    assert "ring" in world.log
    assert world.log.count("sleep") == (event == "mark 1")


def test_no_bell_rings_for_a_waiter_that_does_not_sleep(world, resting):
    """Before and after a wait, or while it spins."""
    resting.rouse()
    world.expected = True
    world.on["spin"] = resting.rouse
    world.found_at = LOOKS
    assert resting.wait(world.look, None, 1) == "found"
    resting.rouse()
    assert not world.on
    assert "ring" not in world.log


def test_a_waiter_that_expects_nothing_keeps_its_deadline(world, resting):
    """It sleeps until then."""
    assert resting.wait(world.look, 100.5, 1) is None
    assert world.naps == pytest.approx([0.5])
    assert world.flag == 0


def test_the_flag_is_set_before_the_last_look(world):
    """A rank that changes the ring after that look sees the flag: no wake-up is lost between look and sleep."""
    world.found_at = LOOKS + 3
    assert world.waiter().wait(world.look, None, 2) == "found"
    assert world.log[LOOKS:] == ["mark 2", "look", "sleep", "mark 2", "look", "sleep", "mark 2", "look", "mark 0"]


def test_what_comes_between_the_flag_and_the_sleep_is_found(world):
    """The look after the flag: no sleep at all."""
    world.found_at = LOOKS + 1
    world.waiter().wait(world.look, None, 1)
    assert world.log[LOOKS:] == ["mark 1", "look", "mark 0"]


def test_a_ring_ends_a_sleep_and_the_waiter_looks_again(world):
    """Found after the ring, with no time gone by."""
    world.rung = {1}
    world.found_at = LOOKS + 2
    assert world.waiter().wait(world.look, None, 1) == "found"
    assert world.naps == [1.0]
    assert world.now == pytest.approx(100.0, abs=0.001)


def test_a_ring_for_nothing_does_no_harm(world):
    """A stranger's ring, or one for something that another took: look, then flag, look, and sleep again."""
    world.rung = {1, 2}
    world.found_at = LOOKS + 6
    world.waiter().wait(world.look, None, 1)
    again = ["mark 1", "look", "sleep", "look"]
    assert world.log[LOOKS:] == [*again, *again, "mark 1", "look", "sleep", "mark 1", "look", "mark 0"]


def test_a_caller_that_has_looked_does_not_look_twice(world):
    """The first look is its own."""
    assert world.waiter().wait(world.look, world.now, 1, looked=True) is None
    assert world.log == []


def test_no_time_is_one_look(world):
    """A deadline that is over still allows a look: that is what the _nowait methods are."""
    assert world.waiter().wait(world.look, 0, 1) is None
    assert world.log == ["look"]
    world.found_at = 2
    assert world.waiter().wait(world.look, 0, 1) == "found"


def test_a_waiter_gives_up_at_its_deadline_with_one_last_look(world):
    """It sleeps until then, no longer, and what came meanwhile is found."""
    assert world.waiter(longest=1.0).wait(world.look, 102.5, 1) is None
    assert world.naps == pytest.approx([1.0, 1.0, 0.5], abs=0.001)
    assert world.now == pytest.approx(102.5)
    assert world.log[-3:] == ["mark 1", "look", "mark 0"]


def test_what_comes_at_the_deadline_is_found(world):
    """The last look counts."""
    world.found_at = LOOKS + 2
    assert world.waiter().wait(world.look, 100.5, 1) == "found"
    assert world.naps == pytest.approx([0.5], abs=0.001)


def test_near_sleeps_stay_as_long_as_they_may_be(world):
    """Everybody can ring: the sleep only bounds what a lost wake-up costs."""
    world.found_at = LOOKS + 6
    world.waiter(longest=0.25).wait(world.look, None, 1)
    assert world.naps == [0.25] * 5


def test_a_rank_that_may_not_spin_sleeps_at_once(world):
    """Another rank spins for all: this one is asked with its flag."""
    world.rung = {1}
    world.found_at = 3
    assert world.waiter(may_spin=lambda flag: flag != 2).wait(world.look, None, 2) == "found"
    assert world.log == ["look", "mark 2", "look", "sleep", "look", "mark 0"]


def test_a_spinning_rank_says_when_it_does_no_more(world):
    """When it has found something, and when it fails; the mark for its sleep says so otherwise."""

    def may_spin(flag):
        world.mark(flag + 10)
        return True

    world.found_at = 3
    assert world.waiter(may_spin=may_spin).wait(world.look, None, 1) == "found"
    assert world.log == ["look", "mark 11", "look", "look", "mark 0"]


def test_a_rank_that_is_out_of_time_does_not_spin(world):
    """One look is what it gets."""
    assert world.waiter(may_spin=pytest.fail).wait(world.look, 0, 1) is None
    assert world.log == ["look"]


class Bell(Doorbell):
    """A doorbell whose naps are only noted."""

    def __init__(self, world, far):
        super().__init__("", far)
        self._world = world

    def _nap(self, seconds):
        return self._world.sleep(seconds)


def test_a_rank_that_other_nodes_may_notify_looks_for_that_between_growing_naps(world):
    """Nothing wakes it: it naps shortly at first, then longer, up to a bound, until its time is over."""
    assert not Bell(world, lambda: False).sleep(1.0)
    assert world.naps[0] == polling.SHORTEST
    assert world.naps[:-1] == sorted(world.naps[:-1])
    assert all(b <= a * polling.GROWTH * 1.001 for a, b in itertools.pairwise(world.naps))
    assert max(world.naps) == polling.LONGEST
    assert sum(world.naps) == pytest.approx(1.0)


def test_a_ring_from_afar_ends_the_sleep(world):
    """Between two naps, and before the first."""
    looks = itertools.count()
    assert Bell(world, lambda: next(looks) == 5).sleep(1.0)
    assert len(world.naps) == 5
    assert Bell(world, lambda: True).sleep(1.0)
    assert len(world.naps) == 5


def test_a_near_ring_ends_the_naps_too(world):
    """Any rank of the same node can notify it."""
    world.rung = {3}
    assert Bell(world, lambda: False).sleep(1.0)
    assert len(world.naps) == 3


@pytest.mark.parametrize("at", [1, LOOKS + 1, LOOKS + 2])
def test_a_look_that_raises_leaves_no_rank_marked_as_asleep(world, at):
    """The error is the caller's, and the flag is cleared."""

    def look():
        if next(world.looks) == at:
            raise KeyboardInterrupt

    waiter = world.waiter()
    with pytest.raises(KeyboardInterrupt):
        waiter.wait(look, None, 1)
    assert (world.flag, waiter.sleeps) == (0, False)


# -- doorbells: real sockets, and nothing that depends on how fast they are ---------------------------------------------


@pytest.fixture
def address():
    return address_of(f"test{os.getpid()}", 3, "take")


@pytest.fixture
def bell(address):
    bell = Doorbell(address)
    yield bell
    bell.free()


@pytest.fixture
def notifier():
    notifier = Notifier()
    yield notifier
    notifier.free()


def test_a_bell_that_is_not_rung_ends_its_sleep_itself(bell):
    """And says so."""
    assert bell.sleep(0) is False


def test_a_ring_before_the_sleep_is_kept(bell, notifier, address):
    """Once the doorbell exists: a notification just before the sleep is not missed."""
    bell.sleep(0)
    notifier.notify(address)
    assert bell.sleep(60) is True


def test_each_ring_ends_one_sleep_at_most(bell, notifier, address):
    """A rank that was notified several times looks in vain as often at most, and sleeps again."""
    bell.sleep(0)
    for _ in range(5):
        notifier.notify(address)
    assert bell.sleep(60) is True
    assert sum(bell.sleep(0) for _ in range(10)) <= 4


def test_a_bell_sleeps_as_long_as_it_is_told_to_last(bell):
    """However long it was told to before."""
    for seconds in (0, 0.05, 0.001):
        began = time.monotonic()
        assert bell.sleep(seconds) is False
        assert time.monotonic() - began > seconds * 0.9


def test_a_thread_rings_its_own_bell(bell):
    """Before the sleep, or in it; more often than a socket can keep, and once there is no bell any more."""
    bell.sleep(0)
    bell.ring()
    assert bell.sleep(60) is True
    other = threading.Thread(target=bell.ring)
    other.start()
    assert bell.sleep(60) is True
    other.join()
    for _ in range(5000):
        bell.ring()
    assert bell.sleep(60) is True
    bell.free()
    bell.ring()


def test_a_sleeper_is_woken(bell, notifier, address):
    """From another thread, as from another process."""
    bell.sleep(0)
    other = threading.Thread(target=notifier.notify, args=(address,))
    other.start()
    assert bell.sleep(60) is True
    other.join()


def test_notifying_where_no_doorbell_is_does_no_harm(notifier, address):
    """Nor does notifying more often than a socket can keep, or where a rank was before."""
    notifier.notify(address)
    bell = Doorbell(address)
    bell.sleep(0)
    for _ in range(5000):
        notifier.notify(address)
    assert bell.sleep(60) is True
    bell.free()
    notifier.notify(address)


def test_a_bell_costs_nothing_until_it_is_slept_on(bell, address):
    """Its address is still free; after free() it is free again."""
    other = Doorbell(address)
    other.sleep(0)
    with pytest.raises(OSError, match="in use"):
        bell.sleep(0)
    other.free()
    other.free()  # again does no harm
    assert bell.sleep(0) is False


def test_every_rank_and_side_has_its_own_address():
    """And every channel."""
    addresses = {address_of(token, rank, side) for token in ("a", "b") for rank in range(3) for side in ("put", "take")}
    assert len(addresses) == 12


def test_a_bell_that_is_a_file_is_removed(tmp_path, notifier):
    """Where the system has no other addresses."""
    path = tmp_path / "bell"
    bell = Doorbell(str(path))
    bell.sleep(0)
    notifier.notify(str(path))
    assert bell.sleep(60) is True
    assert path.exists()
    bell.free()
    assert not path.exists()


def test_a_node_has_one_name():
    """The same for all its ranks, so that they know which ranks can be notified."""
    assert node_name() == node_name()


def test_an_inbox_keeps_its_time_however_short_that_is():
    """A SimpleQueue's get waits for ever here, as a rule within the first thousands."""
    inbox: Inbox[int] = Inbox()
    for _ in range(20_000):
        with pytest.raises(Empty):
            inbox.get(timeout=1e-6)


def test_an_inbox_gives_what_was_put_in_order():
    """The waiting thread is woken; one without a limit waits as long as it takes."""
    inbox: Inbox[int] = Inbox()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lambda: [inbox.get(), inbox.get(timeout=20), inbox.get()])
        for number in range(3):
            inbox.put(number)
        assert taken.result(20) == [0, 1, 2]

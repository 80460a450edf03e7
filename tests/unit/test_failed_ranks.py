"""Which errors ranks of a raw channel get after a death, and when: the ring is in memory of this process."""

import secrets
import threading
from functools import partial

import pytest
from fake_memory import Death, FakeMemory, Life, Turnstile
from fakes import LIMIT, in_a_thread, until

from mpiexecutor._rma import failed_ranks, recovery_thread
from mpiexecutor._rma.doorbell import Notifier
from mpiexecutor._rma.failed_ranks import CommFailedRanks, FailedRanks
from mpiexecutor.channel import ChannelBroken, ChannelClosed, RemoteChannel, Share, _losses, _remote
from mpiexecutor.channel._codecs import codec_of
from mpiexecutor.channel._ends.rank_state import Phase, RankState
from mpiexecutor.channel._ring.layout import Layout

HOST = 0
SLOTS = 4


@pytest.fixture
def ended():
    """Why the job was ended."""
    return []


@pytest.fixture
def deaths(monkeypatch, ended):
    """Those that the test reports to this process; there is no thread for that."""
    deaths = FailedRanks()
    deaths.are_reported = True
    deaths._end_job = ended.append
    for module in (failed_ranks, _losses, _remote):
        monkeypatch.setattr(module, "FAILED_RANKS", deaths)
    return deaths


class Job:
    """A channel, as each of its ranks has it."""

    def __init__(self, ranks=4):
        self.patience = LIMIT  # seconds for living ranks to be at rest
        self._turnstile = Turnstile()
        self._layout = Layout(SLOTS, 64, ranks)
        self._shared = bytearray(self._layout.size)
        self._layout.prepare(FakeMemory(self._shared, self._turnstile))
        self._token = secrets.token_hex(8)
        self.lives = [Life() for _ in range(ranks)]
        self.channels = [self._channel(rank) for rank in range(ranks)]

    def _channel(self, rank):
        channel = RemoteChannel.__new__(RemoteChannel)
        rank_state = RankState(self._layout, rank, self._token, ["node"] * len(self.lives), Notifier(), None)
        memory = partial(FakeMemory, self._shared, self._turnstile, self.lives[rank])
        channel._begin(codec_of(object, 64), rank_state, memory, HOST, only_host={"put": False, "take": False})
        channel._begin_losses(CommFailedRanks(range(len(self.lives))))
        settle = channel.recover
        channel.recover = lambda dead, **how: settle(dead, timeout=self.patience, **how)
        return channel

    def stop_in_the_middle(self, rank, operation):
        """Have a rank come to a standstill in an operation, once it has reserved, or claimed, something."""
        life = self.lives[rank]
        life._swaps, life._steps = 1, 0
        with pytest.raises(Death):
            operation()

    def end(self):
        for channel in self.channels:
            channel._stop()
            channel._puts.free()
            channel._takes.free()
            channel._rank_state.notifier.free()


@pytest.fixture
def job(deaths):
    job = Job()
    yield job
    job.end()


def die(deaths, job, rank, how="was killed by SIGKILL", *, silent=False):
    """Report a death to all channels of the job; return what the host's returns."""
    deaths.report(rank, f"rank {rank}, host host, pid 7, {how}", silent)
    for channel in job.channels[1:]:
        channel.note_failures()
    return job.channels[HOST].note_failures()


OPERATIONS = {
    "put": lambda channel: channel.put("b"),
    "put_nowait": lambda channel: channel.put_nowait("b"),
    "put_many": lambda channel: channel.put_many(["b", "c"]),
    "take": lambda channel: channel.take(),
    "take_nowait": lambda channel: channel.take_nowait(),
    "take_many": lambda channel: channel.take_many(2),
    "putf": lambda channel: channel.putf("b").result(LIMIT),
    "takef": lambda channel: channel.takef().result(LIMIT),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_host_is_told_once_by_what_it_does_next(job, deaths, operation):
    """Which has done nothing then; and the next one goes on."""
    host = job.channels[HOST]
    host.put("a")
    assert die(deaths, job, 2)
    with pytest.raises(ChannelBroken) as raised:
        OPERATIONS[operation](host)
    assert raised.value.ranks == [2]
    assert str(raised.value) == "rank 2, host host, pid 7, was killed by SIGKILL. The channel goes on"
    assert len(host) == 1
    OPERATIONS[operation](host)
    assert host.note_failures()


def test_the_host_is_told_while_it_waits(job, deaths):
    """To take, or for room; and in the background: each of them would be told, but one is enough."""
    host = job.channels[HOST]
    taking = in_a_thread(host.take)
    until(host._takes.lock.locked)
    die(deaths, job, 2)
    with pytest.raises(ChannelBroken, match="rank 2"):
        taking.result(LIMIT)
    putting = in_a_thread(host.put_many, range(9))
    until(lambda: len(host) == SLOTS)
    die(deaths, job, 3)
    with pytest.raises(ChannelBroken, match="rank 3") as raised:
        putting.result(LIMIT)
    assert raised.value.count == SLOTS
    assert host.take_many(9) == [0, 1, 2, 3]
    future = host.takef()
    die(deaths, job, 1)
    with pytest.raises(ChannelBroken, match="rank 1"):
        future.result(LIMIT)


def test_several_deaths_are_told_together_or_one_by_one(job, deaths):
    """As they come."""
    host = job.channels[HOST]
    deaths.report(1, "rank 1, host host, pid 7, was killed by SIGKILL")
    die(deaths, job, 2)
    die(deaths, job, 3)
    with pytest.raises(ChannelBroken) as first:
        host.put("a")
    with pytest.raises(ChannelBroken) as second:
        host.put("a")
    assert (first.value.ranks, second.value.ranks) == ([1, 2], [3])
    host.put("a")
    assert host.take() == "a"


def test_the_host_is_told_what_the_failed_rank_had_claimed(job, deaths):
    """By number, and whether it had it."""
    host = job.channels[HOST]
    host.put_many(["a", "b", "c", "d"])
    assert job.channels[1].take() == "a"
    die(deaths, job, 1)
    job.stop_in_the_middle(2, job.channels[2].take)
    die(deaths, job, 2)
    told = []
    for _ in range(2):
        with pytest.raises(ChannelBroken) as raised:
            host.take()
        told.append(raised.value)
    assert [(error.ranks, error.shares) for error in told] == [
        ([1], [Share(1, range(1), received=True)]),
        ([2], [Share(2, range(1, 2), received=False)]),
    ]
    assert str(told[1]).endswith("; rank 2 had claimed, and not received, message 1. The channel goes on")
    assert host.take_many(9) == ["c", "d"]


def test_others_are_told_nothing(job, deaths):
    """Unless it is the host that has died: then by everything that they do, for good."""
    channel = job.channels[1]
    die(deaths, job, 2)
    channel.put("a")
    assert channel.take() == "a"
    taking = in_a_thread(channel.take)
    until(channel._takes.lock.locked)
    die(deaths, job, HOST)
    for _ in range(2):
        for told in (lambda: taking.result(LIMIT), channel.take_nowait, lambda: channel.put("b"), channel.statistics):
            with pytest.raises(ChannelBroken, match="rank 0, .*: it was the channel's host") as raised:
                told()
            assert raised.value.ranks == [HOST]


def test_a_rank_that_may_wait_for_a_failed_hosts_memory_for_ever_ends_the_job(job, deaths, ended):
    """On another node, that is."""
    job.channels[1]._rank_state.remote = object()
    die(deaths, job, HOST)
    job.channels[1]._rank_state.remote = None
    assert len(ended) == 1
    assert "rank 0, host host, pid 7, was killed by SIGKILL: it was the channel's host" in ended[0]


def test_one_that_lives_and_is_in_the_middle_of_a_message_keeps_the_host_told(job, deaths):
    """Once, however often it is tried; when it has died, too, all is well."""
    host = job.channels[HOST]
    job.stop_in_the_middle(1, lambda: job.channels[1].put("a"))
    job.patience = 0.0
    assert not die(deaths, job, 2)
    assert not host.note_failures()
    with pytest.raises(ChannelBroken, match="live, or may, and are not at rest after") as raised:
        host.take()
    assert raised.value.ranks == [1]
    assert die(deaths, job, 1)
    with pytest.raises(ChannelBroken) as raised:
        host.take()
    assert raised.value.ranks == [1, 2]
    host.put("b")
    assert host.take() == "b"


def test_one_that_may_live_is_recovered_from_unless_it_is_in_the_middle_of_a_message(job, deaths):
    """As the rest of that may still come; until it is dead for sure."""
    host = job.channels[HOST]
    assert die(deaths, job, 3, "was not heard of", silent=True)
    with pytest.raises(ChannelBroken, match="rank 3, host host, pid 7, was not heard of"):
        host.take()
    job.stop_in_the_middle(1, lambda: job.channels[1].put("a"))
    job.patience = 0.0
    assert not die(deaths, job, 1, "was not heard of", silent=True)
    with pytest.raises(ChannelBroken, match=r"ranks \[1\] live, or may"):
        host.take()
    assert die(deaths, job, 1)
    with pytest.raises(ChannelBroken, match="rank 1, host host, pid 7, was killed by SIGKILL"):
        host.take()
    host.put("b")
    assert host.take() == "b"


def test_the_older_names_of_the_operations_after_a_failure_work(job, deaths):
    """With a warning that says the new ones."""
    host = job.channels[HOST]
    del host.recover  # the fixture's
    assert die(deaths, job, 2)
    with pytest.warns(DeprecationWarning, match="is called recover now"):
        assert host.settle([2]) == []
    with pytest.warns(DeprecationWarning, match="is called note_failures now"):
        assert host.lose()


def test_a_channel_that_is_freed_recovers_nothing(job, deaths):
    """Its memory is not used any more."""
    host = job.channels[HOST]
    host._rank_state.phase = Phase.GONE
    assert die(deaths, job, 2)
    with pytest.raises(ChannelClosed):
        host.recover([2])
    host._rank_state.phase = Phase.OPEN


# -- reports


class Listener:
    """A listener, which fails as often as the test says."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.times = 0

    def note_failures(self):
        self.times += 1
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


@pytest.fixture
def told(deaths, ended):
    """Failed ranks, which threads report."""
    deaths.start_recovery(ended.append)
    return deaths


def test_a_death_is_told_to_all_listeners_that_are_there_or_come_later(told):
    """A listener that is added later is told of earlier failures, too."""
    first, second = Listener(), Listener()
    told.add_listener(first)
    told.report(2, "rank 2 was killed")
    until(lambda: first.times)
    told.add_listener(second)
    until(lambda: second.times)
    assert told.any_known()
    assert told.end_of(2) == "rank 2 was killed"
    assert told.end_of(1) is None


def test_no_listener_is_told_before_a_rank_has_died(told):
    """There is nothing to settle."""
    listener = Listener()
    told.add_listener(listener)
    until(lambda: not told._news._items)
    assert not told.any_known()
    assert listener.times == 0


def test_the_death_of_a_silent_rank_is_news(deaths):
    """That it may live after all is none; nor is what is told again."""
    deaths.report(2, "rank 2 was not heard of", silent=True)
    assert deaths.is_silent(2)
    deaths.report(2, "rank 2 was killed")
    assert not deaths.is_silent(2)
    deaths.report(2, "rank 2 was not heard of", silent=True)
    assert not deaths.is_silent(2)
    deaths.report(2, "rank 2 was killed")
    assert deaths.end_of(2) == "rank 2 was killed"
    assert len(deaths._news._items) == 2


def test_what_is_not_recovered_is_tried_again(told, monkeypatch):
    """Until it is."""
    monkeypatch.setattr(recovery_thread, "_AGAIN", 0.0)
    listener = Listener(False, False, True)
    told.add_listener(listener)
    told.report(2, "rank 2 was killed")
    until(lambda: listener.times == 3)


def test_a_fault_of_ours_ends_the_job(told, ended, caplog):
    """No operation could raise an error any more."""
    listener = Listener(ZeroDivisionError("a fault of ours"))
    told.add_listener(listener)
    told.report(2, "rank 2 was killed")
    until(lambda: ended)
    assert ended == ["a channel cannot be recovered after a failure: a fault of ours"]
    assert "a channel was not recovered after a failure" in caplog.text


def test_a_process_that_is_stuck_ends_the_job(told, ended, monkeypatch):
    """The failed rank has a lock of the window, which no rank can take any more. The reporting thread checks the time."""
    monkeypatch.setattr(failed_ranks, "WEDGED", 0.01)
    over = threading.Event()
    listener = Listener(lambda: over.wait(LIMIT))
    told.add_listener(listener)
    told.report(2, "rank 2 was killed")
    until(lambda: told.watchdog.left() is None and ended)
    over.set()
    assert ended == ["a rank has died inside MPI, holding a lock: the job is ended"]


def test_a_rank_that_dies_while_all_are_needed_ends_the_job(deaths, ended):
    """During what was begun last; before and after, it does not."""
    deaths.report(1, "rank 1 was killed")
    with deaths.all_needed("the making of a channel"):
        deaths.report(1, "rank 1 was killed")
        assert ended == []
        with deaths.all_needed("the end of the job"):
            deaths.report(2, "rank 2 was killed")
    deaths.report(3, "rank 3 was killed")
    assert ended == ["rank 2 was killed, during the end of the job, which takes all ranks: the job is ended"]


def test_a_rank_that_has_died_since_all_came_together_ends_the_job(deaths, ended):
    """It is missed there."""
    deaths.report(5, "rank 5 was killed")
    with deaths.all_needed("the freeing of a channel", CommFailedRanks([4, 6])):
        assert ended == []
    with deaths.all_needed("the freeing of a channel", CommFailedRanks([4, 5])):
        assert ended == ["rank 5 was killed, during the freeing of a channel, which takes all ranks: the job is ended"]


def test_the_failed_ranks_of_a_communicator_have_its_numbers(deaths):
    """They become more."""
    dead = CommFailedRanks([4, 7, 6])
    assert (len(dead), [*dead], 1 in dead) == (0, [], False)
    deaths.report(7, "rank 7 was killed")
    deaths.report(5, "rank 5 was killed")
    deaths.report(6, "rank 6 was not heard of", silent=True)
    assert (len(dead), [*dead], 1 in dead, 0 in dead) == (2, [1, 2], True, False)
    assert dead.silent == [2]
    assert dead.ends([2, 1]) == "rank 7 was killed; rank 6 was not heard of"


def test_without_reports_no_listener_is_kept():
    """MPI ends the job at the first death then."""
    deaths = FailedRanks()
    deaths.add_listener(Listener())
    assert not deaths._news._items

"""The channel over real windows: what waits, what gives up, what is cancelled, what is closed and freed; and it works on."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from threading import Event, current_thread, main_thread
from typing import Any

import pytest
from together import (
    COMM,
    LAST,
    RANK,
    SIZE,
    asleep,
    channel_of,
    every_host,
    every_rank,
    in_turn,
    needs_a_spinner,
    needs_three,
    needs_two,
    result_of,
    spinning,
    still_works,
    threads,
    until,
)

from mpiexecutor._rma.progress import ProgressThreads
from mpiexecutor.channel import ChannelClosed, ChannelEmpty, ChannelFull, IncompletePut, RemoteChannel
from mpiexecutor.channel._ends import waiter as waiter_module

ALL = set(range(SIZE))


# -- out of time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_put_that_finds_no_room_in_time_has_put_nothing(timeout):
    """TimeoutError on every rank; then the channel is as full as it was, and works."""
    with channel_of(SIZE, 1) as channel:
        channel.put((RANK,))
        COMM.Barrier()
        with pytest.raises(TimeoutError, match="no room within"):
            channel.put((-1,), timeout)
        assert len(channel) == SIZE
        COMM.Barrier()
        assert channel.take()[0] in ALL
        still_works(channel)


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_take_that_finds_no_message_in_time_has_taken_nothing(timeout):
    """TimeoutError on every rank; the messages that are put afterwards all arrive."""
    with channel_of(2, 1) as channel:
        for take in (channel.take, partial(channel.take_many, 3)):
            with pytest.raises(TimeoutError, match="no message within"):
                take(timeout=timeout)
        still_works(channel)


def test_a_time_out_holds_while_another_thread_waits():
    """Threads of one rank take turns; one whose time-out is over gets TimeoutError, and takes nothing."""
    with channel_of(SIZE, 1) as channel, threads() as pool:
        waiting = pool.submit(channel.take)
        until(lambda: RANK in asleep(channel, "take"))
        with pytest.raises(TimeoutError, match="no message within"):
            channel.take(timeout=0.02)
        with pytest.raises(ChannelEmpty):
            channel.take_nowait()
        COMM.Barrier()
        channel.put((RANK,))
        assert result_of(waiting)[0] in ALL
        still_works(channel)


def test_nowait_says_full_or_empty_at_once():
    """put_nowait and take_nowait do what put and take do, or raise what queue's do, too."""
    with channel_of(SIZE, 1) as channel:
        with pytest.raises(ChannelEmpty, match="no message"):
            channel.take_nowait()
        COMM.Barrier()
        channel.put_nowait((RANK,))
        COMM.Barrier()
        with pytest.raises(ChannelFull, match="no room"):
            channel.put_nowait((-1,))
        COMM.Barrier()
        assert channel.take_nowait()[0] in ALL
        still_works(channel)


def test_put_nowait_refuses_what_is_longer_than_the_whole_channel():
    """Such a message can only flow through while a rank takes: ChannelFull, even when the channel is empty."""
    with channel_of(4, 64, object) as channel:
        with pytest.raises(ChannelFull, match="longer than the channel"):
            channel.put_nowait(b"x" * 1000)
        still_works(channel)


@pytest.mark.parametrize("timeout", [0, 0.02])
@pytest.mark.parametrize("dtype", ["d", object])
def test_a_put_many_that_runs_out_of_room_says_how_many_it_put(timeout, dtype):
    """IncompletePut counts the messages that were put, which are the first ones, whole; the others were not put."""

    def one_rank() -> None:
        with pytest.raises(IncompletePut, match="only 4 of 10 ") as caught:
            channel.put_many([(number,) for number in range(10)], timeout)
        assert (caught.value.count, caught.value.total) == (4, 10)
        assert [channel.take()[0] for _ in range(4)] == [0, 1, 2, 3]

    with channel_of(4, 128, dtype) as channel:
        in_turn(one_rank)
        still_works(channel)


@every_host
@pytest.mark.parametrize("slots", [1, 2, 4, 5])
def test_nothing_arrives_of_a_long_message_that_no_rank_took_in_time(host, slots):
    """A put that times out in the middle of its message has put nothing, rank after rank; the channel works on."""
    with channel_of(slots, 64, object, host) as channel:
        for size in (64 * slots, 10_000):
            with pytest.raises(TimeoutError):
                channel.put(b"x" * size, timeout=0.02)
            COMM.Barrier()
            still_works(channel)
        seen = channel.statistics()
        assert (seen.put, seen.taken) == (2 * SIZE, 2 * SIZE)


def test_long_messages_that_time_out_do_not_harm_those_that_do_not():
    """While every rank puts long messages with and without a time-out and takes, exactly those arrive whose put succeeded."""
    with channel_of(3, 64, object) as channel, threads() as pool:
        taking = pool.submit(lambda: [message[:2] for message in channel])
        put = []
        for number in range(60):
            try:
                channel.put((RANK, number, b"x" * (37 * number)), timeout=0 if number % 3 else None)
            except TimeoutError:
                continue
            put.append((RANK, number))
        COMM.Barrier()
        if RANK == 0:
            channel.close()
        taken = result_of(taking)
        for rank in range(SIZE):
            own = [message for message in taken if message[0] == rank]
            assert own == sorted(own)
        assert sorted(m for part in COMM.allgather(taken) for m in part) == sorted(m for part in COMM.allgather(put) for m in part)


def test_a_put_many_that_times_out_in_a_long_message_has_put_those_before_it():
    """The count leaves out the message that was aborted, and what comes after."""

    def one_rank() -> None:
        with pytest.raises(IncompletePut) as caught:
            channel.put_many([b"1", b"2", b"x" * 5000, b"4"], timeout=0.02)
        assert caught.value.count == 2
        assert [channel.take(), channel.take()] == [b"1", b"2"]
        with pytest.raises(ChannelEmpty):
            channel.take_nowait()

    with channel_of(6, 64, object) as channel:
        in_turn(one_rank)
        still_works(channel)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_is_not_negative(timeout):
    """ValueError, and nothing was done."""
    with channel_of(2, 1) as channel:
        operations = [lambda: channel.put((1,), timeout), lambda: channel.take(timeout)]
        operations += [lambda: channel.put_many([(1,)], timeout), lambda: channel.take_many(1, timeout)]
        for operation in operations:
            with pytest.raises(ValueError, match="timeout is a number of seconds"):
                operation()
        still_works(channel)


# -- woken ----------------------------------------------------------------------------------------------------------------------


@every_rank
def test_a_rank_that_waits_for_a_message_is_woken_when_one_comes(actor):
    """One rank waits until all others sleep in take, then puts a message for each."""
    with channel_of(2, 1) as channel:
        for _ in range(5):
            if actor == RANK:
                until(lambda: asleep(channel, "take") == ALL - {actor})
                for number in range(SIZE - 1):
                    channel.put((number,))
            else:
                assert channel.take() is not None
            COMM.Barrier()


@every_rank
def test_a_rank_that_waits_for_room_is_woken_when_there_is_some(actor):
    """One rank waits until all others sleep in put, then takes everything."""
    with channel_of(1, 1) as channel:
        for _ in range(5):
            if actor == RANK:
                channel.put((actor,))
            COMM.Barrier()
            if actor == RANK:
                until(lambda: asleep(channel, "put") == ALL - {actor})
                assert sorted(channel.take()[0] for _ in ALL) == sorted(ALL)
            else:
                channel.put((RANK,))
            COMM.Barrier()


@needs_three
@pytest.mark.parametrize("way", ["timeout", "cancel"])
def test_a_rank_that_gives_up_does_not_keep_a_wake_up_to_itself(way):
    """Rank 1 stops waiting just when rank 0 puts a message and wakes it, and no other rank: 1 or 2 still gets the message."""
    with channel_of(2, 1) as channel:
        waiter = channel._takes._waiter
        taken = []
        if RANK == 0:
            COMM.recv(source=1)  # it has looked for the last time, and its byte still says that it sleeps
            until(lambda: asleep(channel, "take") == {1, 2})
            channel.put((7,))
            COMM.send("go on", 1)
            until(lambda: channel.statistics().taken == 1)
            channel.close()
        elif RANK == 1:
            waiter._mark = partial(mark_when_told, waiter, waiter._mark)
            taken = give_up(channel, way)
        elif RANK == 2:
            taken = list(channel)
        assert [message[0] for part in COMM.allgather(taken) for message in part] == [7]


@needs_three
@needs_a_spinner
def test_a_rank_that_gives_up_spinning_does_not_keep_a_message_from_others(monkeypatch):
    """Rank 0 counts on rank 1, which spins, just when that is cancelled: one of those that sleep gets the message."""
    with channel_of(2, 1) as channel:
        waiter = channel._takes._waiter
        taken = []
        if RANK == 0:
            COMM.recv(source=1)  # it has looked for the last time, and its byte still says that it spins
            until(lambda: asleep(channel, "take") == ALL - {0, 1})
            channel.put((7,))
            COMM.send("go on", 1)
            until(lambda: channel.statistics().taken == 1)
            channel.close()
        elif RANK == 1:
            monkeypatch.setattr(waiter_module, "_SPIN", 1000.0)
            monkeypatch.setattr(waiter_module, "processors_lacking", lambda: 0)
            waiting = channel.takef()
            until(lambda: spinning(channel) == {1})
            waiter._mark = partial(mark_when_told, waiter, waiter._mark)
            assert waiting.cancel()
        else:
            until(lambda: spinning(channel) == {1})
            taken = list(channel)
        assert [message[0] for part in COMM.allgather(taken) for message in part] == [7]


@needs_a_spinner
def test_a_rank_that_expects_nothing_sleeps_until_it_is_roused(monkeypatch):
    """It does not spin before, and does then; what comes while it sleeps is taken all the same."""
    monkeypatch.setattr(waiter_module, "_SPIN", 1000.0)
    monkeypatch.setattr(waiter_module, "processors_lacking", lambda: 0)

    def one_rank() -> None:
        channel.spin_if(lambda: bool(expected))
        for roused in (False, True):
            taking = pool.submit(channel.take)
            until(lambda: RANK in asleep(channel, "take"))
            assert channel.sleeps
            if roused:
                expected.append(True)
                channel.rouse()
                until(lambda: RANK in spinning(channel))
                assert not channel.sleeps
            channel.put((roused,))
            assert result_of(taking)[0] == roused

    expected: list[bool] = []
    with channel_of(2, 1) as channel, threads() as pool:
        in_turn(one_rank)


@needs_three
@needs_a_spinner
def test_a_spinning_rank_that_was_counted_on_twice_wakes_another(monkeypatch):
    """Rank 1 has found a message, and its byte still says that it spins, when rank 0 puts a second one, and wakes no rank."""
    with channel_of(2, 1) as channel:
        waiter = channel._takes._waiter
        taken = []
        if RANK == 0:
            until(lambda: spinning(channel) == {1} and asleep(channel, "take") == ALL - {0, 1})
            channel.put((1,))
            COMM.recv(source=1)
            channel.put((2,))
            COMM.send("go on", 1)
            until(lambda: channel.statistics().taken == 2)
            channel.close()
        elif RANK == 1:
            monkeypatch.setattr(waiter_module, "_SPIN", 1000.0)
            monkeypatch.setattr(waiter_module, "processors_lacking", lambda: 0)
            waiter._mark = partial(mark_when_told, waiter, waiter._mark)
            taken = [channel.take()]
        else:
            until(lambda: spinning(channel) == {1})
            taken = list(channel)
        assert sorted(message[0] for part in COMM.allgather(taken) for message in part) == [1, 2]


@needs_two
def test_a_rank_that_passes_over_an_aborted_message_is_woken_when_its_slots_are_free():
    """Rank 0 holds back a claimed message; rank 1 meets the next one, which was aborted and was to use the same slots."""
    with channel_of(4, 64, object) as channel, threads() as pool:
        if RANK == 0:
            channel.put(b"x" * 100)
            state = channel._aside.state()
            assert channel._aside.used(state) < 4
            go_on, receive = Event(), channel._takes.ring.receive
            channel._takes.ring.receive = lambda incoming: go_on.wait() and receive(incoming)
            taking = pool.submit(channel.take)
            until(lambda: channel.statistics().taken == 1)
            with pytest.raises(TimeoutError):
                channel.put(b"x" * 150, timeout=0.02)
            assert channel.statistics().put == 2
        COMM.Barrier()
        if RANK == 0:
            until(lambda: asleep(channel, "take") == {1})
            go_on.set()
            until(lambda: channel.statistics().put == 1)
            channel.put(b"next")
            assert result_of(taking) == b"x" * 100
        elif RANK == 1:
            assert channel.take() == b"next"
        COMM.Barrier()


def mark_when_told(waiter: Any, mark: Callable[[int], None], flag: int) -> None:
    """Have rank 0 put its message between the last look and the clearing of this rank's byte."""
    if flag == 0:
        waiter._mark = mark
        COMM.send("about to clear", 0)
        COMM.recv(source=0)
    mark(flag)


def give_up(channel: RemoteChannel[Any, Any], way: str) -> list[Any]:
    """Wait in vain, in one of the ways that end; return what came all the same."""
    if way == "cancel":
        waiting = channel.takef()
        until(lambda: RANK in asleep(channel, "take"))
        assert waiting.cancel()
        return []
    try:
        return [channel.take(timeout=0.5)]
    except TimeoutError:
        return []


def test_progress_threads_hear_the_requests_for_any_window():
    """Though there is always one for the first of them; until they leave that one."""
    progress = ProgressThreads()
    heard: list[str] = []
    requested = [partial(hear, heard, name) for name in ("first", "second")]
    for one in requested:
        progress.serve(one)
    until(lambda: heard.count("second") > 2)
    progress.leave(requested[0])
    before = heard.count("first")
    until(lambda: heard.count("second") > 20)
    assert heard.count("first") == before
    progress.stop()
    assert not any(thread.is_alive() for thread in progress._threads)


def hear(heard: list[str], name: str) -> bool:
    heard.append(name)
    return True


# -- futures --------------------------------------------------------------------------------------------------------------------


def test_putf_keeps_the_order_of_puts():
    """What a rank put in the background and otherwise comes in the order of the calls."""
    with channel_of(2, 2, "q", LAST, consumers="host") as channel:
        if RANK == LAST:
            futures = [channel.putf((RANK, number)) for number in range(9)]
            seen = [tuple(channel.take()) for _ in range(12 * SIZE - 3)]
            for rank in ALL - {LAST}:
                assert [number for producer, number in seen if producer == rank] == list(range(12))
            assert [number for producer, number in seen if producer == LAST] == list(range(9))
        else:
            futures = [channel.putf((RANK, number)) for number in range(9)]
            channel.put((RANK, 9))
            channel.put_many([(RANK, 10), (RANK, 11)])
        assert [result_of(future) for future in futures] == [None] * 9
        COMM.Barrier()


def test_takef_keeps_the_order_of_takes():
    """The futures of a rank get the messages in the order in which they were asked for; a take comes after them."""
    with channel_of(4, 1, "q", producers="host") as channel:
        futures = [channel.takef() for _ in range(5)]
        if RANK == 0:
            channel.putf((-1,))
            for number in range(7 * SIZE):
                channel.putf((number,))
        numbers = [result_of(future)[0] for future in futures[:1]]
        numbers += [channel.take()[0], channel.take()[0]]
        numbers[1:1] = [result_of(future)[0] for future in futures[1:]]
        assert numbers == sorted(numbers)
        COMM.Barrier()


def test_a_waiting_takef_does_not_hold_up_a_putf():
    """With all ranks' takes waiting, each rank's puts go through, and serve them."""
    with channel_of(1, 1) as channel:
        taking = [channel.takef() for _ in range(3)]
        until(lambda: RANK in asleep(channel, "take"))
        COMM.Barrier()
        putting = [channel.putf((RANK,)) for _ in range(3)]
        assert [result_of(future) for future in putting] == [None] * 3
        taken = [result_of(future)[0] for future in taking]
        assert sorted(rank for part in COMM.allgather(taken) for rank in part) == sorted([*ALL] * 3)


def test_a_putf_that_waits_does_not_hold_up_a_take():
    """With the channel full and more on its way, a take gets through."""
    with channel_of(1, 1) as channel:
        putting = [channel.putf((RANK,)) for _ in range(3)]
        taken = [channel.take()[0] for _ in range(3)]
        assert [result_of(future) for future in putting] == [None] * 3
        assert sorted(rank for part in COMM.allgather(taken) for rank in part) == sorted([*ALL] * 3)


def test_a_takef_that_waits_can_be_cancelled_and_takes_nothing():
    """The first, which waits, and one behind it are cancelled; the one between them gets the message."""
    with channel_of(1, 1) as channel:
        first, second, third = (channel.takef() for _ in range(3))
        until(lambda: RANK in asleep(channel, "take"))
        assert third.cancel()
        assert first.cancel()
        COMM.Barrier()
        channel.put((RANK,))
        assert result_of(second)[0] in ALL
        for future in (first, third):
            assert future.cancelled()
            with pytest.raises(CancelledError):
                future.result()
        COMM.Barrier()
        still_works(channel)


def test_a_putf_that_waits_can_be_cancelled_and_puts_nothing():
    """With the channel full, the first of three is cancelled, and the last; the one between them is put."""
    with channel_of(1, 1) as channel:
        if RANK == 0:
            channel.put((-1,))
        COMM.Barrier()
        first, second, third = (channel.putf((number * 100 + RANK,)) for number in (1, 2, 3))
        until(lambda: RANK in asleep(channel, "put"))
        assert first.cancel()
        assert third.cancel()
        COMM.Barrier()
        taken = [channel.take()[0]]
        result_of(second)
        COMM.Barrier()
        if RANK == 0:
            taken.append(channel.take()[0])
        everything = sorted(number for part in COMM.allgather(taken) for number in part)
        assert everything == [-1, *(200 + rank for rank in range(SIZE))]
        still_works(channel)


def test_what_is_done_can_not_be_cancelled():
    """A future whose message is put, or taken, says that it is too late."""
    with channel_of(SIZE, 1) as channel:
        put = channel.putf((RANK,))
        result_of(put)
        taken = channel.takef()
        assert result_of(taken)[0] in ALL
        assert not put.cancel()
        assert not taken.cancel()
        COMM.Barrier()
        still_works(channel)


def test_futures_that_are_cancelled_at_random_neither_lose_nor_double_a_message():
    """Exactly those messages arrive whose putf was not cancelled, at those takefs that were not."""
    with channel_of(2, 2, "q") as channel:
        puts = [channel.putf((RANK, number)) for number in range(200)]
        takes = [channel.takef() for _ in range(200)]
        for future in puts[1::3] + takes[::2]:
            future.cancel()
        kept = sum(not future.cancelled() for future in puts)
        asked = sum(not future.cancelled() for future in takes)
        missing = COMM.allreduce(kept) - COMM.allreduce(asked)
        if RANK == 0:
            more = [channel.takef() if missing > 0 else channel.putf((SIZE, number)) for number in range(abs(missing))]
            (takes if missing > 0 else puts).extend(more)
        taken = [tuple(result_of(future)) for future in takes if not future.cancelled()]
        put = [(RANK, number) for number, future in enumerate(puts[:200]) if not future.cancelled()]
        put += [(SIZE, number) for number in range(len(puts) - 200)]
        assert sorted(m for part in COMM.allgather(taken) for m in part) == sorted(m for part in COMM.allgather(put) for m in part)
        still_works(channel, lambda number: (number, 0))


def test_a_take_with_a_timeout_behind_a_waiting_takef_gives_up_in_time():
    """take, take_many and put queue up behind futures, and leave the queue when their time is over."""
    with channel_of(1, 1) as channel:
        waiting = channel.takef()
        with pytest.raises(TimeoutError):
            channel.take(0.02)
        with pytest.raises(TimeoutError):
            channel.take_many(2, 0.02)
        with pytest.raises(ChannelEmpty, match="other takes of this rank are waiting"):
            channel.take_nowait()
        COMM.Barrier()
        channel.put((RANK,))
        assert result_of(waiting)[0] in ALL
        COMM.Barrier()
        still_works(channel)


def test_a_put_with_a_timeout_behind_a_waiting_putf_gives_up_in_time():
    """The message of the put that gave up never arrives, that of the future does."""
    with channel_of(SIZE, 1) as channel:
        channel.put((RANK,))
        COMM.Barrier()
        waiting = channel.putf((10 + RANK,))
        with pytest.raises(TimeoutError):
            channel.put((-1,), 0.02)
        with pytest.raises(IncompletePut, match="only 0 of 2"):
            channel.put_many([(-2,), (-3,)], 0.02)
        with pytest.raises(ChannelFull, match="other puts of this rank are waiting"):
            channel.put_nowait((-4,))
        COMM.Barrier()
        taken = [channel.take()[0], channel.take()[0]]
        result_of(waiting)
        assert sorted(n for part in COMM.allgather(taken) for n in part) == [*range(SIZE), *range(10, 10 + SIZE)]
        still_works(channel)


# -- closed ---------------------------------------------------------------------------------------------------------------------


@every_host
@every_rank
def test_after_close_nothing_can_be_put_and_the_rest_is_taken(host, actor):
    """Any rank may close, and again; every put raises ChannelClosed on every rank; take gives what is there and then None."""
    with channel_of(SIZE, 1, host=host) as channel:
        channel.put((RANK,))
        COMM.Barrier()
        if actor == RANK:
            channel.close()
            channel.close()
        COMM.Barrier()
        for put in (channel.put, channel.put_nowait, lambda message: channel.put_many([message])):
            with pytest.raises(ChannelClosed, match="takes no more messages"):
                put((-1,))
        with pytest.raises(ChannelClosed):
            result_of(channel.putf((-1,)))
        channel.close()
        assert channel.statistics().closed
        taken = [message[0] for message in channel]
        assert sorted(rank for part in COMM.allgather(taken) for rank in part) == sorted(ALL)
        assert channel.take() is None
        assert channel.take_nowait() is None
        assert channel.take_many(2) == []
        assert result_of(channel.takef()) is None


@every_rank
def test_close_ends_the_waiting_of_takers(actor):
    """One rank closes when the others, and a thread of its own, sleep in take: all get None."""
    with channel_of(2, 1) as channel, threads() as pool:
        taking = pool.submit(channel.take)
        if actor == RANK:
            until(lambda: asleep(channel, "take") == ALL)
            channel.close()
        assert result_of(taking) is None


@every_rank
def test_close_ends_the_waiting_of_putters(actor):
    """One rank closes when the others, and a thread of its own, sleep in put: all get ChannelClosed, and have put nothing."""
    with channel_of(1, 1) as channel, threads() as pool:
        if actor == RANK:
            channel.put((7,))
        COMM.Barrier()
        putting = pool.submit(channel.put, (8,))
        if actor == RANK:
            until(lambda: asleep(channel, "put") == ALL)
            channel.close()
        with pytest.raises(ChannelClosed):
            result_of(putting)
        COMM.Barrier()
        assert [message[0] for part in COMM.allgather(list(channel)) for message in part] == [7]


def test_close_lets_a_message_that_has_begun_come_to_its_end():
    """A long message is half way through when the channel is closed: it arrives whole, and is the last."""
    with channel_of(2, 64, object) as channel, threads() as pool:
        if RANK == 0:
            putting = pool.submit(channel.put, b"x" * 50_000)
            until(lambda: channel.statistics().put == 1)
        COMM.Barrier()
        if RANK == LAST:
            channel.close()
        COMM.Barrier()
        taken = [message for part in COMM.allgather(list(channel)) for message in part]
        assert taken == [b"x" * 50_000]
        if RANK == 0:
            result_of(putting)


def test_close_by_one_of_many_putters_loses_nothing_that_was_put():
    """All ranks put until the channel is closed under them: what their puts said was put arrives, and no more."""
    with channel_of(3, 2, "q") as channel, threads() as pool:
        taking = pool.submit(lambda: [tuple(message) for message in channel])
        put = []
        with pytest.raises(ChannelClosed):
            for number in range(100_000):
                channel.put((RANK, number))
                put.append((RANK, number))
                if RANK == LAST and number == 200:
                    channel.close()
        taken = result_of(taking)
        assert sorted(m for part in COMM.allgather(taken) for m in part) == sorted(m for part in COMM.allgather(put) for m in part)


@every_host
def test_the_host_closes_a_channel_in_which_it_alone_puts(host):
    """With producers="host" all that was put before arrives, then None; in the middle of its own put, too."""
    with channel_of(2, 1, "q", host, producers="host") as channel, threads() as pool:
        if RANK == host:
            channel.put_many([(1,), (2,)])
            putting = pool.submit(channel.put, (3,))
            until(lambda: host in asleep(channel, "put"))
            channel.close()
            with pytest.raises(ChannelClosed):
                result_of(putting)
        COMM.Barrier()
        assert sorted(m[0] for part in COMM.allgather(list(channel)) for m in part) == [1, 2]


# -- freed ----------------------------------------------------------------------------------------------------------------------


def test_after_free_every_operation_says_so():
    """ChannelClosed for each, but a second free does nothing."""
    channel = RemoteChannel(2, 1)
    channel.putf((1,)).result()
    channel.takef().result()
    channel.free()
    channel.free()
    operations = [
        lambda: channel.put((1,)),
        lambda: channel.put_nowait((1,)),
        lambda: channel.putf((1,)),
        lambda: channel.put_many([(1,)]),
        channel.take,
        channel.take_nowait,
        channel.takef,
        lambda: channel.take_many(1),
        lambda: next(iter(channel)),
        lambda: channel.claim(1),
        channel.close,
        channel.statistics,
        lambda: len(channel),
        channel.__enter__,
    ]
    for operation in operations:
        with pytest.raises(ChannelClosed, match="freed"):
            operation()
    assert "freed" in repr(channel)


@pytest.mark.parametrize("side", ["put", "take"])
@pytest.mark.parametrize("way", ["blocking", "future"])
def test_free_ends_the_waiting_of_threads(side, way):
    """A thread of each rank that waits in put or take, or behind a future, gets ChannelClosed."""
    channel = RemoteChannel(1, 1)
    with threads() as pool:
        if side == "put":
            if RANK == 0:
                channel.put((0,))
            COMM.Barrier()
            futures = [pool.submit(channel.put, (1,))] if way == "blocking" else [channel.putf((n,)) for n in (1, 2)]
        else:
            futures = [pool.submit(channel.take)] if way == "blocking" else [channel.takef() for _ in (1, 2)]
        until(lambda: RANK in asleep(channel, side))
        channel.free()
        for future in futures:
            with pytest.raises(ChannelClosed, match="freed"):
                result_of(future)


class LateTurn:
    """A lock that other threads than the main one get late."""

    def __init__(self, now: Event) -> None:
        self._lock = threading.Lock()
        self._now = now

    def acquire(self, blocking: bool = True, timeout: float = -1) -> Any:
        assert current_thread() is main_thread() or self._now.wait()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.parametrize("operation", ["put", "put_many", "take", "take_many", "claim", "statistics"])
def test_a_thread_that_has_its_turn_after_free_leaves_the_memory_alone(operation):
    """A thread that waited for another one of its rank gets ChannelClosed."""
    channel = RemoteChannel(4, 64, object)
    now = Event()
    channel._puts.lock, channel._takes.lock, channel._aside_lock = LateTurn(now), LateTurn(now), LateTurn(now)
    arguments = {"put": (b"x" * 150,), "put_many": ([1, 2],), "take_many": (2,), "claim": (1,)}.get(operation, ())
    with threads() as pool:
        future = pool.submit(getattr(channel, operation), *arguments)
        until(future.running)
        channel.free()
        now.set()
        with pytest.raises(ChannelClosed, match="freed"):
            result_of(future)


def test_with_frees_the_channel():
    """At the end of the block the channel is freed."""
    with RemoteChannel(SIZE, 1) as channel:
        channel.put((RANK,))
        assert channel.take()[0] in ALL
    with pytest.raises(ChannelClosed, match="freed"):
        len(channel)


@needs_two
@every_rank
def test_an_error_on_one_rank_in_a_with_block_ends_the_waiting_of_the_others(actor):
    """The block closes the channel before it is freed, so that no rank waits for the one that failed; the error is kept."""

    def block() -> None:
        with RemoteChannel(1, 1) as channel:
            if actor == RANK:
                until(lambda: asleep(channel, "take") == ALL - {actor})
                raise ZeroDivisionError
            assert channel.take() is None

    if actor == RANK:
        with pytest.raises(ZeroDivisionError):
            block()
    else:
        block()


def test_an_error_on_every_rank_in_a_with_block_is_kept():
    """Each rank's own error is raised, and the channel is freed."""
    channel = None

    def block() -> None:
        nonlocal channel
        with RemoteChannel(1, 1, "q", LAST, producers="host") as channel:
            raise KeyError(RANK)

    with pytest.raises(KeyError, match=str(RANK)):
        block()
    with pytest.raises(ChannelClosed):
        channel.take()

"""The channel over real windows: what goes in comes out, once, in order, of every dtype, by way of every host."""

import hashlib
import random
from array import array

import numpy as np
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
    exchange,
    in_turn,
    result_of,
    still_works,
    threads,
    until,
)

TYPECODES = "bBhHiIlLqQfd"
NUMPY_TYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8", "c16"]


# -- the seed's words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("put", ["put", "putf"])
def test_work_and_results_flow_as_in_the_seeds_example(put):
    """Rank 0 puts work, the others take it until None and put results, rank 0 takes these until None. One rank does both."""
    tasks = 200
    with channel_of(tasks if put == "put" else 8, 1) as work, channel_of(tasks, 2) as results:
        work.claim(tasks)
        results.claim(tasks)
        if RANK == 0:
            for number in range(tasks):
                getattr(work, put)((number,))
        if RANK > 0 or SIZE == 1:
            while (message := work.take()) is not None:
                getattr(results, put)((message[0], message[0] ** 2))
        if RANK == 0:
            found = [tuple(message) for message in iter(results.take, None)]
            assert sorted(found) == [(number, number**2) for number in range(tasks)]
        COMM.Barrier()


def test_a_scalar_is_a_message_of_one_element():
    """What was put as (value,) is taken as something whose first element is the value."""
    with channel_of(SIZE, 1) as channel:
        assert sorted(message[0] for message in exchange(channel, (0.5 + RANK,))) == [0.5 + rank for rank in range(SIZE)]


def test_a_short_message_keeps_its_length():
    """A message may be shorter than message_size, and empty, and is taken as long as it was put."""
    with channel_of(4, 8) as channel:
        for length in (8, 0, 3, 1, 7):
            taken = exchange(channel, range(RANK, RANK + length))
            assert sorted(map(list, taken)) == [list(range(rank, rank + length)) if length else [] for rank in range(SIZE)]


def test_take_gives_none_once_as_many_were_taken_as_were_claimed():
    """All ranks together take what was claimed, each then gets None, and again None."""
    with channel_of(3, 1) as channel:
        channel.claim(5)
        if RANK == LAST:
            futures = [channel.putf((number,)) for number in range(5)]
        taken = list(iter(channel.take, None))
        assert sorted(message[0] for part in COMM.allgather(taken) for message in part) == [0, 1, 2, 3, 4]
        assert channel.take() is None
        assert channel.take_nowait() is None
        assert channel.take_many(3) == []
        assert result_of(channel.takef()) is None
        if RANK == LAST:
            assert [result_of(future) for future in futures] == [None] * 5
        still_works(channel)


def test_claims_add_up():
    """claim says how many more messages will come."""
    with channel_of(4 * SIZE, 1) as channel:
        for share in (0, 1, 2):
            channel.claim(share * SIZE)
        for _ in range(3):
            channel.put((RANK,))
        assert len([message for part in COMM.allgather(list(channel)) for message in part]) == 3 * SIZE
        assert channel.statistics().claimed == 3 * SIZE


def test_a_rank_that_has_claimed_never_sees_the_end_before_the_hosts_claim_is_there():
    """With everything taken that the host has claimed so far, the others' own claims keep them waiting for its next."""
    with channel_of(SIZE, 1) as channel:
        for _ in range(30):
            if RANK == 0:
                until(lambda: asleep(channel, "take") == set(range(1, SIZE)))
            channel.claim(SIZE)
            if RANK == 0:
                for number in range(SIZE):
                    channel.put((number,))
            assert channel.take() is not None
            COMM.Barrier()


@every_host
def test_only_the_hosts_claims_count(host):
    """Where every rank claims, the messages are claimed once, not once a rank."""
    with channel_of(2, 1, host=host) as channel:
        channel.claim(2)
        COMM.Barrier()
        assert channel.statistics().claimed == 2


def test_more_may_be_put_than_was_claimed():
    """What comes after the claimed messages stays in the channel until it is claimed, too."""
    with channel_of(2 * SIZE, 1) as channel:
        channel.claim(SIZE)
        COMM.Barrier()
        channel.put((RANK,))
        channel.put((RANK,))
        COMM.Barrier()
        first = COMM.allreduce(len(list(channel)))
        channel.claim(SIZE)
        COMM.Barrier()
        second = COMM.allreduce(len(list(channel)))
        assert (first, second) == (SIZE, SIZE)


# -- every dtype ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typecode", TYPECODES)
def test_numbers_of_every_typecode_are_taken_as_arrays(typecode):
    """An array's smallest and largest numbers arrive unchanged, in an array of the same typecode."""
    bits = 8 * array(typecode).itemsize
    low, high = (0, 2**bits - 1) if typecode.isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    extremes = [-1.5, float("inf")] if typecode in "fd" else [low, high]
    with channel_of(2, 4, typecode) as channel:
        for message in exchange(channel, [RANK, *extremes]):
            assert isinstance(message, array)
            assert message.typecode == typecode
            assert list(message[1:]) == extremes
        assert {message[0] for message in exchange(channel, array(typecode, [RANK]))} == set(range(SIZE))
        assert {message[0] for message in exchange(channel, np.array([RANK], typecode))} == set(range(SIZE))


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_numbers_of_every_numpy_dtype_are_taken_as_ndarrays(dtype):
    """An array arrives as a writable one of the same dtype that owns its memory, or is its only user."""
    values = np.arange(5).astype(dtype)
    with channel_of(2, 5, np.dtype(dtype)) as channel:
        for message in exchange(channel, values[RANK % 5 :]):
            assert message.dtype == np.dtype(dtype)
            assert message.tolist() == values[5 - len(message) :].tolist()
        for message in exchange(channel, values[::2]):
            assert message.tolist() == values[::2].tolist()
        own = exchange(channel, values)[RANK]
        own[:] = 0


def test_bytes_are_taken_as_bytes():
    """Bytes, bytearrays, memoryviews and arrays may be put; bytes of the same content are taken."""
    with channel_of(2, 16, bytes) as channel:
        for message in (b"", b"\0\1\xff", bytearray(b"0123456789abcdef"), memoryview(b"abcdef")[::2], array("H", [1, 2])):
            expected = bytes(memoryview(message))
            assert [type(taken) for taken in exchange(channel, message)] == [bytes] * SIZE
            assert exchange(channel, message) == [expected] * SIZE


def test_objects_of_any_size_are_taken_as_equals():
    """Nothing, containers, text, lambdas and arrays go through slots of 64 bytes."""
    with channel_of(3, 64, object) as channel:
        for message in (None, 0, "", [1, {"a": (2.5, None)}], "x" * 1000, bytes(range(256)) * 1000):
            assert exchange(channel, message) == [message] * SIZE
        put = channel.putf(lambda x: x + RANK)
        # Not allreduce: mpi4py's first one on a communicator keeps the GIL until all ranks have come, and putf needs it.
        assert sum(COMM.allgather(channel.take()(1))) == SIZE + SIZE * LAST // 2
        result_of(put)
        numbers = np.arange(20_000.0).reshape(100, -1)
        assert all((taken == numbers).all() for taken in exchange(channel, numbers))


@every_host
def test_40_mb_go_through_eight_slots_of_4_kib(host):
    """A message longer than the whole ring flows through it; another follows it unharmed."""
    with channel_of(8, 4096, object, host) as channel:
        big = random.Random(1).randbytes(40 << 20) if RANK in (0, LAST) else b""
        if RANK == 0:
            futures = [channel.putf(big), channel.putf("small")]
        if RANK == LAST:
            assert hashlib.sha256(channel.take()).digest() == hashlib.sha256(big).digest()
            assert channel.take() == "small"
        if RANK == 0:
            assert [result_of(future) for future in futures] == [None, None]
        still_works(channel)


def test_long_messages_of_all_ranks_at_once_do_not_mix():
    """Every rank puts objects of many slots while every rank takes: each arrives whole, those of one rank in order."""
    with channel_of(4, 128, object) as channel, threads() as pool:
        put = pool.submit(lambda: [channel.put((RANK, number, bytes([RANK]) * (number * 97))) for number in range(40)])
        taken = [channel.take() for _ in range(40)]
        result_of(put)
        for rank, number, content in taken:
            assert content == bytes([rank]) * (number * 97)
        check_order([(rank, number) for rank, number, _ in taken])
        assert sorted(m[:2] for part in COMM.allgather(taken) for m in part) == [(r, n) for r in range(SIZE) for n in range(40)]


# -- every host, every communicator ---------------------------------------------------------------------------------------------


@every_host
@pytest.mark.parametrize("dtype", ["d", object])
def test_every_rank_may_be_the_host(host, dtype):
    """On whichever rank the memory is: every rank puts and takes, the host too."""
    with channel_of(2, 16, dtype, host=host) as channel:
        for _ in range(10):
            assert sorted(m[0] for m in exchange(channel, (RANK,))) == list(range(SIZE))


@every_host
@pytest.mark.parametrize("buff_size", [1, 2, 7])
def test_every_rank_puts_and_takes_at_once(host, buff_size):
    """No message is lost, doubled or changed, and those of one producer come in order for one consumer."""
    each = 150
    with channel_of(buff_size, 3, "q", host) as channel, threads() as pool:
        taking = pool.submit(lambda: [tuple(message) for message in channel])
        for number in range(each):
            channel.put((RANK, number, hash((RANK, number))))
        COMM.Barrier()
        if RANK == LAST:
            channel.close()
        taken = result_of(taking)
        check_order([(rank, number) for rank, number, _ in taken])
        expected = [(rank, number, hash((rank, number))) for rank in range(SIZE) for number in range(each)]
        assert sorted(message for part in COMM.allgather(taken) for message in part) == expected


def test_several_threads_of_a_rank_put_and_take_at_once():
    """Four threads put and four take on every rank: nothing is lost or doubled."""
    each = 60
    with channel_of(5, 3, "q") as channel, threads(8) as pool:
        taking = [pool.submit(lambda: [tuple(message) for message in channel]) for _ in range(4)]
        putting = [pool.submit(lambda t=t: [channel.put((RANK, t, n)) for n in range(each)]) for t in range(4)]
        for future in putting:
            result_of(future)
        COMM.Barrier()
        if RANK == 0:
            channel.close()
        taken = [result_of(future) for future in taking]
        for part in taken:
            check_order([((rank, thread), number) for rank, thread, number in part])
        everything = sorted(m for parts in COMM.allgather(taken) for part in parts for m in part)
        assert everything == [(rank, thread, number) for rank in range(SIZE) for thread in range(4) for number in range(each)]


def test_channels_of_sub_communicators_do_not_meet():
    """The halves of the world and each rank for itself have channels of their own, with the communicator's ranks."""
    half = COMM.Split(RANK % 2, key=-RANK)
    alone = COMM.Split(RANK)
    with channel_of(2, 2, "i", half.size - 1, comm=half) as ours, channel_of(1, 2, "i", comm=alone) as mine:
        mine.put((RANK, -1))
        ours.put((RANK % 2, RANK))
        got = half.allgather(list(ours.take()))
        assert sorted(got) == [[RANK % 2, rank] for rank in range(RANK % 2, SIZE, 2)]
        assert list(mine.take()) == [RANK, -1]
    half.Free()
    alone.Free()


def test_several_channels_at_once_do_not_meet():
    """Channels of different hosts, sizes and dtypes are used side by side."""
    with (
        channel_of(1, 1) as first,
        channel_of(5, 4, "i", LAST) as second,
        channel_of(3, 64, object) as third,
        channel_of(3, 9, bytes) as fourth,
    ):
        for number in range(10):
            assert {tuple(m) for m in exchange(first, (number,))} == {(number,)}
            assert {tuple(m) for m in exchange(second, (number, 1))} == {(number, 1)}
            assert exchange(third, {number: "x" * 500}) == [{number: "x" * 500}] * SIZE
            assert exchange(fourth, b"%d" % number) == [b"%d" % number] * SIZE


def test_channels_are_made_and_freed_one_after_another():
    """A freed channel leaves nothing behind that the next one trips over."""
    for number in range(10):
        with channel_of(1, 1, host=number % SIZE) as channel:
            assert {m[0] for m in exchange(channel, (number,))} == {number}


# -- an end that the host has for itself ----------------------------------------------------------------------------------------


@every_host
@pytest.mark.parametrize("dtype", ["q", object])
def test_the_host_alone_may_produce(host, dtype):
    """With producers="host" the host puts all, in every way, and every rank takes."""
    with channel_of(3, 32, dtype, host, producers="host") as channel:
        if RANK == host:
            futures = [channel.putf((number,)) for number in range(30 * SIZE)]
        taken = [channel.take()[0] for _ in range(30)]
        assert taken == sorted(taken)
        assert sorted(number for part in COMM.allgather(taken) for number in part) == list(range(30 * SIZE))
        if RANK == host:
            assert [result_of(future) for future in futures] == [None] * 30 * SIZE
            channel.put_many([(51,)])
            channel.put_nowait((52,))
            channel.put((53,))
            channel.close()
        rest = [message[0] for message in channel]
        assert sorted(number for part in COMM.allgather(rest) for number in part) == [51, 52, 53]


@every_host
@pytest.mark.parametrize("dtype", ["q", object])
def test_the_host_alone_may_consume(host, dtype):
    """With consumers="host" every rank puts, and the host takes all, in every way; those of one rank in order."""
    with channel_of(3, 32, dtype, host, consumers="host") as channel, threads() as pool:
        putting = pool.submit(lambda: [channel.put((RANK, number)) for number in range(40)])
        if RANK == host:
            taken = [tuple(channel.take()) for _ in range(10)]
            taken += [tuple(result_of(channel.takef())) for _ in range(10)]
            while len(taken) < 40 * SIZE:
                taken += map(tuple, channel.take_many(7))
            check_order(taken)
            assert sorted(taken) == [(rank, number) for rank in range(SIZE) for number in range(40)]
        result_of(putting)


@every_host
def test_the_host_alone_may_do_both(host):
    """With both ends the host's own, its threads put and take; no other rank can."""
    with channel_of(2, 1, "q", host, producers="host", consumers="host") as channel, threads() as pool:
        if RANK == host:
            putting = pool.submit(lambda: [channel.put((number,)) for number in range(200)])
            assert [channel.take()[0] for _ in range(200)] == list(range(200))
            result_of(putting)
        COMM.Barrier()


@every_rank
def test_the_others_may_not_use_an_end_that_the_host_has_for_itself(actor):
    """Each operation of the host's end is a ValueError elsewhere that names the ranks, and changes nothing."""
    with (
        channel_of(2, 1, "q", actor, producers="host") as channel,
        channel_of(SIZE, 1, "q", actor, consumers="host") as other,
    ):
        if RANK != actor:
            puts = [lambda: channel.put((1,)), lambda: channel.put_nowait((1,)), lambda: channel.putf((1,)), channel.close]
            puts.append(lambda: channel.put_many([(1,)]))
            takes = [other.take, other.take_nowait, other.takef, lambda: other.take_many(1), lambda: next(iter(other))]
            for operation in puts + takes:
                with pytest.raises(ValueError, match=f"rank {actor} may .*, rank {RANK} may not"):
                    operation()
        COMM.Barrier()
        assert (len(channel), len(other)) == (0, 0)
        COMM.Barrier()
        if RANK == actor:
            channel.put((7,))
            assert channel.take() == array("q", [7])
        other.put((RANK,))
        if RANK == actor:
            assert sorted(other.take()[0] for _ in range(SIZE)) == list(range(SIZE))


# -- many at a time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "buff_size"), [("q", 5), ("q", 1000), (object, 5), (object, 1000)])
def test_many_at_a_time_are_put_and_taken_in_order(dtype, buff_size):
    """put_many and take_many carry what put and take do, through rings smaller and larger than a batch."""
    with channel_of(buff_size, 64, dtype) as channel, threads() as pool:
        putting = pool.submit(channel.put_many, [(RANK, number) for number in range(700)])
        taken = []
        sizes = set()
        while len(taken) < 700:
            some = channel.take_many(min(700 - len(taken), 300))
            sizes.add(len(some))
            taken += map(tuple, some)
        result_of(putting)
        assert 0 not in sizes
        check_order(taken)
        assert sorted(m for part in COMM.allgather(taken) for m in part) == [(r, n) for r in range(SIZE) for n in range(700)]


def test_many_objects_of_all_sizes_are_put_at_a_time():
    """A batch may hold messages of less than a slot, of several, and of more than the ring has."""
    with channel_of(6, 100, object) as channel, threads() as pool:
        sizes = [0, 50, 1, 250, 3, 2000, 80, 599, 0, 10_000, 5]
        putting = pool.submit(channel.put_many, [(RANK, n, b"x" * size) for n, size in enumerate(sizes)])
        taken = []
        while len(taken) < len(sizes):
            taken += channel.take_many(len(sizes) - len(taken))
        result_of(putting)
        check_order([(rank, number) for rank, number, _ in taken])
        assert all(content == b"x" * sizes[number] for _, number, content in taken)
        still_works(channel)


def test_nothing_is_as_well_put_many_at_a_time():
    """put_many of no messages puts none."""
    with channel_of(1, 1) as channel:
        channel.put_many([])
        channel.put_many(iter(()), timeout=0)
        still_works(channel)


def test_a_for_loop_takes_until_the_end():
    """Iterating over the channel takes messages, None among them, until none will come any more."""
    with channel_of(4, 64, object) as channel:
        if RANK == 0:
            for message in (None, 1, None, 2, None, 3):
                channel.putf(message)
        if RANK == LAST:
            channel_messages = []
            for message in channel:
                channel_messages.append(message)
                if message == 3:
                    channel.close()
            assert channel_messages == [None, 1, None, 2, None, 3]
        COMM.Barrier()


# -- what the channel says of itself --------------------------------------------------------------------------------------------


def test_len_and_statistics_count_messages():
    """They tell how many messages were put, taken and claimed, and are in the channel."""
    with channel_of(4 * SIZE, 1) as channel:
        in_turn(lambda: channel.put_many([(RANK,)] * 3))
        assert len(channel) == 3 * SIZE
        seen = channel.statistics()
        assert (seen.put, seen.taken, seen.claimed, seen.waiting) == (3 * SIZE, 0, None, 3 * SIZE)
        assert (seen.slots, seen.closed) == (4 * SIZE, False)
        COMM.Barrier()
        channel.take()
        channel.claim(7)
        COMM.Barrier()
        seen = channel.statistics()
        assert (seen.put, seen.taken, seen.claimed, seen.waiting) == (3 * SIZE, SIZE, 7, 2 * SIZE)
        assert f"{2 * SIZE} messages in {4 * SIZE} slots" in repr(channel)
        COMM.Barrier()


def test_statistics_may_be_asked_for_while_put_and_take_wait():
    """The counts, len and claim don't wait for a blocked put or take of the same rank."""
    with channel_of(1, 1) as channel, threads() as pool:
        taking = pool.submit(channel.take)
        until(lambda: RANK in asleep(channel, "take"))
        assert channel.statistics().waiting == len(channel) == 0
        COMM.Barrier()
        channel.put((RANK,))
        assert 0 <= result_of(taking)[0] < SIZE


# -- a while of everything ------------------------------------------------------------------------------------------------------


@every_host
def test_random_objects_by_all_ranks_arrive_unharmed(host):
    """Objects of 0 bytes to 1 MB, put by all and taken by all in all ways: every hash is right, every producer's order kept."""
    dice = random.Random(1000 * host + RANK)
    sizes = [dice.choice([0, 1, 100, 5_000, 60_000, 300_000, 1_000_000]) * dice.randint(1, 10) // 10 for _ in range(40)]
    with channel_of(16, 8192, object, host) as channel, threads() as pool:
        taking = pool.submit(take_in_all_ways, channel, random.Random(RANK))
        for number, size in enumerate(sizes):
            content = dice.randbytes(size)
            message = (RANK, number, hashlib.sha256(content).digest(), content)
            dice.choice([channel.put, channel.putf, lambda m: channel.put_many([m])])(message)
        channel.put((RANK, len(sizes), hashlib.sha256(b"").digest(), b""))
        COMM.Barrier()
        if RANK == LAST:
            channel.close()
        taken = result_of(taking)
        check_order(taken)
        expected = [(rank, number) for rank in range(SIZE) for number in range(len(sizes) + 1)]
        assert sorted(message for part in COMM.allgather(taken) for message in part) == expected
        assert channel.statistics().waiting == 0


def take_in_all_ways(channel, dice):
    """Take until the end; return which rank put what."""
    found = []
    ways = [lambda: [channel.take()], lambda: channel.take_many(3), lambda: [channel.takef().result()]]
    while (some := dice.choice(ways)()) and some != [None]:
        for rank, number, digest, content in some:
            assert hashlib.sha256(content).digest() == digest
            found.append((rank, number))
    return found


def check_order(taken):
    """See that each producer's messages came in the order in which it put them."""
    last = {}
    for producer, number in taken:
        assert last.get(producer, -1) < number, f"{producer} put {number} before {last[producer]}"
        last[producer] = number

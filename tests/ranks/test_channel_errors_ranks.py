"""The channel over real windows: what is refused, on which ranks, in which words; and afterwards it works."""

from array import array

import numpy as np
import pytest
from together import COMM, LAST, RANK, SIZE, channel_of, needs_two, still_works

from mpiexecutor._rma.window import _RemoteMemory
from mpiexecutor.channel import ChannelBroken, ChannelMemoryError, RemoteChannel
from mpiexecutor.channel._ring.consumer import Consumer


class Unpicklable:
    def __reduce__(self):
        raise ZeroDivisionError("not to be pickled")


# -- what makes no channel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((0, 1), r"buff_size is the number of messages .*not 0"),
        ((-3, 1), r"buff_size is the number of messages .*not -3"),
        ((1 << 40, 1), r"buff_size is the number of messages .*not 1099511627776"),
        ((1.5, 1), r"buff_size is a whole number, not 1\.5"),
        (("3", 1), r"buff_size is a whole number, not '3'"),
        ((True, 1), r"buff_size is a whole number, not True"),
        ((1, 0), r"message_size is the most elements of a message, at least 1, not 0"),
        ((1, -1, object), r"message_size is the most elements .*not -1"),
        ((1, None), r"message_size is a whole number, not None"),
        ((1, 1, "d", -1), r"host is a rank of the communicator, 0 to \d+, not -1"),
        ((1, 1, "d", SIZE), rf"host is a rank of the communicator, 0 to {LAST}, not {SIZE}"),
        ((1, 1, "d", 0.0), r"host is a whole number"),
        ((1, 1, "x"), r"dtype 'x' is none of"),
        ((1, 1, "u"), r"dtype 'u' is none of"),
        ((1, 1, "O"), r"dtype 'O' is none of"),
        ((1, 1, dict), r"dtype <class 'dict'> is none of"),
        pytest.param((1, 1, None), r"dtype None is none of", id="none"),
        ((1, 1, np.dtype([("a", "d")])), r"dtype .* is none of"),
        ((1, 1, np.dtype("U3")), r"dtype .* is none of"),
    ],
)
def test_arguments_that_make_no_channel_are_a_value_error_on_every_rank(arguments, rule):
    """The error has the rule as its text, and a channel can be made next."""
    with pytest.raises(ValueError, match=rule):
        RemoteChannel(*arguments)
    with channel_of(2, 1) as channel:
        still_works(channel)


@pytest.mark.parametrize("end", ["producers", "consumers"])
def test_an_end_is_for_any_rank_or_the_host(end):
    """Any other word is a ValueError that names the two."""
    with pytest.raises(ValueError, match=rf"{end} is 'any' or 'host', not 'all'"):
        RemoteChannel(1, 1, **{end: "all"})


@needs_two
@pytest.mark.parametrize(
    "different",
    [
        {"buff_size": 3},
        {"message_size": 2},
        {"dtype": "i"},
        {"dtype": object},
        {"dtype": np.dtype("d")},
        {"host": LAST},
        {"producers": "host"},
        {"consumers": "host"},
    ],
)
def test_unequal_arguments_are_a_value_error_on_every_rank(different):
    """One rank differs: all ranks are told which one, and what it asked for; a channel can be made next."""
    own = {"buff_size": 2, "message_size": 1, "dtype": "d", "host": 0} | (different if RANK == LAST else {})
    with pytest.raises(ValueError, match=rf"the same arguments: rank 0 has .*, rank {LAST} has .*"):
        RemoteChannel(**own)
    with channel_of(2, 1) as channel:
        still_works(channel)


@needs_two
def test_arguments_that_are_wrong_on_one_rank_only_are_a_value_error_on_every_rank():
    """The others are told which rank it is, and the rule."""
    with pytest.raises(ValueError, match=r"buff_size is the number" if RANK == LAST else rf"rank {LAST} .*buff_size is the number"):
        RemoteChannel(0 if RANK == LAST else 2, 1)
    with channel_of(2, 1) as channel:
        still_works(channel)


def test_numpys_whole_numbers_will_do():
    """Sizes that a program has computed with NumPy are as good as Python's own."""
    with channel_of(np.int64(2), np.int32(1), "d", np.int64(LAST)) as channel:
        still_works(channel)


# -- what is no message ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "message", "lengths"),
    [
        ("d", (1, 2, 3, 4, 5), "5 elements.* at most 4"),
        ("b", array("b", range(6)), "6 elements.* at most 4"),
        (np.dtype("f4"), np.zeros(7), "7 elements.* at most 4"),
        (bytes, b"12345", "5 bytes.* at most 4"),
        (bytes, array("i", [1, 2]), "8 bytes.* at most 4"),
    ],
)
def test_an_over_long_message_is_refused_by_both_lengths(dtype, message, lengths):
    """ValueError names its length and the channel's, in every way to put, before anything is reserved."""
    with channel_of(2, 4, dtype) as channel:
        for put in ways_to_put(channel):
            with pytest.raises(ValueError, match=lengths):
                put(message)
        check_untouched(channel, dtype)


@pytest.mark.parametrize("dtype", ["d", np.dtype("i4"), bytes])
@pytest.mark.parametrize("message", [3, 2.5, None, (number for number in (1, 2)), np.array(1.0)])
def test_what_has_no_length_is_a_type_error(dtype, message):
    """A single value has to be wrapped, and a generator to be exhausted first."""
    if dtype is bytes and isinstance(message, np.ndarray):
        pytest.skip("a scalar array has bytes")
    with channel_of(2, 4, dtype) as channel:
        for put in ways_to_put(channel):
            with pytest.raises(TypeError):
                put(message)
        check_untouched(channel, dtype)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("d", "abc"),
        ("d", b"abc"),
        ("d", ["a"]),
        ("d", [None]),
        ("d", [1j]),
        ("i", [1.5]),
        ("i", array("d", [1.5])),
        ("i", [object()]),
        ("d", [[1.0], [2.0]]),
        (np.dtype("d"), ["a"]),
        (np.dtype("d"), "abc"),
        (np.dtype("d"), [1j]),
        (np.dtype("d"), [None]),
        (np.dtype("i4"), [1.5]),
        (np.dtype("i4"), np.array([1.5])),
        (np.dtype("d"), [[1.0], [2.0]]),
        (np.dtype("d"), [[1.0], [2.0, 3.0]]),
        (np.dtype("d"), [object()]),
        (bytes, "abc"),
        (bytes, [1, 2]),
        (bytes, {}),
    ],
)
def test_elements_of_another_type_are_a_type_error(dtype, message):
    """What can't be elements of this channel is refused, in every way to put, before anything is reserved."""
    with channel_of(2, 4, dtype) as channel:
        for put in ways_to_put(channel):
            with pytest.raises(TypeError):
                put(message)
        check_untouched(channel, dtype)


@pytest.mark.parametrize("dtype", ["b", "B", "h", "Q", *map(np.dtype, ("i1", "u1", "i2", "u8"))])
def test_numbers_out_of_range_are_refused(dtype):
    """A whole number that the dtype can't hold is an error, never another number."""
    with channel_of(2, 4, dtype) as channel:
        for put in ways_to_put(channel):
            with pytest.raises((OverflowError, ValueError, TypeError)):
                put([1, 1 << 64])
            with pytest.raises((OverflowError, ValueError, TypeError)):
                put([-1] if str(dtype)[0] in "BQu" else [40_000])
        check_untouched(channel, dtype)


def test_what_can_not_be_pickled_raises_its_own_error():
    """The error of the object's own methods comes out of put, and nothing was put."""
    with channel_of(2, 64, object) as channel:
        for put in ways_to_put(channel):
            with pytest.raises(ZeroDivisionError, match="not to be pickled"):
                put(["x" * 1000, Unpicklable()])
        check_untouched(channel)


def test_an_object_too_long_for_all_slots_that_can_be_numbered_is_refused():
    """Through slots of one byte not even a few megabytes go: ValueError that says what to do."""
    with channel_of(2, 1, object) as channel:
        with pytest.raises(ValueError, match="raise message_size"):
            channel.put(bytes(5 << 20))
        channel_works = channel.putf("x")
        assert channel.take() == "x"
        channel_works.result(30)
        COMM.Barrier()


def test_put_many_of_which_one_is_refused_puts_none():
    """The messages before the wrong one are not put either."""
    with channel_of(9, 1) as channel:
        with pytest.raises(ValueError, match="3 elements"):
            channel.put_many([(1,), (2,), (1, 2, 3)])
        check_untouched(channel)


def test_counts_that_make_no_sense_are_refused():
    """claim takes 0 and up, take_many 1 and up."""
    with channel_of(2, 1) as channel:
        with pytest.raises(ValueError, match="at least 0, not -1"):
            channel.claim(-1)
        with pytest.raises(ValueError, match="at least 1 message, not 0"):
            channel.take_many(0)
        assert channel.statistics().claimed is None
        check_untouched(channel)


def test_garbage_in_the_window_is_an_error_that_names_it():
    """A rank wrote where it may not: nothing of that is unpickled, and the channel works on."""
    with channel_of(2, 256, object) as channel:
        if RANK == LAST:
            channel.put("a message")
            memory = channel._memory()
            memory.write(channel._layout.bytes_at(0), memoryview(b"garbage!" * 8))
            memory.flush()
        COMM.Barrier()
        if RANK == 0:
            with pytest.raises(ChannelBroken, match="a frame begins with .* this one with b'garb"):
                channel.take()
        COMM.Barrier()
        still_works(channel)


@pytest.mark.parametrize(("dtype", "size"), [(object, 5000), (object, 100_000), (bytes, 2000), ("d", 2000)])
def test_a_message_for_which_a_rank_has_no_memory_stays_where_it_is(dtype, size, monkeypatch):
    """It can be taken by another, or by this one once it has memory, or be thrown away; the next one is not touched."""

    def message(number, size=size):
        return [number] * size if dtype == "d" else bytes([number]) * size

    def check_taken(number, size=size):
        assert list(channel.take()) == list(message(number, size))

    with channel_of(40, 256 if dtype is object else size, dtype) as channel, monkeypatch.context() as poor:
        if RANK == 0:
            putting = [channel.putf(message(number)) for number in range(4)] + [channel.putf(message(4, 9))]
            poor.setattr(_RemoteMemory, "allocate", allocate_little)
            check_refused(channel.take, 0)
        COMM.Barrier()
        if RANK == LAST:
            poor.undo()
            check_taken(0)
        COMM.Barrier()
        if RANK == 0:
            poor.undo()
            assert not channel.skip(0)
            check_taken(1)
            poor.setattr(_RemoteMemory, "allocate", allocate_little)
            for number in (2, 3):
                check_refused(lambda: channel.take_many(10), number)
                assert not channel.skip(number + 1)
                if number == 3:
                    check_taken_up_again(channel, number, monkeypatch)
                else:
                    assert channel.skip(number)
                assert not channel.skip(number)
            check_taken(4, 9)
            assert [future.result(30) for future in putting] == [None] * 5
        COMM.Barrier()
    COMM.Barrier()


def check_refused(take, number):
    with pytest.raises(ChannelMemoryError, match=rf"^message {number}, of \d+ bytes, does not fit") as refused:
        take()
    assert refused.value.number == number
    assert refused.value.size > 1000


def check_taken_up_again(channel, number, monkeypatch):
    """A skip that is interrupted when it has claimed the message comes to its end in the next one."""
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(Consumer, "receive", interrupt)
        channel.skip(number)
    assert not channel.skip(number - 1)
    assert channel.skip(number)


def interrupt(*_):
    raise KeyboardInterrupt


def allocate_little(_, size):
    if size > 1000:
        raise MemoryError
    return memoryview(bytearray(size))


def ways_to_put(channel):
    return [channel.put, channel.put_nowait, channel.putf, lambda message: channel.put_many([message])]


def check_untouched(channel, dtype=None):
    """See that nothing was put so far, and that the channel works."""
    COMM.Barrier()
    assert channel.statistics().put == 0
    COMM.Barrier()
    still_works(channel, (lambda number: bytes([number])) if dtype is bytes else (lambda number: (number,)))

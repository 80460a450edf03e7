"""What calls take and give: nested data, arrays of any size, many buffers."""

import array
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import re
import uuid
from dataclasses import dataclass, field

import pytest
from gates import LIMIT, identity

np = pytest.importorskip("numpy")

SIZES = [0, 1, 100, 4 << 10, (64 << 10) - 8, 64 << 10, (64 << 10) + 8, 1 << 20, 5_000_008, 32 << 20]


class Colour(enum.Enum):
    RED = 1


@dataclass
class Tree:
    value: object
    children: list["Tree"] = field(default_factory=list)


Pair = collections.namedtuple("Pair", "left right")


def plus_one(array):
    array += 1  # in place: a worker's argument is its own, and can be written to
    return array


def double(array):
    return array * 2


def zeros(size):
    return np.zeros(size, np.uint8)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        10**1000,
        1.5,
        1j,
        "ünï",
        b"bytes",
        bytearray(b"x"),
        (),
        [[], [1, [2, [3]]]],
        {"a": {"b": {1: (2, 3)}}},
        {1, 2},
        frozenset({1}),
        range(5),
        slice(1, 2),
        Colour.RED,
        Tree(1, [Tree(2), Tree("three", [Tree(None)])]),
        Pair(1, [2]),
        collections.Counter("hello"),
        collections.OrderedDict(b=1, a=2),
        collections.deque([1, 2], 5),
        array.array("d", [1, 2]),
        datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
        decimal.Decimal("0.1"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=5),
        pathlib.PurePosixPath("a/b"),
        re.compile("a+"),
        int,
        len,
        ...,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_all_kinds_there_and_back(executor, value):
    """A value that has been to a worker and back is equal, and of the same type."""
    result = executor.submit(identity, value).result(LIMIT)
    assert result == value
    assert type(result) is type(value)


def test_what_is_one_object_stays_one_object(executor):
    """References inside a call's arguments, cycles too, are kept."""
    shared = [1]
    cycle = [shared, shared]
    cycle.append(cycle)
    result = executor.submit(identity, cycle).result(LIMIT)
    assert result[0] is result[1]
    assert result[2] is result


@pytest.mark.parametrize("size", SIZES)
def test_arrays_of_any_size_there_and_back(executor, size):
    """An array is the worker's own to write to, and so is what comes back; the original is untouched."""
    sent = np.arange(size, dtype=np.uint8)
    result = executor.submit(plus_one, sent).result(LIMIT)
    assert result.dtype == sent.dtype
    assert np.array_equal(result, sent + 1)
    assert size == 0 or sent[0] == 0
    result[:] = 7
    assert (result == 7).all()


@pytest.mark.parametrize("size", SIZES)
def test_arrays_of_any_size_as_results(executor, size):
    """A large result needs no large argument."""
    result = executor.submit(zeros, size).result(LIMIT)
    assert result.nbytes == size
    result += 1
    assert result.sum(dtype=np.int64) == size


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_size_there_and_back(executor, size):
    """Bytes are carried as arrays are."""
    sent = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert executor.submit(identity, sent).result(LIMIT) == sent


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.5),
        np.array(3),
        np.zeros((0, 5)),
        np.asfortranarray(np.arange(40_000.0).reshape(100, 400)),
        np.arange(100_000)[::3],
        np.arange(90_000).reshape(300, 300).T,
        np.array(["a", "bc"]),
        np.array([None, {"a": 1}, [2]], dtype=object),
        np.zeros(10_000, [("x", "f8"), ("y", "i4", 3)]),
        np.array(["2024-02-29"], "datetime64[D]"),
        np.ma.masked_array([1, 2, 3], [0, 1, 0]),
        np.arange(100_000, dtype=">i4"),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.dtype.kind}-{'x'.join(map(str, value.shape))}",
)
def test_arrays_of_all_kinds_there_and_back(executor, value):
    """Shape, type and order of an array are kept."""
    result = executor.submit(identity, value).result(LIMIT)
    assert result.dtype == value.dtype
    assert result.shape == value.shape
    assert repr(result.tolist()) == repr(value.tolist())


def test_a_read_only_array_there_and_back(executor):
    """What could not be written to arrives, whatever may be done with it then."""
    value = np.arange(100_000)
    value.flags.writeable = False
    result = executor.submit(identity, value).result(LIMIT)
    assert np.array_equal(result, value)


def test_many_large_buffers_in_one_call(executor):
    """A call with fifty arrays, some large and some small, keeps them apart."""
    sent = [np.full(1000 + 3000 * number, number, np.float64) for number in range(50)]
    received = executor.submit(identity, sent).result(LIMIT)
    assert all(np.array_equal(one, other) for one, other in zip(sent, received, strict=True))


def test_many_calls_with_large_arguments(executor):
    """Many calls whose data is more than the channels hold at a time, and of different sizes, do not get mixed up."""
    sizes = [(number * 7919) % 300_000 for number in range(120)]
    results = executor.map(double, (np.full(size, number, np.int32) for number, size in enumerate(sizes)), timeout=LIMIT)
    for number, (size, result) in enumerate(zip(sizes, results, strict=True)):
        assert result.shape == (size,)
        assert (result == 2 * number).all()


KEPT: list[np.ndarray] = []


def keep(values):
    """Keep every third argument, change it, and tell whether those from before are as they were left."""
    if values[0] % 3 == 0:
        values[1:] = -values[0]
        KEPT.append(values[: len(values) // 2])
    return all((kept[1:] == -kept[0]).all() for kept in KEPT), values


@pytest.mark.parametrize("length", [60_000, 66_000, 1 << 20], ids=["small", "middle", "large"])
def test_large_arrays_that_are_kept_stay_as_they_are(executor, length):
    """On either side, whole or in part, whatever else comes and goes; the memory is not used for another call meanwhile."""
    kept = []
    for number in range(1, 25):
        sent = np.full(length, number)
        unchanged, result = executor.submit(keep, sent).result(LIMIT)
        assert unchanged
        assert (sent == number).all()
        assert abs(result).sum() == number * length
        if number % 4 == 0:
            result[:] = number
            kept.append((number, result[-100:]))
    assert all((part == number).all() for number, part in kept)


def twice(values):
    return values, values, values.nbytes


def test_one_array_several_times_in_one_result(executor):
    """It is one array there, too."""
    for _ in range(5):
        one, other, size = executor.submit(twice, np.ones(1 << 18)).result(LIMIT)
        assert one is other
        assert (one.sum(), size) == (1 << 18, 1 << 21)


@pytest.mark.parametrize("order", "CF")
def test_large_arrays_in_either_order_again_and_again(executor, order):
    """As large arrays of one kind are sent again and again, they may take another way than the first one."""
    for number in range(6):
        sent = np.asarray(np.arange(1 << 19).reshape(512, 1024) + number, order=order)
        sent.flags.writeable = bool(number % 2)
        result = executor.submit(plus_one, sent).result(LIMIT)
        assert (result == np.arange(1 << 19).reshape(512, 1024) + number + 1).all()
        assert result.flags.f_contiguous == (order == "F")


def test_large_and_small_calls_at_the_same_time(executor):
    """Small calls between large ones have their results, too."""
    large = [executor.submit(double, np.ones(1 << 20)) for _ in range(6)]
    small = [executor.submit(identity, number) for number in range(200)]
    assert [future.result(LIMIT) for future in small] == list(range(200))
    assert all(future.result(LIMIT).sum() == 2 << 20 for future in large)


def test_a_large_array_in_a_closure(executor):
    """What a lambda refers to is sent along, whatever its size."""
    table = np.arange(1 << 20)
    assert executor.submit(lambda number: int(table[number]), 12345).result(LIMIT) == 12345


def test_a_large_function_is_sent_along(executor):
    """A call whose pickle itself is large goes through."""
    text = "x" * 5_000_000
    assert executor.submit(lambda: len(text)).result(LIMIT) == 5_000_000
    assert executor.submit(lambda: text).result(LIMIT) == text

"""Messages to bytes and back, by dtype."""

from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiexecutor.channel import ChannelBroken
from mpiexecutor.channel._codecs import codec_of

SAME = settings(deadline=None, derandomize=True, database=None)  # the same examples in every run
TYPECODES = "bBhHiIlLqQfd"
NUMPY_DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "F", "D", ">f8", ">i4"]
DTYPES = [*TYPECODES, np.dtype("f8"), bytes, object]


def encoded(codec, message) -> bytes:
    return b"".join(codec.encode(message))


def there_and_back(codec, message, *, shared=False):
    return codec.decode(memoryview(bytearray(encoded(codec, message))), shared=shared)


@pytest.mark.parametrize("typecode", TYPECODES)
@pytest.mark.parametrize("message", [[], [1], [0, 1, 2, 3]], ids=len)
def test_numbers_of_a_typecode_come_back_as_an_array(typecode, message):
    """A list goes in, an array.array of the same length and type comes out."""
    found = there_and_back(codec_of(typecode, 4), message)
    assert found == array(typecode, message)
    assert found.typecode == typecode


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("length", [0, 1, 4])
@pytest.mark.parametrize("shared", [False, True])
def test_numbers_of_a_numpy_dtype_come_back_as_an_ndarray(dtype, length, shared):
    """An array of the dtype comes back as it was."""
    message = np.arange(length).astype(np.bool_ if dtype == "?" else dtype)
    found = there_and_back(codec_of(np.dtype(dtype), 4), message, shared=shared)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, message)
    assert found.flags.writeable


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_a_list_of_small_numbers_is_a_message_of_every_numpy_dtype(dtype):
    """Python's numbers have no size and no sign bit: what fits is taken."""
    found = there_and_back(codec_of(np.dtype(dtype), 4), [False, True] if dtype == "?" else [0, 1])
    assert found.dtype == np.dtype(dtype)
    assert list(found) == [0, 1]


@SAME
@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=8))
def test_any_words_come_back(message):
    """Every value of the type, not only small ones."""
    assert list(there_and_back(codec_of("q", 8), message)) == message


@SAME
@given(st.lists(st.floats(allow_nan=False), max_size=8))
def test_any_doubles_come_back(message):
    """Infinities and subnormal numbers, too."""
    assert list(there_and_back(codec_of("d", 8), message)) == message


@SAME
@given(st.binary(max_size=16))
def test_any_bytes_come_back(message):
    """bytes in, bytes out, however the memory lies."""
    codec = codec_of(bytes, 16)
    for buffer in (message, bytearray(message), memoryview(message), memoryview(message * 2)[: len(message)]):
        assert there_and_back(codec, buffer) == message


def test_bytes_of_any_buffer_are_a_message():
    """Also of memory that does not lie together, has several dimensions, or is of no type that Python knows."""
    codec = codec_of(bytes, 64)
    assert there_and_back(codec, memoryview(b"abcdef")[::2]) == b"ace"
    assert there_and_back(codec, array("i", [1, 2])) == array("i", [1, 2]).tobytes()
    for values in (np.arange(4.0).reshape(2, 2), np.arange(2) + 1j, np.arange(2, dtype=">f8"), np.arange(4.0)[::2]):
        assert there_and_back(codec, values) == values.tobytes()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("message", [None, 1, "text", [1, {2: (3,)}], len, lambda: 5])
def test_any_object_comes_back(message, shared):
    """Also None, which is a message like any other; functions come back as functions."""
    found = there_and_back(codec_of(object, 64), message, shared=shared)
    assert found() == 5 if getattr(message, "__name__", "") == "<lambda>" else found == message


@pytest.mark.parametrize("shared", [False, True])
def test_a_large_array_comes_back_and_owns_what_it_needs(shared):
    """It may refer to its frame, but never to one that is shared with other messages."""
    message = np.arange(1 << 15, dtype="f8")
    codec = codec_of(object, 64)
    frame = bytearray(encoded(codec, message))
    found = codec.decode(memoryview(frame), shared=shared)
    assert np.array_equal(found, message)
    assert np.shares_memory(found, np.frombuffer(frame, "u1")) is not shared
    assert found.flags.writeable
    assert found.ctypes.data % 8 == 0


def test_what_is_encoded_is_not_copied():
    """An array of the right type, or bytes, are put from where they are."""
    values, text, numbers = np.arange(4.0), bytearray(b"abcd"), array("d", [1, 2])
    (part,) = codec_of(np.dtype("f8"), 4).encode(values)
    assert np.shares_memory(values, np.frombuffer(part, "u1"))
    (part,) = codec_of(bytes, 4).encode(text)
    text[0] = ord("x")
    assert part[0] == ord("x")
    (part,) = codec_of("d", 4).encode(numbers)
    numbers[0] = 7.0
    assert part.cast("d")[0] == 7.0
    large = np.zeros(1 << 15)
    assert any(np.shares_memory(large, np.frombuffer(part, "u1")) for part in codec_of(object, 64).encode(large))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_slot_holds_a_message_of_the_full_size(dtype):
    """message_size elements, and not one byte more; of objects message_size is the slot."""
    codec = codec_of(dtype, 10)
    size = 1 if dtype in (bytes, object) else np.dtype(dtype).itemsize
    assert codec.slot_size == 10 * size


@pytest.mark.parametrize("dtype", ["d", "b", np.dtype("f4")], ids=str)
@pytest.mark.parametrize("message", [[1] * 6, array("d", [1] * 6), np.ones(6, "f4")], ids=lambda value: type(value).__name__)
def test_a_message_that_is_too_long_is_refused_with_both_lengths(dtype, message):
    """ValueError, and the text says how long it is and how long it may be."""
    with pytest.raises(ValueError, match=r"^this message has 6 elements, the channel's messages have at most 5$"):
        codec_of(dtype, 5).encode(message)


def test_bytes_that_are_too_many_are_refused_with_both_lengths():
    """Bytes are counted, not the elements of the buffer."""
    with pytest.raises(ValueError, match=r"^this message has 16 bytes, the channel's messages have at most 5$"):
        codec_of(bytes, 5).encode(array("d", [1, 2]))


@pytest.mark.parametrize("dtype", ["d", np.dtype("f8"), bytes], ids=str)
@pytest.mark.parametrize("message", [5, 5.0, None, object()], ids=lambda value: type(value).__name__)
def test_a_message_without_a_length_is_refused_with_advice(dtype, message):
    """TypeError, and the text says how to put a single value."""
    with pytest.raises(TypeError, match=r"^a message has a length, .* has none: put a single value as a tuple"):
        codec_of(dtype, 5).encode(message)


@pytest.mark.parametrize("dtype", ["d", "i", np.dtype("f8"), np.dtype("i4")], ids=str)
@pytest.mark.parametrize("message", ["abc", ["a"], [None], [[1], [2]], [1j], {"a": 1}, [[1], [2, 3]]], ids=str)
def test_elements_of_another_kind_are_refused(dtype, message):
    """TypeError for what is no number of the channel's kind."""
    with pytest.raises(TypeError):
        codec_of(dtype, 5).encode(message)


@pytest.mark.parametrize("dtype", ["i", np.dtype("i4")], ids=str)
def test_fractions_are_not_rounded_to_whole_numbers(dtype):
    """TypeError: nothing is lost in silence."""
    with pytest.raises(TypeError):
        codec_of(dtype, 5).encode([1.5])


@pytest.mark.parametrize("dtype", ["b", "B", "i", "Q", *map(np.dtype, ["i1", "u1", "i4", "u8"])], ids=str)
@pytest.mark.parametrize("number", [1 << 70, -(1 << 70), 1 << 64, -(1 << 63) - 1])
def test_numbers_that_are_too_large_are_refused(dtype, number):
    """TypeError or ValueError, as encode promises; never another number."""
    with pytest.raises((TypeError, ValueError)):
        codec_of(dtype, 5).encode([number])


@pytest.mark.parametrize("number", [300, -129, 1 << 40])
def test_numbers_are_not_wrapped_into_a_smaller_type(number):
    """A list of Python's numbers, and an array of a larger type: refused if a number does not fit."""
    for message in ([number], np.array([number])):
        with pytest.raises((TypeError, ValueError)):
            codec_of(np.dtype("i1"), 5).encode(message)


@pytest.mark.parametrize("message", [b"ab", bytearray(b"ab"), "ab"], ids=str)
def test_bytes_are_not_taken_for_numbers(message):
    """array('d', b'...') would take them for the memory of numbers, or each for one: neither is what was meant."""
    with pytest.raises(TypeError, match="holds numbers"):
        codec_of("d", 5).encode(message)


def test_a_channel_of_bytes_refuses_text():
    """An encoding is for the user to choose."""
    with pytest.raises(TypeError, match=r"^a message of a channel of bytes is bytes-like, not str$"):
        codec_of(bytes, 5).encode("ab")


def test_an_array_of_two_dimensions_is_refused_with_advice():
    """Its shape would be lost."""
    with pytest.raises(TypeError, match="has 2: send it as a dtype=object message"):
        codec_of(np.dtype("f8"), 5).encode(np.zeros((2, 2)))


@pytest.mark.parametrize(
    "dtype", ["u", "x", "dd", "", "M8[s]", "S3", "U3", "O", "V4", "i4,f8", "(2,)f8", "(2,", None, 5, str, list, {"a": 1}]
)
def test_a_dtype_that_is_none_is_refused(dtype):
    """ValueError, whatever it is; the text says what there is."""
    with pytest.raises(ValueError, match="is none of: a typecode in .* a numeric NumPy dtype, bytes, object"):
        codec_of(dtype, 5)


@pytest.mark.parametrize(("one", "other"), [("d", "f"), ("d", np.dtype("f8")), (bytes, object), (np.dtype("f8"), np.dtype(">f8"))])
def test_codecs_of_different_bytes_have_different_names(one, other):
    """Ranks compare names: what one puts another must read."""
    assert codec_of(one, 1).name != codec_of(other, 1).name


def test_codecs_of_one_dtype_have_one_name():
    """However the dtype is spelled."""
    assert codec_of(float, 1).name == codec_of("f8", 1).name == codec_of(np.float64, 1).name


def test_bytes_that_are_no_frame_are_not_unpickled():
    """ChannelBroken, before pickle sees them."""
    with pytest.raises(ChannelBroken):
        codec_of(object, 5).decode(memoryview(b"cos\nsystem\n(S'false'\ntR."), shared=False)

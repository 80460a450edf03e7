"""Frames: a pickle and its buffers as one run of bytes."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpiexecutor.channel import ChannelBroken
from mpiexecutor.channel._codecs import decode_frame, encode_frame

SAME = settings(deadline=None, derandomize=True, database=None)  # the same examples in every run
BUFFERS = st.lists(st.binary(max_size=200), max_size=4)


def frame_of(pickled: bytes, buffers: list[bytes]) -> bytes:
    return b"".join(encode_frame(pickled, [memoryview(buffer) for buffer in buffers]))


@SAME
@given(st.binary(max_size=200), BUFFERS)
def test_a_frame_gives_back_what_went_in(pickled, buffers):
    """The pickle and each buffer, in order, byte by byte; empty ones, too."""
    found, rest = decode_frame(memoryview(frame_of(pickled, buffers)))
    assert bytes(found) == pickled
    assert [bytes(each) for each in rest] == buffers


@SAME
@given(st.binary(max_size=200), BUFFERS.filter(bool))
def test_buffers_begin_at_multiples_of_64_bytes(pickled, buffers):
    """So that arrays are aligned as they lie."""
    offset = 0
    for part in encode_frame(pickled, [memoryview(buffer) for buffer in buffers]):
        if any(part.obj is buffer for buffer in buffers):
            assert offset % 64 == 0
        offset += len(part)
    assert offset % 64 == 0


def test_buffers_are_not_copied():
    """Neither on the way in nor on the way out."""
    buffer = bytearray(b"x" * 100)
    parts = encode_frame(b"pickle", [memoryview(buffer)])
    assert any(part.obj is buffer for part in parts)
    frame = bytearray(b"".join(parts))
    pickled, (found,) = decode_frame(memoryview(frame))
    assert pickled.obj is frame
    assert found.obj is frame


@SAME
@given(st.binary(max_size=200), BUFFERS, st.integers(1, 300))
def test_a_frame_that_is_cut_short_is_broken(pickled, buffers, missing):
    """However little is missing."""
    frame = frame_of(pickled, buffers)
    with pytest.raises(ChannelBroken):
        decode_frame(memoryview(frame)[: max(0, len(frame) - missing)])


@SAME
@given(st.binary(max_size=200), BUFFERS, st.binary(min_size=1, max_size=100))
def test_a_frame_with_something_behind_it_is_broken(pickled, buffers, more):
    """However little it is."""
    with pytest.raises(ChannelBroken):
        decode_frame(memoryview(frame_of(pickled, buffers) + more))


def decoded_or_broken(data: bytes) -> None:
    try:
        pickled, buffers = decode_frame(memoryview(data))
    except ChannelBroken as error:
        assert str(error)
    else:
        assert len(pickled) + sum(map(len, buffers)) <= len(data)


@SAME
@given(st.binary(max_size=300))
@example(b"")
@example(b"mpx1")
def test_garbage_is_broken_or_a_frame(data):
    """Nothing else is raised, and nothing outside of the bytes is touched."""
    decoded_or_broken(data)
    decoded_or_broken(b"mpx1" + data)


@SAME
@given(
    st.integers(0, 40) | st.integers(0, (1 << 32) - 1),
    st.lists(st.integers(0, 300) | st.integers(0, (1 << 64) - 1), max_size=6),
    st.binary(),
)
def test_sizes_that_are_not_true_are_broken_or_a_frame(count, sizes, rest):
    """A head of the right form that says anything at all."""
    decoded_or_broken(b"mpx1" + struct.pack("=I", count) + struct.pack(f"={len(sizes)}Q", *sizes) + rest)


@SAME
@given(st.binary(max_size=50), BUFFERS, st.data())
def test_a_frame_with_a_byte_changed_is_broken_or_a_frame(pickled, buffers, data):
    """One byte, anywhere."""
    frame = bytearray(frame_of(pickled, buffers))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_broken(bytes(frame))


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"mpx1", "a frame has at least 16 bytes, this one has 4"),
        (b"abcd" + bytes(12), "a frame begins with b'mpx1', this one with b'abcd'"),
        (b"mpx1" + struct.pack("=IQ", 9, 0), "a frame of 16 bytes has no room for the sizes of 9 buffers"),
        (b"mpx1" + struct.pack("=IQ", 0, 5), "a frame whose parts have (5,) bytes takes 21 bytes, this one has 16"),
    ],
)
def test_the_error_says_what_was_found_and_what_was_expected(frame, text):
    """Each way to be no frame has its text."""
    with pytest.raises(ChannelBroken) as caught:
        decode_frame(memoryview(frame))
    assert str(caught.value) == text

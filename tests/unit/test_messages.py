"""What root and workers say to each other: each kind goes there and back, through the frames of a channel."""

import marshal

import pytest

from mpiexecutor._calls import messages
from mpiexecutor._calls.messages import (
    Barrier,
    Calls,
    GivenBack,
    InitializerFailed,
    MapCalls,
    MapResults,
    Results,
    SharedMemory,
    TopLevelFailed,
    Wanted,
    dump_outcome,
    dump_value,
    goes_as_it_is,
    load_outcomes,
    replacement,
)
from mpiexecutor._calls.outcomes import Failure, Location, error_from
from mpiexecutor.channel import ChannelBroken, ChannelMemoryError, RemoteChannel
from mpiexecutor.channel._codecs import codec_of

LARGE = bytes(range(256)) * 1024
CODEC = codec_of(messages, 1 << 14)


def sent(message):
    """Return a message as it arrives."""
    return CODEC.decode(memoryview(bytearray().join(CODEC.encode(message))), shared=False)


def plain(message):
    """Have bytes in the place of all that has the same bytes, and tuples in the place of lists."""
    if isinstance(message, (list, tuple)):
        return tuple(map(plain, message))
    return bytes(message) if isinstance(message, memoryview) else message


@pytest.mark.parametrize(
    "message",
    [
        Calls(1, None, 0.0, 1, None, [(2, None, None, b"pickle", ())]),
        Calls(1 << 40, 7, 2.5, 3, 4, [(1 << 62, 3, 4, b"one", ()), (9, 3, "double", b"two", ())]),
        Calls(1, None, 0.0, 1, None, [(2, None, None, b"pickle", b"name of a segment")]),
        Results(3, 1, [(2, 0.5, False, b"value", ())]),
        Results(3, 1, [(2, 0.5, False, b"value", ()), (3, 0.5, True, b"", b"name of a segment")]),
        Results(3, 1, [(2, 0.5, False, LARGE, [LARGE]), (3, 0.5, True, b"", b"name of a segment")]),
        Results(3, 1, [(number, 0.25 * number, bool(number % 2), b"value", ()) for number in range(256)]),
        GivenBack(3, 1, True, (4, 5)),
        Wanted(3, 1, 8, 0),
        InitializerFailed(3, 1, "ValueError: no \udcff", "trace"),
        TopLevelFailed(3, 1, "ValueError: no \udcff", "trace"),
        Barrier(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_each_kind_arrives_as_it_was_sent(message):
    """Class and fields; the channel's own memory stands in the place of large buffers."""
    arrived = sent(message)
    assert type(arrived) is type(message)
    assert plain(arrived) == plain(message)


@pytest.mark.parametrize("data", [b"small", LARGE])
@pytest.mark.parametrize("buffers", [[], [LARGE], [b"", LARGE[5:], LARGE]])
def test_what_is_large_goes_out_of_band(data, buffers):
    """Uncopied: pickles and buffers, of some calls of a message, and not of others."""
    buffers = [memoryview(buffer) for buffer in buffers]
    calls = [(1, 2, None, b"before", ()), (2, 2, None, data, buffers), (3, 2, "name", b"behind", buffers)]
    encoded, beside = messages.dumps(Calls(5, None, 0.0, 1, None, calls))
    assert len(encoded) < 300
    second = [data, *(buffer.obj for buffer in buffers)] if buffers or data is LARGE else []
    third = [b"behind", *(buffer.obj for buffer in buffers)] if buffers else []
    assert [part.obj for part in beside] == second + third
    assert plain(sent(Calls(5, None, 0.0, 1, None, calls)).calls) == plain(calls)


HERE = Location(3, 4, "host", 1)
BUFFERS = [memoryview(LARGE)] * 1000


def begin_of(message, size):
    """Return what a rank that has no memory for a message has of it."""
    return RemoteChannel.head(ChannelMemoryError(0, 1 << 30, bytes(bytearray().join(CODEC.encode(message))[:size])))


@pytest.mark.parametrize("buffers", [(), BUFFERS[:1], BUFFERS])
@pytest.mark.parametrize("pickle", [bytes((64 << 10) - 1), LARGE])
def test_the_first_slot_is_sufficient_to_replace_a_long_message(buffers, pickle):
    """The failed outcome is that of the same call: for a call, for its result, and for what it has raised."""
    if len(pickle) < 64 << 10 and not buffers:
        pytest.skip("this is no long message")
    call = Calls(5, 1, 2.5, 1, None, [(7, 3, "name" * 100, pickle, buffers)])
    returned, raised = (Results(2, 5, [(7, 0.5, failed, pickle, buffers)]) for failed in (False, True))
    for message, rank, seconds, what in (
        (call, 3, 0.0, "this call is too large for its worker's memory"),
        (returned, 2, 0.5, "the result of this call is too large for the memory of the script's process"),
        (raised, 2, 0.5, "what this call raised is too large for the memory of the script's process"),
    ):
        found = replacement(begin_of(message, 16384), 1 << 30, HERE)
        assert (found.rank, found.executor) == (rank, 5)
        ((*outcome, data, beside),) = found.outcomes
        assert outcome == [7, seconds, True]
        error = error_from(Failure.loads(data, beside))
        assert type(error) is MemoryError
        assert str(error) == f"{what}, {1 << 30} bytes when pickled"


@pytest.mark.parametrize("size", [0, 15, 40])
def test_less_than_the_pickle_replaces_nothing(size):
    """An error says so; nothing is unpickled."""
    with pytest.raises(ChannelBroken, match=f"the pickle of a message is not in its first {size} bytes"):
        begin_of(Results(2, 5, [(7, 0.5, False, LARGE, ())]), size)


def test_bytes_that_are_no_frame_replace_nothing():
    """They may be those of a message that another rank has put there meanwhile."""
    with pytest.raises(ChannelBroken, match="the pickle of a message is not in its first 100 bytes"):
        RemoteChannel.head(ChannelMemoryError(0, 1 << 30, bytes(100)))


def test_buffers_can_be_written_to():
    """They are the call's own, as with pickle."""
    ((*_, buffers),) = sent(Calls(5, None, 0.0, 1, None, [(1, 2, None, b"pickle", [memoryview(LARGE)])])).calls
    buffers[0][0] = 7
    assert bytes(buffers[0][:2]) == b"\x07\x01"


def test_what_is_no_message_is_refused():
    """Where it is sent, and where it arrives."""
    with pytest.raises(TypeError, match="no message of root or workers: 'nonsense'"):
        messages.dumps("nonsense")
    with pytest.raises(ValueError, match="a message of an unknown kind, 10"):
        messages.loads(memoryview(marshal.dumps((10, "field"))))


def test_outcomes_on_a_status_page_lie_one_behind_the_other():
    """With all that belongs to them; a buffer of theirs can be written to, as if it had been sent."""
    outcomes = [(1, 0.5, False, b"value", [memoryview(LARGE)]), (2, 0.0, True, b"failure", ())]
    found = list(load_outcomes(b"".join(map(dump_outcome, outcomes))))
    assert plain(found) == plain(outcomes)
    assert not found[0][-1][0].readonly


def test_results_of_a_map_on_a_status_page_are_known_from_other_outcomes():
    """They have two parts."""
    held = dump_outcome((1, 0.5, False, b"value", ())) + dump_value((2, "plain")) + dump_value((3, b"pickle"))
    assert list(load_outcomes(held))[1:] == [(2, "plain"), (3, b"pickle")]


@pytest.mark.parametrize("value", [None, True, 0, 2**256 - 1, -(2**256) + 1, 1.5, 2j, "x" * 256])
def test_what_goes_as_it_is_arrives_as_it_is(value):
    """Arguments and results of maps that are short, and cannot be changed."""
    assert goes_as_it_is(value)
    assert sent(MapCalls(5, None, 0.0, 1, None, 7, 3, "name", [(value,)])).rows == [(value,)]
    assert sent(MapResults(1, 5, 7, 0, 0.5, [value])).values == [value]


class Whole(int):
    pass


@pytest.mark.parametrize("value", [2**256, -(2**256), "x" * 257, b"", [], (), {}, Whole(1), object()])
def test_what_is_long_or_can_be_changed_does_not(value):
    """It is pickled; a pickle is told from it by its type, bytes."""
    assert not goes_as_it_is(value)


@pytest.mark.parametrize("held", [b"garbage" * 20, b"N.", b"(", dump_outcome((1, 0.5, False, b"value", ()))[:-1]])
def test_garbage_is_no_outcome(held):
    """It raises something."""
    with pytest.raises((ValueError, TypeError, EOFError)):
        list(load_outcomes(held))


@pytest.mark.parametrize("data", [b"short", LARGE], ids=["short pickle", "long pickle"])
def test_large_buffers_go_by_shared_memory(data):
    """If there is any; what is in shared memory already stays there."""
    memory = SharedMemory(64 << 20, 4)
    buffers = [memoryview(LARGE * 4), memoryview(b""), memoryview(LARGE)]
    assert memory.put(data, buffers) == (data, buffers)  # the first are no reason to begin with it
    short, name = memory.put(data, buffers)
    assert (short, type(name)) == (b"", bytes)
    assert memory.put(short, name) == (short, name)
    assert plain(memory.get(short, name)) == plain((data, buffers))
    assert SharedMemory().put(data, buffers) == (data, buffers)
    assert memory.get(data, buffers) == (data, buffers)
    memory.close()

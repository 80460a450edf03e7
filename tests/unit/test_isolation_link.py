"""Messages between a rank and its child: of any size, in order, and what comes when the other side dies."""

import os
import socket
import threading
from pathlib import Path

import pytest

from mpiexecutor._calls.isolation.link import CALLS, REPLY, Link


@pytest.fixture
def ends():
    """Yield the end of a rank and that of a child."""
    lines = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    rank, child = Link(lines[0], reuse=False), Link(lines[1], reuse=True)
    yield rank, child
    rank.close()
    child.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("from_child", [False, True])
@pytest.mark.parametrize("size", [0, 10, 48 << 10, (48 << 10) + 1, 3_000_000])
@pytest.mark.parametrize("buffers", [(), (b"",), (b"one", bytes(100_000), b""), (b"x",) * 20_000], ids=len)
def test_a_message_comes_as_it_was(ends, from_child, size, buffers):
    """With its kind and its buffers, which can be written to. No file stays open."""
    sender, receiver = reversed(ends) if from_child else ends
    data = os.urandom(size)
    before = descriptors()
    for _ in range(2):
        sender.send(CALLS, data, [memoryview(buffer) for buffer in buffers])
        kind, came, beside = receiver.receive()
        assert (kind, bytes(came), [bytes(buffer) for buffer in beside]) == (CALLS, data, list(buffers))
        assert not any(buffer.readonly for buffer in beside)
        del came, beside
    assert descriptors() == before


def test_the_file_of_a_child_is_overwritten_only_when_it_says_so(ends):
    """Before, each message is where no other is."""
    rank, child = ends
    child.send(REPLY, b"", [memoryview(b"a" * 100_000)])
    child.send(REPLY, b"", [memoryview(b"b" * 100_000)])
    first, second = (rank.receive().buffers[0] for _ in range(2))
    assert (bytes(first[:2]), bytes(second[:2])) == (b"aa", b"bb")
    child.overwrite()
    child.send(REPLY, b"", [memoryview(b"c" * 100_000)])
    assert bytes(rank.receive().buffers[0][:2]) == bytes(first[:2]) == b"cc"


def test_what_was_sent_before_a_death_comes_before_the_end(ends):
    """Then nothing arrives; and messages to it are dropped."""
    rank, child = ends
    child.send(REPLY, b"short")
    child.send(REPLY, bytes(100_000))
    rank.send(CALLS, b"unread")
    child.close()
    rank.send(CALLS, b"unread")
    rank.send(CALLS, bytes(100_000))
    assert bytes(rank.receive().data) == b"short"
    assert len(rank.receive().data) == 100_000
    assert rank.receive().kind == b""


def test_threads_may_send_at_once(ends):
    """A message is whole, whatever other threads send."""
    rank, child = ends
    sizes = [10, 60_000, 200_000] * 20

    def send(letter):
        for size in sizes:
            child.send(REPLY, letter * size)

    threads = [threading.Thread(target=send, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    came = [bytes(rank.receive().data) for _ in range(2 * len(sizes))]
    for thread in threads:
        thread.join()
    for letter in (b"a", b"b"):
        assert [len(data) for data in came if data[:1] == letter] == sizes
    assert all(set(data) == {data[0]} for data in came)

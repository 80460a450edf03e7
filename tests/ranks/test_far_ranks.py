"""Between nodes, and from the root to one worker, in any of the ways that an MPI needs: notifications, and bulk transfer."""

import threading

import pytest
from together import COMM, RANK, SIZE, until

from mpiexecutor._calls.bulk import _PIECE, BulkTransfer
from mpiexecutor._rma.notifier import Senders, _Bytes, _Messages
from mpiexecutor._rma.window import Marks
from mpiexecutor._util.pickling import Pickled

OTHERS = {*range(SIZE)} - {RANK}


def carrier_of(kind):
    """Make one of the carriers of notifications, whichever this MPI would need."""
    comm = COMM.Dup()
    if kind == "bytes":
        return _Bytes(comm, Marks(comm, 3))
    carrier = _Messages(comm, host=0)
    if carrier._senders is not None:
        carrier._senders.stop()
    carrier._senders = Senders() if kind == "messages of other threads" else None
    return carrier


@pytest.mark.parametrize("kind", ["messages", "messages of other threads", "bytes"])
def test_a_notification_is_found_by_its_rank_and_at_its_doorbell(kind):
    """However often it was notified. The next notifier does not find notifications that are left when this one is freed."""
    for _ in range(3):
        carrier = carrier_of(kind)
        assert not carrier.receive("put")
        COMM.Barrier()
        for _ in range(5):
            for rank in OTHERS:
                carrier.send(rank, "put")
                carrier.send(rank, "put")
                carrier.send(rank, "take")
            if OTHERS:
                until(lambda: carrier.receive("put"))  # noqa: B023 - at once
                until(lambda: carrier.receive("take"))  # noqa: B023
            assert not carrier.receive("progress")
            COMM.Barrier()
        carrier.free()


def test_a_worker_that_is_sent_something_holds_up_no_other():
    """However many of the threads that send do not come back."""
    senders, stuck = Senders(), [threading.Event() for _ in range(3)]
    for each in stuck:
        sent = threading.Event()
        senders.do(each.wait)
        senders.do(sent.set)
        assert sent.wait(30)
    for each in stuck:
        each.set()
    senders.stop()


def pickle_of(rank):
    """Return something large for a rank: parts of many pieces, of one, and of part of one."""
    sizes = [3 * _PIECE + rank, _PIECE, 1]
    return Pickled(bytes([rank]) * 100, [memoryview(bytes([rank + index]) * size) for index, size in enumerate(sizes)])


@pytest.mark.parametrize("root", sorted({0, SIZE - 1}))
def test_each_worker_gets_the_transfers_that_are_for_it(root):
    """All at once, and one after another; and an empty one."""
    bulk = BulkTransfer(COMM.Dup(), root)
    for _ in range(3):
        if root == RANK:
            for rank in range(SIZE):
                bulk.send(rank, pickle_of(rank))
        data, buffers = bulk.receive()
        expected = pickle_of(RANK)
        assert data == expected.data
        assert [bytes(buffer.view) for buffer in buffers] == [bytes(buffer) for buffer in expected.buffers]
        COMM.Barrier()
    if root == RANK:
        for rank in range(SIZE):
            bulk.send(rank, None)
    assert bulk.receive() is None
    COMM.Barrier()
    bulk.free()


def test_a_lost_worker_is_sent_nothing_any_more():
    """The root puts what there is room for, and gives up; each living rank gets what it asks for, and all can be freed."""
    lost = set()
    bulk = BulkTransfer(COMM.Dup(), 0, lost.__contains__)
    if RANK == 0 and OTHERS:
        bulk.send(SIZE - 1, pickle_of(SIZE - 1))
        until(lambda: bulk._filled[SIZE - 1] == 2)
        lost.add(SIZE - 1)
    COMM.Barrier()
    if RANK == 0:
        bulk.send(0, pickle_of(0))
        data, _ = bulk.receive()
        assert data == pickle_of(0).data
        assert bulk._filled[SIZE - 1] == 2 or SIZE == 1
        bulk.send(SIZE - 1, pickle_of(SIZE - 1))  # nobody fetches this either, and it is no reason to wait
    COMM.Barrier()
    bulk.free()

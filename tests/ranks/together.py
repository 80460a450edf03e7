"""What the ranks' tests have in common."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from mpi4py import MPI

from mpiexecutor.channel import ChannelEmpty, RemoteChannel
from mpiexecutor.channel._ends.rank_state import SPINNING, TO_BEGIN, TO_GO_ON

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
LAST = SIZE - 1

every_host = pytest.mark.parametrize("host", range(SIZE))
every_rank = pytest.mark.parametrize("actor", range(SIZE))
needs_two = pytest.mark.skipif(SIZE < 2, reason="one rank has nobody to differ from")
needs_a_spinner = pytest.mark.skipif("MPIEXECUTOR_TEST_APART" in os.environ, reason="nobody spins over a network")
needs_three = pytest.mark.skipif(SIZE < 3, reason="takes one that puts and two that take")


@contextlib.contextmanager
def channel_of(*args: Any, **kwargs: Any) -> Iterator[RemoteChannel[Any, Any]]:
    """Make a channel and free it, unless the test fails: freeing would wait for the other ranks, and hide the failure."""
    channel: RemoteChannel[Any, Any] = RemoteChannel(*args, **kwargs)
    yield channel
    channel.free()


@contextlib.contextmanager
def threads(count: int = 1) -> Iterator[ThreadPoolExecutor]:
    """Yield threads of this rank. They are joined if the test has not failed: a thread that hangs would hide the failure."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def in_turn(step: Callable[[], object]) -> None:
    """Have one rank after another take the step."""
    for turn in range(SIZE):
        if turn == RANK:
            step()
        COMM.Barrier()


def until(condition: Callable[[], object]) -> None:
    """Look until the condition holds; the test's deadline is the limit."""
    while not condition():
        os.sched_yield()
        time.sleep(0.0005)


def asleep(channel: RemoteChannel[Any, Any], side: str) -> set[int]:
    """Tell which ranks sleep at an end of the channel: they have looked in vain and wait to be woken."""
    with channel._aside_lock:
        state = channel._aside.state()
    return {rank for rank, flag in enumerate(state.takers if side == "take" else state.putters) if flag in {TO_BEGIN, TO_GO_ON}}


def spinning(channel: RemoteChannel[Any, Any]) -> set[int]:
    """Tell which ranks spin before they sleep."""
    with channel._aside_lock:
        return {rank for rank, flag in enumerate(channel._aside.state().takers) if flag == SPINNING}


def exchange(channel: RemoteChannel[Any, Any], message: Any) -> list[Any]:
    """Have every rank put a message and take one; return what was taken, on every rank."""
    put = channel.putf(message)
    taken = channel.take()
    put.result()
    return COMM.allgather(taken)


def still_works(channel: RemoteChannel[Any, Any], message_of: Callable[[int], Any] = lambda number: (number,)) -> None:
    """See that the channel carries a message of every rank, and nothing else is in it; whatever has gone before."""
    if channel.statistics().claimed is not None:
        COMM.Barrier()
        channel.claim(SIZE)
    COMM.Barrier()
    taken = exchange(channel, message_of(100 + RANK))
    expected = [message_of(100 + rank) for rank in range(SIZE)]
    assert sorted(map(list, taken)) == sorted(map(list, expected))
    with contextlib.suppress(ChannelEmpty):
        assert channel.take_nowait() is None, "nobody put this"
    assert len(channel) == 0
    COMM.Barrier()


def result_of(future: "Future[Any]") -> Any:
    """Wait for a future; the test's deadline is the limit, this one is to have a traceback."""
    return future.result(100)

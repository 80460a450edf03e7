"""What the operations of a channel have in common: its parts, and the checks before each operation."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from mpiexecutor._rma.memory import Memory
from mpiexecutor.channel._ends.background import ChannelFuture
from mpiexecutor.channel._ends.put_end import PutEnd
from mpiexecutor.channel._ends.rank_state import RankState, Side
from mpiexecutor.channel._ends.take_end import TakeEnd
from mpiexecutor.channel._ring.producer import Producer

from ._codecs import Codec

T = TypeVar("T")


class ChannelBase:
    """The parts of a channel, as one rank has them.

    Threads. Each end has one lock, which the thread that works there holds: puts do not wait for takes, nor takes for puts. A third
    handle on the ring, with its own lock, serves close, claim, statistics and recover: they never wait for a blocked put.
    """

    def _begin(
        self, codec: Codec, rank_state: RankState, memory: Callable[[], Memory], host: int, *, only_host: Mapping[Side, bool]
    ) -> None:
        """Make the parts over some memory. Each call of `memory` returns a handle on it for one thread."""
        self._codec = codec
        self._layout = rank_state.layout
        self._rank_state = rank_state
        self._memory = memory
        self._host = host
        self._rank = rank_state.rank
        self._only_host = only_host
        self._puts = PutEnd(rank_state, memory(), single=only_host["put"])
        self._takes = TakeEnd(rank_state, memory(), single=only_host["take"])
        self._aside = Producer(memory(), rank_state.layout, rank_state.rank)
        self._aside_lock = threading.Lock()
        self._threads = True  # whether MPI lets several threads call it

    def _wake_all(self) -> None:
        state = self._aside.state()
        self._rank_state.wake(self._aside, "take", state.takers, begin=len(state.takers))
        self._rank_state.wake(self._aside, "put", state.putters, begin=len(state.putters))

    def _check_side(self, side: Side) -> None:
        self._rank_state.check()
        if self._only_host[side] and self._rank != self._host:
            name = "producers" if side == "put" else "consumers"
            raise ValueError(f"this channel was made with {name}='host': rank {self._host} may {side}, rank {self._rank} may not")

    def _check_threads(self) -> None:
        self._rank_state.check()
        if not self._threads:
            raise RuntimeError("putf and takef need MPI with THREAD_MULTIPLE: leave mpi4py.rc.thread_level as it is")


def deadline_of(timeout: float | None) -> float | None:
    """Return the time, as of time.monotonic, at which a time-out of so many seconds is over; None if there is no time-out."""
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout is a number of seconds, at least 0, or None, not {timeout!r}")
    return time.monotonic() + timeout


def result_of(future: ChannelFuture[T], deadline: float | None) -> T:
    """Wait for a future of this channel. On a time-out or an interrupt cancel it, unless its message has begun."""
    try:
        return future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        if future.cancel():
            raise
        with contextlib.suppress(TimeoutError):
            return future.result()
        raise
    except BaseException:
        future.cancel()
        raise

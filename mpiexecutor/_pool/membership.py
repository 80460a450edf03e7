"""How a root hears of those that serve it, and how they part in the end, whether all live or not.

The root has a watch, to which the keepers on its node come. Another node's members have a watch each, and a post that passes on to
the root what that hears: see forwarder.py.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from mpiexecutor._liveness.monitor import Watch, address_of
from mpiexecutor._liveness.process_manager import connection, mapped, remove, take_leave
from mpiexecutor._liveness.supervisor import KILL, Kept
from mpiexecutor._start.process import STANDING
from mpiexecutor._util.seconds import LATE as _LATE

from .registration import Orders, Report, await_leavers, part, part_from_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpi4py import MPI

    from mpiexecutor._liveness.forwarder import Exchange, News, Post
    from mpiexecutor.channel import RemoteChannel

logger = logging.getLogger("mpiexecutor")


def exchange_of(comm: "MPI.Intracomm", orders: Orders, watch: Watch, reports: dict[int, Report]) -> "Exchange | None":
    """Have the root hear from other nodes, if there are any. Each rank has a part in it: see Member."""
    from mpiexecutor._liveness.forwarder import Exchange  # noqa: PLC0415 - it knows MPI

    far = {rank: (reports[rank].host, reports[rank].pid) for rank in orders.far}
    return Exchange(_news_of(comm), watch, far, orders.lost_after) if far else None


def _news_of(comm: "MPI.Intracomm") -> "News":
    from mpiexecutor._liveness.forwarder import News  # noqa: PLC0415 - it knows MPI

    return News(comm)


class Parting:
    """The root's side of the end, once nothing is to be done any more.

    `for_good`: nobody has anything else to do then, so whoever cannot leave, as it is stopped, is killed.
    """

    def __init__(self, comm: "MPI.Intracomm", watch: Watch, reports: dict[int, Report], *, for_good: bool) -> None:
        self._comm = comm
        self._watch = watch
        self._reports = reports  # by rank
        self._for_good = for_good
        self._stopped_since: dict[int, float] = {}  # by rank: of those that are waited for, and give no signs of life
        self._killed: set[int] = set()
        self.of_all = False  # all workers live, and give up with this rank what they have together: none of them may die now

    def part(self) -> bool:
        """Part from the workers, once they have left their loops; whether all of them live, so that MPI can be used as ever."""
        dead = self._watch.dead
        await_leavers(self._comm, dead, self._kill_stopped)
        self.of_all = not dead | self._killed
        self.of_all = not dead | self._killed  # once more: who has died since then may not have been noted
        part(self._comm, dead | self._killed, whole=self.of_all)
        return self.of_all

    def _kill_stopped(self, late: AbstractSet[int]) -> None:
        """Kill those that give no signs of life: nothing would come of waiting for them.

        They have had time for one since this process could look: the whole job may have been stopped.
        """
        now = time.monotonic()
        stopped = {rank for rank in late - self._killed if self._watch.is_stopped(rank)}
        self._stopped_since = {rank: self._stopped_since.get(rank, now) for rank in stopped}
        for rank in [rank for rank, since in self._stopped_since.items() if now - since > _LATE]:
            who = f"rank {rank}, host {self._reports[rank].host}, pid {self._reports[rank].pid}"
            what = "it is killed" if self._for_good else "continue it, or kill it"
            logger.warning("the worker on %s, gives no signs of life, and keeps this job from its end: %s", who, what)
            if self._for_good:
                self._killed.add(rank)
                self._watch.doom(rank, KILL)
            else:
                self._stopped_since[rank] = math.inf  # said


class Member:
    """A rank that is not the root: it is not to take the job with it if it dies, and is to be heard of."""

    def __init__(self, comm: "MPI.Intracomm", orders: Orders, keeper: Kept | None) -> None:
        """`comm` is freed by who has made it."""
        self._comm = comm
        self._root = orders.root
        self._keeper = keeper
        far = comm.rank in orders.far
        watch = Watch(orders.watch_of(comm.rank), orders.token) if far else None  # before keepers can want to come to it
        self._news = _news_of(comm) if orders.far else None
        self._post = self._post_of(orders, watch) if watch else None
        if keeper is not None:
            watches = [address_of(orders.watch_of(rank)) for rank in orders.watchers_of(comm.rank)]
            keeper.serve(watches, orders.token, comm.rank, far=far)

    def part(self, channels: "Sequence[RemoteChannel[Any, Any]]" = ()) -> None:
        """Part from the root. If not all live wait for the end: MPI can be finalised no more, and who leaves first ends the job."""
        if not part_from_root(self._comm, self._root):
            for channel in channels:
                channel.abandon()
            self._stay()
        if self._keeper is not None:
            self._keeper.dismiss()
        if self._post is not None:
            self._post.stop()
        if self._news is not None:
            self._news.free()

    def _post_of(self, orders: Orders, watch: Watch) -> "Post":
        from mpiexecutor._liveness.forwarder import Post  # noqa: PLC0415 - it knows MPI

        assert self._news is not None
        return Post(self._news.comm, orders.root, watch, orders.lost_after, partial(_go, self._keeper))

    def _stay(self) -> NoReturn:
        if self._keeper is not None:
            self._keeper.stay()
        while self._post is not None:
            signal.pause()
        _go(self._keeper)


def _go(keeper: Kept | None) -> NoReturn:
    """Be done, without MPI."""
    if keeper is not None:
        keeper.dismiss()
    library, files = mapped()
    remove(files)
    take_leave(connection(), library, initialise=False)
    os._exit(0)


def own_keeper() -> Kept | None:
    """Give this rank's keeper, if it has one that serves nobody else."""
    keeper = STANDING.keeper
    return None if keeper is None or keeper.serves else keeper

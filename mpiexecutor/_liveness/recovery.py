"""What the root of a pool does after a failure: it recovers both channels, then the scheduler settles the worker's calls.

The path of a failure, from the kill to the error in the future:

    a worker is killed
        │ waitpid                           supervisor.py       the parent of the worker
        │ "was killed by SIGKILL"           commands.py         over a Unix socket
        v
    FailureMonitor of the root              monitor.py          <── from other nodes by MPI: forwarder.py
        │ queue of failures
        v
    recovery thread, under a watchdog       _rma/recovery_thread.py
        │
        ├─ executors: PoolRecovery recovers both channels and finds the last claim   recovery.py, channel/_losses.py
        │      v
        │  Scheduler.lose: BrokenWorkerError in the futures of calls that had begun;   _calls/scheduling/
        │  the other calls of the claim are sent again
        │
        └─ --spmd: rank 0 tells the supervisors of all other ranks, these their ranks  _cli/spmd.py
               v
           on every rank FailedRanks and its recovery thread: hosts recover channels   _rma/failed_ranks.py
               v
           ChannelBroken from the host's next operation                                channel/

There are two sets of failed ranks. The root expects no answer from those in FailureMonitor.failed: a silent rank that gives a sign
of life again leaves that set. Channels were recovered from those in FailedRanks (--spmd): they stay failed, on all ranks.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from mpiexecutor._rma.recovery_thread import start_recovery_thread
from mpiexecutor._util.seconds import WEDGED
from mpiexecutor.channel import ChannelBroken, ChannelClosed, RemoteChannel, Share

from .monitor import FailureMonitor, WorkerFailure

logger = logging.getLogger("mpiexecutor")


class PoolRecovery:
    """Recovers the channels of a pool, in a thread."""

    def __init__(
        self,
        monitor: FailureMonitor,
        channels: tuple[RemoteChannel[Any, Any], ...],
        *,
        renumber: Callable[[list[int], int], None],
        lose: Callable[[WorkerFailure, Share | None], None],
        give_up: Callable[[str], None],
        note: Callable[[], None],
    ) -> None:
        self._monitor = monitor
        self._work, self._replies = channels
        self._renumber = renumber  # called with the new numbers of messages: see RemoteChannel.recover
        self._lose = lose  # called after recovery, with the worker's last claim of work
        self._give_up = give_up
        self._note = note  # called first
        self._shares: dict[int, Share] = {}  # last claims of work, by rank: of failures that are still in the queue
        self.thread = start_recovery_thread(monitor.failures, self._recover)

    def _recover(self, failure: WorkerFailure) -> bool:
        monitor = self._monitor
        logger.log(logging.INFO if monitor.is_expected(failure.rank) else logging.WARNING, "%s", failure)
        self._note()
        try:
            self._recover_channel(failure, self._recover_work)
            self._recover_channel(failure, lambda: self._replies.recover(monitor.failed, silent=monitor.silent))
        except ChannelClosed:  # freed
            pass
        except Exception as error:
            logger.exception("the channels of a pool were not recovered after a failure")
            self._give_up(f"{failure}, and the channels cannot be recovered: {error}")
        else:
            self._lose(failure, self._shares.pop(failure.rank, None))
        return True

    def _recover_work(self) -> None:
        for share in self._work.recover(self._monitor.failed, renumber=self._renumber, silent=self._monitor.silent):
            self._shares[share.rank] = share

    def _recover_channel(self, failure: WorkerFailure, recover: Callable[[], object]) -> None:
        """Recover a channel. Kill living workers that are not at rest in time: no worker can use the channel meanwhile."""
        why = f"{failure}, inside MPI, where it holds a lock that no rank can take any more"
        while True:
            try:
                with self._monitor.watchdog.limit(WEDGED, partial(self._give_up, why)):
                    recover()
            except ChannelBroken as error:
                if not [rank for rank in error.ranks if self._monitor.kill(rank)]:
                    raise
            else:
                return

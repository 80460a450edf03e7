"""What the root of a crew does when a worker has died: both channels forget the dead, then the pump is told."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from mpiexecutor._rma.recovery_thread import RecoveryThread
from mpiexecutor._util.seconds import WEDGED as _WEDGED
from mpiexecutor.channel import ChannelBroken, ChannelClosed, RemoteChannel, Share

from .monitor import FailureMonitor, Loss

logger = logging.getLogger("mpiexecutor")


class Undertaker:
    """Has the channels of a crew forget the dead, in a thread."""

    def __init__(
        self,
        monitor: FailureMonitor,
        channels: tuple[RemoteChannel[Any, Any], ...],
        *,
        renumber: Callable[[list[int], int], None],
        bury: Callable[[Loss, Share | None], None],
        give_up: Callable[[str], None],
        note: Callable[[], None],
    ) -> None:
        self._monitor = monitor
        self._work, self._replies = channels
        self._renumber = renumber  # told of the work that is left: see RemoteChannel.settle
        self._bury = bury  # told of each loss when what it has left behind is settled, and what it had claimed of the work
        self._give_up = give_up
        self._note = note  # told of each loss, first
        self._shares: dict[int, Share] = {}  # of work, by rank: of those whose loss is still to be looked at
        self.thread = RecoveryThread(monitor.losses, self._recover).thread

    def _recover(self, loss: Loss) -> bool:
        logger.log(logging.INFO if self._monitor.is_doomed(loss.rank) else logging.WARNING, "%s", loss)
        self._note()
        try:
            self._settle(loss)
        except ChannelClosed:  # freed
            return True
        except Exception as error:
            logger.exception("what a dead worker has left behind was not settled")
            self._give_up(f"{loss}, and what it has left behind cannot be settled: {error}")
            return True
        self._bury(loss, self._shares.pop(loss.rank, None))
        return True

    def _settle(self, loss: Loss) -> None:
        self._settle_channel(loss, lambda: self._shares.update({share.rank: share for share in self._settle_work()}))
        self._settle_channel(loss, lambda: self._replies.settle(self._monitor.dead, silent=self._monitor.silent))

    def _settle_work(self) -> list[Share]:
        return self._work.settle(self._monitor.dead, renumber=self._renumber, silent=self._monitor.silent)

    def _settle_channel(self, loss: Loss, settle: Callable[[], object]) -> None:
        """Settle a channel. Who lives, and keeps that from being done, is killed: nobody can do anything meanwhile."""
        why = f"{loss}, inside MPI, where it holds a lock that nobody can take any more"
        while True:
            try:
                with self._monitor.watchdog.limit(_WEDGED, partial(self._give_up, why)):
                    settle()
            except ChannelBroken as error:
                if not [rank for rank in error.ranks if self._monitor.kill(rank)]:
                    raise
            else:
                return

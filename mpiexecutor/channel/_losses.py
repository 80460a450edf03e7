"""What a channel does after ranks have failed: the host recovers the ring, and the next operation raises an error.

The channel does not detect failures. The program that started the ranks reports them to FAILED_RANKS (see failed_ranks.py), or
calls `recover` itself.
"""

import time
import warnings
from collections.abc import Callable, Collection
from typing import Any

from mpiexecutor._rma.failed_ranks import FAILED_RANKS, CommFailedRanks
from mpiexecutor._util.seconds import REST
from mpiexecutor.channel._ends.rank_state import Phase
from mpiexecutor.channel._ring.consumer import Consumer
from mpiexecutor.channel._ring.recovery import Position, RingRecovery

from ._base import ChannelBase
from ._errors import ChannelBroken, ChannelClosed, Share

_PAUSE = 1e-3  # seconds between two checks whether the living ranks are at rest


class Losses(ChannelBase):
    """A channel's operations after a failure."""

    def _begin_losses(self, failed: CommFailedRanks) -> None:
        """Set which ranks have failed; they may become more."""
        self._failed = failed
        self._taken_in: set[tuple[int, bool]] = set()  # failed ranks that the channel has handled; whether each perhaps lives

    def recover(
        self,
        failed: Collection[int],
        timeout: float = REST,
        renumber: Callable[[list[int], int], None] = lambda _kept, _first: None,
        *,
        silent: Collection[int] = (),
    ) -> list[Share]:
        """On the host: recover the ring after ranks have failed. No rank can put or take meanwhile.

        Args:
            failed: All ranks that have failed so far: they will never use the channel again. The collection may grow meanwhile.
            timeout: Seconds for the living ranks to finish the messages that they have begun.
            renumber: Called at the end, before any rank can put or take, with the numbers of the messages that are kept and the new
                number of the first of them. The new numbers differ from the old ones only if a message was aborted.
            silent: Ranks of `failed` that perhaps live: they count as failed only if they are not in the middle of a message.

        Returns:
            The last claim of each failed rank that has claimed anything.

        Raises:
            ChannelBroken: Living ranks are not at rest after `timeout`: one was stopped in the middle of a message. No rank can use
                the channel until this is called again and succeeds.
            ChannelClosed: The channel is freed.

        """
        deadline = time.monotonic() + timeout
        with self._aside_lock:
            if self._rank_state.phase is Phase.GONE:
                raise ChannelClosed("the channel was freed")
            tail: Position = self._puts if self._only_host["put"] else self._aside
            head: Position = self._takes if self._only_host["take"] else Consumer(self._memory(), self._layout, self._rank)
            recovery = RingRecovery(self._memory(), self._layout, tail, head)
            recovery.quiesce()
            known: frozenset[int] = frozenset()
            while (busy := recovery.at_work((now := frozenset(failed)) - frozenset(silent))) or now != known:
                self._rank_state.failed = now - frozenset(silent)
                if now != known:
                    self._wake_all()  # only now can they see which ranks have failed
                    known = now
                elif time.monotonic() > deadline:
                    raise ChannelBroken(f"ranks {busy} live, or may, and are not at rest after {timeout} s", busy)
                else:
                    time.sleep(_PAUSE)
            last_claims = recovery.recover(known, renumber)
            self._wake_all()
        return last_claims

    def note_failures(self) -> bool:
        """Handle new failures: on the host, recover the ring, and have the next operation raise an error.

        Returns:
            False if living ranks are not at rest: call it again later.

        """
        failed, silent = frozenset(self._failed), frozenset(self._failed.silent)
        new = {(rank, rank in silent) for rank in failed} - self._taken_in
        self._rank_state.failed = failed - silent
        if self._rank_state.phase is Phase.GONE or not new:
            return True
        if self._host in failed:
            self._taken_in |= new
            text = f"{self._failed.ends([self._host])}: it was the channel's host"
            self._rank_state.host_lost = ChannelBroken(text, [self._host])
            if self._rank_state.remote is not None:
                FAILED_RANKS.end_job(f"{self._rank_state.host_lost}, and ranks on other nodes may wait for its memory for ever")
        elif self._rank == self._host:
            try:
                last_claims = self.recover(self._failed, silent=self._failed.silent)  # more may die meanwhile
            except ChannelClosed:  # freed meanwhile
                return True
            except ChannelBroken as error:
                if not self._rank_state.losses:  # or it would be raised as often as this is tried
                    self._rank_state.losses.append(error)
                    self._interrupt()
                return False
            told = {rank for rank, _ in self._taken_in} - {rank for rank, _ in new}
            last_claims = [claim for claim in last_claims if claim.rank not in told]
            new |= {(claim.rank, False) for claim in last_claims if claim.rank not in failed}
            self._taken_in |= new
            ranks = sorted({rank for rank, _ in new})
            text = "; ".join([self._failed.ends(ranks), *map(str, last_claims)])
            self._rank_state.losses.append(ChannelBroken(f"{text}. The channel goes on", ranks, last_claims))
        self._interrupt()
        return True

    def settle(self, dead: Collection[int], *arguments: Any, **options: Any) -> list[Share]:
        """Do the same as `recover`, which is the new name; deprecated."""
        warnings.warn("RemoteChannel.settle is called recover now", DeprecationWarning, stacklevel=2)
        return self.recover(dead, *arguments, **options)

    def lose(self) -> bool:
        """Do the same as `note_failures`, which is the new name; deprecated."""
        warnings.warn("RemoteChannel.lose is called note_failures now", DeprecationWarning, stacklevel=2)
        return self.note_failures()

    def _interrupt(self) -> None:
        """Wake this rank's threads that wait at the channel."""
        self._puts.interrupt()
        self._takes.interrupt()

"""What a channel does when ranks have failed: the host recovers the ring, and the next operation raises an error.

The channel does not notice failures: the program that started the ranks reports them, by FAILED_RANKS of failed_ranks.py, or calls
`recover` itself.
"""

import time
import warnings
from collections.abc import Callable, Collection

from mpiexecutor._rma.failed_ranks import FAILED_RANKS, CommFailedRanks
from mpiexecutor._util.seconds import REST
from mpiexecutor.channel._ends.rank_state import Phase
from mpiexecutor.channel._ring.consumer import Consumer
from mpiexecutor.channel._ring.recovery import Position, RingRecovery

from ._base import ChannelBase
from ._errors import ChannelBroken, ChannelClosed, Share

_BREATH = 1e-3  # seconds between two looks whether the living have come to a rest


class Losses(ChannelBase):
    """A channel's operations after a failure."""

    def _begin_losses(self, failed: CommFailedRanks) -> None:
        """Set which ranks have failed; they may become more."""
        self._failed = failed
        self._taken_in: set[tuple[int, bool]] = set()  # failed ranks that the channel has dealt with; whether each perhaps lives

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
            failed: All ranks that have failed so far: they will never touch the channel again. It may grow meanwhile.
            timeout: Seconds that the living ranks have to finish what they are in the middle of.
            renumber: Is called at the end, before any rank can put or take, with the numbers of the messages that are kept, and the
                new number of the first; they differ only if a message among them was aborted.
            silent: Ranks of `failed` that perhaps live: they count as failed only if they are not in the middle of a message.

        Returns:
            What each of the failed ranks claimed last, if it claimed anything.

        Raises:
            ChannelBroken: Living ranks have not come to a rest in time: one was stopped in the middle of a message. The channel is
                of no use until this is called again, and succeeds.
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
                    raise ChannelBroken(f"ranks {busy} live, or may, and have not come to a rest within {timeout} s", busy)
                else:
                    time.sleep(_BREATH)
            last_claims = recovery.recover(known, renumber)
            self._wake_all()
        return last_claims

    def note_failures(self) -> bool:
        """Deal with ranks that have failed since: on the host, recover the ring, and have the next operation raise an error.

        Returns:
            False if living ranks have not come to a rest: to be tried again.

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

    def settle(
        self,
        dead: Collection[int],
        timeout: float = REST,
        renumber: Callable[[list[int], int], None] = lambda _kept, _first: None,
        *,
        silent: Collection[int] = (),
    ) -> list[Share]:
        """Do the same as `recover`, which is the new name; deprecated."""
        warnings.warn("RemoteChannel.settle is called recover now", DeprecationWarning, stacklevel=2)
        return self.recover(dead, timeout, renumber, silent=silent)

    def lose(self) -> bool:
        """Do the same as `note_failures`, which is the new name; deprecated."""
        warnings.warn("RemoteChannel.lose is called note_failures now", DeprecationWarning, stacklevel=2)
        return self.note_failures()

    def _interrupt(self) -> None:
        """Wake this rank's threads that wait at the channel."""
        self._puts.interrupt()
        self._takes.interrupt()

"""RemoteChannel: a bounded queue of messages in an RMA window, for any rank to put into and to take from.

    put ──> codec ──> PutEnd  ══ RMA ══>  ring in the host's window  ══ RMA ══>  TakeEnd ──> codec ──> take

This file has the constructor, claim, close and free. The other operations are in _putting.py and _taking.py, those after a failure
in _losses.py.
"""

import weakref
from dataclasses import dataclass
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self

from mpiexecutor._rma.doorbell import Notifier
from mpiexecutor._rma.failed_ranks import FAILED_RANKS, CommFailedRanks
from mpiexecutor._rma.serving_ranks import SERVING_RANKS
from mpiexecutor._util.process_end import PROCESS_END
from mpiexecutor.channel._ends.rank_state import Phase, RankState
from mpiexecutor.channel._ring.layout import Layout

from ._agreement import Arguments, agree, all_come
from ._losses import Losses
from ._putting import P, Putting
from ._taking import M, Taking

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of a channel's counts, all ranks together.

    Attributes:
        put: Messages that were put.
        taken: Messages that were taken.
        claimed: Messages that `claim` has announced; None before.
        waiting: Messages that were put, and not taken yet.
        slots: Slots of the channel.
        closed: Whether the channel is closed.

    """

    put: int
    taken: int
    claimed: int | None
    waiting: int
    slots: int
    closed: bool


class RemoteChannel(Putting[P], Taking[M], Losses, Generic[P, M]):
    """A bounded queue of messages in an RMA window.

    All ranks of a communicator make it together, with the same arguments. Then every thread of every rank may put and take at any
    time. Any rank takes the messages of another one in their order. Puts and takes are one-sided: no other rank has to answer, and
    only the host's memory is used.

    MPI ends the job when a rank fails, unless the program that started the ranks reports failures instead (see the README). Then
    the other ranks go on. Messages that the failed rank was putting or taking are lost, and the host's next operation raises
    ChannelBroken. The job still ends if the failed rank is rank 0 of MPI.COMM_WORLD, or a host with ranks on other nodes, or if it
    fails while all ranks make or free a channel.

    Example, run as ``mpiexec -n 4 python example.py``; the ranks share eight tasks, each of three numbers::

        from mpi4py import MPI
        from mpiexecutor.channel import RemoteChannel

        with RemoteChannel(buff_size=16, message_size=3, dtype="d") as tasks:
            tasks.claim(8)
            if MPI.COMM_WORLD.rank == 0:
                tasks.put_many([(i, i, i) for i in range(8)])
            for task in tasks:  # until all eight are taken
                print(MPI.COMM_WORLD.rank, sum(task))
    """

    def __init__(
        self: "RemoteChannel[Any, Any]",  # the types of messages depend on dtype
        buff_size: int,
        message_size: int,
        dtype: Any = "d",
        host: int = 0,
        *,
        comm: "MPI.Intracomm | None" = None,
        producers: Literal["any", "host"] = "any",
        consumers: Literal["any", "host"] = "any",
    ) -> None:
        """Make the channel, together with every rank of `comm`.

        Args:
            buff_size: Number of messages that the channel has room for.
            message_size: Maximum number of elements of a message; for ``dtype=object`` the bytes of a slot.
            dtype: What a message is:

                - a typecode of the array module, ``"d"`` by default: numbers, taken as array.array;
                - a numeric NumPy dtype: numbers, taken as an ndarray of one dimension;
                - ``bytes``: bytes-like objects, taken as bytes, an element being a byte;
                - ``object``: any object that can be pickled, of any size. A message takes as many slots as it needs, and flows
                  through if it needs more than there are.
            host: The rank of `comm` in whose memory the messages lie.
            comm: The communicator of the ranks; MPI.COMM_WORLD if None.
            producers: "host" if only the host puts: its end is then faster.
            consumers: "host" if only the host takes: its end is then faster.

        Raises:
            ValueError: On every rank: an argument is not possible, or differs between ranks.
            ChannelBroken: A rank of `comm` has failed.
            RuntimeError: A rank of `comm` runs calls of an executor of this rank, and does not make the channel.

        """
        # mpi4py.MPI initialises MPI when it is imported: not before a channel is made.
        from mpi4py import MPI  # noqa: PLC0415

        from mpiexecutor._rma.notifier import RemoteNotifier  # noqa: PLC0415
        from mpiexecutor._rma.window import Window  # noqa: PLC0415

        comm = MPI.COMM_WORLD if comm is None else comm
        SERVING_RANKS.check(lambda: comm.group.Translate_ranks(None, MPI.COMM_WORLD.group))
        failed = CommFailedRanks(comm.group.Translate_ranks(None, MPI.COMM_WORLD.group) if FAILED_RANKS.are_reported else ())
        agreement = agree(comm, Arguments(buff_size, message_size, dtype, host, producers, consumers), failed)
        buff_size, host = index(buff_size), index(host)
        layout = Layout(buff_size, agreement.codec.slot_size, comm.size)
        with FAILED_RANKS.all_needed("the making of a channel", failed):
            self._window = Window(comm, host, layout.size)
            remote = RemoteNotifier(comm, host) if len(set(agreement.nodes)) > 1 else None
            self._parting = comm.Dup() if FAILED_RANKS.are_reported else None  # for a barrier of all ranks that free the channel
            if comm.rank == host:
                layout.prepare(self._window.memory())
            comm.Barrier()
        rank_state = RankState(layout, comm.rank, agreement.token, agreement.nodes, Notifier(), remote)
        memory = self._window.memory if remote is None else lambda: remote.with_progress(self._window.memory())
        self._begin(agreement.codec, rank_state, memory, host, only_host={"put": producers == "host", "take": consumers == "host"})
        self._begin_losses(failed)
        self._threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        finish = weakref.WeakMethod(self._finish)  # at exit, the background threads end before MPI does
        self._at_exit = lambda: (method := finish()) and method()
        PROCESS_END.add(self._at_exit)
        FAILED_RANKS.add_listener(self)

    def claim(self, count: int) -> None:
        """Announce `count` more messages. Once all announced messages are taken, `take` returns None.

        Every rank may call it, so that scripts can run the same lines on every rank. Only the host's calls count. But `take` never
        returns None to a rank that has called it before that number of messages was taken, even if the host calls it later.

        Args:
            count: Number of messages, at least 0, in addition to earlier calls.

        """
        if count < 0:
            raise ValueError(f"claim says how many messages will come, at least 0, not {count}")
        with self._aside_lock:
            self._rank_state.check()
            ring = self._takes.ring
            ring.own_expected = (ring.own_expected or 0) + count
            if self._rank == self._host:
                self._aside.expect(ring.own_expected)
            self._wake_all()

    def close(self) -> None:
        """Accept no more messages: `put` raises ChannelClosed; `take` returns the messages still in the channel, and then None.

        Any rank may call it, and again; with ``producers="host"`` only the host.
        """
        with self._aside_lock:
            self._check_side("put")
            if self._only_host["put"]:
                self._puts.close()
            else:
                self._aside.close()
            self._wake_all()

    def statistics(self) -> Statistics:
        """Return a snapshot of the counts."""
        with self._aside_lock:
            self._rank_state.check()
            state = self._aside.state()
        put, taken = state.put - state.aborted, state.taken - state.aborted
        return Statistics(put, taken, state.expected, max(0, put - taken), self._layout.slots, state.closed)

    def __len__(self) -> int:
        """Return the number of messages that were put and not taken."""
        return self.statistics().waiting

    def free(self) -> None:
        """Free the memory, together with every rank. Operations that wait in other threads raise ChannelClosed.

        If a rank has failed the memory is freed when the job ends.
        """
        if self._rank_state.phase:
            return
        self._stop()
        PROCESS_END.remove(self._at_exit)
        if self._parting is not None:
            all_come(self._parting, self._failed)
        if self._failed:
            FAILED_RANKS.keep(self)  # other ranks may go on using its memory, and fail
            return
        with FAILED_RANKS.all_needed("the freeing of a channel", self._failed), self._puts.lock, self._takes.lock, self._aside_lock:
            self._leave()
            self._window.free()
            if self._rank_state.remote is not None:
                self._rank_state.remote.free()
            if self._parting is not None:
                self._parting.Free()
            self._puts.free()
            self._takes.free()
            self._rank_state.notifier.free()

    def abandon(self) -> None:
        """Stop using the channel without the other ranks, which may have failed: its memory is not freed."""
        self._stop()
        self._leave()

    def disown(self) -> None:
        """Stop using the channel in a forked child: it belongs to the parent. Every further operation raises ChannelClosed."""
        self._rank_state.phase = Phase.GONE
        PROCESS_END.remove(self._at_exit)

    def _stop(self) -> None:
        """Accept no operation, and end those that wait."""
        self._rank_state.phase = max(Phase.FREED, self._rank_state.phase)
        self._puts.stop()
        self._takes.stop()

    def _leave(self) -> None:
        self._rank_state.phase = Phase.GONE
        if self._rank_state.remote is not None:
            self._rank_state.remote.leave()

    def _finish(self) -> None:
        """At exit, before MPI ends: finish the puts in the background, and cancel the takes."""
        if not self._rank_state.phase:
            self._puts.background.join()
            if FAILED_RANKS.are_reported:
                self._stop()  # other ranks may go on using its memory, and fail
                FAILED_RANKS.keep(self)
            else:
                self.abandon()

    def __enter__(self) -> Self:
        self._rank_state.check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Free the channel. After an error close it first, so that no other rank waits for this one."""
        if error is not None and not self._rank_state.phase and (self._rank == self._host or not self._only_host["put"]):
            self.close()
        self.free()

    def __repr__(self) -> str:
        state = "freed" if self._rank_state.phase else f"{len(self)} messages in {self._layout.slots} slots"
        return f"<RemoteChannel of {self._codec.name} on rank {self._host}: {state}>"

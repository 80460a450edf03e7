"""RemoteChannel: a bounded queue of messages in an RMA window, for any rank to put into and to take from.

    put ──> codec ──> PutEnd  ══ RMA ══>  ring in the host's window  ══ RMA ══>  TakeEnd ──> codec ──> take

What is here: which operations there are, and what they say. How they wait and whom they wake is in _ends.py, how a message gets
through the ring in layout.py, what it looks like in _codecs.py.

Threads. Each end has one lock, held by the thread that is at work there; calls on the two ends do not hold each other up. A third
handle, under a lock of its own, serves close, claim and statistics, so that they need not wait for a blocked put.
"""

import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, overload

from mpiexecutor._rma.doorbell import Ringer
from mpiexecutor._rma.failed_ranks import DEATHS, Dead
from mpiexecutor._rma.memory import Memory
from mpiexecutor._util.seconds import REST as _REST
from mpiexecutor.channel._ring.consumer import Consumer, Incoming
from mpiexecutor.channel._ring.layout import Layout
from mpiexecutor.channel._ring.producer import Producer
from mpiexecutor.channel._ring.recovery import Heir, Position

from ._agreement import Arguments, agree, all_come
from ._background import ChannelFuture
from ._codecs import Codec
from ._ends import Parts, Place, PutEnd, Side, TakeEnd
from ._errors import ChannelBroken, ChannelClosed, ChannelEmpty, ChannelFull, IncompletePut, Share

if TYPE_CHECKING:
    from array import array
    from concurrent.futures import Future

    import numpy as np
    from mpi4py import MPI
    from typing_extensions import Buffer

P = TypeVar("P")  # what is put
M = TypeVar("M")  # what is taken
T = TypeVar("T")

_BREATH = 1e-3  # seconds between two looks whether the living have come to a rest
_BATCH = 256  # messages that put_many reserves, and take_many claims, in one step


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a channel has seen, all ranks together. Counts are of messages, but for the slots."""

    put: int
    taken: int
    claimed: int | None  # None while nobody has claimed
    waiting: int  # put, and not taken yet
    peak_slots: int  # the most slots that were in use at once, as seen by those who put
    slots: int
    closed: bool


class RemoteChannel(Generic[P, M]):
    """A bounded queue of messages in an RMA window.

    Every rank of the communicator makes it together, with the same arguments; then every rank, and every thread of it, may put
    and take at any time. Messages of one rank stay in order for any other rank. Nobody has to answer: puts and takes are
    one-sided, and only the host's memory is used.

    A rank that dies ends the job, as MPI has it, unless 'python -m mpiexecutor --spmd' runs the script. Then the others go on: what
    the dead rank had not put, or taken, as a whole is lost, and the host is told by ChannelBroken. Rank 0 of MPI.COMM_WORLD may not
    die, nor a host with ranks on other nodes, nor any rank while all together make or free a channel.
    """

    @overload
    def __init__(
        self: "RemoteChannel[Collection[Any], array[Any]]",
        buff_size: int,
        message_size: int,
        dtype: str = "d",
        host: int = 0,
        *,
        comm: "MPI.Intracomm | None" = None,
        producers: Literal["any", "host"] = "any",
        consumers: Literal["any", "host"] = "any",
    ) -> None: ...
    @overload
    def __init__(
        self: "RemoteChannel[Buffer, bytes]",
        buff_size: int,
        message_size: int,
        dtype: type[bytes],
        host: int = 0,
        *,
        comm: "MPI.Intracomm | None" = None,
        producers: Literal["any", "host"] = "any",
        consumers: Literal["any", "host"] = "any",
    ) -> None: ...
    @overload
    def __init__(
        self: "RemoteChannel[Collection[Any], np.ndarray[Any, Any]]",
        buff_size: int,
        message_size: int,
        dtype: "np.dtype[Any] | type[np.generic | float | int | complex]",
        host: int = 0,
        *,
        comm: "MPI.Intracomm | None" = None,
        producers: Literal["any", "host"] = "any",
        consumers: Literal["any", "host"] = "any",
    ) -> None: ...
    @overload
    def __init__(
        self: "RemoteChannel[Any, Any]",
        buff_size: int,
        message_size: int,
        dtype: type[object],
        host: int = 0,
        *,
        comm: "MPI.Intracomm | None" = None,
        producers: Literal["any", "host"] = "any",
        consumers: Literal["any", "host"] = "any",
    ) -> None: ...
    def __init__(
        self,
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

        At most `buff_size` messages are in it at a time, each of at most `message_size` elements. `dtype` is what a message is:

        - a typecode of the array module, ``"d"`` by default: numbers, taken as array.array;
        - a numeric NumPy dtype: numbers, taken as an ndarray of one dimension;
        - ``bytes``: bytes-like objects, taken as bytes, an element being a byte;
        - ``object``: any object that can be pickled, of any size. `message_size` is then the size of a slot in bytes; a message
          takes as many slots as it needs, and flows through if it needs more than there are.

        The messages lie in the memory of rank `host` of `comm` (MPI.COMM_WORLD if None). With ``producers="host"`` only the host
        puts, with ``consumers="host"`` only the host takes: its end is then faster.

        ValueError, on every rank, if the arguments make no channel or differ between ranks.
        """
        # mpi4py.MPI initialises MPI when it is imported: not before a channel is made.
        from mpi4py import MPI  # noqa: PLC0415

        from mpiexecutor._rma.notifier import FarBells  # noqa: PLC0415
        from mpiexecutor._rma.window import Window  # noqa: PLC0415

        comm = MPI.COMM_WORLD if comm is None else comm
        self._dead = Dead(comm.group.Translate_ranks(None, MPI.COMM_WORLD.group) if DEATHS.are_told else ())
        agreement = agree(comm, Arguments(buff_size, message_size, dtype, host, producers, consumers), self._dead)
        buff_size, host = index(buff_size), index(host)
        layout = Layout(buff_size, agreement.codec.slot_size, comm.size)
        with DEATHS.all_needed("the making of a channel", self._dead):
            self._window = Window(comm, host, layout.size)
            bells = FarBells(comm, host) if len(set(agreement.nodes)) > 1 else None
            self._parting = comm.Dup() if DEATHS.are_told else None  # by which it is found out whether all free it
            if comm.rank == host:
                layout.prepare(self._window.memory())
            comm.Barrier()
        self._threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self._settled: set[tuple[int, bool]] = set()  # of the dead, and whether that perhaps lives
        place = Place(layout, comm.rank, agreement.token, agreement.nodes, Ringer(), bells)
        memory = self._window.memory if bells is None else lambda: bells.attended(self._window.memory())
        self._begin(agreement.codec, place, memory, host, only_host={"put": producers == "host", "take": consumers == "host"})
        self._at_exit = _at_exit(self)
        DEATHS.attend(self)

    def _begin(
        self, codec: Codec, place: Place, memory: Callable[[], Memory], host: int, *, only_host: Mapping[Side, bool]
    ) -> None:
        """Be a channel in some memory, wherever that is: `memory` gives a handle on it, for one thread."""
        self._codec = codec
        self._layout = place.layout
        self._place = place
        self._memory = memory
        self._host = host
        self._rank = place.rank
        self._only_host = only_host
        self._puts = PutEnd(place, memory(), sole=only_host["put"])
        self._takes = TakeEnd(place, memory(), sole=only_host["take"])
        self._aside = Producer(memory(), place.layout, place.rank)
        self._aside_lock = threading.Lock()
        self._claims = 0  # by this rank
        self._gone = False  # its memory is not to be touched any more

    # -- put -------------------------------------------------------------------------------------------------------------------

    def put(self, message: P, timeout: float | None = None) -> None:
        """Put a message at the end of the channel, waiting for room.

        `timeout` is in seconds; when it is over the message has not been put, and TimeoutError is raised. ChannelClosed once
        the channel is closed. ValueError if the message is too long, TypeError if it is no message of this channel.
        """
        deadline = _deadline(timeout)
        parts = self._encode(message)
        if self._puts.background.busy:
            _result(self._puts.put_later(parts), deadline)
            return
        if not self._puts.put([parts], deadline):
            raise TimeoutError(f"no room within {timeout} s")

    def put_nowait(self, message: P) -> None:
        """Put a message if there is room for all of it now; ChannelFull if not."""
        parts = self._encode(message)
        size = sum(map(len, parts))
        if self._layout.span(size) > self._layout.slots:
            raise ChannelFull(f"a message of {size} bytes is longer than the channel: only put can wait until others take it")
        if self._puts.background.busy:
            raise ChannelFull("other puts of this rank are waiting")
        if not self._puts.put([parts], 0, whole=True):
            raise ChannelFull(f"no room in the channel's {self._layout.slots} slots")

    def putf(self, message: P, *, copy: bool = True) -> "Future[None]":
        """Put a message in the background, after those that this rank put before; give the future of that.

        The future can be cancelled until the message gets room: then nothing is put. The message is copied first; with
        ``copy=False`` large buffers of it are not, and must not change until the future is done.
        """
        self._check_threads()
        parts = self._encode(message)
        return self._puts.put_later([memoryview(bytes(part)) for part in parts] if copy else parts)

    def put_many(self, messages: Iterable[P], timeout: float | None = None) -> None:
        """Put several messages, in order, with fewer steps than one by one.

        When `timeout` is over, IncompletePut (a TimeoutError) says how many were put.
        """
        deadline = _deadline(timeout)
        encoded = [self._encode(message) for message in messages]
        if self._puts.background.busy:  # what this rank put before comes first
            try:
                _result(self._puts.background.submit(lambda future: future.begin(lambda: True)), deadline)
            except TimeoutError:
                raise IncompletePut(0, len(encoded)) from None
        done = 0
        while done < len(encoded):
            try:
                put = self._puts.put(encoded[done : done + _BATCH], deadline)
            except ChannelBroken as error:
                error.count = done
                raise
            if not put:
                raise IncompletePut(done, len(encoded))
            done += put

    def _encode(self, message: P) -> Parts:
        self._check_side("put")
        return self._codec.encode(message)

    # -- take ------------------------------------------------------------------------------------------------------------------

    def take(self, timeout: float | None = None) -> M | None:
        """Take the next message, waiting for one; None if none will come any more.

        That is so once as many messages were taken as were claimed, or once the channel is closed and empty. A channel
        that nobody has claimed anything of, and nobody has closed, is waited on.

        `timeout`, in seconds, bounds the wait for a message to begin: TimeoutError then, and nothing was taken. One that has
        begun is received whole. Every way to take raises ChannelMemoryError if the next message does not fit into this rank's
        memory as it is in the channel: it stays there. In a channel of objects None may be a message, too: take_many or a for
        loop tell it from the end.
        """
        messages = self.take_many(1, timeout)
        return messages[0] if messages else None

    def take_nowait(self) -> M | None:
        """Take the next message if one has come; ChannelEmpty if not, None if none will come any more."""
        self._check_side("take")
        if self._takes.background.busy:
            raise ChannelEmpty("other takes of this rank are waiting")
        found = self._takes.take(1, 0)
        if found is None:
            raise ChannelEmpty("no message has come yet")
        return self._decode_one(found)

    def takef(self) -> "Future[M | None]":
        """Take the next message in the background, after those that this rank asked for before; give the future of that.

        The future can be cancelled until a message is claimed for it: then nothing is taken.
        """
        self._check_threads()
        self._check_side("take")
        return self._takes.take_later(self._decode_one)

    def take_many(self, most: int, timeout: float | None = None) -> list[M]:
        """Take up to `most` messages: waits for the first, then takes those that are there. Empty if none will come any more."""
        self._check_side("take")
        if most < 1:
            raise ValueError(f"take_many takes at least 1 message, not {most}")
        deadline = _deadline(timeout)
        if self._takes.background.busy:
            return _result(self._takes.take_later(self._decode), deadline)
        found = self._takes.take(min(most, _BATCH), deadline)
        if found is None:
            raise TimeoutError(f"no message within {timeout} s")
        return self._decode(found)

    def skip(self, number: int) -> bool:
        """Throw a message away, unread, of which this rank was told by a ChannelMemoryError that it has no memory for it.

        Whether that was done. If not it is not the next message any more, as it was taken, or perhaps will be put anew, or another
        thread of this rank is taking: take again. Waits for the rest of a message that is still being put, as take does.
        """
        self._check_side("take")
        return self._takes.skip(number)

    def __iter__(self) -> Iterator[M]:
        """Take messages until none will come any more."""
        while messages := self.take_many(1):
            yield messages.pop()

    def _decode(self, found: Incoming) -> list[M]:
        if len(found.lengths) == 1:
            return [self._codec.decode(found.data, shared=False)]
        messages, start = [], 0
        for length in found.lengths:
            messages.append(self._codec.decode(found.data[start : start + length], shared=True))
            start += self._layout.span(length) * self._layout.slot_size
        return messages

    def _decode_one(self, found: Incoming) -> M | None:
        messages = self._decode(found)
        return messages[0] if messages else None

    # -- the channel as a whole --------------------------------------------------------------------------------------------------

    def claim(self, count: int) -> None:
        """Say that `count` more messages will come: once all that were claimed are taken, take gives None.

        Every rank may call it, as scripts do that run the same lines everywhere. Only the host's calls count, but a rank that
        has called it never sees None before that many messages were taken, even while the host's call is still to come.
        """
        if count < 0:
            raise ValueError(f"claim says how many messages will come, at least 0, not {count}")
        with self._aside_lock:
            self._place.check()
            self._claims += count
            self._takes.ring.own_claims = self._claims
            if self._rank == self._host:
                self._aside.claim(self._claims)
            self._wake_all()

    def close(self) -> None:
        """Take no more messages: put raises ChannelClosed, take gives what is still there and then None.

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
        """Give a snapshot of the counts."""
        with self._aside_lock:
            self._place.check()
            state, peak = self._aside.state(), self._aside.peak_of_all()
        put, taken = state.put - state.void, state.taken - state.void
        return Statistics(put, taken, state.claimed, max(0, put - taken), peak, self._layout.slots, state.closed)

    def __len__(self) -> int:
        """How many messages are in the channel, put and not taken."""
        return self.statistics().waiting

    def free(self) -> None:
        """Give the memory back, together with every rank. What is still waiting in other threads gets ChannelClosed.

        If a rank has died the memory is given back when the job ends.
        """
        if self._place.freed:
            return
        self._stop()
        atexit.unregister(self._at_exit)
        if self._parting is not None:
            all_come(self._parting, self._dead)
        if self._dead:
            DEATHS.keep(self)  # others may go on using its memory, and die
            return
        with DEATHS.all_needed("the freeing of a channel", self._dead), self._puts.lock, self._takes.lock, self._aside_lock:
            self._leave()
            self._window.free()
            if self._place.bells is not None:
                self._place.bells.free()
            if self._parting is not None:
                self._parting.Free()
            self._puts.free()
            self._takes.free()
            self._place.ringer.free()

    @property
    def count(self) -> int:
        """How many messages were put: for the host, if it alone puts. The next one has this number."""
        return self._puts.ring.count

    def settle(
        self,
        dead: Collection[int],
        timeout: float = _REST,
        renumber: Callable[[list[int], int], None] = lambda _kept, _first: None,
        *,
        silent: Collection[int] = (),
    ) -> list[Share]:
        """On the host: settle what dead ranks have left behind; give what each of them claimed last, if it claimed anything.

        `dead` are all that have died so far: they will never touch the channel again. It may grow meanwhile. Nobody else can put
        or take meanwhile. At the end, before anybody can, `renumber` is told the numbers of the messages that are kept, and the
        new number of the first of them; they differ only if a message among them was given up half-way.

        `silent` are those of the dead that may live: they count as dead only if they are not in the middle of a message.

        ChannelBroken if the living have not come to a rest in `timeout` seconds: one was stopped in the middle of a message. The
        channel is of no use until this is called again, and succeeds.
        """
        deadline = time.monotonic() + timeout
        with self._aside_lock:
            if self._gone:
                raise ChannelClosed("the channel was freed")
            tail: Position = self._puts if self._only_host["put"] else self._aside
            head: Position = self._takes if self._only_host["take"] else Consumer(self._memory(), self._layout, self._rank)
            heir = Heir(self._memory(), self._layout, tail, head)
            heir.pause()
            known: frozenset[int] = frozenset()
            while (busy := heir.at_work((now := frozenset(dead)) - frozenset(silent))) or now != known:
                self._place.dead = now - frozenset(silent)
                if now != known:
                    self._wake_all()  # only now can they see who is dead
                    known = now
                elif time.monotonic() > deadline:
                    raise ChannelBroken(f"ranks {busy} live, or may, and have not come to a rest within {timeout} s", busy)
                else:
                    time.sleep(_BREATH)
            shares = heir.settle(known, renumber)
            self._wake_all()
        return shares

    def lose(self) -> bool:
        """Take in who has died, as told: as the host, settle what they have left and tell the next that puts or takes.

        False if ranks that live do not come to a rest: to be tried again.
        """
        dead, silent = frozenset(self._dead), frozenset(self._dead.silent)
        new = {(rank, rank in silent) for rank in dead} - self._settled
        self._place.dead = dead - silent
        if self._gone or not new:
            return True
        if self._host in dead:
            self._settled |= new
            self._place.host_lost = ChannelBroken(f"{self._dead.ends([self._host])}: it was the channel's host", [self._host])
            if self._place.bells is not None:
                DEATHS.end_job(f"{self._place.host_lost}, and ranks on other nodes may wait for its memory for ever")
        elif self._rank == self._host:
            try:
                shares = self.settle(self._dead, silent=self._dead.silent)  # more may die meanwhile
            except ChannelClosed:  # freed meanwhile
                return True
            except ChannelBroken as error:
                if not self._place.losses:  # or it would be told as often as it is tried
                    self._tell(error)
                return False
            told = {rank for rank, _ in self._settled} - {rank for rank, _ in new}
            shares = [share for share in shares if share.rank not in told]
            new |= {(share.rank, False) for share in shares if share.rank not in dead}
            self._settled |= new
            ranks = sorted({rank for rank, _ in new})
            text = "; ".join([self._dead.ends(ranks), *map(str, shares)])
            self._tell(ChannelBroken(f"{text}. The channel goes on", ranks, shares))
        self._puts.interrupt()
        self._takes.interrupt()
        return True

    def _tell(self, error: ChannelBroken) -> None:
        self._place.losses.append(error)
        self._puts.interrupt()
        self._takes.interrupt()

    def abandon(self) -> None:
        """Use the channel no more, without the other ranks, which may be lost: its memory is not given back."""
        self._stop()
        self._leave()

    def _stop(self) -> None:
        """Begin nothing any more, and have whoever waits give up."""
        self._place.freed = True
        self._puts.stop()
        self._takes.stop()

    def _leave(self) -> None:
        self._gone = True
        if self._place.bells is not None:
            self._place.bells.leave()

    def disown(self) -> None:
        """Leave the channel as it is: in a forked child it is the parent's. Any further use is ChannelClosed."""
        self._gone = self._place.freed = True
        atexit.unregister(self._at_exit)

    def _finish(self) -> None:
        """At exit, before MPI ends: what was to be put is put, what was to be taken is given up."""
        if not self._place.freed:
            self._puts.background.join()
            if DEATHS.are_told:
                self._stop()  # others may go on using its memory, and die
                DEATHS.keep(self)
            else:
                self.abandon()

    def __enter__(self) -> Self:
        self._place.check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Free the channel. After an error close it first, so that no other rank waits for this one."""
        if error is not None and not self._place.freed and (self._rank == self._host or not self._only_host["put"]):
            self.close()
        self.free()

    def __repr__(self) -> str:
        state = "freed" if self._place.freed else f"{len(self)} messages in {self._layout.slots} slots"
        return f"<RemoteChannel of {self._codec.name} on rank {self._host}: {state}>"

    def _wake_all(self) -> None:
        state = self._aside.state()
        self._place.wake(self._aside, "take", state.takers, begin=len(state.takers))
        self._place.wake(self._aside, "put", state.putters, begin=len(state.putters))

    def _check_side(self, side: Side) -> None:
        self._place.check()
        if self._only_host[side] and self._rank != self._host:
            who = "producers" if side == "put" else "consumers"
            raise ValueError(f"this channel was made with {who}='host': rank {self._host} may {side}, rank {self._rank} may not")

    def _check_threads(self) -> None:
        self._place.check()
        if not self._threads:
            raise RuntimeError("putf and takef need MPI with THREAD_MULTIPLE: leave mpi4py.rc.thread_level as it is")


def _at_exit(channel: RemoteChannel[Any, Any]) -> Callable[[], None]:
    """Have the background threads end before MPI does, unless the channel is gone by then."""
    reference = weakref.ref(channel)

    def finish() -> None:
        if (channel := reference()) is not None:
            channel._finish()  # noqa: SLF001 - its own

    atexit.register(finish)
    return finish


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout is a number of seconds, at least 0, or None, not {timeout!r}")
    return time.monotonic() + timeout


def _result(future: ChannelFuture[T], deadline: float | None) -> T:
    """Wait for a future of our own; when out of time, or interrupted, it is cancelled, unless its message has begun."""
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

"""Between nodes: how a rank is notified, and how the host of a window is asked for progress.

A notification is an empty message, as it is a datagram on one node. It waits until its receiver checks for messages, so none is
missed. A check takes a microsecond, needs no other rank, and makes progress.

A message to a failed rank of another node does harm, and the sender may not know of the failure yet:

    MPICH, up to 5.0 at least, crashes: MPID_Isend uses a request that its network module has not made. A Put is an error
    instead. There each rank has a few bytes in a window, which the others set.

    Intel MPI, over TCP, tries for ever to connect again, in any call. There threads send, and no rank waits for them.
"""

import _thread
import contextlib
import itertools
import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final, Literal

from mpi4py import MPI

from mpiexecutor._util.flavour import Flavour, flavour_of

from .memory import Memory
from .progress import progress_threads
from .window import Marks

logger = logging.getLogger("mpiexecutor")

Which = Literal["put", "take", "progress"]

_TAGS: Final[dict[Which, int]] = {"put": 0, "take": 1, "progress": 2}
_REQUEST = 0.02  # seconds between two progress requests of a rank that goes on using the host's memory
_NOTHING: Final = [None, 0, MPI.BYTE]
_FAILURES: Final = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING} - {MPI.ERR_UNKNOWN}  # of other ranks, where MPI tells of them


@contextlib.contextmanager
def unless_failed() -> Iterator[None]:
    """Ignore that another rank has failed, where MPI says so."""
    try:
        yield
    except MPI.Exception as error:
        if error.Get_error_class() not in _FAILURES:
            raise


def has_come(comm: MPI.Intracomm, tag: int) -> bool:
    """Whether there is a message from any rank. The first look may only have MPI read it, and the second find it.

    Receive it by a matched probe for any source. If its sender has failed, a receive by rank waits for ever in Open MPI, or fails
    and finds the message again; and a Recv from any source may wait for ever in MPICH 5, where only some ranks are on this node.
    """
    try:
        return comm.Iprobe(MPI.ANY_SOURCE, tag) or comm.Iprobe(MPI.ANY_SOURCE, tag)
    except MPI.Exception as error:
        if error.Get_error_class() not in _FAILURES:
            raise
        comm.Ack_failed()  # or every further look would fail, too
        return False


def marks_instead(comm: MPI.Intracomm, size: int) -> Marks | None:
    """Return bytes to set instead of messages, where a message to a failed rank crashes its sender; collective. Else None."""
    return Marks(comm, size) if flavour_of(MPI.Get_library_version()) is Flavour.MPICH else None


def senders_instead() -> "Senders | None":
    """Return threads that send, where a send to a failed rank never returns. Else None."""
    return Senders() if flavour_of(MPI.Get_library_version()) is Flavour.INTEL_MPI else None


class RemoteNotifier:
    """Notifies the ranks of a channel on other nodes. Collective to make and to free."""

    def __init__(self, comm: MPI.Intracomm, host: int) -> None:
        own = comm.Dup()
        marks = marks_instead(own, len(_TAGS))
        self._carrier = _Messages(own, host) if marks is None else _Bytes(own, marks)
        self._host = host
        self._is_host = comm.rank == host
        # Two threads of the host are inside MPI at a time. Where MPI forbids that, the host makes progress in its own operations.
        self._progress = progress_threads() if self._is_host and MPI.Query_thread() == MPI.THREAD_MULTIPLE else None
        self._requested_until = 0.0
        if self._progress is not None:
            self._progress.serve(self._progress_requested)

    def notify(self, rank: int, which: Which) -> None:
        """Notify a rank, which finds the notification at its next check. Never wait."""
        self._carrier.send(rank, which)

    def was_notified(self, which: Which) -> bool:
        """Whether this rank was notified since it last looked, once or several times."""
        if self._is_host and self._progress is None:
            self._carrier.receive("progress")  # no thread of its own does
        return self._carrier.receive(which)

    def request_progress(self) -> None:
        """Have the host make progress for a while: this rank, or one that it has notified, is about to use its memory."""
        if time.monotonic() < self._requested_until:
            return
        self._requested_until = time.monotonic() + _REQUEST
        if self._progress is not None:
            self._progress.request()
        elif not self._is_host:
            self.notify(self._host, "progress")

    def with_progress(self, memory: Memory) -> Memory:
        """Return a handle on the host's memory that requests progress before each call that waits for the host."""
        return memory if self._is_host else _MemoryWithProgress(memory, self.request_progress)

    def leave(self) -> None:
        """Stop making progress for the others."""
        if self._progress is not None:
            self._progress.leave(self._progress_requested)

    def free(self) -> None:
        self._carrier.free()

    def _progress_requested(self) -> bool:
        return self.was_notified("progress")


class _Bytes:
    """Carries notifications as bytes that are set."""

    def __init__(self, comm: MPI.Intracomm, marks: Marks) -> None:
        self._comm = comm
        self._marks = marks

    def send(self, rank: int, which: Which) -> None:
        self._marks.set(rank, _TAGS[which])  # no harm if the rank has failed

    def receive(self, which: Which) -> bool:
        self._comm.Iprobe()  # is progress
        return self._marks.clear(_TAGS[which])

    def free(self) -> None:
        self._marks.free()
        self._comm.Free()


class _Messages:
    """Carries notifications as empty messages."""

    def __init__(self, comm: MPI.Intracomm, host: int) -> None:
        self._comm = comm
        self._host = host  # it lives, or the channel cannot be used
        self._senders = senders_instead()
        # No lock: a sender may hold one that a finalizer wants, which the collector of garbage may run under a lock of ours.
        self._sent = [itertools.count() for _ in range(comm.size)]  # by rank
        # Not freed at once: if a freed request fails Open MPI aborts this process.
        self._on_their_way: deque[MPI.Request] = deque()
        self._receiving = threading.Lock()
        self._received = 0

    def send(self, rank: int, which: Which) -> None:
        next(self._sent[rank])
        if self._senders is None or rank == self._host:
            self._send(rank, which)
        else:
            self._senders.do(partial(self._send, rank, which))

    def receive(self, which: Which) -> bool:
        found = False
        with self._receiving:
            while self._receive(_TAGS[which]):
                found = True
        return found

    def free(self) -> None:
        """Receive all messages: a communicator made later may look the same to MPI, and must not find them."""
        if self._senders is not None:
            self._senders.stop()
        expected = array("q", [0])
        self._comm.Reduce_scatter_block(array("q", map(next, self._sent)), expected)
        while self._received < expected[0]:
            self._receive(MPI.ANY_TAG)
        while self._on_their_way:
            self._clear_away()
        self._comm.Free()

    def _send(self, rank: int, which: Which) -> None:
        with unless_failed():
            self._on_their_way.append(self._comm.Isend(_NOTHING, rank, _TAGS[which]))
        self._clear_away()

    def _clear_away(self) -> None:
        """Forget the requests of messages that have been sent."""
        for _ in range(len(self._on_their_way)):
            with contextlib.suppress(IndexError):  # another thread does so, too
                request = self._on_their_way.popleft()
                with unless_failed():
                    if not request.Test():
                        self._on_their_way.append(request)

    def _receive(self, tag: int) -> bool:
        """Receive a message if there is one."""
        if not has_come(self._comm, tag):
            return False
        self._received += 1  # before an interrupt can come: the message is there
        with unless_failed():
            message = self._comm.Improbe(MPI.ANY_SOURCE, tag)
            if message is not None:
                message.Recv(_NOTHING)
        return True


class Senders:
    """Threads that carry out tasks, some of which may never return: one more thread whenever all others are at work."""

    def __init__(self) -> None:
        # Queues, and no lock: see _Messages.
        self._due: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle: SimpleQueue[None] = SimpleQueue()  # as many as there are threads without a task
        self._ended: SimpleQueue[None] = SimpleQueue()  # one for each thread
        self._threads = 0

    def do(self, task: Callable[[], None]) -> None:
        """Have a thread carry out a task."""
        try:
            self._idle.get_nowait()
        except Empty:
            # Not threading.Thread, whose start waits for the thread, perhaps under a lock that a finalizer there wants.
            with contextlib.suppress(RuntimeError):  # the process is ending, and starts no thread
                _thread.start_new_thread(self._run, ())
                self._threads += 1
        if self._threads:
            self._due.put(task)
        else:
            task()

    def stop(self) -> None:
        """Wait until all tasks are done, and end the threads. None of the receivers may have failed."""
        for _ in range(self._threads):
            self._due.put(None)
            self._ended.get()

    def _run(self) -> None:
        while (task := self._due.get()) is not None:
            try:
                task()
            except Exception:
                logger.exception("a rank on another node was not sent what it is for")
            self._idle.put(None)
        self._ended.put(None)


class _MemoryWithProgress:
    """Another rank's memory: calls that wait for the host request its progress first."""

    def __init__(self, memory: Memory, request_progress: Callable[[], None]) -> None:
        self._memory = memory
        self._request_progress = request_progress
        self.read, self.store, self.store_once = memory.read, memory.store, memory.store_once
        self.write, self.allocate = memory.write, memory.allocate

    def load(self, at: int) -> int:
        self._request_progress()
        return self._memory.load(at)

    def fetch(self, at: int, into: memoryview) -> None:
        self._request_progress()
        self._memory.fetch(at, into)

    def compare_swap(self, at: int, expected: int, word: int) -> int:
        self._request_progress()
        return self._memory.compare_swap(at, expected, word)

    def flush(self) -> None:
        self._request_progress()
        self._memory.flush()

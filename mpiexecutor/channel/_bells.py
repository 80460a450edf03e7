"""Between nodes: how a rank is woken, and how the host is asked to attend. Empty MPI messages do what datagrams do on one node.

A message waits until it is looked for, so that none is missed; looking costs a microsecond, needs nobody else, and is progress.
"""

import contextlib
import itertools
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from mpi4py import MPI

from ._memory import Memory
from ._progress import attendant

_TAGS: Final = {"put": 0, "take": 1, "knock": 2}
_KNOCK = 0.02  # seconds between two knocks of a rank that goes on using the host's memory
_NOTHING: Final = [None, 0, MPI.BYTE]


_DEATHS: Final = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING} - {MPI.ERR_UNKNOWN}  # of other ranks, where MPI tells of them


@contextlib.contextmanager
def unless_dead() -> Iterator[None]:
    """Do something with another rank; if that is dead, nothing, where MPI says so."""
    try:
        yield
    except MPI.Exception as error:
        if error.Get_error_class() not in _DEATHS:
            raise


def has_come(comm: MPI.Intracomm, tag: int, status: MPI.Status) -> bool:
    """Whether there is a message from anybody. The first look may only have MPI read it, and the second find it."""
    try:
        return comm.Iprobe(MPI.ANY_SOURCE, tag, status) or comm.Iprobe(MPI.ANY_SOURCE, tag, status)
    except MPI.Exception as error:
        if error.Get_error_class() not in _DEATHS:
            raise
        comm.Ack_failed()  # or every further look would fail, too
        return False


class FarBells:
    """The bells of a channel whose ranks live on several nodes. Collective to make and to free."""

    def __init__(self, comm: MPI.Intracomm, host: int) -> None:
        self._comm = comm.Dup()
        self._host = host
        self._is_host = comm.rank == host
        # Two threads of it are inside MPI at a time. Where that must not be, the host attends when it uses the channel itself.
        self._attendant = attendant() if self._is_host and MPI.Query_thread() == MPI.THREAD_MULTIPLE else None
        # No lock: who rings may hold one that a finalizer wants, which the collector of garbage may run under a lock of ours.
        self._sent = [itertools.count() for _ in range(comm.size)]  # rings, by rank
        self._receiving = threading.Lock()
        self._received = 0
        self._attended_until = 0.0
        if self._attendant is not None:
            self._attendant.attend(self._knocked)

    def ring(self, rank: int, which: Literal["put", "take", "knock"]) -> None:
        """Have a rank find a message, some time; never waits."""
        next(self._sent[rank])
        with unless_dead():
            self._comm.Isend(_NOTHING, rank, _TAGS[which]).Free()

    def rung(self, which: Literal["put", "take", "knock"]) -> bool:
        """Whether there was a message for this rank; one look serves all who rang."""
        with self._receiving:
            if self._is_host and self._attendant is None:
                self._receive_all("knock")  # nobody else does
            return self._receive_all(which)

    def stir(self) -> None:
        """Have the host attend to its memory for a while: this rank, or one that it has rung, is about to use it."""
        if time.monotonic() < self._attended_until:
            return
        self._attended_until = time.monotonic() + _KNOCK
        if self._attendant is not None:
            self._attendant.poke()
        elif not self._is_host:
            self.ring(self._host, "knock")

    def attended(self, memory: Memory) -> Memory:
        """Give a handle on the host's memory that has it attend whenever it is waited for."""
        return memory if self._is_host else _AttendedMemory(memory, self.stir)

    def leave(self) -> None:
        """Attend to the others no more."""
        if self._attendant is not None:
            self._attendant.leave(self._knocked)

    def free(self) -> None:
        """Receive all that was sent: a communicator made later may look the same to MPI, and must not find it."""
        expected = array("q", [0])
        self._comm.Reduce_scatter_block(array("q", map(next, self._sent)), expected)
        while self._received < expected[0]:
            self._receive(MPI.ANY_TAG)
        self._comm.Free()

    def _receive_all(self, which: Literal["put", "take", "knock"]) -> bool:
        found = False
        while self._receive(_TAGS[which]):
            found = True
        return found

    def _receive(self, tag: int) -> bool:
        """Receive a message if there is one: from the rank that it comes from.

        MPICH 5 may look for one from any rank for ever, where some ranks are on this node and some are not.
        """
        status = MPI.Status()
        if not has_come(self._comm, tag, status):
            return False
        self._received += 1  # before an interrupt can come between: it is there
        with unless_dead():
            self._comm.Recv(_NOTHING, status.source, status.tag)
        return True

    def _knocked(self) -> bool:
        return self.rung("knock")


class _AttendedMemory:
    """Another rank's memory; calls that wait for the host have it attend first."""

    def __init__(self, memory: Memory, stir: Callable[[], None]) -> None:
        self._memory = memory
        self._stir = stir

    def load(self, at: int) -> int:
        self._stir()
        return self._memory.load(at)

    def fetch(self, at: int, into: memoryview) -> None:
        self._stir()
        self._memory.fetch(at, into)

    def read(self, at: int, into: memoryview) -> None:
        self._memory.read(at, into)

    def store(self, at: int, word: int) -> None:
        self._memory.store(at, word)

    def hand_over(self, at: int, olds: Sequence[int], words: Sequence[int]) -> None:
        self._memory.hand_over(at, olds, words)

    def write(self, at: int, data: memoryview) -> None:
        self._memory.write(at, data)

    def compare_swap(self, at: int, expected: int, word: int) -> int:
        self._stir()
        return self._memory.compare_swap(at, expected, word)

    def allocate(self, size: int) -> memoryview:
        return self._memory.allocate(size)

    def flush(self) -> None:
        self._stir()
        self._memory.flush()

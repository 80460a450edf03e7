"""Between nodes: how failures are reported to a root that supervisors cannot reach, and how its commands reach these supervisors.

    supervisor ──> monitor of another worker of its node ──> Forwarder ══ MPI ══> ForwarderRoot ──> monitor of the root

Each worker on another node than the root's has a failure monitor of its own and a Forwarder. The Forwarder forwards a failure
at once, and at intervals which workers have given signs of life. A supervisor connects to the monitor of another worker of its
node, if there is one, so that a living worker forwards the failure.

The root gives up a worker if no forwarder has reported that it lives for long: its node is cut off, or it was the last worker there
and has died. That is a mistake if all workers of a node hold the GIL for that long. Such a worker may come back and does no harm,
since it was not in the middle of a message: replies that it puts are ignored, and it runs calls that it takes. Until it comes back
nothing is sent to it, as MPI may wait for ever, or fail, if no process receives.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from queue import Empty
from typing import Any

from mpi4py import MPI

from mpiexecutor._rma.notifier import has_come, marks_instead, senders_instead, unless_failed
from mpiexecutor._rma.progress import progress_threads
from mpiexecutor._util.seconds import ASLEEP, PULSE

from .commands import LEAVE
from .monitor import FailureMonitor, WorkerFailure
from .status_page import Signs

_NEWS, _COMMANDS = 0, 1  # tags of messages to the root, and from it
_LOOK = 0.05  # seconds between two looks of a forwarder at what the root wants
_LAST_LOOK = 1e-3  # and of the root at what comes last
_BEATS = 6  # messages without news of a worker after which it is given up
_LONGEST = PULSE  # seconds between two of them, at the most
_SHORT = 4 << 10  # bytes of a message that any MPI sends at once


class Forwarder:
    """A worker's side: forwards the reports of its monitor to the root, and carries out the root's commands."""

    def __init__(
        self, comm: MPI.Intracomm, root: int, monitor: FailureMonitor, lost_after: float, leave: Callable[[], None]
    ) -> None:
        self._comm = comm
        self._root = root
        self._monitor = monitor
        self._pause = min(_LONGEST, lost_after / _BEATS)  # seconds between two messages about which workers live
        self._leave = leave  # ends this process, as it has nothing to do any more
        self._told: frozenset[int] = frozenset()  # workers that the root knows
        self._next = 0.0  # time of the next such message
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mpiexecutor forwarder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop forwarding: all workers live, and are done."""
        self._stopped = True
        self._thread.join()
        self._monitor.stop()
        self._comm.send(("gone", None), self._root, _NEWS)

    def _run(self) -> None:
        while not self._stopped:
            with contextlib.suppress(Empty):
                failure = self._monitor.failures.get(timeout=_LOOK)
                assert failure is not None
                self._tell_of(failure)
            self._tell_of_living()
            while self._comm.Iprobe(self._root, _COMMANDS):
                self._obey(*self._comm.recv(source=self._root, tag=_COMMANDS))

    def _tell_of(self, failure: WorkerFailure) -> None:
        """Forward a failure, in messages so short that each arrives as a whole: this process may die, too."""
        for start in range(0, len(failure.held), _SHORT):
            self._comm.send(("held", (failure.rank, failure.held[start : start + _SHORT])), self._root, _NEWS)
        self._comm.send(("lost", asdict(replace(failure, held=b""))), self._root, _NEWS)

    def _tell_of_living(self) -> None:
        """Send which workers have given signs of life: at intervals, and as soon as a supervisor connects."""
        now = time.monotonic()
        if now >= self._next or self._monitor.known != self._told:
            self._next = now + self._pause
            self._told = self._monitor.known
            living = self._monitor.signs()
            signs = {
                rank: (sign.busy_since and now - sign.busy_since, now - sign.seen, sign.runner, sign.calls, sign.deaths)
                for rank, sign in living
            }
            self._comm.send(("alive", signs), self._root, _NEWS)

    def _obey(self, rank: int, command: bytes) -> None:
        if command != LEAVE:
            self._monitor.tell(rank, command)
            return
        self._monitor.shut_down_supervisors(self._monitor.failed)
        self._comm.ssend(("gone", None), self._root, _NEWS)
        self._leave()


class ControlChannel:
    """The communicator for failures and commands. Collective to make and to free."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm.Dup()
        self._marks = marks_instead(self.comm, 1)  # not read: to set one shows whether the rank is there
        self._senders = senders_instead()
        self._on_their_way: list[MPI.Request] = []  # few
        self._sending = threading.Lock()

    def send(self, command: tuple[int, bytes], rank: int) -> bool:
        """Send a command to a rank, and never wait. Return False if that rank is known to be gone."""
        if self._marks is not None and not self._marks.set(rank, 0):
            return False
        if self._senders is None:
            self._send(command, rank)
        else:
            self._senders.do(partial(self._send, command, rank))
        return True

    def _send(self, command: tuple[int, bytes], rank: int) -> None:
        with unless_failed():
            request = self.comm.isend(command, rank, _COMMANDS)
            with self._sending:
                self._on_their_way = [each for each in self._on_their_way if not _is_over(each)]
                self._on_their_way.append(request)

    def free(self) -> None:
        if self._senders is not None:
            self._senders.stop()
        if self._marks is not None:
            self._marks.free()
        self.comm.Free()


def _is_over(request: MPI.Request) -> bool:
    try:
        return request.Test()
    except MPI.Exception:  # the receiver has died
        return True


class ForwarderRoot:
    """The root's side: passes the reports of other nodes to its monitor, and gives up silent workers."""

    def __init__(
        self, control: ControlChannel, monitor: FailureMonitor, workers: dict[int, tuple[str, int]], lost_after: float
    ) -> None:
        self._control = control
        self._comm = control.comm
        self._monitor = monitor
        self._workers = workers  # on other nodes: host and pid, by rank
        self._lost_after = lost_after
        self._looked = time.monotonic()
        self._heard = dict.fromkeys(workers, self._looked)  # when the last news of each worker came
        self._there = set(workers)  # ranks that may still send something
        self._pieces: dict[tuple[int, int], bytes] = {}  # of held outcomes, by the rank that sends them and the failed rank
        self._holding = threading.Lock()
        self._held: list[tuple[int, bytes]] = []  # for ranks whose monitor is gone, until another tells of them
        progress_threads().serve(self.look)
        monitor.hear_by(self.look)

    def look(self) -> bool:
        """Receive all messages, and give up silent workers. Return False: the progress thread need not check more often."""
        status = MPI.Status()
        while has_come(self._comm, _NEWS):
            with unless_failed():
                message = self._comm.improbe(MPI.ANY_SOURCE, _NEWS, status)
                if message is not None:
                    self._hear(status.source, *message.recv())
        now = time.monotonic()
        if now - self._looked < ASLEEP:
            for rank in [rank for rank, heard in self._heard.items() if now - heard > self._lost_after]:
                self._give_up(rank)
        else:
            self._heard = {rank: heard + now - self._looked for rank, heard in self._heard.items()}
        self._looked = now
        return False

    def stop(self) -> None:
        """Receive the last messages: all workers live, and each of them sends that it is gone."""
        progress_threads().leave(self.look)
        while self._there:
            self.look()
            time.sleep(_LAST_LOOK)
        self._control.free()

    def _hear(self, source: int, what: str, said: Any) -> None:
        if source in self._heard or source in self._monitor.silent:
            self._heard[source] = time.monotonic()
        if source in self._monitor.silent:
            self._monitor.take_back(source, _FarLine(self._send, source, source))
        if what == "gone":
            self._there.discard(source)
            self._heard.pop(source, None)
            self._monitor.forget_supervisor(source)
        elif what == "held":
            rank, piece = said
            self._pieces[source, rank] = self._pieces.get((source, rank), b"") + piece
        elif what == "lost":
            failure = WorkerFailure(**said)
            self._lose(replace(failure, held=self._pieces.pop((source, failure.rank), b"")))
        else:
            self._note_living(source, said)

    def _note_living(self, source: int, signs: dict[int, tuple[float | None, float, int, int, int]]) -> None:
        now = time.monotonic()
        for rank in self._heard.keys() & signs.keys():
            self._heard[rank] = now
            running, unseen, *others = signs[rank]
            sign = Signs(running and now - running, now - unseen, now, *others)
            self._monitor.admit(rank, _FarLine(self._send, rank, source), sign)
        with self._holding:
            due = [command for command in self._held if command[0] in signs]
            self._held = [command for command in self._held if command not in due]
        for command in due:
            self._send(source, command)

    def _send(self, to: int, command: tuple[int, bytes]) -> None:
        """Send a command, and never wait: the receiver may have failed, or be cut off. Hold it if that is known."""
        if to in self._monitor.failed or not self._control.send(command, to):
            with self._holding:
                self._held.append(command)

    def _give_up(self, rank: int) -> None:
        host, pid = self._workers[rank]
        self._monitor.silent.add(rank)
        self._lose(WorkerFailure(rank, host, pid, f"was not heard of for {self._lost_after:g} s", None, silent=True))

    def _lose(self, failure: WorkerFailure) -> None:
        self._heard.pop(failure.rank, None)
        self._monitor.lose(failure)
        self._monitor.forget_supervisor(failure.rank)  # it stays until its monitor is told to leave


class _FarLine:
    """The way to a supervisor on another node: through the worker that monitors it. LEAVE goes to each worker itself."""

    def __init__(self, send: Callable[[int, tuple[int, bytes]], None], rank: int, monitor: int) -> None:
        self._send = send
        self._rank = rank
        self._monitor = monitor

    def send(self, command: bytes) -> None:
        self._send(self._rank if command == LEAVE else self._monitor, (self._rank, command))

    def close(self) -> None:
        """Do nothing: it has no connection of its own."""

"""What some of the product knows as mpi4py.MPI: messages between ranks that are all in this process.

    with fake_mpi() as mpi:           # from here on `from mpi4py import MPI` gives that, to modules that are imported anew
        relay = mpi.module("_liveness.forwarder")
        root, worker = mpi.comms(2)   # a communicator, as each of its ranks has it

At the end everything is as before, and MPI itself has not been initialised.
"""

import importlib
import pickle
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import mpi4py
import pytest
from fakes import LIMIT

import mpiexecutor.channel

ANY = -1
_DIED = 71  # an error class
_THAT_KNOW_MPI = ("_liveness.forwarder", "_rma.notifier", "_rma.progress", "_rma.window")


class Died(Exception):
    """What some MPIs raise when something is done with a rank that has died."""

    def Get_error_class(self) -> int:  # noqa: N802 - MPI's name, as all that follow
        return _DIED


class Status:
    source = ANY


class Request:
    def Test(self) -> bool:  # noqa: N802
        return True


class Comm:
    """A communicator, as one of its ranks has it."""

    def __init__(self, rank: int, boxes: list[deque[tuple[int, int, bytes]]], changed: threading.Condition) -> None:
        self.rank = rank
        self.size = len(boxes)
        self.failed: set[int] = set()  # ranks; what is done with them raises
        self.freed = False
        self._boxes = boxes
        self._changed = changed

    def Dup(self) -> "Comm":  # noqa: N802
        return self

    def Free(self) -> None:  # noqa: N802
        self.freed = True

    def send(self, message: Any, rank: int, tag: int = 0) -> None:
        if rank in self.failed:
            raise Died
        with self._changed:
            self._boxes[rank].append((self.rank, tag, pickle.dumps(message)))
            self._changed.notify_all()

    ssend = send

    def isend(self, message: Any, rank: int, tag: int = 0) -> Request:
        self.send(message, rank, tag)
        return Request()

    def Iprobe(self, source: int = ANY, tag: int = ANY) -> bool:  # noqa: N802
        return self._find(source, tag) is not None

    def improbe(self, source: int = ANY, tag: int = ANY, status: Status | None = None) -> "Message | None":
        with self._changed:
            found = self._find(source, tag)
            if found is None:
                return None
            self._boxes[self.rank].remove(found)
        if status is not None:
            status.source = found[0]
        return Message(found[2])

    def recv(self, source: int = ANY, tag: int = ANY) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: self._find(source, tag), LIMIT), "no message has come"
            message = self.improbe(source, tag)
        assert message is not None
        return message.recv()

    def Send(self, _: Any, rank: int) -> None:  # noqa: N802
        self.send(None, rank)

    def Recv(self, _: Any, source: int) -> None:  # noqa: N802
        self.recv(source)

    def _find(self, source: int, tag: int) -> tuple[int, int, bytes] | None:
        with self._changed:
            for message in self._boxes[self.rank]:
                if source in {ANY, message[0]} and tag in {ANY, message[1]}:
                    return message
        return None


class Message:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self) -> Any:
        return pickle.loads(self._data)


class FakeMPI:
    """The module, and what is made with it."""

    def __init__(self) -> None:
        self.MPI = ModuleType("mpi4py.MPI")
        nothing = type("Nothing", (), {})
        vars(self.MPI).update(
            ANY_SOURCE=ANY,
            ANY_TAG=ANY,
            BYTE=None,
            INT64_T=None,
            COMM_SELF=self.comms(1)[0],
            COMM_WORLD=self.comms(1)[0],
            ERR_PROC_FAILED=_DIED,
            ERR_PROC_FAILED_PENDING=_DIED + 1,
            ERR_UNKNOWN=0,
            Exception=Died,
            Get_library_version=lambda: "a fake",
            Intracomm=Comm,
            Request=Request,
            Status=Status,
            Win=nothing,
        )

    def comms(self, size: int) -> list[Comm]:
        """Make a communicator of so many ranks."""
        boxes: list[deque[tuple[int, int, bytes]]] = [deque() for _ in range(size)]
        changed = threading.Condition()
        return [Comm(rank, boxes, changed) for rank in range(size)]

    def module(self, name: str) -> Any:
        """Return a module of the product that knows no other MPI than this."""
        return importlib.import_module(f"mpiexecutor.{name}")


@contextmanager
def fake_mpi() -> Iterator[FakeMPI]:
    """Have modules find this MPI."""
    fake = FakeMPI()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mpi4py.MPI", fake.MPI)
        patch.setattr(mpi4py, "MPI", fake.MPI, raising=False)
        for name in _THAT_KNOW_MPI:
            patch.delitem(sys.modules, f"mpiexecutor.{name}", raising=False)
            parent, _, last = f"mpiexecutor.{name}".rpartition(".")
            patch.delattr(sys.modules[parent], last, raising=False)
        try:
            yield fake
        finally:
            for name in _THAT_KNOW_MPI:
                sys.modules.pop(f"mpiexecutor.{name}", None)
                parent, _, last = f"mpiexecutor.{name}".rpartition(".")
                vars(sys.modules[parent]).pop(last, None)


assert mpiexecutor.channel

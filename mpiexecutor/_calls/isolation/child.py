"""A child process that runs the isolated calls of one executor: a Worker, at a link in the place of the channels."""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from mpiexecutor._calls import messages
from mpiexecutor._calls.bulk import Pages
from mpiexecutor._calls.messages import Calls, MapCalls, Reply, SharedMemory, Wanted
from mpiexecutor._calls.outcomes import Location
from mpiexecutor._calls.worker import Worker
from mpiexecutor._liveness.status_page import StatusPage, start_pulse

from .link import CALLS, DONE, FORGOTTEN, LIMIT, REPLY, TRANSFER, WANTED, Link

_MPI: Final = "mpi4py.MPI"


class _Work:
    """The work channel."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._has_taken = False

    def take_many(self, _most: int) -> list[Calls | MapCalls]:
        """Wait for a message; none when the child is to end. What was taken before is done."""
        if self._has_taken:
            self._link.send(DONE)
        self._has_taken = True
        packet = self._link.receive()
        self._link.overwrite()
        if packet.kind != CALLS:
            return []
        return [messages.loads(packet.data, packet.buffers)]  # type: ignore[list-item]


class _Replies:
    """The reply channel."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def put(self, message: Reply) -> None:
        self._link.send(WANTED if isinstance(message, Wanted) else REPLY, *messages.dumps(message))


class _Bulk:
    """Bulk transfer."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def receive(self) -> tuple[memoryview, Sequence[Pages]] | None:
        kind, data, buffers = self._link.receive()
        return (data, [Pages.of(buffer) for buffer in buffers]) if kind == TRANSFER else None


class _NoMPI:
    """A finder of modules that refuses MPI."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == _MPI:
            raise ImportError(
                "this call runs in a child process that is no MPI rank: make the executor with isolate=False (and without "
                "max_tasks_per_child) to use mpi4py.MPI in calls",
                name=name,
            )


def run_calls(link: Link, page: StatusPage, location: Location, memory: SharedMemory) -> None:
    """Run the calls that come over the link, until the rank has no more."""
    os.register_at_fork(after_in_child=link.close)
    start_pulse(page.pulse_of_child)
    sys.meta_path.insert(0, _NoMPI())
    work: Any = _Work(link)
    replies: Any = _Replies(link)
    bulk: Any = _Bulk(link)

    def limit(seconds: float) -> None:
        page.limit(seconds)
        link.send(LIMIT)

    def forgotten(executors: list[int]) -> None:
        link.send(FORGOTTEN, json.dumps(executors).encode())

    fail = partial(os._exit, 1)
    Worker(work, replies, bulk, location, page, limit, fail=fail, memory=memory, forgotten=forgotten).serve()

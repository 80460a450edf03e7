"""The life of a child process that runs isolated calls. Its supervisor has forked it: see _liveness/children.py."""

import socket

from mpiexecutor._calls.isolation.child import run_calls
from mpiexecutor._calls.isolation.link import Link
from mpiexecutor._calls.messages import SharedMemory
from mpiexecutor._calls.outcomes import Location
from mpiexecutor._liveness.status_page import StatusPage
from mpiexecutor._script.random_generators import STREAM
from mpiexecutor._start.process import end_multiprocessing

from .serve import keep_freed_memory, serving


def main(line: socket.socket, page: StatusPage, number: int, rank: int, ranks: int, *share: int) -> None:
    """Run the calls that the rank sends, until it sends no more.

    Args:
        line: The connection with the rank.
        page: The rank's status page.
        number: How many children of the rank were started, with this one.
        rank: The rank.
        ranks: Number of ranks.
        share: How much memory this process may share with the root: see SharedMemory.

    """
    STREAM.child = number
    with serving():
        keep_freed_memory()
        memory = SharedMemory(*share)
        run_calls(Link(line, reuse=True), page, Location.here(rank, ranks), memory)
        memory.await_readers()
    end_multiprocessing()

"""What a rank, its supervisor and the root's failure monitor say to each other, over Unix sockets of type SOCK_SEQPACKET.

    rank ── Service, LIMIT, STAYING, DISMISSED ──> supervisor ── hello, how the rank has ended, BYE ──> monitor
         <──────────────── NEWS ──────────────────            <──── KILL, TERMINATE, LEAVE, NEWS ─────

A hello carries the descriptor of the rank's status page. The monitor answers it, and the supervisor a Service, with one byte.
"""

import socket
from dataclasses import dataclass
from typing import Final

# Of the root, as bytes.
KILL: Final = b"kill"  # kill the rank
TERMINATE: Final = b"terminate"  # send it SIGTERM
LEAVE: Final = b"leave"  # kill it, tell the process manager that all is well, and end
NEWS: Final = b"news "  # pass what follows on to the rank

# Of the rank, in JSON; so is Service.
LIMIT: Final = "limit"  # the limit for calls on the status page has changed
STAYING: Final = "staying"  # the rank is done and waits for its end: MPI cannot be finalised
DISMISSED: Final = None  # the rank serves no root any more

BYE: Final = b"{}"  # of a supervisor: it disconnects, and that is no failure
LONGEST: Final = 1 << 16  # bytes of a message, at most


@dataclass(frozen=True, slots=True)
class Service:
    """A rank begins to serve a root."""

    addresses: list[str]  # of monitors: the first that answers is used
    token: str
    rank: int
    far: bool  # on another node than the root: the monitors are other workers'
    pmix: str | None  # path of the PMIx library, if this rank has loaded it
    files: list[str]  # to be removed at the end: see process_manager.py


def receive(line: socket.socket, flags: int = 0) -> bytes:
    """Receive a message; empty if the other side has closed the connection.

    If it closed the connection before it read everything, the kernel reports that first (ECONNRESET), and then delivers what it
    said.
    """
    try:
        return line.recv(LONGEST, flags)
    except ConnectionResetError:
        return line.recv(LONGEST, flags)

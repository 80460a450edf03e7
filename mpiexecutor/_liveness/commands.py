"""What a rank, its supervisor and the root say to each other, over connections of Unix sockets.

rank ──Service, "limit", "staying", None──> supervisor ──how the rank has ended, BYE──> monitor
rank <──────────── NEWS ─────────────────── supervisor <── KILL, TERMINATE, LEAVE, NEWS ── monitor
"""

import socket
from dataclasses import dataclass
from typing import Final

KILL: Final = b"kill"  # what the root may say: to end the rank,
TERMINATE: Final = b"terminate"  # to have it end, by SIGTERM,
LEAVE: Final = b"leave"  # or to end the rank and its supervisor;
NEWS: Final = b"news "  # or something else, for the rank itself
BYE: Final = b"{}"  # what a supervisor says when it goes, and nothing is wrong
LONGEST: Final = 1 << 16  # bytes of a message


@dataclass(frozen=True, slots=True)
class Service:
    """Whom a rank serves."""

    addresses: list[str]  # of monitors: the first that is there is the one
    token: str
    rank: int
    far: bool  # from the root: the monitors are other workers'
    pmix: str | None  # the library's path, if this rank has loaded it
    files: list[str]  # that are to be removed in the end: see process_manager.py


def receive(line: socket.socket, flags: int = 0) -> bytes:
    """Receive a message of the other side; nothing if it has closed the line.

    If it closed the line and had not read everything, the kernel reports that first (ECONNRESET), and then gives what it had said.
    """
    try:
        return line.recv(LONGEST, flags)
    except ConnectionResetError:
        return line.recv(LONGEST, flags)

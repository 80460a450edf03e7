"""The messages between a rank, its supervisor and the root's failure monitor, over Unix sockets of type SOCK_SEQPACKET.

    rank ── Service, Spawn, LIMIT, STAYING, DISMISSED ──> supervisor ── hello, how the rank has ended, BYE ──> monitor
         <──────────────────── NEWS ─────────────────────            <── KILL, TERMINATE, LEAVE, CANCEL, NEWS ──

A hello carries the descriptor of the rank's status page. The monitor answers it, and the supervisor a Service, with one byte.
A Spawn carries the child's end of its connection with the rank.
"""

import hmac
import json
import os
import socket
import struct
from array import array
from dataclasses import dataclass
from typing import Any, Final

# Of the root, as bytes.
KILL: Final = b"kill"  # kill the rank
TERMINATE: Final = b"terminate"  # send it SIGTERM
LEAVE: Final = b"leave"  # kill it, tell the process manager that all is well, and end
CANCEL: Final = b"cancel "  # do not run the calls whose numbers follow, as a list in JSON: kill a child that runs one
NEWS: Final = b"news "  # pass what follows on to the rank

# Of the rank, in JSON; so are Service and Spawn.
LIMIT: Final = "limit"  # the limit for calls on the status page has changed
STAYING: Final = "staying"  # the rank is done and waits for its end: MPI cannot be finalised
DISMISSED: Final = None  # the rank serves no root any more

# Of the supervisor, over the connection of a child with the rank.
STARTED: Final = b"s"  # its process id follows
ENDED: Final = b"e"  # how it has ended follows, in JSON

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


@dataclass(frozen=True, slots=True)
class Spawn:
    """A rank wants a child process: see children.py."""

    spawn: str  # the module whose `main` the child runs
    arguments: list[int]  # of that, behind its connection and the status page


def check_user(connection: socket.socket) -> None:
    """Raise PermissionError if the other side is of another user, where the system tells."""
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid != os.geteuid():
            raise PermissionError


def hello_of(data: bytes | bytearray, token: str) -> dict[str, Any]:
    """Return the first message of a process, without its token. PermissionError if the token is wrong."""
    hello: dict[str, Any] = json.loads(data)
    if not hmac.compare_digest(str(hello.pop("token")), token):
        raise PermissionError
    return hello


def receive(line: socket.socket, flags: int = 0) -> bytes:
    """Receive a message; empty if the other side has closed the connection."""
    return receive_with_descriptors(line, flags)[0]


def receive_with_descriptors(line: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive a message and the descriptors that it carries, one at most; empty if the other side has closed the connection.

    If the other side had not read everything, the kernel reports that first (ECONNRESET), and then delivers its messages.
    """
    room = socket.CMSG_LEN(array("i").itemsize)
    try:
        data, beside, _, _ = line.recvmsg(LONGEST, room, flags)
    except ConnectionResetError:
        data, beside, _, _ = line.recvmsg(LONGEST, room, flags)
    return data, [descriptor for *_, carried in beside for descriptor in array("i", carried)]

"""How the processes of a job connect to the script that has started it: at an address that only they know, with a token.

Security. The address is random, and closed once all processes have connected. They must send the token, and be of the same user.
"""

import contextlib
import json
import secrets
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from mpiexecutor._liveness.commands import check_user, hello_of


def connect(address: str, hello: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Connect a process of the job to the script.

    Args:
        address: That of the script.
        hello: This process's rank and token, and what rank 0 has for the script.
        descriptors: To be passed to the script.

    Returns:
        The connection. A byte that comes over it has the process begin; the end of it means that the start failed.

    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    data = json.dumps(hello).encode()
    socket.send_fds(connection, [struct.pack("!I", len(data))], descriptors)
    connection.sendall(data)
    return connection


def receive(connection: socket.socket, token: str) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the first message of a process of the job, and its descriptors; None if the process is not of this job."""
    connection.settimeout(10)
    try:
        check_user(connection)
        head, descriptors, _, _ = socket.recv_fds(connection, 4, 1)
        (left,) = struct.unpack("!I", head)
        data = bytearray()
        while len(data) < left and (piece := connection.recv(left - len(data))):
            data += piece
        hello = hello_of(data, token)
    except (OSError, ValueError, KeyError, struct.error):
        return None, []
    connection.settimeout(None)
    return hello, descriptors


@contextlib.contextmanager
def address_to_listen() -> Any:
    """Yield an address to listen at. If it is a file, only this user can reach it, and it is removed afterwards."""
    if sys.platform == "linux":
        yield "\0mpiexecutor-" + secrets.token_hex(16)  # no file at all
    else:
        with tempfile.TemporaryDirectory(prefix="mpiexecutor-") as folder:
            yield str(Path(folder) / "s")

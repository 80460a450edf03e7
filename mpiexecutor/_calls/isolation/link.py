"""Messages between a rank and its child: through a socket if they are short, else through shared memory.

Encoding. A packet is its kind, a byte, and the message as bytes. A long message, or one with buffers, lies in a file of shared
memory, the sizes of its parts before them; the packet has its place, and carries the descriptor of the file. The file of the child
is used again and again, as fresh pages cost more than copying to them: what is in it is overwritten once the rank asks for more. A
file of the rank belongs to its message: the child keeps the buffers, which are arguments of calls.
"""

import contextlib
import mmap
import os
import socket
import threading
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple

from mpiexecutor._liveness.commands import receive_with_descriptors
from mpiexecutor._rma.memory import mapped

CALLS: Final = b"c"  # rank to child: a message of calls
TRANSFER: Final = b"t"  # the bulk transfer that the child waits for
REFUSED: Final = b"r"  # there is none
END: Final = b"x"  # it is to end
REPLY: Final = b"o"  # child to rank: a message for the root
WANTED: Final = b"w"  # a message for the root that asks for a bulk transfer
LIMIT: Final = b"l"  # the limit on the status page has changed
FORGOTTEN: Final = b"f"  # executors have ended; the child has read so in a bulk transfer
DONE: Final = b"d"  # the child is done with the message of calls

_INLINE: Final = 48 << 10  # bytes of a packet: any socket buffer has room for several
_KEPT: Final = 64 << 20  # bytes of a file that is used again
_SIZE: Final = array("q").itemsize
_LINE: Final = 64  # bytes: parts begin at multiples


class Packet(NamedTuple):
    """What has come. An empty kind means that the other side has gone."""

    kind: bytes
    data: memoryview
    buffers: list[memoryview]


class Link:
    """One end of the connection. One thread receives; any thread sends."""

    def __init__(self, line: socket.socket, *, reuse: bool) -> None:
        """`reuse`: see the head of this file; then `written` says when the file may be overwritten."""
        self._line = line
        self._sending = threading.Lock()
        self._file = os.memfd_create("mpiexecutor-isolated") if reuse else -1
        self._position = 0  # bytes of it that are in use

    def send(self, kind: bytes, data: bytes | memoryview = b"", buffers: Sequence[memoryview] = ()) -> None:
        """Send a message. If the other side has gone nothing is sent: `receive` tells."""
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if not buffers and len(data) <= _INLINE:
                self._line.send(kind + data)
            else:
                self._send_in_file(kind, [memoryview(data), *buffers])

    def receive(self) -> Packet:
        """Wait for a message."""
        packet, descriptors = receive_with_descriptors(self._line)
        if not descriptors:
            return Packet(packet[:1], memoryview(packet)[1:], [])
        (descriptor,) = descriptors
        start, end, count = array("q", packet[1:])
        try:
            file = memoryview(mapped(descriptor, end - start, offset=start))
        finally:
            os.close(descriptor)
        at = _aligned(count * _SIZE)
        parts = []
        for size in file[: count * _SIZE].cast("q"):
            parts.append(file[at : at + size])
            at += _aligned(size)
        return Packet(packet[:1], parts[0], parts[1:])

    def overwrite(self) -> None:
        """Note that the other side is done with all that was sent."""
        if self._position > _KEPT:
            os.ftruncate(self._file, 0)
        self._position = 0

    def close(self) -> None:
        self._line.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _send_in_file(self, kind: bytes, parts: list[memoryview]) -> None:
        file = self._file if self._file >= 0 else os.memfd_create("mpiexecutor-isolated")
        try:
            start = end = self._position
            for part in (memoryview(array("q", map(len, parts))).cast("B"), *parts):
                _write(file, part, end)
                end += _aligned(len(part))
            if os.fstat(file).st_size < end:
                os.ftruncate(file, end)
            if self._file >= 0:
                self._position = end + -end % mmap.ALLOCATIONGRANULARITY
            socket.send_fds(self._line, [kind, array("q", [start, end, len(parts)])], [file])
        finally:
            if self._file < 0:
                os.close(file)


def _aligned(size: int) -> int:
    return size + -size % _LINE


def _write(file: int, part: memoryview, at: int) -> None:
    while part:
        written = os.pwrite(file, part, at)
        part, at = part[written:], at + written

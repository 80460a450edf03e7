"""Who of the workers lives: the root's ear for their keepers, and what it does when one has died.

    keeper ──"was killed by SIGKILL"──> watch ──> undertaker: settles both channels ──> pump: whose calls were these?

The watch listens to keepers. The undertaker has both channels forget the dead, which may take a moment: whatever a living rank has
begun to put or take is finished first. More may die meanwhile, so the watch goes on listening.
"""

import contextlib
import hmac
import json
import logging
import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

from ._keeper import BYE, KILL, LEAVE, possible
from .channel import ChannelBroken, ChannelClosed, RemoteChannel, Share

logger = logging.getLogger("mpiexecutor")

_LONGEST = 1 << 16  # bytes of a message
_MOST = 4096  # keepers that may come at once
_HELLO = 5.0  # seconds that a keeper has to say who it is
_LEAVING = 10.0  # seconds that all keepers have to end
_LOOK = 1e-3  # seconds between two looks whether they have
_REST = 6.0  # seconds that the living have to finish what they have begun with a channel
_WEDGED = 9.0  # seconds after which this process is taken to be stuck inside MPI


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that has died."""

    rank: int
    host: str
    pid: int
    end: str  # how
    begun: int | None  # the number of the call that it began last, NOTHING or INITIALIZER: see _keeper.py; None: not known

    def __str__(self) -> str:
        return f"the worker on rank {self.rank}, host {self.host}, pid {self.pid}, {self.end}"


class Watch:
    """Listens to the keepers of this node. Nobody else gets in: see _adopt.py."""

    def __init__(self) -> None:
        self.address = ""  # while nobody can have a keeper
        self.token = secrets.token_hex(16)
        self.losses: SimpleQueue[Loss | None] = SimpleQueue()  # None: there will be none any more
        self.dead: set[int] = set()
        self._keepers: dict[int, socket.socket] = {}  # by rank
        self._selector = selectors.DefaultSelector()
        self._here, self._there = socket.socketpair()  # wakes the thread
        self._selector.register(self._here, selectors.EVENT_READ, lambda _: self._here.recv(1))
        self._listener: socket.socket | None = None
        if possible():
            self.address = f"\0mpiexecutor-watch-{secrets.token_hex(16)}"
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._listener.bind(self.address)
            self._listener.listen(_MOST)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._alarm: tuple[float, Callable[[], None]] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, name="mpiexecutor watch", daemon=True)
        self._thread.start()

    def kill(self, rank: int) -> bool:
        """Have a worker killed; False if it has no keeper here."""
        keeper = self._keepers.get(rank)
        if keeper is None or rank in self.dead:
            return False
        with contextlib.suppress(OSError):
            keeper.send(KILL)
        return True

    def attend(self, descriptor: int, happened: Callable[[], None]) -> None:
        """Have something called, once, when there is something to read."""

        def once(_: object) -> None:
            self._selector.unregister(descriptor)
            happened()

        self._selector.register(descriptor, selectors.EVENT_READ, once)
        self._there.send(b"!")

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        """Have something called if it is not unset within so many seconds."""
        self._alarm = time.monotonic() + seconds, ring
        self._there.send(b"!")

    def unset_alarm(self) -> None:
        self._alarm = None

    def see_off(self) -> None:
        """Have all keepers end, with their ranks, and wait until they have taken leave: before this process ends, and the job."""
        for keeper in list(self._keepers.values()):
            with contextlib.suppress(OSError):
                keeper.send(LEAVE)
        until = time.monotonic() + _LEAVING
        while self._keepers and time.monotonic() < until:
            time.sleep(_LOOK)

    def stop(self) -> None:
        """Let the keepers go, who have been told by their ranks that this is no death."""
        self._stopped = True
        self._there.send(b"!")
        self._thread.join()
        self.losses.put(None)
        self.close()

    def close(self) -> None:
        """Close the connections, without a word: in a forked child they are its parent's."""
        for connection in (self._here, self._there, self._listener, *self._keepers.values()):
            if connection is not None:
                connection.close()
        self._selector.close()

    def _listen(self) -> None:
        while not self._stopped:
            alarm = self._alarm
            left = None if alarm is None else alarm[0] - time.monotonic()
            if alarm is not None and left is not None and left <= 0:
                self._alarm = None
                alarm[1]()
                continue
            for key, _ in self._selector.select(left):
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection = listener.accept()[0]
        except OSError:  # it has gone away again, or there are too many files
            time.sleep(_LOOK)
            return
        try:
            hello = self._hello(connection)
        except Exception:  # noqa: BLE001 - a stranger, whatever it has sent
            connection.close()
            return
        self._keepers[hello["rank"]] = connection
        self._selector.register(connection, selectors.EVENT_READ, partial(self._hear, hello))
        connection.send(b"!")

    def _hello(self, connection: socket.socket) -> dict[str, Any]:
        """Receive what a keeper has to say of itself; any error if it is a stranger."""
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid != os.geteuid():
            raise PermissionError
        connection.settimeout(_HELLO)
        hello: dict[str, Any] = json.loads(connection.recv(_LONGEST))
        if not hmac.compare_digest(str(hello.pop("token")), self.token):
            raise PermissionError
        connection.settimeout(None)
        return hello

    def _hear(self, hello: dict[str, Any], keeper: socket.socket) -> None:
        """Hear from a keeper of a death; or it is going, or gone."""
        data = b""
        with contextlib.suppress(OSError):
            data = keeper.recv(_LONGEST)
        rank = hello["rank"]
        if data in {b"", BYE}:
            self._selector.unregister(keeper)
            self._keepers.pop(rank).close()
        if data != BYE and rank not in self.dead:
            said = json.loads(data) if data else {"end": "was lost together with its keeper", "begun": None}
            self.dead.add(rank)
            self.losses.put(Loss(**hello, **said))


class Undertaker:
    """Has the channels of a crew forget the dead, in a thread."""

    def __init__(
        self,
        watch: Watch,
        channels: tuple[RemoteChannel[Any, Any], ...],
        *,
        renumber: Callable[[list[int], int], None],
        bury: Callable[[Loss, Share | None], None],
        give_up: Callable[[str], None],
        note: Callable[[], None],
    ) -> None:
        self._watch = watch
        self._work, self._replies = channels
        self._renumber = renumber  # told of the work that is left: see RemoteChannel.settle
        self._bury = bury  # told of each loss when what it has left behind is settled, and what it had claimed of the work
        self._give_up = give_up
        self._note = note  # told of each loss, first
        self._shares: dict[int, Share] = {}  # of work, by rank: of those whose loss is still to be looked at
        self._thread = threading.Thread(target=self._run, name="mpiexecutor undertaker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (loss := self._watch.losses.get()) is not None:
            logger.warning("%s", loss)
            self._note()
            try:
                self._settle(loss)
            except ChannelClosed:  # freed
                continue
            except Exception as error:
                logger.exception("what a dead worker has left behind was not settled")
                self._give_up(f"{loss}, and what it has left behind cannot be settled: {error}")
                continue
            finally:
                self._watch.unset_alarm()
            self._bury(loss, self._shares.pop(loss.rank, None))

    def _settle(self, loss: Loss) -> None:
        self._settle_channel(loss, lambda: self._shares.update({share.rank: share for share in self._settle_work()}))
        self._settle_channel(loss, lambda: self._replies.settle(self._watch.dead, _REST))

    def _settle_work(self) -> list[Share]:
        return self._work.settle(self._watch.dead, _REST, self._renumber)

    def _settle_channel(self, loss: Loss, settle: Callable[[], object]) -> None:
        """Settle a channel. Who lives, and keeps that from being done, is killed: nobody can do anything meanwhile."""
        why = f"{loss}, inside MPI, where it holds a lock that nobody can take any more"
        while True:
            self._watch.set_alarm(_WEDGED, partial(self._give_up, why))
            try:
                settle()
            except ChannelBroken as error:
                if not [rank for rank in error.ranks if self._watch.kill(rank)]:
                    raise
            else:
                return

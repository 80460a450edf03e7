"""The rank's side of isolated calls: it starts children, forwards messages, and tells the root when a child has died.

Theory of operation
    The rank sends a message of calls to the child of their executor and forwards what the child says, until the child is done with
    the message. There is one child for each executor, started when its first message comes. The child writes the status page of the
    rank meanwhile: its supervisor kills the child if a call is overdue or cancelled, and if the rank dies the root finds there what
    the child had begun and held.

    When the child has died the rank reads the page, and the root divides the calls of the message as for a dead worker: into lost
    ones, and others that it sends again. A child that died before it took the message is replaced at once, and the new one gets it.

Invariants
    What the child has sent comes before its end, so all of it is forwarded before `ChildDied`.
"""

import json
from typing import Any

from mpiexecutor._calls import messages
from mpiexecutor._calls.bulk import BulkTransfer
from mpiexecutor._calls.messages import NO_MESSAGE, Calls, ChildDied, Encoded, GivenBack, MapCalls, Reply
from mpiexecutor._calls.outcomes import Location
from mpiexecutor._liveness.children import how
from mpiexecutor._liveness.commands import ENDED
from mpiexecutor._liveness.status_page import SENT, StatusPage
from mpiexecutor._liveness.supervised import Supervised
from mpiexecutor.channel import ChannelClosed, RemoteChannel

from .link import CALLS, DONE, END, FORGOTTEN, LIMIT, REFUSED, REPLY, TRANSFER, WANTED, Link, Packet

_VAIN = 3  # children that may die one after another before they have taken a message


class _Child:
    """A child, and what it has done."""

    def __init__(self, link: Link, pid: int) -> None:
        self.link = link
        self.pid = pid
        self.calls = 0  # that it has begun
        self.limit = 0.0  # of its calls, in seconds


class Isolation:
    """The children of a rank."""

    def __init__(
        self,
        supervisor: Supervised,
        replies: RemoteChannel[Any, Any],
        bulk: BulkTransfer,
        location: Location,
        module: str,
        share: tuple[int, int],
    ) -> None:
        """Have no child yet. `module` is what a child runs: see commands.py. `share` is what its SharedMemory may be."""
        self._supervisor = supervisor
        self._page: StatusPage = supervisor.page
        self._replies = replies
        self._bulk = bulk
        self._location = location
        self._module = module
        self._arguments = location.rank, location.ranks, *share
        self._children: dict[int, _Child] = {}  # by executor
        self._started = 0  # children so far
        self._own_calls = 0  # that the rank itself has begun
        self._lent = False  # the page is written by a child

    def run(self, message: Calls | MapCalls) -> None:
        """Have the child of this executor run calls, and forward its replies. Give back those that are too many for it."""
        executor, per_child = message.executor, message.per_child
        if not self._lent:
            self._own_calls, self._lent = self._page.calls, True
        for attempt in range(1, _VAIN + 1):
            child = self._children.get(executor)
            if child is None:
                child = self._children[executor] = self._start()
            if per_child:
                self._keep(message, per_child - child.calls)
            self._send(child, message)
            end = self._forward_all(child, executor)
            if end is None:
                child.calls = self._page.calls
                if per_child and child.calls >= per_child:
                    self._end(self._children.pop(executor))
                return
            del self._children[executor]
            child.link.close()
            self._page.note_death()
            if self._page.begun == SENT and attempt < _VAIN:
                self._tell_death(executor, NO_MESSAGE, child.pid, end)
            else:
                self._tell_death(executor, message.serial, child.pid, end)
                self.leave()
                return

    def _keep(self, message: Calls | MapCalls, count: int) -> None:
        """Keep the first calls of a message, and give back the others."""
        if isinstance(message, MapCalls):
            numbers = [message.number + count] if len(message.rows) > count else []
            del message.rows[count:]
        else:
            numbers = [number for number, *_ in message.calls[count:]]
            del message.calls[count:]
        if numbers:
            self._reply(GivenBack(self._location.rank, message.executor, False, tuple(numbers)))

    def leave(self) -> None:
        """Note that the rank runs calls itself from now on."""
        if self._lent:
            self._lent = False
            self._page.run_here(self._own_calls)

    def forget(self, executors: list[int]) -> None:
        """End the children of executors that have ended."""
        for executor in executors:
            if (child := self._children.pop(executor, None)) is not None:
                self._end(child)

    def close(self) -> None:
        """End all children, and wait for that. If one is stopped, so this rank seems to be, and is killed with it."""
        for child in self._children.values():
            child.link.send(END)
        for child in self._children.values():
            self._page.expect(child.pid)
            while child.link.receive().kind not in {ENDED, b""}:
                pass
            child.link.close()
        self._page.expect(0)
        self._children.clear()

    def _start(self) -> _Child:
        self._started += 1
        link = Link(self._supervisor.spawn(self._module, self._started, *self._arguments), reuse=False)
        return _Child(link, int(link.receive().data))

    def _end(self, child: _Child) -> None:
        """Have a child end, which runs nothing. It may take its time."""
        child.link.send(END)
        child.link.close()

    def _send(self, child: _Child, message: Calls | MapCalls) -> None:
        self._page.send(child.pid, child.calls)
        if self._page.most != child.limit:
            self._supervisor.limit(child.limit)
        child.link.send(CALLS, *messages.dumps(message))

    def _forward_all(self, child: _Child, executor: int) -> dict[str, Any] | None:
        """Forward what a child says until it is done with its message. Return how it has ended if it has, else None."""
        while True:
            packet = child.link.receive()
            if packet.kind == REPLY:
                self._reply(Encoded(packet.data, packet.buffers))
            elif packet.kind == DONE:
                return None
            elif packet.kind == WANTED:
                self._transfer(child.link, packet)
            elif packet.kind == LIMIT:
                child.limit = self._page.most
                self._supervisor.note_limit()
            elif packet.kind == FORGOTTEN:
                self.forget([each for each in json.loads(bytes(packet.data)) if each != executor])
            elif packet.kind == ENDED:
                end: dict[str, Any] = json.loads(bytes(packet.data))
                return end
            else:
                raise ConnectionError("the supervisor has gone")

    def _reply(self, message: Reply | Encoded) -> bool:
        """Put a reply. Return False if the root collects none any more."""
        try:
            self._replies.put(message)
        except ChannelClosed:
            return False
        return True

    def _transfer(self, link: Link, packet: Packet) -> None:
        """Forward a request, and the bulk transfer that answers it."""
        transfer = self._bulk.receive() if self._reply(Encoded(packet.data, packet.buffers)) else None
        if transfer is None:
            link.send(REFUSED)
        else:
            data, pages = transfer
            link.send(TRANSFER, data, [page.view for page in pages])

    def _tell_death(self, executor: int, serial: int, pid: int, end: dict[str, Any]) -> None:
        overdue = end["overdue"]
        text = f"was killed, as its call ran longer than {overdue:g} s" if overdue else how(end["status"])
        page = self._page
        died = ChildDied(
            self._location.rank, executor, serial, self._location.host, pid, text, page.begun, overdue, end["cancelled"], page.held
        )
        self._reply(died)
        page.let_go()

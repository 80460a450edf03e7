"""Errors of a channel: the caller's fault (ChannelClosed), another rank's (ChannelBroken), no fault (ChannelEmpty, ChannelFull)."""

import queue
from collections.abc import Collection
from dataclasses import dataclass


class ChannelError(Exception):
    """The base of every error that only a channel raises."""


class ChannelClosed(ChannelError):
    """The channel is closed to new messages, or was freed.

    Raised by ``put`` after ``close``, and by every operation after ``free``. ``take`` after ``close`` does not raise it: it returns
    the messages still in the channel, and then None.
    """


class ChannelEmpty(ChannelError, queue.Empty):
    """``take_nowait`` found no message. ``take`` waits for one instead, and raises TimeoutError after its time-out."""


class ChannelMemoryError(ChannelError, MemoryError):
    """The next message does not fit into this rank's memory. It stays in the channel, for any rank to take.

    This rank finds the message again until another rank has taken it, or until ``skip(number)`` throws it away.

    Attributes:
        number: How many messages came before this one.
        size: Bytes of the message.
        head: The first of these bytes: those in its first slot, 16 KiB at most.

    """

    def __init__(self, number: int, size: int, head: bytes = b"") -> None:
        super().__init__(number, size, head)
        self.number = number
        self.size = size
        self.head = head

    def __str__(self) -> str:
        return f"message {self.number}, of {self.size} bytes, does not fit into this rank's memory: skip throws it away"


class ChannelFull(ChannelError, queue.Full):
    """``put_nowait`` found no room. ``put`` waits for room instead, and raises TimeoutError after its time-out."""


_HAD = {True: "received", False: "claimed, and not received,", None: "perhaps received"}


@dataclass(frozen=True, slots=True)
class Share:
    """The last claim of a failed rank: messages that it was receiving, had received, or had thrown away.

    Attributes:
        rank: The failed rank, in the channel's communicator.
        messages: The numbers of the messages: how many came before each.
        received: Whether the rank had received all of them. None if that is not known: it is possible that another rank has
            received them.

    """

    rank: int
    messages: range
    received: bool | None

    def __str__(self) -> str:
        first, last = self.messages[0], self.messages[-1]
        which = f"message {first}" if first == last else f"messages {first} to {last}"
        return f"rank {self.rank} had {_HAD[self.received]} {which}"


class ChannelBroken(ChannelError):
    """A rank has failed; or the bytes in the channel are no message.

    When a rank fails, the host's next put or take, or one that waits, raises this error once. That operation has no effect, except
    that put_many has put its first `count` messages. The channel can still be used. When the host fails, every operation of every
    other rank raises this error. For when failures are reported see RemoteChannel.

    If the bytes are no message, the text says what was found and what was expected. The bytes were not unpickled.

    Attributes:
        ranks: The failed ranks; or living ranks that are in the middle of a message, so that the channel cannot be recovered.
        shares: The last claim of each failed rank, if it has claimed anything.
        count: Messages that put_many had put.

    """

    def __init__(self, text: str, ranks: Collection[int] = (), shares: Collection[Share] = ()) -> None:
        super().__init__(text, ranks, shares)
        self.ranks = ranks
        self.shares = shares
        self.count = 0

    def __str__(self) -> str:
        return str(self.args[0])


class IncompletePut(TimeoutError):
    """The time-out of ``put_many`` is over. The first ``count`` of ``total`` messages were put, the others were not."""

    def __init__(self, count: int, total: int) -> None:
        super().__init__(count, total)
        self.count = count
        self.total = total

    def __str__(self) -> str:
        return f"only {self.count} of {self.total} messages found room in time"

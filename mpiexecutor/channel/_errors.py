"""What can go wrong with a channel, by whose fault it is."""

import queue
from collections.abc import Collection
from dataclasses import dataclass


class ChannelError(Exception):
    """The base of every error that only a channel raises."""


class ChannelClosed(ChannelError):
    """You used a channel that takes no more messages, or that was freed.

    Raised by ``put`` after ``close``, and by every use after ``free``. ``take`` after ``close`` does not raise it:
    it gives what is still in the channel and then None.
    """


class ChannelEmpty(ChannelError, queue.Empty):
    """``take_nowait`` found no message. Whoever can wait calls ``take``, whoever can wait a while ``take(timeout=...)``."""


class ChannelMemoryError(ChannelError, MemoryError):
    """Message `number`, of `size` bytes, does not fit into this rank's memory. It stays where it was, for any rank to take.

    `number` is how many messages came before. This rank finds it again until another has taken it, or until it is thrown away by
    ``skip(number)``.
    """

    def __init__(self, number: int, size: int) -> None:
        super().__init__(number, size)
        self.number = number
        self.size = size

    def __str__(self) -> str:
        return f"message {self.number}, of {self.size} bytes, does not fit into this rank's memory: skip throws it away"


class ChannelFull(ChannelError, queue.Full):
    """``put_nowait`` found no room. Whoever can wait calls ``put``, whoever can wait a while ``put(..., timeout=...)``."""


_HAD = {True: "received", False: "claimed, and not received,", None: "perhaps received"}


@dataclass(frozen=True, slots=True)
class Share:
    """The last claim of a failed rank: messages that it was receiving, or had received, or had thrown away.

    Attributes:
        rank: The failed rank, in the channel's communicator.
        messages: The numbers of the messages: how many came before each.
        received: Whether the rank had received all of them. None if that is not known: perhaps it had, or perhaps another rank was
            faster and had them.

    """

    rank: int
    messages: range
    received: bool | None

    def __str__(self) -> str:
        first, last = self.messages[0], self.messages[-1]
        which = f"message {first}" if first == last else f"messages {first} to {last}"
        return f"rank {self.rank} had {_HAD[self.received]} {which}"


class ChannelBroken(ChannelError):
    """What is in the channel's memory is no message; or `ranks` have died, or keep what the dead have left from being settled.

    In the first case the text names what was found and what was expected. The bytes in question were not unpickled.

    A death is told to the channel's host, once, by the next put or take, or one that waits, which has then done nothing, but that
    put_many has put the first `count` messages. The channel has been settled, and goes on; `shares` say what the dead had claimed
    last. If the host dies all others are told, by whatever they do with the channel. Who tells of deaths: see RemoteChannel.
    """

    def __init__(self, text: str, ranks: Collection[int] = (), shares: Collection[Share] = ()) -> None:
        super().__init__(text, ranks, shares)
        self.ranks = ranks
        self.shares = shares
        self.count = 0

    def __str__(self) -> str:
        return str(self.args[0])


class IncompletePut(TimeoutError):
    """``put_many`` ran out of time. The first ``count`` messages were put, the others were not."""

    def __init__(self, count: int, total: int) -> None:
        super().__init__(count, total)
        self.count = count
        self.total = total

    def __str__(self) -> str:
        return f"only {self.count} of {self.total} messages found room in time"

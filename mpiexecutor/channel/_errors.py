"""What can go wrong with a channel, by whose fault it is."""

import queue
from collections.abc import Collection


class ChannelError(Exception):
    """The base of every error that only a channel raises."""


class ChannelClosed(ChannelError):
    """You used a channel that takes no more messages, or that was freed.

    Raised by ``put`` after ``close``, and by every use after ``free``. ``take`` after ``close`` does not raise it:
    it gives what is still in the channel and then None.
    """


class ChannelEmpty(ChannelError, queue.Empty):
    """``take_nowait`` found no message. Whoever can wait calls ``take``, whoever can wait a while ``take(timeout=...)``."""


class ChannelFull(ChannelError, queue.Full):
    """``put_nowait`` found no room. Whoever can wait calls ``put``, whoever can wait a while ``put(..., timeout=...)``."""


class ChannelBroken(ChannelError):
    """What is in the channel's memory is no message: a peer died while it wrote, or wrote where it may not.

    The text names what was found and what was expected. The bytes in question were not unpickled. Or ranks that live, `ranks`,
    keep what the dead have left from being settled.
    """

    def __init__(self, text: str, ranks: Collection[int] = ()) -> None:
        super().__init__(text, ranks)
        self.ranks = ranks

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

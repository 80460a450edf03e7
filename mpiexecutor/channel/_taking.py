"""The operations that take messages, over the take end of this rank."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

from mpiexecutor.channel._ring.receiver import Incoming

from ._base import ChannelBase, deadline_of, result_of
from ._codecs import pickle_of_frame
from ._errors import ChannelEmpty, ChannelMemoryError

M = TypeVar("M")  # what is taken

_BATCH = 256  # messages that take_many claims in one step


class Taking(ChannelBase, Generic[M]):
    """A channel's operations that take messages."""

    def take(self, timeout: float | None = None) -> M | None:
        """Take the next message; wait for one if there is none.

        In a channel of objects None may also be a message: use `take_many` or a for loop to tell it from the end.

        Args:
            timeout: Seconds to wait at most until a message begins; None waits without a limit. There is no time-out for the rest
                of a message that has begun.

        Returns:
            The message. None at the end: all messages that were announced by `claim` are taken, or the channel is closed and empty.
            Before the first `claim` an open channel has no end: `take` waits.

        Raises:
            TimeoutError: No message has begun in time. Nothing was taken.
            ChannelClosed: The channel is freed.
            ChannelBroken: A rank has failed, or the next message does not match the dtype of the channel.
            ChannelMemoryError: The next message does not fit into this rank's memory. It stays in the channel, see `skip`.
            ValueError: Only the host may take, and this rank is not the host.

        """
        messages = self.take_many(1, timeout)
        return messages[0] if messages else None

    def take_nowait(self) -> M | None:
        """Take the next message if one has come.

        Returns:
            The message; None at the end.

        Raises:
            ChannelEmpty: There is no message yet, or other takes of this rank wait for one.

        """
        self._check_side("take")
        if self._takes.background.busy:
            raise ChannelEmpty("other takes of this rank are waiting")
        found = self._takes.take(1, 0)
        if found is None:
            raise ChannelEmpty("no message has come yet")
        return self._decode_one(found)

    def takef(self) -> Future[M | None]:
        """Take the next message in the background, after all that this rank has asked for before.

        Returns:
            A future of what `take` returns. It can be cancelled until it gets a message; then nothing is taken.

        Raises:
            RuntimeError: MPI was initialised without THREAD_MULTIPLE.

        """
        self._check_threads()
        self._check_side("take")
        return self._takes.take_later(self._decode_one)

    def take_many(self, most: int, timeout: float | None = None) -> list[M]:
        """Take several messages: wait for the first, then take those that are there.

        Args:
            most: Messages to take at most.
            timeout: Seconds to wait at most for the first message; None waits without a limit.

        Returns:
            The messages; an empty list at the end.

        Raises:
            TimeoutError: No message has begun in time. Nothing was taken.

        """
        self._check_side("take")
        if most < 1:
            raise ValueError(f"take_many takes at least 1 message, not {most}")
        deadline = deadline_of(timeout)
        if self._takes.background.busy:
            return result_of(self._takes.take_later(self._decode), deadline)
        found = self._takes.take(min(most, _BATCH), deadline)
        if found is None:
            raise TimeoutError(f"no message within {timeout} s")
        return self._decode(found)

    def skip(self, number: int) -> bool:
        """Throw away a message that does not fit into this rank's memory, as a ChannelMemoryError has reported.

        Wait for the rest of the message if it is still being put, as `take` does.

        Args:
            number: The `number` of the ChannelMemoryError.

        Returns:
            Whether the message was thrown away. If not, take again: another rank has taken the message, or it will be put again
            after a recovery, or another thread of this rank is taking.

        """
        self._check_side("take")
        return self._takes.skip(number)

    def spin_if(self, expected: Callable[[], bool]) -> None:
        """Have a thread of this rank that waits for a message spin before it sleeps only if a message is expected soon.

        A thread that spins takes a message sooner, but keeps a processor, and competes for the GIL. In either case every message is
        taken.

        Args:
            expected: Says whether a message is expected soon. Each wait asks it, in the thread that waits. It must not take.

        """
        self._takes.spin_if(expected)

    @property
    def sleeps(self) -> bool:
        """Whether a thread of this rank sleeps in an operation that takes, or is about to."""
        return self._takes.sleeps

    def rouse(self) -> None:
        """Have the thread of this rank that sleeps spin, as far as processors are free. One thread at a time may call this.

        A thread that changes the answer of `expected`, see `spin_if`, and then finds that the other one `sleeps`, calls it.
        """
        self._takes.rouse()

    @staticmethod
    def head(error: ChannelMemoryError) -> memoryview:
        """Return the pickle of a message that does not fit into this rank's memory, without its large buffers (64 KiB and more).

        It is valid only if `skip` then throws the message away.

        Raises:
            ChannelBroken: The first slot does not have the whole pickle, or this is no channel of objects.

        """
        return pickle_of_frame(memoryview(error.head))

    def __iter__(self) -> Iterator[M]:
        """Take messages until the end."""
        while messages := self.take_many(1):
            yield messages.pop()

    def _decode(self, found: Incoming) -> list[M]:
        if len(found.lengths) == 1:
            return [self._codec.decode(found.data, shared=False)]
        messages, start = [], 0
        for length in found.lengths:
            messages.append(self._codec.decode(found.data[start : start + length], shared=True))
            start += self._layout.span(length) * self._layout.slot_size
        return messages

    def _decode_one(self, found: Incoming) -> M | None:
        messages = self._decode(found)
        return messages[0] if messages else None

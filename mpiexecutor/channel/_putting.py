"""The operations that put messages, over the put end of this rank."""

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

from mpiexecutor.channel._ends.put_end import Parts

from ._base import ChannelBase, deadline_of, result_of
from ._errors import ChannelBroken, ChannelFull, IncompletePut

P = TypeVar("P")  # what is put

_BATCH = 256  # messages that put_many reserves in one step


class Putting(ChannelBase, Generic[P]):
    """A channel's operations that put messages."""

    def put(self, message: P, timeout: float | None = None) -> None:
        """Put a message into the channel; wait for room if there is none.

        Args:
            message: What the dtype of the channel says, see `RemoteChannel`.
            timeout: Seconds to wait at most; None waits without a limit.

        Raises:
            TimeoutError: There was no room before the time-out. The message was not put.
            ChannelClosed: The channel is closed, or freed.
            ChannelBroken: A rank has failed. The message was not put.
            TypeError: The message does not match the dtype of the channel.
            ValueError: The message is too long; or only the host may put, and this rank is not the host.

        """
        deadline = deadline_of(timeout)
        parts = self._encode(message)
        if self._puts.background.busy:
            result_of(self._puts.put_later(parts), deadline)
            return
        if not self._puts.put([parts], deadline):
            raise TimeoutError(f"no room within {timeout} s")

    def put_nowait(self, message: P) -> None:
        """Put a message if there is room for all of it now.

        Raises:
            ChannelFull: There is no room now, or other puts of this rank wait for room. The message was not put.

        """
        parts = self._encode(message)
        others_wait = self._puts.background.busy
        if not others_wait and self._puts.put([parts], 0, whole=True):
            return
        size = sum(map(len, parts))
        if self._layout.span(size) > self._layout.slots:
            raise ChannelFull(f"a message of {size} bytes is longer than the channel: only put can wait until others take it")
        if others_wait:
            raise ChannelFull("other puts of this rank are waiting")
        raise ChannelFull(f"no room in the channel's {self._layout.slots} slots")

    def putf(self, message: P, *, copy: bool = True) -> Future[None]:
        """Put a message in the background, after all that this rank has put before.

        Args:
            message: As for `put`.
            copy: Copy the message first. If False, large buffers of it are not copied: they must not change until the future is
                done.

        Returns:
            A future that is done once the message is put. It can be cancelled until the message gets room; then nothing is put.

        Raises:
            RuntimeError: MPI was initialised without THREAD_MULTIPLE.

        """
        self._check_threads()
        parts = self._encode(message)
        return self._puts.put_later([memoryview(bytes(part)) for part in parts] if copy else parts)

    def put_many(self, messages: Iterable[P], timeout: float | None = None) -> None:
        """Put several messages, in order. This is faster than one `put` for each.

        Args:
            messages: As for `put`.
            timeout: Seconds to wait at most for all of them; None waits without a limit.

        Raises:
            IncompletePut: The time-out is over (it is a TimeoutError). Its `count` is the number of messages that were put.
            ChannelBroken: A rank has failed. Its `count` is the number of messages that were put.

        """
        deadline = deadline_of(timeout)
        encoded = [self._encode(message) for message in messages]
        if self._puts.background.busy:  # what this rank put before comes first
            try:
                result_of(self._puts.background.submit(lambda future: future.begin(lambda: True)), deadline)
            except TimeoutError:
                raise IncompletePut(0, len(encoded)) from None
        done = 0
        while done < len(encoded):
            try:
                put = self._puts.put(encoded[done : done + _BATCH], deadline)
            except ChannelBroken as error:
                error.count = done
                raise
            if not put:
                raise IncompletePut(done, len(encoded))
            done += put

    @property
    def count(self) -> int:
        """On the host, if only the host puts: the number of messages that were put, which is the number of the next one."""
        return self._puts.ring.count

    def _encode(self, message: P) -> Parts:
        self._check_side("put")
        return self._codec.encode(message)

"""What is measured of a raw channel: messages of 8 doubles between four parties, by every pattern of producers and consumers.

A *party* is one rank, or one process, with its end of the channel; all parties run the same function.
"""

import time
from array import array

MESSAGE = array("d", range(8))
BUFFER = 1024  # messages that a channel has room for
_PATTERNS = {
    "1 to 1": ((0,), (1,)),
    "1 to 3": ((0,), (1, 2, 3)),
    "3 to 1": ((1, 2, 3), (0,)),
    "2 to 2": ((0, 1), (2, 3)),
}
_BATCH = 256  # messages that put_many and take_many are asked for at a time
_FEW = 60  # can be shared by two, or three
_SECONDS = 5
_PAUSE = 0.005  # seconds between two looks of a party with nothing to do


def streams(party, n=6_000, many=120_000):
    """Messages of 8 doubles go from some ranks to the others; the buffer, of 1,024 messages, is in the memory of rank 0.

    Parties that put and take nothing sleep. A contender that would take longer than 5 s gets fewer messages.
    """
    figures = {name: timed(party, *pattern, n, put_each, take_each) for name, pattern in _PATTERNS.items()}
    if hasattr(party.channel, "put_many"):
        figures["1 to 1, many"] = timed(party, *_PATTERNS["1 to 1"], many, put_batches, take_batches)
    return figures


def timed(party, producers, consumers, n, put, take):
    """Return the messages a second of `n` messages, or as many as few let expect in time."""
    expected = stream(party, producers, consumers, _FEW, put, take)
    n = party.broadcast(min(n, max(_FEW, int(_SECONDS * expected) // _FEW * _FEW)))
    return stream(party, producers, consumers, n, put, take)


def stream(party, producers, consumers, n, put, take):
    """Have `n` messages go from the producers to the consumers; return the messages a second, on rank 0."""
    channel = party.channel
    if hasattr(channel, "claim"):
        channel.claim(n)
    party.meet()
    began = time.monotonic()
    if party.rank in producers:
        put(channel, n // len(producers))
    if party.rank in consumers:
        take(channel, n // len(consumers))
    ended = time.monotonic()
    party.meet(idle=party.rank not in (*producers, *consumers))
    spans = party.gather((began, ended))
    return n / (max(end for _, end in spans) - min(begin for begin, _ in spans)) if spans else 0.0


def put_each(channel, n):
    for _ in range(n):
        channel.put(MESSAGE)


def take_each(channel, share):
    """Take until there is no more; from a queue that has no end, a share."""
    if hasattr(channel, "claim"):
        while channel.take() is not None:
            pass
    else:
        for _ in range(share):
            channel.take()


def put_batches(channel, n):
    for done in range(0, n, _BATCH):
        channel.put_many([MESSAGE] * min(_BATCH, n - done))


def take_batches(channel, _):
    while channel.take_many(_BATCH):
        pass


class Rank:
    """A party that is an MPI rank."""

    def __init__(self, comm, channel):
        self._comm = comm
        self.rank = comm.rank
        self.channel = channel
        self.broadcast = comm.bcast  # rank 0's value to all
        self.gather = comm.gather  # all values to rank 0

    def meet(self, *, idle=False):
        """Wait for all others, without a core: MPI's own barrier would spin.

        The host of a channel may have to enter MPI so that others make progress.
        """
        request = self._comm.Ibarrier()
        while not request.Test():
            time.sleep(_PAUSE if idle else 0)


class Member:
    """A party that is a process of multiprocessing, with a pipe to the first, or the first, with pipes to all others."""

    def __init__(self, rank, pipes, channel):
        self.rank = rank
        self.channel = channel
        self._pipes = pipes

    def broadcast(self, value):
        if self.rank:
            return self._pipes[0].recv()
        for pipe in self._pipes:
            pipe.send(value)
        return value

    def gather(self, value):
        if self.rank:
            self._pipes[0].send(value)
            return None
        return [value, *(pipe.recv() for pipe in self._pipes)]

    def meet(self, *, idle=False):  # noqa: ARG002 - a pipe is waited for without a core
        self.gather(None)
        self.broadcast(None)

"""Ranks that run this script die, one after another, at chosen steps; the others go on, and rank 0, the host, is told.

    bereaved.py FOLDER [far | pretended]

Rank 0 puts numbers, the others take them and put what comes of them. The last two live to the end, the others die, rank 1 as the
host of a channel of its own. With "far" some are on another node, whose ranks that rank may not leave; with "pretended" they only
believe to be.

A step is chosen by patching the channel in the rank that is to die; the death itself is real.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

import apart
from mortal import arm, die
from mpi4py import MPI

from mpiexecutor._rma.doorbell import Doorbell
from mpiexecutor.channel import ChannelBroken, RemoteChannel

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
LIMIT = 60  # seconds until anything is done
NUMBERS = 50  # for each step, at least
STEPS: dict[str, tuple[int, set[bool | None]]] = {  # how many numbers are lost, and what may be said of the one that was claimed
    "waiting to take": (0, set()),
    "waiting to put": (0, set()),
    "before it claims": (0, set()),
    "between the record and the swap of a claim": (0, {None}),  # another may have claimed the same one
    "after it has claimed": (1, {False}),
    "before it says that it has received": (1, {False, None}),
    "before its result is put": (1, {True}),
    "between the record and the swap of its result": (1, {True}),
    "after it has reserved room for its result": (1, {True}),
}
HOST = 1  # of a channel of its own
FIRST = 2  # of those that die at a step
LIVING = FIRST + len(STEPS)  # and the one above it
RANKS = LIVING + 2

Channel = RemoteChannel[Any, Any]


def say(text: str) -> None:
    sys.stdout.write(f"ok: {text}\n")
    sys.stdout.flush()


def main(where: str) -> None:
    """Be any of the ranks."""
    if where == "pretended":
        apart.believe_to_be_apart()
    comm = MPI.COMM_WORLD
    assert comm.size == RANKS, comm.size
    work, done = Channel(8, 64, object), Channel(8, 64, object)
    full, empty = Channel(1, 64, object), Channel(1, 64, object)
    own = Channel(1, 64, object, HOST)
    (FOLDER / f"made {comm.rank}").touch()
    if comm.rank == 0:
        feed(work, done, full, empty)
    elif comm.rank < LIVING and not (where and comm.rank == HOST):
        await_turn(comm.rank)
        end(comm.rank, work, done, full, empty)
    for number in work:  # for rank 0 there are none
        done.put(number)
    if not where:
        lose_host(own)
    for channel in (work, done, full, empty, own):
        channel.free()
    try:
        Channel(1, 1)
    except ChannelBroken as error:
        told = set(error.ranks)  # from another node the news of the last may still be on their way
        assert told <= set(range(FIRST, LIVING)) if where else told == set(range(HOST, LIVING)), error
        say(f"rank {comm.rank}: the end")


def feed(work: Channel, done: Channel, full: Channel, empty: Channel) -> None:
    """Be rank 0: have one rank after another die; its message is lost and reported, and nothing else is lost."""
    full.put("this")
    while len(list(FOLDER.glob("made *"))) < RANKS:  # a rank that dies while others still make a channel ends the job
        time.sleep(0.01)
    for rank, (step, (lost, received)) in enumerate(STEPS.items(), FIRST):
        fed, results = 0, []
        told: dict[Channel, ChannelBroken] = {}

        def ask(channel: Channel, operation: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return operation(*arguments, timeout=0)
            except TimeoutError:
                return None
            except ChannelBroken as error:
                assert channel not in told, error  # noqa: B023 - called in this round
                told[channel] = error  # noqa: B023
                return None

        give_turn(rank)
        until = time.monotonic() + LIMIT
        while len(told) < 4 or fed < NUMBERS or len(results) < fed - lost:
            assert time.monotonic() < until, (step, told, fed, sorted(results))
            if fed < NUMBERS or work not in told:
                fed += bool(ask(work, put, work, fed))
            if (number := ask(done, done.take)) is not None:
                results.append(number)
            ask(full, full.put, "that")
            ask(empty, empty.take)
        assert len(set(results)) == len(results) == fed - lost, (step, fed, sorted(results))
        for error in told.values():
            assert error.ranks == [rank], (step, error)
            assert f"rank {rank}, host " in str(error)
            assert "was killed by SIGKILL" in str(error)
        found = {share.received for share in told[work].shares}
        assert found <= received, (step, found)
        assert found or not lost, step
        assert all(share.rank == rank and len(share.messages) == 1 for share in told[work].shares), step
        say(f"{step}: {told[work]}")
    assert full.take() == "this"
    work.close()


def put(channel: Channel, number: int, timeout: float) -> bool:
    channel.put(number, timeout)
    return True


def end(rank: int, work: Channel, done: Channel, full: Channel, empty: Channel) -> None:
    """Be one that dies."""
    step = list(STEPS)[rank - FIRST] if rank != HOST else ""
    if not step:
        die()
    elif step.startswith("waiting"):
        Doorbell.sleep = lambda *_: die()  # type: ignore[assignment, method-assign, return-value]
        empty.take()
        full.put("that")
    else:
        arm(step)
        done.put(work.take())


def lose_host(own: Channel) -> None:
    """See that each waiting rank is told that the host has died."""
    if MPI.COMM_WORLD.rank == 0:
        give_turn(HOST)
    try:
        own.take()
    except ChannelBroken as error:
        assert error.ranks == [HOST], error
        say(f"rank {MPI.COMM_WORLD.rank} is told: {error}")


def give_turn(rank: int) -> None:
    (FOLDER / str(rank)).touch()


def await_turn(rank: int) -> None:
    while not (FOLDER / str(rank)).exists():  # the job has a deadline
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[2] if len(sys.argv) > 2 else "")

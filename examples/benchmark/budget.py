"""Where the time of one call goes: each part of it measured alone, and beside it what bounds it here.

    python examples/benchmark/budget.py [--json FILE]

It starts itself on two ranks, a root and a worker. The parts are those that a call goes through, one after another; a limit is
what the least that does the same costs: plain pickle, a copy in memory, a wake-up by the kernel, an empty call.
"""

import argparse
import json
import os
import pickle
import secrets
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from statistics import median

from channels import Rank
from contenders import HERE, mpiexec
from report import number
from shapes import calls, nothing, there_and_back

CALL = (None, (), {})  # of a function that the worker has already
SLOTS, SLOT_SIZE = 1024, 4096  # of the executor's own channels
ECHO = "import os\nwhile os.write(1, os.read(0, 1)): pass"


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the budget: microseconds, the limit, and what that is."""

    where: str
    what: str
    us: float
    limit: float | None = None
    why: str = ""


def main():
    """Start two ranks, or be one of them."""
    parser = argparse.ArgumentParser(prog="python examples/benchmark/budget.py", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only to see that it works: no figure means anything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--on-ranks", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on_ranks:
        be_a_rank(Meter(1, 2) if options.quick else Meter(100, 30), options.json)
        return
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    command = [*mpiexec(2), sys.executable, "-m", "mpi4py", __file__, "--on-ranks", *sys.argv[1:]]
    sys.exit(subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path}).returncode)


def be_a_rank(meter, file):
    """Measure the parts, together with the other rank; the root shows them."""
    from mpi4py import MPI

    from mpiexecutor import RMACommExecutor

    comm = MPI.COMM_WORLD
    parts = measured(comm, meter)
    with RMACommExecutor(comm) as executor:
        if executor is not None:
            parts += summed(parts) + whole(executor, meter)
    if comm.rank == 0:
        for line in table(parts):
            print(line)
        if file is not None:
            file.write_text(json.dumps([asdict(part) for part in parts], indent=1) + "\n")


def table(parts):
    """Yield the lines of the budget, in Markdown."""
    yield "| where | what | us | limit | which is |"
    yield "|---|---|---|---|---|"
    for part in parts:
        limit = "" if part.limit is None else number(part.limit)
        yield f"| {part.where} | {part.what} | {number(part.us)} | {limit} | {part.why} |"


# -- what is measured --------------------------------------------------------------------------------------------------------------


class Meter:
    """Measures steps: the best of several batches, because only what others do makes one slower."""

    def __init__(self, batches, times):
        self.batches = batches
        self._times = times  # steps a batch

    def us(self, step):
        """Return the microseconds of a step."""
        return min(self.batch(step) for _ in range(self.batches))

    def batch(self, step):
        """Return the microseconds of a step in one batch."""
        began = time.perf_counter()
        for _ in range(self._times):
            step()
        return 1e6 * (time.perf_counter() - began) / self._times

    @property
    def steps(self):
        """How many steps `us` takes."""
        return self.batches * self._times


def measured(comm, meter):
    """Return the parts in the order in which a call meets them, on the root."""
    from mpiexecutor._util.pickling import dumps, loads

    us = meter.us
    pickled, result = dumps(CALL)[0], dumps(None)[0]
    # Messages as the executor sends them: a call, and what came of it.
    put_work, take_work = through_the_ring(comm, meter, (1, 0, [(8000, 1, (pickled,))]), putter=0)
    put_reply, take_reply = through_the_ring(comm, meter, (1, 1, [(8000, 1e-5, (result,), None)], (), None, 0), putter=1)
    woken = woken_by_doorbell(comm, meter)
    if comm.rank:
        return []
    copy = us(partial(copied, memoryview(bytearray(SLOT_SIZE)), memoryview(bytes(100)))), "a copy of 100 bytes"
    kernel = woken_by_pipe(meter), "a byte through a pipe"
    run = us(nothing)
    plain_none = pickle.dumps(None, 5)
    return [
        Part("root", "make the future", us(Future), us(object), "an object made"),
        Part("root", "pickle the call", us(partial(dumps, CALL)), us(partial(pickle.dumps, CALL, 5)), "plain pickle"),
        Part("root", "put it into the ring", put_work, *copy),
        Part("to the worker", "wake it", woken, *kernel),
        Part("worker", "take the message", take_work, *copy),
        Part("worker", "unpickle the call", us(partial(loads, pickled)), us(partial(pickle.loads, pickled)), "plain pickle"),
        Part("worker", "run it", run, run, "an empty function"),
        Part("worker", "pickle the result", us(partial(dumps, None)), us(partial(pickle.dumps, None, 5)), "plain pickle"),
        Part("worker", "put the reply", put_reply, *copy),
        Part("to the root", "wake it", woken, *kernel),
        Part("root", "take the message", take_reply, *copy),
        Part("root", "unpickle the result", us(partial(loads, result)), us(partial(pickle.loads, plain_none)), "plain pickle"),
        Part("root", "settle the future", us(settled) - us(Future), us(partial(setattr, Future(), "seen", 1)), "an attribute set"),
        Part("root", "wake who waits", woken_by_future(meter), woken_by_lock(meter), "a lock released"),
    ]


def summed(parts):
    """Return the line for all of the parts."""
    return [Part("", "all of this", sum(part.us for part in parts), sum(part.limit for part in parts))]


def whole(executor, meter):
    """Return the lines for calls by the executor itself: one alone, and one of many."""
    alone = min(median(there_and_back(executor) for _ in range(30)) for _ in range(meter.batches))
    of_many = min(1e6 / calls(executor)["rate"] for _ in range(min(10, meter.batches)))
    return [
        Part("", "one call there and back", alone, why="besides: lists, locks, the GIL"),
        Part("", "one call of 8,000", of_many, why="many in a message, nobody to be woken"),
    ]


# -- the parts that take more than one line to measure -----------------------------------------------------------------------------


def copied(target, source):
    target[: len(source)] = source


def settled():
    Future().set_result(None)


def through_the_ring(comm, meter, message, putter):
    """Give, on both ranks, what it takes to put a message into the ring, and to take it out; nobody sleeps meanwhile."""
    from mpiexecutor.channel import RemoteChannel

    ends = {"producers": "host"} if putter == 0 else {"consumers": "host"}
    puts, takes = [], []
    with RemoteChannel(SLOTS, SLOT_SIZE, object, comm=comm, **ends) as channel:
        party = Rank(comm, channel)
        for _ in range(meter.batches):
            if comm.rank == putter:
                puts.append(meter.batch(partial(channel.put, message)))
            party.meet()
            if comm.rank != putter:
                takes.append(meter.batch(channel.take))
            party.meet()
    return comm.bcast(min(puts, default=None), putter), comm.bcast(min(takes, default=None), 1 - putter)


def woken_by_doorbell(comm, meter):
    """Return what it takes until the other rank runs that sleeps on its doorbell: half of there and back."""
    from mpiexecutor._rma.doorbell import Doorbell, Notifier, address_of

    token = comm.bcast(secrets.token_hex(8))
    own, other = (address_of(token, rank, "take") for rank in (comm.rank, 1 - comm.rank))
    bell, notifier = Doorbell(own), Notifier()
    bell.open()
    comm.Barrier()
    if comm.rank:
        for _ in range(meter.steps):
            bell.sleep(60)
            notifier.notify(other)
        found = 0.0
    else:
        found = meter.us(lambda: (notifier.notify(other), bell.sleep(60))) / 2
    comm.Barrier()
    bell.free()
    notifier.free()
    return found


def woken_by_pipe(meter):
    """The same with a process that only hands on what it reads."""
    with subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
        there, back = echo.stdin.fileno(), echo.stdout.fileno()

        def step():
            os.write(there, b"!")
            os.read(back, 1)

        step()  # it is there
        return meter.us(step) / 2


def woken_by_future(meter):
    """Return what it takes until a thread runs that waits for a future, once that is settled by another thread."""
    asked = SimpleQueue()

    def settle():
        while (future := asked.get()) is not None:
            future.set_result(None)

    def ask():
        future = Future()
        asked.put(future)
        future.result()

    thread = threading.Thread(target=settle)
    thread.start()
    there_and_back = meter.us(ask)
    asked.put(None)
    thread.join()
    return max(0.0, there_and_back - woken_by_lock(meter) - meter.us(settled))


def woken_by_lock(meter):
    """Return what it takes until a thread runs that waits for a lock, once another thread releases it: half of there and back."""
    there, back = threading.Lock(), threading.Lock()
    there.acquire()
    back.acquire()
    done = False

    def answer():
        while there.acquire() and not done:
            back.release()

    thread = threading.Thread(target=answer)
    thread.start()
    found = meter.us(lambda: (there.release(), back.acquire())) / 2
    done = True
    there.release()
    thread.join()
    return found


if __name__ == "__main__":
    main()

"""More of everything than a script needs: each flood is a function here.

python -m mpiexecutor -n 5 [--spmd] tests/programs/floods.py NAME [NUMBER]
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor
from mpiexecutor.channel import RemoteChannel

sys.path.append(str(Path(__file__).parent))

from soak import resident

LIMIT = 120  # seconds until any future is done
FLAT = 24 << 20  # bytes that a process may take more in the second half
SLOWLY = 0.002  # seconds between two messages that are taken


def deaths(_: int) -> None:
    """Kill one worker after another, down to one, while calls are running; then fill the ring many times."""
    with RMAChannelExecutor(retries=1000) as executor:
        workers = executor.num_workers
        calls = [executor.submit(abs, -number) for number in range(20 * workers)]
        victims = executor.workers()
        for left, victim in zip(range(workers - 1, 0, -1), victims, strict=False):
            calls += [executor.submit(divmod, number, 7) for number in range(40)]
            os.kill(victim.pid, signal.SIGKILL)
            while executor.num_workers > left:
                calls.append(executor.submit(divmod, 1, 7))
                calls[-1].result(LIMIT)
        assert executor.num_workers == 1
        for call in calls:
            call.result(LIMIT)
        assert sum(executor.map(abs, range(10_000))) == 49_995_000
        assert sum(worker.done for worker in executor.workers()) >= len(calls)
    say(f"{workers - 1} of {workers} workers killed, {len(calls):,} calls done")


def lost(_: int) -> None:
    """Do so without retries: no more is lost than each of them was running; everything else is done."""
    with RMAChannelExecutor() as executor:
        calls: list[Future[Any]] = []
        victims = executor.workers()[1:]
        for victim in victims:
            calls += [executor.submit(abs, -number) for number in range(100)]
            os.kill(victim.pid, signal.SIGKILL)
        gone = [call for call in calls if isinstance(call.exception(LIMIT), BrokenProcessPool)]
        assert len(gone) <= len(victims), len(gone)
        for call in gone:
            assert type(call.exception()) is BrokenWorkerError, call.exception()
        for number, call in enumerate(calls):
            assert call in gone or call.result() == number % 100
    say(f"{len(victims)} workers killed at once, {len(gone)} of {len(calls):,} calls lost")


def threads(number: int) -> None:
    """Submit from so many threads at a time."""
    found: list[int] = []

    def submit(executor: RMAChannelExecutor, thread: int) -> None:
        futures = [executor.submit(pow, thread, power) for power in range(100)]
        found.append(sum(future.result(LIMIT) for future in futures))

    with RMAChannelExecutor() as executor:
        all_threads = [threading.Thread(target=submit, args=(executor, thread)) for thread in range(number)]
        for thread in all_threads:
            thread.start()
        for thread in all_threads:
            thread.join()
    assert sorted(found) == sorted(sum(thread**power for power in range(100)) for thread in range(number))
    say(f"{number} threads, {100 * number:,} calls")


def large(size: int) -> None:
    """Have each worker return so many bytes at the same time."""
    with RMAChannelExecutor() as executor:
        calls = [executor.submit(bytes, size) for _ in range(executor.num_workers)]
        while calls:
            assert len(calls.pop().result(LIMIT)) == size
    say(f"{executor.num_workers} results of {size:,} bytes")


def tiny(number: int) -> None:
    """Submit so many calls at once."""
    with RMAChannelExecutor() as executor:
        began = time.monotonic()
        futures = [executor.submit(abs, -each) for each in range(number)]
        submitted = time.monotonic()
        assert sum(future.result(LIMIT) for future in futures) == number * (number - 1) // 2
        done = time.monotonic()
    say(f"{number:,} calls submitted in {submitted - began:.1f} s, done in {done - began:.1f} s")


def backpressure(seconds: int) -> None:
    """Submit faster than the workers run, for so long: memory stays as it is."""
    with RMAChannelExecutor(max_pending=1000) as executor:
        total, peaks = 0, []
        for _ in range(2):
            until, peak = time.monotonic() + seconds / 2, 0
            while time.monotonic() < until:
                for _ in range(500):
                    executor.submit(time.sleep, 1e-4).add_done_callback(Future.result)
                total += 500
                peak = max(peak, *(resident(pid) for pid in (os.getpid(), *(worker.pid for worker in executor.workers()))))
            peaks.append(peak)
    assert peaks[1] <= peaks[0] + FLAT, peaks
    say(f"{total:,} calls in {seconds} s, at most {peaks[0] >> 20} MiB in the first half, {peaks[1] >> 20} in the second")


def slow(seconds: int) -> None:
    """With --spmd: have all ranks but 0 put into a channel as fast as they can, and 0 take slowly: memory stays as it is."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    peaks = [0, 0]  # bytes, in both halves
    began = time.monotonic()

    def note() -> float:
        passed = time.monotonic() - began
        half = int(passed > seconds / 2)
        peaks[half] = max(peaks[half], resident(os.getpid()))
        return passed

    with RemoteChannel(16, 1000, object, consumers="host") as channel:
        counts = dict.fromkeys(range(1, comm.size), 0)  # of messages, by rank
        if comm.rank == 0:
            going = set(counts)
            while going:
                rank, number, data = channel.take(LIMIT)
                if number is None:
                    going.discard(rank)
                else:
                    assert (number, data) == (counts[rank], payload(number))
                    counts[rank] += 1
                    time.sleep(SLOWLY)
                    note()
        else:
            number = 0
            while note() < seconds:
                channel.put((comm.rank, number, payload(number)), LIMIT)
                number += 1
            channel.put((comm.rank, None, b""), LIMIT)
            counts[comm.rank] = number
    assert peaks[1] <= peaks[0] + FLAT, peaks
    taken, *put = comm.allgather(counts)
    assert taken == {rank: counts[rank] for rank, counts in enumerate(put, 1)}
    if comm.rank == 0:
        say(f"{sum(taken.values()):,} messages of {len(put)} ranks, {min(taken.values()):,} of one at the least")


def payload(number: int) -> bytes:
    """Return up to some slots full."""
    return bytes(37 * number % 5000)


FLOODS: dict[str, Callable[[int], None]] = {
    each.__name__: each for each in (deaths, lost, threads, large, tiny, backpressure, slow)
}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    FLOODS[sys.argv[1]](int(sys.argv[2]) if len(sys.argv) > 2 else 0)

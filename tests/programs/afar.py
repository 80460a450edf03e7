"""Kills workers on another host when the root, which cannot know yet, is about to reach for them: idle, fetching, under load.

afar.py STATUS FOLDER
"""

import itertools
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor, WorkerStatus
from mpiexecutor._calls.bulk import BulkTransfer

sys.path.append(str(Path(__file__).parent))

from apart import CALLS, LIMIT, until
from far import say

RANKS = 16  # half of them on the other host, of whom two live on
SOON = (0, 0.005, 0.01, 0.015)  # seconds after which an idle worker's death is or is not known
PIECE = 20  # of a transfer, that is never fetched
HOME = socket.gethostname()


def next_victim(executor: RMAChannelExecutor) -> WorkerStatus:
    return next(worker for worker in executor.workers() if worker.host != HOME and worker.state != "lost")


def die_idle(executor: RMAChannelExecutor, delay: float) -> None:
    """Nothing is lost, whichever rank is woken for it."""
    until(lambda: all(worker.state in {"idle", "lost"} for worker in executor.workers()))
    left = executor.num_workers - 1
    os.kill(next_victim(executor).pid, signal.SIGKILL)
    time.sleep(delay)
    calls = [executor.submit(abs, -number) for number in range(CALLS)]
    assert [call.result(LIMIT) for call in calls] == [*range(CALLS)]
    until(lambda: executor.num_workers == left)
    say(f"ok: idle, {delay * 1e3:g} ms before")


def arm(victim: int, mark: Path, _: object) -> int:
    """Have a worker stop in the middle of the next large transfer that it fetches."""
    time.sleep(0.1)  # so that each worker gets such a call
    if os.getpid() == victim:
        fetch, count = BulkTransfer._fetch_piece, itertools.count()

        def fetch_piece(bulk: BulkTransfer, *args: object) -> None:
            if next(count) == PIECE:
                mark.touch()
                signal.pause()
            fetch(bulk, *args)  # type: ignore[arg-type]

        BulkTransfer._fetch_piece = fetch_piece  # type: ignore[method-assign]
    return os.getpid()


def look(data: bytes, number: int) -> int:
    time.sleep(0.02)
    return data[number] - number


def die_fetching(executor: RMAChannelExecutor, retrying: RMAChannelExecutor, mark: Path) -> None:
    """Others get what it was fetching, and run its calls."""
    victim = next_victim(executor).pid
    until(lambda: victim in {*executor.map(partial(arm, victim, mark), executor.workers(), chunksize=1, timeout=LIMIT)})
    data = bytes(range(200)) * 100_000
    maps = []
    while not mark.exists():
        maps.append(retrying.map(partial(look, data), range(100), timeout=LIMIT))
        time.sleep(0.1)
    os.kill(victim, signal.SIGKILL)
    assert all(found == 0 for results in maps for found in results)
    say("ok: fetching")


def die_under_load(executor: RMAChannelExecutor) -> None:
    """The call that it was running is lost, and nothing else."""
    data = [bytes(37 * number % 5000) for number in range(10 * CALLS)]
    calls = [executor.submit(bytes.upper, each) for each in data]
    os.kill(next_victim(executor).pid, signal.SIGKILL)
    calls += [executor.submit(bytes.upper, each) for each in data]
    lost = 0
    for call, expected in zip(calls, data * 2, strict=True):
        error = call.exception(LIMIT)
        assert type(error) is BrokenWorkerError if error else call.result() == expected, error
        lost += error is not None
    assert lost <= 1, lost
    say("ok: under load")


def main(folder: Path) -> None:
    with RMAChannelExecutor() as executor, RMAChannelExecutor(retries=1) as retrying:
        for delay in SOON:
            die_idle(executor, delay)
        die_fetching(executor, retrying, folder / "mark")
        workers = executor.num_workers
        die_under_load(executor)
        until(lambda: executor.num_workers == workers - 1)
    say("ok: the end")


if __name__ == "__main__":
    main(Path(sys.argv[2]))
    sys.exit(int(sys.argv[1]))

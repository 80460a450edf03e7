"""Two hosts that are one: ranks 2 and above believe that they are on another node.

    mpiexec -n 5 python apart.py STATUS none | one | all

What a network does is not shown here, but what is done about workers there: none is killed, or one, or that and all others fall
silent, come back, and are killed, too.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor, WorkerStatus
from mpiexecutor._pool import registration
from mpiexecutor._start.mpiexec import rank_in_environment
from mpiexecutor.channel import _agreement

LIMIT = 60  # seconds until any future is done
CALLS = 200
FAR = 2  # from this rank on


def believe_to_be_apart() -> None:
    """Have this rank see two nodes."""
    rank = rank_in_environment()
    assert rank is not None
    node = f"node {int(rank >= FAR)}"
    for module in (registration, _agreement):
        module.node_name = lambda: node  # type: ignore[attr-defined]


def hold(seconds: float, begun: Path) -> None:
    """Be in the middle of a call for a while, and say so at once: what workers() tells may be a moment old."""
    (begun / str(os.getpid())).touch()
    time.sleep(seconds)


def until(condition: Callable[[], object]) -> None:
    since = time.monotonic()
    while not condition():
        assert time.monotonic() - since < LIMIT, condition
        time.sleep(0.01)


def far(executor: RMAChannelExecutor) -> list[WorkerStatus]:
    return [worker for worker in executor.workers() if worker.rank >= FAR and worker.state != "lost"]


def kill_one(executor: RMAChannelExecutor, victim: int, left: int) -> BaseException:
    """Kill a worker in the middle of a call; return that call's error, which is the only one."""
    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder)
        calls = [executor.submit(abs, -number) for number in range(CALLS)]
        held: list[Any] = []
        while not (begun / str(victim)).exists():
            held.append(executor.submit(hold, 3, begun))
            until(lambda: len(list(begun.iterdir())) == len(held))
        assert [call.result(LIMIT) for call in calls] == [*range(CALLS)]  # those that are still at the victim would be lost
        os.kill(victim, signal.SIGKILL)
        calls = [executor.submit(abs, -number) for number in range(CALLS)]
        assert [call.result(LIMIT) for call in calls] == [*range(CALLS)]
    errors = [error for call in held if (error := call.exception(LIMIT))]
    assert [type(error) for error in errors] == [BrokenWorkerError], errors
    until(lambda: executor.num_workers == left)
    return errors[0]


def main(deaths: str) -> None:
    with RMAChannelExecutor() as executor:
        until(lambda: {worker.state for worker in executor.workers()} == {"idle"})
        assert [executor.submit(abs, -number).result(LIMIT) for number in range(CALLS)] == [*range(CALLS)]
        if deaths != "none":
            say(f"killed: {kill_one(executor, far(executor)[0].pid, 3)}")
        if deaths == "all":
            fall_silent(executor)
            while far(executor):
                say(f"killed: {kill_one(executor, far(executor)[0].pid, executor.num_workers - 1)}")
    say("the end")


def fall_silent(executor: RMAChannelExecutor) -> None:
    """Have all that are left there say nothing, until they are given up; then have them come back."""
    silent = far(executor)
    for worker in silent:
        os.kill(worker.pid, signal.SIGSTOP)
    until(lambda: executor.num_workers == 1)
    assert [executor.submit(abs, -number).result(LIMIT) for number in range(CALLS)] == [*range(CALLS)]
    for worker in silent:
        os.kill(worker.pid, signal.SIGCONT)
    until(lambda: executor.num_workers == 1 + len(silent))
    assert [executor.submit(abs, -number).result(LIMIT) for number in range(CALLS)] == [*range(CALLS)]
    say("came back")


def say(text: str) -> None:
    sys.stdout.write(f"ok: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    believe_to_be_apart()
    main(sys.argv[2])
    sys.exit(int(sys.argv[1]))

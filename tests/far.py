"""Loses workers on another host, and checks what comes of their calls: one that runs too long, and one that is the last there.

far.py STATUS
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

LIMIT = 60  # seconds until any future is done
CALLS = 200  # others, before and after
FAR = 2  # workers on the other host


def hold(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def hang_once(mark: Path, home: str) -> str:
    """Hang on the other host, the first time."""
    time.sleep(0.5)
    if socket.gethostname() != home:
        with contextlib.suppress(FileExistsError):
            mark.touch(exist_ok=False)
            while True:
                pass
    return "done"


def until(condition: Callable[[], object]) -> None:
    since = time.monotonic()
    while not condition():
        assert time.monotonic() - since < LIMIT, condition
        time.sleep(0.01)


def main(mark: Path) -> None:
    with RMAChannelExecutor() as executor, RMAChannelExecutor(task_timeout=3) as impatient:
        home = socket.gethostname()
        far = [worker for worker in executor.workers() if worker.host != home]
        assert len(far) == FAR, executor.workers()
        until(lambda: {worker.state for worker in executor.workers()} == {"idle"})
        slow = [impatient.submit(hang_once, mark, home) for _ in executor.workers()]
        errors = [error for call in slow if (error := call.exception(LIMIT))]
        assert [type(error) for error in errors] == [TimeoutError], errors
        until(lambda: executor.num_workers == FAR)
        say("ok: ran too long")
        last = next(worker for worker in executor.workers() if worker.host != home and worker.state != "lost")
        calls = [executor.submit(abs, -number) for number in range(CALLS)]
        held = [executor.submit(hold, 3) for _ in range(executor.num_workers)]
        until(lambda: all(worker.state in {"running", "lost"} for worker in executor.workers()))
        os.kill(last.pid, signal.SIGKILL)
        calls += [executor.submit(abs, -number) for number in range(CALLS)]
        assert [call.result(LIMIT) for call in calls] == [*range(CALLS)] * 2
        errors = [error for call in held if (error := call.exception(LIMIT))]
        assert [type(error) for error in errors] == [BrokenWorkerError], errors
        assert f"pid {last.pid}, was not heard of for " in str(errors[0])
        say("ok: was the last there")
        assert [executor.submit(abs, -number).result(LIMIT) for number in range(CALLS)] == [*range(CALLS)]
    say("ok: the end")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[2]))
    sys.exit(int(sys.argv[1]))

"""Loses workers on another host, and checks the outcomes of their calls: one that runs too long, and one that is the last there.

far.py STATUS
"""

import contextlib
import socket
import sys
import time
from pathlib import Path

from mpiexecutor import RMAChannelExecutor

sys.path.append(str(Path(__file__).parent))

from apart import CALLS, LIMIT, kill_one, until

FAR = 2  # workers on the other host


def hang_once(mark: Path, home: str) -> str:
    """Hang on the other host, the first time."""
    time.sleep(0.5)
    if socket.gethostname() != home:
        with contextlib.suppress(FileExistsError):
            mark.touch(exist_ok=False)
            while True:
                pass
    return "done"


def main(mark: Path) -> None:
    with RMAChannelExecutor() as executor, RMAChannelExecutor(task_timeout=3, isolate=False) as impatient:
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
        error = kill_one(executor, last.pid, executor.num_workers - 1)
        assert f"pid {last.pid}, was not heard of for " in str(error)
        say("ok: was the last there")
        assert [executor.submit(abs, -number).result(LIMIT) for number in range(CALLS)] == [*range(CALLS)]
    say("ok: the end")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[2]))
    sys.exit(int(sys.argv[1]))

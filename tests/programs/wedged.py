"""Kills workers inside an atomic operation of MPI on the window, which may leave its lock taken for ever, until that has happened.

    wedged.py STATUS

No process can use the window then: the executor is given up, and nothing waits for ever. A kill cannot be aimed at the few
instructions that hold the lock, so each worker is killed in its turn; whether that leaves the lock taken is chance, and is said.
"""

import atexit
import gc
import os
import signal
import sys
import time
from array import array
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from tempfile import TemporaryDirectory

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor
from mpiexecutor.channel import RemoteChannel

LIMIT = 30  # seconds until any future is done
CALLS = 50


def be_inside(mark: Path) -> None:
    """Read all of the work's window atomically, again and again."""
    from mpi4py import MPI

    work = next(each for each in gc.get_objects() if isinstance(each, RemoteChannel) and each._only_host["put"])
    window, size = work._window._win, work._layout.size // 8
    found = array("q", bytes(8 * size))
    mark.write_text(str(os.getpid()))
    while True:
        window.Get_accumulate(found, found, 0, (0, size, MPI.INT64_T), MPI.NO_OP)


def main(folder: Path) -> None:
    with RMAChannelExecutor() as executor:
        for left in range(executor.num_workers - 1, 0, -1):
            mark = folder / str(left)
            inside = executor.submit(be_inside, mark)
            while not mark.exists() or not mark.read_text():
                time.sleep(0.01)
            calls = [executor.submit(abs, -number) for number in range(CALLS)]
            began = time.monotonic()
            os.kill(int(mark.read_text()), signal.SIGKILL)
            errors = [call.exception(LIMIT) for call in (inside, *calls)]
            if type(errors[0]) is not BrokenWorkerError:
                give_up(executor, errors, time.monotonic() - began)
                return
            assert [call.result(LIMIT) for call in calls] == [*range(CALLS)]
            say(f"goes on after {time.monotonic() - began:.1f} s")


def give_up(executor: RMAChannelExecutor, errors: list[BaseException | None], seconds: float) -> None:
    """See that each caller gets an error once the window cannot be used."""
    assert isinstance(errors[0], BrokenProcessPool), errors[0]
    assert all(error is None or isinstance(error, BrokenProcessPool) for error in errors), errors
    try:
        executor.submit(abs, 1)
    except BrokenProcessPool as error:
        say(f"given up after {seconds:.1f} s: {error}")


def say(text: str) -> None:
    sys.stdout.write(f"ok: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    atexit.register(say, "the last of the exit handlers")
    with TemporaryDirectory() as folder:
        main(Path(folder))
    sys.exit(int(sys.argv[1]))

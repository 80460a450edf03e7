"""Has another host cut off for good, when its workers are at a chosen point, and checks the outcomes of their calls.

    cut.py FOLDER running | midway | busy

The test waits for the file "cut" in the folder, cuts the host off, and makes the file "is cut".
"""

import atexit
import signal
import socket
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor
from mpiexecutor.channel._ring.producer import Producer

sys.path.append(str(Path(__file__).parent))

from apart import CALLS, LIMIT, until
from far import FAR, say

if TYPE_CHECKING:
    from concurrent.futures import Future

HOME = socket.gethostname()
BUSY = 16  # seconds under load, at the most


def cut(folder: Path) -> None:
    (folder / "cut").touch()
    until((folder / "is cut").exists)


def hold(folder: Path, home: str) -> None:
    """Be in a call, on the other host for ever."""
    (folder / f"{socket.gethostname()} {time.monotonic_ns()}").touch()
    while socket.gethostname() != home or not (folder / "is cut").exists():
        time.sleep(0.01)


def running(executor: RMAChannelExecutor, folder: Path) -> None:
    """In calls: these are lost, and the others go on."""
    held = [executor.submit(hold, folder, HOME) for _ in executor.workers()]
    until(lambda: len(list(folder.iterdir())) == len(held))
    cut(folder)
    assert [executor.submit(abs, -number).result(LIMIT) for number in range(CALLS)] == [*range(CALLS)]
    errors = [error for call in held if (error := call.exception(LIMIT))]
    assert [type(error) for error in errors] == [BrokenWorkerError] * FAR, errors
    until(lambda: executor.num_workers == 1)


def stop_midway(folder: Path, home: str) -> None:
    """On the other host, stop for ever in the middle of this call's result."""
    if socket.gethostname() != home:
        swap = Producer._swap

        def patched(*arguments: Any) -> int:
            seen = swap(*arguments)
            if seen == arguments[1]:  # it is reserved
                (folder / "midway").touch()
                signal.pause()
            return seen

        Producer._swap = patched  # type: ignore[method-assign]
    else:
        until((folder / "midway").exists)


def midway(executor: RMAChannelExecutor, folder: Path) -> None:
    """One in the middle of a message: the rest of that may still come, so the executor is given up."""
    calls: list[Future[Any]] = [executor.submit(stop_midway, folder, HOME) for _ in executor.workers()]
    until((folder / "midway").exists)
    cut(folder)
    assert any(type(call.exception(LIMIT)) is BrokenProcessPool for call in calls)
    check_broken(executor)


def busy(executor: RMAChannelExecutor, folder: Path) -> None:
    """At whatever they just are."""
    errors: list[BaseException] = []
    try:
        calls = [executor.submit(time.sleep, 0.01) for _ in range(CALLS)]
        cut(folder)
        end = time.monotonic() + BUSY
        while calls:
            errors += [error for call in calls if (error := call.exception(LIMIT))]
            calls = [executor.submit(time.sleep, 0.01) for _ in range(20 if time.monotonic() < end else 0)]
    except BrokenProcessPool as error:
        errors.append(error)
    assert all(type(error) in {BrokenProcessPool, BrokenWorkerError} for error in errors), errors
    if any(type(error) is BrokenProcessPool for error in errors):
        check_broken(executor)
    else:
        assert len(errors) <= FAR, errors
        until(lambda: executor.num_workers == 1)


def check_broken(executor: RMAChannelExecutor) -> None:
    assert executor.num_workers == 0
    try:
        executor.submit(abs, 1)
    except BrokenProcessPool as error:
        assert "was not heard of" in str(error)
    else:
        raise AssertionError("a broken executor takes a call")


if __name__ == "__main__":
    atexit.register(say, "ok: the end")
    with RMAChannelExecutor() as pool:
        until(lambda: {worker.state for worker in pool.workers()} == {"idle"})
        globals()[sys.argv[2]](pool, Path(sys.argv[1]))
    say("ok: " + sys.argv[2])

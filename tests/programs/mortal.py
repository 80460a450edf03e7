"""Kills the workers of a pool, one after another, at chosen steps, and checks that only the calls they were running are lost.

    mortal.py FOLDER STATUS

It needs a worker for each step and one more. It ends with that status, which says that its exit handlers have been run.

A step is chosen by patching the channel in the worker that is to die; the death itself is real.
"""

import atexit
import ctypes
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor
from mpiexecutor._liveness.process_manager import mapped

if TYPE_CHECKING:
    from concurrent.futures import Future

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
LIMIT = 60  # seconds until any future is done
CALLS = 300  # others, before and after
LARGE = 12 << 20  # bytes: three times as long as the channel
ALONE = 0.01  # seconds: messages of several calls have shorter ones
LOOK = 0.005  # seconds between two


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note(folder: Path, number: int) -> int:
    """Be run: once, as the lines say."""
    descriptor = os.open(folder / "runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)
    return -number


def pass_gate(gate: Path, cargo: bytes) -> int:
    """Keep this worker until the gate is there."""
    while not gate.exists():
        time.sleep(LOOK)
    return len(cargo)


def shared_files(_: int) -> list[str]:
    """Name what this worker's MPI has in shared memory."""
    return mapped()[1]


class Deadly:
    """Kills the process that unpickles it."""

    def __reduce__(self) -> Any:
        return die, ()


def end_with_segmentation_fault() -> None:
    ctypes.string_at(0)


def exit_at_once() -> None:
    os._exit(3)


def die_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        die()
    return "done"


def use_channel() -> None:
    """Have what is long go through the channel, as between nodes."""
    from mpiexecutor._util.segments import SegmentPool

    SegmentPool.put = lambda *_: None


def arm(name: str) -> bytes:
    """Have this worker die at a step, soon."""
    from mpiexecutor.channel._ring.consumer import Consumer
    from mpiexecutor.channel._ring.producer import Producer
    from mpiexecutor.channel._ring.records import RECEIVED

    {
        "before it claims": lambda: _before(Consumer, "take_short"),
        "between the record and the swap of a claim": lambda: _in_swap(Consumer),
        "holding the lock of a claim": lambda: _in_swap(Consumer, locked=True),
        "after it has claimed": lambda: _after(Consumer, "_swap", _was_fastest),
        "before it says that it has received": lambda: _before(Consumer, "_set_state", lambda _, state: state == RECEIVED),
        "before its result is put": lambda: _before(Producer, "put_short"),
        "between the record and the swap of its result": lambda: _in_swap(Producer),
        "holding the lock of its result": lambda: _in_swap(Producer, locked=True),
        "after it has reserved room for its result": lambda: _after(Producer, "_swap", _was_fastest),
        "in the middle of a long result": lambda: _after(Producer, "_publish"),
        "in the middle of a long call": lambda: _after(Consumer, "receive"),
    }[name]()
    use_channel()
    # So long that no other call comes in the same message: another thread would send this result while that call ran, and was lost.
    time.sleep(ALONE)
    return bytes(LARGE if "long" in name else 1)


def _before(kind: type, step: str, when: Callable[..., bool] = lambda *_: True) -> None:
    original = getattr(kind, step)

    def patched(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            die()
        return original(*arguments, **options)

    setattr(kind, step, patched)


def _after(kind: type, step: str, when: Callable[..., bool] = lambda *_: True) -> None:
    original = getattr(kind, step)

    def patched(*arguments: Any) -> Any:
        seen = original(*arguments)
        if when(seen, *arguments):
            die()
        return seen

    setattr(kind, step, patched)


def _was_fastest(seen: int, *arguments: Any) -> bool:
    """Whether a swap was this rank's: of end, position, and so on."""
    return seen == arguments[1]


def _in_swap(kind: Any, *, locked: bool = False) -> None:
    """Have this worker die before the atomic step of a swap; or in it, holding the lock, if the window has locks."""
    from mpiexecutor._rma.shared_lock import SharedLock
    from mpiexecutor._rma.window import _RemoteMemory

    original = kind._swap

    def patched(*arguments: Any) -> Any:
        if locked:
            _before(SharedLock, "release")
            _after(_RemoteMemory, "compare_swap")
        else:
            _before(SharedLock, "acquire")
            _before(_RemoteMemory, "compare_swap")
        return original(*arguments)

    kind._swap = patched


# What has the worker die, and whether the call is lost with it.
STEPS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], bool]] = {
    "running, by SIGKILL": (die, (), True),
    "running, by a segmentation fault": (end_with_segmentation_fault, (), True),
    "running, by os._exit": (exit_at_once, (), True),
    "unpickling its call": (id, (Deadly(),), True),
}
for _name, _lost in {
    "before it claims": False,
    "between the record and the swap of a claim": False,
    "holding the lock of a claim": False,
    "after it has claimed": False,
    "before it says that it has received": False,
    "before its result is put": False,
    "between the record and the swap of its result": False,
    "holding the lock of its result": False,
    "after it has reserved room for its result": False,
    "in the middle of a long result": True,
}.items():
    STEPS[_name] = arm, (_name,), _lost
WORKERS = len(STEPS) + 5  # idle, in the middle of a long call, run again, and all that are left


def main() -> None:
    use_channel()
    with RMAChannelExecutor(retries=0) as executor, RMAChannelExecutor(retries=1) as stubborn:
        for file in {file for found in executor.map(shared_files, range(CALLS)) for file in found}:
            say(f"file: {file}")
        left = executor.num_workers
        assert left == WORKERS, left
        for name, (function, arguments, lost) in STEPS.items():
            calls = [executor.submit(note, FOLDER, number) for number in range(CALLS)]
            victim = executor.submit(function, *arguments)
            calls += [executor.submit(note, FOLDER, number) for number in range(CALLS, 2 * CALLS)]
            check(name, victim, calls, lost=lost)
            left -= 1
            if lost:
                wait_until_known(executor, left)
            else:
                have_all_take(executor, left)
        kill(executor.submit(os.getpid).result(LIMIT))
        left -= 1
        wait_until_known(executor, left)
        say("ok: idle")
        executor.submit(arm, "in the middle of a long call").result(LIMIT)
        left -= 1
        have_all_take(executor, left, bytes(LARGE))
        say("ok: in the middle of a long call")
        assert stubborn.submit(die_once, FOLDER / "mark").result(LIMIT) == "done"
        left -= 1
        wait_until_known(executor, left)
        say("ok: run again")
        pending = [executor.submit(exit_at_once) for _ in range(10 * left)]
        errors = Counter(type(future.exception(LIMIT)) for future in pending)
        assert errors[BrokenWorkerError] == left, errors
        assert errors[BrokenWorkerError] + errors[BrokenProcessPool] == len(pending), errors
        try:
            executor.submit(abs, 1)
        except BrokenProcessPool as error:
            say(f"ok: all dead: {error}")
        assert executor.num_workers == 0


def check(name: str, victim: "Future[Any]", calls: "list[Future[int]]", *, lost: bool) -> None:
    """Only the victim is lost, if it had not come to its end, or was long; each call was run once."""
    error = victim.exception(LIMIT)
    assert (type(error) is BrokenWorkerError) == lost, (name, error)
    for number, call in enumerate(calls):
        assert call.result(LIMIT) == -number, name
    runs = Counter((FOLDER / "runs").read_text().split())
    assert runs == Counter(map(str, range(len(calls)))), (name, [run for run in runs.items() if run[1] != 1])
    (FOLDER / "runs").unlink()
    say(f"ok: {name}: {error}")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def have_all_take(executor: RMAChannelExecutor, left: int, cargo: bytes = b"") -> None:
    """Have every worker take a call, and so the one that is to die of that; the others keep theirs until its death is known."""
    gate = FOLDER / "gate"
    calls = [executor.submit(pass_gate, gate, cargo) for _ in range(left + 1)]
    wait_until_known(executor, left)
    gate.touch()
    assert [call.result(LIMIT) for call in calls] == [len(cargo)] * len(calls)
    gate.unlink()


def wait_until_known(executor: RMAChannelExecutor, left: int) -> None:
    """Wait until no more workers are left: a death may be known only after all results are there."""
    until = time.monotonic() + LIMIT
    while executor.num_workers > left:
        assert time.monotonic() < until, (executor.num_workers, left)
        time.sleep(LOOK)


if __name__ == "__main__":
    atexit.register(say, "ok: the last of the exit handlers")
    main()
    sys.exit(int(sys.argv[2]))

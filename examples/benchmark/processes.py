"""What Linux says of processes: their memory, their time on a core, and which of them belong together."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

TOKEN = "MPIEXECUTOR_BENCHMARK"  # in the environment of every process of a contender, wherever mpiexec has put it


def resident_memory(pid: str) -> int:
    """Return the bytes of a process that are in memory."""
    return _status(pid, "VmRSS")


def peak_memory(pid: str) -> int:
    """Return the most bytes of a process that ever were in memory."""
    return _status(pid, "VmHWM")


def cpu_seconds(pid: str) -> float:
    """Return the time that all threads of a process have spent on a core, to the nanosecond."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path("/proc", pid, "task").iterdir()) / 1e9


def with_token(token: str) -> Iterator[int]:
    """Yield the processes that were started with this token."""
    needle = f"{TOKEN}={token}\0".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                if needle in (entry / "environ").read_bytes() + b"\0":
                    yield int(entry.name)


def send(number: signal.Signals, token: str) -> bool:
    """Send a signal to all processes with a token; whether there were any."""
    pids = list(with_token(token))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(pids)


def _status(pid: str, name: str) -> int:
    for line in Path("/proc", pid, "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no {name}")

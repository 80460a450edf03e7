"""Which processes can use segments together, and how much memory is free."""

import contextlib
import os
from pathlib import Path

from .file import inode_of


def pid_namespace() -> int:
    """Return what processes have in common that know each other by the same pids; 0 if this system has no segments."""
    return inode_of("/proc/self/ns/pid") if hasattr(os, "memfd_create") else 0


def is_within_reach(pid: int, namespace: int) -> bool:
    """Return whether this process may open segments of another one of its node, and presumably that one those of this process."""
    return namespace != 0 and pid_namespace() == namespace == inode_of(f"/proc/{pid}/ns/pid")


def free_memory() -> int:
    """Return the bytes of memory that are free, on this machine and in its control group; 0 if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no number: no limit
            found.append(int(Path("/sys/fs/cgroup", limit).read_text()) - int(Path("/sys/fs/cgroup", used).read_text()))
    return max(0, min(found, default=0))

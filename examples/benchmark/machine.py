"""Where the figures come from: machine, versions, commit."""

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from contenders import HERE

_PACKAGES = ("mpiexecutor", "mpi4py", "cloudpickle", "numpy", "loky", "distributed", "mpi-channels", "mpich", "openmpi", "impi-rt")


def describe() -> dict[str, str]:
    """Say what a reader must know to compare."""
    return {
        "machine": f"{platform.system()} {platform.release()} on {platform.machine()}",
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "load at the start": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "packages": ", ".join(_installed()),
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _installed():
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"


def _commit() -> str:
    """Name the commit; "-dirty" if anything differs but what `update.py` writes."""
    try:
        changes = _git("status", "--porcelain", "--", ":/", ":!README.md", ":!results")
        return _git("describe", "--always", "--abbrev=10") + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=True).stdout.strip()

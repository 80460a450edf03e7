"""Who is measured, what must be installed for it, and the command that starts it.

Each contender is a process of its own, or the root of ranks of its own, that runs serve.py. Ours are started as its users would,
through ``python -m mpiexecutor``, the other MPI programs by the mpiexec that this command line finds.
"""

import functools
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

OURS = "mpiexecutor"
THREADS = "ThreadPoolExecutor"
PROCESSES = "ProcessPoolExecutor"
LOKY = "loky"
FUTURES = "mpi4py.futures"
FUTURES_AT_BEST = "mpi4py.futures-at-best"
DASK = "dask.distributed"
CHANNEL = "mpiexecutor.channel"
SEED = "mpi-channels"
QUEUE = "SimpleQueue"

HERE = Path(__file__).parent
_AT_BEST = {"MPI4PY_FUTURES_BACKOFF": "0", "MPI4PY_FUTURES_USE_PKL5": "1"}  # spins while it waits; sends large buffers as they lie


@dataclass(frozen=True, slots=True)
class Contender:
    """One who is measured. The name is also that of the function in serve.py that makes it."""

    name: str
    kind: Literal["executor", "channel"]
    start: Literal["alone", "under mpiexec", "by python -m mpiexecutor"]
    module: str | None = None  # that must be installed
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        return self.module is None or find_spec(self.module) is not None

    def command(self, workers: int, hosts: str | None) -> list[str]:
        """Return the command that starts it, with so many workers.

        `hosts` starts ranks on several hosts: {ranks} of them, by {mpiexec} unless it names another.
        """
        ranks = workers + 1  # the root is one
        program = [str(HERE / "serve.py"), self.name, str(workers)]
        python = [sys.executable, "-m", "mpiexecutor" if self.start == "by python -m mpiexecutor" else "mpi4py"]
        if self.start == "alone":
            return [sys.executable, *program]
        if hosts is not None:
            return [*shlex.split(hosts.format(ranks=ranks, mpiexec=mpiexec(1)[0])), *python, *program]
        if self.start == "under mpiexec":
            return [*mpiexec(ranks), *python, *program]
        return [*python, "-n", str(ranks), *program]


CONTENDERS = (
    Contender(OURS, "executor", "by python -m mpiexecutor"),
    Contender(THREADS, "executor", "alone"),
    Contender(PROCESSES, "executor", "alone"),
    Contender(LOKY, "executor", "alone", "loky"),
    Contender(FUTURES, "executor", "under mpiexec"),
    Contender(FUTURES_AT_BEST, "executor", "under mpiexec", environment=_AT_BEST),
    Contender(DASK, "executor", "alone", "distributed"),
    Contender(CHANNEL, "channel", "under mpiexec"),
    Contender(SEED, "channel", "under mpiexec", "mpi_channels"),
    Contender(QUEUE, "channel", "alone"),
)
OUR_OWN = (OURS, CHANNEL)


@functools.cache
def mpiexec(ranks: int) -> Sequence[str]:
    """Return the mpiexec of this Python's MPI with its flags: what ``python -m mpiexecutor -v`` shows that it runs."""
    command = [sys.executable, "-m", "mpiexecutor", "-v", "-n", str(ranks), "-c", "pass"]
    shown = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True, timeout=120).stderr
    line = next(line for line in shown.splitlines() if "-m mpiexecutor" in line)
    words = shlex.split(line)
    return words[: words.index("-n") + 2]

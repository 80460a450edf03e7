"""The mpiexec that belongs to this Python's MPI, its flags, and what the environment of a rank says of its place in the job."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mpiexecutor._util.flavour import Flavour, flavour_of

JOB_VARIABLE: Final = "MPIEXECUTOR_JOB"  # address and token, for the processes of a job that a script has started itself

# At least one of these is set in every process that a process manager has started as a rank.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_FD")
# The number of ranks. srun's comes last: it may count the processes of an mpiexec only.
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_WITH_ULFM = 5  # the first Open MPI with user-level failure mitigation (ULFM)
_SPECIAL_STEPS = 0xFFFFFFF0  # from here on numbers of steps are those of shells of salloc and sbatch, not of srun


class NoMpiexecError(RuntimeError):
    """There is no mpiexec to start workers with."""


@dataclass(frozen=True, slots=True)
class Mpiexec:
    """A launcher of ranks."""

    path: str
    flavour: Flavour
    version: str  # the first line that --version prints

    @classmethod
    def find(cls, path: str | None = None) -> "Mpiexec":
        """Return the mpiexec at `path`; if that is None, the one beside this Python, else the first on the PATH.

        Raises:
            NoMpiexecError: There is none, or it cannot be run.

        """
        if path is None:
            beside = shutil.which("mpiexec", path=str(Path(sys.prefix) / "bin"))
            path = beside or shutil.which("mpiexec")
        if path is None:
            raise NoMpiexecError(
                "no mpiexec was found, neither beside this Python nor on the PATH: install an MPI, "
                "for example with pip install 'mpiexecutor[mpich]'"
            )
        try:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoMpiexecError(f"{path} cannot be run: {error}") from error
        text = answer.stdout + answer.stderr
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return cls(path, flavour_of(text), lines[0] if lines else "")

    def command(self, ranks: int, program: Sequence[str], *, hostfile: str | None = None, here: bool = False) -> list[str]:
        """Return the command that starts ranks of a program.

        Args:
            ranks: Their number.
            program: The program with its arguments.
            hostfile: A file that lists the hosts, in the format of this mpiexec.
            here: Start all ranks on this machine, though a batch job may have others.

        """
        return [self.path, *self._flags(hostfile=hostfile, here=here), "-n", str(ranks), *program]

    def _flags(self, *, hostfile: str | None, here: bool) -> list[str]:
        if self.flavour is Flavour.OPEN_MPI:
            # More ranks than cores are allowed, on any core.
            flags = ["--oversubscribe", "--bind-to", "none"]
            if os.geteuid() == 0:
                flags.append("--allow-run-as-root")
            if hostfile is None:  # osc/ucx complains at every window, and shared memory does not use it
                flags += ["--mca", "osc", "^ucx"]
            if here:
                flags += ["--host", "localhost:9999"]
            if hostfile is not None and self._major >= _WITH_ULFM:  # else the death of a worker on another node ends the job
                flags += ["--with-ft", "ulfm"]
            return flags + (["--hostfile", hostfile] if hostfile else [])
        if here and self.flavour is not Flavour.UNKNOWN:
            return ["-launcher", "fork", "-hosts", "localhost"]  # the batch system does not know localhost
        return ["-f", hostfile] if hostfile else []

    @property
    def _major(self) -> int:
        """The major version; 0 if it is unknown."""
        found = re.search(r"(\d+)\.\d", self.version)
        return int(found[1]) if found else 0


def launched() -> bool:
    """Return whether a process manager has started this process as a rank, or srun as one of several processes."""
    return any(name in os.environ for name in _RANK_VARIABLES) or size_in_environment() > 1


def yield_when_idle() -> None:
    """Have an MPI that is initialised after this call yield the processor while it waits, as MPICH and Intel MPI always do.

    Open MPI does so only if it finds more ranks than cores. Without it, on one core, a root whose progress thread (see
    _rma/progress.py) serves other nodes while its main thread computes would answer only every 8 to 24 ms.
    """
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def rank_in_environment() -> int | None:
    """Return the rank that the process manager has set in the environment; None if there is none. MPI is not needed."""
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return int(os.environ["SLURM_PROCID"]) if size_in_environment() > 1 else None


def size_in_environment() -> int:
    """Return the number of processes that were started together, this one included, as set in the environment."""
    return next((int(os.environ[name]) for name in _SIZE_VARIABLES if name in os.environ), 1)


def in_srun() -> bool:
    """Return whether srun has started this process. If an mpiexec asks srun for more processes then, they wait for its end."""
    return int(os.environ.get("SLURM_STEP_ID", _SPECIAL_STEPS)) < _SPECIAL_STEPS


def usable_cores() -> int:
    """Count the cores that this process may use."""
    count = getattr(os, "process_cpu_count", None)  # since Python 3.13
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interpreter_flags() -> list[str]:
    """Return the options that this Python was started with, as multiprocessing passes them on."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001

"""The mpiexec that belongs to this Python's MPI, and the flags that it needs."""

import enum
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# One of these is set in every process that a process manager has started as a rank.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_FD")
# How many there are of them. srun comes last: it may have started an mpiexec's own processes only.
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_WITH_ULFM = 5  # from here on Open MPI has user-level failure mitigation
_SPECIAL_STEPS = 0xFFFFFFF0  # from here on Slurm numbers what is no srun's step, but the shell of salloc, or of sbatch


class Flavour(enum.Enum):
    """A family of launchers, which share their flags."""

    MPICH = "MPICH"
    OPEN_MPI = "Open MPI"
    INTEL_MPI = "Intel MPI"
    UNKNOWN = "an unknown MPI"  # which gets no flags, and the benefit of the doubt


class NoMpiexecError(RuntimeError):
    """There is no mpiexec to start workers with."""


@dataclass(frozen=True, slots=True)
class Mpiexec:
    """A launcher."""

    path: str
    flavour: Flavour
    version: str  # the first line of what it says of itself

    @classmethod
    def find(cls, path: str | None = None) -> "Mpiexec":
        """Find it: where this Python's packages install one, else on the PATH. NoMpiexecError if there is none."""
        if path is None:
            beside = shutil.which("mpiexec", path=str(Path(sys.prefix) / "bin"))
            path = beside or shutil.which("mpiexec")
        if path is None:
            raise NoMpiexecError(
                "no mpiexec was found, neither beside this Python nor on the PATH: install an MPI, "
                "for example with pip install 'mpiexecutor[mpich]'"
            )
        try:
            found = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoMpiexecError(f"{path} cannot be run: {error}") from error
        text = found.stdout + found.stderr
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return cls(path, flavour_of(text), lines[0] if lines else "")

    def command(self, ranks: int, program: Sequence[str], *, hostfile: str | None = None, here: bool = False) -> list[str]:
        """Give the command that starts so many ranks of a program; with `here`, all on this machine, whatever a job owns."""
        return [self.path, *self._flags(hostfile=hostfile, here=here), "-n", str(ranks), *program]

    def _flags(self, *, hostfile: str | None, here: bool) -> list[str]:
        if self.flavour is Flavour.OPEN_MPI:
            # More ranks than cores, anywhere on the machine; one that fails early must not be taken for a broken machine.
            flags = ["--oversubscribe", "--bind-to", "none"]
            if os.geteuid() == 0:
                flags.append("--allow-run-as-root")
            if hostfile is None:  # its osc/ucx complains at every window, and shared memory does not use it
                flags += ["--mca", "osc", "^ucx"]
            if here:
                flags += ["--host", "localhost:9999"]
            if hostfile is not None and self._major >= _WITH_ULFM:  # else the end of a worker on another host ends the job
                flags += ["--with-ft", "ulfm"]
            return flags + (["--hostfile", hostfile] if hostfile else [])
        if here and self.flavour is not Flavour.UNKNOWN:
            return ["-launcher", "fork", "-hosts", "localhost"]  # not by the batch system, which knows no localhost
        return ["-f", hostfile] if hostfile else []

    @property
    def _major(self) -> int:
        """The number before the first dot; 0 if there is none."""
        found = re.search(r"(\d+)\.\d", self.version)
        return int(found[1]) if found else 0


def launched() -> bool:
    """Whether a process manager has started this process as a rank, or srun as one of several, which are meant to be ranks."""
    return any(name in os.environ for name in _RANK_VARIABLES) or size_in_environment() > 1


def have_waiting_give_way() -> None:
    """Have an MPI that is initialised from here on let others have the processor while it waits, as MPICH and Intel MPI do anyway.

    Open MPI does so only where it finds more ranks than cores. A root that attends to other nodes (see _rma/progress.py) beside
    its busy main thread, on one core, would else answer every 8 to 24 ms.
    """
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def rank_in_environment() -> int | None:
    """Give this process's rank as its process manager says, without MPI."""
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return int(os.environ["SLURM_PROCID"]) if size_in_environment() > 1 else None


def size_in_environment() -> int:
    """Give how many processes were started together with this one, itself included, as who has started them says."""
    return next((int(os.environ[name]) for name in _SIZE_VARIABLES if name in os.environ), 1)


def in_srun() -> bool:
    """Whether srun has started this process: an mpiexec that asks srun for more would wait until this one has ended."""
    return int(os.environ.get("SLURM_STEP_ID", _SPECIAL_STEPS)) < _SPECIAL_STEPS


def usable_cores() -> int:
    """Count the cores that this process may use."""
    count = getattr(os, "process_cpu_count", None)  # since Python 3.13
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def flavour_of(version: str) -> Flavour:
    """Tell by what a launcher, or a library, says of itself."""
    for sign, flavour in (
        ("Open MPI", Flavour.OPEN_MPI),
        ("PRRTE", Flavour.OPEN_MPI),
        ("Intel", Flavour.INTEL_MPI),
        ("HYDRA", Flavour.MPICH),
        ("MPICH", Flavour.MPICH),
    ):
        if sign in version:
            return flavour
    return Flavour.UNKNOWN

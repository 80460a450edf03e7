"""The process manager, as a rank sees it without MPI: how a rank leaves it.

A process manager takes a rank that ends without a message for a failure, and ends the job. MPI_Finalize sends that message, but
waits for all ranks, and so for ever once one has failed. After a failure each rank, or the supervisor of a failed one, sends it
without MPI.

With Hydra, the mpiexec of MPICH and Intel MPI, the message is a line of the PMI-1 protocol. Open MPI's process manager expects
a PMIx client: it takes a second process of a rank, such as its supervisor, for the rank (tried with Open MPI 5.0).
"""

import contextlib
import ctypes
import functools
import logging
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpiexecutor._util.seconds import ANSWER, WAITING

logger = logging.getLogger("mpiexecutor")

_LAUNCHERS = "mpiexec", "mpirun", "prterun", "orterun"  # the name of its process begins so,
_BETWEEN = "hydra_", "sh", "bash", "dash"  # and the names of processes between it and the ranks on its node
_PATIENT_KILLER = """
import select, signal, sys
process = int(sys.argv[1])
if not select.select([process], [], [], float(sys.argv[2]))[0]:
    signal.pidfd_send_signal(process, signal.SIGKILL)
"""
_SHARED = tuple(f"/dev/shm/{name}" for name in ("mpich_shm_", "sm_segment.", "vader_segment."))  # noqa: S108 - of MPI
_DELETED = " (deleted)"
_INITIALISED = 8  # at most so often has a library initialised PMIx


class _PmixProcess(ctypes.Structure):
    """pmix_proc_t."""

    _fields_ = (("namespace", ctypes.c_char * 256), ("rank", ctypes.c_uint32))


@functools.cache  # later the environment of a worker lacks these variables
def connection() -> int | None:
    """Return the descriptor of this rank's connection to its process manager, if that is Hydra; else None."""
    is_hydra = any(name.startswith(("HYDI_", "HYDRA_")) for name in os.environ)
    return int(os.environ["PMI_FD"]) if is_hydra and "PMI_FD" in os.environ else None


def mapped() -> tuple[str | None, list[str]]:
    """Return the path of the PMIx library that this process has loaded, if any, and MPI's files of shared memory."""
    library, files = None, []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = "/" + line.partition("/")[2]
            if "/libpmix.so" in path:
                library = path
            if path.startswith(_SHARED) and not path.endswith(_DELETED):
                files.append(path)
    return library, sorted(set(files))


def remove(files: Sequence[str]) -> None:
    """Remove files that MPI would remove."""
    for file in files:
        with contextlib.suppress(OSError):
            Path(file).unlink()


def take_leave(descriptor: int | None, library: str | None, *, initialise: bool) -> None:
    """Tell the process manager, without MPI, that this rank is done. `initialise`: this process has not initialised PMIx."""
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, b"cmd=finalize\n")
            if select.select((descriptor,), (), (), ANSWER)[0]:
                os.read(descriptor, 256)
    if library is not None:
        with contextlib.suppress(OSError, AttributeError):
            _finalize_pmix(library, initialise=initialise)


def leave_without_mpi(descriptor: int | None) -> None:
    """End in this process what MPI_Finalize would end: tell the process manager, and remove MPI's files."""
    library, files = mapped()
    remove(files)
    take_leave(descriptor, library, initialise=False)


def end_launcher() -> None:
    """Have mpiexec killed if it still runs some seconds after this process has ended: it may wait for a lost node for ever."""
    launcher = _launcher()
    if launcher is None:
        return
    try:
        descriptor = os.pidfd_open(launcher)
    except (AttributeError, OSError):
        return
    logger.warning("mpiexec is killed if it still waits for a lost node %g s after the script", WAITING)
    nothing: Any = subprocess.DEVNULL  # a reader of this process's output would wait for its end
    command = [sys.executable, "-I", "-S", "-c", _PATIENT_KILLER, str(descriptor), str(WAITING)]
    subprocess.Popen(command, pass_fds=(descriptor,), start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing)  # noqa: S603
    os.close(descriptor)


def end_step() -> None:
    """Have Slurm end all processes that srun has started with this one. If only one of them ends, srun waits for the others."""
    step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--signal=KILL", step], stdin=subprocess.DEVNULL, check=False, timeout=WAITING)  # noqa: S603, S607


def _launcher() -> int | None:
    """Return the process id of this job's mpiexec, if it is an ancestor of this process: only on mpiexec's own node."""
    above = os.getppid()
    with contextlib.suppress(OSError):
        while True:
            name, _, rest = Path(f"/proc/{above}/stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith(_LAUNCHERS):
                return above
            if not name.startswith(_BETWEEN):
                break
            above = int(rest.split()[1])
    return None


def _finalize_pmix(library: str, *, initialise: bool) -> None:
    pmix = ctypes.CDLL(library)
    if initialise and pmix.PMIx_Init(ctypes.byref(_PmixProcess()), None, ctypes.c_size_t(0)) != 0:
        return
    for _ in range(_INITIALISED):
        if not pmix.PMIx_Initialized():
            return
        pmix.PMIx_Finalize(None, ctypes.c_size_t(0))

"""Resources that a machine may lack for the processes of a job: an MPI may then hang, or be killed, without a message."""

import contextlib
import os
import resource
from pathlib import Path
from typing import Final

from mpiexecutor._util.flavour import Flavour

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - where MPIs have their shared memory
# Measured with 2 to 32 workers: MPICH 5.0, which needs most, fails with less.
_MPICH_MEMORY, _MEMORY = 5 << 20, 512 << 10  # bytes of shared memory for a rank
_FILES, _FILES_PER_RANK = 28, 2  # that the root opens


def shortages(ranks: int, flavour: Flavour) -> list[str]:
    """Return a clause for each resource that this machine may lack for so many ranks, with a remedy."""
    memory = ranks * (_MPICH_MEMORY if flavour is Flavour.MPICH else _MEMORY)
    return [*_of_memory(memory, ranks), *_of_files(_FILES + _FILES_PER_RANK * ranks, ranks)]


def _of_memory(needed: int, ranks: int) -> list[str]:
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError as error:
        return [f"{_SHARED_MEMORY}, the shared memory of MPI, cannot be used: {error.strerror}"]
    free = found.f_bavail * found.f_frsize
    if free >= needed:
        return []
    remedy = "'docker run --shm-size=1g' has a container have more"
    return [f"{_SHARED_MEMORY} has {free >> 20} MiB free, and {ranks} ranks may need {needed >> 20} MiB ({remedy})"]


def _of_files(needed: int, ranks: int) -> list[str]:
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = 0
    with contextlib.suppress(OSError):
        used = len(list(Path("/proc/self/fd").iterdir()))
    if most == resource.RLIM_INFINITY or most - used >= needed:
        return []
    needed += used
    remedy = (
        f"'ulimit -n {needed}' raises the limit"
        if hard == resource.RLIM_INFINITY or hard >= needed
        else "the administrator set this limit"
    )
    return [f"a process may have {most} files open, and with {ranks} ranks this one may need {needed} ({remedy})"]

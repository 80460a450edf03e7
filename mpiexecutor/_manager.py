"""The process manager, as a rank sees it without MPI: how to take leave of it.

A process manager takes a rank that ends without a word for a failure, and ends the job. MPI_Finalize says that word, but waits for
all ranks, and so for ever once one is dead. After a death each rank's word is said without MPI, a dead one's by its keeper.

With Hydra, the mpiexec of MPICH and Intel MPI, the word is a line of PMI-1's protocol. Open MPI's process manager wants to be
connected to by PMIx: it takes a second process of a rank, such as its keeper, for the rank (tried with Open MPI 5.0).
"""

import contextlib
import ctypes
import os
import select
from collections.abc import Sequence
from pathlib import Path

_ANSWER = 1.0  # seconds that the process manager has to acknowledge
_SHARED = tuple(f"/dev/shm/{name}" for name in ("mpich_shm_", "sm_segment.", "vader_segment."))  # noqa: S108 - MPI's own
_DELETED = " (deleted)"
_INITIALISED = 8  # times that a library can have initialised PMIx, at the most


class _PmixProcess(ctypes.Structure):
    """pmix_proc_t."""

    _fields_ = (("namespace", ctypes.c_char * 256), ("rank", ctypes.c_uint32))


def connection() -> int | None:
    """Give the descriptor by which this rank talks to its process manager, if that is an mpiexec of MPICH's kind (Hydra)."""
    is_hydra = any(name.startswith(("HYDI_", "HYDRA_")) for name in os.environ)
    return int(os.environ["PMI_FD"]) if is_hydra and "PMI_FD" in os.environ else None


def mapped() -> tuple[str | None, list[str]]:
    """Give the paths of the PMIx library that this process has loaded, if it has, and of shared memory that MPI would remove."""
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
    """Remove files that MPI would have removed."""
    for file in files:
        with contextlib.suppress(OSError):
            Path(file).unlink()


def take_leave(descriptor: int | None, library: str | None, *, initialise: bool) -> None:
    """Say that this rank is done, without MPI. With `initialise` the process has not initialised PMIx itself: it is a keeper."""
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, b"cmd=finalize\n")
            if select.select((descriptor,), (), (), _ANSWER)[0]:
                os.read(descriptor, 256)
    if library is not None:
        with contextlib.suppress(OSError, AttributeError):
            _finalize_pmix(library, initialise=initialise)


def _finalize_pmix(library: str, *, initialise: bool) -> None:
    pmix = ctypes.CDLL(library)
    if initialise and pmix.PMIx_Init(ctypes.byref(_PmixProcess()), None, ctypes.c_size_t(0)) != 0:
        return
    for _ in range(_INITIALISED):
        if not pmix.PMIx_Initialized():
            return
        pmix.PMIx_Finalize(None, ctypes.c_size_t(0))

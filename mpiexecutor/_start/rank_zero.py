"""How this process becomes rank 0 of a job: MPI is initialised with the environment and the descriptor of the placeholder."""

import ctypes
import os
from collections.abc import Callable
from typing import Final

from .mpiexec import JOB_VARIABLE

_LOCAL: Final = {"PWD", "OLDPWD", "SHLVL", "_", JOB_VARIABLE}  # variables that do not depend on the rank


def become_rank_zero(environment: dict[str, str], descriptors: list[int], watch: Callable[[Callable[[], None]], None]) -> None:
    """Initialise MPI; the script's environment is restored. `watch` runs a step that may hang."""
    before = dict(os.environ)
    given = {name: value for name, value in environment.items() if name not in _LOCAL and before.get(name) != value}
    if descriptors:
        given["PMI_FD"] = str(descriptors[0])
    given.setdefault("UCX_DEBUG_SIGNO", "0")  # else UCX takes SIGHUP away from the script
    os.environ.update(given)
    try:
        import mpi4py  # noqa: PLC0415

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False  # at the end of the job instead: without the workers it would wait for ever
        from mpi4py import MPI  # noqa: PLC0415

        mpi4py.rc.initialize = True
        watch(_initialise)
        assert MPI.Is_initialized()
    finally:
        for name in given:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in given if name in before})


def _initialise() -> None:
    """Initialise MPI as mpi4py does, but without the GIL: it may hang, and other threads notice."""
    from mpi4py import MPI, rc  # noqa: PLC0415

    try:
        initialise = ctypes.CDLL(MPI.__file__).MPI_Init_thread
    except (OSError, AttributeError):  # the library hides its functions
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        return
    status = initialise(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
    if status != MPI.SUCCESS:
        raise RuntimeError(f"MPI_Init_thread failed with error {status}")
    if rc.errors == "exception":
        for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
            comm.Set_errhandler(MPI.ERRORS_RETURN)

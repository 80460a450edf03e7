"""The life of a worker: it reports to the root, serves, and parts."""

import ctypes
import functools
import os
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from mpiexecutor._calls.outcomes import Location
from mpiexecutor._calls.worker import Worker
from mpiexecutor._liveness.status_page import Slate
from mpiexecutor._liveness.supervised import Kept
from mpiexecutor._start.process import STANDING, comm_world

from .links import Links
from .membership import Member, register
from .registration import serving

if TYPE_CHECKING:
    from mpi4py import MPI

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
_LARGEST_ON_HEAP = 32 << 20  # bytes: what is larger is given back to the system when it is freed
_KEPT = 64 << 20  # bytes that a worker keeps of what was freed


def serve(comm: "MPI.Intracomm", root: int) -> bool:
    """Report to the root, wait for its answer, and serve until it is done; False if there was nothing to do."""
    orders = register(comm, root)
    if orders is None:
        return False
    comm.Set_attr(key(), "serving")
    STANDING.serves = True
    with serving():
        member = Member(comm, orders)
        links = Links(member.comm, root)
        _keep_freed_memory()
        member.join()  # the last that all do together: from here on its death is its own
        keeper = member.keeper
        slate, enforce_limit = (keeper.slate, keeper.limit) if keeper else (Slate(), None)
        location = Location.here(comm.rank, comm.size)
        worker = Worker(*links.channels, links.bulk, location, slate, enforce_limit, fail=partial(_fail, keeper))
        try:
            worker.serve()
        except BaseException:  # noqa: BLE001 - what calls raise is not seen here: a fault of ours, and others would wait for this rank
            traceback.print_exc()
            _fail(keeper)
        member.part(links.channels)
        links.free()
        member.leave()
    comm.Delete_attr(key())
    STANDING.serves = False
    return True


def _fail(keeper: Kept | None) -> NoReturn:
    """Die as a worker that something has killed."""
    sys.stdout.flush()
    sys.stderr.flush()
    if keeper is None:
        comm_world().Abort(1)
    os._exit(1)


def _keep_freed_memory() -> None:
    """Have the C library keep some of the memory that calls free, for the next ones: fresh pages cost more than copying to them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


@functools.cache
def key() -> int:
    """Return the key under which a communicator knows its crew."""
    from mpi4py import MPI  # noqa: PLC0415

    return MPI.Comm.Create_keyval()


def is_serving(comm: "MPI.Intracomm") -> bool:
    """Whether this rank is a worker of the communicator's crew."""
    return comm.Get_attr(key()) == "serving"

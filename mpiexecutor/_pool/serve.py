"""The life of a worker: it registers with the root, serves, and parts."""

import contextlib
import ctypes
import functools
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mpiexecutor._calls.isolation.parent import Isolation
from mpiexecutor._calls.outcomes import Location
from mpiexecutor._calls.worker import Worker
from mpiexecutor._liveness.process_manager import connection
from mpiexecutor._liveness.status_page import StatusPage
from mpiexecutor._liveness.supervised import Supervised
from mpiexecutor._script.names import LOOKUP, main_modules
from mpiexecutor._script.random_generators import STREAM, GeneratorStates
from mpiexecutor._script.surroundings import Snapshot, remove_rank_variables
from mpiexecutor._start.process import PROCESS, comm_world
from mpiexecutor._util.process_end import flush_output

from .links import Links
from .membership import Member
from .registration import register

if TYPE_CHECKING:
    from mpi4py import MPI

_CHILD = "mpiexecutor._pool.child"  # what a child process runs that has isolated calls
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
_LARGEST_ON_HEAP = 32 << 20  # bytes: larger blocks are returned to the system when freed
_KEPT = 64 << 20  # bytes of freed memory that a worker keeps


def serve(comm: "MPI.Intracomm", root: int) -> bool:
    """Register with the root, and serve it until it is done. Return False if there was nothing to do."""
    configuration = register(comm, root)
    if configuration is None:
        return False
    comm.Set_attr(key(), "serving")
    PROCESS.serves = True
    with serving():
        member = Member(comm, configuration)
        links = Links(member.comm, root, shares_memory=comm.rank in configuration.sharing)
        keep_freed_memory()
        member.join()  # the last collective step: from here on the death of this rank does not harm others
        supervisor = member.supervisor
        page, enforce_limit = (supervisor.page, supervisor.limit) if supervisor else (StatusPage(), None)
        location = Location.here(comm.rank, comm.size)
        isolation = None
        if supervisor is not None:
            isolation = Isolation(supervisor, links.channels[1], links.bulk, location, _CHILD, links.share)
        worker = Worker(
            *links.channels,
            links.bulk,
            location,
            page,
            enforce_limit,
            fail=partial(_fail, supervisor),
            memory=links.memory,
            isolation=isolation,
            forgotten=(lambda _: None) if isolation is None else isolation.forget,
        )
        try:
            worker.serve()
            if isolation is not None:
                isolation.close()
        except BaseException:  # noqa: BLE001 - calls raise nothing here: it is a fault of ours, and others would wait for this rank
            traceback.print_exc()
            _fail(supervisor)
        member.part(links.channels)
        links.free()
        member.leave()
    comm.Delete_attr(key())
    PROCESS.serves = False
    return True


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Set the surroundings of a worker, and restore those of the rank at the end: programs that calls start are no ranks."""
    connection()  # while the environment still has it
    main, surroundings, generators = main_modules(), Snapshot(), GeneratorStates()
    stdin = sys.stdin
    with _uninterrupted(), Path(os.devnull).open() as nothing:
        remove_rank_variables()
        sys.stdin = nothing  # no user can answer a call
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # what a call prints appears at once, as at a terminal
                stream.reconfigure(line_buffering=True)
        try:
            yield
        finally:
            sys.modules.update(main)
            LOOKUP.bring, STREAM.key = None, ()
            surroundings.restore()
            generators.restore()
            sys.stdin = stdin


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Leave Ctrl-C to the root, by a handler: children of calls would inherit SIG_IGN."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # None: it was set by other code than Python's


def _fail(supervisor: Supervised | None) -> NoReturn:
    """End this worker as if it had been killed."""
    flush_output()
    if supervisor is None:
        comm_world().Abort(1)
    os._exit(1)


def keep_freed_memory() -> None:
    """Have the C library keep some freed memory for the next calls: fresh pages cost more than copying to them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


@functools.cache
def key() -> int:
    """Return the key of the attribute of communicators that is their pool."""
    from mpi4py import MPI  # noqa: PLC0415

    return MPI.Comm.Create_keyval()


def is_serving(comm: "MPI.Intracomm") -> bool:
    """Return whether this rank is a worker of the communicator's pool."""
    return comm.Get_attr(key()) == "serving"

"""A concurrent.futures executor, and a message channel, over MPI one-sided communication.

Users import `RMAChannelExecutor` or `RMACommExecutor` from here, and `RemoteChannel` from `mpiexecutor.channel`. The first executor
or channel initialises MPI; the import does not.

Rooms, top to bottom; imports point down only, which import-linter checks:

    __main__   python -m mpiexecutor: its arguments
    _cli       what python -m mpiexecutor does
    executor   RMAChannelExecutor and RMACommExecutor: submit, map, shutdown
    _pool      the workers of a communicator: how they are registered, configured and released
    _calls     calls: the scheduler on the root, the worker's loop, their messages
    _start     how a process becomes a rank of an MPI job, and how MPI ends in it
    _script    functions, classes and other globals of the script in calls
    _liveness  which ranks are alive: supervisors, and recovery after a death
    channel    RemoteChannel, which does not depend on anything above
    _rma       MPI for the channel: memory, notification, progress
    _util      utilities without MPI
"""

from typing import TYPE_CHECKING

from mpiexecutor._calls.outcomes import BrokenWorkerError, RemoteError, RemoteTraceback
from mpiexecutor._liveness.monitor import WorkerStatus
from mpiexecutor._start.job import StartError

from .executor import RMAChannelExecutor, RMACommExecutor

__all__ = [
    "BrokenWorkerError",
    "RMAChannelExecutor",
    "RMACommExecutor",
    "RemoteError",
    "RemoteTraceback",
    "StartError",
    "WorkerStatus",
]

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """Return the version. It is looked up only when it is needed, as that takes half as long as the whole import."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("mpiexecutor")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _name in __all__:  # the names under which tracebacks and pickles show them
    globals()[_name].__module__ = __name__
del _name

"""An executor over MPI one-sided communication.

Rooms, top to bottom; imports point down only (setup.cfg says so to import-linter):

    __main__   python -m mpiexecutor           _cli       what it does, and what the processes do that are started
    executor   RMAChannelExecutor: submit, map, shutdown
    _pool      the workers of a communicator: how they come together, and how they part
    _calls     calls: the scheduler on the root, the worker's loop, what they tell each other
    _start     how this process comes to be a rank of an MPI job, and how MPI ends in it
    _script    the script's own names and state inside calls
    _liveness  which ranks live: supervisors, and the recovery of channels after a death
    channel    the raw channel, which knows nothing of the above
    _rma       MPI's side of the channel: memory, notification, progress
    _util      small things that know nothing of MPI

Importing this initialises no MPI: that is done when the first executor, or channel, is made.
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
    """Look up the version when it is asked for: that alone takes half as long as importing the rest."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("mpiexecutor")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _name in __all__:  # the names under which tracebacks and pickles show them
    globals()[_name].__module__ = __name__
del _name

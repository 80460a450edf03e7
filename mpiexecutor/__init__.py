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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._calls.outcomes import RemoteError, RemoteTraceback
    from ._calls.scheduling.futures import BrokenWorkerError
    from ._liveness.monitor import WorkerStatus
    from ._start.job import StartError
    from .executor import RMAChannelExecutor, RMACommExecutor

    __version__: str

__all__ = [
    "BrokenWorkerError",
    "RMAChannelExecutor",
    "RMACommExecutor",
    "RemoteError",
    "RemoteTraceback",
    "StartError",
    "WorkerStatus",
]

# Each name is imported when it is needed: workers need no executor, and on a full node all import at once. The `__module__` of each
# class is "mpiexecutor", which tracebacks and pickles show.
_MODULES = {
    "BrokenWorkerError": "._calls.scheduling.futures",
    "RMAChannelExecutor": ".executor",
    "RMACommExecutor": ".executor",
    "RemoteError": "._calls.outcomes",
    "RemoteTraceback": "._calls.outcomes",
    "StartError": "._start.job",
    "WorkerStatus": "._liveness.monitor",
}


def __getattr__(name: str) -> Any:
    """Return a public name, or the version, whose lookup takes half as long as the import of all other names."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        found: Any = version("mpiexecutor")
    elif name in _MODULES:
        found = getattr(import_module(_MODULES[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

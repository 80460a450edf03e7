"""An executor over MPI one-sided communication.

Layout, top to bottom; imports point down only:

    executor      RMAChannelExecutor: submit, map, shutdown        __main__  python -m mpiexecutor
    _launch       how ranks come to be a crew, by their _orders    _world    how MPI begins, and how it ends
    _pump         dispatcher and collector, on the root            _worker   the worker's loop
    _health       which workers live, on the root                  _keeper   the parent of a worker, which tells of its death
    _relay        the same of those on other nodes                 _slate    what a worker writes down of itself
    _company      how all of them part in the end                  _spmd     --spmd: every rank runs the script
    _futures      calls that are waited for, by executor           _outcomes what becomes of a call, as bytes
    _script       the script's own names and state inside calls: a package of its own
    channel       the raw channel: a package of its own, which knows nothing of the above
    _seconds      how long anything that may never come is waited for

Importing this initialises no MPI: that is done when the first executor, or channel, is made.
"""

from typing import TYPE_CHECKING

from ._adopt import StartError
from ._health import WorkerStatus
from ._outcomes import BrokenWorkerError, RemoteError, RemoteTraceback
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

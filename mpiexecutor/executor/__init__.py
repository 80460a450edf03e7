"""The executors, as users call them.

channel_executor  RMAChannelExecutor: submit, map, shutdown
comm_executor     RMACommExecutor: an executor for the length of a with-block, in an MPI program
checks            what an executor requires of the process and of the communicator
"""

from .channel_executor import RMAChannelExecutor
from .comm_executor import RMACommExecutor

__all__ = ["RMAChannelExecutor", "RMACommExecutor"]

RMAChannelExecutor.__module__ = RMACommExecutor.__module__ = "mpiexecutor"  # as users import them

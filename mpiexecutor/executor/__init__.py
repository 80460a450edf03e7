"""The executors: checks of their arguments, and thin methods.

comm_executor     RMACommExecutor, for the length of a with-block
channel_executor  RMAChannelExecutor: submit, map, shutdown
checks            what an executor requires of the communicator, and its warnings
"""

from .channel_executor import RMAChannelExecutor
from .comm_executor import RMACommExecutor

__all__ = ["RMAChannelExecutor", "RMACommExecutor"]

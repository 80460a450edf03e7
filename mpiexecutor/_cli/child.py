"""What the processes of a job run that a script has started itself: see _start/job.py."""

import os
import signal
import sys

from mpiexecutor._liveness.supervisor import keep
from mpiexecutor._start.job import JOB_VARIABLE, end_of_output, greet
from mpiexecutor._start.mpiexec import rank_in_environment


def main() -> None:
    """Be the placeholder for the script as rank 0, or a worker."""
    where, token = os.environ.pop(JOB_VARIABLE).split(":")
    sys.argv = [""]
    rank = rank_in_environment()
    address = bytes.fromhex(where).decode()
    if rank is None:
        sys.exit("this mpiexec does not say which rank a process is: start the script with 'python -m mpiexecutor' instead")
    if rank == 0:
        _stand_in(address, token)
    else:
        _work(address, rank, token)


def _stand_in(address: str, token: str) -> None:
    import mpi4py  # noqa: PLC0415

    mpi4py.rc.initialize = False
    from mpi4py import MPI  # noqa: PLC0415

    for number in (signal.SIGUSR1, signal.SIGINT):  # SIGUSR1: how MPICH tells of another rank's end
        signal.signal(number, signal.SIG_IGN)
    descriptors = [int(os.environ["PMI_FD"])] if "PMI_FD" in os.environ else []
    hello = {"rank": 0, "token": token, "environment": dict(os.environ), "library": MPI.Get_library_version()}
    connection = greet(address, hello, descriptors)
    done = connection.recv(1)
    while connection.recv(1):
        pass
    os._exit(0 if done else 1)


def _work(address: str, rank: int, token: str) -> None:
    keeper = keep(end_of_output(token))
    connection = greet(address, {"rank": rank, "token": token}, [])
    if not connection.recv(1):
        return  # the start failed elsewhere
    connection.close()
    from mpiexecutor._pool.crew import serve  # noqa: PLC0415
    from mpiexecutor._start.process import initialise  # noqa: PLC0415

    serve(initialise(keeper), 0)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        stream.buffer.write(end_of_output(token))
        stream.buffer.flush()

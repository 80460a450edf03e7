"""A process of a job that a script has started itself: a worker, or the placeholder of rank 0 (see _start/job.py)."""

import os
import signal
import sys

from mpiexecutor._liveness.process_manager import remove
from mpiexecutor._liveness.supervised import start_supervisor
from mpiexecutor._start.mpiexec import JOB_VARIABLE, rank_in_environment
from mpiexecutor._start.output import end_of_output
from mpiexecutor._start.rendezvous import connect


def main() -> None:
    """Be the placeholder of rank 0, or a worker, until the job ends.

    Raises:
        SystemExit: mpiexec has not set this process's rank.

    """
    where, token = os.environ.pop(JOB_VARIABLE).split(":")
    sys.argv = [""]
    rank = rank_in_environment()
    address = bytes.fromhex(where).decode()
    if rank is None:
        sys.exit("this mpiexec does not say which rank a process is: start the script with 'python -m mpiexecutor' instead")
    if rank == 0:
        _be_placeholder(address, token)
    else:
        _be_worker(address, rank, token)


def _be_placeholder(address: str, token: str) -> None:
    """Send the script the environment and the descriptor of rank 0; end when the script has ended, with its success."""
    import mpi4py  # noqa: PLC0415

    mpi4py.rc.initialize = False
    from mpi4py import MPI  # noqa: PLC0415

    for number in (signal.SIGUSR1, signal.SIGINT):  # MPICH sends SIGUSR1 when another rank has ended
        signal.signal(number, signal.SIG_IGN)
    descriptors = [int(os.environ["PMI_FD"])] if "PMI_FD" in os.environ else []
    hello = {"rank": 0, "token": token, "environment": dict(os.environ), "library": MPI.Get_library_version()}
    connection = connect(address, hello, descriptors)
    said = b""
    while data := connection.recv(1 << 16):
        said += data
    if said.endswith(b"."):
        os._exit(0)
    remove(said.decode().splitlines())
    os._exit(1)


def _be_worker(address: str, rank: int, token: str) -> None:
    """Serve the script, once all processes of the job have connected to it."""
    supervisor = start_supervisor(end_of_output(token))
    connection = connect(address, {"rank": rank, "token": token}, [])
    if not connection.recv(1):
        return  # the start failed elsewhere
    connection.close()
    from mpiexecutor._pool.serve import serve  # noqa: PLC0415
    from mpiexecutor._start.process import initialise  # noqa: PLC0415

    serve(initialise(supervisor), 0)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        stream.buffer.write(end_of_output(token))
        stream.buffer.flush()

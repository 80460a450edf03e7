"""What runs in a contender's own process: make it, then run shapes when told to.

    python serve.py NAME WORKERS

The benchmark listens on a UNIX socket. A line says which shape to run, and whether it is to be tiny; the answer is a line, too.
"""

import json
import os
import socket
import sys
import traceback
from functools import partial
from multiprocessing import Pipe, Process, SimpleQueue

import channels
from goals import SHAPES

ADDRESS = "MPIEXECUTOR_BENCHMARK_ADDRESS"


def main():
    """Be the contender that the arguments name."""
    name, workers = sys.argv[1], int(sys.argv[2])
    CONTENDERS[name](workers)


def answer(run):
    """Run shapes until there are no more requests."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        with connection.makefile("rw") as lines:
            tell(lines, {"mpi": mpi_library()})
            for line in lines:
                shape, tiny = json.loads(line)
                try:
                    tell(lines, {"figures": run(shape, tiny)})
                except Exception:
                    tell(lines, {"error": traceback.format_exc()})


def tell(lines, what):
    lines.write(json.dumps(what) + "\n")
    lines.flush()


def mpi_library():
    """Say which MPI runs this process, if one does."""
    if "mpi4py.MPI" not in sys.modules:
        return None
    from mpi4py import MPI

    name, numbers = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, numbers))}"


def run_shape(subject, name, tiny):
    """Run a shape, a tiny one first: it wakes everybody up."""
    shape = SHAPES[name]
    figures = shape.run(subject, **shape.quick)
    return figures if tiny else shape.run(subject, **shape.full)


# -- executors ---------------------------------------------------------------------------------------------------------------------


def serve(executor):
    with executor:
        answer(partial(run_shape, executor))


def mpiexecutor(workers):
    from mpiexecutor import RMAChannelExecutor

    serve(RMAChannelExecutor(max_workers=workers))


def threads(workers):
    from concurrent.futures import ThreadPoolExecutor

    serve(ThreadPoolExecutor(workers))


def processes(workers):
    from concurrent.futures import ProcessPoolExecutor

    serve(ProcessPoolExecutor(workers))


def loky(workers):
    from loky import ProcessPoolExecutor

    serve(ProcessPoolExecutor(workers))


def mpi4py_futures(workers):  # noqa: ARG001 - mpiexec has started them
    from mpi4py.futures import MPICommExecutor

    with MPICommExecutor() as executor:
        if executor is not None:
            answer(partial(run_shape, executor))


def dask(workers):
    from distributed import Client

    with (
        Client(n_workers=workers, threads_per_worker=1, dashboard_address=None) as client,
        client.get_executor(pure=False) as executor,
    ):
        answer(partial(run_shape, executor))


# -- channels ----------------------------------------------------------------------------------------------------------------------


def serve_together(party):
    """Have all parties run what the first one is told to."""
    if party.rank == 0:
        answer(lambda *request: run_shape(party, *party.broadcast(request)))
        party.broadcast(None)
    else:
        while (request := party.broadcast(None)) is not None:
            run_shape(party, *request)


def mpiexecutor_channel(_):
    from mpi4py import MPI

    from mpiexecutor.channel import RemoteChannel

    with RemoteChannel(channels.BUFFER, len(channels.MESSAGE)) as channel:
        serve_together(channels.Rank(MPI.COMM_WORLD, channel))


def mpi_channels(_):
    from mpi4py import MPI
    from mpi_channels import RemoteChannel

    serve_together(channels.Rank(MPI.COMM_WORLD, RemoteChannel(channels.BUFFER, len(channels.MESSAGE))))


class Queue:
    """multiprocessing's SimpleQueue, by the channel's names."""

    def __init__(self):
        queue = SimpleQueue()
        self.put, self.take = queue.put, queue.get


def simple_queue(workers):
    queue = Queue()
    here, there = zip(*(Pipe() for _ in range(workers)))
    parties = [channels.Member(rank, [pipe], queue) for rank, pipe in enumerate(there, start=1)]
    others = [Process(target=serve_together, args=(party,)) for party in parties]
    for other in others:
        other.start()
    serve_together(channels.Member(0, here, queue))
    for other in others:
        other.join()


CONTENDERS = {
    "mpiexecutor": mpiexecutor,
    "ThreadPoolExecutor": threads,
    "ProcessPoolExecutor": processes,
    "loky": loky,
    "mpi4py.futures": mpi4py_futures,
    "mpi4py.futures-at-best": mpi4py_futures,
    "dask.distributed": dask,
    "mpiexecutor.channel": mpiexecutor_channel,
    "mpi-channels": mpi_channels,
    "SimpleQueue": simple_queue,
}


if __name__ == "__main__":
    main()

"""A channel of work and a channel of results: rank 0 puts the work, the others take it, and put the results.

    mpiexec -n 4 python examples/channel_tasks.py

With one rank, rank 0 does both.
"""

from mpi4py import MPI

from mpiexecutor.channel import RemoteChannel

TASKS = 1000

comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size

# Every rank makes both channels. One message of work is one number, a result is two: the number, and its square.
# There is room for all results, so that the workers never wait for rank 0, which takes none before all work is put.
with RemoteChannel(16 if size > 1 else TASKS, 1) as work, RemoteChannel(TASKS, 2) as results:
    work.claim(TASKS)  # announce the messages: take returns None after the last
    results.claim(TASKS)

    if rank == 0:
        for number in range(TASKS):
            work.put((number,))

    if rank > 0 or size == 1:
        while (message := work.take()) is not None:
            number = message[0]
            results.put((number, number**2))

    if rank == 0:
        squares = {}
        while (message := results.take()) is not None:
            number, square = message
            squares[number] = square
        assert squares == {number: number**2 for number in range(TASKS)}
        print(f"{len(squares)} results of {max(1, size - 1)} workers, their sum is {sum(squares.values()):.0f}")

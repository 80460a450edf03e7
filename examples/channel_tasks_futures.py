"""The same with putf and takef, which don't wait: every rank, rank 0 too, works while messages come and go in the background.

mpiexec -n 4 python examples/channel_tasks_futures.py
"""

from mpi4py import MPI

from mpiexecutor.channel import RemoteChannel

TASKS = 1000

comm = MPI.COMM_WORLD

with RemoteChannel(16, 1) as work, RemoteChannel(16, 2) as results:
    work.claim(TASKS)
    results.claim(TASKS)

    if comm.rank == 0:
        # Neither waits: a message is put as soon as there is room for it, and taken as soon as it arrives.
        for number in range(TASKS):
            work.putf((number,))
        collected = [results.takef() for _ in range(TASKS)]

    # The next message is under way while this one is worked on.
    upcoming = work.takef()
    sent = []
    while (message := upcoming.result()) is not None:
        upcoming = work.takef()
        number = message[0]
        sent.append(results.putf((number, number**2)))
    for future in sent:
        future.result()  # it was put, or here is the error

    shares = comm.gather(len(sent))
    if comm.rank == 0:
        squares = dict(future.result() for future in collected)
        assert squares == {number: number**2 for number in range(TASKS)}
        print(f"{len(squares)} results, by rank {shares}, their sum is {sum(squares.values()):.0f}")

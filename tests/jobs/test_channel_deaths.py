"""Ranks of a script with raw channels die, really: the others go on, and the host is told."""

import re

import pytest
from bereaved import LIVING, RANKS, STEPS
from jobs import PROGRAMS, run_job

from mpiexecutor._util.seconds import REST, SCALE_VARIABLE

HALF = {SCALE_VARIABLE: "0.5"}
SPMD = ["-m", "mpiexecutor", "--spmd"]
BEREAVED = str(PROGRAMS / "bereaved.py")


def said_by(job):
    return [line.removeprefix("ok: ") for line in job.stdout.splitlines() if line.startswith("ok: ")]


@pytest.mark.mpi
@pytest.mark.parametrize("start", ["mpiexec", pytest.param("by hand", marks=pytest.mark.wide)])
def test_the_others_go_on_and_the_host_is_told_of_what_is_lost(start, tmp_path):
    """At each step, once by each channel; then a host dies, and each waiting rank is told. At the end all channels are freed."""
    own = ["-n", str(RANKS)] if start == "by hand" else []
    job = run_job(None if own else RANKS, [*SPMD, *own, BEREAVED, str(tmp_path)], deadline=120)
    said = said_by(job)
    assert [line.partition(": ")[0] for line in said[: len(STEPS)]] == list(STEPS), str(job)
    assert re.search(r"; rank 6 had claimed, and not received, message \d+\. The channel goes on$", said[4]), str(job)
    living = (0, LIVING, LIVING + 1)
    assert {f"rank {rank}: the end" for rank in living} < set(said), str(job)
    assert sum("it was the channel's host" in line for line in said) == len(living), str(job)


@pytest.mark.mpi
def test_ranks_on_another_node_may_die(tmp_path):
    """One node pretends to be two."""
    job = run_job(RANKS, [*SPMD, BEREAVED, str(tmp_path), "pretended"], deadline=120)
    said = said_by(job)
    assert [line.partition(": ")[0] for line in said[: len(STEPS)]] == list(STEPS), str(job)


def job_of(tmp_path, lines, ranks=3, **options):
    script = tmp_path / "script.py"
    script.write_text("import os, signal, sys, time\nfrom mpi4py import MPI\nfrom mpiexecutor.channel import *\n" + lines)
    return run_job(ranks, [*SPMD, str(script), "an argument"], **options)


@pytest.mark.mpi
def test_every_rank_runs_the_script_and_the_status_is_its_own(tmp_path):
    """With its arguments; nothing else is different while no rank dies."""
    lines = "channel = RemoteChannel(4, 1); channel.put([MPI.COMM_WORLD.rank]); print(sys.argv[1:]); channel.free()"
    assert job_of(tmp_path, lines).stdout.splitlines() == ["['an argument']"] * 3


@pytest.mark.parametrize(
    ("rank", "ending", "said", "status"),
    [
        pytest.param(1, "1 / 0", "ZeroDivisionError", 1, marks=pytest.mark.mpi),
        (1, "sys.exit('no')", "no", 1),
        (1, "sys.exit(3)", "", 3),
        (0, "1 / 0", "ZeroDivisionError", 1),
        pytest.param(0, "sys.exit('no')", "no", 1, marks=pytest.mark.wide),
        pytest.param(0, "sys.exit(3)", "", 3, marks=pytest.mark.wide),
    ],
)
def test_a_rank_that_fails_ends_the_job(rank, ending, said, status, tmp_path):
    """The others may wait for it, as here."""
    lines = f"channel = RemoteChannel(4, 1)\nif MPI.COMM_WORLD.rank == {rank}:\n    {ending}\nchannel.take()"
    job = job_of(tmp_path, lines, expect=status)
    assert said in job.stderr, str(job)


@pytest.mark.mpi
def test_a_lock_that_a_failed_rank_holds_ends_the_job(tmp_path):
    """Killed inside MPI, in its turn, until that leaves the window's lock taken."""
    lines = """
from array import array
channel, named = RemoteChannel(256, 2048), RemoteChannel(1, 1)
if MPI.COMM_WORLD.rank > 0:
    found = array("q", bytes(8 * (channel._layout.size // 8)))
    channel.take()
    named.put([os.getpid()])
    while True:
        channel._window._win.Get_accumulate(found, found, 0, (0, len(found), MPI.INT64_T), MPI.NO_OP)
for turn in range(1, MPI.COMM_WORLD.size):
    channel.put([1])
    pid = int(named.take()[0])
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    for told in (channel, named):
        try:
            told.take()
        except ChannelBroken as error:
            print(error)
print("no lock was held")
"""
    job = job_of(tmp_path, lines, ranks=6, expect="any", env={SCALE_VARIABLE: "0.3"})
    assert "no lock was held" in job.stdout or (job.status != 0 and "holding a lock: the job is ended" in job.stderr), str(job)


@pytest.mark.mpi
def test_a_death_while_a_channel_is_made_ends_the_making(tmp_path):
    """As all ranks take part in it."""
    lines = """
if MPI.COMM_WORLD.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    RemoteChannel(4, 1)
except ChannelBroken as error:
    print(error.ranks, error)
"""
    job = job_of(tmp_path, lines)
    said = job.stdout.splitlines()
    assert len(said) == 2, str(job)
    for line in said:
        assert re.match(r"\(1,\) rank 1, .* was killed by SIGKILL: a channel is made by all ranks of a communicator", line)


def test_the_host_is_told_while_it_waits_and_in_the_background(tmp_path):
    """By the future of takef, or by put_many if no rank makes room any more: it says how many it has put."""
    lines = """
channel, full = RemoteChannel(4, 1), RemoteChannel(1, 1)
if MPI.COMM_WORLD.rank == 1:
    for _ in range(3):
        full.take()
    while len(full) == 0:  # the fourth is there
        pass
    os.kill(os.getpid(), signal.SIGKILL)
future = channel.takef()
try:
    full.put_many([[number] for number in range(9)])
except ChannelBroken as error:
    print(error.count, error.ranks)
print(future.exception().ranks, len(full))
"""
    assert job_of(tmp_path, lines, ranks=2).stdout.splitlines() == ["4 [1]", "[1] 1"]


@pytest.mark.mpi
def test_a_host_that_frees_the_channel_settles_it_for_ranks_that_do_not_yet(tmp_path):
    """The message of the failed rank blocks the others, which go on; then all have freed it."""
    lines = """
from mpiexecutor.channel._ring.producer import Producer
channel = RemoteChannel(1, 1)
swap = Producer._swap
def swap_and_die(*arguments):
    if swap(*arguments) == arguments[1]:
        os.kill(os.getpid(), signal.SIGKILL)
rank = MPI.COMM_WORLD.rank
if rank == 1:
    Producer._swap = swap_and_die
    time.sleep(0.5)
    channel.put([1])
if rank == 2:
    time.sleep(1)
    channel.put([2])
if rank == 3:
    print(channel.take(), flush=True)
open(sys.argv[0] + str(rank), "w").write("x")
file = open(sys.argv[0] + str(rank), "a")
file.write("y")
channel.free()
"""
    job = job_of(tmp_path, lines, ranks=4)
    assert job.stdout == "array('d', [2.0])\n", str(job)
    assert {path.name[-1]: path.read_text() for path in tmp_path.glob("script.py?")} == dict.fromkeys("023", "xy")


# Of a script with a channel: rank 1 is stopped in the middle of a put; what follows is done by rank 0 then.
STOPPED = """
from mpiexecutor.channel._ring.producer import Producer
swap = Producer._swap
def swap_and_stop(*arguments):
    seen = swap(*arguments)
    os.kill(os.getpid(), signal.SIGSTOP)
    return seen
pids = MPI.COMM_WORLD.allgather(os.getpid())
if MPI.COMM_WORLD.rank == 1:
    Producer._swap = swap_and_stop
    channel.put([7])
elif MPI.COMM_WORLD.rank == 0:
    while open(f"/proc/{pids[1]}/stat").read().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)"""


@pytest.mark.mpi
def test_one_that_is_stopped_keeps_the_host_told(tmp_path):
    """In the middle of a message: the channel cannot be recovered until it goes on."""
    lines = (
        """
channel = RemoteChannel(4, 1)
"""
        + STOPPED
        + """
    os.kill(pids[2], signal.SIGKILL)
    said = []
    while len(said) < 3:
        try:
            said.append(channel.take())
        except ChannelBroken as error:
            os.kill(pids[1], signal.SIGCONT)
            if not said or "rest" not in str(error):  # once it goes on it may take its time
                said.append(f"{error.ranks} {error}")
    print(*said, sep="\\n")
"""
    )
    first, *others = job_of(tmp_path, lines, env=HALF).stdout.splitlines()
    assert first == f"[1] ranks [1] live, or may, and are not at rest after {REST / 2} s"
    told, message = sorted(others)  # which of them comes first is chance
    assert re.match(r"\[2\] rank 2, .* was killed by SIGKILL\. The channel goes on", told)
    assert message == "array('d', [7.0])"


def test_one_that_was_given_up_and_is_killed_then_is_recovered_from(tmp_path):
    """As long as it may live, and is in the middle of a message, the channel is of no use; then it goes on."""
    lines = (
        """
from mpiexecutor._rma.failed_ranks import FAILED_RANKS
channel = RemoteChannel(1, 1)
"""
        + STOPPED
        + """
    FAILED_RANKS.report(1, "rank 1 was not heard of", silent=True)
    said = []
    while len(said) < 2:
        try:
            channel.take()
        except ChannelBroken as error:
            if not said:
                os.kill(pids[1], signal.SIGKILL)
            if not said or "rest" not in str(error):  # its death may take its time to be told
                said.append(f"{error.ranks} {error}")
    print(*said, sep="\\n")
    channel.put([5])
    print(channel.take())
"""
    )
    first, second, message = job_of(tmp_path, lines, env=HALF).stdout.splitlines()
    assert first == f"[1] ranks [1] live, or may, and are not at rest after {REST / 2} s"
    assert re.match(r"\[1\] rank 1, .* was killed by SIGKILL\. The channel goes on", second)
    assert message == "array('d', [5.0])"


@pytest.mark.mpi
def test_a_worker_of_such_a_script_ends_the_job_with_its_death(tmp_path):
    """Workers have no supervisors of their own there."""
    lines = """
from mpiexecutor import RMACommExecutor
with RMACommExecutor() as executor:
    if executor is not None:
        print(executor.submit(abs, -7).result(), flush=True)
        executor.submit(os.kill, executor.submit(os.getpid).result(), signal.SIGKILL).result()
"""
    job = job_of(tmp_path, lines, expect="failure")
    assert "7\n" in job.stdout
    said = "was killed by SIGKILL, during the service of an executor, which takes all ranks: the job is ended"
    assert said in job.stderr, str(job)


def test_an_executor_that_makes_workers_of_ranks_is_refused(tmp_path):
    """They run the script."""
    job = job_of(tmp_path, "from mpiexecutor import RMAChannelExecutor\nRMAChannelExecutor()", expect="failure")
    assert "with --spmd every rank runs the script" in job.stderr, str(job)

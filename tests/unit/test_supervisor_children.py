"""The children of a supervisor: the rank's program asks for them, and says here what it hears of them."""

import json
import time

import pytest
from test_supervisor import LIMIT, SERVES, greet, is_there, rank_that, root

from mpiexecutor._liveness import commands

# The module that a child runs, and a rank that starts one and hears of it.
CHILD = """
import os, signal, socket, time
def main(line, page, rank, ranks):
    assert (rank, ranks) == (7, 9)
    # A child waits for the first message: what it says comes after what the supervisor says of its start. It ends before it has
    # taken the message, as a child that is killed may: the kernel reports that to the rank, and then delivers what was sent.
    line.recv(1000, socket.MSG_PEEK)
    {does}
"""
HEARS = """
from mpiexecutor._liveness.commands import receive
def started():
    line = supervised.spawn("child_of_test", 7, 9)
    pid = int(receive(line)[1:])
    line.send(b"go")
    return line, pid
def ended(line):
    while (said := receive(line))[:1] != b"e":
        print(said.decode(), flush=True)
    print(said[1:].decode(), flush=True)
line, pid = started()
supervised.page.send(pid, 0)
"""


@pytest.fixture
def rank_with_child(tmp_path, monkeypatch):
    """Return a function that starts a rank: it takes what a child does, what the rank does then, and the rank's arguments."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(child, does, *arguments, hears=HEARS):
        (tmp_path / "child_of_test.py").write_text(CHILD.format(does=child))
        return rank_that(SERVES + hears + does, *arguments)

    return start


@pytest.fixture
def listening():
    """Yield the address of a root, and a function that meets the supervisor and gives the connection with it."""
    connections = []

    def meet():
        connections.append(greet(listener)[0])
        return connections[-1]

    with root() as (address, listener):
        yield address, meet
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    ("child", "status"),
    [("line.send(b'said')", 0), ("line.send(b'said'); os._exit(3)", 3 << 8), ("line.send(b'said'); os.kill(os.getpid(), 11)", 11)],
)
def test_a_rank_hears_of_a_childs_end_behind_what_that_has_said(rank_with_child, listening, child, status):
    """How it ended, as waitpid has it. The rank lives, and the root hears nothing."""
    address, meet = listening
    with rank_with_child(child, "ended(line); supervised.dismiss(); os._exit(4)", address) as (supervisor, _):
        connection = meet()
        assert [supervisor.stdout.readline() for _ in range(2)] == [b"serving\n", b"said\n"]
        assert json.loads(supervisor.stdout.readline())["status"] == status
        assert connection.recv(1000) == commands.BYE
        assert supervisor.wait(LIMIT) == 4


def test_an_end_is_told_once_there_is_room(rank_with_child, listening):
    """A rank that reads late hears all that the child has said first."""
    says = """
    line.setblocking(False)
    try:
        while True:
            line.send(bytes(20000))
    except BlockingIOError:
        os._exit(5)
"""
    reads = """
import select
while supervised.page.runner: time.sleep(0.01)
count = 0
while (said := receive(line))[:1] != b"e": count += len(said) == 20000
print(count > 1, said[1:].decode(), flush=True)
supervised.dismiss(); os._exit(0)
"""
    address, meet = listening
    with rank_with_child(says, reads, address) as (supervisor, _):
        meet()
        assert supervisor.stdout.readline() == b"serving\n"
        assert supervisor.stdout.readline().startswith(b'True {"status": 1280')


def test_only_a_child_is_killed_whose_call_runs_longer_than_it_may(rank_with_child, listening):
    """The rank hears why; the page says that no call runs."""
    does = """
page = supervised.page
page.begin(41, time.monotonic())
supervised.limit(0.3)
ended(line)
print(page.running_since, page.runner, page.begun, flush=True)
supervised.dismiss()
os._exit(4)
"""
    address, meet = listening
    with rank_with_child("time.sleep(60)", does, address) as (supervisor, _):
        meet()
        assert supervisor.stdout.readline() == b"serving\n"
        assert json.loads(supervisor.stdout.readline()) == {"status": 9, "overdue": 0.3, "cancelled": False}
        assert supervisor.stdout.readline() == b"None 0 41\n"
        assert supervisor.wait(LIMIT) == 4


@pytest.mark.parametrize("running", [41, 42])
def test_a_child_is_killed_only_if_it_runs_a_cancelled_call(rank_with_child, listening, running):
    """Otherwise it finds on the page which calls are not to run."""
    does = (
        f"supervised.page.begin({running}, time.monotonic()); print('begun', flush=True)\n"
        "if supervised.page.begun == 41: ended(line)\n"
        "while not supervised.page.is_cancelled(41): time.sleep(0.01)\n"
        "print(supervised.page.is_cancelled(42), os.path.exists(f'/proc/{pid}'), flush=True); supervised.dismiss(); os._exit(4)"
    )
    address, meet = listening
    with rank_with_child("time.sleep(60)", does, address) as (supervisor, _):
        connection = meet()
        assert [supervisor.stdout.readline() for _ in range(2)] == [b"serving\n", b"begun\n"]
        connection.send(commands.CANCEL + b"[7, 41]")
        if running == 41:
            assert json.loads(supervisor.stdout.readline()) == {"status": 9, "overdue": 0.0, "cancelled": True}
        assert supervisor.stdout.readline() == b"False %s\n" % str(running != 41).encode()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "kill of the root", "supervisor"])
def test_children_end_with_their_rank(rank_with_child, listening, end):
    """However that ends."""
    address, meet = listening
    does = "print(pid, flush=True); " + (end if end.startswith("os") else "time.sleep(60)")
    with rank_with_child("time.sleep(60)", does, address) as (supervisor, _):
        connection = meet()
        assert supervisor.stdout.readline() == b"serving\n"
        child = int(supervisor.stdout.readline())
        if end == "kill of the root":
            connection.send(commands.KILL)
        if end == "supervisor":
            supervisor.kill()
            supervisor.wait(LIMIT)
        else:
            assert json.loads(connection.recv(1000))["end"] == "was killed by SIGKILL"
            assert not is_there(child)
        connection.close()
    until_gone(child)


def test_a_rank_may_die_before_its_child_starts(rank_with_child, listening):
    """Its supervisor, which cannot tell it of the child, reports the death, and stays until it may leave."""
    address, meet = listening
    dies = "supervised.spawn('child_of_test', 7, 9); os.kill(os.getpid(), signal.SIGKILL)"
    with rank_with_child("pass", dies, address, hears="") as (supervisor, _):
        connection = meet()
        assert json.loads(connection.recv(1000))["end"] == "was killed by SIGKILL"
        connection.send(commands.LEAVE)
        assert connection.recv(1000) == commands.BYE
        connection.close()
        assert supervisor.wait(LIMIT) == 0


def until_gone(pid):
    end = time.monotonic() + LIMIT
    while is_there(pid):
        assert time.monotonic() < end
        time.sleep(0.01)

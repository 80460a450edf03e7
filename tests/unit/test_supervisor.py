"""A supervisor and its rank, without MPI: here the test is the root."""

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpiexecutor._liveness import commands
from mpiexecutor._liveness.children import how
from mpiexecutor._liveness.status_page import NOTHING, StatusPage
from mpiexecutor._liveness.supervisor import Supervisor

LIMIT = 20  # seconds that anything here may take
RANK = """
import os, signal, sys, time
from mpiexecutor._liveness import supervised
from mpiexecutor._liveness.status_page import NOTHING, StatusPage
supervised = supervised.start_supervisor(b"last words")
print(os.getpid(), flush=True)
"""
SERVES = (
    "supervised.serve([bytes.fromhex(sys.argv[1]).decode()], 'token', 7); supervised.page.begin(41, time.monotonic());"
    "print('serving', flush=True);"
)


@contextmanager
def rank_that(does: str, *arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start a rank that has a supervisor; yield the supervisor, and the rank's process id.

    Both are killed after a while, so that a test that reads from them ends. What they wrote to stderr is shown with a failure.
    """
    process = subprocess.Popen([sys.executable, "-c", RANK + does, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = threading.Timer(3 * LIMIT, process.kill)
    deadline.start()
    try:
        yield process, int(process.stdout.readline())
        process.wait(LIMIT)
    finally:
        deadline.cancel()
        deadline.join()
        process.kill()
        sys.stderr.write(process.communicate()[1].decode(errors="replace"))


@contextmanager
def root() -> Iterator[tuple[str, socket.socket]]:
    """Listen for supervisors; yield the address as an argument."""
    address = "\0" + secrets.token_hex(8)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.settimeout(LIMIT)
        listener.bind(address)
        listener.listen()
        yield address.encode().hex(), listener


def greet(listener: socket.socket) -> tuple[socket.socket, dict, StatusPage]:
    supervisor = listener.accept()[0]
    supervisor.settimeout(LIMIT)
    data, descriptors, _, _ = socket.recv_fds(supervisor, 1000, 1)
    page = StatusPage(*descriptors)
    os.close(*descriptors)
    supervisor.send(b"!")
    return supervisor, json.loads(data), page


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Whether a process runs still: its parent may not have looked yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("end", "status"), [("sys.exit(3)", 3), ("os._exit(0)", 0), ("os.kill(os.getpid(), signal.SIGTERM)", -15)])
def test_ends_as_the_rank_does_that_serves_no_root(end, status):
    """With its exit code, or by its signal."""
    with rank_that(end) as (supervisor, _):
        assert supervisor.wait(LIMIT) == status


def test_the_rank_does_not_outlive_its_supervisor():
    """The kernel sees to that."""
    with rank_that("time.sleep(1000)") as (supervisor, _):
        supervisor.kill()
        assert supervisor.stdout.read() == b""  # when the rank, which has it, too, is gone


def test_tells_the_root_of_a_death_and_stays_until_it_may_leave():
    """How it ended, which call it had begun, which rank it was; then, for the process manager, all is well."""
    with root() as (address, listener), rank_that(SERVES + "time.sleep(60)", address) as (supervisor, rank):
        connection, hello, page = greet(listener)
        assert hello == {"token": "token", "rank": 7, "pid": rank, "host": socket.gethostname()}
        assert supervisor.stdout.readline() == b"serving\n"
        os.kill(rank, signal.SIGSEGV)
        assert json.loads(connection.recv(1000)) == {"end": "was killed by SIGSEGV", "begun": 41, "overdue": 0.0}
        assert page.begun == 41
        assert not is_there(rank)
        assert supervisor.poll() is None
        connection.send(commands.LEAVE)
        assert connection.recv(1000) == commands.BYE
        connection.close()
        assert supervisor.wait(LIMIT) == 0
        assert supervisor.stdout.read() == supervisor.stderr.read() == b"last words"


def test_kills_its_rank_when_the_root_says_so():
    """And reports that as any death."""
    with root() as (address, listener), rank_that(SERVES + "signal.pthread_sigmask(0, range(1, 65)); time.sleep(60)", address):
        connection, _, _ = greet(listener)
        connection.send(commands.KILL)
        assert json.loads(connection.recv(1000))["end"] == "was killed by SIGKILL"
        connection.close()


def test_has_its_rank_end_when_the_root_says_so():
    """By SIGTERM, which the rank may have a handler for."""
    handles = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(6)); print('handles', flush=True); time.sleep(60)"
    with root() as (address, listener), rank_that(SERVES + handles, address) as (supervisor, _):
        connection, _, _ = greet(listener)
        assert [supervisor.stdout.readline() for _ in range(2)] == [b"serving\n", b"handles\n"]
        connection.send(commands.TERMINATE)
        assert json.loads(connection.recv(1000))["end"] == "ended with exit code 6"
        connection.close()


OVERDUE = "was killed, as its call ran longer than 0.3 s"


@pytest.mark.parametrize(
    ("does", "end"),
    [
        ("supervised.limit(0.3); time.sleep(60)", OVERDUE),
        ("signal.pthread_sigmask(0, range(1, 65)); supervised.limit(0.3); __import__('ctypes').PyDLL(None).sleep(60)", OVERDUE),
        ("supervised.limit(0.3); os.kill(os.getpid(), signal.SIGSTOP)", OVERDUE),
        ("supervised.page.finish(); supervised.limit(0.3); time.sleep(0.6); os._exit(3)", "ended with exit code 3"),
        (
            "supervised.limit(3)\nfor _ in range(7): time.sleep(0.5); supervised.page.begin(41, time.monotonic())\nos._exit(3)",
            "ended with exit code 3",
        ),
        ("supervised.limit(3); supervised.limit(0); time.sleep(3.3); os._exit(3)", "ended with exit code 3"),
    ],
    ids=["runs", "holds the GIL", "is stopped", "runs no more", "runs others", "may run as long as it likes"],
)
def test_kills_a_rank_whose_call_runs_longer_than_it_may(does, end):
    """However it spends its time; but not for what one call after another takes, and not while none runs."""
    with root() as (address, listener), rank_that(SERVES + does, address):
        connection, _, _ = greet(listener)
        said = json.loads(connection.recv(1000))
        assert said == {"end": end, "begun": 41, "overdue": 0.3 if end == OVERDUE else 0.0}
        connection.close()


def test_a_call_that_ends_at_the_last_moment_is_no_reason_to_kill():
    """The rank is stopped first, and looked at again: here the call ends between the two looks. Then it goes on."""
    process = subprocess.Popen([sys.executable, "-c", "print(input(), flush=True)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    page = StatusPage()
    page.limit(1.0)
    page.begin(41, time.monotonic() - 2.0)
    mine, its = socket.socketpair()
    supervisor = Supervisor(process.pid, mine, page, -1, b"", {})
    waited = os.waitid
    try:
        assert supervisor._is_overdue()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "waitid", lambda *arguments: (waited(*arguments), page.finish()))
            supervisor._enforce_limit()
        assert process.communicate(b"alive", LIMIT)[0] == b"alive\n"
    finally:
        process.kill()
        process.wait()
        mine.close()
        its.close()
        os.close(supervisor._end)


@pytest.mark.parametrize("does", ["time.sleep(60)", "supervised.stay()"], ids=["runs", "stays"])
def test_ends_its_rank_when_the_root_is_gone(does):
    """No process waits for this rank any more, and the job has failed."""
    with root() as (address, listener), rank_that(SERVES + does, address) as (supervisor, rank):
        connection, _, _ = greet(listener)
        assert supervisor.stdout.readline() == b"serving\n"
        connection.close()
        assert supervisor.wait(LIMIT) == 1
        assert not is_there(rank)


def test_changes_nothing_again_for_a_rank_that_was_dismissed():
    """The root is gone, the rank goes on, and ends with a status of its own."""
    with (
        root() as (address, listener),
        rank_that(SERVES + "supervised.dismiss(); sys.exit(4)", address) as (
            supervisor,
            _,
        ),
    ):
        connection, _, _ = greet(listener)
        assert connection.recv(1000) == commands.BYE
        connection.close()
        assert supervisor.wait(LIMIT) == 4


UNTIL_NEWS = "import select; select.select([supervised._line], [], [], 20); os.kill(os.getppid(), signal.SIGSTOP);"


def test_is_dismissed_by_a_rank_that_has_not_read_all():
    """News of deaths come at any time. The kernel reports that something is unread before it delivers the messages."""
    with (
        root() as (address, listener),
        rank_that(SERVES + UNTIL_NEWS + "supervised.dismiss(); os._exit(4)", address) as (supervisor, rank),
    ):
        connection, _, _ = greet(listener)
        connection.send(commands.NEWS + b"[]")
        await_zombie(rank)
        supervisor.send_signal(signal.SIGCONT)
        assert connection.recv(1000) == commands.BYE
        connection.close()
        assert supervisor.wait(LIMIT) == 4


def test_may_leave_though_the_root_has_not_read_all():
    """As above."""
    with root() as (address, listener), rank_that(SERVES + "os._exit(3)", address) as (supervisor, rank):
        connection, _, _ = greet(listener)
        assert select.select([connection], [], [], LIMIT)[0]  # told of the death
        supervisor.send_signal(signal.SIGSTOP)
        connection.send(commands.LEAVE)
        connection.close()
        supervisor.send_signal(signal.SIGCONT)
        assert supervisor.wait(LIMIT) == 0
        assert not is_there(rank)


def await_zombie(pid: int) -> None:
    until = time.monotonic() + LIMIT
    while is_alive(pid):
        assert time.monotonic() < until
        time.sleep(1e-3)


def test_a_root_that_is_not_there_is_as_none():
    """The rank's death is the job's, then."""
    with rank_that(SERVES + "sys.exit(5)", b"\0nobody".hex()) as (supervisor, _):
        assert supervisor.wait(LIMIT) == 5


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "ended with exit code 0"),
        (3 << 8, "ended with exit code 3"),
        (9, "was killed by SIGKILL"),
        (40, "was killed by signal 40"),
    ],
)
def test_says_how_a_process_ended(status, text):
    """By the name of the signal, where it has one."""
    assert how(status) == text


def test_a_rank_that_dies_as_it_begins_to_serve_is_a_loss_like_any_other():
    """Its supervisor has come to the root, and cannot tell the rank so any more: here the root is slow to answer."""
    with root() as (address, listener), rank_that(SERVES, address) as (_, rank):
        connection = listener.accept()[0]
        connection.settimeout(LIMIT)
        connection.recv(1000)
        os.kill(rank, signal.SIGKILL)
        while is_alive(rank):
            time.sleep(0.001)
        connection.send(b"!")
        assert json.loads(connection.recv(1000)) == {"end": "was killed by SIGKILL", "begun": NOTHING, "overdue": 0.0}
        connection.close()

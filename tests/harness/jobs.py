"""Whole jobs: start the mpiexec that belongs to this interpreter, keep the deadline, leave no process behind.

Every process of a job carries the job's token in its environment. That is how the harness finds the ranks, wherever the process
manager has put them: it asks each for its stacks when the deadline is over, it ends those and nothing else, and it names
those that outlived the job.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
PROGRAMS = TESTS / "programs"
_TOKEN = "MPIEXECUTOR_TEST_JOB"
_STACKS = "MPIEXECUTOR_TEST_STACKS"  # see harness/stacks
_LOOK = 0.2  # seconds between two looks whether a job hangs
_DUMPING = 3  # seconds in which ranks write their stacks
_LEAVING = 20  # seconds for processes to go after the job: longer than twenty ranks need where other tests keep every core busy
# One node, more ranks than cores, often root: what Open MPI refuses by default. Its osc/ucx complains when a window is made.
_OPENMPI_FLAGS = ("--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "osc", "^ucx")


@dataclass(frozen=True, slots=True)
class Job:
    """What became of a job."""

    command: Sequence[str]
    status: int | None  # of mpiexec; None: it was still running at the deadline
    stdout: str
    stderr: str
    duration: float  # seconds
    left: Sequence[str]  # the processes that were there after mpiexec had ended
    stacks: str  # of all threads of all processes, at the deadline

    def __str__(self) -> str:
        ending = "was killed at its deadline" if self.status is None else f"ended with status {self.status}"
        text = f"{' '.join(self.command)}\n{ending} after {self.duration:.1f} s"
        parts = {"stdout": self.stdout, "stderr": self.stderr, "stacks": self.stacks, "left behind": "\n".join(self.left)}
        for name, part in parts.items():
            text += f"\n-- {name} " + "-" * 60 + f"\n{part.rstrip()}" if part else ""
        return text


class JobFailed(AssertionError):
    """A job did not end as expected; the text has all of its output."""


def run_job(
    ranks: int | None,
    program: str | os.PathLike[str] | Sequence[str],
    *,
    deadline: float = 60,
    expect: int | Literal["failure", "any"] = 0,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    flags: Sequence[str] = (),
    may_leave: bool = False,
    hangs: Callable[[], bool] = lambda: False,
) -> Job:
    """Run a program on so many ranks, or without mpiexec if None; JobFailed if it does not end as expected, or not in time.

    `program` is a script, or the arguments of the interpreter (``["-c", "..."]``). `expect` is the status, or any but 0. Whatever
    was expected, no process may be left, unless it `may_leave` some: those are ended here. Once it
    `hangs` it is treated as at its deadline.
    """
    arguments = [os.fspath(program)] if isinstance(program, (str, os.PathLike)) else list(program)
    command = [*launcher(ranks), *flags, sys.executable, *arguments]
    job = _run(command, deadline, {**os.environ, **(env or {})}, cwd, hangs)
    expected = expect in (job.status, "any") if expect != "failure" else job.status != 0
    if job.status is None or not expected or (job.left and not may_leave):
        raise JobFailed(f"expected status {expect!r} within {deadline} s, and no process left:\n{job}")
    return job


def launcher(ranks: int | None) -> list[str]:
    """Return the command that starts so many ranks; none for one process without mpiexec."""
    if ranks is None:
        return []
    return [mpiexec(), *(_OPENMPI_FLAGS if mpi_name() == "openmpi" else ()), "-n", str(ranks)]


@functools.cache
def mpiexec() -> str:
    """Find the mpiexec of this interpreter's environment, or else of the system."""
    found = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.prefix, "bin")), os.environ.get("PATH", os.defpath)]))
    assert found is not None, "no mpiexec: install one of the extras mpich, openmpi, impi"
    return found


@functools.cache
def mpi_name() -> Literal["mpich", "openmpi", "impi"]:
    """Say whose mpiexec it is."""
    asked = subprocess.run(
        [mpiexec(), "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60
    )
    text = asked.stdout + asked.stderr
    if "Open MPI" in text or "OpenRTE" in text:
        return "openmpi"
    return "impi" if "Intel" in text else "mpich"


def _run(
    command: Sequence[str],
    deadline: float,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str] | None,
    hangs: Callable[[], bool],
) -> Job:
    token = secrets.token_hex(8)
    path = os.pathsep.join(filter(None, [str(TESTS / "harness" / "stacks"), env.get("PYTHONPATH")]))
    env = {**env, _TOKEN: token, "PYTHONFAULTHANDLER": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    began = time.monotonic()
    # Into files: a process that outlives the job would hold a pipe open.
    with (
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        env[_STACKS] = folder
        # An mpiexec of Open MPI does not start if one with its process id was killed before, and has left its files.
        env["PRTE_MCA_prte_tmpdir_base"] = folder
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, cwd=cwd, start_new_session=True
        )
        left: list[str] = []
        stacks = ""
        try:
            status = _wait(process, began + deadline, hangs)
            if status is None:
                stacks = _stacks(token, Path(folder))
            else:
                left = _left(token)
        finally:
            _end(process, token)
        return Job(command, status, _text(stdout), _text(stderr), time.monotonic() - began, left, stacks)


def _wait(process: "subprocess.Popen[bytes]", deadline: float, hangs: Callable[[], bool]) -> int | None:
    """Return the status; None at the deadline, or when the job hangs."""
    while time.monotonic() < deadline and not hangs():
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(_LOOK, max(0, deadline - time.monotonic())))
    return process.poll()


def _left(token: str) -> list[str]:
    """Name the processes of an ended job that are still there; those on their way out get a moment."""
    until = time.monotonic() + _LEAVING
    while (left := list(_processes(token))) and time.monotonic() < until:
        time.sleep(0.01)
    return [f"{pid}: {_command_of(pid)}" for pid in left]


def _stacks(token: str, folder: Path) -> str:
    """Have every Python process of the job write the stacks of all its threads; return them, those of a child with its parent's.

    A process that was Python, and has become mpiexec, has a file, too; the signal would end it, and the job.
    """
    processes = [pid for pid in _processes(token) if _writes_stacks(pid)]
    files = {pid: file for pid in processes if (file := folder / str(pid)).exists()}
    _send(signal.SIGUSR2, processes)
    until = time.monotonic() + _DUMPING
    while not all(file.stat().st_size for file in files.values()) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)  # for the ends of those that have begun
    return "\n".join(f"{pid}: {_command_of(pid)}\n{file.read_text()}" for pid, file in files.items())


def _send(what: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)


def _end(process: "subprocess.Popen[bytes]", token: str) -> None:
    """Kill what is left of the job, and only that."""
    while pids := list(_processes(token)):
        _send(signal.SIGKILL, pids)
        if process.poll() is None:
            process.wait()
        time.sleep(0.01)
    process.wait()


def _processes(token: str) -> Iterator[int]:
    """Yield the processes that carry the token, zombies left out: they have no environment any more."""
    needle = f"{_TOKEN}={token}\0".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if needle in (entry / "environ").read_bytes() + b"\0":
                    yield int(entry.name)


def _writes_stacks(pid: int) -> bool:
    """Whether a process is a Python that has a handler for the signal."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/exe").resolve() == Path(sys.executable).resolve():
            caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
            return bool(int(caught, 16) >> signal.SIGUSR2 - 1 & 1)
    return False


def _command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "gone"


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")

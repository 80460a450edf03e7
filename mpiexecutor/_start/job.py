"""A process that no mpiexec has started becomes rank 0 of a job that it starts itself.

    script ── starts ──> mpiexec ── starts ──> rank 0: a placeholder       ranks 1..n: workers
       ^                                          |                          |
       └──────── its environment, its descriptor ─┘ <──── "ready" ───────────┘

The placeholder never initialises MPI. It hands over what the process manager gave it, and stays until the script's process is
gone, so that the process manager goes on believing in its rank 0. The script takes these things on and initialises MPI: it *is*
rank 0.

Life and death. The connection to the placeholder stays open as long as the script's process lives. When the kernel closes it, the
placeholder ends: with success if the script said that all is done, else with an error, upon which mpiexec ends the workers. The
job has a session of its own, so that Ctrl-C at the terminal reaches the script alone.

Nobody else gets in: the address is hard to guess and gone as soon as all are there, peers must know the token, and be of the same
user.
"""

import contextlib
import hmac
import json
import math
import os
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mpiexecutor._script.surroundings import import_path
from mpiexecutor._util.seconds import GRACE as _GRACE

from .mpiexec import Flavour, Mpiexec, flavour_of

JOB_VARIABLE: Final = "MPIEXECUTOR_JOB"  # address and token, for the processes of the job only
TIMEOUT_VARIABLE: Final = "MPIEXECUTOR_START_TIMEOUT"
_TIMEOUT = 60.0  # seconds until all ranks have to be there
_LOOK = 0.1  # seconds between two looks at whether mpiexec still lives
_TAIL = 4000  # bytes of what the job has printed that an error message shows
_LOCAL = {"PWD", "OLDPWD", "SHLVL", "_", JOB_VARIABLE}  # variables that say nothing of the rank

# What the child processes run: they import what the script can import.
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mpiexecutor._cli.child import main; main()"


class StartError(RuntimeError):
    """Raised by the first executor of a script if its workers cannot be started. No process of the job is left running.

    The text says why, and contains the end of what the workers printed. ``MPIEXECUTOR_START_TIMEOUT`` sets the seconds that
    the start may take (60).
    """


class Output:
    """Shows what the job prints as if this process had printed it, and remembers the end of it.

    At its end each worker prints a mark, which is not shown: when all have come, so has everything else.
    """

    def __init__(self, source: int, target: int, mark: bytes) -> None:
        self._source = source
        self._target = target
        self._mark = mark
        self._seen = 0
        self._said = bytearray()
        self._muted = False
        self._changed = threading.Condition()
        threading.Thread(target=self._forward, name="mpiexecutor output", daemon=True).start()

    def tail(self) -> str:
        """Give the end of what was said."""
        return bytes(self._said).decode(errors="replace")

    def mute(self) -> None:
        """Show nothing more."""
        self._muted = True

    def wait(self, marks: int, seconds: float) -> None:
        """Wait until everybody has said everything."""
        with self._changed:
            self._changed.wait_for(lambda: self._seen >= marks, seconds)

    def _forward(self) -> None:
        rest = b""
        while data := os.read(self._source, 1 << 16):
            *parts, rest = (rest + data).split(self._mark)
            begun = rest.rfind(self._mark[:1])
            # A mark that has come in part is looked at again with what follows.
            held = rest[begun:] if begun >= 0 and self._mark.startswith(rest[begun:]) else b""
            self._show(b"".join((*parts, rest[: len(rest) - len(held)])))
            rest = held
            with self._changed:
                self._seen += len(parts)
                self._changed.notify_all()

    def _show(self, data: bytes) -> None:
        self._said = (self._said + data)[-_TAIL:]
        while data and not self._muted:
            try:
                data = data[os.write(self._target, data) :]
            except OSError:
                return


def end_of_output(token: str) -> bytes:
    """Give what a worker prints as its last."""
    return f"\0mpiexecutor-{token}\n".encode()


class Job:
    """The job that this process has started, and is rank 0 of. StartError if that fails, and then nothing is left running."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._mpiexec = Mpiexec.find()
        self._descriptors: list[int] = []
        self._token = secrets.token_hex(16)
        self._placeholder: socket.socket | None = None
        self._lost = False  # the job has ended, and is not to be waited for
        self._deadline = time.monotonic() + _timeout()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            address = stack.enter_context(_address())
            server.bind(address)
            server.listen(workers + 1)
            self._process = self._start(address)
            stack.push(self._undo)
            self._gather(server, stack)

    @property
    def aborted(self) -> bool:
        return self._placeholder is None

    @property
    def connection(self) -> int | None:
        """The descriptor by which the process manager is talked to, if there is one."""
        return self._descriptors[0] if self._descriptors else None

    def tell_of_end(self, attend: Callable[[int, Callable[[], None]], None], happened: Callable[[], None]) -> None:
        """Have something called if the job ends before this process: mpiexec ends the placeholder then, as all ranks."""

        def note() -> None:
            self._lost = True
            happened()

        if self._placeholder is not None:
            attend(self._placeholder.fileno(), note)

    def end(self) -> None:
        """Say that all is done, and MPI is done with: the job may end with success now. Nothing if it was aborted."""
        if self._placeholder is not None:
            for output in self._outputs:
                output.wait(self._workers, 0 if self._lost else _GRACE)
            with contextlib.suppress(OSError):
                self._placeholder.send(b".")
            # MPICH's library is done with its process manager only when this process ends: the kernel closes it then.
            self._placeholder.detach()
            self._placeholder = None

    def abort(self) -> None:
        """End the workers at once. This process goes on, and ends as it would have, but without finalising MPI."""
        if self._placeholder is not None:
            for output in self._outputs:
                output.mute()  # what mpiexec has to say about that
            # To the job that is as if this process had died.
            self._placeholder.close()
            self._placeholder = None
            for descriptor in self._descriptors:
                os.close(descriptor)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        _kill(self._process)

    def _start(self, address: str) -> "subprocess.Popen[bytes]":
        program = [sys.executable, *interpreter_flags(), "-c", _PROGRAM, json.dumps(import_path())]
        process = subprocess.Popen(  # noqa: S603 - our own program
            self._mpiexec.command(self._workers + 1, program, here=True),
            stdin=subprocess.DEVNULL,  # mpiexec would read what the script is meant to read
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, JOB_VARIABLE: f"{address.encode().hex()}:{self._token}"},
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        mark = end_of_output(self._token)
        self._outputs = (Output(process.stdout.fileno(), 1, mark), Output(process.stderr.fileno(), 2, mark))
        return process

    def _undo(self, kind: object, *_: object) -> None:
        """Leave nothing running if the start failed."""
        if kind is not None:
            _kill(self._process)

    def _gather(self, server: socket.socket, stack: contextlib.ExitStack) -> None:
        """Have everybody come, then let everybody begin."""
        connections: dict[int, socket.socket] = {}
        rank_zero: dict[str, Any] = {}
        descriptors: list[int] = []
        while len(connections) <= self._workers:
            connection = self._accept(server)
            stack.callback(connection.close)
            hello, received = _receive(connection, self._token)
            if hello is None:
                continue
            connections[hello["rank"]] = connection
            if hello["rank"] == 0:
                rank_zero, descriptors = hello, received
        self._check_match(rank_zero["library"])
        placeholder = connections.pop(0)
        self._descriptors = descriptors
        self._placeholder = socket.socket(fileno=os.dup(placeholder.fileno()))
        os.register_at_fork(after_in_child=self._let_go)
        for connection in connections.values():
            connection.send(b"!")
        _become_rank_zero(rank_zero["environment"], descriptors)

    def _accept(self, server: socket.socket) -> socket.socket:
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while not selector.select(_LOOK):
                status = self._process.poll()
                if status is not None:
                    time.sleep(_LOOK)  # for the last of its words
                    raise StartError(f"the workers ended while they were being started (mpiexec's status: {status}){self._words()}")
                if time.monotonic() > self._deadline:
                    raise StartError(
                        f"the workers have not come in time: {TIMEOUT_VARIABLE} says how many seconds they have{self._words()}"
                    )
        return server.accept()[0]

    def _words(self) -> str:
        said = "".join(output.tail() for output in self._outputs).strip()
        return f"; they said:\n{said}" if said else ""

    def _check_match(self, library: str) -> None:
        """Raise StartError if mpi4py loads another MPI than mpiexec's: each rank would be alone in a world of its own."""
        family = flavour_of(library)
        if Flavour.UNKNOWN not in {family, self._mpiexec.flavour} and family is not self._mpiexec.flavour:
            raise StartError(
                f"{self._mpiexec.path} belongs to {self._mpiexec.flavour.value}, but mpi4py loads {library}: "
                "put the mpiexec of that MPI first on the PATH, or install one MPI only"
            )

    def _let_go(self) -> None:
        """In a forked child: the connections are this process's alone, or the job would outlive it."""
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
            for descriptor in self._descriptors:
                os.close(descriptor)


def greet(address: str, hello: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Report to the script's process, from a process of its job."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    data = json.dumps(hello).encode()
    socket.send_fds(connection, [struct.pack("!I", len(data))], descriptors)
    connection.sendall(data)
    return connection


def _receive(connection: socket.socket, token: str) -> tuple[dict[str, Any] | None, list[int]]:
    """Give who has connected; None if it is a stranger."""
    connection.settimeout(10)
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid != os.geteuid():
            return None, []
    try:
        head, descriptors, _, _ = socket.recv_fds(connection, 4, 1)
        (left,) = struct.unpack("!I", head)
        data = bytearray()
        while len(data) < left and (piece := connection.recv(left - len(data))):
            data += piece
        hello = json.loads(data)
        known = hmac.compare_digest(str(hello["token"]), token)
    except (OSError, ValueError, KeyError, struct.error):
        return None, []
    connection.settimeout(None)
    return (hello, descriptors) if known else (None, [])


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(_TIMEOUT))
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise ValueError(f"{TIMEOUT_VARIABLE} is the number of seconds that workers have to start, above 0 and finite, not {text!r}")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End mpiexec, which ends its ranks when it is asked to; if it does not, what is left in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return


def _become_rank_zero(environment: dict[str, str], descriptors: list[int]) -> None:
    """Initialise MPI with what the process manager gave the placeholder; the script's environment stays as it was."""
    before = dict(os.environ)
    given = {name: value for name, value in environment.items() if name not in _LOCAL and before.get(name) != value}
    if descriptors:
        given["PMI_FD"] = str(descriptors[0])
    given.setdefault("UCX_DEBUG_SIGNO", "0")  # else UCX takes SIGHUP away from the script
    os.environ.update(given)
    try:
        import mpi4py  # noqa: PLC0415

        mpi4py.rc.finalize = False  # by the job's end: if the workers are gone it would wait for them for ever
        from mpi4py import MPI  # noqa: PLC0415 - initialises MPI, here and now

        assert MPI.Is_initialized()
    finally:
        for name in given:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in given if name in before})


@contextlib.contextmanager
def _address() -> Any:
    """Give an address to listen at; what there is of it in the file system is private, and gone afterwards."""
    if sys.platform == "linux":
        yield "\0mpiexecutor-" + secrets.token_hex(16)  # no file at all
    else:
        with tempfile.TemporaryDirectory(prefix="mpiexecutor-") as folder:
            yield str(Path(folder) / "s")


def interpreter_flags() -> list[str]:
    """Give the options that this Python was started with, as multiprocessing passes them on."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001

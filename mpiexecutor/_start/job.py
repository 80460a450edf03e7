"""A script that no mpiexec has started becomes rank 0 of a job that it starts itself.

    script ── starts ──> mpiexec ── starts ──> rank 0: a placeholder       ranks 1..n: workers
       ^                                          |                          |
       └──────── its environment, its descriptor ─┘ <──── "ready" ───────────┘

The placeholder never initialises MPI. It sends the script its environment and its descriptor of the process manager, and stays
until the process of the script ends, so that the process manager sees a living rank 0. The script takes both over and
initialises MPI: it is rank 0 then.

The end. The connection to the placeholder stays open while the process of the script lives. When the kernel closes it, the
placeholder ends: with success if the script has sent a byte before, else with an error, upon which mpiexec ends the workers. The
job has a session of its own, so that Ctrl-C at the terminal reaches the script alone.

Security. The address is random, and closed once all processes have connected. They must send the token, and be of the same user.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mpiexecutor._script.surroundings import import_path
from mpiexecutor._util.process_end import PROCESS_END
from mpiexecutor._util.seconds import GRACE as _GRACE

from .mpiexec import Flavour, Mpiexec, flavour_of
from .output import Output, end_of_output

JOB_VARIABLE: Final = "MPIEXECUTOR_JOB"  # address and token, for the processes of the job only
TIMEOUT_VARIABLE: Final = "MPIEXECUTOR_START_TIMEOUT"
_TIMEOUT = 60.0  # seconds until all processes must have connected
_LOOK = 0.1  # seconds between two looks whether mpiexec still lives
_LOCAL = {"PWD", "OLDPWD", "SHLVL", "_", JOB_VARIABLE}  # variables that do not depend on the rank

# What the processes of the job run, with the import path of the script.
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mpiexecutor._cli.child import main; main()"


class StartError(RuntimeError):
    """Raised by the first executor of a script if its workers cannot be started. No process of the job is left running.

    The text says why, and contains the end of what the workers printed. ``MPIEXECUTOR_START_TIMEOUT`` sets the seconds that
    the start may take (60).
    """


class Job:
    """The job that this process has started, and is rank 0 of."""

    def __init__(self, workers: int) -> None:
        """Start mpiexec with so many workers, wait for them, and initialise MPI in this process.

        Raises:
            StartError: A process fails, or comes too late, or mpiexec and mpi4py belong to different MPIs. No process is left.
            NoMpiexecError: There is no mpiexec.
            ValueError: The environment has no valid time to start.

        """
        self._workers = workers
        self._mpiexec = Mpiexec.find()
        self._descriptors: list[int] = []
        self._token = secrets.token_hex(16)
        self._placeholder: socket.socket | None = None
        self._lost = False  # the job has ended before this process: there is no output to wait for
        self._deadline = time.monotonic() + _timeout()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            address = stack.enter_context(_address())
            server.bind(address)
            server.listen(workers + 1)
            self._process = self._start(address)
            stack.push(self._end_if_failed)
            self._connect_all(server, stack)

    @property
    def aborted(self) -> bool:
        """Whether the workers were ended by `abort`, so that MPI cannot be finalised."""
        return self._placeholder is None

    @property
    def connection(self) -> int | None:
        """The descriptor of the process manager, if the MPI uses one."""
        return self._descriptors[0] if self._descriptors else None

    def tell_of_end(self, attend: Callable[[int, Callable[[], None]], None], happened: Callable[[], None]) -> None:
        """Have `happened` called if the job ends before this process: mpiexec ends the placeholder then, like all ranks.

        Args:
            attend: Has a function called when a descriptor becomes readable.
            happened: What is called.

        """

        def note() -> None:
            self._lost = True
            happened()

        if self._placeholder is not None:
            attend(self._placeholder.fileno(), note)

    def end(self) -> None:
        """Let the job end with success, after MPI was finalised, once all output has come. Do nothing if it was aborted."""
        if self._placeholder is not None:
            for output in self._outputs:
                output.wait(self._workers, 0 if self._lost else _GRACE)
            with contextlib.suppress(OSError):
                self._placeholder.send(b".")
            # Left open, for the kernel to close: MPICH's library uses the process manager until this process ends.
            self._placeholder.detach()
            self._placeholder = None

    def abort(self) -> None:
        """End the workers at once. This process goes on; at its end it must not finalise MPI."""
        if self._placeholder is not None:
            for output in self._outputs:
                output.mute()  # mpiexec reports the death of rank 0
            # The job sees this as the death of this process.
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
            stdin=subprocess.DEVNULL,  # else mpiexec would read the script's
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

    def _end_if_failed(self, kind: object, *_: object) -> None:
        """End all processes of the job if the start failed."""
        if kind is not None:
            _kill(self._process)

    def _connect_all(self, server: socket.socket, stack: contextlib.ExitStack) -> None:
        """Wait until all processes have connected; have the workers begin, and become rank 0.

        Raises:
            StartError: See above.

        """
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
        PROCESS_END.disown_in_child(self._close_in_child)
        for connection in connections.values():
            connection.send(b"!")
        _become_rank_zero(rank_zero["environment"], descriptors)

    def _accept(self, server: socket.socket) -> socket.socket:
        """Return the next connection.

        Raises:
            StartError: mpiexec ends, or the time to start is over.

        """
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while not selector.select(_LOOK):
                status = self._process.poll()
                if status is not None:
                    time.sleep(_LOOK)  # until its last output has come
                    raise StartError(
                        f"the workers ended while they were being started (mpiexec's status: {status}){self._printed()}"
                    )
                if time.monotonic() > self._deadline:
                    raise StartError(
                        f"the workers have not come in time: {TIMEOUT_VARIABLE} says how many seconds they have{self._printed()}"
                    )
        return server.accept()[0]

    def _printed(self) -> str:
        text = "".join(output.tail() for output in self._outputs).strip()
        return f"; they said:\n{text}" if text else ""

    def _check_match(self, library: str) -> None:
        """Check that mpi4py loads the MPI of mpiexec: with another one each rank would be alone in its MPI.COMM_WORLD.

        Raises:
            StartError: It does not.

        """
        family = flavour_of(library)
        if Flavour.UNKNOWN not in {family, self._mpiexec.flavour} and family is not self._mpiexec.flavour:
            raise StartError(
                f"{self._mpiexec.path} belongs to {self._mpiexec.flavour.value}, but mpi4py loads {library}: "
                "put the mpiexec of that MPI first on the PATH, or install one MPI only"
            )

    def _close_in_child(self) -> None:
        """Close the connections in a forked child: the job ends when the last process that has them ends."""
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
            for descriptor in self._descriptors:
                os.close(descriptor)


def connect(address: str, hello: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Connect a process of the job to the script.

    Args:
        address: That of the script.
        hello: This process's rank and token, and what rank 0 has for the script.
        descriptors: To be passed to the script.

    Returns:
        The connection. A byte that comes over it has the process begin; the end of it means that the start failed.

    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    data = json.dumps(hello).encode()
    socket.send_fds(connection, [struct.pack("!I", len(data))], descriptors)
    connection.sendall(data)
    return connection


def _receive(connection: socket.socket, token: str) -> tuple[dict[str, Any] | None, list[int]]:
    """Return what a process of the job sends first, and its descriptors; None if the process is not of this job."""
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
    """Return the seconds that the processes of a job have to connect.

    Raises:
        ValueError: The environment has something else than a positive number.

    """
    text = os.environ.get(TIMEOUT_VARIABLE, str(_TIMEOUT))
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise ValueError(f"{TIMEOUT_VARIABLE} is the number of seconds that workers have to start, above 0 and finite, not {text!r}")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End mpiexec, which ends its ranks upon SIGTERM; if it does not, kill what is left of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return


def _become_rank_zero(environment: dict[str, str], descriptors: list[int]) -> None:
    """Initialise MPI with the environment and the descriptor of the placeholder; the script's environment is restored."""
    before = dict(os.environ)
    given = {name: value for name, value in environment.items() if name not in _LOCAL and before.get(name) != value}
    if descriptors:
        given["PMI_FD"] = str(descriptors[0])
    given.setdefault("UCX_DEBUG_SIGNO", "0")  # else UCX takes SIGHUP away from the script
    os.environ.update(given)
    try:
        import mpi4py  # noqa: PLC0415

        mpi4py.rc.finalize = False  # at the end of the job instead: without the workers it would wait for ever
        from mpi4py import MPI  # noqa: PLC0415 - initialises MPI, here and now

        assert MPI.Is_initialized()
    finally:
        for name in given:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in given if name in before})


@contextlib.contextmanager
def _address() -> Any:
    """Yield an address to listen at. If it is a file, only this user can reach it, and it is removed afterwards."""
    if sys.platform == "linux":
        yield "\0mpiexecutor-" + secrets.token_hex(16)  # no file at all
    else:
        with tempfile.TemporaryDirectory(prefix="mpiexecutor-") as folder:
            yield str(Path(folder) / "s")


def interpreter_flags() -> list[str]:
    """Return the options that this Python was started with, as multiprocessing passes them on."""
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001

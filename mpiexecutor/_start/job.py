"""A script that no mpiexec has started becomes rank 0 of a job that it starts itself.

    script ── starts ──> mpiexec ── starts ──> rank 0: a placeholder       ranks 1..n: workers
       ^                                          |                          |
       └──────── its environment, its descriptor ─┘ <──── "ready" ───────────┘

The placeholder never initialises MPI. It sends the script its environment and its descriptor of the process manager, and stays
until the process of the script ends, so that the process manager sees a living rank 0. The script takes both over and
initialises MPI: it is rank 0 then.

The end. The connection to the placeholder stays open while the process of the script lives. When the kernel closes it, the
placeholder ends: with success if the last byte from the script was a full stop. Otherwise it removes the files of shared memory
that the script has named, since no process of MPI may have time for that, and ends with an error. Then mpiexec ends the workers.
The job has a session of its own, so that Ctrl-C at the terminal reaches only the script.
"""

import contextlib
import json
import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from mpiexecutor._liveness.process_manager import mapped, remove
from mpiexecutor._script.surroundings import import_path
from mpiexecutor._util.flavour import Flavour, flavour_of
from mpiexecutor._util.process_end import PROCESS_END
from mpiexecutor._util.seconds import GRACE, NOTICE, from_environment
from mpiexecutor._util.watched import run_watched

from .limits import shortages
from .mpiexec import JOB_VARIABLE, Mpiexec, interpreter_flags
from .output import Output, end_of_output
from .rank_zero import become_rank_zero
from .rendezvous import address_to_listen, receive

logger = logging.getLogger("mpiexecutor")

T = TypeVar("T")

TIMEOUT_VARIABLE: Final = "MPIEXECUTOR_START_TIMEOUT"
TIMEOUT: Final = 60.0  # seconds until all processes must have connected
_LOOK = 0.1  # seconds between two looks whether mpiexec still lives

# What the processes of the job run, with the import path of the script.
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mpiexecutor._cli.child import main; main()"


class StartError(RuntimeError):
    """Raised by the first executor of a script if its workers cannot be started. No process of the job is left running.

    The text says why, and contains the end of what the workers printed. ``MPIEXECUTOR_START_TIMEOUT`` sets the seconds that
    the start may take (60).
    """

    __module__ = "mpiexecutor"


class Job:
    """The job that this process has started, and is rank 0 of."""

    def __init__(self, workers: int) -> None:
        """Start mpiexec with this number of workers, wait for them, and initialise MPI in this process.

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
        self._seconds = from_environment(TIMEOUT_VARIABLE, TIMEOUT)
        self._shortages = shortages(workers + 1, self._mpiexec.flavour)  # before MPI takes what there is
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            address = stack.enter_context(address_to_listen())
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
        """Have `happened` called if the job ends before this process: then mpiexec ends the placeholder, as it ends all ranks.

        Args:
            attend: Has a function called when a descriptor becomes readable.
            happened: What is called.

        """

        def note() -> None:
            self._lost = True
            happened()

        if self._placeholder is not None:
            attend(self._placeholder.fileno(), note)

    def entrust_files(self) -> None:
        """Have the placeholder remove the MPI files of shared memory that this process has mapped by now, if it is killed."""
        if self._placeholder is not None:
            self._placeholder.sendall("".join(f"{file}\n" for file in mapped()[1]).encode())

    def mpiexec_end(self, seconds: float) -> str:
        """Return how mpiexec has ended; empty if it has not ended after `seconds`."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return ""
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def end(self) -> None:
        """Let the job end with success, after MPI was finalised, once all output has come. Do nothing if it was aborted."""
        if self._placeholder is not None:
            for output in self._outputs:
                output.wait(self._workers, 0 if self._lost else GRACE)
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
            self._disconnect()  # the job sees this as the death of this process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(NOTICE)
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
            remove(mapped()[1])

    def _connect_all(self, server: socket.socket, stack: contextlib.ExitStack) -> None:
        """Wait until all processes have connected; have the workers begin, and become rank 0.

        Raises:
            StartError: See above.

        """
        connections: dict[int, socket.socket] = {}
        rank_zero: dict[str, Any] = {}
        descriptors: list[int] = []
        deadline = time.monotonic() + self._seconds
        while len(connections) <= self._workers:
            connection = self._accept(server, deadline)
            stack.callback(connection.close)
            hello, received = receive(connection, self._token)
            if hello is None:
                continue
            connections[hello["rank"]] = connection
            if hello["rank"] == 0:
                rank_zero, descriptors = hello, received
        self._check_match(rank_zero["library"])
        placeholder = connections.pop(0)
        self._descriptors = descriptors
        self._placeholder = socket.socket(fileno=os.dup(placeholder.fileno()))
        placeholder.close()  # the placeholder ends when the last of them is closed: `abort` waits for that
        PROCESS_END.disown_in_child(self._disconnect)
        for connection in connections.values():
            connection.send(b"!")
        for shortage in self._shortages:  # an MPI that fails may end this process
            warnings.warn(shortage, RuntimeWarning, stacklevel=6)  # where the script makes its executor
        become_rank_zero(rank_zero["environment"], descriptors, self.watch)
        self.entrust_files()

    def watch(self, step: Callable[[], T]) -> T:
        """Run a step of the start that may hang inside MPI, in a thread of its own. Return what it returns.

        Raises:
            StartError: mpiexec ends meanwhile, or the time to start is over. The job is ended, and the thread left where it is; so
                it is after Ctrl-C.

        """
        deadline = time.monotonic() + self._seconds
        try:
            return run_watched(step, partial(self._check_start, deadline), _LOOK)
        except (StartError, KeyboardInterrupt) as error:
            if self._process.poll() is None and isinstance(error, StartError):
                logger.critical("%s", error)  # MPI may end this process once the job is ended
            self.abort()
            raise

    def _accept(self, server: socket.socket, deadline: float) -> socket.socket:
        """Return the next connection. Raise StartError as `watch` does."""
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while not selector.select(_LOOK):
                self._check_start(deadline)
        return server.accept()[0]

    def _check_start(self, deadline: float) -> None:
        """Raise StartError if mpiexec has ended, or the time to start is over."""
        status = self._process.poll()
        if status is not None:
            time.sleep(_LOOK)  # until its last output has come
            why = f"the workers ended while they were being started (mpiexec's status: {status})"
        elif time.monotonic() > deadline:
            why = f"the workers have not come in time: {TIMEOUT_VARIABLE} says how many seconds they have"
        else:
            return
        printed = "".join(output.tail() for output in self._outputs).strip()
        raise StartError("; ".join([why, *self._shortages]) + (f"; they said:\n{printed}" if printed else ""))

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

    def _disconnect(self) -> None:
        """Close the connections; in a forked child, too: the job ends when the last process that has them closes them, or ends."""
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None
            for descriptor in self._descriptors:
                os.close(descriptor)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End mpiexec, which ends its ranks upon SIGTERM; if it does not, kill what is left of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            return

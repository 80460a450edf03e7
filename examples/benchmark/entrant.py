"""A contender that is running: started, told what to run, stopped while others are measured, and ended.

It is stopped by SIGSTOP, all of its processes, so that one that spins while it waits, or has threads that look after something,
takes nothing from the others.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from contenders import HERE, Contender
from processes import TOKEN, send
from serve import ADDRESS

_START = 120  # seconds until the contender must have come
_RUN = 1800  # seconds that a shape may take once
_LEAVE = 20  # seconds to end by itself
_TAIL = 2000  # characters of what it has printed that an error shows


class EntrantError(Exception):
    """A contender cannot be started, or has failed; the text says how."""


class Entrant:
    """A contender with its processes."""

    def __init__(self, contender: Contender, workers: int, hosts: str | None):
        self._token = secrets.token_hex(8)
        self.mpi = None  # which MPI it says that it runs on
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._log = stack.enter_context((self._folder / "log").open("w+b"))
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(self._folder / "socket"))
            listener.listen()
            self._process = self._start(contender, workers, hosts)
            stack.callback(self._kill)
            self._connection = stack.enter_context(self._accept(listener))
            self._connection.settimeout(_RUN)
            self._lines = stack.enter_context(self._connection.makefile("rw"))
            self.mpi = self._answer()["mpi"]
            self._stop()
            self._stack = stack.pop_all()

    def run(self, shape: str, *, tiny: bool) -> dict[str, float]:
        """Run a shape once; return its figures."""
        send(signal.SIGCONT, self._token)
        try:
            self._lines.write(json.dumps([shape, tiny]) + "\n")
            self._lines.flush()
            return self._answer()["figures"]
        except OSError as error:
            raise EntrantError(f"{error!r}\n{self._printed()}") from error
        finally:
            self._stop()

    def end(self, *, by_force: bool = False) -> None:
        """Let it end by itself; kill what does not."""
        with self._stack:
            if not by_force:
                send(signal.SIGCONT, self._token)
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    self._connection.shutdown(socket.SHUT_RDWR)
                    self._process.wait(_LEAVE)

    def _start(self, contender: Contender, workers: int, hosts: str | None) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        own = {TOKEN: self._token, ADDRESS: str(self._folder / "socket"), "PYTHONPATH": path}
        return subprocess.Popen(
            contender.command(workers, hosts),
            env={**os.environ, **contender.environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends all others
        )

    def _accept(self, listener: socket.socket) -> socket.socket:
        listener.settimeout(0.2)
        until = time.monotonic() + _START
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
        raise EntrantError(f"has not come\n{self._printed()}")

    def _answer(self) -> dict:
        line = self._lines.readline()
        if not line:
            raise EntrantError(f"has ended\n{self._printed()}")
        answer = json.loads(line)
        if "error" in answer:
            raise EntrantError(answer["error"])
        return answer

    def _stop(self) -> None:
        send(signal.SIGSTOP, self._token)

    def _kill(self) -> None:
        while send(signal.SIGKILL, self._token):
            time.sleep(0.01)
        self._process.wait()

    def _printed(self) -> str:
        """Return the end of what it has printed."""
        return (self._folder / "log").read_text(errors="replace")[-_TAIL:]

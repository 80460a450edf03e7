"""The output of a job's processes is copied to the output of the script that has started the job."""

import os
import threading

_TAIL = 4000  # bytes of the output that an error message shows


def end_of_output(token: str) -> bytes:
    """Return the mark that a worker of this job prints at its end."""
    return f"\0mpiexecutor-{token}\n".encode()


class Output:
    """Copies the output of a job from a pipe to a descriptor of this process, in a thread, and keeps the last part of it.

    Each worker prints a mark at its end, which is not copied: when all marks have arrived, so has all other output.
    """

    def __init__(self, source: int, target: int, mark: bytes) -> None:
        self._source = source
        self._target = target
        self._mark = mark
        self._marks = 0  # that have come
        self._last = bytearray()
        self._muted = False
        self._changed = threading.Condition()
        threading.Thread(target=self._forward, name="mpiexecutor output", daemon=True).start()

    def tail(self) -> str:
        """Return the last part of the output."""
        return bytes(self._last).decode(errors="replace")

    def mute(self) -> None:
        """Stop copying."""
        self._muted = True

    def wait(self, marks: int, seconds: float) -> None:
        """Wait until this number of marks has arrived, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._marks >= marks, seconds)

    def _forward(self) -> None:
        rest = b""
        while data := os.read(self._source, 1 << 16):
            *parts, rest = (rest + data).split(self._mark)
            begun = rest.rfind(self._mark[:1])
            # The begin of a mark is kept until the rest of it comes.
            held = rest[begun:] if begun >= 0 and self._mark.startswith(rest[begun:]) else b""
            self._copy(b"".join((*parts, rest[: len(rest) - len(held)])))
            rest = held
            with self._changed:
                self._marks += len(parts)
                self._changed.notify_all()

    def _copy(self, data: bytes) -> None:
        self._last = (self._last + data)[-_TAIL:]
        while data and not self._muted:
            try:
                data = data[os.write(self._target, data) :]
            except OSError:
                return

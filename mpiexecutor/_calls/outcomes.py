"""Results and errors of calls as bytes, and the errors that futures raise."""

import marshal
import os
import pickle
import socket
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mpiexecutor._script.pickling import Has, always, dumps
from mpiexecutor._util.pickling import PROTOCOL, Pickled, is_plain

_MOST_TEXT = 32 << 10  # most characters of an error's name, text and traceback; its pickle is not limited
Buffer = bytes | memoryview


class RemoteTraceback(Exception):
    """The traceback of an error in the process where it was raised: the ``__cause__`` of the error that a future raises.

    Attributes:
        text: Rank, host and pid, and the formatted traceback.
        tb: The same, under the name that `concurrent.futures.process` uses.

    """

    __module__ = "mpiexecutor"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.tb = text  # as that of concurrent.futures.process

    def __str__(self) -> str:
        return self.text


class RemoteError(RuntimeError):
    """Raised by a future in the place of an exception that cannot be pickled, or cannot be rebuilt from its pickle.

    The text has the class and the text of the original exception, and ``__cause__`` its traceback.
    """

    __module__ = "mpiexecutor"


@dataclass(frozen=True, slots=True)
class Location:
    """The rank and process where something ran."""

    rank: int
    ranks: int
    host: str
    pid: int

    @classmethod
    def here(cls, rank: int, ranks: int) -> "Location":
        return cls(rank, ranks, socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.ranks} on {self.host} (pid {self.pid})"


def pickled(obj: Any, has: Has = always) -> Pickled:
    """Pickle an object. `has` says which functions and classes the receiver has under their names."""
    return Pickled(*dumps(obj, set(), has))


def dumps_sized(obj: Any, names: set[str] | None = None, has: Has = always) -> tuple[Pickled, int]:
    """Pickle an object; return also its size in bytes. `names` takes the globals of the script that it needs.

    `has` says which functions and classes the receiver has under their names.
    """
    if is_plain(obj):  # most calls and results are: fewer Python calls than in `dumps` and in the constructor of Pickled
        data = pickle.dumps(obj, PROTOCOL)
        return tuple.__new__(Pickled, (data, ())), len(data)
    whole = Pickled(*dumps(obj, set() if names is None else names, has))
    return whole, whole.size


class Failure(NamedTuple):
    """A description of an error, with its pickle if it has one."""

    name: str  # of the error's class
    text: str
    trace: str  # the traceback, headed by the location
    error: Pickled | None  # None if it cannot be pickled

    def dumps(self) -> Pickled:
        """Return this as bytes. The buffers are the pickle of the error, and those that belong to it."""
        buffers = () if self.error is None else (memoryview(self.error.data), *self.error.buffers)
        return Pickled(marshal.dumps((self.name, self.text, self.trace)), buffers)

    @classmethod
    def loads(cls, data: Buffer, buffers: Sequence[memoryview] = ()) -> "Failure":
        name, text, trace = marshal.loads(data)  # noqa: S302 - the ranks of a job trust each other: see the README
        return cls(name, text, trace, Pickled(buffers[0], buffers[1:]) if buffers else None)


def failure_of(error: BaseException, location: Location, has: Has = always) -> Failure:
    """Return the Failure of an error. Its traceback leaves out the frame that caught it."""
    try:
        own: Pickled | None = pickled(error, has)
    except BaseException:  # noqa: BLE001 - raised by the error's own code: it still has a name and a text
        own = None
    return Failure(_name(type(error))[:_MOST_TEXT], _text(error)[:_MOST_TEXT], traceback_of(error, location)[-_MOST_TEXT:], own)


def error_from(failure: Failure) -> BaseException:
    """Rebuild an error; its cause is a RemoteTraceback with the traceback of its process. RemoteError if it cannot be rebuilt."""
    name, text, trace, own = failure
    if own is None:
        error: object = RemoteError(f"{name}: {text} (the exception itself cannot be pickled)")
    else:
        try:
            error = own.load()
        except BaseException as reason:  # noqa: BLE001 - raised by the error's own code
            error = RemoteError(f"{name}: {text} (the exception itself cannot be rebuilt from its pickle: {reason!r})")
    if not isinstance(error, BaseException):
        error = RemoteError(f"{name}: {text} (the exception's pickle gives {type(error).__name__} instead)")
    _set(error, "__cause__", RemoteTraceback(trace))
    return error


def traceback_of(error: BaseException, location: Location) -> str:
    """Return the text of an error's traceback, without the frame that caught it, headed by the location."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        lines = traceback.format_exception(type(error), error, trace)
    except BaseException:  # noqa: BLE001 - raised by the error's own code
        lines = ["Traceback (most recent call last):\n", *traceback.format_tb(trace), f"{_name(type(error))}: {_text(error)}\n"]
    return f'\n"""\n{location}:\n{"".join(lines)}"""'


def with_cause(error: BaseException, location: Location) -> BaseException:
    """Return an error of this process with a RemoteTraceback as its cause, as errors of workers have, and without frames."""
    text = traceback_of(error, location)
    _set(error, "__traceback__", None)  # its frames refer to arguments and results
    _set(error, "__cause__", RemoteTraceback(text))
    return error


def _set(error: BaseException, name: str, value: object) -> None:
    """Set an attribute of an error even if its class refuses, as frozen dataclasses do."""
    BaseException.__setattr__(error, name, value)


def _name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return str.__str__(str(error))  # not of a subclass of str
    except BaseException as reason:  # noqa: BLE001 - its own code
        return f"<no text: {type(reason).__name__}>"

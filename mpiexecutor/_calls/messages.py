"""All that root and workers say to each other, a class for each kind of message, and how it is encoded.

    work channel   root to any worker   Calls
    reply channel  a worker to root     Results, SpareResult, GivenBack, Wanted, InitializerFailed, TopLevelFailed, CallTooLarge
                   root to itself       Barrier

Encoding. The number of the kind and the fields, by marshal: these are numbers, names, and bytes. What users have given is pickled
once, by the thread that submits a call or by the worker that has run it, and travels as bytes from there on. Marshal takes half the
time of pickle for this, and all ranks run the same Python, as cloudpickle needs, too. Large pickles and buffers go out of band: the
channel copies them once, from where they are to the ring.

Calls and outcomes are plain tuples. There are up to 256 in a message, and making objects of a class takes longer than all the rest.

A new kind of message: add its class here and to `_KINDS`, and handle it in the collector (a reply) or in Worker (work).
"""

import io
import marshal
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from mpiexecutor._liveness.status_page import LARGE
from mpiexecutor._util.pickling import OUT_OF_BAND

from .outcomes import Buffer, Failure

OF_ONE_CALL: Final = 3 * LARGE  # bytes of a message: one of several calls, or outcomes, has less, with all that belongs to it
_FORMAT: Final = 2  # of marshal: without the references to equal objects, which take longer than the objects

# A call: its number; the state of the script's globals that it needs (None: its worker is the script's own process); the function,
# by its number (see functions.py) or its name in the script (None: it is in the pickle); the pickle of the function or None,
# arguments and keywords; the buffers of that.
Call = tuple[int, int | None, int | str | None, Buffer, Sequence[memoryview]]

# What became of a call: its number; the seconds that it ran; whether it failed; the pickle of its result, or its Failure as bytes;
# the buffers of that.
Outcome = tuple[int, float, bool, Buffer, Sequence[memoryview]]


class Calls(NamedTuple):
    """Calls of one executor, which the worker that takes them runs one after another."""

    executor: int
    initializer: int | None  # its number, if the executor has one
    task_timeout: float  # seconds that each call may run; 0: any time
    calls: list[Call]


class Results(NamedTuple):
    """What became of calls of one executor."""

    rank: int  # of the worker, as in all replies
    executor: int
    outcomes: Sequence[Outcome]


class SpareResult(NamedTuple):
    """Follows each long result, which is alone in its message: the outcome if the root had no memory to receive that one."""

    rank: int
    executor: int
    number: int  # of the call
    seconds: float
    failure: Failure


class GivenBack(NamedTuple):
    """Calls that the worker has taken, has not begun, and leaves to other workers."""

    rank: int
    executor: int
    behind_long_call: bool  # which this worker is running; else the executor has as many workers as it may have
    numbers: tuple[int, ...]


class Wanted(NamedTuple):
    """The worker waits for a function, an initializer, or a state of the script: it comes by bulk transfer."""

    rank: int
    executor: int
    number: int  # of what is wanted
    known: int  # of the state that the worker is in; 0: none


class InitializerFailed(NamedTuple):
    """The executor's initializer has raised in this worker. The failure has no pickle: it is short, and so it comes in any case."""

    rank: int
    executor: int
    failure: Failure


class TopLevelFailed(NamedTuple):
    """The top level of the script has raised in this worker, which goes on with what it has by then. The failure has no pickle."""

    rank: int
    executor: int
    failure: Failure


class CallTooLarge(NamedTuple):
    """The worker had no memory for a message of one call, and has thrown it away unread."""

    rank: int
    message: int  # its number in the work channel
    failure: Failure


class Barrier(NamedTuple):
    """The root to itself: what was put before this has been collected, so the oldest postponed step is due."""


Reply = Results | SpareResult | GivenBack | Wanted | InitializerFailed | TopLevelFailed | CallTooLarge | Barrier
Message = Calls | Reply

_KINDS: Final[tuple[type[Message], ...]] = (
    Calls,
    Results,
    SpareResult,
    GivenBack,
    Wanted,
    InitializerFailed,
    TopLevelFailed,
    CallTooLarge,
    Barrier,
)
_KIND_OF: Final = {each: kind for kind, each in enumerate(_KINDS)}
_WITH_FAILURE: Final = (SpareResult, InitializerFailed, TopLevelFailed, CallTooLarge)  # as the last field


def dumps(message: Message) -> tuple[bytes, list[memoryview]]:
    """Return the bytes of a message, and what of it goes out of band. TypeError if it is none."""
    kind = _KIND_OF.get(type(message))
    if kind is None:
        raise TypeError(f"no message of root or workers: {message!r:.50}")
    beside: list[memoryview] = []
    fields: tuple[Any, ...] = message
    if isinstance(message, (Results, Calls)):
        rows: Sequence[Any] = message[-1]
        if [1 for _, _, _, data, buffers in rows if buffers or len(data) >= OUT_OF_BAND]:
            fields = (*message[:-1], [_without_buffers(row, beside) for row in rows])
    elif isinstance(message, _WITH_FAILURE):
        data, buffers = message.failure.dumps()
        beside.extend(buffers)
        fields = (*message[:-1], data)
    return marshal.dumps((kind, *fields), _FORMAT), beside


def loads(data: memoryview, buffers: Sequence[memoryview] = ()) -> Message:
    """Rebuild a message. ValueError if it is of no known kind."""
    number, *fields = marshal.loads(data)  # noqa: S302 - the ranks of a job trust each other: see the README
    if number >= len(_KINDS):
        raise ValueError(f"a message of an unknown kind, {number}")
    kind: Any = _KINDS[number]
    if kind in _WITH_FAILURE:
        fields[-1] = Failure.loads(fields[-1], buffers)
    elif buffers:
        beside = iter(buffers)
        fields[-1] = [_with_buffers(row, beside) for row in fields[-1]]
    message: Message = kind(*fields)
    return message


def _without_buffers(row: tuple[Any, ...], beside: list[memoryview]) -> tuple[Any, ...]:
    """Move what is large out of a call or an outcome: an empty pickle is the first of so many buffers."""
    *fields, data, buffers = row
    before = len(beside)
    if len(data) >= OUT_OF_BAND:
        beside.append(memoryview(data))
        data = b""
    beside.extend(buffers)
    return (*fields, data, len(beside) - before)


def _with_buffers(row: tuple[Any, ...], beside: Iterator[memoryview]) -> tuple[Any, ...]:
    *fields, data, count = row
    buffers = [next(beside) for _ in range(count)]
    return (*fields, data or buffers.pop(0), buffers)


def dump_outcome(outcome: Outcome) -> bytes:
    """Return an outcome for the status page of its worker, with all that belongs to it."""
    number, seconds, failed, data, buffers = outcome
    return marshal.dumps((number, seconds, failed, data, *buffers), _FORMAT)


def load_outcomes(held: bytes) -> Iterator[Outcome]:
    """Yield the outcomes that lie one behind the other. Any error if these bytes are none. Their buffers are writable."""
    file = io.BytesIO(held)
    while file.tell() < len(held):
        number, seconds, failed, data, *buffers = marshal.load(file)  # noqa: S302 - written by a rank of the job
        yield number, seconds, failed, data, [memoryview(bytearray(buffer)) for buffer in buffers]

"""The messages between root and workers, a class for each kind, and their encoding.

    work channel   root to any worker   Calls, MapCalls
    reply channel  a worker to root     Results, MapResults, GivenBack, Wanted, InitializerFailed, TopLevelFailed,
                                        ChildDied
                   root to itself       Barrier

Encoding. A message is the number of its kind and its fields, by marshal: numbers, strings and bytes, of no subclass. Objects of
the user are pickled once, in the thread that submits or in the worker that ran the call, and are bytes from there on. Marshal takes
half the time of pickle for such tuples. All ranks run the same Python, which cloudpickle needs, too. Large pickles and buffers go
out of band: the channel copies them once, from where they are into the ring. A pickle that has buffers goes with them, so that
everything else about a long message is in its first slot: see `replacement`. If root and workers share memory the sender copies
them into a segment instead, whose name then takes their place: see _util/segments.

Calls and outcomes are plain tuples: a message has up to 256. To write, load and use 256 calls takes 45 us. With a NamedTuple, which
marshal refuses, it would take 115 us; with a subclass of tuple that names the fields, 89 us. For calls of a map see Row and Value.

To add a kind of message, add its class here and to `Reply`, and handle it in the collector; one of work to `Message`, and handle it
in Worker.
"""

import io
import marshal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, get_args

from mpiexecutor._liveness.status_page import LARGE
from mpiexecutor._util.pickling import OUT_OF_BAND
from mpiexecutor._util.segments import SegmentName, SegmentPool, SegmentReader

from .outcomes import Buffer, Location, failure_of

OF_ONE_CALL: Final = 3 * LARGE  # bytes of a message; one of several calls, or outcomes, has fewer
CALL_TOO_LARGE: Final = "this call is too large for its worker's memory"  # the beginning of an error
_FORMAT: Final = 2  # of marshal: later formats look for objects that are the same, which takes longer than writing them

# A call: its number; the state of the script's globals that it needs (None: its worker is the script's own process); the function,
# by its number (see functions.py) or its name in the script (None: it is in the pickle); the pickle of the function or None,
# arguments and keywords; the buffers of that, or the name of the segment in which they are.
Buffers = Sequence[memoryview] | SegmentName
Call = tuple[int, int | None, int | str | None, Buffer, Buffers]

# The outcome of a call: its number; the seconds that it ran; whether it failed; the pickle of its result, or its Failure as bytes;
# the buffers of that, or the name of the segment in which they are.
Outcome = tuple[int, float, bool, Buffer, Buffers]


# A call of a map: its arguments as they are, if each `goes_as_it_is`; else a pickle as in a Call.
Row = tuple[Any, ...] | Buffer

# The outcome of a call of a map: its result as it is, if it `goes_as_it_is`; a pickle of it; or its Failure as bytes, in a tuple.
Value = Any

_FIXED: Final = frozenset({type(None), bool, float, complex})  # types of what goes as it is
_SHORT: Final = 256  # most characters of a string that does, and most bits of a number
_LEAST_NUMBER, _MOST_NUMBER = 1 - (1 << _SHORT), (1 << _SHORT) - 1
MOST_ROWS: Final = 4096  # of a message; the numbers of calls are so far apart, and the calls of a map have those between


class Calls(NamedTuple):
    """Calls of one executor, which one worker runs one after another."""

    executor: int
    initializer: int | None  # its number, if the executor has one
    task_timeout: float  # seconds that each call may run; 0: any time
    serial: int  # of this message, among all of this executor
    per_child: int | None  # calls that a child process runs at the most, 0: any number; None: the worker runs them itself
    calls: list[Call]


class MapCalls(NamedTuple):
    """Calls of one map, which one worker runs one after another, each as if it were the only one."""

    executor: int
    initializer: int | None  # as in Calls, like the next
    task_timeout: float
    serial: int
    per_child: int | None
    number: int  # of the first call; those of the others follow
    state: int | None  # as in a Call, like the next
    called: int | str | None
    rows: list[Row]


class Results(NamedTuple):
    """Outcomes of calls of one executor."""

    rank: int  # of the worker, as in all replies
    executor: int
    outcomes: Sequence[Outcome]


class MapResults(NamedTuple):
    """Outcomes of consecutive calls of a map."""

    rank: int
    executor: int
    block: int  # the number of the message's first call
    first: int  # position in the message
    seconds: float  # that they ran, together
    values: list[Value]


class GivenBack(NamedTuple):
    """Calls that the worker has not begun, and returns for other workers; for calls of a map the number of the first."""

    rank: int
    executor: int
    behind_long_call: bool  # which this worker is running; else the executor has as many workers as it may have
    numbers: tuple[int, ...]


class Wanted(NamedTuple):
    """The worker waits for a function, an initializer, or a state of the script, by bulk transfer."""

    rank: int
    executor: int
    number: int  # of what is wanted
    known: int  # of the state that the worker is in; 0: none


class InitializerFailed(NamedTuple):
    """The executor's initializer has raised in this worker."""

    rank: int
    executor: int
    error: str  # its class and text
    trace: str  # its traceback


class TopLevelFailed(NamedTuple):
    """The top level of the script has raised in this worker, which goes on."""

    rank: int
    executor: int
    error: str
    trace: str


NO_MESSAGE: Final = -1  # the serial of none


class ChildDied(NamedTuple):
    """The child that ran isolated calls has died. The worker lives."""

    rank: int
    executor: int
    serial: int  # of the message that the child had; NO_MESSAGE: another child has that now
    host: str
    pid: int
    end: str  # how it ended, and so on: see WorkerFailure
    begun: int
    overdue: float
    cancelled: bool  # it was killed as its call was cancelled
    held: bytes


class Barrier(NamedTuple):
    """The root to itself: when it arrives, all replies that were put before it are collected; see lost_calls.py."""


class Encoded(NamedTuple):
    """A message in its encoding, which a worker forwards from its child to the root."""

    data: memoryview
    buffers: Sequence[memoryview]


Reply = Results | MapResults | GivenBack | Wanted | InitializerFailed | TopLevelFailed | ChildDied | Barrier
Message = Calls | MapCalls | Reply

_KINDS: Final[tuple[type[Message], ...]] = get_args(Message)
OF_MAP: Final = 2  # parts of what is held of a call of a map
_KIND_OF: Final = {each: kind for kind, each in enumerate(_KINDS)}


def dumps(message: Message | Encoded) -> tuple[bytes | memoryview, Sequence[memoryview]]:
    """Return the bytes of a message, and the buffers that go out of band. TypeError if it is none."""
    if isinstance(message, Encoded):
        return message
    kind = _KIND_OF.get(type(message))
    if kind is None:
        raise TypeError(f"no message of root or workers: {message!r:.50}")
    beside: list[memoryview] = []
    fields: tuple[Any, ...] = message
    if isinstance(message, (Results, Calls)):
        rows: Sequence[Any] = message[-1]
        for _, _, _, data, buffers in rows:
            if (buffers and type(buffers) is not bytes) or len(data) >= OUT_OF_BAND:
                fields = (*message[:-1], [_without_buffers(row, beside) for row in rows])
                break
    return marshal.dumps((kind, *fields), _FORMAT), beside


def loads(data: memoryview, buffers: Sequence[memoryview] = ()) -> Message:
    """Rebuild a message. ValueError if it is of no known kind."""
    number, *fields = marshal.loads(data)  # noqa: S302 - the ranks of a job trust each other: see the README
    if number >= len(_KINDS):
        raise ValueError(f"a message of an unknown kind, {number}")
    kind: Any = _KINDS[number]
    if buffers:
        beside = iter(buffers)
        fields[-1] = [_with_buffers(row, beside) for row in fields[-1]]
    message: Message = kind(*fields)
    return message


def _without_buffers(row: tuple[Any, ...], beside: list[memoryview]) -> tuple[Any, ...]:
    """Return a call or an outcome with the number of its buffers in their place. The first of them is its pickle, unless 0."""
    *fields, data, buffers = row
    if isinstance(buffers, SegmentName):
        return row
    if not buffers and len(data) < OUT_OF_BAND:
        return (*fields, data, 0)
    beside += (memoryview(data), *buffers)
    return (*fields, b"", 1 + len(buffers))


def _with_buffers(row: tuple[Any, ...], beside: Iterator[memoryview]) -> tuple[Any, ...]:
    *fields, data, count = row
    if isinstance(count, SegmentName):
        return row
    return (*fields, next(beside) if count else data, [next(beside) for _ in range(count - 1)])


def outcome_too_large(failed: bool) -> str:
    """Return the beginning of the error for an outcome for which the root has no memory."""
    what = "what this call raised" if failed else "the result of this call"
    return f"{what} is too large for the memory of the script's process"


def replacement(head: memoryview, size: int, location: Location) -> Results:
    """Return the failed outcome that replaces a message of one call, or of its outcome, for which there is no memory here.

    Args:
        head: What the message has in its first slot: all but its buffers.
        size: Its bytes.
        location: That of this process.

    """
    message: Any = loads(head)
    ((number, seconds, failed, *_),) = message[-1]
    if isinstance(message, Calls):
        rank, seconds, what = location.rank, 0.0, CALL_TOO_LARGE
    else:
        rank, what = message.rank, outcome_too_large(failed)
    failure = failure_of(MemoryError(f"{what}, {size} bytes when pickled"), location)
    return Results(rank, message.executor, ((number, seconds, True, *failure.dumps()),))


class SharedMemory:
    """Moves the large buffers of calls and outcomes through shared memory."""

    def __init__(self, most: int = 0, most_segments: int = 0) -> None:
        """Send at most `most` bytes in `most_segments` segments at a time; 0 if no process shares memory with this one."""
        self._pool = SegmentPool(most, most_segments)
        self._reader = SegmentReader()

    def put(self, data: Buffer, buffers: Buffers, is_wanted: Callable[[], object] = lambda: True) -> tuple[Buffer, Buffers]:
        """Put a pickle and its buffers into a segment, and return what replaces them; themselves if there is no segment for them.

        `is_wanted` says whether the receiver may still open the segment.
        """
        if isinstance(buffers, SegmentName):
            return data, buffers
        name = self._pool.put([memoryview(data), *buffers], is_wanted)
        return (data, buffers) if name is None else (b"", name)

    def get(self, data: Buffer, buffers: Buffers) -> tuple[Buffer, Sequence[memoryview]]:
        """Return a pickle and its buffers. Raise SegmentGone if the sender has died; OSError, MemoryError: see SegmentReader."""
        if not isinstance(buffers, SegmentName):
            return data, buffers
        pickle, *parts = self._reader.open(buffers)
        return pickle, parts

    def await_readers(self) -> None:
        """Wait until receivers have opened all segments, some seconds at most, as this process is about to end."""
        self._pool.await_readers()

    def close(self) -> None:
        """Free all segments that are not in use."""
        self._pool.close()
        self._reader.close()


def dump_outcome(outcome: Outcome) -> bytes:
    """Return an outcome as bytes, buffers included, for the status page of its worker."""
    number, seconds, failed, data, buffers = outcome
    return marshal.dumps((number, seconds, failed, data, *buffers), _FORMAT)


def goes_as_it_is(value: Any) -> bool:
    """Whether marshal can write an argument or a result, which is short and cannot be changed."""
    kind = type(value)
    if kind is int:
        number: int = value
        return _LEAST_NUMBER <= number <= _MOST_NUMBER
    return kind in _FIXED or (kind is str and len(value) <= _SHORT)


def dump_value(outcome: tuple[int, Value]) -> bytes:
    """Return the number of a call of a map and its outcome as bytes, for the status page of its worker."""
    return marshal.dumps(outcome, _FORMAT)


def load_outcomes(held: bytes) -> Iterator[Outcome | tuple[int, Value]]:
    """Yield the outcomes and values in these bytes, one behind the other. Any error if they are none. Buffers are writable."""
    file = io.BytesIO(held)
    while file.tell() < len(held):
        found = marshal.load(file)  # noqa: S302 - written by a rank of the job
        if len(found) == OF_MAP:
            yield found
        else:
            number, seconds, failed, data, *buffers = found
            yield number, seconds, failed, data, [memoryview(bytearray(buffer)) for buffer in buffers]

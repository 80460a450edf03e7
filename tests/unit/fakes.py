"""What unit tests put in the place of MPI: a channel made of a deque, workers that do what a test says, one step at a time.

A test submits calls by name, and each call's result is its name:

    crew.submit("a", "b") ──> a real Scheduler ──> crew.work ──> FakeWorker: take() gives ["a"], answer(), give_back(), die()
                                     ^                              |
                                     └──────── crew.replies <───────┘

Only this file knows what the messages look like.
"""

import os
import threading
import time
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from mpiexecutor._calls import messages
from mpiexecutor._calls.functions import Function, FunctionRegistry
from mpiexecutor._calls.map_results import map_results
from mpiexecutor._calls.messages import (
    Call,
    Calls,
    GivenBack,
    InitializerFailed,
    MapCalls,
    MapResults,
    Outcome,
    Results,
    Wanted,
    dump_outcome,
    dump_value,
    replacement,
)
from mpiexecutor._calls.options import Options
from mpiexecutor._calls.outcomes import Location, dumps_sized, failure_of, pickled
from mpiexecutor._calls.scheduling import dispatcher
from mpiexecutor._calls.scheduling.futures import slim_future
from mpiexecutor._calls.scheduling.scheduler import Scheduler
from mpiexecutor._calls.scheduling.session import Session
from mpiexecutor._calls.submission import Submitter
from mpiexecutor._calls.worker import Worker
from mpiexecutor._liveness.monitor import WorkerFailure
from mpiexecutor._liveness.status_page import NOTHING, StatusPage
from mpiexecutor._script.main_module import NotAdmitted
from mpiexecutor._script.root.script import Script
from mpiexecutor._util.pickling import Pickled, loads
from mpiexecutor.channel import ChannelClosed, ChannelFull, ChannelMemoryError, RemoteChannel, Share
from mpiexecutor.channel._codecs import codec_of

LIMIT = 20  # seconds that anything here may take
MANY = 1000
UNKNOWN = "a kind that has never been run"


def until(condition: Callable[[], object]) -> None:
    """Look until the condition holds."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.001)


def in_a_thread(function: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
    """Call in a thread; return the future of that."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


class FakeClock:
    """The time module, for one that tells no time of its own."""

    def __init__(self) -> None:
        self.now = 1000.0  # seconds

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def identity(name: Any) -> Any:
    return name


class FakeChannel:
    """A channel in this process: messages are pickled as in a real one, and wait in a deque until they are taken.

    A message has a number, as in a real one: how many came before.
    """

    def __init__(self) -> None:
        self.room = MANY  # messages that may wait here
        self.count = 0
        self.sizes: dict[int, int] = {}  # bytes, by number: of messages that no memory is large enough for
        self.error: BaseException | None = None  # what every take, and every put raises
        self.expected: Callable[[], bool] = lambda: True  # what the taker says
        self.sleeps = False  # as a test says
        self.roused = 0
        self._codec = codec_of(messages, 1 << 14)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, bytearray]] = deque()
        self._streams: deque[Future[None]] = deque()
        self._takers = 0
        self._held_back = False
        self._closed = False

    # -- what the product calls --------------------------------------------------------------------------------------------------

    def put(self, message: Any) -> None:
        """Put without waiting: what no test gives room to has some."""
        data = self._encode(message)
        with self._changed:
            self._append(data)

    def put_nowait(self, message: Any) -> None:
        data = self._encode(message)
        with self._changed:
            if self._streams or len(self._waiting) >= self.room:
                raise ChannelFull("no room")
            self._append(data)

    def putf(self, message: Any, *, copy: bool = True) -> Future[None]:
        """Begin to put, as a message does that is longer than the room: it can be taken, but its put is not over."""
        data = self._encode(message)
        future: Future[None] = Future()
        with self._changed:
            self._append(data)
            self._streams.append(future)
        return future

    def take_many(self, most: int, timeout: float | None = None) -> list[Any]:
        with self._changed:
            self._takers += 1
            self._changed.notify_all()
            come = self._changed.wait_for(lambda: (self._waiting and not self._held_back) or self._closed or self.error, timeout)
            self._takers -= 1
            if not come:
                raise TimeoutError("no message has come")
            if self.error is not None:
                raise self.error
            found: list[Any] = []
            while self._waiting and len(found) < most:
                number, data = self._waiting[0]
                if number in self.sizes:
                    if found:
                        break
                    raise ChannelMemoryError(number, self.sizes[number], bytes(data[: 1 << 14]))
                self._waiting.popleft()
                found.append(self._codec.decode(memoryview(data), shared=False))
            return found

    def spin_if(self, expected: Callable[[], bool]) -> None:
        self.expected = expected

    def rouse(self) -> None:
        self.roused += 1

    head = staticmethod(RemoteChannel.head)

    def skip(self, number: int) -> bool:
        with self._changed:
            if not self._waiting or self._waiting[0][0] != number:
                return False
            self._waiting.popleft()
            return True

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # -- what a test does --------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_number(self) -> int:
        """Which message a take would give."""
        return self._waiting[0][0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Have what is put meanwhile be taken in one go."""
        self._held_back = True
        yield
        with self._changed:
            self._held_back = False
            self._changed.notify_all()

    def end_stream(self, error: BaseException | None = None) -> None:
        """Have the put that takes long come to its end."""
        with self._changed:
            future = self._streams.popleft()
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def renumber(self, first: int) -> list[int]:
        """Have the messages that wait here have other numbers from now on; return those that they had."""
        with self._changed:
            kept = [number for number, _ in self._waiting]
            self._waiting = deque((first + index, data) for index, (_, data) in enumerate(self._waiting))
            self.count = first + len(kept)
            return kept

    def fail(self, error: BaseException) -> None:
        """Have every take and put fail from now on."""
        with self._changed:
            self.error = error
            self._changed.notify_all()

    def wait_until_read(self) -> None:
        """Wait until everything has been taken, and the taker is back for more: it has handled it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._takers and not self._waiting, LIMIT)

    def _encode(self, message: Any) -> bytearray:
        if self._closed:
            raise ChannelClosed("closed")
        if self.error is not None:
            raise self.error
        return bytearray().join(self._codec.encode(message))

    def _append(self, data: bytearray) -> None:
        self._waiting.append((self.count, data))
        self.count += 1
        self._changed.notify_all()


class FakeBulkTransfer:
    """Notes what is sent to each rank, and delivers it."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Pickled | None]] = []
        self._sent_to: defaultdict[int, SimpleQueue[Pickled | None]] = defaultdict(SimpleQueue)

    def send(self, rank: int, what: Pickled | None) -> None:
        self.sent.append((rank, what))
        self._sent_to[rank].put(what)

    def receive(self, rank: int) -> tuple[memoryview, list[Any]] | None:
        what = self._sent_to[rank].get(timeout=LIMIT)
        return None if what is None else (memoryview(bytearray(what.data)), [])

    def of(self, rank: int) -> Any:
        """Return them as a worker has them."""
        return SimpleNamespace(receive=partial(self.receive, rank))


class StillCheck:
    """A periodic check that looks when a test has it look."""

    def __init__(self, name: str, look: Callable[[], bool], *, every: float, times: int) -> None:
        self.look = look
        self.wanted = False

    def watch(self) -> None:
        self.wanted = True

    def stop(self) -> None:
        """Be as still as before."""


class FakeCrew:
    """A real scheduler, whose workers are a test's."""

    def __init__(self, workers: int) -> None:
        self.work, self.replies, self.bulk = FakeChannel(), FakeChannel(), FakeBulkTransfer()
        self.location = Location.here(0, workers + 1)
        self.scheduler = Scheduler(self.work, self.replies, self.bulk, workers, self.location)
        self._all_workers = workers
        self._default: Session | None = None

    @property
    def session(self) -> Session:
        """The session that is used where a test names no other."""
        if self._default is None:
            self._default = self.open()
        return self._default

    def function(self, function: Callable[..., Any]) -> Function:
        """Have something that calls go without: a worker asks for it."""
        return FunctionRegistry(self.scheduler.registry).add(function)

    def initializer(self, function: Callable[..., Any], *arguments: Any) -> Function:
        """Have an initializer."""
        return FunctionRegistry(self.scheduler.registry).add((function, arguments))

    @property
    def given(self) -> list[tuple[int, Any]]:
        """The answers to requests of workers: None if the object is not needed any more."""
        return [(rank, what and what.load()) for rank, what in self.bulk.sent]

    def open(self, most_workers: int | None = None, initializer: Function | None = None, **options: Any) -> Session:
        return self.scheduler.open(self._all_workers if most_workers is None else most_workers, initializer, Options(**options))

    def submit(
        self, *names: Any, session: Session | None = None, kind: object = UNKNOWN, size: int = 10, function: Function | None = None
    ) -> list[Future[Any]]:
        """Submit a call for each name; its result is the name."""
        futures = []
        for name in names:
            future = slim_future()
            what, _ = dumps_sized((None if function else identity, (name,), {}))
            self.scheduler.submit(session or self.session, future, kind, function, None, what, size)
            futures.append(future)
        return futures

    def map(
        self,
        function: Callable[..., Any],
        *iterables: Any,
        session: Session | None = None,
        timeout: float = LIMIT,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
        at_hand: bool = True,
    ) -> Iterator[Any]:
        """Have a map submit its calls; return the iterator over their results."""
        functions = FunctionRegistry(self.scheduler.registry)
        self.submitter = Submitter(self.scheduler, session or self.session, functions, None, self.location)
        return map_results(
            self.submitter,
            function,
            zip(*iterables, strict=False),
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            unordered=unordered,
            at_hand=at_hand,
        )

    def submit_named(self, name: str, script: Script, *, session: Session | None = None) -> Future[Any]:
        """Submit a call of a function that the script has under a name; its result is whatever that returns."""
        future = slim_future()
        what, size = dumps_sized((None, (), {}))
        self.scheduler.submit(session or self.session, future, UNKNOWN, name, script.state(frozenset({name})), what, size)
        return future

    def submit_call(
        self, function: Callable[..., Any], *arguments: Any, session: Session | None = None, kind: object = UNKNOWN
    ) -> Future[Any]:
        """Submit a call of something else, for a real worker."""
        future = slim_future()
        what, size = dumps_sized((function, arguments, {}))
        self.scheduler.submit(session or self.session, future, kind, None, None, what, size)
        return future

    def submit_one(self, name: Any, **how: Any) -> Future[Any]:
        return self.submit(name, **how)[0]

    def teach(self, kind: object, seconds: float) -> None:
        """Have the scheduler expect calls of a kind to take so long."""
        future = self.submit_one("taught", kind=kind)
        teacher = FakeWorker(self, 1)
        assert teacher.take() == ["taught"]
        teacher.answer(seconds=seconds)
        assert future.result(LIMIT) == "taught"
        self.settle()

    def session_of(self, worker: "FakeWorker") -> Session:
        """Return the session whose message a worker took last."""
        return next(session for session in self.scheduler.sessions() if session.number == worker.executor)

    def send_together(self, *names: Any, **options: Any) -> tuple[list[Future[Any]], "FakeWorker"]:
        """Send these in one message of an executor for one worker; return their futures, and the worker that has taken it."""
        self.teach("short", 0.0)
        session = self.open(1, **options)
        self.submit("goes before", session=session, kind="short")
        futures = self.submit(*names, session=session, kind="short")
        worker = FakeWorker(self, 1)
        assert worker.take() == ["goes before"]
        worker.answer()
        self.settle()
        assert worker.take() == list(names)
        return futures, worker

    def settle(self) -> None:
        """Wait until the collector has done all there is to do for now."""
        self.replies.wait_until_read()

    def look(self, times: int = 1) -> None:
        """Have the scheduler see which messages are slow."""
        for _ in range(times):
            self.scheduler._dispatcher._slow_check.look()

    def take_all(self, rank: int = 1) -> list[list[Any]]:
        """Have one worker take every message that is there; return the names of their calls."""
        worker = FakeWorker(self, rank)
        return [worker.take() for _ in range(len(self.work))]

    def end(self) -> None:
        """End the scheduler's threads."""
        self.replies.error = None
        in_a_thread(self.scheduler.stop).result(LIMIT)


@contextmanager
def fake_crew(workers: int = 2) -> Iterator[FakeCrew]:
    """Make a crew; at the end its threads end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "PeriodicCheck", StillCheck)
        crew = FakeCrew(workers)
    try:
        yield crew
    finally:
        crew.end()


class FakeWorker:
    """A worker that does what a test says."""

    def __init__(self, crew: FakeCrew, rank: int) -> None:
        self._crew = crew
        self.rank = rank
        self.message: int | None = None  # the number of the message that it took last
        self.executor = 0  # of that, as are the rest
        self._initializer: int | None = None
        self.task_timeout = 0.0
        self._block: int | None = None  # the number of the message's first call if they are of a map
        self._functions: list[Any] = []
        self._state: int | None = None
        self._numbers: dict[Any, int] = {}  # of calls, by name

    def take(self) -> list[Any]:
        """Take the next message, which is there already; return the names of its calls."""
        assert len(self._crew.work), "nothing was sent"
        message = self._crew.work.next_number
        ((self.executor, self._initializer, self.task_timeout, _, _, calls),) = self._crew.work.take_many(1)
        self.message = message
        self._functions = [function for _, _, function, _, _ in calls]
        self._state = calls[0][1]
        self._numbers = {(loads(data, buffers)[1] or (function,))[0]: number for number, _, function, data, buffers in calls}
        return list(self._numbers)

    def take_map(self) -> list[Any]:
        """Take the next message, which has calls of a map; return the first argument of each."""
        assert len(self._crew.work), "nothing was sent"
        self.message = self._crew.work.next_number
        (message,) = self._crew.work.take_many(1)
        assert isinstance(message, MapCalls)
        self.executor, self.task_timeout, self._block = message.executor, message.task_timeout, message.number
        names = [(row if isinstance(row, tuple) else loads(row)[1])[0] for row in message.rows]
        self._numbers = {name: message.number + position for position, name in enumerate(names)}
        return names

    def answer_map(self, *names: Any, seconds: float = 0.0, values: Sequence[Any] | None = None) -> None:
        """Reply the results of consecutive calls of the map, or of all: their names, or other values."""
        names = names or tuple(self._numbers)
        first = self._numbers[names[0]] - self._block
        found = list(names if values is None else values)
        self._crew.replies.put(MapResults(self.rank, self.executor, self._block, first, seconds * len(found), found))

    def give_back_from(self, name: Any) -> None:
        """Return back the calls of the map from this one on, as they wait behind a long one."""
        self._crew.replies.put(GivenBack(self.rank, self.executor, True, (self._numbers[name],)))

    def answer(self, *names: Any, seconds: float = 0.0, value: Any = None) -> None:
        """Reply what became of some calls of the message, or of all: their names, or another value."""
        self._results([self._outcome(name, seconds, value) for name in names or self._numbers])

    def fail(self, name: Any, error: BaseException) -> None:
        """Reply that a call has raised this."""
        self._results([(self._numbers[name], 0.0, True, *failure_of(error, self._location).dumps())])

    def give_back(self, *names: Any) -> None:
        """Return calls back that wait behind a long one."""
        self._crew.replies.put(GivenBack(self.rank, self.executor, True, tuple(self._numbers[name] for name in names)))

    def ask(self) -> None:
        """Ask for the function of its message's first call, or for the initializer if there is one."""
        self._crew.replies.put(Wanted(self.rank, self.executor, self._initializer or self._functions[0], 0))

    def ask_for_state(self) -> Any:
        """Ask for the state of its message's first call; return the difference, or None, having given its calls back, if it may not
        run them."""
        given = len(self._crew.bulk.sent)
        self._crew.replies.put(Wanted(self.rank, self.executor, self._state, 0))
        until(lambda: len(self._crew.bulk.sent) > given)
        rank, answer = self._crew.given[given]
        assert rank == self.rank
        if isinstance(answer, NotAdmitted):
            self._crew.replies.put(GivenBack(self.rank, self.executor, behind_long_call=False, numbers=(*self._numbers.values(),)))
            self._crew.settle()
            return None
        return answer[""]

    def answer_at_length(self, name: Any, size: int | None = None) -> None:
        """Reply what became of a call, by itself; with a size it is so many bytes, for which there is no memory."""
        if size is not None:
            self._crew.replies.sizes[self._crew.replies.count] = size
        self.answer(name)

    def answer_in_lost_memory(self, name: Any) -> None:
        """Reply what became of a call, in the memory of a process that has ended."""
        lost = array("q", [1 << 30, 3, 1, 4096, 1, 10]).tobytes()  # no process has such a number
        self._results([(self._numbers[name], 0.0, False, b"", lost)])

    def fail_initializer(self, error: BaseException) -> None:
        """Reply that the initializer has raised this."""
        name, text, trace, _ = failure_of(error, self._location)
        self._crew.replies.put(InitializerFailed(self.rank, self.executor, f"{name}: {text}", trace))

    def throw_away(self, size: int = 1 << 30) -> None:
        """Have no memory for the next message, and say so."""
        self.message = number = self._crew.work.next_number
        self._crew.work.sizes[number] = size
        with pytest.raises(ChannelMemoryError) as caught:
            self._crew.work.take_many(1)
        assert self._crew.work.skip(number)
        self._crew.replies.put(replacement(self._crew.work.head(caught.value), size, self._location))

    def die(
        self, begun: Any = NOTHING, *, holding: Sequence[Any] = (), held: bytes | None = None, overdue: float = 0.0
    ) -> WorkerFailure:
        """Die, having begun that call of its message, and keeping what became of some: the scheduler is told."""
        loss = self.loss(begun, holding=holding, held=held, overdue=overdue)
        share = None if self.message is None else Share(self.rank, range(self.message, self.message + 1), received=True)
        self._crew.scheduler.lose(loss, share)
        return loss

    def loss(
        self, begun: Any = NOTHING, *, holding: Sequence[Any] = (), held: bytes | None = None, overdue: float = 0.0
    ) -> WorkerFailure:
        """Return what its supervisor would report of its death."""
        number = self._numbers.get(begun, begun)
        if held is None:
            page = new_page()
            for name in holding:
                of_map = self._block is not None
                page.hold(dump_value((self._numbers[name], name)) if of_map else dump_outcome(self._outcome(name)))
            held = page.held
        return WorkerFailure(self.rank, "host", 1000 + self.rank, "was killed by SIGKILL", number, overdue, held=held)

    def _outcome(self, name: Any, seconds: float = 0.0, value: Any = None) -> Outcome:
        return (self._numbers[name], seconds, False, *pickled(name if value is None else value))

    @property
    def _location(self) -> Location:
        return Location(self.rank, self._crew.location.ranks, "host", 1000 + self.rank)

    def _results(self, outcomes: list[Outcome]) -> None:
        self._crew.replies.put(Results(self.rank, self.executor, outcomes))


def reply_nonsense(crew: FakeCrew) -> None:
    """Have the collector find a message that is no reply."""
    crew.replies.put(Calls(0, None, 0.0, 1, None, [bare_call(0)]))


def bare_call(number: int) -> Call:
    """Make a call as a worker has it in its batch, of which only the number is read."""
    return number, None, None, b"", ()


def bare_outcome(number: int) -> Outcome:
    """Make what became of one."""
    return number, 0.0, False, b"value", ()


def new_page() -> StatusPage:
    """Make one that keeps outcomes."""
    page, descriptor = StatusPage.new()
    os.close(descriptor)
    return page


class _Some:
    """A channel of which a worker may take so many messages, and then none will come any more."""

    def __init__(self, channel: FakeChannel, messages: int) -> None:
        self._channel = channel
        self._left = messages
        self.skip, self.head = channel.skip, channel.head

    def take_many(self, most: int) -> list[Any]:
        if not self._left:
            return []
        self._left -= 1
        return self._channel.take_many(most, LIMIT)


def serve(worker: Worker, messages: int) -> None:
    """Have a real worker take so many more messages."""
    worker._work._left = messages
    worker.serve()


def real_worker(crew: FakeCrew, messages: int = MANY, rank: int = 1, page: StatusPage | None = None, **how: Any) -> Worker:
    """Make a real worker, which takes so many messages and then leaves."""
    how.setdefault("fail", pytest.fail)
    location = Location(rank, crew.location.ranks, "host", 1000 + rank)
    return Worker(_Some(crew.work, messages), crew.replies, crew.bulk.of(rank), location, page or new_page(), **how)

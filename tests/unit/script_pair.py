"""A script and its workers in this process, without MPI: which of them it is, is switched.

    pair = Pair("factor = 2\\ndef double(x): return factor * x", Origin.NOTHING, folder)
    pair.run("factor = 3")             a statement of the script
    pair.call("double(5)")             the call's way: submit, names, state, pickle, worker 1, run, pickle of the result, the script
    pair.call("double(5)", worker=2)   the same on another worker

Executors are real ones; a scheduler that only notes what they submit stands in for the way to the workers.

Each side has a module `__main__`, surroundings and generators of its own, which are there while it is that side's turn.
"""

import ast
import io
import itertools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from mpiexecutor import RMAChannelExecutor
from mpiexecutor._calls.bulk import Pages
from mpiexecutor._calls.functions import Function, FunctionCache
from mpiexecutor._calls.messages import Row
from mpiexecutor._calls.options import Options
from mpiexecutor._calls.outcomes import Location, error_from, failure_of, pickled, with_cause
from mpiexecutor._calls.scheduling.series import Series
from mpiexecutor._calls.scheduling.session import Session
from mpiexecutor._script.main_module import MainModules
from mpiexecutor._script.names import LOOKUP, MAIN, function_of
from mpiexecutor._script.pickling import load_definitions
from mpiexecutor._script.random_generators import STREAM, GeneratorStates
from mpiexecutor._script.state import Origin, Registry, State
from mpiexecutor._script.surroundings import Snapshot
from mpiexecutor._util.pickling import Pickled

OTHER = "__mp_main__"
GUARD = '\nif __name__ == "__main__":\n    is_script = True\n'


def script_of(text: str) -> ModuleType:
    """Run a script's lines in a module of their own, which is `__main__` from here on."""
    module = ModuleType(MAIN)
    sys.modules[MAIN] = module
    exec(text, vars(module))
    return module


@contextmanager
def own_main() -> Iterator[None]:
    """Have what belongs to `__main__` now again at the end."""
    side = _Side()
    side.save()
    try:
        yield
    finally:
        side.restore()


class _Side:
    """What a process has of its own."""

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType | None] = {}

    def save(self) -> None:
        self._modules = {name: sys.modules.get(name) for name in (MAIN, OTHER)}
        self._bring, self._key = LOOKUP.bring, STREAM.key
        self._kept, self._generators = Snapshot(), GeneratorStates()

    def restore(self) -> None:
        modules, self._modules = self._modules, {}  # nothing here keeps a module that is replaced
        for name, module in modules.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        LOOKUP.bring, STREAM.key = self._bring, self._key
        self._kept.restore()
        self._generators.restore()

    def copy(self) -> "_Side":
        """Return a process that begins as this one was, but for generators of random numbers: they have seeds of their own."""
        side = _Side()
        states = GeneratorStates()
        random.seed()
        np.random.seed()  # noqa: NPY002 - the module's own generator
        vars(side).update(vars(self), _modules={}, _bring=None, _key=(), _generators=GeneratorStates())
        states.restore()
        return side

    def set_main(self, module: ModuleType | None) -> None:
        self._modules[MAIN] = module
        self._modules[OTHER] = None


@dataclass(frozen=True, eq=False)
class Call:
    """A call that was submitted."""

    executor: int
    state: State
    called: Function | str | None  # what it names instead of having a function of its own
    arguments_pickle: Pickled


@dataclass(frozen=True)
class Fetched:
    """What a worker has asked the script for."""

    worker: int
    names: frozenset[str] | None  # qualified names of the values in a payload; None: it is a state
    size: int


class Scheduler:
    """Notes what executors submit."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.submitted: dict[object, Call] = {}  # by future; calls of maps have none
        self._numbers = itertools.count(1)

    def open(self, _most: int, _initializer: Function | None, _options: Options, *, isolable: bool) -> Session:
        return Session(next(self._numbers), 1, None)

    def submit(
        self,
        session: Session,
        future: Future[Any],
        _kind: object,
        called: Function | str | None,
        state: State,
        arguments_pickle: Pickled,
        _size: int,
    ) -> None:
        self.submitted[future] = Call(session.number, state, called, arguments_pickle)

    def append(self, session: Session, series: Series, rows: Sequence[Row]) -> None:
        for row in rows:
            pickle = pickled((None, row, {})) if isinstance(row, tuple) else Pickled(row)
            self.submitted[object()] = Call(session.number, series.state, series.function, pickle)

    def check_open(self, session: Session) -> None:
        """Nothing closes it."""

    def drop(self, session: Session) -> None:
        """Executors end when a test says so: see Pair.ended."""


class Executor:
    """One executor of the script."""

    def __init__(self, scheduler: Scheduler, origin: Origin) -> None:
        pool: Any = SimpleNamespace(
            scheduler=scheduler,
            origin=lambda: origin,
            location=Location(0, 3, "host", 1000),
            workers=2,
            alone=False,
            without_supervisor=[],
            closed=False,
            check=lambda: None,
        )
        self.real = RMAChannelExecutor.__new__(RMAChannelExecutor)
        self.real._join(pool, Options())
        self.number = self.real._session.number


class Worker:
    """One worker of the script."""

    def __init__(self, pair: "Pair", rank: int, side: _Side) -> None:
        self.location = Location(rank, 3, "host", 1000 + rank)
        self.side = side
        self.functions = FunctionCache(self, self._ask)
        self.modules = MainModules(
            rank, lambda number, known: pair._fetch(rank, number, known), pair.failures.append, self.functions.forget
        )
        self._pair = pair
        self._wanted = 0

    def receive(self) -> tuple[memoryview, list[Pages]] | None:
        """Return the function that the functions has asked for."""
        function = self._pair.registry.find(self._wanted)
        if function is None:
            return None
        data, buffers = function.pickled(0, [])
        pages = [Pages(len(buffer)) for buffer in buffers]
        for page, buffer in zip(pages, buffers, strict=True):
            page.view[:] = buffer
        return memoryview(bytearray(data)), pages

    def _ask(self, number: int) -> bool:
        self._wanted = number
        return True


class Pair:
    """A script, whose top level is this text, and its workers."""

    def __init__(self, text: str, origin: Origin, folder: Path) -> None:
        self.origin = origin
        self.registry = Registry()
        self._scheduler = Scheduler(self.registry)
        self.fetched: list[Fetched] = []
        self.failures: list[BaseException] = []  # of the top level in workers
        self.ended: list[int] = []  # executors that a worker is told of when it asks next
        self._executors = 0
        self._default: Executor | None = None
        self._initial = _Side()
        self._initial.save()
        self._current = self._root = _Side()
        self._text = dedent(text)
        self._workers: dict[int, Worker] = {}
        self.main = ModuleType(MAIN)
        sys.modules[MAIN] = self.main
        sys.modules.pop(OTHER, None)
        LOOKUP.bring = None
        source = self._text + (GUARD if origin is Origin.TOP_LEVEL else "")
        file = folder / f"script_{id(self)}.py"
        file.write_text(source)
        self.main.__file__ = str(file)
        exec(compile(source, str(file), "exec"), vars(self.main))

    def close(self) -> None:
        """End. Files that the script leaves open are closed, or a later test would be warned of them."""
        self._initial.restore()
        modules = [each._module for worker in self._workers.values() for each in worker.modules._modules.values()]
        for module in (self.main, *filter(None, modules)):
            for value in vars(module).values():
                if isinstance(value, io.IOBase) and Path(str(getattr(value, "name", ""))).is_absolute():
                    value.close()

    def run(self, text: str) -> None:
        """Run more lines of the script."""
        exec(dedent(text), vars(self.main))

    def get(self, expression: str) -> Any:
        """Return what the script has."""
        return eval(expression, vars(self.main))

    def executor(self) -> Executor:
        """Make another executor. That of ranks that have run the script is the first only, as WorkerPool has it."""
        self._executors += 1
        origin = Origin.NOTHING if self.origin is Origin.RANK and self._executors > 1 else self.origin
        return Executor(self._scheduler, origin)

    @property
    def default(self) -> Executor:
        if self._default is None:
            self._default = self.executor()
        return self._default

    def submit(self, call: str, executor: Executor | None = None) -> Call:
        """Submit a call, given as its text."""
        node = ast.parse(call, mode="eval").body
        assert isinstance(node, ast.Call)
        function = self.get(ast.unparse(node.func))
        arguments = tuple(self.get(ast.unparse(argument)) for argument in node.args)
        keywords = {keyword.arg: self.get(ast.unparse(keyword.value)) for keyword in node.keywords}
        future = (executor or self.default).real.submit(function, *arguments, **keywords)
        if future.done():
            future.result()
        return self._scheduler.submitted.pop(future)

    def map(self, function: str, iterable: Iterable[Any], executor: Executor | None = None, **options: Any) -> list[Call]:
        """Have calls submitted by map; return them."""
        results = (executor or self.default).real.map(self.get(function), iterable, **options)
        calls = [*self._scheduler.submitted.values()]
        self._scheduler.submitted.clear()
        del results  # only now: it cancels them
        return calls

    def call(self, call: str, worker: int = 1, executor: Executor | None = None) -> Any:
        """Have a worker run a call; return its result, or raise its error, as the script has it."""
        return self.finish(self.submit(call, executor), worker)

    def finish(self, call: Call, worker: int = 1) -> Any:
        """Have a worker run a call that was submitted."""
        value, failure = self._in_worker(worker, lambda own: self._run(own, call))
        if failure is not None:
            raise error_from(failure)
        return value.load()

    def functions(self, worker: int = 1) -> FunctionCache:
        """Return the functions that a worker keeps."""
        return self._workers[worker].functions

    def inside(self, expression: str, worker: int = 1, executor: Executor | None = None) -> Any:
        """Look at the `__main__` of a worker itself, not by a call."""
        executor = executor or self.default

        def look(own: Worker) -> Any:
            own.modules.enter(executor.number)
            return eval(expression, vars(sys.modules[MAIN]))

        return self._in_worker(worker, look)

    def _run(self, own: Worker, call: Call) -> tuple[Any, Any]:
        module = own.modules.enter(call.executor)
        try:
            module.bring_to(call.state.number)
            function, arguments, keywords = call.arguments_pickle.load()
            if isinstance(call.called, str):
                function = function_of(call.called)
            elif call.called is not None:
                function = own.functions.get(call.called.number, call.executor)
            return pickled(function(*arguments, **keywords), module.has), None
        except BaseException as error:
            return None, failure_of(module.explain(error), own.location, module.has)

    def _fetch(self, rank: int, number: int, known: int) -> Any:
        with self._turn_of(self._root):
            shared = self.registry.find(number)
            if shared is None:
                raise LookupError("nobody has this number")
            ended, self.ended = self.ended, []
            try:
                data, buffers = shared.pickled(known, ended)
            except Exception as error:
                data, buffers = pickled(with_cause(error, Location(0, 3, "host", 1000)))
            names = None if isinstance(shared, State) else frozenset(shared._values)
            self.fetched.append(Fetched(rank, names, len(data) + sum(map(len, buffers))))
        found = load_definitions(data, [bytearray(buffer) for buffer in buffers])
        if isinstance(found, BaseException):
            raise found
        return found

    def _in_worker(self, rank: int, function: Callable[[Worker], Any]) -> Any:
        worker = self._workers.get(rank)
        if worker is None:
            worker = self._workers[rank] = self._new_worker(rank)
        with self._turn_of(worker.side):
            return function(worker)

    def _new_worker(self, rank: int) -> Worker:
        side = self._initial.copy()
        own = ModuleType(MAIN)
        side.set_main(own)
        with self._turn_of(side):
            if self.origin is Origin.RANK:
                exec(compile(self._text, self.main.__file__, "exec"), vars(own))
            return Worker(self, rank, side)

    @contextmanager
    def _turn_of(self, side: _Side) -> Iterator[None]:
        before, self._current = self._current, side
        before.save()
        side.restore()
        try:
            yield
        finally:
            side.save()
            before.restore()
            self._current = before

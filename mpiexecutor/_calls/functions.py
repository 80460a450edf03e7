"""Functions that many calls share are sent to each worker once: those of maps, and closures that a script submits repeatedly.

The root pickles such a function once, under a number, and calls carry the number. A worker that does not have the function asks for
it, gets it by bulk transfer, and keeps it.

    root: FunctionRegistry ──── call with a number ────> worker: FunctionCache
                  ^                                          |
                  └────────────── Wanted: the number ────────┘
                  └─────────────── bulk transfer ───────────>

A function of the script has a name and needs no number: see _script. A function with a number may refer to such functions, and to
classes, by name: while one of these names is bound to something else, the function is pickled with every call.

Sharing has the same effects as pickling the function with every call. On the root, submit sends only functions by number, and only
while nothing has changed that their pickles depend on. On a worker calls share a plain function, as with multiprocessing. Any other
object (a partial, a callable object) is rebuilt for every call, from copies of its buffers: no call sees changes by another one.
"""

import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from cloudpickle.cloudpickle import list_registry_pickle_by_value

from mpiexecutor._script.names import MAIN, MISSING, NAMED_KINDS, content_of, held_by, main_dict, name_of
from mpiexecutor._script.pickling import dumps
from mpiexecutor._script.state import Registry
from mpiexecutor._util.pickling import Pickled, loads

from .bulk import BulkTransfer, Pages

_LARGE = 16 << 10  # bytes: a smaller object that is no function is pickled with every call
_KEPT = 64  # most functions in a worker's cache
_KEPT_BYTES = 256 << 20  # most bytes of them together, unless the newest alone has more
_GONE = object()  # stands for a value that does not exist any more: None is a value
_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...))


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Function:
    """A function with a number, on the root. The registry finds it as long as a call or a map refers to it."""

    number: int
    pickle: Pickled
    names: frozenset[str]  # of the globals of the script that it needs
    bound: tuple[tuple[str, Callable[[], object]], ...] = ()  # the functions, classes and objects that its pickle may name

    def names_are_unchanged(self) -> bool:
        """Return whether the names in its pickle still mean what they meant when it was made: workers look them up later."""
        if not self.bound:
            return True
        main = main_dict()
        for name, value in self.bound:  # noqa: SIM110 - no generator: every call of a map comes through here
            if main.get(name, MISSING) is not value():
                return False
        return True

    def pickled(self, _known: int = 0, _ended: object = None) -> Pickled:
        return self.pickle


class FunctionRegistry:
    """The functions of one executor that have numbers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known_functions: dict[int, _Known] = {}  # by id

    def add(self, what: object) -> Function:
        """Pickle a callable, or an initializer with its arguments, under a new number. Raise the error of pickling it."""
        names: set[str] = set()
        pickle = Pickled(*dumps(what, names))
        function = Function(self._registry.next(), pickle, frozenset(names), _bound(names))
        self._registry.add(function.number, function)
        return function

    def mapped(self, fn: Callable[..., Any]) -> Function | None:
        """Return the function that a map sends by number; None if this is small, and is pickled with every call."""
        if type(fn) is FunctionType:
            return self._known(fn).numbered(self.add) or self.add(fn)
        function = self.add(fn)
        return function if function.pickle.size >= _LARGE else None

    def submitted(self, fn: Callable[..., Any]) -> Function | None:
        """Return the function that submit sends by number; None if it is pickled with this call, as at first and after a change."""
        if type(fn) is not FunctionType:
            return None
        known = self._known(fn)
        if known.function is not None and known.is_unchanged():
            return known.function
        return known.numbered(self.add) if known.seen_before() else None

    def _known(self, fn: FunctionType) -> "_Known":
        table, key = self._known_functions, id(fn)
        if (known := table.get(key)) is None:
            known = table[key] = _Known(weakref.ref(fn, lambda _: table.pop(key, None)))
        return known


def _bound(names: Iterable[str]) -> tuple[tuple[str, Callable[[], object]], ...]:
    """Note what has these names, if a pickle can refer to it by name: weakly, where that is possible."""
    main = main_dict()
    values = [(name, main.get(name)) for name in names]
    may_be_named = [each for each in values if isinstance(each[1], NAMED_KINDS) or type(each[1]).__module__ == MAIN]
    return tuple((name, _reference(value)) for name, value in may_be_named)


def _reference(value: Any) -> Callable[[], object]:
    """Return what returns a value, which it refers to weakly if that is possible: a function may refer to itself."""
    try:
        weak = weakref.ref(value)
    except TypeError:
        return lambda: value
    return lambda: _GONE if (found := weak()) is None else found


class _Known:
    """A function that was submitted, or mapped, before."""

    def __init__(self, reference: "weakref.ref[FunctionType]") -> None:
        self._reference = reference
        self._seen = False
        self._dependencies: Dependencies | None = None
        self.function: Function | None = None  # as it was sent by number last

    def is_unchanged(self) -> bool:
        """Whether nothing has changed since the last look."""
        return self._dependencies is not None and self._dependencies.unchanged()

    def seen_before(self) -> bool:
        """Whether it was submitted before, and has not changed since."""
        if self.is_unchanged():
            return True
        seen, self._seen = self._seen, True
        if seen:  # only now: most functions are submitted once, and a look takes time
            self._look()
        return False

    def numbered(self, add: Callable[[object], Function]) -> Function | None:
        """Return it with its number; None if it has to be pickled with every call. Two threads may each number it."""
        if not self.is_unchanged():
            self._look()
        function = self.function
        if function is None and self._dependencies is not None and (fn := self._reference()) is not None:
            function = self.function = add(fn)
        return function

    def _look(self) -> None:
        fn = self._reference()
        self.function = None
        self._dependencies = None if fn is None else Dependencies.of(fn)


class Dependencies:
    """The objects that the pickle of a function depends on, if every change of them can be detected. Refers to functions weakly.

    Globals of the script are no part of the pickle: they have their own versions.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._named: list[weakref.ref[Any]] = []  # functions and classes that are pickled as their names in the script

    @classmethod
    def of(cls, fn: FunctionType) -> "Dependencies | None":
        """Return them, with those of the functions that this one refers to; None if something can change unseen."""
        found = cls()
        waiting, seen = [fn], {fn}
        while waiting:
            function = waiting.pop()
            if _goes_by_name(function):
                found._note_names(function)
                continue
            if function.__dict__ or function.__globals__ is not main_dict():
                return None
            found._parts.append(_Part(function))
            for value in held_by(function):
                if isinstance(value, FunctionType) and value not in seen:
                    seen.add(value)
                    waiting.append(value)
                elif not isinstance(value, FunctionType) and value is not MISSING:
                    if not _never_changes(value):
                        return None
                    found._note_names(value)
        return found

    def _note_names(self, value: Any) -> None:
        """Note a function or class whose name the script may bind to something else."""
        if type(value) is tuple:
            for part in value:
                self._note_names(part)
        elif isinstance(value, (type, FunctionType)) and value.__module__ == MAIN:
            self._named.append(weakref.ref(value))

    def unchanged(self) -> bool:
        """Whether nothing has changed."""
        for part in self._parts:  # no generator, for speed: each submit comes here
            if not part.unchanged():
                return False
        return not self._named or all(name_of(named()) is not None for named in self._named)


class _Part:
    """What the pickle of one function depends on: code, defaults, closure."""

    def __init__(self, fn: FunctionType) -> None:
        self._fn = weakref.ref(fn)
        self._code = fn.__code__
        self._defaults = fn.__defaults__
        self._keywords = fn.__kwdefaults__
        self._contents = [_reference(content_of(cell)) for cell in fn.__closure__ or ()]

    def unchanged(self) -> bool:
        fn = self._fn()
        if (
            fn is None
            or fn.__code__ is not self._code
            or fn.__defaults__ is not self._defaults
            or fn.__kwdefaults__ is not self._keywords
            or fn.__dict__
        ):
            return False
        return not self._contents or all(
            content_of(cell) is held() for cell, held in zip(fn.__closure__ or (), self._contents, strict=True)
        )


def _never_changes(value: object) -> bool:
    """Whether a value's pickle is the same at any time."""
    if isinstance(value, ModuleType):
        return sys.modules.get(value.__name__) is value
    if type(value) is tuple:
        return all(map(_never_changes, value))
    return type(value) in _ATOMS or (isinstance(value, (type, FunctionType, BuiltinFunctionType)) and _goes_by_name(value))


def _goes_by_name(value: Any) -> bool:
    """Whether a function or class is pickled as its name."""
    if type(value.__module__) is not str or list_registry_pickle_by_value():
        return False
    if value.__module__ == MAIN:
        return name_of(value) is not None
    found: object = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


class FunctionCache:
    """The functions of a worker: the 64 that were used last, of 256 MiB together at most."""

    def __init__(self, bulk: BulkTransfer, ask: Callable[[int], bool]) -> None:
        """Make an empty one. `ask` requests a function from the root; it returns False if the root does not answer any more."""
        self._bulk = bulk
        self._ask = ask
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # the last is the one used last
        self._executors: dict[int, int] = {}  # whose function it is, by number

    def get(self, number: int, executor: int = 0) -> Any:
        """Return the function of an executor. Raise the error of unpickling it, or LookupError if the root has dropped it."""
        kept = self._kept.get(number)
        if kept is None:
            kept = self._kept[number] = self._fetch(number)
            self._executors[number] = executor
            while len(self._kept) > _KEPT or (len(self._kept) > 1 and sum(map(len, self._kept.values())) > _KEPT_BYTES):
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(number)
        return kept.get()

    def take(self, number: int) -> Any:
        """Return a function that is called once, and forget it."""
        try:
            return self.get(number)
        finally:
            self._kept.pop(number, None)
            self._executors.pop(number, None)

    def forget(self, executors: Iterable[int]) -> None:
        """Forget the functions of executors that have ended."""
        ended = set(executors)
        for number in [number for number, executor in self._executors.items() if executor in ended or number not in self._kept]:
            self._kept.pop(number, None)
            del self._executors[number]

    def _fetch(self, number: int) -> "_Kept":
        transfer = self._bulk.receive() if self._ask(number) else None
        if transfer is None:
            raise LookupError("the function of this call is not needed any more")  # the root ignores the outcome
        return _Kept(*transfer)


class _Kept:
    """A pickled function, and the function itself if calls may share it."""

    def __init__(self, data: memoryview, buffers: list[Pages]) -> None:
        self._data = data
        self._buffers = buffers
        self._shared: Any = None

    def __len__(self) -> int:
        """Bytes."""
        return len(self._data) + sum(map(len, self._buffers))

    def get(self) -> Any:
        if self._shared is not None:
            return self._shared
        function = loads(self._data, [buffer.copy() for buffer in self._buffers])
        if isinstance(function, (FunctionType, BuiltinFunctionType, type)):
            self._shared = function
        return function

"""What root and workers exchange about the script's globals: versions, states and payloads.

Theory of operation
    A *version* is one binding of a global ("scale", "Model"), or of an attribute of a function or class of the script
    ("Model.level"); both have a qualified name. The root makes a version when a call needs a global for the first time, and again
    when the script has bound the name to another object since the last call that needed it.

    A *payload* is the pickled value of a version. Globals that refer to each other share one payload.

    A *state* is a table: the version of each global that calls of the executor have needed so far. A call names its state by
    number.

    A worker that is in another state asks for the *difference*: all versions that are newer than its own state. Small payloads
    are part of the difference; the worker asks for larger ones by number, and only for those that it needs. A worker that has run
    the top level of the script has globals of its own. Versions then have a *digest*, and the worker needs a payload only if its
    own value has another digest.

Invariants
    Numbers of versions, payloads and states come from one counter, so a later one is larger.
    A value is pickled when a call first needs it, in the thread that submits the call: the call gets the value of that moment. Only
    functions, classes and functions in classes may be pickled later, when a worker asks: nothing can change them in place.
    A payload refers to other globals by name only.
    A version and its payload live as long as a state that has them. A state lives as long as a call that needs it; the newest state
    lives as long as the executor.
"""

import itertools
import pickle
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol

from mpiexecutor._util.pickling import Pickled

from .names import main_dict
from .pickling import dump_definitions, identities_of
from .random_generators import ModuleSeeds
from .surroundings import Surroundings
from .top_level import TopLevel

_INLINE: Final = 16 << 10  # bytes: the largest payload that is part of a difference


class Origin(Enum):
    """Where a worker gets its `__main__` from."""

    TOP_LEVEL = auto()  # the worker runs the top level of the script
    RANK = auto()  # the worker has run the script itself, up to the executor
    NOTHING = auto()  # everything comes from the root


class Shared(Protocol):
    """An object on the root that workers ask for by its number."""

    def pickled(self, known: int, ended: list[int]) -> Pickled:
        """Return it for a worker that is in state `known`; `ended` are executors that the worker may forget."""


class Registry:
    """All objects that workers may ask for, by number. It keeps none of them alive."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._shared: weakref.WeakValueDictionary[int, Shared] = weakref.WeakValueDictionary()

    def next(self) -> int:
        """Return a new number."""
        return next(self._numbers)

    def add(self, number: int, shared: Shared) -> None:
        self._shared[number] = shared

    def find(self, number: int) -> Shared | None:
        return self._shared.get(number)


class Payload:
    """The pickled value of one version, or of several that refer to each other."""

    def __init__(self, number: int, values: Mapping[str, Any], pickled: Pickled | None) -> None:
        """`values` are by qualified name; if `pickled` is None they are pickled when a worker asks for them."""
        self.number = number
        self._values = values
        self._pickled = pickled
        self._lock = threading.Lock()

    def pickled(self, _known: int = 0, _ended: list[int] = []) -> Pickled:  # noqa: B006 - never changed
        with self._lock:
            if self._pickled is None:
                data, buffers, _ = dump_definitions(self._values, set(), identities_of(main_dict()))
                self._pickled = Pickled(data, buffers)
            return self._pickled

    @property
    def inline(self) -> bytes | memoryview | None:
        """The pickle, if it exists already and is small enough for a difference."""
        found = self._pickled
        return found.data if found is not None and not found.buffers and len(found.data) <= _INLINE else None


@dataclass(frozen=True, slots=True)
class Version:
    """One binding of a global or attribute, as workers are told of it."""

    number: int
    name: str  # qualified
    first: bool  # the script has not bound the name again since this executor needed it first
    digest: bytes | None  # of the value; None if workers have no globals of their own
    payload: int  # its number; 0: there is none
    error: str = ""  # why the value cannot be pickled
    deleted: bool = False  # the script has deleted the name
    owner_payload: int = 0  # of an attribute: the number of its owner's payload, if that contains this value


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told before the first call of an executor."""

    surroundings: Surroundings
    origin: Origin
    top_level: TopLevel
    filters: list[bytes]
    seeds: ModuleSeeds


@dataclass(frozen=True, slots=True)
class Difference:
    """What takes a worker from one state to another."""

    setup: Setup | None  # None: the worker has it
    versions: list[Version]
    inline: dict[int, bytes | memoryview]  # small payloads, by number
    ended: list[int]  # executors that the worker may forget


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class State:
    """The version of each global that calls need."""

    number: int
    versions: dict[str, Version]  # by qualified name
    payloads: dict[int, Payload]  # of these versions
    setup: Setup

    def pickled(self, known: int, ended: list[int]) -> Pickled:
        """Return the difference to state `known`; to a later state it is everything, as versions there may be too new."""
        since = known if known <= self.number else 0
        versions = [version for version in self.versions.values() if version.number > since]
        small = {number: self.payloads[number].inline for number in {version.payload for version in versions} if number}
        inline = {number: data for number, data in small.items() if data is not None}
        setup = None if known else self.setup
        return Pickled(pickle.dumps({"": Difference(setup, versions, inline, ended)}, pickle.HIGHEST_PROTOCOL))

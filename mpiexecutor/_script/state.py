"""The script's globals as one executor's calls need them: on the root.

Theory of operation
    A *slot* is a global ("scale", "Model") or an attribute of a function or class of the script ("Model.level"). A slot has
    *versions*, numbered by the registry: a new one whenever the script has bound it anew since the last call that needed it. A
    *state* says which version of each slot a call needs; calls name it by number. States only grow.

    A worker that is in another state asks for the difference. Where workers have run the top level of the script, they have globals
    of their own: a version then carries a digest, and a worker asks for the *payload*, the pickled value, only if its own differs.

Invariants
    A value is pickled when a call first needs it, in the thread that submits: a call sees what the script had then. Only functions,
    classes and their functions are pickled later, upon request: what they are made of cannot change in place.
    What refers to another global does so by name, and two globals that refer to each other share one payload.
    Versions live as long as a state that a call waits for has them; the newest state lives as long as the executor.
"""

import itertools
import pickle
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, NamedTuple, Protocol

from .names import main_dict
from .pickling import dump_definitions, identities_of
from .random_generators import ModuleSeeds
from .surroundings import Surroundings
from .top_level import TopLevel

_INLINE: Final = 16 << 10  # bytes: a smaller payload goes with the list of versions


class Origin(Enum):
    """Where the `__main__` of a worker comes from."""

    TOP_LEVEL = auto()  # the worker runs the top level of the script
    RANK = auto()  # the worker has run the script itself, up to the executor
    NOTHING = auto()  # all of it comes from the root


class Shared(Protocol):
    """What a worker may ask for by its number."""

    def pickled(self, known: int, ended: list[int]) -> "Pickled":
        """Pickle it for a worker that is in state `known`, and has a `__main__` of each of the executors that have `ended`."""


class Pickled(NamedTuple):
    """A pickle and its large buffers."""

    data: bytes | memoryview
    buffers: Sequence[memoryview] = ()


class Registry:
    """What workers may ask for, by number, as long as somebody else keeps it."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._shared: weakref.WeakValueDictionary[int, Shared] = weakref.WeakValueDictionary()

    def next(self) -> int:
        """Return a number that nothing has."""
        return next(self._numbers)

    def add(self, number: int, shared: Shared) -> None:
        self._shared[number] = shared

    def find(self, number: int) -> Shared | None:
        return self._shared.get(number)


class Payload:
    """The values of one slot, or of several that refer to each other, pickled at once or when somebody asks."""

    def __init__(self, number: int, values: Mapping[str, Any], pickled: Pickled | None) -> None:
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
        """The pickle, if it is there and short."""
        found = self._pickled
        return found.data if found is not None and not found.buffers and len(found.data) <= _INLINE else None


@dataclass(frozen=True, slots=True)
class Version:
    """What a worker is told of a slot."""

    number: int
    slot: str
    first: bool  # the script has not bound it anew since this executor needed it first
    digest: bytes | None  # of the value, where workers have their own
    payload: int  # its number; 0: there is none
    why: str = ""  # it cannot be pickled
    gone: bool = False  # an attribute was deleted
    within: int = 0  # the payload that has this attribute, too


@dataclass(frozen=True, slots=True)
class Opening:
    """What a worker is told before the first call of an executor."""

    surroundings: Surroundings
    origin: Origin
    top_level: TopLevel
    filters: list[bytes]
    seeds: ModuleSeeds


@dataclass(frozen=True, slots=True)
class Difference:
    """What a worker has to know to come from one state to another."""

    opening: Opening | None
    versions: list[Version]
    inline: dict[int, bytes | memoryview]  # short payloads, by number
    ended: list[int]  # executors whose `__main__` is not needed any more


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class State:
    """Which version of each slot calls need."""

    number: int
    versions: dict[str, Version]
    payloads: dict[int, Payload]
    opening: Opening

    def pickled(self, known: int, ended: list[int]) -> Pickled:
        newest = known if known <= self.number else 0  # numbers only grow: what the worker has from a later state may be too new
        versions = [version for version in self.versions.values() if version.number > newest]
        short = {number: self.payloads[number].inline for number in {version.payload for version in versions} if number}
        inline = {number: data for number, data in short.items() if data is not None}
        opening = None if known else self.opening
        return Pickled(pickle.dumps({"": Difference(opening, versions, inline, ended)}, pickle.HIGHEST_PROTOCOL))

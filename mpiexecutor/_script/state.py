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

import builtins
import contextlib
import itertools
import pickle
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from operator import is_
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final, NamedTuple, Protocol

from .filters import filters_of
from .kinds import NotShared
from .names import ANY, MAIN, MISSING, expanded, globals_of, main_dict, name_of, reads_any, top_of
from .pickling import digest_of, dump_definitions, identities_of
from .surroundings import Surroundings
from .top_level import TopLevel, of_this_process

_INLINE: Final = 16 << 10  # bytes: a smaller payload goes with the list of versions
_OF_FUNCTIONS: Final = ("__defaults__", "__kwdefaults__")
_OF_PYTHON: Final = frozenset(  # attributes of classes that Python makes from their source, and what pickle notes there
    [
        *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__slots__", "__slotnames__", "_abc_impl"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__abstractmethods__"),
        *("__parameters__", "__orig_bases__", "__type_params__", "__match_args__", "__dataclass_fields__"),
        *("__dataclass_params__", "__static_attributes__", "__firstlineno__", "__protocol_attrs__"),
    ]
)
_IN_CLASSES: Final = (FunctionType, staticmethod, classmethod, property)


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
    script: "Script"

    def pickled(self, known: int, ended: list[int]) -> Pickled:
        newest = known if known <= self.number else 0  # numbers only grow: what the worker has from a later state may be too new
        versions = [version for version in self.versions.values() if version.number > newest]
        short = {number: self.payloads[number].inline for number in {version.payload for version in versions} if number}
        inline = {number: data for number, data in short.items() if data is not None}
        opening = None if known else self.script.opening
        return Pickled(pickle.dumps({"": Difference(opening, versions, inline, ended)}, pickle.HIGHEST_PROTOCOL))


@dataclass(slots=True, eq=False)
class _Global:
    """A global, as a call has needed it last."""

    name: str
    value: Any
    attributes: tuple[Any, ...] | None  # of a function or class, whose identity is watched
    needs: set[str] = field(default_factory=set)  # other globals
    refers: set[str] = field(default_factory=set)  # those of them that have to be there when its payload is loaded
    versions: dict[str, Version] = field(default_factory=dict)  # by slot
    held: dict[str, Any] = field(default_factory=dict)  # values by slot

    def is_unchanged(self, main: dict[str, Any]) -> bool:
        if main.get(self.name, MISSING) is not self.value:
            return False
        before = self.attributes
        if before is None:
            return True
        now = _watched(self.value)
        return len(now) == len(before) and all(map(is_, now, before))


class _Needs:
    """What a call needs in all: what its names lead to."""

    def __init__(self, present: list[_Global], absent: set[str], total: int | None) -> None:
        """`absent` are builtins, and what the script may come to have; `total` counts its names, if all are needed."""
        self._absent = absent
        self._total = total
        bare: list[_Global] = []  # functions without attributes of their own
        others: list[_Global] = []
        for each in present:
            is_bare = isinstance(each.value, FunctionType) and each.attributes is not None and not each.value.__dict__
            (bare if is_bare else others).append(each)
        self._functions = [(each.name, each.value, *(each.attributes or ())[:3]) for each in bare]
        self._values = [(each.name, each.value) for each in others]
        self._others = [each for each in others if each.attributes is not None]

    def are_unchanged(self, main: dict[str, Any]) -> bool:
        """Whether the script has bound nothing of it anew. Every submit comes through here."""
        for name, function, code, defaults, keywords in self._functions:
            if (
                main.get(name, MISSING) is not function
                or function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
                or function.__dict__
            ):
                return False
        for name, value in self._values:
            if main.get(name, MISSING) is not value:
                return False
        if self._absent and not self._absent.isdisjoint(main):
            return False
        if self._total is not None and self._total != len(main):
            return False
        return all(each.is_unchanged(main) for each in self._others) if self._others else True


def _watched(value: Any) -> tuple[Any, ...]:
    """Return what of a function or class may be bound anew."""
    if isinstance(value, type):
        return tuple(vars(value).values())
    return value.__code__, value.__defaults__, value.__kwdefaults__, *vars(value).values()


class Script:
    """The globals of the script for the calls of one executor."""

    def __init__(self, registry: Registry, origin: Origin) -> None:
        """Note the surroundings. `origin` says what workers may have of their own."""
        self.registry = registry
        top_level = of_this_process(run_again=origin is Origin.TOP_LEVEL)
        if origin is Origin.TOP_LEVEL and top_level.source is None:
            origin = Origin.NOTHING
        self._compares = origin is not Origin.NOTHING
        self._lock = threading.RLock()
        self._globals: dict[str, _Global] = {}
        self._payloads: dict[int, Payload] = {}
        self._checked: dict[frozenset[str], _Needs] = {}  # by the names that calls need
        self._named: dict[FunctionType, tuple[str, _Needs]] = {}  # functions that calls have named
        names: set[str] = set()
        self.opening = Opening(Surroundings.of_this_process(), origin, top_level, filters_of(names))
        self._extra = frozenset(names)
        self._state = State(registry.next(), {}, {}, self)
        registry.add(self._state.number, self._state)

    def always_needs(self, names: frozenset[str]) -> None:
        """Have each call need these, too: the initializer does, which runs before the first one."""
        self._extra |= names

    def state(self, names: frozenset[str]) -> State:
        """Return the state that a call needs which needs these globals."""
        checked = self._checked.get(names)
        if checked is not None:
            state = self._state
            if checked.are_unchanged(vars(sys.modules[MAIN])):
                return state
        with self._lock:
            return self._define(names)

    def named(self, function: FunctionType) -> tuple[str, State] | tuple[None, None]:
        """Return the name of a function, and the state that it needs; None and None if the script has no name for it.

        Most calls come through here: a function whose needs have not changed has its name still, as it is one of them.
        """
        known, state = self._named.get(function), self._state
        if known is not None and known[1].are_unchanged(vars(sys.modules[MAIN])):
            return known[0], state
        name = name_of(function)
        if name is None:
            return None, None
        names = frozenset([top_of(name)])
        with self._lock:
            state = self.state(names)
            if name_of(function) == name:  # still: another thread may have bound it anew
                self._named[function] = name, self._checked[names]
        return name, state

    def _define(self, names: frozenset[str]) -> State:
        """Look at all that is needed, and make a new state if something of it is new."""
        main = main_dict()
        new: dict[str, _Global] = {}
        look = _Look(self, main, identities_of(main), new)
        checked = look.gather(names | self._extra, lambda each: each.needs)
        if not self._compares and not self._globals:  # a call may find these by pickle, or by multiprocessing
            look.gather(_functions_and_classes(main), lambda each: each.refers)
        if new:
            look.join()
            look.renew(self._globals)
            self._globals.update(new)
            self._payloads.update(look.payloads)  # only now: what is pickled may itself submit, and make a state
            self._state = self._next_state(new.values())
            self._checked, self._named = {}, {}
        self._checked[names] = checked
        return self._state

    def _next_state(self, new: Iterable[_Global]) -> State:
        versions = dict(self._state.versions)
        for each in new:
            versions.update(each.versions)
        numbers = {number for version in versions.values() for number in (version.payload, version.within)}
        self._payloads = {number: payload for number, payload in self._payloads.items() if number in numbers}
        state = State(self.registry.next(), versions, dict(self._payloads), self)
        self.registry.add(state.number, state)
        return state

    def known(self, name: str) -> _Global | None:
        return self._globals.get(name)

    @property
    def compares(self) -> bool:
        """Whether workers may have globals of their own."""
        return self._compares


def _functions_and_classes(main: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(
        name for name, value in list(main.items()) if isinstance(value, (type, FunctionType)) and name_of(value) == name
    )


class _Look:
    """One look at the script's globals, and the versions that come of it."""

    def __init__(self, script: Script, main: dict[str, Any], identities: dict[int, str], new: dict[str, _Global]) -> None:
        self._script = script
        self._main = main
        self._identities = identities
        self._new = new
        self.payloads: dict[int, Payload] = {}

    def _payload(self, values: Mapping[str, Any], pickled: Pickled | None) -> int:
        """Add a payload; return its number."""
        payload = Payload(self._script.registry.next(), values, pickled)
        self._script.registry.add(payload.number, payload)
        self.payloads[payload.number] = payload
        return payload.number

    def gather(self, names: Iterable[str], follow: Callable[[_Global], set[str]]) -> _Needs:
        """Look at these globals and at what they lead to; return all of them."""
        gathered: dict[str, _Global] = {}
        absent: set[str] = set()
        total = None
        waiting = sorted(names)
        while waiting:
            name = waiting.pop()
            if name in gathered:
                continue
            if total is None and reads_any(name, self._main):
                total = len(self._main)
                waiting += sorted(expanded([ANY], self._main))
            if name not in self._main:
                absent.add(name)
                if self._script.compares and self._script.known(name) is None and name != ANY and not hasattr(builtins, name):
                    gathered[name] = self._new[name] = self._absent(name)
                continue
            each = self._new.get(name) or self._script.known(name)
            if each is None or (name not in self._new and not each.is_unchanged(self._main)):
                each = self._new[name] = self._look(name, self._main[name], self._script.known(name))
            gathered[name] = each
            waiting += sorted(follow(each))
        return _Needs(list(gathered.values()), absent, total)

    def _absent(self, name: str) -> _Global:
        """Note that the script has no such global: it may have deleted what its top level has made."""
        version = Version(self._script.registry.next(), name, True, None, 0, gone=True)
        return _Global(name, MISSING, None, versions={name: version})

    def _look(self, name: str, value: Any, before: _Global | None) -> _Global:
        each = _Global(name, value, None)
        if isinstance(value, (type, FunctionType)) and name_of(value) == name:
            each.attributes = _watched(value)
            self._look_at_definition(each, before)
        else:
            self._add(each, name, value, before, code=False)
        each.needs.discard(name)
        each.refers.discard(name)
        return each

    def _look_at_definition(self, each: _Global, before: _Global | None) -> None:
        """Make versions of a function or class, and of its attributes."""
        name, value = each.name, each.value
        same = (
            before is not None
            and before.value is value
            and not (
                isinstance(value, FunctionType) and before.attributes is not None and before.attributes[0] is not value.__code__
            )
        )
        if same and before is not None:
            each.versions.update(before.versions)
            each.held.update(before.held)
            each.needs |= before.needs
            each.refers |= before.refers
        else:
            self._add_definition(each, before)
        each.needs |= _names_in_annotations(value)
        within = each.versions[name].payload
        for attribute, content in _attributes(value):
            slot = f"{name}.{attribute}"
            if slot in each.versions and each.held.get(slot, MISSING) is content:
                continue
            code = isinstance(content, _IN_CLASSES)
            if not same and not self._script.compares:
                self._note(each, slot, content, before, digest=None, payload=0, within=within)
            else:
                self._add(each, slot, content, before, code=code, within=0 if same else within)
        if same:
            left = {f"{name}.{attribute}" for attribute, _ in _attributes(value)} | {name}
            for slot in [slot for slot in each.versions if slot not in left and not each.versions[slot].gone]:
                each.versions[slot] = Version(self._script.registry.next(), slot, False, None, 0, gone=True)
                each.held.pop(slot, None)

    def _add_definition(self, each: _Global, before: _Global | None) -> None:
        """Add the version of a function or class itself."""
        name, value = each.name, each.value
        if not self._script.compares:
            self._add(each, name, value, before, code=False)
            return
        digest = self._digest(each, name, header_of(value))
        if isinstance(value, FunctionType):
            each.needs |= globals_of(value.__code__)
        self._note(each, name, value, before, digest=digest, payload=self._payload({name: value}, None))

    def _add(self, each: _Global, slot: str, value: Any, before: _Global | None, *, code: bool, within: int = 0) -> None:
        """Add a version with its payload: pickled now, unless it is code in a class, which cannot change in place."""
        digest = None
        if self._script.compares:
            digest = self._digest(each, slot, value)
            if code:
                payload = self._payload({slot: value}, None)
                self._note(each, slot, value, before, digest=digest, payload=payload, within=within)
                return
        try:
            data, buffers, refers = dump_definitions({slot: value}, each.needs, self._identities)
        except NotShared as error:
            self._note(each, slot, value, before, digest=b"", payload=0, within=within, why=str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever its own code raises
            why = f"{type(error).__name__}: {error}"
            self._note(each, slot, value, before, digest=_kind(value), payload=0, within=within, why=why)
        else:
            each.refers |= refers
            payload = self._payload({slot: value}, Pickled(data, buffers))
            self._note(each, slot, value, before, digest=digest, payload=payload, within=within)

    def _digest(self, each: _Global, slot: str, value: Any) -> bytes:
        refers: set[str] = set()
        digest = digest_of(slot, value, each.needs, self._identities, refers)
        each.refers |= refers
        return _kind(value) if digest is None else digest

    def _note(
        self,
        each: _Global,
        slot: str,
        value: Any,
        before: _Global | None,
        *,
        digest: bytes | None,
        payload: int,
        within: int = 0,
        why: str = "",
    ) -> None:
        first = before is None or slot not in before.versions
        each.versions[slot] = Version(self._script.registry.next(), slot, first, digest, payload, why, within=within)
        each.held[slot] = value

    def _is_new(self, each: _Global) -> bool:
        """Whether it is bound anew, not only its attributes: workers have it then, and nothing has to be loaded with it."""
        before = self._script.known(each.name)
        return before is None or each.versions[each.name] is not before.versions.get(each.name)

    def join(self) -> None:
        """Have globals that refer to each other share a payload: each would be needed to load the other."""
        new = {name: each for name, each in self._new.items() if self._is_new(each)}
        for group in _circles({name: each.refers & new.keys() for name, each in new.items()}):
            values = {name: self._new[name].value for name in group if not self._new[name].versions[name].why}
            self._share(values)
            if self._script.compares:  # there workers have the functions and classes, which are to stay theirs
                rest = {name: value for name, value in values.items() if self._new[name].attributes is None}
                if rest and len(rest) < len(values):
                    self._share(rest)

    def renew(self, known: Mapping[str, _Global]) -> None:
        """Pickle again what names a global that is bound anew: what it refers to is the older value, which has no name any more."""
        anew = {name for name, each in self._new.items() if name in known and known[name].value is not each.value}
        for name, before in known.items():
            each = self._new.get(name, before)
            if (
                before.refers & anew
                and self._main.get(name, MISSING) is before.value
                and (each is before or not self._is_new(each))
            ):
                self._new[name] = self._renewed(each)

    def _renewed(self, before: _Global) -> _Global:
        """Give the same versions other payloads: workers that have them keep what they have."""
        each = replace(before, refers=set(), versions={}, held=dict(before.held))
        for slot, version in before.versions.items():
            payload = 0
            if version.payload:
                try:
                    data, buffers, refers = dump_definitions({slot: before.held[slot]}, each.needs, self._identities)
                except Exception:  # noqa: BLE001 - as it was before
                    each.versions[slot] = version
                    continue
                each.refers |= refers
                payload = self._payload({slot: before.held[slot]}, Pickled(data, buffers))
            each.versions[slot] = replace(version, payload=payload, within=0 if self._script.compares else version.within)
        own = each.versions[before.name]
        graph = {name: other.refers for name, other in self._new.items() if self._is_new(other)} | {each.name: each.refers}
        group = next(
            (group for group in _circles({name: refers & graph.keys() for name, refers in graph.items()}) if each.name in group), []
        )
        if group and own.payload:  # what refers to it in turn comes with it, to workers that have neither
            values = {name: each.value if name == each.name else self._new[name].value for name in group}
            with contextlib.suppress(Exception):  # then each is as it was alone
                data, buffers, _ = dump_definitions(values, set(), self._identities)
                own = each.versions[each.name] = replace(own, payload=self._payload(values, Pickled(data, buffers)))
        for slot, version in each.versions.items():
            if version.within:
                each.versions[slot] = replace(version, within=own.payload)
        return each

    def _share(self, values: Mapping[str, Any]) -> None:
        """Have these share a payload."""
        try:
            data, buffers, _ = dump_definitions(values, set(), self._identities)
        except Exception:  # noqa: BLE001 - each is as it was alone
            return
        payload = self._payload(values, Pickled(data, buffers))
        for name in values:
            each = self._new[name]
            old = each.versions[name].payload
            for slot, version in each.versions.items():
                if slot == name:
                    each.versions[slot] = replace(version, payload=payload)
                elif version.within == old:
                    each.versions[slot] = replace(version, within=payload)


def header_of(value: Any) -> Any:
    """Return what of a function or class decides whether a worker's own is the same, but for its attributes."""
    if isinstance(value, FunctionType):
        return value.__code__, value.__closure__, vars(value).get("__wrapped__")
    return type(value), value.__bases__, vars(value).get("__slots__")


def _names_in_annotations(value: Any) -> set[str]:
    """Return the names in annotations that are text: typing.get_type_hints looks them up."""
    annotations = vars(value).get("__annotations__") if isinstance(value, type) else value.__annotations__
    texts = [text for text in (annotations or {}).values() if isinstance(text, str)]
    return {name for text in texts for name in re.findall(r"[^\W\d]\w*", text)}


def _kind(value: Any) -> bytes:
    """Return a digest of what cannot be pickled: a worker's own has to be of the same type."""
    return f"{type(value).__module__}.{type(value).__qualname__}".encode()


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a function or class that the script may bind anew."""
    if isinstance(value, FunctionType):
        for name in _OF_FUNCTIONS:
            yield name, getattr(value, name)
        yield from ((name, content) for name, content in list(vars(value).items()) if name != "__wrapped__")
        return
    for name, content in list(vars(value).items()):
        if name not in _OF_PYTHON and not isinstance(content, (GetSetDescriptorType, MemberDescriptorType)):
            yield name, content


def _circles(refers: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield the groups of names that refer to each other, directly or through others."""
    reach: dict[str, set[str]] = {}
    for name in refers:
        reached: set[str] = set()
        waiting = list(refers[name])
        while waiting:
            other = waiting.pop()
            if other not in reached:
                reached.add(other)
                waiting += refers[other]
        reach[name] = reached
    done: set[str] = set()
    for name in refers:
        if name in reach[name] and name not in done:
            group = [other for other in refers if other in reach[name] and name in reach[other]]
            done.update(group)
            if len(group) > 1:
                yield group

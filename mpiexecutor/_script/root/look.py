"""One look at the script's globals, and the versions that come of it."""

import builtins
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from mpiexecutor._script.names import ANY, MISSING, expanded, globals_of, main_dict, name_of, reads_any
from mpiexecutor._script.pickling import digest_of, dump_definitions, header_of, identities_of
from mpiexecutor._script.pickling.shared_memory import NotShared
from mpiexecutor._script.state import Payload, Pickled, Registry, Version

from .needs import Global, Needs, watched

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


class Look:
    """One look at the script's globals, and the versions that come of it."""

    def __init__(self, registry: Registry, known: Mapping[str, Global], *, compares: bool) -> None:
        """`known` are globals as earlier calls have needed them; `compares` says whether workers may have globals of their own."""
        self._registry = registry
        self._known = known
        self._compares = compares
        self.main = main_dict()
        self._identities = identities_of(self.main)
        self.new: dict[str, Global] = {}
        self.payloads: dict[int, Payload] = {}

    def _payload(self, values: Mapping[str, Any], pickled: Pickled | None) -> int:
        """Add a payload; return its number."""
        payload = Payload(self._registry.next(), values, pickled)
        self._registry.add(payload.number, payload)
        self.payloads[payload.number] = payload
        return payload.number

    def gather(self, names: Iterable[str], follow: Callable[[Global], set[str]]) -> Needs:
        """Look at these globals and at what they lead to; return all of them."""
        gathered: dict[str, Global] = {}
        absent: set[str] = set()
        total = None
        waiting = sorted(names)
        while waiting:
            name = waiting.pop()
            if name in gathered:
                continue
            if total is None and reads_any(name, self.main):
                total = len(self.main)
                waiting += sorted(expanded([ANY], self.main))
            if name not in self.main:
                absent.add(name)
                if self._compares and self._known.get(name) is None and name != ANY and not hasattr(builtins, name):
                    gathered[name] = self.new[name] = self._absent(name)
                continue
            each = self.new.get(name) or self._known.get(name)
            if each is None or (name not in self.new and not each.is_unchanged(self.main)):
                each = self.new[name] = self._look(name, self.main[name], self._known.get(name))
            gathered[name] = each
            waiting += sorted(follow(each))
        return Needs(list(gathered.values()), absent, total)

    def _absent(self, name: str) -> Global:
        """Note that the script has no such global: it may have deleted what its top level has made."""
        version = Version(self._registry.next(), name, True, None, 0, gone=True)
        return Global(name, MISSING, None, versions={name: version})

    def _look(self, name: str, value: Any, before: Global | None) -> Global:
        each = Global(name, value, None)
        if isinstance(value, (type, FunctionType)) and name_of(value) == name:
            each.attributes = watched(value)
            self._look_at_definition(each, before)
        else:
            self._add(each, name, value, before, code=False)
        each.needs.discard(name)
        each.refers.discard(name)
        return each

    def _look_at_definition(self, each: Global, before: Global | None) -> None:
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
            if not same and not self._compares:
                self._note(each, slot, content, before, digest=None, payload=0, within=within)
            else:
                self._add(each, slot, content, before, code=code, within=0 if same else within)
        if same:
            left = {f"{name}.{attribute}" for attribute, _ in _attributes(value)} | {name}
            for slot in [slot for slot in each.versions if slot not in left and not each.versions[slot].gone]:
                each.versions[slot] = Version(self._registry.next(), slot, False, None, 0, gone=True)
                each.held.pop(slot, None)

    def _add_definition(self, each: Global, before: Global | None) -> None:
        """Add the version of a function or class itself."""
        name, value = each.name, each.value
        if not self._compares:
            self._add(each, name, value, before, code=False)
            return
        digest = self._digest(each, name, header_of(value))
        if isinstance(value, FunctionType):
            each.needs |= globals_of(value.__code__)
        self._note(each, name, value, before, digest=digest, payload=self._payload({name: value}, None))

    def _add(self, each: Global, slot: str, value: Any, before: Global | None, *, code: bool, within: int = 0) -> None:
        """Add a version with its payload: pickled now, unless it is code in a class, which cannot change in place."""
        digest = None
        if self._compares:
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

    def _digest(self, each: Global, slot: str, value: Any) -> bytes:
        refers: set[str] = set()
        digest = digest_of(slot, value, each.needs, self._identities, refers)
        each.refers |= refers
        return _kind(value) if digest is None else digest

    def _note(
        self,
        each: Global,
        slot: str,
        value: Any,
        before: Global | None,
        *,
        digest: bytes | None,
        payload: int,
        within: int = 0,
        why: str = "",
    ) -> None:
        first = before is None or slot not in before.versions
        each.versions[slot] = Version(self._registry.next(), slot, first, digest, payload, why, within=within)
        each.held[slot] = value

    def _is_new(self, each: Global) -> bool:
        """Whether it is bound anew, not only its attributes: workers have it then, and nothing has to be loaded with it."""
        before = self._known.get(each.name)
        return before is None or each.versions[each.name] is not before.versions.get(each.name)

    def join(self) -> None:
        """Have globals that refer to each other share a payload: each would be needed to load the other."""
        new = {name: each for name, each in self.new.items() if self._is_new(each)}
        for group in _circles({name: each.refers & new.keys() for name, each in new.items()}):
            values = {name: self.new[name].value for name in group if not self.new[name].versions[name].why}
            self._share(values)
            if self._compares:  # there workers have the functions and classes, which are to stay theirs
                rest = {name: value for name, value in values.items() if self.new[name].attributes is None}
                if rest and len(rest) < len(values):
                    self._share(rest)

    def renew(self) -> None:
        """Pickle again what names a global that is bound anew: what it refers to is the older value, which has no name any more."""
        anew = {name for name, each in self.new.items() if name in self._known and self._known[name].value is not each.value}
        for name, before in list(self._known.items()):
            each = self.new.get(name, before)
            if before.refers & anew and self.main.get(name, MISSING) is before.value and (each is before or not self._is_new(each)):
                self.new[name] = self._renewed(each)

    def _renewed(self, before: Global) -> Global:
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
            each.versions[slot] = replace(version, payload=payload, within=0 if self._compares else version.within)
        own = each.versions[before.name]
        graph = {name: other.refers for name, other in self.new.items() if self._is_new(other)} | {each.name: each.refers}
        group = next(
            (group for group in _circles({name: refers & graph.keys() for name, refers in graph.items()}) if each.name in group), []
        )
        if group and own.payload:  # what refers to it in turn comes with it, to workers that have neither
            values = {name: each.value if name == each.name else self.new[name].value for name in group}
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
            each = self.new[name]
            old = each.versions[name].payload
            for slot, version in each.versions.items():
                if slot == name:
                    each.versions[slot] = replace(version, payload=payload)
                elif version.within == old:
                    each.versions[slot] = replace(version, within=payload)


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

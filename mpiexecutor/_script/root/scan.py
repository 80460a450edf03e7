"""A scan of the script's globals: what a call needs, and new versions of all that has changed.

Values are pickled while the script's own code may run (`__reduce__`), so nothing of a scan is visible to other calls before it
ends.
"""

import builtins
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from mpiexecutor._script.names import ANY, MISSING, expanded, globals_of, is_definition, main_dict, reads_any
from mpiexecutor._script.pickling import digest_of, dump_definitions, identities_of, type_digest
from mpiexecutor._script.pickling.shared_memory import NotShared
from mpiexecutor._script.state import Payload, Registry, Version
from mpiexecutor._util.pickling import Pickled

from .needs import Global, Needs, attributes_of

_FUNCTION_ATTRIBUTES: Final = ("__defaults__", "__kwdefaults__")
_NOT_SET_BY_SCRIPT: Final = frozenset(  # attributes of classes that Python makes from their source, and those that pickle adds
    [
        *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__slots__", "__slotnames__", "_abc_impl"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__abstractmethods__"),
        *("__parameters__", "__orig_bases__", "__type_params__", "__match_args__", "__dataclass_fields__"),
        *("__dataclass_params__", "__static_attributes__", "__firstlineno__", "__protocol_attrs__"),
    ]
)
_CODE: Final = (FunctionType, staticmethod, classmethod, property)  # attributes that cannot change in place


class Scan:
    """One scan. `new` are the globals that are new or have changed, with their versions; `payloads` are those of the versions."""

    def __init__(self, registry: Registry, known: Mapping[str, Global], *, compares: bool) -> None:
        """Begin. `known` are globals as earlier calls have needed them; `compares`: workers have globals of their own."""
        self._registry = registry
        self._known = known
        self._compares = compares
        self.main = main_dict()
        self._identities = identities_of(self.main)
        self.new: dict[str, Global] = {}
        self.payloads: dict[int, Payload] = {}

    def find(self, names: Iterable[str], follow: Callable[[Global], set[str]]) -> Needs:
        """Return these globals, those that `follow` returns for them, and so on; make versions for what has changed."""
        found: dict[str, Global] = {}
        absent: set[str] = set()
        total = None
        waiting = sorted(names)
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            if total is None and reads_any(name, self.main):  # all globals, then
                total = len(self.main)
                waiting += sorted(expanded([ANY], self.main))
            if name not in self.main:
                absent.add(name)
                # A worker may have defined it.
                if self._compares and self._known.get(name) is None and name != ANY and not hasattr(builtins, name):
                    found[name] = self.new[name] = self._absent(name)
                continue
            each = self.new.get(name) or self._known.get(name)
            if each is None or (name not in self.new and not each.is_unchanged(self.main)):
                each = self.new[name] = self._scan(name, self.main[name], self._known.get(name))
            found[name] = each
            waiting += sorted(follow(each))
        return Needs(list(found.values()), absent, total)

    def _absent(self, name: str) -> Global:
        """Return a global that the script does not have: its top level, and that of a worker, may have defined it."""
        version = Version(self._registry.next(), name, first=True, digest=None, payload=0, deleted=True)
        return Global(name, MISSING, None, versions={name: version})

    def _scan(self, name: str, value: Any, before: Global | None) -> Global:
        """Return a global with its versions; `before` is the same as a call has needed it last."""
        each = Global(name, value, None)
        if is_definition(name, value):
            each.attributes = attributes_of(value)
            if before is not None and _is_same_definition(value, before):
                self._scan_attributes(each, before)
            else:
                self._scan_definition(each, before)
            each.needs |= _names_in_annotations(value)
        else:
            self._add_value(each, name, value, before)
        each.needs.discard(name)
        each.references.discard(name)
        return each

    def _scan_definition(self, each: Global, before: Global | None) -> None:
        """Make versions of a new function or class, and of all its attributes."""
        name, value = each.name, each.value
        if self._compares:
            digest = self._digest(each, name, value)
            if isinstance(value, FunctionType):
                each.needs |= globals_of(value.__code__)
            self._add_version(each, name, value, before, digest=digest, payload=self._add_payload({name: value}, None))
        else:
            self._add_value(each, name, value, before)
        owner = each.versions[name].payload
        for attribute, content in _named_attributes(value):
            if self._compares:
                self._add_value(each, f"{name}.{attribute}", content, before, owner_payload=owner)
            else:  # it comes with its owner
                self._add_version(each, f"{name}.{attribute}", content, before, digest=None, payload=0, owner_payload=owner)

    def _scan_attributes(self, each: Global, before: Global) -> None:
        """Make versions of the attributes that the script has bound again, or deleted, on a function or class that is the same."""
        each.versions.update(before.versions)
        each.values.update(before.values)
        each.needs |= before.needs
        each.references |= before.references
        present = {each.name}
        for attribute, content in _named_attributes(each.value):
            qualname = f"{each.name}.{attribute}"
            present.add(qualname)
            if qualname not in each.versions or each.values.get(qualname, MISSING) is not content:
                self._add_value(each, qualname, content, before)
        for qualname in [other for other, version in each.versions.items() if other not in present and not version.deleted]:
            each.versions[qualname] = Version(self._registry.next(), qualname, False, None, 0, deleted=True)
            each.values.pop(qualname, None)

    def _add_value(self, each: Global, qualname: str, value: Any, before: Global | None, *, owner_payload: int = 0) -> None:
        """Add a version with its payload. The value is pickled now; code that workers may have is pickled when one asks for it."""
        add = partial(self._add_version, each, qualname, value, before, owner_payload=owner_payload)
        digest = self._digest(each, qualname, value) if self._compares else None
        if self._compares and "." in qualname and isinstance(value, _CODE):
            add(digest=digest, payload=self._add_payload({qualname: value}, None))
            return
        try:
            data, buffers, references = dump_definitions({qualname: value}, each.needs, self._identities)
        except NotShared as error:
            add(digest=b"", payload=0, error=str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the script's own code
            add(digest=type_digest(value), payload=0, error=f"{type(error).__name__}: {error}")
        else:
            each.references |= references
            add(digest=digest, payload=self._add_payload({qualname: value}, Pickled(data, buffers)))

    def _digest(self, each: Global, qualname: str, value: Any) -> bytes:
        return digest_of(qualname, value, each.needs, self._identities, each.references)

    def _add_version(
        self,
        each: Global,
        qualname: str,
        value: Any,
        before: Global | None,
        *,
        digest: bytes | None,
        payload: int,
        owner_payload: int = 0,
        error: str = "",
    ) -> None:
        first = before is None or qualname not in before.versions
        number = self._registry.next()
        each.versions[qualname] = Version(number, qualname, first, digest, payload, error, owner_payload=owner_payload)
        each.values[qualname] = value

    def _add_payload(self, values: Mapping[str, Any], pickled: Pickled | None) -> int:
        """Add a payload; return its number."""
        payload = Payload(self._registry.next(), values, pickled)
        self._registry.add(payload.number, payload)
        self.payloads[payload.number] = payload
        return payload.number

    def _is_bound_again(self, each: Global) -> bool:
        """Whether the global itself is new or bound again, and not only attributes of it."""
        before = self._known.get(each.name)
        return before is None or each.versions[each.name] is not before.versions.get(each.name)

    def merge_cycles(self) -> None:
        """Have new globals that refer to each other share a payload: to load one alone, a worker would need the other first."""
        new = {name: each for name, each in self.new.items() if self._is_bound_again(each)}
        for group in _cycles({name: each.references & new.keys() for name, each in new.items()}):
            values = {name: self.new[name].value for name in group if not self.new[name].versions[name].error}
            self._share_payload(values)
            if self._compares:  # workers may keep their own functions and classes: the other values must not bring them
                others = {name: value for name, value in values.items() if self.new[name].attributes is None}
                if others and len(others) < len(values):
                    self._share_payload(others)

    def _share_payload(self, values: Mapping[str, Any]) -> None:
        """Have these globals share a payload."""
        try:
            data, buffers, _ = dump_definitions(values, set(), self._identities)
        except Exception:  # noqa: BLE001 - each keeps its own
            return
        payload = self._add_payload(values, Pickled(data, buffers))
        for name in values:
            each = self.new[name]
            own = each.versions[name].payload
            for qualname, version in each.versions.items():
                if qualname == name:
                    each.versions[qualname] = replace(version, payload=payload)
                elif version.owner_payload == own:
                    each.versions[qualname] = replace(version, owner_payload=payload)

    def repickle_references(self) -> None:
        """Pickle again what refers to a global that is bound to another object now.

        Its payload has the name of that global, where a worker that loads it now would find the new object. The value still refers
        to the older object, which has no name any more, so the new payload contains it.
        """
        again = {name for name, each in self.new.items() if name in self._known and self._known[name].value is not each.value}
        for name, before in list(self._known.items()):
            each = self.new.get(name, before)
            is_same = self.main.get(name, MISSING) is before.value and (each is before or not self._is_bound_again(each))
            if is_same and before.references & again:
                self.new[name] = self._repickled(each)

    def _repickled(self, before: Global) -> Global:
        """Return a global whose versions are the same, so that workers keep what they have, with new payloads."""
        each = replace(before, references=set(), versions={}, values=dict(before.values))
        for qualname, version in before.versions.items():
            payload = 0
            if version.payload:
                value = before.values[qualname]
                try:
                    data, buffers, references = dump_definitions({qualname: value}, each.needs, self._identities)
                except Exception:  # noqa: BLE001 - it keeps the payload that it has
                    each.versions[qualname] = version
                    continue
                each.references |= references
                payload = self._add_payload({qualname: value}, Pickled(data, buffers))
            owner = 0 if self._compares else version.owner_payload
            each.versions[qualname] = replace(version, payload=payload, owner_payload=owner)
        own = self._share_with_cycle(each)
        for qualname, version in each.versions.items():
            if version.owner_payload:
                each.versions[qualname] = replace(version, owner_payload=own.payload)
        return each

    def _share_with_cycle(self, each: Global) -> Version:
        """Have a payload contain new globals that refer back to this one: workers may have none of them. Return its version."""
        own = each.versions[each.name]
        graph = {name: other.references for name, other in self.new.items() if self._is_bound_again(other)}
        graph[each.name] = each.references
        cycles = _cycles({name: references & graph.keys() for name, references in graph.items()})
        group = next((group for group in cycles if each.name in group), [])
        if group and own.payload:
            values = {name: each.value if name == each.name else self.new[name].value for name in group}
            with contextlib.suppress(Exception):  # it keeps its own
                data, buffers, _ = dump_definitions(values, set(), self._identities)
                own = each.versions[each.name] = replace(own, payload=self._add_payload(values, Pickled(data, buffers)))
        return own


def _is_same_definition(value: Any, before: Global) -> bool:
    """Whether a function or class is the object that it was, with the same code."""
    if before.value is not value:
        return False
    return not isinstance(value, FunctionType) or before.attributes is None or before.attributes[0] is value.__code__


def _names_in_annotations(value: Any) -> set[str]:
    """Return the names in annotations that are text: typing.get_type_hints looks them up."""
    annotations = vars(value).get("__annotations__") if isinstance(value, type) else value.__annotations__
    texts = [text for text in (annotations or {}).values() if isinstance(text, str)]
    return {name for text in texts for name in re.findall(r"[^\W\d]\w*", text)}


def _named_attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a function or class that the script may bind again, with their names."""
    if isinstance(value, FunctionType):
        for name in _FUNCTION_ATTRIBUTES:
            yield name, getattr(value, name)
        yield from ((name, content) for name, content in list(vars(value).items()) if name != "__wrapped__")
        return
    for name, content in list(vars(value).items()):
        if name not in _NOT_SET_BY_SCRIPT and not isinstance(content, (GetSetDescriptorType, MemberDescriptorType)):
            yield name, content


def _cycles(references: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield the groups of names that refer to each other, directly or through others."""
    reach: dict[str, set[str]] = {}
    for name in references:
        reached: set[str] = set()
        waiting = list(references[name])
        while waiting:
            other = waiting.pop()
            if other not in reached:
                reached.add(other)
                waiting += references[other]
        reach[name] = reached
    done: set[str] = set()
    for name in references:
        if name in reach[name] and name not in done:
            group = [other for other in references if other in reach[name] and name in reach[other]]
            done.update(group)
            if len(group) > 1:
                yield group

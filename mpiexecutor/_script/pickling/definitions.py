"""Pickles of the script's globals: the global itself by value, all other globals by name.

The process that loads such a pickle has the other globals, or looks them up while it loads. So objects that two globals share are
shared there, too.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Final

from mpiexecutor._script.names import NAMED_KINDS, by_name
from mpiexecutor._util.pickling import dumps_by

from .calls import Buffers, CallPickler, always
from .reducers import reduce_kind, reduce_weak

_NO_IDENTITY: Final = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset, range, ModuleType, *NAMED_KINDS)


def dump_definitions(values: Mapping[str, Any], names: set[str], identities: Mapping[int, str]) -> tuple[bytes, Buffers, set[str]]:
    """Pickle the values of globals that refer to each other, or of one.

    Args:
        values: By qualified name. Whatever their own methods raise is raised here.
        names: Takes the globals that they need.
        identities: See `identities_of`.

    Returns:
        The pickle, its large buffers, and the globals that it refers to: they must exist when it is loaded.

    """
    references: set[str] = set()
    return *dumps_by(partial(DefinitionPickler, names, references, tuple(values), identities), dict(values)), references


def load_definitions(data: bytes | memoryview, buffers: Sequence[Any] = ()) -> dict[str, Any]:
    """Rebuild the values of globals, by qualified name."""
    return _Unpickler(io.BytesIO(data), buffers=buffers).load()  # type: ignore[no-any-return]


def identities_of(main: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of globals by the id of their values, except numbers, strings and others that have no identity."""
    names: dict[int, str] = {}
    for name, value in list(main.items()):
        if not isinstance(value, _NO_IDENTITY) and not (name.startswith("__") and name.endswith("__")):
            names.setdefault(id(value), name)
    return names


class DefinitionPickler(CallPickler):
    """Pickles globals: those whose qualified names are `whole` by value, all others by name."""

    def __init__(
        self, names: set[str], references: set[str], whole: Sequence[str], identities: Mapping[int, str], *file: Any, **options: Any
    ) -> None:
        super().__init__(names, references, whole, always, *file, **options)
        self._identities = identities

    def persistent_id(self, obj: Any) -> str | None:
        """Return the name of another global, which is pickled in its place."""
        name = self._identities.get(id(obj))
        if name is None or name in self._whole:
            return None
        self.references.add(name)
        self.names.add(name)
        return name

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, NAMED_KINDS):
            is_whole = self._identities.get(id(obj)) in self._whole
            reduced = reduce_kind(obj) or reduce_weak(obj, lambda part: is_whole and id(part) in self._identities)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: str) -> Any:
        return by_name(pid)

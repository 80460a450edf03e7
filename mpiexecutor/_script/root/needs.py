"""Globals as a call has needed them last, and whether the script has bound one of them anew since."""

from dataclasses import dataclass, field
from operator import is_
from types import FunctionType
from typing import Any

from mpiexecutor._script.names import MISSING
from mpiexecutor._script.state import Version


@dataclass(slots=True, eq=False)
class Global:
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
        now = watched(self.value)
        return len(now) == len(before) and all(map(is_, now, before))


class Needs:
    """What a call needs in all: what its names lead to."""

    def __init__(self, present: list[Global], absent: set[str], total: int | None) -> None:
        """`absent` are builtins, and what the script may come to have; `total` counts its names, if all are needed."""
        self._absent = absent
        self._total = total
        bare: list[Global] = []  # functions without attributes of their own
        others: list[Global] = []
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


def watched(value: Any) -> tuple[Any, ...]:
    """Return what of a function or class may be bound anew."""
    if isinstance(value, type):
        return tuple(vars(value).values())
    return value.__code__, value.__defaults__, value.__kwdefaults__, *vars(value).values()

"""Globals as calls have needed them last, and whether the script has changed one of them since.

A change is another binding: of the global itself, or, for functions and classes of the script, of one of their attributes. What a
call does to a list or an array in place is no change.
"""

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
    attributes: tuple[Any, ...] | None  # of a function or class of the script: see attributes_of; None for other values
    needs: set[str] = field(default_factory=set)  # other globals that its code and its value use
    references: set[str] = field(default_factory=set)  # those of them that must exist when its payload is loaded
    versions: dict[str, Version] = field(default_factory=dict)  # of itself and of its attributes, by qualified name
    values: dict[str, Any] = field(default_factory=dict)  # the same for their values

    def is_unchanged(self, main: dict[str, Any]) -> bool:
        if main.get(self.name, MISSING) is not self.value:
            return False
        before = self.attributes
        if before is None:
            return True
        now = attributes_of(self.value)
        return len(now) == len(before) and all(map(is_, now, before))


class Needs:
    """All globals that a call needs: those that it names, those that they need in turn, and so on."""

    def __init__(self, present: list[Global], absent: set[str], total: int | None) -> None:
        """Prepare the comparison, so that each submit does as little as possible.

        Args:
            present: The globals that the script has.
            absent: Names that it does not have: builtins, and globals that it may define later.
            total: The number of its globals if the call may read any of them; else None.

        """
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
        """Whether the script has bound none of them again. Every submit comes through here."""
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


def attributes_of(value: Any) -> tuple[Any, ...]:
    """Return all attributes of a function or class that can be bound again; of a function, code and defaults come first."""
    if isinstance(value, type):
        return tuple(vars(value).values())
    return value.__code__, value.__defaults__, value.__kwdefaults__, *vars(value).values()

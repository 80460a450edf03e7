"""The globals of the script for the calls of one executor."""

import sys
import threading
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any

from mpiexecutor._script.filters import filters_of
from mpiexecutor._script.names import MAIN, name_of, top_of
from mpiexecutor._script.random_generators import ModuleSeeds
from mpiexecutor._script.state import Opening, Origin, Payload, Registry, State
from mpiexecutor._script.surroundings import Surroundings
from mpiexecutor._script.top_level import of_this_process

from .look import Look
from .needs import Global, Needs


class Script:
    """The globals of the script for the calls of one executor."""

    def __init__(self, registry: Registry, origin: Origin) -> None:
        """Note the surroundings, and seeds. `origin` says what workers may have of their own."""
        self.registry = registry
        top_level = of_this_process(run_again=origin is Origin.TOP_LEVEL)
        if origin is Origin.TOP_LEVEL and top_level.source is None:
            origin = Origin.NOTHING
        self._compares = origin is not Origin.NOTHING
        self._lock = threading.RLock()
        self._globals: dict[str, Global] = {}
        self._payloads: dict[int, Payload] = {}
        self._checked: dict[frozenset[str], Needs] = {}  # by the names that calls need
        self._named: dict[FunctionType, tuple[str, Needs]] = {}  # functions that calls have named
        names: set[str] = set()
        self._opening = Opening(Surroundings.of_this_process(), origin, top_level, filters_of(names), ModuleSeeds.of_this_process())
        self._extra = frozenset(names)
        self._state = State(registry.next(), {}, {}, self._opening)
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
        look = Look(self.registry, self._globals, compares=self._compares)
        checked = look.gather(names | self._extra, lambda each: each.needs)
        if not self._compares and not self._globals:  # a call may find these by pickle, or by multiprocessing
            look.gather(_functions_and_classes(look.main), lambda each: each.refers)
        if look.new:
            look.join()
            look.renew()
            self._globals.update(look.new)
            self._payloads.update(look.payloads)  # only now: what is pickled may itself submit, and make a state
            self._state = self._next_state(look.new.values())
            self._checked, self._named = {}, {}
        self._checked[names] = checked
        return self._state

    def _next_state(self, new: Iterable[Global]) -> State:
        versions = dict(self._state.versions)
        for each in new:
            versions.update(each.versions)
        numbers = {number for version in versions.values() for number in (version.payload, version.within)}
        self._payloads = {number: payload for number, payload in self._payloads.items() if number in numbers}
        state = State(self.registry.next(), versions, dict(self._payloads), self._opening)
        self.registry.add(state.number, state)
        return state


def _functions_and_classes(main: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(
        name for name, value in list(main.items()) if isinstance(value, (type, FunctionType)) and name_of(value) == name
    )

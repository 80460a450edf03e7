"""The script's globals for the calls of one executor: which state a call needs."""

import sys
import threading
from collections.abc import Iterable
from types import FunctionType

from mpiexecutor._script.filters import dump_filters
from mpiexecutor._script.names import MAIN, is_definition, name_of, top_of
from mpiexecutor._script.random_generators import ModuleSeeds
from mpiexecutor._script.state import Origin, Payload, Registry, Setup, State
from mpiexecutor._script.surroundings import Surroundings
from mpiexecutor._script.top_level import of_this_process

from .needs import Global, Needs
from .scan import Scan


class Script:
    """The script's globals for the calls of one executor. Any thread may call any method."""

    def __init__(self, registry: Registry, origin: Origin) -> None:
        """Capture the surroundings and the seeds of the script. `origin` says where workers get their `__main__` from."""
        self.registry = registry
        top_level = of_this_process(run_again=origin is Origin.TOP_LEVEL)
        if origin is Origin.TOP_LEVEL and top_level.source is None:
            origin = Origin.NOTHING
        self._compares = origin is not Origin.NOTHING  # workers have globals of their own, and compare digests
        self._lock = threading.RLock()  # reentrant: the code of an object that is pickled may submit calls
        self._globals: dict[str, Global] = {}
        self._payloads: dict[int, Payload] = {}
        self._needs: dict[frozenset[str], Needs] = {}  # by the globals that calls name
        self._named: dict[FunctionType, tuple[str, Needs]] = {}  # functions that calls have named
        names: set[str] = set()
        self._setup = Setup(Surroundings.of_this_process(), origin, top_level, dump_filters(names), ModuleSeeds.of_this_process())
        self._always = frozenset(names)  # globals that every call needs
        self._state = State(registry.next(), {}, {}, self._setup)
        registry.add(self._state.number, self._state)

    def always_needs(self, names: frozenset[str]) -> None:
        """Have every call need these globals, too: those of the initializer, which runs before the first call."""
        self._always |= names

    def state(self, names: frozenset[str]) -> State:
        """Return the state for a call that needs these globals."""
        needs = self._needs.get(names)
        if needs is not None:
            state = self._state
            if needs.are_unchanged(vars(sys.modules[MAIN])):
                return state
        with self._lock:
            return self._update(names)

    def named(self, function: FunctionType) -> tuple[str, State] | tuple[None, None]:
        """Return the name of a function and the state for a call of it; None and None if the script has no name for it.

        Most calls come through here. If nothing that the function needs has changed, its name has not either: it is one of its
        needs.
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
            if name_of(function) == name:  # another thread may have bound it to something else meanwhile
                self._named[function] = name, self._needs[names]
        return name, state

    def _update(self, names: frozenset[str]) -> State:
        """Scan all that is needed; make a new state if anything has changed. Takes the lock."""
        scan = Scan(self.registry, self._globals, compares=self._compares)
        needs = scan.find(names | self._always, lambda each: each.needs)
        if not self._compares and not self._globals:  # calls may find functions and classes by pickle, or by multiprocessing
            definitions = [name for name, value in list(scan.main.items()) if is_definition(name, value)]
            scan.find(definitions, lambda each: each.references)
        if scan.new:
            scan.merge_cycles()
            scan.repickle_references()
            self._globals.update(scan.new)
            self._payloads.update(scan.payloads)  # not before: pickling may submit a call, which makes a state of its own
            self._state = self._next_state(scan.new.values())
            self._needs, self._named = {}, {}
        self._needs[names] = needs
        return self._state

    def _next_state(self, new: Iterable[Global]) -> State:
        versions = dict(self._state.versions)
        for each in new:
            versions.update(each.versions)
        numbers = {number for version in versions.values() for number in (version.payload, version.owner_payload)}
        self._payloads = {number: payload for number, payload in self._payloads.items() if number in numbers}
        state = State(self.registry.next(), versions, dict(self._payloads), self._setup)
        self.registry.add(state.number, state)
        return state

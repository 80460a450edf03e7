"""The `__main__` of each executor in a worker.

Theory of operation
    A worker has a module `__main__` for each executor, from its first call until the root says that the executor has ended. When
    calls of another executor come, that one's module is `__main__`, and its surroundings are applied.

    Before a call runs, the module is brought to the call's state: see state.py. A slot is *bound* to the script's value, or *kept*
    as the worker has it: if its own is the same, if neither can be pickled, or if a call or an initializer has set it before the
    script's value was needed. `bound` says what each name was bound to last, by the top level or from the script; a name that is
    bound to something else now was set by a call.

    Loading a value may need other globals, which are brought first (`bring`). Circles do not occur: see state.py.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, Final

from .filters import load_filters
from .names import LOOKUP, MAIN, MISSING, NAMED_KINDS, main_dict
from .pickling import digest_of, header_of, identities_of, load_definitions
from .random_generators import STREAM
from .state import Difference, Opening, Origin, Version
from .surroundings import Kept

logger = logging.getLogger("mpiexecutor")

_LARGE: Final = 1 << 20  # bytes: what is fetched by itself is taken for more
Fetch = Callable[[int, int], dict[str, Any]]  # ask the root for a number, being in this state, and load what comes


_NEVER_FREED: Final[list[Any]] = []  # as in forked processes, which end without finalising what they have inherited


class NotAdmitted(Exception):
    """An executor with fewer workers than there are has others already: this one does not run its calls."""


class MainModules:
    """Those of a worker."""

    def __init__(
        self,
        rank: int,
        fetch: Fetch,
        tell_failure: Callable[[BaseException], None],
        forgotten: Callable[[list[int]], None] = lambda _: None,
    ) -> None:
        """`tell_failure` tells the root that the top level of the script has failed, `forgotten` which executors have ended."""
        self._forgotten = forgotten
        self._rank = rank
        self._fetch = fetch
        self._tell_failure = tell_failure
        self._modules: dict[int, MainModule] = {}  # by executor
        self._current: MainModule | None = None
        self._surroundings = Kept()  # before any executor

    def enter(self, executor: int) -> "MainModule":
        """Have the `__main__` of this executor, and its surroundings."""
        module = self._modules.get(executor)
        if module is None:
            module = self._modules[executor] = MainModule((self._rank, executor), self._fetch, self._tell_failure, self.forget)
        if module is not self._current:
            if self._current is not None:
                self._current.leave()
                self._surroundings.restore()
            self._current = module
            module.enter()
        return module

    def forget(self, executors: list[int]) -> None:
        """Let go of executors that have ended. Modules and their functions refer to each other: large ones are collected now."""
        self._forgotten(executors)
        if self._drop(executors):  # in a method of its own, so that nothing here holds on to one
            gc.collect()

    def _drop(self, executors: list[int]) -> bool:
        """Drop their modules; return whether one is large."""
        dropped = [module for executor in executors if (module := self._modules.pop(executor, None))]
        return any(module.is_large for module in dropped)


class MainModule:
    """The `__main__` of one executor."""

    def __init__(
        self, key: tuple[int, int], fetch: Fetch, tell_failure: Callable[[BaseException], None], forget: Callable[[list[int]], None]
    ) -> None:
        self._key = key
        self._fetch = fetch
        self._tell_failure = tell_failure
        self._forget = forget
        self._module: ModuleType | None = None  # not before its first state
        self._surroundings: Kept | None = None  # while calls of another executor run
        self._filters: list[bytes] | None = None  # of warnings, until they can be loaded
        self.state = 0
        self._bytes = 0  # loaded
        self._numbers: dict[str, int] = {}  # of versions, by slot
        self._payloads: dict[str, int] = {}  # what each global was loaded from last
        self._bound: dict[str, Any] = {}
        self._missing: dict[str, str] = {}  # why a global is not here
        self._from_script: dict[str, Any] = {}  # what the script has under the same name
        self._waiting: dict[str, Version] = {}
        self._kept: dict[str, Version] = {}  # as good as the script's; this and the next are empty but while a state is brought
        self._coming: dict[str, Version] = {}
        self._loaded: dict[int, dict[str, Any]] = {}  # payloads
        self._inline: dict[int, bytes | memoryview] = {}
        self._failed: dict[str, Version] = {}  # what could not be loaded yet

    @property
    def is_large(self) -> bool:
        """Whether much memory was loaded for it."""
        return self._bytes > _LARGE

    def enter(self) -> None:
        """Be `__main__` of this process."""
        STREAM.key = self._key
        LOOKUP.bring = self._bring
        if self._module is not None:
            sys.modules[MAIN] = sys.modules["__mp_main__"] = self._module
        if self._surroundings is not None:
            self._surroundings.restore()

    def leave(self) -> None:
        self._surroundings = Kept()

    def has(self, name: str) -> bool:
        """Whether the script has the same function or class under this name as this worker."""
        return name in self._from_script and main_dict().get(name, MISSING) is self._from_script[name]

    def bring_to(self, state: int) -> None:
        """Have the globals as they are in this state."""
        if state == self.state:
            return
        difference: Difference = self._fetch(state, self.state)[""]
        self.state = 0  # should this fail, all is told once more
        if difference.opening is not None and self._module is None:
            self._open(difference.opening)
        self._forget(difference.ended)  # only now: before, `__main__` may have been the module of one that has ended
        self._inline = difference.inline
        self._waiting = {version.slot: version for version in difference.versions}
        try:
            for slot in sorted(self._waiting, key=self._order):
                self._bring_slot(slot)
            self._try_again()
        finally:
            self._waiting, self._kept, self._coming, self._loaded, self._inline = {}, {}, {}, {}, {}
        if self._filters is not None:  # now that their categories are there
            filters, self._filters = self._filters, None
            load_filters(filters)
        self.state = state

    def explain(self, error: BaseException) -> BaseException:
        """Return a clearer error if this one says that a global is not there which could not be had."""
        name = getattr(error, "name", None)
        of_module = isinstance(error, AttributeError) and error.obj is self._module
        if not (isinstance(error, NameError) or of_module) or name not in self._missing:
            return error
        text = (
            f"the script's global {name!r} is not in this worker: {self._missing[name]}. Make it in an initializer or in the call, "
            "or at the top level of the script with its main part under if __name__ == '__main__'"
        )
        clearer = NameError(text, name=name)
        clearer.__cause__ = error
        return clearer.with_traceback(error.__traceback__)

    def _open(self, opening: Opening) -> None:
        """Begin: take on the surroundings, and get a module."""
        opening.surroundings.apply()
        variables = dict(os.environ)
        self._filters = opening.filters
        if opening.origin is Origin.RANK:
            self._module = sys.modules[MAIN]
        else:
            self._module, error = opening.top_level.run()
            if error is not None:
                self._tell_failure(error)
        sys.modules["__mp_main__"] = self._module
        opening.surroundings.apply(variables)  # once more: the script may have changed since what its top level has set
        opening.seeds.reseed()
        self._bound = dict(vars(self._module))
        own = [value for value in self._bound.values() if type(value).__module__ == MAIN and hasattr(type(value), "__del__")]
        _NEVER_FREED.extend(own)  # it may delete what is the script's: see _bind
        self._from_script = {
            name: value
            for name, value in self._bound.items()
            if isinstance(value, NAMED_KINDS) and getattr(value, "__module__", None) == MAIN
        }

    def _order(self, slot: str) -> int:
        """Put functions and classes before values, which may refer to them, and attributes last."""
        if "." in slot:
            return 2
        return 0 if isinstance(self._bound.get(slot), (type, FunctionType)) else 1

    def _bring(self, name: str) -> None:
        """Bring a global that is needed to load another one."""
        if name in self._waiting:
            self._bring_slot(name)

    def _bring_slot(self, slot: str) -> None:
        version = self._waiting.pop(slot, None)
        if version is None or self._numbers.get(slot) == version.number:
            return
        if "." in slot:
            self._bring_attribute(version, *slot.split(".", 1))
        else:
            self._coming[slot] = version
            self._bring_global(version)
            del self._coming[slot]
        self._numbers[slot] = version.number

    def _try_again(self) -> None:
        """Load what could not be loaded, as its own code needed globals that were not there yet, until nothing more can be."""
        left = 0
        while self._failed and len(self._failed) != left:
            left = len(self._failed)
            for name, version in list(self._failed.items()):
                self._numbers.pop(name, None)
                self._waiting[name] = version
                self._bring_slot(name)

    def _bring_global(self, version: Version) -> None:
        name = version.slot
        names = main_dict()
        if self._is_set_by_call(version):
            return
        own = names.get(name, MISSING)
        if version.gone:
            names.pop(name, None)
            return
        may_be_as_good = version.first and name not in self._numbers and own is not MISSING and version.digest is not None
        if may_be_as_good and self._digest(name, own, is_global=True) == version.digest:
            self._kept[name] = version
            return
        if version.why:
            names.pop(name, None)
            self._missing[name] = f"it cannot be pickled ({version.why})"
            return
        try:
            self._value(version)
        except Exception as error:
            names.pop(name, None)
            self._missing[name] = f"it cannot be rebuilt from its pickle ({type(error).__name__}: {error})"
            self._failed[name] = version
            logger.debug("the script's global %s cannot be rebuilt", name, exc_info=error)
            return
        if self._numbers.get(name) == version.number:
            return  # it has come together with one that it needs
        for other, content in self._loaded[version.payload].items():
            companion = self._coming.get(other) or self._waiting.get(other) or self._kept.get(other)
            if companion is not None and not self._is_set_by_call(companion):
                self._waiting.pop(other, None)
                self._bind(companion, content, version.payload)

    def _is_set_by_call(self, version: Version) -> bool:
        """Whether a call, or the initializer, has set a global before the script's value was needed."""
        name = version.slot
        own = main_dict().get(name, MISSING)
        return version.first and name not in self._numbers and own is not MISSING and own is not self._bound.get(name, MISSING)

    def _bind(self, version: Version, value: Any, payload: int) -> None:
        name = version.slot
        for each in (main_dict().get(name), value):
            if hasattr(type(each), "__del__"):  # it may delete what is the script's
                _NEVER_FREED.append(each)
        main_dict()[name] = self._bound[name] = value
        self._numbers[name] = version.number
        self._payloads[name] = payload
        self._missing.pop(name, None)
        self._failed.pop(name, None)
        if isinstance(value, NAMED_KINDS):
            self._from_script[name] = value

    def _bring_attribute(self, version: Version, name: str, attribute: str) -> None:
        owner = main_dict().get(name, MISSING)
        if not isinstance(owner, (type, FunctionType)) or (version.within and self._payloads.get(name) == version.within):
            return  # the attribute has come with its owner
        own = vars(owner).get(attribute, MISSING) if isinstance(owner, type) else getattr(owner, attribute, MISSING)
        is_first = version.first and version.slot not in self._numbers and own is not MISSING
        if is_first and version.digest is not None and self._digest(version.slot, own) == version.digest:
            return
        if version.gone:
            if own is not MISSING:
                delattr(owner, attribute)
        elif not version.why:
            setattr(owner, attribute, self._value(version))

    def _digest(self, slot: str, own: Any, *, is_global: bool = False) -> bytes | None:
        if is_global and isinstance(own, (type, FunctionType)) and own.__module__ == MAIN and own.__qualname__ == slot:
            own_value = header_of(own)
        else:
            own_value = own
        while True:
            refers: set[str] = set()
            digest = digest_of(slot, own_value, set(), identities_of(main_dict()), refers)
            waiting = refers & self._waiting.keys()
            if not waiting:
                break
            for name in waiting:  # what refers to a global that is replaced is not as good as the script's
                self._bring_slot(name)
        return f"{type(own).__module__}.{type(own).__qualname__}".encode() if digest is None else digest

    def _value(self, version: Version) -> Any:
        number = version.payload
        loaded = self._loaded.get(number)
        if loaded is None:
            data = self._inline.get(number)
            if data is None:
                loaded = self._fetch(number, 0)
                self._bytes += _LARGE + 1
            else:
                loaded = load_definitions(data)
            self._loaded[number] = loaded
        return loaded[version.slot]

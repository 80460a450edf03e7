"""The `__main__` modules of a worker: one for each executor.

Theory of operation
    A worker makes a module when the first call of an executor arrives, and drops it when the root reports that the executor has
    ended. While calls of an executor run, its module is `sys.modules["__main__"]`, and the process has its surroundings.

    Before a call runs, its module is *brought* to the state of the call (see state.py). The worker asks the root for the difference
    between the two states. For each version in it the worker does one of these:
    - It keeps what a call or an initializer has bound to the name before the script's value was needed.
    - It keeps its own value if that equals the script's, as their digests say, or if neither of them can be pickled.
    - It deletes the name if the script has deleted it, or if the script's value cannot be pickled or rebuilt. In the second case
      `explain` adds the reason to the NameError that a call may raise.
    - Otherwise it loads the payload and binds the value. Loading looks up other globals; `LOOKUP.bring` brings them first.

Invariants
    `_bound` has the object to which the worker, or the top level that it has run, has bound each name last. If the module has
    another object under that name, a call has bound it.
    Globals that refer to each other share a payload. So bringing a global ends, although it may bring others first.
    If bringing a module fails, its state is 0, and the next call asks for everything.
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
from .pickling import digest_of, identities_of, load_definitions
from .random_generators import STREAM
from .state import Difference, Origin, Setup, Version
from .surroundings import Snapshot

logger = logging.getLogger("mpiexecutor")

_LARGE: Final = 1 << 20  # bytes: a payload that is fetched by itself counts as more
# Asks the root for the object of a number, for a worker in a state, and loads the answer.
Fetch = Callable[[int, int], dict[str, Any]]

_NEVER_FREED: Final[list[Any]] = []  # objects whose finalizers must not run here: forked processes do not run them either


class NotAdmitted(Exception):
    """The executor has `max_workers` workers already, so this worker does not run its calls."""


class MainModules:
    """All `__main__` modules of a worker."""

    def __init__(
        self,
        rank: int,
        fetch: Fetch,
        tell_failure: Callable[[BaseException], None],
        forgotten: Callable[[list[int]], None] = lambda _: None,
    ) -> None:
        """`tell_failure` tells the root that the top level has failed here; `forgotten` is told which executors have ended."""
        self._forgotten = forgotten
        self._rank = rank
        self._fetch = fetch
        self._tell_failure = tell_failure
        self._modules: dict[int, MainModule] = {}  # by executor
        self._current: MainModule | None = None
        self._surroundings = Snapshot()  # without an executor

    def enter(self, executor: int) -> "MainModule":
        """Make the module of this executor `__main__`, and return it."""
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
        """Drop the modules of executors that have ended. A module and its functions are a cycle: large ones are collected now."""
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
        self._module: ModuleType | None = None  # None before the first state
        self._surroundings: Snapshot | None = None  # while calls of another executor run
        self._filters: list[bytes] | None = None  # of warnings, until they can be loaded
        self.state = 0
        self._bytes = 0  # loaded, about
        self._numbers: dict[str, int] = {}  # of the versions that are here, by qualified name
        self._payloads: dict[str, int] = {}  # the payload from which each global was loaded last
        self._bound: dict[str, Any] = {}
        self._errors: dict[str, str] = {}  # why globals are not here
        self._of_script: dict[str, Any] = {}  # functions and classes that the script has under the same name
        # The following are empty except while a module is brought to a state.
        self._pending: dict[str, Version] = {}  # not looked at yet
        self._equal: dict[str, Version] = {}  # the worker has kept its own value
        self._loading: dict[str, Version] = {}
        self._loaded: dict[int, dict[str, Any]] = {}  # payloads, by number
        self._inline: dict[int, bytes | memoryview] = {}  # pickles of payloads, by number
        self._failed: dict[str, Version] = {}  # could not be loaded yet

    @property
    def is_large(self) -> bool:
        """Whether much memory was loaded for it."""
        return self._bytes > _LARGE

    def enter(self) -> None:
        """Become `__main__` of this process."""
        STREAM.key = self._key
        LOOKUP.bring = self._bring
        if self._module is not None:
            sys.modules[MAIN] = sys.modules["__mp_main__"] = self._module
        if self._surroundings is not None:
            self._surroundings.restore()

    def leave(self) -> None:
        self._surroundings = Snapshot()

    def has(self, name: str) -> bool:
        """Whether this global is the same function or class as in the script, so that a result may name it."""
        return name in self._of_script and main_dict().get(name, MISSING) is self._of_script[name]

    def bring_to(self, state: int) -> None:
        """Bring the globals to this state."""
        if state == self.state:
            return
        difference: Difference = self._fetch(state, self.state)[""]
        self.state = 0
        if difference.setup is not None and self._module is None:
            self._set_up(difference.setup)
        self._forget(difference.ended)  # only now: before, `__main__` may have been the module of one that has ended
        self._inline = difference.inline
        self._pending = {version.name: version for version in difference.versions}
        try:
            for name in sorted(self._pending, key=self._order):
                self._bring(name)
            self._retry()
        finally:
            self._pending, self._equal, self._loading, self._loaded, self._inline = {}, {}, {}, {}, {}
        if self._filters is not None:  # their categories are here now
            filters, self._filters = self._filters, None
            load_filters(filters)
        self.state = state

    def explain(self, error: BaseException) -> BaseException:
        """Return a clearer error if this one says that a global does not exist which could not be pickled or rebuilt."""
        name = getattr(error, "name", None)
        of_module = isinstance(error, AttributeError) and error.obj is self._module
        if not (isinstance(error, NameError) or of_module) or name not in self._errors:
            return error
        text = (
            f"the script's global {name!r} is not in this worker: {self._errors[name]}. Make it in an initializer or in the call, "
            "or at the top level of the script with its main part under if __name__ == '__main__'"
        )
        clearer = NameError(text, name=name)
        clearer.__cause__ = error
        return clearer.with_traceback(error.__traceback__)

    def _set_up(self, setup: Setup) -> None:
        """Apply the surroundings, and get a module."""
        setup.surroundings.apply()
        variables = dict(os.environ)
        self._filters = setup.filters
        if setup.origin is Origin.RANK:
            self._module = sys.modules[MAIN]
        else:
            self._module, error = setup.top_level.run()
            if error is not None:
                self._tell_failure(error)
        sys.modules["__mp_main__"] = self._module
        setup.surroundings.apply(variables)  # again: the script may have changed what its top level has set
        setup.seeds.reseed()
        self._bound = dict(vars(self._module))
        own = [value for value in self._bound.values() if type(value).__module__ == MAIN and hasattr(type(value), "__del__")]
        _NEVER_FREED.extend(own)  # it may delete what is the script's: see _bind
        self._of_script = {
            name: value
            for name, value in self._bound.items()
            if isinstance(value, NAMED_KINDS) and getattr(value, "__module__", None) == MAIN
        }

    def _order(self, name: str) -> int:
        """Return the sort key that puts functions and classes before values, which may refer to them, and attributes last."""
        if "." in name:
            return 2
        return 0 if isinstance(self._bound.get(name), (type, FunctionType)) else 1

    def _bring(self, name: str) -> None:
        """Bring a global or an attribute to its version in the new state, unless that is done."""
        version = self._pending.pop(name, None)
        if version is None or self._numbers.get(name) == version.number:
            return
        if "." in name:
            self._bring_attribute(version, *name.split(".", 1))
        else:
            self._loading[name] = version
            self._bring_global(version)
            del self._loading[name]
        self._numbers[name] = version.number

    def _retry(self) -> None:
        """Load globals again that could not be loaded, as their own code has used globals that were not here yet."""
        left = 0
        while self._failed and len(self._failed) != left:
            left = len(self._failed)
            for name, version in list(self._failed.items()):
                self._numbers.pop(name, None)
                self._pending[name] = version
                self._bring(name)

    def _bring_global(self, version: Version) -> None:
        name = version.name
        names = main_dict()
        if self._is_bound_by_call(version):
            return
        own = names.get(name, MISSING)
        if version.deleted:
            names.pop(name, None)
            return
        may_be_equal = version.first and name not in self._numbers and own is not MISSING and version.digest is not None
        if may_be_equal and self._digest(name, own) == version.digest:
            self._equal[name] = version
            return
        if version.error:
            names.pop(name, None)
            self._errors[name] = f"it cannot be pickled ({version.error})"
            return
        try:
            self._value(version)
        except Exception as error:
            names.pop(name, None)
            self._errors[name] = f"it cannot be rebuilt from its pickle ({type(error).__name__}: {error})"
            self._failed[name] = version
            logger.debug("the script's global %s cannot be rebuilt", name, exc_info=error)
            return
        if self._numbers.get(name) == version.number:
            return  # it was in the payload of another global, which was brought meanwhile
        for other, value in self._loaded[version.payload].items():  # all globals that share this payload
            other_version = self._loading.get(other) or self._pending.get(other) or self._equal.get(other)
            if other_version is not None and not self._is_bound_by_call(other_version):
                self._pending.pop(other, None)
                self._bind(other_version, value, version.payload)

    def _is_bound_by_call(self, version: Version) -> bool:
        """Whether a call or an initializer has bound a global before the script's value was needed."""
        name = version.name
        own = main_dict().get(name, MISSING)
        return version.first and name not in self._numbers and own is not MISSING and own is not self._bound.get(name, MISSING)

    def _bind(self, version: Version, value: Any, payload: int) -> None:
        name = version.name
        for each in (main_dict().get(name), value):
            if hasattr(type(each), "__del__"):  # it may delete a resource of the script
                _NEVER_FREED.append(each)
        main_dict()[name] = self._bound[name] = value
        self._numbers[name] = version.number
        self._payloads[name] = payload
        self._errors.pop(name, None)
        self._failed.pop(name, None)
        if isinstance(value, NAMED_KINDS):
            self._of_script[name] = value

    def _bring_attribute(self, version: Version, name: str, attribute: str) -> None:
        owner = main_dict().get(name, MISSING)
        is_with_owner = version.owner_payload and self._payloads.get(name) == version.owner_payload
        if is_with_owner or not isinstance(owner, (type, FunctionType)):
            return
        own = vars(owner).get(attribute, MISSING) if isinstance(owner, type) else getattr(owner, attribute, MISSING)
        is_first = version.first and version.name not in self._numbers and own is not MISSING
        if is_first and version.digest is not None and self._digest(version.name, own) == version.digest:
            return
        if version.deleted:
            if own is not MISSING:
                delattr(owner, attribute)
        elif not version.error:
            setattr(owner, attribute, self._value(version))

    def _digest(self, name: str, own: Any) -> bytes:
        """Return the digest of a value of this worker. Globals that it refers to are brought first: the digest depends on them."""
        while True:
            references: set[str] = set()
            digest = digest_of(name, own, set(), identities_of(main_dict()), references)
            pending = references & self._pending.keys()
            if not pending:
                return digest
            for other in pending:
                self._bring(other)

    def _value(self, version: Version) -> Any:
        """Return the script's value; load the payload if that was not done yet."""
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
        return loaded[version.name]

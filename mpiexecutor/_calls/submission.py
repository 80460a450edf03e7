"""Pickles calls, in the thread that submits them, and passes them to the scheduler."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pickle import PicklingError
from types import FunctionType, MethodType
from typing import Any, TypeVar

from mpiexecutor._script.names import held_by, name_of, top_of
from mpiexecutor._script.root.script import Script
from mpiexecutor._script.state import State
from mpiexecutor._util.pickling import Pickled

from .functions import Function, FunctionRegistry
from .outcomes import Location, dumps_sized, with_cause
from .scheduling.futures import slim_future
from .scheduling.scheduler import Scheduler
from .scheduling.session import Session

T = TypeVar("T")

_MOST_HELD = 8  # most functions that a kind of calls looks at, and most attributes of an object that holds some


class Submitter:
    """Submits the calls of one executor."""

    def __init__(
        self, scheduler: Scheduler, session: Session, functions: FunctionRegistry, script: Script | None, location: Location
    ) -> None:
        """Submit to this session. `script` is None if calls run in the script's own process, which has its globals."""
        self.scheduler = scheduler
        self.session = session
        self._functions = functions
        self._script = script
        self._location = location

    def submit(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], kind: object) -> Future[T]:
        """Submit a call, and return its future. A call that cannot be pickled fails in its future.

        Args:
            fn: What to call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            kind: Calls of one kind are expected to take equally long, see `kind_of`.

        """
        if self.session.closed or self.session.broken:
            self.scheduler.check_open(self.session)
        future = slim_future()
        try:
            call = self.prepared(fn, args, kwargs, None)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised by the pickling of the call
            future.set_running_or_notify_cancel()
            future.set_exception(self.refusal(error))
            return future
        self.scheduler.submit(self.session, future, kind, *call)
        return future

    def target(self, fn: Callable[..., Any], function: Function | None) -> tuple[Function | str | None, State | None]:
        """Return what the message of a call has for its function, None if that is in the pickle, and the state for it.

        `function` is `fn` under a number, if a map has numbered it.
        """
        called: Function | str | None = None
        state: State | None = None
        if type(fn) is FunctionType:
            called, state = (name_of(fn), None) if self._script is None else self._script.named(fn)
        if called is None:
            is_unchanged = function is not None and function.names_are_unchanged()
            called = function if is_unchanged else self._functions.submitted(fn)
            if self._script is not None and called is not None:
                state = self._script.state(_all_names(called, set()))
        return called, state

    def prepared(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], function: Function | None
    ) -> tuple[Function | str | None, State | None, Pickled, int]:
        """Pickle a call. Return also what its message has for the function, and the state that it needs, and its size."""
        called, state = self.target(fn, function)
        names: set[str] = set()
        pickle, size = dumps_sized((None if called else fn, args, kwargs), names)
        if self._script is not None and (names or state is None):
            state = self._script.state(_all_names(called, names))
        return called, state, pickle, size

    def refusal(self, error: BaseException) -> BaseException:
        """Return the error of a call that cannot be pickled. Raise as `check_open` of the scheduler."""
        self.scheduler.check_open(self.session)
        return with_cause(_without_exit(error), self._location)

    def numbered(self, fn: Callable[..., Any]) -> Function | None:
        """Return the function of a map under a number; None if it has a name, is pickled with every call, or cannot be pickled."""
        try:
            return None if type(fn) is FunctionType and name_of(fn) else self._functions.mapped(fn)
        except Exception:  # noqa: BLE001 - raised by its pickling, and raised again by every call
            return None


def _all_names(called: Function | str | None, names: set[str]) -> frozenset[str]:
    """Return the globals of the script that a call needs: those of its function and those in its arguments."""
    if called is None:
        return frozenset(names)
    return called.names | names if isinstance(called, Function) else frozenset([top_of(called), *names])


def _without_exit(error: BaseException) -> BaseException:
    """Return the error for a future: PicklingError for SystemExit, which would end the script when it is raised by `result`."""
    if not isinstance(error, SystemExit):
        return error
    refused = PicklingError(f"pickling this call raised {type(error).__name__}: {error}")
    refused.__cause__ = error
    return refused


def kind_of(fn: Callable[..., Any]) -> object:
    """Return the kind of a call: calls of one kind are expected to take equally long.

    It is the code, or the name, of what is called and of the functions that this holds: those of one decorator share their code.
    """
    if (
        type(fn) is FunctionType and fn.__closure__ is None and fn.__defaults__ is None and fn.__kwdefaults__ is None
    ):  # most functions
        return fn.__code__
    kind: list[object] = []
    waiting: list[Any] = [fn]
    for each in waiting:  # which grows
        try:
            kind.append(_work_of(each))
            for value in _held(each):
                if callable(value) and all(value is not other for other in waiting):
                    waiting.append(value)
        except Exception:  # noqa: BLE001 - raised by its own code
            kind.append(type(each).__qualname__)
        if len(kind) >= _MOST_HELD:
            break
    return tuple(kind)


def _work_of(fn: Any) -> object:
    """Return what determines the duration of a call, apart from what `fn` holds: its code or its name; for a method the class."""
    if type(fn) is FunctionType:
        return fn.__code__
    what = type(fn.__self__) if type(fn) is MethodType else fn
    if not hasattr(what, "__qualname__"):
        what = type(what)
    return ".".join(name for name in (what.__module__, what.__qualname__) if type(name) is str)


def _held(fn: Any) -> Iterable[Any]:
    """Return the objects that a callable may call."""
    if type(fn) is FunctionType:
        return held_by(fn)
    if isinstance(fn, partial):
        return (fn.func, *fn.args, *fn.keywords.values())
    if type(fn) is MethodType:
        return (fn.__func__, *_attributes(fn.__self__))
    return _attributes(fn)


def _attributes(thing: Any) -> Iterable[Any]:
    return () if isinstance(thing, type) else islice(getattr(thing, "__dict__", {}).values(), _MOST_HELD)

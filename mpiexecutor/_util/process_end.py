"""The actions of this process at its end, in one order; and those of a forked child at its start.

    when_used   executors' pools finish their calls, raw channels their background puts: the one made last comes first,
                in the order of Python's other exit handlers
    PARTING     this rank waits until the other ranks have left, too
    PROGRESS    the progress threads end: until here ranks on other nodes may need them
    MPI         MPI is finalised, or the process manager is told without it; a job that this process has started ends

PARTING, PROGRESS and MPI share one exit handler, which is registered with the first of their actions. So their order does not
depend on the order in which they are added.

A forked child is no rank: it ends nothing. Its copies of the parent's objects are disowned instead.
"""

import atexit
import contextlib
import enum
import os
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

Action = Callable[[], object]
_LAST_WORDS = 0.2  # seconds for printed output to reach mpiexec


class Stage(enum.IntEnum):
    """The last steps of a process, in order."""

    PARTING = enum.auto()
    PROGRESS = enum.auto()
    MPI = enum.auto()


class ProcessEnd:
    """The actions of this process."""

    def __init__(self) -> None:
        self._when_used: list[Action] = []
        self._last: list[tuple[Stage, Action]] = []
        self._in_child: list[weakref.WeakMethod[Any]] = []
        self._registered = False  # the exit handler of the last steps

    def add(self, action: Action, stage: Stage | None = None) -> None:
        """Have an action called at the end, in a stage; or, without one, in the order of Python's exit handlers."""
        if stage is None:
            self._when_used.append(action)
            atexit.register(action)
            return
        self._last.append((stage, action))
        if not self._registered:
            self._registered = True
            atexit.register(self.run_last)

    def remove(self, action: Action) -> None:
        """Remove an action that was added without a stage."""
        atexit.unregister(action)
        with contextlib.suppress(ValueError):
            self._when_used.remove(action)

    def disown_in_child(self, method: Action) -> None:
        """Have a method called in each forked child, as long as its object lives."""
        self._in_child = [reference for reference in self._in_child if reference() is not None]
        self._in_child.append(weakref.WeakMethod(method))

    def run_last(self) -> None:
        """Take the last steps, and those that one of them adds. If one fails, the others are still taken."""
        if self._last:
            step = min(reversed(self._last), key=lambda added: added[0])
            self._last.remove(step)
            try:
                step[1]()
            finally:
                self.run_last()

    def forget(self) -> None:
        """In a forked child: drop all actions, and disown the parent's objects."""
        for action in self._when_used:
            atexit.unregister(action)
        self._when_used.clear()
        self._last.clear()
        for reference in self._in_child:
            if (method := reference()) is not None:
                method()
        self._in_child.clear()


def flush_output(*, and_wait: bool = False) -> None:
    """Flush the standard streams; with `and_wait` give mpiexec time to read them, before the job is ended."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if and_wait:
        time.sleep(_LAST_WORDS)


PROCESS_END: Final = ProcessEnd()
os.register_at_fork(after_in_child=PROCESS_END.forget)

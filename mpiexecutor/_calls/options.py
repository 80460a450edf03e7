"""The arguments of an executor, and the rules for their values."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of an executor: see RMAChannelExecutor. TypeError or ValueError for a value that is not possible."""

    max_workers: int | None = None
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    retries: int = 0
    task_timeout: float | None = None
    max_pending: int | None = None
    max_tasks_per_child: int | None = None
    isolate: bool | None = None

    @property
    def per_child(self) -> int | None:
        """The calls that a child process runs at the most, 0: any number; None: workers run them themselves."""
        if self.isolate is False or (self.isolate is None and self.max_tasks_per_child is None and self.task_timeout is None):
            return None
        return self.max_tasks_per_child or 0

    def __post_init__(self) -> None:
        _check_number("max_workers", self.max_workers, optional=True)
        if self.max_workers is not None and self.max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")  # the text of the standard library
        _check_number("max_pending", self.max_pending, least=1, optional=True)
        _check_number("retries", self.retries, least=0)
        _check_number("max_tasks_per_child", self.max_tasks_per_child, least=1, optional=True)
        if self.isolate not in {None, False, True}:
            raise TypeError(f"isolate is True, False or None, not {self.isolate!r}")
        if self.isolate is False and self.max_tasks_per_child is not None:
            raise ValueError("max_tasks_per_child needs child processes: leave isolate=False out")
        if self.initializer is not None and not callable(self.initializer):
            raise TypeError(f"initializer is called in each worker: {self.initializer!r} cannot be called")
        if not isinstance(self.initargs, Iterable):
            raise TypeError(f"initargs are what initializer is called with, a tuple, not {self.initargs!r}")
        timeout: Any = self.task_timeout
        if timeout is None:
            return
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
            raise TypeError(f"task_timeout is a number of seconds or None, not {timeout!r}")
        if not 0 < timeout <= sys.float_info.max:
            raise ValueError(f"task_timeout is a number of seconds above 0, or None, not {timeout!r}")


def check_impossible(mp_context: object) -> None:
    """Raise ValueError for an argument of ProcessPoolExecutor that MPI cannot fulfil."""
    if mp_context is not None:
        raise ValueError("mp_context cannot be chosen: workers are ranks of the MPI job, not processes that this one starts")


def check_map(chunksize: int, buffersize: int | None) -> None:
    """Raise TypeError or ValueError for options of a map that are not possible; with the texts of the standard library, if any."""
    if not hasattr(chunksize, "__index__"):
        raise TypeError(f"chunksize is a number of calls, at least 1, not {chunksize!r}")
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def _check_number(name: str, number: Any, *, least: int | None = None, optional: bool = False) -> None:
    if optional and number is None:
        return
    if not hasattr(number, "__index__") or isinstance(number, bool):
        raise TypeError(f"{name} is a whole number{' or None' if optional else ''}, not {number!r}")
    if least is not None and number < least:
        raise ValueError(f"{name} is at least {least}, not {number}")

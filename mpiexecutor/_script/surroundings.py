"""Surroundings: the settings of the script's process that calls find in a worker.

The root captures them when an executor is made, and a worker applies them before the first call of that executor. From then on each
executor has its own in each worker: a worker takes a snapshot before calls of another executor run, and restores it afterwards.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.context
import os
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Environment variables that a process manager sets for one rank; not those with which users configure MPI.
_OF_RANKS: Final = re.compile(
    r"PMI\d?_|(PMIX|PRTE|PRRTE)_(?!MCA_)|OMPI_(?!MCA_|PREFIX)|(OMPI|PRTE|PMIX)_MCA_(ess|orte|prte_(ess|launch|hnp|parent)|pmix|plm|\w*(_uri|jobid|vpid))"
    r"|OPAL_(?!PREFIX)|ORTE_|HYDI_|MPI_LOCAL|MPIR_CVAR_CH3_INTERFACE|I_MPI_(INFO|HYDRA|MPIRUN)|SLURM_(PROCID|LOCALID|STEP_NUM_TASKS|STEP_TASKS|TASK_PID|PMI)"
)
_YIELDS: Final = "OMPI_MCA_mpi_yield_when_idle"  # this package sets it for its ranks


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The settings of the script's process."""

    path: list[str]  # sys.path
    arguments: list[str]  # sys.argv
    folder: str | None  # working directory; None if it was removed
    environment: dict[str, str]
    changed: dict[str, str | None]  # variables that the script has changed since its workers were started; None: removed
    recursion_limit: int
    authkey: bytes

    @classmethod
    def of_this_process(cls) -> "Surroundings":
        """Return the settings of this process, the script's."""
        return cls(
            import_path(),
            list(getattr(sys, "argv", ())),
            working_directory(),
            dict(os.environ),
            {name: value for before in _BEFORE for name, value in _changes(before, os.environ).items() if name != _YIELDS},
            sys.getrecursionlimit(),
            bytes(multiprocessing.current_process().authkey),
        )

    def apply(self, before: Mapping[str, str] | None = None) -> None:
        """Apply them to this worker. A working directory that does not exist on its node is left out.

        Args:
            before: The environment before the top level of the script ran here. Variables that the top level has changed get the
                value that they have in the script.

        """
        sys.path[:] = self.path
        sys.argv = list(self.arguments)
        set_working_directory(self.folder)
        for name in _changes(os.environ if before is None else before, os.environ):
            _set_variable(name, self.environment.get(name))
        for name, value in self.changed.items():
            _set_variable(name, value)
        sys.setrecursionlimit(self.recursion_limit)
        multiprocessing.current_process().authkey = self.authkey


class Snapshot:
    """The settings of this process at one moment."""

    def __init__(self) -> None:
        self._surroundings = Surroundings.of_this_process()
        self._filters = list(warnings.filters)
        self._loggers = {logger: (list(logger.handlers), logger.level, logger.propagate) for logger in _loggers()}
        self._start_method = _start_methods()._actual_context  # noqa: SLF001 - see there

    def restore(self) -> None:
        """Set everything back to that moment."""
        self._surroundings.apply(self._surroundings.environment)
        set_filters(self._filters)
        for logger in _loggers():
            logger.handlers[:], level, logger.propagate = self._loggers.get(logger, ([], logging.NOTSET, True))
            logger.setLevel(level)
        _start_methods()._actual_context = self._start_method  # noqa: SLF001 - the same


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _start_methods() -> Any:
    """Return the object that has the start method of multiprocessing."""
    return multiprocessing.context._default_context  # noqa: SLF001 - there is no public way to reset it


def import_path() -> list[str]:
    """Return the entries of sys.path that imports use: they ignore entries that are no strings."""
    entries: list[object] = list(sys.path)
    return [entry for entry in entries if isinstance(entry, str)]


def remember_environment() -> None:
    """Remember the environment in which workers are started. What the script changes later is changed in its calls, too."""
    _BEFORE[1:] = [dict(os.environ)]


def remove_rank_variables() -> None:
    """Remove the variables of the process manager, after MPI has read them: programs that calls start are no ranks."""
    for name in filter(_is_of_rank, list(os.environ)):
        del os.environ[name]


def _is_of_rank(name: str) -> bool:
    return bool(_OF_RANKS.match(name)) or (name == _YIELDS and name not in _BEFORE[0])


def set_filters(filters: list[Any]) -> None:
    """Replace the warning filters."""
    warnings.resetwarnings()  # it also clears the cache of warnings that were shown
    warnings.filters[:] = filters  # type: ignore[index]


def working_directory() -> str | None:
    """Return the working directory; None if it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def set_working_directory(folder: str | None) -> None:
    """Change the working directory, if the folder exists here."""
    if folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(folder)


_AT_IMPORT = dict(os.environ)


def _initial_environment() -> dict[str, str]:
    """Return the environment that this process was started with."""
    try:
        text = Path("/proc/self/environ").read_bytes()
    except OSError:
        return _AT_IMPORT
    variables = (variable.partition(b"=") for variable in text.split(b"\0") if b"=" in variable)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in variables}


_BEFORE: Final = [_initial_environment()]  # the environments in which this process, and then its workers, were started


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {name: value for name, value in after.items() if before.get(name) != value}
    changes.update((name, None) for name in before if name not in after)
    return changes


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value

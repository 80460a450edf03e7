"""What surrounds the calls of an executor: sys.path, arguments, folder, environment, warning filters, recursion limit, authkey.

The root captures them when an executor is made. A worker applies them before the first call of that executor, and keeps what calls
change: when calls of another executor come in between, both have their own again.
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

# Variables that a process manager sets for one rank, and not those by which users set it up. A program that a call starts is no
# rank.
_OF_RANKS: Final = re.compile(
    r"PMI\d?_|(PMIX|PRTE|PRRTE)_(?!MCA_)|OMPI_(?!MCA_|PREFIX)|(OMPI|PRTE|PMIX)_MCA_(ess|orte|prte_(ess|launch|hnp|parent)|pmix|plm|\w*(_uri|jobid|vpid))"
    r"|OPAL_(?!PREFIX)|ORTE_|HYDI_|MPI_LOCAL|MPIR_CVAR_CH3_INTERFACE|I_MPI_(INFO|HYDRA|MPIRUN)|SLURM_(PROCID|LOCALID|STEP_NUM_TASKS|STEP_TASKS|TASK_PID|PMI)"
)
_YIELDS: Final = "OMPI_MCA_mpi_yield_when_idle"  # which this package sets for its ranks


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Those of a process."""

    path: list[str]
    arguments: list[str]
    folder: str | None
    environment: dict[str, str]
    changed: dict[str, str | None]  # of the environment, since the script and its workers were started; None: removed
    recursion_limit: int
    authkey: bytes

    @classmethod
    def of_this_process(cls) -> "Surroundings":
        """Capture those of the script."""
        return cls(
            import_path(),
            list(getattr(sys, "argv", ())),
            _folder(),
            dict(os.environ),
            {name: value for before in _BEFORE for name, value in _changes(before, os.environ).items() if name != _YIELDS},
            sys.getrecursionlimit(),
            bytes(multiprocessing.current_process().authkey),
        )

    def apply(self, before: Mapping[str, str] | None = None) -> None:
        """Have this worker take them on. A folder that it does not have, on another node perhaps, is left out.

        What differs from the environment `before` was set by the top level of the script: it gets the script's value, too.
        """
        sys.path[:] = self.path
        sys.argv = list(self.arguments)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.chdir(self.folder)
        for name in _changes(os.environ if before is None else before, os.environ):
            _set_variable(name, self.environment.get(name))
        for name, value in self.changed.items():
            _set_variable(name, value)
        sys.setrecursionlimit(self.recursion_limit)
        multiprocessing.current_process().authkey = self.authkey


class Snapshot:
    """The surroundings of one executor in a worker, while calls of another one run."""

    def __init__(self) -> None:
        self._path = list(sys.path)
        self._arguments = list(sys.argv)
        self._folder = _folder()
        self._environment = dict(os.environ)
        self._filters = list(warnings.filters)
        self._recursion_limit = sys.getrecursionlimit()
        self._authkey = multiprocessing.current_process().authkey
        self._loggers = {logger: (list(logger.handlers), logger.level, logger.propagate) for logger in _loggers()}
        self._start_method = _start_methods()._actual_context  # noqa: SLF001 - see there

    def restore(self) -> None:
        """Have them again."""
        sys.path[:] = self._path
        sys.argv = self._arguments
        if self._folder is not None:
            with contextlib.suppress(OSError):
                os.chdir(self._folder)
        for name, value in _changes(os.environ, self._environment).items():
            _set_variable(name, value)
        set_filters(self._filters)
        sys.setrecursionlimit(self._recursion_limit)
        multiprocessing.current_process().authkey = self._authkey
        for logger in _loggers():
            logger.handlers[:], level, logger.propagate = self._loggers.get(logger, ([], logging.NOTSET, True))
            logger.setLevel(level)
        _start_methods()._actual_context = self._start_method  # noqa: SLF001 - the same


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _start_methods() -> Any:
    """Return what knows which start method a script has set for multiprocessing."""
    return multiprocessing.context._default_context  # noqa: SLF001 - nothing else can set it back


def import_path() -> list[str]:
    """Return the entries of sys.path that imports look at: others may be there, too."""
    entries: list[object] = list(sys.path)
    return [entry for entry in entries if isinstance(entry, str)]


def note_environment() -> None:
    """Note the environment that workers are started in: what the script changes from here on, it changes for its calls."""
    _BEFORE[1:] = [dict(os.environ)]


def leave_out_rank() -> None:
    """Remove from the environment what says that this process is a rank, now that MPI knows: programs that calls start are none."""
    for name in filter(_is_of_rank, list(os.environ)):
        del os.environ[name]


def _is_of_rank(name: str) -> bool:
    return bool(_OF_RANKS.match(name)) or (name == _YIELDS and name not in _BEFORE[0])


def set_filters(filters: list[Any]) -> None:
    """Replace the warning filters."""
    warnings.resetwarnings()  # also forgets what was remembered of the filters before
    warnings.filters[:] = filters  # type: ignore[index]


def _folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # removed
        return None


_AT_IMPORT = dict(os.environ)


def _initial_environment() -> dict[str, str]:
    """Return the environment that this process was started with."""
    try:
        text = Path("/proc/self/environ").read_bytes()
    except OSError:
        return _AT_IMPORT
    variables = (variable.partition(b"=") for variable in text.split(b"\0") if b"=" in variable)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in variables}


_BEFORE: Final = [_initial_environment()]  # environments that this process and its workers were started in


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {name: value for name, value in after.items() if before.get(name) != value}
    changes.update((name, None) for name in before if name not in after)
    return changes


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value

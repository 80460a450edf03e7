"""One rank of 'python -m mpiexecutor': rank 0 runs the script, the others run its calls; with --spmd every rank runs the script.

The script needs no guard, runs once, and may make executors anywhere.
"""

import builtins
import io
import runpy
import sys
import zipfile
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType

from mpiexecutor._liveness.supervised import start_supervisor
from mpiexecutor._pool.serve import serve
from mpiexecutor._pool.worker_pool import NO_CHANNEL, release_workers
from mpiexecutor._rma.serving_ranks import SERVING_RANKS
from mpiexecutor._start.job import StartError
from mpiexecutor._start.mpiexec import rank_in_environment, yield_when_idle
from mpiexecutor._start.process import PROCESS, check_company, initialise
from mpiexecutor._util.process_end import PROCESS_END, Stage

from .spmd import run_everywhere

_ROOT = 0


def run_as_rank(program: list[str], *, spmd: bool) -> None:
    """Be this rank until the script ends.

    Raises:
        SystemExit: As the script ends; or this rank is alone in its MPI job by mistake, and one of such ranks prints why.

    """
    yield_when_idle()
    comm = initialise(start_supervisor() if rank_in_environment() else None)
    try:
        check_company(comm)
    except StartError as error:
        sys.exit(0 if rank_in_environment() else f"python -m mpiexecutor: {error}")
    if spmd:
        run_everywhere(comm, partial(run, program))
    elif comm.rank == _ROOT:
        PROCESS.runs_alone = True
        SERVING_RANKS.add(range(1, comm.size), NO_CHANNEL)
        PROCESS_END.add(partial(release_workers, comm, _ROOT), Stage.PARTING)  # if the script never makes an executor
        run(program)
    else:
        while serve(comm, _ROOT):
            pass  # the root may make one pool after another


def run(program: list[str]) -> None:
    """Run a script, a module (-m) or code (-c), with sys.argv, sys.path and ``__main__`` as Python sets them.

    Args:
        program: What follows 'python' on its command line: the script, or -m and the module, or -c and the code, and arguments.

    Raises:
        SystemExit: The script's own; or its error was printed with a traceback, and the status is that of Python then.

    """
    try:
        if program[0] == "-m":
            sys.argv = ["-m", *program[2:]]
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        elif program[0] == "-c":
            sys.argv = ["-c", *program[2:]]
            _set_path("")
            _run_code(program[1], "<string>")
        else:
            sys.argv = program
            _run_script(program[0])
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - Python itself prints any error that leaves a script
        error.__traceback__ = _script_part(error.__traceback__)
        sys.last_value = error  # the pool's exit handler looks for it, and drops the calls that remain
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _run_script(path: str) -> None:
    if Path(path).is_dir() or zipfile.is_zipfile(path):
        runpy.run_path(path, run_name="__main__")
        return
    _set_path(str(Path(path).resolve().parent))
    absolute = str(Path(path).absolute())
    with io.open_code(absolute) as file:
        _run_code(file.read(), absolute, __file__=absolute)


def _run_code(code: str | bytes, name: str, **variables: str) -> None:
    """Run code as ``__main__``, which stays there for exit handlers."""
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    vars(module).update(variables, __builtins__=builtins)
    exec(compile(code, name, "exec", dont_inherit=True), vars(module))  # noqa: S102 - the purpose of this command


def _set_path(first: str) -> None:
    if not sys.flags.safe_path:  # else Python has not put the current directory there
        sys.path[0] = first


def _script_part(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback without the frames of this module and of runpy, which run the script."""
    while trace is not None and trace.tb_frame.f_code.co_filename in {__file__, runpy.__file__, "<frozen runpy>"}:
        trace = trace.tb_next
    return trace

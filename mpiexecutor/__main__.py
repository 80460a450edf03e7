"""python -m mpiexecutor: rank 0 runs a script, a module or a string of code; the other ranks serve it, or run it, too.

The script needs no guard, is run once, and makes executors wherever it likes. Started by mpiexec, this is each rank; started by
hand, it becomes the mpiexec that belongs to this Python's MPI, which starts it again as each rank.
"""

import argparse
import atexit
import builtins
import contextlib
import io
import os
import runpy
import shlex
import sys
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType

from mpiexecutor._cli import info
from mpiexecutor._cli.spmd import run_everywhere
from mpiexecutor._liveness.supervisor import keep
from mpiexecutor._pool.crew import dismiss, serve
from mpiexecutor._start.job import StartError, interpreter_flags
from mpiexecutor._start.mpiexec import (
    Mpiexec,
    NoMpiexecError,
    have_waiting_give_way,
    in_srun,
    launched,
    rank_in_environment,
    usable_cores,
)
from mpiexecutor._start.process import STANDING, check_company, initialise

_ROOT = 0
_WHAT = "script.py | -m module | -c code"
_DESCRIPTION = """\
Rank 0 runs the script as Python would; the other ranks run what it submits to a mpiexecutor.RMAChannelExecutor. With --spmd every
rank runs the script, for the raw channel, mpiexecutor.channel.
Either by hand, with the options below, or by an mpiexec:  mpiexec -n N python -m mpiexecutor script.py"""


def main() -> None:
    """Start the ranks, or be one of them until the script ends."""
    if rank_in_environment():
        options, program = _parse_quietly(sys.argv[1:])
    else:
        options, program = _parse(sys.argv[1:])
    if options.info:
        info.show(options.mpiexec)
    elif launched():
        _be_a_rank(program, spmd=options.spmd)
    else:
        _become_mpiexec(options, program)


def _parse_quietly(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Do so where another rank explains what is wrong, and ends with the status for it: its words could be lost if this one did."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return _parse(arguments)
        except SystemExit:
            sys.exit(0)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the arguments into our options and the program with its own; only those before the program are ours."""
    own, program = _split(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m mpiexecutor",
        usage=f"%(prog)s [-n N] [--hostfile FILE] [--mpiexec PATH] [--spmd] [-v] ({_WHAT}) [argument ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-n", type=_ranks, metavar="N", help="ranks to start, one of them the root; by default one more than cores")
    parser.add_argument("--hostfile", metavar="FILE", help="the hosts to start them on, as this mpiexec wants them listed")
    parser.add_argument("--mpiexec", metavar="PATH", help="instead of the one beside this Python, or on the PATH")
    parser.add_argument("--spmd", action="store_true", help="every rank runs the script, for raw channels; they outlive each other")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the command that is run")
    parser.add_argument("--info", action="store_true", help="describe this MPI and its speed, for a report; run no script")
    options = parser.parse_args(own)
    if not program and not options.info:
        parser.error(f"what is to be run is missing: {_WHAT}")
    if launched() and (options.n or options.hostfile or options.mpiexec):
        parser.error("-n, --hostfile and --mpiexec start ranks, but an mpiexec has started this one already")
    return options, program


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Find where the program begins: at -m, at -c, or at the first that is neither an option nor an option's value."""
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if argument in {"-m", "-c"}:
            return (arguments[:index], arguments[index:]) if index + 1 < len(arguments) else (arguments, [])
        if not argument.startswith("-"):
            return arguments[:index], arguments[index:]
        index += 2 if argument in {"-n", "--hostfile", "--mpiexec"} else 1
    return arguments, []


def _ranks(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"the number of ranks is at least 1, not {text!r}")
    return int(text)


def _become_mpiexec(options: argparse.Namespace, program: Sequence[str]) -> None:
    try:
        mpiexec = Mpiexec.find(options.mpiexec)
    except NoMpiexecError as error:
        sys.exit(f"python -m mpiexecutor: {error}")
    this = [sys.executable, *interpreter_flags(), "-m", "mpiexecutor", *(["--spmd"] if options.spmd else []), *program]
    here = options.hostfile is None and in_srun()
    command = mpiexec.command(options.n or usable_cores() + 1, this, hostfile=options.hostfile, here=here)
    if options.verbose:
        sys.stderr.write(shlex.join(command) + "\n")
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606 - its signals and its status are this command's


def _be_a_rank(program: list[str], *, spmd: bool) -> None:
    have_waiting_give_way()
    comm = initialise(keep() if rank_in_environment() else None)
    try:
        check_company(comm)
    except StartError as error:
        sys.exit(0 if rank_in_environment() else f"python -m mpiexecutor: {error}")  # one of them says it
    if spmd:
        run_everywhere(comm, partial(_run, program))
    elif comm.rank == _ROOT:
        STANDING.runs_alone = True
        atexit.register(dismiss, comm, _ROOT)  # if the script never makes an executor
        _run(program)
    else:
        while serve(comm, _ROOT):
            pass  # the root may make one crew after another


def _run(arguments: list[str]) -> None:
    """Run what the arguments name, with sys.argv, sys.path and ``__main__`` as Python sets them."""
    try:
        if arguments[0] == "-m":
            sys.argv = ["-m", *arguments[2:]]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            _set_path("")
            _run_code(arguments[1], "<string>")
        else:
            sys.argv = arguments
            _run_script(arguments[0])
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - what Python itself does with whatever a script lets escape
        error.__traceback__ = _own_part(error.__traceback__)
        sys.last_value = error  # also tells the crew that nobody waits for its results
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
    exec(compile(code, name, "exec", dont_inherit=True), vars(module))  # noqa: S102 - what this command is for


def _set_path(first: str) -> None:
    if not sys.flags.safe_path:  # else Python has not put the current directory there
        sys.path[0] = first


def _own_part(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames that brought the script to run."""
    while trace is not None and trace.tb_frame.f_code.co_filename in {__file__, runpy.__file__, "<frozen runpy>"}:
        trace = trace.tb_next
    return trace


if __name__ == "__main__":
    main()

"""python -m mpiexecutor: the arguments of the command line.

Started by hand, this process replaces itself by the mpiexec that belongs to this Python's MPI, which starts the same command again
as each rank. Started by an mpiexec, it is such a rank: see _cli/script.py.
"""

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mpiexecutor._cli import info
from mpiexecutor._cli.script import run_as_rank
from mpiexecutor._start.mpiexec import (
    Mpiexec,
    NoMpiexecError,
    in_srun,
    interpreter_flags,
    launched,
    rank_in_environment,
    usable_cores,
)

_PROGRAM = "script.py | -m module | -c code"
_FOLLOWED_BY = {"-m": "module", "-c": "code"}
_DESCRIPTION = """\
Rank 0 runs the script as Python does. The other ranks run the calls that the
script submits to a mpiexecutor.RMAChannelExecutor. With --spmd every rank runs
the script, for the raw channel, mpiexecutor.channel.

This command starts an mpiexec, or is started by one of your own:
  mpiexec -n N python -m mpiexecutor script.py"""
_VARIABLES = """\
environment variables:
  MPIEXECUTOR_MAX_WORKERS    workers that a plain 'python script.py' starts; by
                             default max_workers of its first executor, or one
                             a core
  MPIEXECUTOR_START_TIMEOUT  seconds that these workers have to start (60)
  MPIEXECUTOR_LOST_AFTER     seconds after which the workers on another node
                             count as lost if none of them is heard of (30);
                             more than the longest call that holds the GIL
  MPIEXECUTOR_SUPERVISOR     0: start no supervisors: the death of a worker
                             ends the job
  MPIEXECUTOR_KEEPER         an older name of MPIEXECUTOR_SUPERVISOR"""


def main() -> None:
    """Start the ranks, or be one of them until the script ends."""
    if rank_in_environment():
        options, program = _parse_quietly(sys.argv[1:])
    else:
        options, program = _parse(sys.argv[1:])
    if options.info:
        info.show(options.mpiexec)
    elif launched():
        run_as_rank(program, spmd=options.spmd)
    else:
        _become_mpiexec(options, program)


def _parse_quietly(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the arguments on a rank other than 0: rank 0 alone prints what is wrong, and ends with the status for it.

    Raises:
        SystemExit: With status 0. If this rank ended with another one, mpiexec could end the job before rank 0 has printed.

    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return _parse(arguments)
        except SystemExit:
            sys.exit(0)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the arguments into the options of this command and the program with its own arguments.

    Returns:
        The options, which precede the program, and the program: a script, or -m and a module, or -c and code; empty with --info.

    Raises:
        SystemExit: The help was printed, or an error of the arguments.

    """
    own, program = _split(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m mpiexecutor",
        usage=f"%(prog)s [-n N] [--hostfile FILE] [--mpiexec PATH] [--spmd] [-v] ({_PROGRAM}) [argument ...]",
        description=_DESCRIPTION,
        epilog=_VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-n", type=_ranks, metavar="N", help="ranks to start, the root included; by default one more than cores")
    parser.add_argument("--hostfile", metavar="FILE", help="the hosts to start them on, in the format of this mpiexec")
    parser.add_argument("--mpiexec", metavar="PATH", help="instead of the mpiexec beside this Python, or on the PATH")
    parser.add_argument("--spmd", action="store_true", help="every rank runs the script, for raw channels, and outlives the others")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the command that is run")
    parser.add_argument("--info", action="store_true", help="describe this MPI and its speed, for a report; run no script")
    options = parser.parse_args(own)
    if not program and not options.info:
        parser.error(f"what is to be run is missing: {_PROGRAM}")
    if program[:1] == ["-"]:
        parser.error("the script cannot come from standard input: name a file, or run 'python -', which starts workers, too")
    if len(program) == 1 and program[0] in _FOLLOWED_BY:
        parser.error(f"{program[0]} is followed by the {_FOLLOWED_BY[program[0]]} to run")
    if launched() and (options.n or options.hostfile or options.mpiexec):
        parser.error("-n, --hostfile and --mpiexec start ranks, but an mpiexec has started this one already")
    return options, program


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments where the program begins: at -m, -c or -, or at the first that is no option and no option's value."""
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if argument in {"-m", "-c", "-"} or not argument.startswith("-"):
            return arguments[:index], arguments[index:]
        index += 2 if argument in {"-n", "--hostfile", "--mpiexec"} else 1
    return arguments, []


def _ranks(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"the number of ranks is at least 1, not {text!r}")
    return int(text)


def _become_mpiexec(options: argparse.Namespace, program: Sequence[str]) -> None:
    """Replace this process by the mpiexec, so that signals reach it and its status is the status of this command.

    Raises:
        SystemExit: There is no mpiexec, or no hostfile of that name; the text says so.

    """
    if options.hostfile is not None and (Path(options.hostfile).is_dir() or not os.access(options.hostfile, os.R_OK)):
        sys.exit(f"python -m mpiexecutor: --hostfile names a file that lists the hosts, but {options.hostfile} cannot be read")
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
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()

"""A Slurm of one node for the tests, from Debian's packages: its three daemons run in the foreground, as children of this process.

Everything of theirs lies in a folder of its own, the configuration included: nothing in /etc is read, and a Slurm that the machine
may have is left alone. The node has more CPUs than the machine, so that no job waits for another. The first job's number is drawn
by lot: from it MPICH makes the name of its shared memory, and would wait for ever on what a killed job of the same name has left.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "sinfo", "squeue")
_START = 30  # seconds for a daemon to be there
_MOST_JOBS = 60_000_000  # fewer than Slurm has numbers for
_END = 20  # seconds for jobs, and then for each daemon, to end

_CONFIGURATION = """\
ClusterName=test
FirstJobId={first}
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={node} NodeAddr=127.0.0.1 CPUs=64
PartitionName=test Nodes={node} Default=YES
"""


def missing() -> str | None:
    """Say what this machine lacks for a Slurm of its own, if anything."""
    if os.geteuid() != 0:
        return "only root can start slurmd"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"no {', '.join(absent)}: apt-get install {' '.join(PACKAGES)}" if absent else None


@dataclass(frozen=True, slots=True)
class Slurm:
    """A Slurm that runs."""

    environment: Mapping[str, str]  # in which its commands find it

    def ask(self, *command: str, env: Mapping[str, str] = MappingProxyType({})) -> str:
        """Return what one of its commands prints."""
        env = {**os.environ, **self.environment, **env}
        return subprocess.run(command, env=env, text=True, capture_output=True, check=True, timeout=60).stdout

    def plugins(self) -> set[str]:
        """Return what ``srun --mpi`` can be."""
        return set(self.ask("srun", "--mpi=list").split())

    def jobs(self) -> list[str]:
        """Return the numbers of the jobs that have not ended."""
        return self.ask("squeue", "--noheader", "--format=%i").split()


@contextlib.contextmanager
def one_node() -> Iterator[Slurm]:
    """Start it, and end it, with every job that it still has."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))  # a short name: sockets lie in there
        slurm = Slurm({"SLURM_CONF": str(_configure(folder))})
        _start(stack, folder, "munged", *_munged_options(folder))
        _await(folder, "munged", (folder / "munge").exists)
        for daemon in ("slurmctld", "slurmd"):
            _start(stack, folder, daemon, "-D", "-f", slurm.environment["SLURM_CONF"])
        _await(folder, "slurmd", lambda: _idle(slurm))
        stack.callback(_end_jobs, slurm)
        yield slurm


def _configure(folder: Path) -> Path:
    """Write what the daemons want to find."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(secrets.token_bytes(128))
    (folder / "key").chmod(0o600)
    # slurmd looks for cgroups, which a container may not have, unless it is told not to; older ones: unless told of which kind.
    plugin = "disabled" if _version() >= (24, 5) else "cgroup/v1"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    path = folder / "slurm.conf"
    node = socket.gethostname().partition(".")[0]
    first = 1 + secrets.randbelow(_MOST_JOBS)
    path.write_text(_CONFIGURATION.format(folder=folder, node=node, ports=_free_ports(2), first=first))
    return path


def _version() -> tuple[int, ...]:
    said = subprocess.run(["slurmd", "-V"], text=True, capture_output=True, check=True).stdout  # slurm-wlm 22.05.8
    return tuple(map(int, said.split()[-1].split(".")[:2]))


def _munged_options(folder: Path) -> list[str]:
    files = {"socket": "munge", "key-file": "key", "pid-file": "munged.pid", "seed-file": "seed", "log-file": "munge.log"}
    return ["--foreground", "--force", *(f"--{option}={folder / name}" for option, name in files.items())]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(stack: contextlib.ExitStack, folder: Path, *command: str) -> None:
    """Start a daemon that ends with the stack, and at the latest with this process."""
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    stack.callback(_end, process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_END)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # itself, if it was not in time, and its helpers


def _end_jobs(slurm: Slurm) -> None:
    for job in slurm.jobs():
        slurm.ask("scancel", job)
    until = time.monotonic() + _END
    while slurm.jobs() and time.monotonic() < until:
        time.sleep(0.1)


def _idle(slurm: Slurm) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):  # the controller does not answer yet
        return "idle" in slurm.ask("sinfo", "--noheader", "--format=%T")
    return False


def _await(folder: Path, daemon: str, ready: Callable[[], bool]) -> None:
    until = time.monotonic() + _START
    while not ready():
        if time.monotonic() > until:
            said = "\n".join(f"-- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in folder.glob("*.log"))
            raise RuntimeError(f"{daemon} is not there after {_START} s\n{said}")
        time.sleep(0.05)

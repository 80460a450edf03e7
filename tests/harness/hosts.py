"""Two MPI hosts on one machine, which share no memory and talk over TCP.

A host is a network namespace with a name and an address of its own; a cable joins the two. It is held by a process that reads from
a pipe of this one: however this one ends, that one ends, too, and the kernel takes namespace and cable away. So nothing has a name
that two runs could fight over, and nothing is left.

MPI is told all that is special here by the environment: whatever starts it needs a file of hosts only, as on a cluster.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from jobs import mpi_name

_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_CABLE = "e0"
_SECONDS = 20  # that any command here may take


def missing() -> str:
    """Say what two hosts need and this machine has not."""
    if os.geteuid() != 0:
        return "only root can make hosts"
    for command in ("ip", "nsenter", "unshare"):
        if shutil.which(command) is None:
            return f"there is no command {command}: Debian's packages iproute2 and util-linux have it"
    allowed = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "mount", "-t", "sysfs", "none", "/sys"],
        capture_output=True,
        check=False,
        timeout=_SECONDS,
    )
    return "" if allowed.returncode == 0 else f"no namespaces here: {allowed.stderr.decode().strip()}"


class Hosts:
    """Two hosts; a context manager. `folder` is for the files that an mpiexec reads."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hosts"  # for --hostfile
        self._agent = folder / "agent"
        self._holders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._holders = [_hold(f"host{number}") for number in (1, 2)]
            first, second = (str(holder.pid) for holder in self._holders)
            _call("ip", "link", "add", _CABLE, "netns", first, "type", "veth", "peer", "name", _CABLE, "netns", second)
            for number, address in enumerate(_ADDRESSES):
                _call(*self.on(number), "ip", "address", "add", f"{address}/24", "dev", _CABLE)
                for device in ("lo", _CABLE):
                    _call(*self.on(number), "ip", "link", "set", device, "up")
            for number in range(len(_ADDRESSES)):
                self._wait_for_cable(number)
            slots = " slots=" if mpi_name() == "openmpi" else ":"
            self.file.write_text("".join(f"{address}{slots}2\n" for address in _ADDRESSES))
            self._agent.write_text(self._agent_script())
            self._agent.chmod(0o700)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def on(self, number: int) -> list[str]:
        """Return what is to be put before a command so that it runs on the first host (0), or on the second (1)."""
        return ["nsenter", "--target", str(self._holders[number].pid), "--net", "--uts", "--mount", "--wd=."]

    def cut(self) -> None:
        """Take the cable away."""
        _call(*self.on(1), "ip", "link", "set", _CABLE, "down")

    def heal(self) -> None:
        """Put it back."""
        _call(*self.on(1), "ip", "link", "set", _CABLE, "up")

    @property
    def environment(self) -> dict[str, str]:
        """What tells MPI how to reach the other host; and that the two are one machine, where a waiting rank should sleep."""
        agent = str(self._agent)
        return {
            "openmpi": {
                "PRTE_MCA_plm_ssh_agent": agent,
                "PRTE_MCA_prte_if_include": _CABLE,
                "PRTE_ALLOW_RUN_AS_ROOT": "1",
                "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMPI_MCA_btl_tcp_if_include": _CABLE,
                "OMPI_MCA_pml": "ob1",
                "OMPI_MCA_btl": "tcp,self,sm",
                "OMPI_MCA_osc": "^ucx",
                "OMPI_MCA_threads_pthreads_yield_strategy": "nanosleep",
            },
            "mpich": {
                "HYDRA_LAUNCHER": "ssh",
                "HYDRA_LAUNCHER_EXEC": agent,
                "HYDRA_IFACE": _CABLE,
                "UCX_TLS": "tcp,self",
                "UCX_NET_DEVICES": _CABLE,
                "FI_PROVIDER": "tcp",
                "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
            },
            "impi": {
                "I_MPI_HYDRA_BOOTSTRAP": "ssh",
                "I_MPI_HYDRA_BOOTSTRAP_EXEC": agent,
                "I_MPI_HYDRA_IFACE": _CABLE,
                "FI_PROVIDER": "tcp",
                "FI_TCP_IFACE": _CABLE,
                "I_MPI_WAIT_MODE": "1",
            },
        }[mpi_name()]

    def _wait_for_cable(self, number: int) -> None:
        """Wait until a host sees its end of the cable in use, some time after both ends are up: before, MPI finds none."""
        until = time.monotonic() + _SECONDS
        while _output(*self.on(number), "cat", f"/sys/class/net/{_CABLE}/operstate") != "up":
            assert time.monotonic() < until, f"host{number + 1} has no network"
            time.sleep(0.05)

    def _agent_script(self) -> str:
        """What mpiexec calls instead of ssh: [-OPTION...] ADDRESS COMMAND..."""
        lines = ["#!/bin/sh", 'while [ "${1#-}" != "$1" ]; do shift; done', "address=$1; shift", "case $address in"]
        lines += [f'{address}) exec {" ".join(self.on(number))} sh -c "$*" ;;' for number, address in enumerate(_ADDRESSES)]
        return "\n".join([*lines, "esac", 'echo "there is no host $address" >&2; exit 1', ""])

    def _end(self) -> None:
        for holder in self._holders:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.close()
            holder.stdout.close()
            holder.wait(_SECONDS)


def _hold(name: str) -> "subprocess.Popen[bytes]":
    """Make a host, which lasts until its holder's standard input is closed."""
    # UCX looks for network devices in /sys, which shows those of the namespace that it was mounted in.
    script = f"hostname {name} && mount -t sysfs none /sys && echo && exec cat"
    command = ["unshare", "--net", "--uts", "--mount", "sh", "-c", script]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.read(1) == b"\n", "the host was not made"
    return holder


def _call(*command: str) -> None:
    _output(*command)


def _output(*command: str) -> str:
    return subprocess.run(
        command, check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ).stdout.strip()

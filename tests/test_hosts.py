"""Two hosts, with a network between them: what holds on one host holds there, and the root's main thread may compute meanwhile."""

import re
import sysconfig
from pathlib import Path

import pytest
from hosts import Hosts, missing
from jobs import ROOT, Job, run_job

RANKS = 4

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def run_executor(hosts: Hosts, *program: str, deadline: float = 150) -> Job:
    """Run a program as its user would, on the root; the other ranks run its calls."""
    command = ["-m", "mpiexecutor", "-n", str(RANKS), "--hostfile", str(hosts.file), *program]
    return run_job(None, command, flags=hosts.on(0), env=hosts.environment, deadline=deadline)


def test_the_example_job_finds_what_it_finds_without_an_executor(hosts):
    """On four ranks, two a host; the main thread of the root then counts alone, in pure Python, and finds the same."""
    package = Path(sysconfig.get_path("stdlib")) / "asyncio"  # the whole library takes minutes
    job = run_executor(hosts, str(ROOT / "examples" / "complexity.py"), "--check", "--folder", str(package))
    assert job.stdout.endswith("the same without the executor\n")


def test_keeps_its_contract_while_the_main_thread_computes(hosts, request, report):
    """Every claim of tests/contract holds in another thread of the root, beside a main thread that never waits."""
    options = ["-q", "--color=no", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60", "-o", "timeout=0"]
    program = [
        str(ROOT / "tests" / "computing_root.py"),
        *options,
        "-c",
        str(request.config.inipath),
        str(ROOT / "tests" / "contract"),
    ]
    job = run_executor(hosts, *program, deadline=280)
    summary = re.search(r"^(\d+ passed.*?) in ", job.stdout, re.MULTILINE)
    assert summary is not None, f"the root has printed no summary:\n{job}"
    report(f"{'contract':32} {RANKS} ranks on two hosts: {summary[1]} in {job.duration:.1f} s")

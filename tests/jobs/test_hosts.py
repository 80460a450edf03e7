"""Two hosts, with a network between them: what holds on one host holds there, and the root's main thread may compute meanwhile."""

import contextlib
import re
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import afar
import bereaved
import pytest
from hosts import Hosts, missing
from jobs import PROGRAMS, ROOT, TESTS, Job, run_job

RANKS = 4

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def run_executor(hosts: Hosts, *program: str, ranks: int = RANKS, env: Mapping[str, str] | None = None, **options: Any) -> Job:
    """Run a program as its user would, on the root; the other ranks run its calls."""
    command = ["-m", "mpiexecutor", "-n", str(ranks), "--hostfile", str(hosts.file), *program]
    environment = {**hosts.environment, **(env or {})}
    return run_job(None, command, flags=hosts.on(0), env=environment, **{"deadline": 150, **options})


def test_the_example_job_finds_what_it_finds_without_an_executor(hosts):
    """On four ranks, two a host; the main thread of the root then counts alone, in pure Python, and finds the same."""
    package = Path(sysconfig.get_path("stdlib")) / "asyncio"  # the whole library takes minutes
    job = run_executor(hosts, str(ROOT / "examples" / "complexity.py"), "--check", "--folder", str(package))
    assert job.stdout.endswith("the same without the executor\n")


def test_keeps_its_contract_while_the_main_thread_computes(hosts, request, report):
    """Every claim of tests/contract holds in another thread of the root, beside a main thread that never waits."""
    options = ["-q", "--color=no", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=150", "-o", "timeout=0"]
    program = [
        str(PROGRAMS / "computing_root.py"),
        *options,
        "-c",
        str(request.config.inipath),
        str(TESTS / "contract"),
    ]
    job = run_executor(hosts, *program, deadline=500)
    summary = re.search(r"^(\d+ passed.*?) in ", job.stdout, re.MULTILINE)
    assert summary is not None, f"the root has printed no summary:\n{job}"
    report(f"{'contract':32} {RANKS} ranks on two hosts: {summary[1]} in {job.duration:.1f} s")


def test_workers_on_another_host_may_die(hosts, tmp_path):
    """One's call runs too long, which the other reports. Then that one is killed, and no worker is left to report: it is missed."""
    program = [str(PROGRAMS / "far.py"), "5", str(tmp_path / "mark")]
    env = {"MPIEXECUTOR_LOST_AFTER": "6"}
    job = run_executor(hosts, *program, env=env, expect=5)
    said = [line for line in job.stdout.splitlines() if line.startswith("ok: ")]
    assert said == ["ok: ran too long", "ok: was the last there", "ok: the end"], str(job)


def test_workers_on_another_host_may_die_before_the_root_knows(hosts, tmp_path):
    """While it notifies them, or they fetch something, or are in the middle of calls: the pool goes on, with no other loss."""
    program = [str(PROGRAMS / "afar.py"), "5", str(tmp_path)]
    job = run_executor(hosts, *program, ranks=afar.RANKS, expect=5)
    assert len([line for line in job.stdout.splitlines() if line.startswith("ok: ")]) == len(afar.SOON) + 3, str(job)


def test_isolated_calls_lose_and_double_nothing_on_either_host(hosts):
    """Their children die at any moment, on both; by chance: see isolated_soak.py, which says with what seed."""
    job = run_executor(hosts, str(PROGRAMS / "isolated_soak.py"), "0.1", "3")
    assert job.stdout.endswith(" deaths on 2 hosts\n"), str(job)


CUT = """
import sys, time
from pathlib import Path
from mpiexecutor import RMAChannelExecutor

def work(number, data):
    time.sleep(0.002)
    return number, data

folder = Path(sys.argv[1])
with RMAChannelExecutor(max_pending=100) as executor:
    calls = []
    more = 1000  # when all is well again
    while more and len(calls) < 20_000:
        calls.append(executor.submit(work, len(calls), bytes(37 * len(calls) % 50000)))
        if len(calls) == 500:
            (folder / "cut").touch()
        more -= (folder / "is healed").exists()
    assert not more
    for number, call in enumerate(calls):
        assert call.result() == (number, bytes(37 * number % 50000))
    assert executor.num_workers == 3
print("the end")
"""


@contextlib.contextmanager
def cut_on_demand(hosts: Hosts, folder: Path, heal_after: float | None = None) -> Iterator[None]:
    """Cut a host off, once a job asks for it, by a file, and perhaps heal that; all is well again afterwards."""
    over = threading.Event()

    def cut() -> None:
        while not (folder / "cut").exists():
            if over.wait(0.01):
                return
        hosts.cut()
        (folder / "is cut").touch()
        if heal_after is not None:
            time.sleep(heal_after)
            hosts.heal()
            (folder / "is healed").touch()

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        hosts.heal()


def test_a_host_that_is_cut_off_for_a_while_comes_back(hosts, tmp_path):
    """For 3 s nothing gets through: then all goes on, and nothing is lost."""
    script = tmp_path / "script.py"
    script.write_text(CUT)
    with cut_on_demand(hosts, tmp_path, heal_after=3):
        assert run_executor(hosts, str(script), str(tmp_path)).stdout.endswith("the end\n")


@pytest.mark.parametrize("when", ["running", "midway", "busy"])
def test_a_host_that_is_cut_off_for_good_is_given_up(hosts, tmp_path, when):
    """What its workers do just then decides what is lost; the script goes on and ends, and mpiexec is killed."""
    program = [str(PROGRAMS / "cut.py"), str(tmp_path), when]
    with cut_on_demand(hosts, tmp_path):
        job = run_executor(hosts, *program, env={"MPIEXECUTOR_LOST_AFTER": "6"}, expect="any", may_leave=True)
    assert job.stdout == f"ok: {when}\nok: the end\n", str(job)
    assert "was not heard of for 6 s" in job.stderr, str(job)


def test_ranks_of_a_script_with_raw_channels_may_die_on_another_host(hosts, tmp_path):
    """The others go on, and the channel's host is told."""
    job = run_executor(hosts, "--spmd", str(PROGRAMS / "bereaved.py"), str(tmp_path), "far", ranks=bereaved.RANKS, deadline=200)
    said = [line.removeprefix("ok: ").partition(": ")[0] for line in job.stdout.splitlines() if line.startswith("ok: ")]
    assert said[: len(bereaved.STEPS)] == list(bereaved.STEPS), str(job)

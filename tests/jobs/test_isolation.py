"""Isolated calls in whole jobs: deaths at any moment under every way to start, the end of the job, and jobs without children."""

import pytest
from jobs import PROGRAMS, run_job

SOAK = str(PROGRAMS / "isolated_soak.py")


@pytest.mark.mpi
@pytest.mark.long
def test_deaths_at_any_moment_lose_and_double_nothing():
    """By chance: see isolated_soak.py, which says with what seed."""
    run_job(None, [SOAK, "0.1", "3"], deadline=150, env={"MPIEXECUTOR_MAX_WORKERS": "2"})


@pytest.mark.wide
@pytest.mark.parametrize(
    ("ranks", "module"),
    [
        pytest.param(3, ["-m", "mpiexecutor"], id="mpiexec python -m mpiexecutor", marks=pytest.mark.mpi),
        pytest.param(3, [], id="mpiexec python", marks=pytest.mark.mpi),
        pytest.param(None, ["-m", "mpiexecutor", "-n", "3"], id="python -m mpiexecutor -n"),
    ],
)
def test_deaths_at_any_moment_lose_and_double_nothing_however_it_was_started(ranks, module):
    """The same."""
    run_job(ranks, [*module, SOAK, "0.05", "3"], deadline=150)


ROW = """
import os, signal, sys
from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

def die(number):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with RMAChannelExecutor(2, isolate=True) as executor:
        futures = [executor.submit(die, number) for number in range(int(sys.argv[1]))]
        assert all(type(future.exception()) is BrokenWorkerError for future in futures)
        print(sum(worker.deaths for worker in executor.workers()), executor.num_workers, executor.submit(abs, -7).result())
"""


@pytest.mark.parametrize(
    "number", [pytest.param(50, marks=pytest.mark.mpi), pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.mpi])]
)
def test_deaths_in_a_row_leave_the_pool_whole(number, tmp_path):
    """MPI is finalised at the end, and the job ends with success."""
    script = tmp_path / "script.py"
    script.write_text(ROW)
    job = run_job(None, [str(script), str(number)], deadline=300)
    assert job.stdout.split() == [str(number), "2", "7"]


SCRIPT = """
import logging, os, signal, sys, warnings
from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

calls = 0

class Own(Exception):
    pass

def count(name):
    global calls
    calls += 1
    print(name, calls)
    warnings.warn(name, RuntimeWarning)
    return calls

def fail():
    raise Own("why")

def die():
    print("partial line", end="")
    os._exit(1)

if __name__ == "__main__":
    with RMAChannelExecutor(1, isolate=True) as executor:
        print([executor.submit(count, "first").result() for _ in range(2)])
        try:
            executor.submit(fail).result()
        except Own as error:
            trace = str(error.__cause__)
            print(type(error) is Own, error, trace.count("in fail"), f"pid {executor.workers()[0].pid}" in trace)
        print(type(executor.submit(die).exception()) is BrokenWorkerError)
        print(executor.submit(count, "second").result())
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "module"),
    [
        pytest.param(None, [], id="python"),
        pytest.param(2, ["-m", "mpiexecutor"], id="mpiexec python -m mpiexecutor"),
        pytest.param(2, [], id="mpiexec python", marks=pytest.mark.wide),
    ],
)
def test_a_child_has_the_script_as_a_worker_has_it(ranks, module, tmp_path):
    """Its globals, prints, warnings, classes and tracebacks; a new child has them as they were at first."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    job = run_job(ranks, [*module, str(script)])
    lines = job.stdout.splitlines()
    assert sorted(lines) == sorted(["[1, 2]", "first 1", "first 2", "True why 1 True", "True", "second 1", "1"]), str(job)
    assert job.stderr.count("RuntimeWarning: first") == 1, str(job)
    assert job.stderr.count("RuntimeWarning: second") == 1, str(job)


REFUSED = """
import os
os.environ["MPIEXECUTOR_SUPERVISOR"] = "0"
from mpiexecutor import RMAChannelExecutor
for options in {"isolate": True}, {"max_tasks_per_child": 2}:
    try:
        RMAChannelExecutor(2, **options)
    except RuntimeError as error:
        print(error)
with RMAChannelExecutor(2) as executor:
    print(executor.submit(abs, -7).result())
"""


def test_without_supervisors_there_are_no_children(tmp_path):
    """The error says why, and what to do; other executors can be made."""
    script = tmp_path / "script.py"
    script.write_text(REFUSED)
    job = run_job(None, script, env={"MPIEXECUTOR_MAX_WORKERS": "2"})
    text = (
        "ranks 1, 2 have no supervisor (see the README), and that would start the child processes that {0} needs: leave {0} out, or"
    )
    first, second, last = job.stdout.splitlines()
    assert first.startswith(text.format("isolate"))
    assert second.startswith(text.format("max_tasks_per_child"))
    assert last == "7"

"""Jobs under a real Slurm of one node, which these tests start themselves: run when asked for with -m slow, by root."""

import os
import re
import sys
import sysconfig
from pathlib import Path

import bereaved
import pytest
from jobs import PROGRAMS, ROOT, launcher, mpi_name, run_job
from slurm import missing, one_node
from test_deaths import RANKS as DEATHS_RANKS
from test_deaths import STATUS

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

PLUGIN = "pmix" if mpi_name() == "openmpi" else "pmi2"  # through which the ranks of this MPI find each other
COMMAND = ["-m", "mpiexecutor"]
both_ways = pytest.mark.parametrize("way", [[], COMMAND], ids=["every rank", "rank 0"])  # ... runs the script

SQUARES = """
from mpiexecutor import RMAChannelExecutor

with RMAChannelExecutor(max_workers=2) as executor:
    print(sum(executor.map(lambda number: number * number, range(1000))), executor.num_workers)
"""
SAID = "332833500 2\n"

# As sbatch --wait, which looks every ten seconds only.
SUBMIT = """
job=$(sbatch --parsable "$@") || exit
while squeue --noheader --jobs "$job" | grep -q .; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def slurm():
    """Yield a Slurm through which this MPI can start ranks."""
    if reason := missing():
        pytest.skip(reason)
    with one_node() as slurm:
        if PLUGIN not in slurm.plugins():
            hint = ": its library is in Debian's libpmix-dev" if PLUGIN == "pmix" else ""
            pytest.skip(f"this Slurm has no plugin {PLUGIN}{hint}")
        yield slurm


@pytest.fixture
def env(slurm):
    """Return what jobs need in their environment: Slurm, and no complaint of Open MPI about its osc/ucx."""
    return {**slurm.environment, "OMPI_MCA_osc": "^ucx"}


@pytest.fixture
def srun(env):
    """Return a function that runs a program as so many tasks."""

    def run(tasks, program, *, plugin=PLUGIN, **how):
        return run_job(None, program, flags=in_srun(tasks, plugin), env=env, **how)

    return run


@pytest.fixture
def sbatch(env, tmp_path):
    """Return a function that runs a program in a batch job that may have three tasks, and gives what it prints."""
    (tmp_path / "submit.sh").write_text(SUBMIT)
    (tmp_path / "job.sh").write_text('#!/bin/sh\nexec "$@"\n')

    def run(program, *, starter=()):
        output = tmp_path / "output"
        command = ["sh", str(tmp_path / "submit.sh"), "--ntasks=3", f"--output={output}", str(tmp_path / "job.sh")]
        run_job(None, program, flags=[*command, *starter], env=env)
        return output.read_text()

    return run


@pytest.fixture
def squares(tmp_path):
    path = tmp_path / "squares.py"
    path.write_text(SQUARES)
    return str(path)


def in_srun(tasks, plugin=PLUGIN):
    return ["srun", "--quiet", f"--mpi={plugin}", f"--ntasks={tasks}"]


# -- srun starts the ranks


def test_the_example_job_runs(srun):
    """The functions of a package are ranked by four tasks as by one process."""
    package = Path(sysconfig.get_path("stdlib"), "unittest")  # all of the standard library takes too long where others compute, too
    job = srun(4, [*COMMAND, str(ROOT / "examples" / "complexity.py"), "--check", "--folder", str(package)])
    assert "with 3 workers" in job.stdout
    assert job.stdout.endswith("the same without the executor\n")


def test_keeps_its_contract(keep_contract, env):
    """Every claim of tests/contract holds with three workers."""
    keep_contract(None, flags=in_srun(4), env=env, deadline=500)


@both_ways
def test_tasks_are_ranks(srun, squares, way):
    """The script is run by rank 0, or by every rank up to the executor."""
    assert srun(8, [*way, squares]).stdout == SAID


@both_ways
def test_the_scripts_status_is_sruns(srun, way):
    """Whatever it is."""
    srun(3, [*way, "-c", "import sys, mpiexecutor; mpiexecutor.RMAChannelExecutor(); sys.exit(3)"], expect=3)


@both_ways
def test_workers_may_die(srun, tmp_path, way):
    """One after another, at chosen steps, down to none: see test_deaths.py."""
    program = [*way, str(PROGRAMS / "mortal.py"), str(tmp_path), str(STATUS)]
    job = srun(DEATHS_RANKS, program, expect=STATUS, deadline=150)
    assert job.stdout.splitlines()[-1] == "ok: the last of the exit handlers", str(job)


def test_ranks_of_a_script_with_raw_channels_may_die(srun, tmp_path):
    """The others go on: see test_channel_deaths.py."""
    program = [*COMMAND, "--spmd", str(PROGRAMS / "bereaved.py"), str(tmp_path)]
    job = srun(bereaved.RANKS, program, deadline=150)
    assert job.stdout.count(": the end\n") == 3, str(job)


WITHOUT_ALL = """
import os, signal, time
from mpi4py import MPI
from mpiexecutor.channel import RemoteChannel, _agreement

rank = MPI.COMM_WORLD.rank
some = MPI.COMM_WORLD.Split(rank > 0)
if rank == 2:
    _agreement.node_name = lambda: os.kill(os.getpid(), signal.SIGKILL)
if rank > 0:
    RemoteChannel(4, 4, comm=some)
time.sleep(1000)
"""


def test_a_job_that_cannot_go_on_ends_as_a_whole(srun, tmp_path):
    """A rank dies while it is needed, which two ranks notice. Rank 0, which does something else, ends, too."""
    (tmp_path / "script.py").write_text(WITHOUT_ALL)
    job = srun(4, [*COMMAND, "--spmd", str(tmp_path / "script.py")], expect="failure", deadline=60)
    assert "which takes all ranks: the job is ended" in job.stderr


FAILING = """
import time
from mpiexecutor import RMAChannelExecutor

executor = RMAChannelExecutor()
executor.submit(time.sleep, 1000)
executor.submit(abs, -1).result()
raise LookupError("from the script")
"""


@both_ways
def test_a_script_that_raises_ends_the_job(srun, way):
    """With its traceback, once, though a call is running."""
    job = srun(3, [*way, "-c", FAILING], expect="failure")
    assert job.stderr.count("LookupError: from the script") == 1


INTERRUPTED = """
import os, subprocess, time
from mpiexecutor import RMAChannelExecutor

def endless():
    time.sleep(0.5)  # CPython misses a signal that comes after its last look and before the wait itself: let the root be waiting
    step = os.environ["SLURM_JOB_ID"] + "." + os.environ["SLURM_STEP_ID"]
    subprocess.run(["scancel", "--signal=INT", step], check=True)
    time.sleep(1000)

with RMAChannelExecutor() as executor:
    executor.submit(endless).result()
"""


@both_ways
def test_an_interrupt_ends_the_job(srun, way):
    """Of srun's Ctrl-C every task gets a SIGINT: the script ends, with one traceback, though a call is running."""
    job = srun(3, [*way, "-c", INTERRUPTED], expect="failure")
    assert job.stderr.count("Traceback (most recent call last)") == 1
    assert "KeyboardInterrupt" in job.stderr


@both_ways
def test_tasks_that_do_not_find_each_other_say_what_to_do(srun, squares, way):
    """Without the plugin each is alone: they do not run the script as many times, but name the plugin."""
    job = srun(3, [*way, squares], plugin="none", expect="failure")
    sentence = f"srun has started 3 processes, but .+ finds each of them alone: start them with 'srun --mpi={PLUGIN}'\n"
    assert len(re.findall(sentence, job.stderr)) == (1 if way else 3)
    assert SAID not in job.stdout


# -- they are started inside a job


@pytest.mark.parametrize("arguments", [[], [*COMMAND, "-n", "3"]], ids=["python", "python -m mpiexecutor -n"])
def test_a_batch_script_starts_workers(sbatch, squares, arguments):
    """Python does so itself, without asking Slurm, or calls an mpiexec, which may ask Slurm."""
    assert sbatch([*arguments, squares]) == SAID


def test_a_batch_script_calls_mpiexec(sbatch, squares):
    """The mpiexec of this MPI knows what to do in a batch job."""
    assert sbatch([*COMMAND, squares], starter=launcher(3)) == SAID


@pytest.mark.parametrize("arguments", [[], [*COMMAND, "-n", "3"]], ids=["python", "python -m mpiexecutor -n"])
def test_a_single_task_starts_workers(srun, squares, arguments):
    """It is no rank without the plugin; and an mpiexec that asked Slurm for more tasks would wait for the end of this one."""
    assert srun(1, [*arguments, squares], plugin="none").stdout == SAID


CANCELLED = """
import os, subprocess, time
from mpiexecutor import RMAChannelExecutor

def endless():
    subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]], check=True)
    time.sleep(1000)

with RMAChannelExecutor(max_workers=2) as executor:
    executor.submit(endless).result()
"""


@pytest.mark.parametrize("arguments", [[], [*COMMAND, "-n", "3"]], ids=["python", "python -m mpiexecutor -n"])
def test_scancel_leaves_nothing_of_a_batch_job(sbatch, arguments):
    """Neither the script, nor mpiexec, nor workers."""
    sbatch([*arguments, "-c", CANCELLED])


def test_scancel_leaves_nothing_of_a_job_of_srun(srun):
    """The same for tasks."""
    srun(3, [*COMMAND, "-c", CANCELLED], expect="failure")


# -- the README's job scripts

JOB_SCRIPTS = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("text", JOB_SCRIPTS, ids=["one node", "many nodes"])
def test_the_job_scripts_of_the_readme_run(slurm, env, squares, tmp_path, text):
    """As they stand there, but for the nodes and cores that they ask for, and for the plugin."""
    submit, script, output = (tmp_path / name for name in ("submit.sh", "job.sh", "output"))
    submit.write_text(SUBMIT)
    script.write_text(text.replace("pmi2", PLUGIN).replace("script.py", squares))
    python_first = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = ["--nodes=1", f"--ntasks-per-node={3 if 'srun' in text else 1}", "--cpus-per-task=1", f"--output={output}"]
    slurm.ask("sh", str(submit), *options, str(script), env={**env, **python_first})
    assert output.read_text() == SAID

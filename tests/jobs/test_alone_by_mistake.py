"""Ranks that do not find each other say so, and what to do; a batch job's environment keeps no script from its workers."""

import pytest
from jobs import mpi_name, run_job

pytestmark = pytest.mark.mpi

BATCH = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
SCRIPT = "import mpiexecutor; print('ran'); mpiexecutor.RMAChannelExecutor()"


@pytest.mark.parametrize("way", [[], ["-m", "mpiexecutor"]], ids=["every rank", "rank 0"])
@pytest.mark.parametrize("by", ["srun", "mpiexec"])
def test_a_rank_that_is_alone_by_mistake_says_what_to_do(way, by):
    """It does not make a pool for itself, as each of the others would, nor run the script as -m mpiexecutor."""
    mpi, foreign = {
        "mpich": ("MPICH", "OMPI_COMM_WORLD"),
        "openmpi": ("Open MPI", "PMI"),
        "impi": ("Intel MPI", "OMPI_COMM_WORLD"),
    }[mpi_name()]
    others = {f"{foreign}_RANK": "0", f"{foreign}_SIZE": "3"}
    none = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"}
    job = run_job(None, ["-W", "ignore", *way, "-c", SCRIPT], env=none if by == "srun" else others, expect="failure")
    remedy = f"'srun --mpi={'pmix' if mpi == 'Open MPI' else 'pmi2'}'" if by == "srun" else "the mpiexec that belongs to it"
    starter = "srun" if by == "srun" else "an mpiexec"
    assert f"{starter} has started 3 processes, but {mpi} finds each of them alone: start them with {remedy}\n" in job.stderr
    assert job.stdout == ("" if way else "ran\n")


def test_of_ranks_that_are_alone_by_mistake_one_says_so():
    """The others end, and leave the status to that one, whose words could be lost if they failed first."""
    env = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2"}
    job = run_job(None, ["-m", "mpiexecutor", "-c", SCRIPT], env=env)
    assert "srun" not in job.stderr
    assert job.stdout == ""


def test_the_report_says_so_too():
    """In a sentence, without a traceback."""
    env = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"}
    job = run_job(None, ["-m", "mpiexecutor", "--info"], env=env, expect=1)
    assert "srun has started 3 processes, but " in job.stderr
    assert "Traceback" not in job.stderr


@pytest.mark.skipif(mpi_name() == "openmpi", reason="Open MPI asks srun what version it is, and goes on")
def test_workers_are_started_without_the_batch_system():
    """A script in a batch job starts its workers on this machine, whatever the job's nodes are, and with no srun."""
    env = {**BATCH, "SLURM_NODELIST": "elsewhere", "SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "4"}
    code = "import mpiexecutor; print(mpiexecutor.RMAChannelExecutor(max_workers=2).submit(abs, -1).result())"
    assert run_job(None, ["-c", code], env=env).stdout == "1\n"


CHANNEL = """
from mpiexecutor import RMAChannelExecutor
from mpiexecutor.channel import RemoteChannel
if {with_executor}:
    RMAChannelExecutor(max_workers=1).submit(abs, -1).result()
RemoteChannel(4, 4)
"""


@pytest.mark.parametrize(
    ("ranks", "how", "with_executor"),
    [(2, ["-m", "mpiexecutor"], False), (2, [], True), (None, [], True)],
    ids=["python -m mpiexecutor", "mpiexec", "python"],
)
def test_a_channel_that_the_other_ranks_do_not_make_is_an_error(tmp_path, ranks, how, with_executor):
    """Only rank 0 runs the script, and would wait for ever: the error says how all do."""
    (tmp_path / "script.py").write_text(CHANNEL.format(with_executor=with_executor))
    job = run_job(ranks, [*how, str(tmp_path / "script.py")], expect="failure")
    assert "RuntimeError: every rank of a communicator makes a RemoteChannel, but only this one runs the script" in job.stderr
    assert "start it with 'python -m mpiexecutor --spmd'" in job.stderr

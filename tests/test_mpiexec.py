"""What the environment says of who has started a process, and the commands that start others."""

import pytest
from jobs import mpi_name, run_job

from mpiexecutor._mpiexec import Flavour, Mpiexec, in_srun, launched, rank_in_environment, size_in_environment

HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "4"}
PRTE = {"PMIX_RANK": "2", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
BATCH = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
SALLOC = {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}  # its shell is a step of its own
ALONE = {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}


@pytest.fixture
def started(monkeypatch):
    """Give a function that has this process look as if it had been started in such an environment."""
    monkeypatch.setattr("mpiexecutor._mpiexec.os.environ", environment := {})
    return environment.update


@pytest.mark.parametrize(
    ("environment", "is_rank", "rank", "size", "by_srun"),
    [
        ({}, False, None, 1, False),
        (HYDRA, True, 2, 4, False),
        (PRTE, True, 2, 4, False),
        ({**SRUN, "PMI_RANK": "2", "PMI_SIZE": "4"}, True, 2, 4, True),
        ({**SRUN, "PMIX_RANK": "2"}, True, 2, 4, True),
        (SRUN, True, 2, 4, True),
        (ALONE, False, None, 1, True),
        (BATCH, False, None, 1, False),
        (SALLOC, False, None, 1, False),
        ({**SRUN, "PMI_RANK": "0", "PMI_SIZE": "1"}, True, 0, 1, True),
    ],
    ids=[
        "by hand",
        "hydra",
        "prte",
        "srun --mpi=pmi2",
        "srun --mpi=pmix",
        "srun --mpi=none",
        "srun, one task",
        "sbatch",
        "salloc",
        "mpiexec that srun has started",
    ],
)
def test_the_environment_says_who_has_started_this_process(started, environment, is_rank, rank, size, by_srun):
    """As one of several, or alone; the tasks of an srun are ranks, with or without a process manager."""
    started(environment)
    assert (launched(), rank_in_environment(), size_in_environment(), in_srun()) == (is_rank, rank, size, by_srun)


@pytest.mark.parametrize("flavour", Flavour)
def test_here_is_this_machine_alone(flavour):
    """Whoever starts the ranks is told not to ask the batch system; a launcher that nobody knows gets no flags."""
    flags = " ".join(Mpiexec("/bin/mpiexec", flavour, "").command(3, ["program"], here=True))
    assert ("localhost" in flags) == (flavour is not Flavour.UNKNOWN)
    assert ("-launcher fork" in flags) == (flavour in {Flavour.MPICH, Flavour.INTEL_MPI})
    assert flags.endswith("-n 3 program")
    assert "localhost" not in " ".join(Mpiexec("/bin/mpiexec", flavour, "").command(3, ["program"]))


@pytest.mark.parametrize(
    ("version", "hostfile", "asked"),
    [
        ("mpiexec (Open MPI) 5.0.11", "hosts", True),
        ("mpiexec (Open MPI) 5.0.11", None, False),
        ("mpiexec (OpenRTE) 4.1.4", "hosts", False),
        ("mpirun (Open MPI)", "hosts", False),
    ],
)
def test_open_mpi_is_asked_to_bear_deaths_on_other_hosts_if_it_can(version, hostfile, asked):
    """An older one does not know the option, and would not start."""
    command = Mpiexec("/bin/mpiexec", Flavour.OPEN_MPI, version).command(3, ["program"], hostfile=hostfile)
    assert ("--with-ft ulfm" in " ".join(command)) == asked


SCRIPT = "import mpiexecutor; print('ran'); mpiexecutor.RMAChannelExecutor()"


@pytest.mark.mpi
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


@pytest.mark.mpi
def test_of_ranks_that_are_alone_by_mistake_one_says_so():
    """The others end, and leave the status to that one, whose words could be lost if they failed first."""
    env = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2"}
    job = run_job(None, ["-m", "mpiexecutor", "-c", SCRIPT], env=env)
    assert "srun" not in job.stderr
    assert job.stdout == ""


@pytest.mark.mpi
def test_the_report_says_so_too():
    """In a sentence, without a traceback."""
    env = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"}
    job = run_job(None, ["-m", "mpiexecutor", "--info"], env=env, expect=1)
    assert "srun has started 3 processes, but " in job.stderr
    assert "Traceback" not in job.stderr


@pytest.mark.mpi
@pytest.mark.skipif(mpi_name() == "openmpi", reason="Open MPI asks srun what version it is, and goes on")
def test_workers_are_started_without_the_batch_system():
    """A script in a batch job starts its workers on this machine, whatever the job's nodes are, and with no srun."""
    env = {**BATCH, "SLURM_NODELIST": "elsewhere", "SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "4"}
    code = "import mpiexecutor; print(mpiexecutor.RMAChannelExecutor(max_workers=2).submit(abs, -1).result())"
    assert run_job(None, ["-c", code], env=env).stdout == "1\n"

"""What the environment says of who has started a process, and the commands that start others."""

import pytest

from mpiexecutor._start.mpiexec import Mpiexec, in_srun, launched, rank_in_environment, size_in_environment
from mpiexecutor._util.flavour import Flavour

HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "4"}
PRTE = {"PMIX_RANK": "2", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
BATCH = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
SALLOC = {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}  # its shell is a step of its own
ALONE = {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}


@pytest.fixture
def started(monkeypatch):
    """Return a function that has this process look as if it had been started in such an environment."""
    monkeypatch.setattr("mpiexecutor._start.mpiexec.os.environ", environment := {})
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
def test_the_environment_says_what_has_started_this_process(started, environment, is_rank, rank, size, by_srun):
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

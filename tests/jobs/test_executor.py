"""The executor's contract, on the root of jobs of several sizes: what is claimed is in tests/contract."""

import pytest
from jobs import run_job

SIZES = [pytest.param(ranks, marks=pytest.mark.mpi if ranks == 3 else pytest.mark.wide) for ranks in (1, 2, 3, 5)]


@pytest.mark.long
@pytest.mark.parametrize("ranks", SIZES)
def test_keeps_its_contract(keep_contract, ranks):
    """Every claim of tests/contract holds with one rank alone, and with one, two and four workers."""
    keep_contract(ranks)


@pytest.mark.mpi
@pytest.mark.long
def test_keeps_its_contract_with_workers_that_it_has_started_itself(keep_contract):
    """The same where no mpiexec has started the script."""
    keep_contract(None, module=[], env={"MPIEXECUTOR_TEST_CONTRACT": "1", "MPIEXECUTOR_MAX_WORKERS": "2"})


@pytest.mark.mpi
@pytest.mark.wide
@pytest.mark.long
def test_keeps_its_contract_with_isolated_calls(keep_contract):
    """Whatever an executor claims of its calls it claims of isolated ones, too."""
    keep_contract(3, env={"MPIEXECUTOR_TEST_ISOLATED": "1"})


MEETING = """
import time
from pathlib import Path
from mpiexecutor import RMAChannelExecutor

def meet(name, others, folder=Path({folder!r})):
    if others:
        (folder / name).touch()
        while len(list(folder.iterdir())) < others:
            time.sleep(0.005)

with RMAChannelExecutor() as executor:
    for future in [executor.submit(meet, "", 0) for _ in range(500)]:
        future.result()
    for future in [executor.submit(meet, str(number), 16) for number in range(16)]:
        future.result()
"""


@pytest.mark.mpi
def test_no_worker_is_idle_while_calls_wait_that_were_expected_to_be_short(tmp_path):
    """Few messages are on their way while calls are short; calls that turn out long are run by all workers all the same."""
    run_job(17, ["-m", "mpiexecutor", "-c", MEETING.format(folder=str(tmp_path))], deadline=120)

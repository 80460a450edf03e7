"""What the environment asks for when a script starts its own workers; how a process ends without MPI."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mpiexecutor._liveness import process_manager
from mpiexecutor._start import job, process
from mpiexecutor._start.process import ProcessState
from mpiexecutor._util import seconds


@pytest.mark.parametrize(("wanted", "asked", "workers"), [("3", 1, 3), ("", 2, 2)])
def test_the_environment_goes_before_what_the_first_executor_asks_for(monkeypatch, wanted, asked, workers):
    """An empty variable is as none."""
    monkeypatch.setenv("MPIEXECUTOR_MAX_WORKERS", wanted)
    assert process._pool_size(asked) == workers


def test_without_either_there_is_a_worker_for_each_core(monkeypatch):
    """That this process may use."""
    monkeypatch.delenv("MPIEXECUTOR_MAX_WORKERS", raising=False)
    assert process._pool_size(None) == process.usable_cores()


@pytest.mark.parametrize("wanted", ["many", "0", "-1", "1.5"])
def test_a_number_of_workers_that_makes_no_sense_is_refused(monkeypatch, wanted):
    """With the rule as the text."""
    monkeypatch.setenv("MPIEXECUTOR_MAX_WORKERS", wanted)
    rule = f"MPIEXECUTOR_MAX_WORKERS is the number of workers to start, at least 1, not '{wanted}'"
    with pytest.raises(ValueError, match=rule):
        process._pool_size(None)


@pytest.mark.parametrize("wanted", ["-1", "0", "inf", "nan", "soon"])
def test_a_time_to_start_that_makes_no_sense_is_refused(monkeypatch, wanted):
    """The same."""
    monkeypatch.setenv("MPIEXECUTOR_START_TIMEOUT", wanted)
    rule = f"MPIEXECUTOR_START_TIMEOUT is a number of seconds above 0 and finite, not '{wanted}'"
    with pytest.raises(ValueError, match=rule):
        seconds.from_environment(job.TIMEOUT_VARIABLE, job.TIMEOUT)


def test_workers_have_a_minute_to_start_unless_the_environment_says_otherwise(monkeypatch):
    """In seconds."""
    monkeypatch.delenv("MPIEXECUTOR_START_TIMEOUT", raising=False)
    assert seconds.from_environment(job.TIMEOUT_VARIABLE, job.TIMEOUT) == 60
    monkeypatch.setenv("MPIEXECUTOR_START_TIMEOUT", "2.5")
    assert seconds.from_environment(job.TIMEOUT_VARIABLE, job.TIMEOUT) == 2.5


# -- the end without MPI


class Ended(Exception):
    """Stands for the end of this process."""


@pytest.fixture
def end(monkeypatch):
    """Return a function that ends a process of this state, without MPI, and returns what was called."""

    def end(in_step=None, **state):
        log = []

        def leave(status):
            log.append(("exit", status))
            raise Ended

        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.delenv("SLURM_STEP_ID", raising=False)
        if in_step is not None:
            monkeypatch.setenv("SLURM_STEP_ID", in_step)
        monkeypatch.setattr(
            process_manager,
            "subprocess",
            SimpleNamespace(run=lambda command, **_: log.append(command), DEVNULL=None, TimeoutExpired=subprocess.TimeoutExpired),
        )
        parts = {name: SimpleNamespace(**{what: lambda name=name: log.append(name)}) for name, what in state.items()}
        monkeypatch.setattr(process, "PROCESS", ProcessState(**parts))
        monkeypatch.setattr(process, "flush_output", lambda *, and_wait: log.append("flushed" if and_wait else "not"))
        monkeypatch.setattr(process.os, "_exit", leave)
        with pytest.raises(Ended):
            process.end_without_mpi()
        return log

    return end


def test_a_process_that_ends_without_mpi_has_an_error(end):
    """What it has printed comes first, and its supervisor ends like it."""
    assert end() == ["flushed", ("exit", 1)]
    assert end(supervisor="dismiss") == ["flushed", "supervisor", ("exit", 1)]


def test_under_srun_the_step_is_ended(end):
    """It would wait for the other tasks. In a batch script, which is a special step, there are none."""
    assert end(in_step="0") == ["flushed", ["scancel", "--signal=KILL", "7.0"], ("exit", 1)]
    assert end(in_step=str(0xFFFFFFFB)) == ["flushed", ("exit", 1)]


def test_a_job_of_its_own_is_aborted(end):
    """Also in a task of srun, whose status is its own."""
    assert end(in_step="0", job="abort") == ["flushed", "job", ("exit", 1)]


def test_an_mpiexec_that_does_not_notice_the_end_of_rank_0_is_told_soon(monkeypatch):
    """An abort does not wait for it as long as for one that was told: Ctrl-C ends the script at once."""
    waits, signals = [], []

    class Mpiexec:
        pid = 77

        def wait(self, timeout):
            waits.append(timeout)
            if not signals:
                raise subprocess.TimeoutExpired("mpiexec", timeout)

    monkeypatch.setattr(job.os, "killpg", lambda pid, number: signals.append((pid, number)))
    aborted = job.Job.__new__(job.Job)
    aborted._placeholder, aborted._process = None, Mpiexec()
    aborted.abort()
    assert signals == [(77, signal.SIGTERM)]
    assert waits == [seconds.NOTICE, seconds.GRACE]
    assert seconds.NOTICE < seconds.GRACE


EXIT = """
import atexit, ctypes, sys
from mpiexecutor._start.process import skip_exit_handlers
library = ctypes.CDLL(None)
library.on_exit(library.abort, None)  # a handler that fails
atexit.register(print, "first")
atexit.register(skip_exit_handlers)
atexit.register(print, "last")
library.printf(b"of C\\n")
sys.exit(7)
"""


def test_exit_handlers_of_c_libraries_can_be_skipped():
    """Those of Python run, what was printed comes out, and the status is the script's."""
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, sorted(done.stdout.split("\n")), done.stderr) == (7, ["", "first", "last", "of C"], "")

"""Isolated calls: they run in child processes, whose deaths fail one call each and nothing else."""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gates import LIMIT, Gate, executor_of, identity, pid_of, square, until

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

pytestmark = pytest.mark.usefixtures("_workers")

COUNTS: Counter[str] = Counter()  # of each process
KEPT: dict[int, bytearray] = {}  # the same


@pytest.fixture
def _workers(ranks):
    if ranks == 1:
        pytest.skip("calls run in this process")


@pytest.fixture
def isolated():
    with executor_of(isolate=True) as executor:
        yield executor


def die(how: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), how)
    signal.pause()


def leave(status: int) -> None:
    os._exit(status)


def fail(why: str) -> None:
    raise ValueError(why)


class Fatal:
    """Kills the process that unpickles it, or the one that pickles it there."""

    def __init__(self, at: str) -> None:
        self.at = at

    def __reduce__(self) -> Any:
        if self.at == "unpickling":
            return die, ()
        die()
        return None


class Waiting:
    """Waits at a gate while it is unpickled, or while it is pickled there."""

    def __init__(self, gate: Gate, at: str) -> None:
        self.gate = gate
        self.at = at

    def __reduce__(self) -> Any:
        if self.at == "pickling":
            self.gate.wait()
        return self.gate.wait, ()


def count(name: str = "calls") -> int:
    COUNTS[name] += 1
    return COUNTS[name]


def set_up(name: str) -> None:
    COUNTS[name] = 100


def spoil(array: bytearray) -> bytearray:
    """Change an argument, and return it."""
    array[0] += 1
    return array


def draw() -> float:
    return random.random()


def import_mpi() -> None:
    from mpi4py import MPI  # noqa: F401


def read_input() -> str:
    return sys.stdin.read()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def keep(number: int, data: bytearray) -> None:
    KEPT[number] = data


def look_at_kept() -> dict[int, bytes]:
    return {number: bytes(data[:1] + data[-1:]) for number, data in KEPT.items()}


def fork_and_wait() -> int:
    """Have a process of its own use the argument's memory after this call."""
    pid = os.fork()
    if not pid:
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def children(executor: RMAChannelExecutor) -> set[int]:
    return {worker.pid for worker in executor.workers()}


def ends_of(executor: RMAChannelExecutor) -> int:
    return sum(worker.deaths for worker in executor.workers())


def test_calls_run_in_children_of_the_workers():
    """One for each worker, which stays; the workers themselves run other executors' calls."""
    with executor_of(isolate=False) as plain, executor_of(isolate=True) as isolated:
        ranks = set(plain.map(pid_of, range(100)))
        own = {isolated.submit(pid_of).result(LIMIT) for _ in range(100)}
        assert len(own) <= isolated.num_workers
        assert not own & ranks
        assert set(plain.map(pid_of, range(10))) <= children(plain)


def test_workers_shows_the_child_and_its_calls(isolated):
    """Its process id, and the calls that it has begun since its start."""
    before = {worker.rank: worker.done for worker in isolated.workers()}
    pid = isolated.submit(pid_of).result(LIMIT)
    (worker,) = [worker for worker in isolated.workers() if worker.pid == pid]
    assert (worker.calls, worker.done - before[worker.rank]) == (1, 1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_a_death_fails_its_own_call(isolated, how):
    """With an error that says how the child died; the number of workers stays, and so does all that they had not begun."""
    behind = isolated.num_workers * 5
    deaths = ends_of(isolated)
    future = isolated.submit(die, how)
    others = [isolated.submit(square, number) for number in range(behind)]
    error = future.exception(LIMIT)
    assert type(error) is BrokenWorkerError
    assert error.end == f"was killed by {how.name}"
    assert [other.result(LIMIT) for other in others] == [number * number for number in range(behind)]
    until(lambda: ends_of(isolated) == deaths + 1)  # workers on other nodes tell of it once a second
    assert isolated.num_workers == len(isolated.workers())


@pytest.mark.parametrize("at", ["unpickling", "pickling"])
def test_a_death_may_come_while_a_call_or_its_result_is_pickled(isolated, at):
    """It is that call's all the same."""
    future = isolated.submit(identity, Fatal(at)) if at == "unpickling" else isolated.submit(Fatal, at)
    assert type(future.exception(LIMIT)) is BrokenWorkerError
    assert isolated.submit(square, 3).result(LIMIT) == 9


@pytest.mark.parametrize("how", [partial(die), partial(leave, 3), partial(fail, "no licence")], ids=["kill", "exit", "error"])
def test_a_child_whose_initializer_fails_breaks_its_own_executor(isolated, how):
    """Whether that raises or dies: no other child would fare better. Other executors have children of their own."""
    with executor_of(isolate=True, initializer=how) as broken:
        assert isinstance(broken.submit(square, 3).exception(LIMIT), BrokenProcessPool)
        with pytest.raises(BrokenProcessPool, match="initializer"):
            broken.submit(square, 3)
    assert isolated.submit(square, 3).result(LIMIT) == 9
    assert isolated.num_workers == len(isolated.workers())


def test_many_deaths_in_a_row_leave_all_workers(isolated):
    """Each fails one call. Calls behind them are not begun, however many deaths they see."""
    futures = [isolated.submit(leave, 3) if number % 2 else isolated.submit(square, number) for number in range(24)]
    for number, future in enumerate(futures):
        if number % 2:
            error = future.exception(LIMIT)
            assert type(error) is BrokenWorkerError
            assert error.end == "ended with exit code 3"
        else:
            assert future.result(LIMIT) == number * number
    assert isolated.num_workers == len(isolated.workers())


def test_a_call_whose_child_died_is_run_again(tmp_path):
    """As often as `retries` says."""
    with executor_of(isolate=True, retries=2) as executor:

        def die_twice():
            append(tmp_path / "runs", ".")
            if len((tmp_path / "runs").read_text()) < 3:
                die()
            return "third"

        assert executor.submit(die_twice).result(LIMIT) == "third"
        assert (tmp_path / "runs").read_text() == "..."
        assert type(executor.submit(die).exception(LIMIT)) is BrokenWorkerError


def test_a_new_child_begins_afresh():
    """Its initializer runs first; what calls have set is gone with the child before."""
    with executor_of(max_workers=1, isolate=True, initializer=set_up, initargs=("calls",)) as executor:
        assert [executor.submit(count).result(LIMIT) for _ in range(3)] == [101, 102, 103]
        assert type(executor.submit(die).exception(LIMIT)) is BrokenWorkerError
        assert [executor.submit(count).result(LIMIT) for _ in range(2)] == [101, 102]


def test_each_executor_has_children_of_its_own():
    """A death in one leaves what calls of the other have set."""
    with executor_of(max_workers=1, isolate=True) as one, executor_of(max_workers=1, isolate=True) as other:
        assert [other.submit(count, "other").result(LIMIT) for _ in range(2)] == [1, 2]
        assert type(one.submit(die).exception(LIMIT)) is BrokenWorkerError
        assert other.submit(count, "other").result(LIMIT) == 3


def test_an_idle_child_that_is_killed_is_replaced(caplog):
    """No call fails: none was begun. The log tells of it all the same."""
    with executor_of(max_workers=1, isolate=True) as executor:
        for _ in range(2):
            pid = executor.submit(pid_of).result(LIMIT)
            os.kill(pid, signal.SIGKILL)
            assert executor.submit(square, 2).result(LIMIT) == 4
            assert f"pid {pid}, was killed by SIGKILL; another process takes its place" in caplog.text


def test_results_that_wait_for_others_survive_their_child():
    """A child dies when it has run calls of a message whose results were not sent yet: they are not lost."""
    with executor_of(isolate=True) as executor:
        assert list(executor.map(square, range(200))) == [number * number for number in range(200)]
        futures = [executor.submit(square, number) for number in range(300)]
        fatal = executor.submit(die)
        assert [future.result(LIMIT) for future in futures] == [number * number for number in range(300)]
        assert type(fatal.exception(LIMIT)) is BrokenWorkerError


# -- children that are replaced


@pytest.mark.parametrize("most", [1, 3])
def test_a_child_runs_so_many_calls_at_the_most(most):
    """Then another takes its place, which is no death."""
    with executor_of(max_tasks_per_child=most) as executor:
        deaths = ends_of(executor)
        ran = Counter(executor.map(pid_of, range(8)))
        assert max(ran.values()) <= most
        assert sum(ran.values()) == 8
        assert ends_of(executor) == deaths


def test_a_chunk_counts_as_one_call():
    """As in ProcessPoolExecutor."""
    with executor_of(max_workers=1, max_tasks_per_child=2) as executor:
        assert Counter(Counter(executor.map(pid_of, range(40), chunksize=5)).values()) == {10: 4}


def test_a_call_that_runs_too_long_costs_a_child_only(gate):
    """Its future raises TimeoutError; there are as many workers as before. To pickle the result takes time of the call."""
    with executor_of(task_timeout=0.3) as executor:
        before = executor.num_workers
        for call in (signal.pause, partial(Waiting, gate, "pickling")):
            with pytest.raises(TimeoutError, match=r"this call ran longer than .* 0\.3 s"):
                executor.submit(call).result(LIMIT)
        assert executor.submit(square, 4).result(LIMIT) == 16
        assert executor.num_workers == before


# -- cancelling


def test_a_call_that_runs_can_be_cancelled(isolated, gate):
    """It is killed, and its future is cancelled: all that wait for it hear so."""
    future = isolated.submit(gate.wait)
    called: list[Future[Any]] = []
    future.add_done_callback(called.append)
    gate.until_arrived(1)
    running = [worker.pid for worker in isolated.workers() if worker.state == "running"]
    waiter = threading.Thread(target=wait, args=([future],))
    waiter.start()
    assert future.cancel()
    assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
    assert called == [future]
    assert list(as_completed([future], LIMIT)) == [future]
    with pytest.raises(CancelledError):
        future.result(LIMIT)
    waiter.join(LIMIT)
    assert not waiter.is_alive()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in running))
    assert isolated.submit(square, 5).result(LIMIT) == 25
    assert future.cancel()


@pytest.mark.parametrize("at", ["unpickling", "pickling"])
def test_a_call_can_be_cancelled_while_it_or_its_result_is_pickled(gate, at):
    """It runs until its result is there, and from before it is unpickled."""
    with executor_of(max_workers=1, isolate=True) as executor:
        future = executor.submit(identity, Waiting(gate, at)) if at == "unpickling" else executor.submit(Waiting, gate, at)
        gate.until_arrived(1)
        assert "running" in {worker.state for worker in executor.workers()}
        assert future.cancel()
        assert executor.submit(square, 5).result(LIMIT / 2) == 25  # the gate is not given up before


def test_calls_that_were_sent_and_not_begun_can_be_cancelled(isolated, gate, tmp_path):
    """They do not run; calls beside them do."""
    busy = [isolated.submit(gate.wait, number) for number in range(isolated.num_workers)]
    gate.until_arrived(isolated.num_workers)
    behind = [isolated.submit(append, tmp_path / f"{number}", "ran") for number in range(3 * isolated.num_workers)]
    assert all(future.cancel() for future in behind[::2])
    time.sleep(1)  # until all supervisors are told: a call that begins before that runs
    gate.open()
    assert [future.result(LIMIT) for future in busy] == list(range(isolated.num_workers))
    for number, future in enumerate(behind):
        if number % 2:
            future.result(LIMIT)
        assert (tmp_path / f"{number}").exists() == bool(number % 2)


def test_a_cancelled_call_is_not_run_again(tmp_path, gate):
    """Though its child has died, and others would be."""
    with executor_of(isolate=True, retries=5) as executor:
        future = executor.submit(gate.wait)
        gate.until_arrived(1)
        assert future.cancel()
        executor.submit(square, 2).result(LIMIT)
    assert gate.arrived == 1


def test_what_is_done_cannot_be_cancelled(isolated):
    future = isolated.submit(square, 2)
    assert future.result(LIMIT) == 4
    assert not future.cancel()


def test_cancelling_at_any_moment_ends_or_leaves_a_call(isolated, tmp_path):
    """Each call has one outcome, and those that are not cancelled have run once."""
    futures = [isolated.submit(append, tmp_path / f"{number}", ".") for number in range(200)]
    cancelled = []
    for number, future in enumerate(futures):
        if number % 3 == 0:
            cancelled.append(future.cancel())
            time.sleep(0.0002 * (number % 7))
    for number, future in enumerate(futures):
        if not future.cancelled():
            future.result(LIMIT)
            assert (tmp_path / f"{number}").read_text() == "."
    assert len(cancelled) == 67


def test_a_map_that_is_closed_does_not_kill_what_runs(isolated, gate, tmp_path):
    """It drops calls that were not sent, as without isolation."""
    results = isolated.map(lambda number: gate.wait() and None if number else number, range(20))
    assert next(results) == 0
    gate.until_arrived(min(2, isolated.num_workers))
    deaths = ends_of(isolated)
    results.close()
    gate.open()
    isolated.shutdown()
    assert ends_of(isolated) == deaths


# -- the same Python inside


@pytest.mark.parametrize("size", [0, 1000, 100_000, 5_000_000, 40_000_000])
def test_arguments_and_results_of_any_size_come_as_they_are(isolated, size):
    """And can be changed; what one call does to its own is not seen by others."""
    data = bytearray(os.urandom(size)) + bytearray(1)
    data[0] = 5
    for _ in range(2):
        changed = isolated.submit(spoil, data).result(LIMIT)
        assert changed[0] == 6
        assert changed[1:] == data[1:]


def test_large_arguments_that_are_kept_stay_as_they_are():
    """Later calls do not overwrite them."""
    with executor_of(max_workers=1, isolate=True) as executor:
        for number in range(5):
            executor.submit(keep, number, bytearray([number]) * 3_000_000).result(LIMIT)
        assert executor.submit(look_at_kept).result(LIMIT) == {number: bytes([number]) * 2 for number in range(5)}


def test_each_child_draws_other_random_numbers():
    """Also if each call has a child of its own."""
    with executor_of(max_tasks_per_child=1) as executor:
        assert len(set(executor.map(lambda _: draw(), range(5)))) == 5


def test_a_call_cannot_use_mpi(isolated):
    """The error says what to do."""
    with pytest.raises(ImportError, match=r"make the executor with isolate=False .* to use mpi4py.MPI in calls"):
        isolated.submit(import_mpi).result(LIMIT)


def test_standard_input_is_empty(isolated):
    assert isolated.submit(read_input).result(LIMIT) == ""


def test_an_executor_cannot_be_made_in_a_call(isolated):
    with pytest.raises(RuntimeError, match="an executor cannot be made inside a call"):
        isolated.submit(RMAChannelExecutor).result(LIMIT)


def test_a_call_may_fork(isolated):
    assert isolated.submit(fork_and_wait).result(LIMIT) == 7


def test_a_large_global_goes_to_each_child(isolated):
    """Also to one that takes the place of another."""
    table = bytes(range(256)) * 4000

    def look(at):
        return table[at]

    for _ in range(2):
        assert list(isolated.map(look, range(20))) == list(range(20))
        assert type(isolated.submit(die).exception(LIMIT)) is BrokenWorkerError


def test_deaths_while_a_gate_is_open_leave_others_alone(isolated, gate: Gate):
    """A call that runs elsewhere goes on while children beside it die."""
    if isolated.num_workers < 2:
        pytest.skip("one worker runs one call")
    steady = isolated.submit(gate.wait, "steady")
    gate.until_arrived(1)
    for _ in range(2):
        assert type(isolated.submit(die).exception(LIMIT)) is BrokenWorkerError
    gate.open()
    assert steady.result(LIMIT) == "steady"

"""How jobs begin and end: whole jobs, started in each of the ways that there are.

What only the script's process does is shown without a job, in unit/test_main.py.
"""

import platform
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, run_job
from pieces import SHARED, found_in, script_of, shows, value_of

WAYS: dict[str, tuple[int | None, list[str]]] = {  # the ranks that an mpiexec starts, and what runs the script
    "by hand": (None, []),
    "every rank": (3, []),
    "rank 0": (3, ["-m", "mpiexecutor"]),
}
both_ways = pytest.mark.parametrize("way", [WAYS["every rank"][1], WAYS["rank 0"][1]], ids=["every rank", "rank 0"])
# As users run Python: the harness asks for PYTHONSAFEPATH, without which a script finds what lies beside it.
AS_USERS = ["env", "-u", "PYTHONSAFEPATH"]


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a script, and its path."""

    def write(code: str, name: str = "script.py") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(code))
        return path

    return write


def lines_of(job: Job) -> list[str]:
    return [line for line in job.stdout.splitlines() if line]


# -- one script, run in each way: what it and its calls see, what it submits, how it ends

HEAD = """
import atexit, functools, os, pathlib, subprocess, sys, threading
from mpiexecutor import RMAChannelExecutor
import beside
FOLDER = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(FOLDER / "elsewhere"))
import far_away

OFFSET = 100

class Point:
    def __init__(self, x):
        self.x = x
    def moved(self):
        return Point(self.x + OFFSET)

class Mine(Exception):
    def __init__(self, text, number):
        super().__init__(text, number)
        self.number = number

def shifted(number):
    return helper(number) + OFFSET

def helper(number):
    return 2 * number

def fail():
    raise Mine("text", 5)

def divide(number):
    return 1 / number

def submit(when):
    try:
        print(when, executor.submit(abs, -1).result(), flush=True)
    except RuntimeError as error:
        print(when, error, flush=True)
    try:
        with RMAChannelExecutor() as another:
            print(when, "another", another.submit(abs, -1).result(), flush=True)
    except RuntimeError as error:
        print(when, "another:", error, flush=True)

atexit.register(submit, "registered before")
executor = RMAChannelExecutor()
with (FOLDER / "runs").open("a") as file:
    file.write("a run\\n")
"""
BODY = """
run_pieces(executor)
atexit.register(submit, "registered after")
for number in range(200):
    executor.submit(pathlib.Path(FOLDER, f"done-{number}").touch)
executor.submit(abs, -1).add_done_callback(lambda future: print("called back", future.result(), flush=True))
main = threading.current_thread()

def go_on():
    main.join()
    print("gone on", sum(executor.map(abs, range(100))), flush=True)

threading.Thread(target=go_on).start()
sys.exit(3)
"""


@dataclass(frozen=True)
class Shared:
    """What came of the script."""

    folder: Path
    script: Path
    job: Job
    found: dict[str, Any]

    def lines(self, beginning: str) -> list[str]:
        return [line for line in self.job.stdout.splitlines() if line.startswith(beginning)]


@pytest.fixture(scope="module", params=[pytest.param(way, id=SHARED + way) for way in WAYS])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Run the script, once in each way."""
    ranks, module = WAYS[request.param]
    folder = tmp_path_factory.mktemp("shared")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "far_away.py").write_text("def triple(number):\n    return 3 * number\n")
    (folder / "beside.py").write_text("def double(number):\n    return 2 * number\n")
    path = folder / "script.py"
    path.write_text(script_of(request.module, HEAD, BODY))
    env = {"MPIEXECUTOR_MAX_WORKERS": "2"}
    job = run_job(ranks, [*module, str(path), str(folder), "b"], flags=AS_USERS, env=env, expect="any")
    return Shared(folder, path, job, found_in(folder))


@pytest.fixture
def found(shared: Shared, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Yield what the test's piece has returned."""
    try:
        yield value_of(shared.found, request.function.__name__)
    except AssertionError as error:
        pytest.fail(f"{error}\n{shared.job}", pytrace=False)


@shows("return executor.submit(lambda: sys.argv).result() == sys.argv, sys.argv[2:]")
def test_calls_see_the_arguments_of_the_script(found):
    """sys.argv of a worker is the root's, as in a process pool."""
    assert found == [True, ["b"]]


@shows("""
    moved = executor.submit(Point(1).moved).result()
    try:
        executor.submit(fail).result()
    except Mine as error:
        failed = error.number, "in fail" in str(error.__cause__)
    return {
        "function": list(executor.map(shifted, range(3))),
        "lambda": executor.submit(lambda: OFFSET + 1).result(),
        "class": (type(moved) is Point, moved.x),
        "error": failed,
        "argument": executor.submit(Point.moved, Point(2)).result().x,
    }
""")
def test_functions_and_classes_of_the_script_are_tasks(found):
    """Functions, lambdas, classes and errors of __main__ go to the workers and come back as themselves."""
    shown = {"function": [100, 102, 104], "lambda": 101, "class": [True, 101], "error": [5, True], "argument": 102}
    assert found == shown


@shows("return str(executor.submit(divide, 0).exception().__cause__)")
def test_the_error_of_a_function_of_the_script_shows_its_line(found, shared):
    """As its own traceback would: the file, the number and the text of the line."""
    line = 1 + shared.script.read_text().splitlines().index("    return 1 / number")
    assert f'File "{shared.script}", line {line}, in divide\n    return 1 / number' in found


def test_a_script_needs_no_guard(shared):
    """Without ``if __name__ == "__main__"`` nothing is run twice."""
    assert (shared.folder / "runs").read_text() == "a run\n"


@shows("return list(executor.map(beside.double, range(3)))")
def test_modules_beside_the_script_can_be_imported_by_the_workers(found):
    """A module that lies beside the script is found by the workers, wherever the job was started."""
    assert found == [0, 2, 4]


@shows("return list(executor.map(far_away.triple, range(3)))")
def test_what_the_script_adds_to_the_path_can_be_imported_by_the_workers(found):
    """The workers search where the script searches."""
    assert found == [0, 3, 6]


@shows(r"""
    def say(number):
        sys.stdout.write(f"task {number}\n")  # in one piece, buffered or not: other ranks write, too
        sys.stderr.write(f"task's error {number}\n")
    list(executor.map(say, range(5)))
    executor.submit(lambda: subprocess.run(["echo", "task's child"], check=True) and None).result()
""")
def test_what_tasks_print_is_seen(found, shared):
    """The output of calls, and of the programs that they start, appears with that of the job."""
    assert sorted(shared.lines("task")) == [*(f"task {number}" for number in range(5)), "task's child"]
    assert all(f"task's error {number}" in shared.job.stderr for number in range(5))


@shows("""
    def sys_exit():
        sys.exit(5)
    def only_exit():
        exit(5)
    def interrupt():
        raise KeyboardInterrupt
    def kinds(leave):
        return [type(executor.submit(leave).exception()).__name__ for _ in range(5)]
    return list(map(kinds, [sys_exit, only_exit, interrupt])), sum(executor.map(abs, range(100)))
""")
def test_an_exit_of_a_task_ends_no_worker(found):
    """A task that exits, like this, has failed; its worker goes on."""
    assert found == [[["SystemExit"] * 5, ["SystemExit"] * 5, ["KeyboardInterrupt"] * 5], 4950]


@shows("""
    def attempt():
        said = []
        def make():
            try:
                RMAChannelExecutor()
            except RuntimeError as error:
                said.append(str(error))
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return said
    return executor.submit(attempt).result()
""")
def test_a_worker_cannot_make_an_executor_in_a_thread_either(found):
    """A thread that a task has started is told that it is in a worker."""
    rule = "is a worker: only rank 0 can make executors from here on"
    assert found in ([f"rank {rank} {rule}"] for rank in (1, 2))


@shows("""
    totals = []
    for number in range(20):
        with RMAChannelExecutor() as another:
            totals.append(sum(another.map(abs, range(number))))
    return totals
""")
def test_many_executors_of_one_job(found):
    """The constructor on the other ranks does not return: the script makes as many executors as it likes, on the root."""
    assert found == [sum(range(number)) for number in range(20)]


@shows("return executor.num_workers")
def test_there_is_a_worker_for_each_rank_but_the_root(found, shared):
    """And no warning."""
    assert found == 2
    assert "RuntimeWarning" not in shared.job.stderr


def test_exit_keeps_the_promise_of_pending_calls(shared):
    """A script that ends without shutdown ends when its calls have been run, like a ProcessPoolExecutor's."""
    assert len(list(shared.folder.glob("done-*"))) == 200
    assert shared.lines("called back") == ["called back 1"]


def test_threads_of_the_script_may_go_on_after_its_end(shared):
    """A thread that is no daemon submits after the main thread has ended, as long as it runs."""
    assert shared.lines("gone on") == ["gone on 4950"]


def test_nothing_can_be_submitted_when_the_interpreter_has_gone_so_far(shared):
    """An exit handler that is run before the executor's can submit; one that is run after it gets RuntimeError; none hangs."""
    assert shared.lines("registered") == [
        "registered after 1",
        "registered after another 1",
        "registered before cannot schedule new futures after interpreter shutdown",
        "registered before another: cannot make an executor at interpreter shutdown",
    ]


def test_the_status_of_the_script_is_that_of_the_job(shared):
    """The status of sys.exit is that of mpiexec; no process is left, and there is no traceback."""
    assert shared.job.status == 3
    assert not shared.job.left
    assert "Traceback (most recent call last)" not in shared.job.stderr


# -- code and modules

TASKS = """
import sys
from mpiexecutor import RMAChannelExecutor

OFFSET = 100

class Point:
    def __init__(self, x):
        self.x = x
    def moved(self):
        return Point(self.x + OFFSET)

def main():
    with RMAChannelExecutor() as executor:
        moved = executor.submit(Point(1).moved).result()
        print(list(executor.map(lambda number: number + OFFSET, range(3))), type(moved) is Point, moved.x)
        executor.submit(sys.exit, {status}).result()

if __name__ == "__main__":
    main()
"""
TASKS_SAY = ["[100, 101, 102] True 101"]


@both_ways
def test_functions_and_classes_of_code_are_tasks(way):
    """Of -c; and a script that lets a task's SystemExit escape ends with its status."""
    assert lines_of(run_job(3, [*way, "-c", TASKS.format(status=6)], expect=6)) == TASKS_SAY


@both_ways
def test_functions_and_classes_of_a_module_are_tasks(script, tmp_path, way):
    """Of -m; here the status of a task is that of success."""
    script(TASKS.format(status=0), "tasks.py")
    assert lines_of(run_job(3, [*way, "-m", "tasks"], flags=AS_USERS, cwd=tmp_path)) == TASKS_SAY


def test_the_usage_is_shown_once():
    """One rank shows it, and the status is its own; the others are quiet."""
    job = run_job(3, ["-m", "mpiexecutor"], expect=2)
    assert job.stderr.count("usage: python -m mpiexecutor") == 1


@both_ways
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(5, marks=pytest.mark.wide)])
def test_any_number_of_ranks_will_do(script, way, ranks):
    """With one rank tasks run there; there is a warning for each executor that says how to start more, and none with more ranks."""
    path = script("""
        from mpiexecutor import RMAChannelExecutor
        with RMAChannelExecutor() as executor:
            print(executor.num_workers, sum(executor.map(abs, range(100))))
    """)
    job = run_job(ranks, [*way, str(path)])
    assert lines_of(job) == [f"{max(1, ranks - 1)} 4950"]
    assert job.stderr.count("RuntimeWarning: this job has one rank") == (1 if ranks == 1 else 0)
    assert ranks > 1 or "'mpiexec -n N python ...', has N - 1 workers" in job.stderr


# -- other ends


@pytest.mark.wide
@both_ways
@pytest.mark.parametrize(("end", "status", "said"), [("sys.exit('the text')", 1, "the text"), ("sys.exit()", 0, "")])
def test_other_ends_give_the_job_their_status(script, way, end, status, said):
    """A text, or nothing: as in unit/test_main.py, and as every other script's here."""
    path = script(f"""
        import sys
        from mpiexecutor import RMAChannelExecutor
        executor = RMAChannelExecutor()
        print(executor.submit(abs, -1).result(), flush=True)
        {end}
    """)
    job = run_job(3, [*way, str(path)], expect=status)
    assert lines_of(job)[:1] == ["1"]
    assert job.stderr.count(said) == 1 or not said
    assert "Traceback" not in job.stderr


RAISES = """
    import pathlib, sys, time
    from mpiexecutor import RMAChannelExecutor

    def long(folder):
        (folder / "begun").touch()
        time.sleep(1000)

    def main():
        folder = pathlib.Path(sys.argv[1])
        executor = RMAChannelExecutor()
        future = executor.submit(long, folder)
        while not (folder / "begun").exists():
            time.sleep(0.001)
        raise LookupError("from the script")

    main()
"""


@pytest.mark.mpi
@both_ways
@pytest.mark.parametrize("ranks", [1, 3])
def test_an_error_ends_the_job_at_once(script, tmp_path, way, ranks):
    """A script that raises while a worker is in an endless call ends the job: one traceback, a status, no process left."""
    job = run_job(ranks, [*way, str(script(RAISES)), str(tmp_path)], expect="failure")
    assert job.stderr.count("Traceback (most recent call last)") == 1
    assert job.stderr.count("LookupError: from the script") == 1
    assert "in main" in job.stderr
    assert "runpy" not in job.stderr
    assert "__main__.py" not in job.stderr


@pytest.mark.mpi
@both_ways
def test_an_error_before_the_executor_ends_the_job(script, way):
    """A script that raises before it has made an executor ends the job, too; every rank that comes so far before that says so."""
    job = run_job(3, [*way, str(script("raise LookupError('from the script')"))], expect="failure")
    assert job.stderr.count("LookupError: from the script") in ({1} if way else {1, 2, 3})


@pytest.mark.mpi
def test_a_script_without_an_executor_ends_as_it_would_alone():
    """The workers go home when the script ends, whatever its status."""
    job = run_job(3, ["-m", "mpiexecutor", "-c", "import sys; print('hello', flush=True); sys.exit(4)"], expect=4)
    assert lines_of(job) == ["hello"]


# A signal that comes after CPython's last look for one, and before the wait itself, is seen after the wait only: the worker lets
# the root be waiting for a while.
INTERRUPTED = """
    import os, pathlib, signal, time
    from mpiexecutor import RMAChannelExecutor

    def interrupt(pid):
        asleep = 0
        while asleep < 50:
            state = pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.002)
        os.kill(pid, signal.SIGINT)
        time.sleep(1000)

    {how}
        executor.submit(interrupt, os.getpid()).result()
"""


@pytest.mark.mpi
@both_ways
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.wide), 3])
@pytest.mark.parametrize(
    "how", ["executor = RMAChannelExecutor()\n    if True:", "with RMAChannelExecutor() as executor:"], ids=["plain", "with"]
)
def test_one_interrupt_ends_the_job(script, way, how, ranks):
    """Ctrl-C ends a script that waits for an endless call, also in a with block: one traceback, a status, no process left."""
    job = run_job(ranks, [*way, str(script(INTERRUPTED.format(how=how)))], expect="failure")
    assert job.stderr.count("Traceback (most recent call last)") == 1
    assert "KeyboardInterrupt" in job.stderr


@pytest.mark.mpi
@both_ways
def test_an_interrupt_of_every_rank_ends_the_job(script, way):
    """A terminal sends Ctrl-C to all processes of a job: the workers leave it to the root."""
    path = script("""
        import os, signal, sys, time
        from mpiexecutor import RMAChannelExecutor
        executor = RMAChannelExecutor()
        for pid in set(executor.map(lambda _: os.getpid(), range(20))):
            os.kill(pid, signal.SIGINT)
        print(list(executor.map(abs, range(3))), flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1000)
    """)
    job = run_job(3, [*way, str(path)], expect="failure")
    assert lines_of(job)[0] == "[0, 1, 2]"
    assert job.stderr.count("Traceback (most recent call last)") == 1


@both_ways
def test_an_error_in_the_body_is_the_scripts_error(script, way):
    """An error in the with statement ends the job once its calls have been run: its traceback once."""
    path = script("""
        from mpiexecutor import RMAChannelExecutor
        with RMAChannelExecutor() as executor:
            future = executor.submit(abs, -1)
            future.add_done_callback(lambda future: print(future.result(), flush=True))
            raise LookupError("in the body")
    """)
    job = run_job(3, [*way, str(path)], expect="failure")
    assert lines_of(job)[0] == "1"
    assert job.stderr.count("LookupError: in the body") == 1


# -- which ranks take part


def test_another_root_is_refused_where_rank_0_alone_runs_the_script(script):
    """No other rank would submit, and all would wait for each other."""
    path = script("""
        from mpi4py import MPI
        from mpiexecutor import RMAChannelExecutor

        RMAChannelExecutor(comm=MPI.COMM_WORLD, root=1)
    """)
    job = run_job(3, ["-m", "mpiexecutor", str(path)], expect="failure")
    said = "ValueError: 'python -m mpiexecutor' has rank 0 alone run the script, and be the root: root is 0, not 1"
    assert said in job.stderr.splitlines()


# A rank is late until it is told that it was missed, by what the root, or a worker, logs.
LATE = """
    import logging, pathlib, sys, time
    from mpi4py import MPI
    import mpiexecutor._pool.registration
    from mpiexecutor import RMAChannelExecutor

    told = pathlib.Path(sys.argv[1], "told")
    rank = MPI.COMM_WORLD.rank

    class Tell(logging.Handler):
        def emit(self, record):
            told.touch()

    logging.getLogger("mpiexecutor").addHandler(Tell())
    logging.getLogger("mpiexecutor").addHandler(logging.{shown})
    mpiexecutor._pool.registration.PATIENCE = {patience} if rank == {patient} else 1000
    come = [pathlib.Path(sys.argv[1], f"come {{each}}") for each in range(MPI.COMM_WORLD.size)]
    if rank in {late}:
        while not told.exists():
            time.sleep(0.001)
    come[rank].touch()
    while rank == {patient} and not all(file.exists() for each, file in enumerate(come) if each not in {late}):
        time.sleep(0.001)
    with RMAChannelExecutor() as executor:
        print(sum(executor.map(abs, range(10))))
"""


def test_a_rank_that_does_not_come_is_named_and_waited_for(script, tmp_path):
    """The root says which rank has not made the executor, and what to do; when it comes the job goes on."""
    path = script(LATE.format(shown="StreamHandler(sys.stdout)", patience=2, patient=0, late={2}))
    said, total = lines_of(run_job(4, [str(path), str(tmp_path)]))
    assert said.startswith("the executor on rank 0 still waits for rank 2: ")
    assert "every rank" in said
    assert "python -m mpiexecutor" in said
    assert total == "45"


def test_ranks_that_do_not_come_are_named_together(script, tmp_path):
    """The same for several of them, once, to the standard error, if the script has set up no logging."""
    path = script(LATE.format(shown="lastResort", patience=0.1, patient=0, late={1, 2}))
    job = run_job(3, [str(path), str(tmp_path)])
    assert lines_of(job) == ["45"]
    assert job.stderr.count("the executor on rank 0 still waits for ranks 1, 2: ") == 1


def test_workers_say_so_if_the_root_does_not_come(script, tmp_path):
    """A worker that waits for the root says so, after a longer time."""
    path = script(LATE.format(shown="lastResort", patience=0.01, patient=1, late={0}))
    job = run_job(3, [str(path), str(tmp_path)])
    assert lines_of(job) == ["45"]
    assert job.stderr.count("worker rank 1 still waits for rank 0 to make an executor") == 1


@pytest.mark.parametrize("root", [pytest.param(1, marks=pytest.mark.wide), 2])
def test_any_rank_can_be_the_root(script, root):
    """With root= another rank runs the script's rest, and the executor is its."""
    path = script(f"""
        from mpi4py import MPI
        from mpiexecutor import RMAChannelExecutor
        with RMAChannelExecutor(comm=MPI.COMM_WORLD, root={root}) as executor:
            ranks = set(executor.map(lambda _: MPI.COMM_WORLD.rank, range(100)))
            print(MPI.COMM_WORLD.rank, executor.num_workers, {root} in ranks)
            error = executor.submit(divmod, 1, 0).exception()
            print("of 3 on" in str(error.__cause__), "rank {root} " in str(error.__cause__))
    """)
    assert lines_of(run_job(3, [str(path)])) == [f"{root} 2 False", "True False"]


def test_an_executor_on_some_of_the_ranks(script):
    """Ranks of a communicator of their own make an executor; the others do something else meanwhile."""
    path = script("""
        import os
        from mpi4py import MPI
        from mpiexecutor import RMAChannelExecutor
        def say(line):  # at once, lest another rank's line comes in between
            os.write(1, f"{line}\\n".encode())
        world = MPI.COMM_WORLD
        part = world.Split(world.rank < 3, world.rank)
        if world.rank < 3:
            with RMAChannelExecutor(comm=part) as executor:
                for rank in set(executor.map(lambda _: world.rank, range(100))):
                    assert rank in {1, 2}
                say(f"executor {sum(executor.map(abs, range(100)))}")
        else:
            say(f"others {part.allreduce(world.rank)}")
    """)
    assert sorted(lines_of(run_job(5, [str(path)]))) == ["executor 4950", "others 7", "others 7"]


def test_two_crews_of_one_job(script):
    """Two parts of a job each have an executor of their own, at the same time."""
    path = script("""
        import os
        from mpi4py import MPI
        from mpiexecutor import RMAChannelExecutor
        def say(line):  # at once, lest another rank's line comes in between
            os.write(1, f"{line}\\n".encode())
        world = MPI.COMM_WORLD
        part = world.Split(world.rank % 2, world.rank)
        with RMAChannelExecutor(comm=part) as executor:
            say(f"{world.rank} {executor.num_workers} {sum(executor.map(abs, range(100)))}")
    """)
    assert sorted(lines_of(run_job(5, [str(path)]))) == ["0 2 4950", "1 1 4950"]


FAULTS = """
import resource
from mpiexecutor import RMAChannelExecutor

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [b"x" * (16 << 20) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with RMAChannelExecutor(max_workers=1) as executor:
    print(*[executor.submit(faults).result() for _ in range(3)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have their own ways")
def test_memory_that_a_call_frees_is_there_for_the_next(script):
    """Three arrays of 16 MiB have 12,288 pages: the first call touches them anew, the third finds most of them."""
    first, _, third = map(int, run_job(None, script(FAULTS)).stdout.split())
    assert third < first / 4

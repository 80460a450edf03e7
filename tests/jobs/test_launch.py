"""How jobs begin and end: whole jobs, started in each of the ways that there are."""

import platform
import textwrap
from pathlib import Path

import pytest
from jobs import Job, run_job

pytestmark = pytest.mark.mpi

WAYS = {"every rank": [], "rank 0": ["-m", "mpiexecutor"]}  # ... runs the script
both_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
# As users run Python: the harness asks for PYTHONSAFEPATH, without which a script finds what lies beside it.
AS_USERS = ["env", "-u", "PYTHONSAFEPATH"]


@pytest.fixture
def script(tmp_path: Path):
    """Give a function that writes a script, and its path."""

    def write(code: str, name: str = "script.py") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(code))
        return path

    return write


def lines_of(job: Job) -> list[str]:
    return [line for line in job.stdout.splitlines() if line]


# -- what the script sees


@pytest.mark.parametrize(("ranks", "module"), [(None, []), (3, []), (3, ["-m", "mpiexecutor"])], ids=["by hand", "mpiexec", "-m"])
def test_calls_see_the_arguments_of_the_script(ranks, module, script):
    """sys.argv of a worker is the root's, as in a process pool."""
    path = script("""
        import sys
        from mpiexecutor import RMAChannelExecutor

        def arguments():
            return sys.argv

        with RMAChannelExecutor(2) as executor:
            print(executor.submit(arguments).result() == sys.argv, sys.argv[1:])
    """)
    job = run_job(ranks, [*module, str(path), "a", "b"], env={"MPIEXECUTOR_MAX_WORKERS": "2"})
    assert lines_of(job) == ["True ['a', 'b']"]


def test_another_root_is_refused_where_rank_0_alone_runs_the_script(script):
    """Nobody else would submit, and all would wait for each other."""
    path = script("""
        from mpi4py import MPI
        from mpiexecutor import RMAChannelExecutor

        RMAChannelExecutor(comm=MPI.COMM_WORLD, root=1)
    """)
    job = run_job(3, ["-m", "mpiexecutor", str(path)], expect="failure")
    said = "ValueError: 'python -m mpiexecutor' has rank 0 alone run the script, and be the root: root is 0, not 1"
    assert said in job.stderr.splitlines()


SHOW = """
import sys
print("argv", sys.argv)
print("path", sys.path[0])
print("name", __name__)
print("file", globals().get("__file__"))
print("main", sys.modules["__main__"].__dict__ is globals())
"""


def test_a_script_sees_what_python_shows_it(script, tmp_path):
    """sys.argv, sys.path[0], __name__, __file__ and __main__ of a script are as without the package; it is run once."""
    path = script(SHOW)
    expected = run_job(None, [str(path), "one", "--two", "-m"], flags=AS_USERS).stdout
    assert f"path {tmp_path.resolve()}" in expected
    assert run_job(3, ["-m", "mpiexecutor", str(path), "one", "--two", "-m"], flags=AS_USERS).stdout == expected


def test_a_script_named_without_its_folder(script, tmp_path):
    """The same with a relative path."""
    script(SHOW)
    expected = run_job(None, ["script.py"], flags=AS_USERS, cwd=tmp_path).stdout
    assert run_job(2, ["-m", "mpiexecutor", "script.py"], flags=AS_USERS, cwd=tmp_path).stdout == expected


def test_a_module_sees_what_python_shows_it(script, tmp_path):
    """The same for -m: a module, with options of its own."""
    script(SHOW, "shown.py")
    expected = run_job(None, ["-m", "shown", "-c", "one"], flags=AS_USERS, cwd=tmp_path).stdout
    assert run_job(3, ["-m", "mpiexecutor", "-m", "shown", "-c", "one"], flags=AS_USERS, cwd=tmp_path).stdout == expected


def test_a_package_can_be_run(script, tmp_path):
    """A package is run by its __main__, relative imports included."""
    (tmp_path / "shown").mkdir()
    script("", "shown/__init__.py")
    script("VALUE = 42", "shown/values.py")
    script("from .values import VALUE\nprint(VALUE, __package__)" + SHOW, "shown/__main__.py")
    expected = run_job(None, ["-m", "shown", "one"], flags=AS_USERS, cwd=tmp_path).stdout
    assert "42 shown" in expected
    assert run_job(2, ["-m", "mpiexecutor", "-m", "shown", "one"], flags=AS_USERS, cwd=tmp_path).stdout == expected


def test_code_sees_what_python_shows_it(tmp_path):
    """The same for -c."""
    expected = run_job(None, ["-c", SHOW, "one", "-m"], flags=AS_USERS, cwd=tmp_path).stdout
    assert run_job(3, ["-m", "mpiexecutor", "-c", SHOW, "one", "-m"], flags=AS_USERS, cwd=tmp_path).stdout == expected


@pytest.mark.parametrize(
    ("arguments", "status"),
    [([], 2), (["-m"], 2), (["-c"], 2), (["--nonsense"], 2), (["-h"], 0), (["--help"], 0)],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else None,
)
def test_the_usage_is_shown_once(arguments, status):
    """Without a script the usage is an error, asked for it is not; one rank shows it."""
    job = run_job(3, ["-m", "mpiexecutor", *arguments], expect=status)
    assert (job.stdout + job.stderr).count("usage: python -m mpiexecutor") == 1
    assert ("usage" in job.stdout) == (status == 0)


# -- what the script submits


TASKS = """
import sys
from mpiexecutor import RMAChannelExecutor

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

def main():
    with RMAChannelExecutor() as executor:
        print("function", list(executor.map(shifted, range(3))))
        print("lambda", executor.submit(lambda: OFFSET + 1).result())
        moved = executor.submit(Point(1).moved).result()
        print("class", type(moved) is Point, moved.x)
        try:
            executor.submit(fail).result()
        except Mine as error:
            print("error", error.number, "in fail" in str(error.__cause__))
        print("initialized", executor.submit(Point.moved, Point(2)).result().x)

if __name__ == "__main__":
    main()
"""
TASKS_SAY = ["function [100, 102, 104]", "lambda 101", "class True 101", "error 5 True", "initialized 102"]


@both_ways
def test_functions_and_classes_of_the_script_are_tasks(script, way):
    """Functions, lambdas, classes and errors of __main__ go to the workers and come back as themselves."""
    assert lines_of(run_job(3, [*way, str(script(TASKS))])) == TASKS_SAY


def test_the_error_of_a_function_of_the_script_shows_its_line(script):
    """As its own traceback would: the file, the number and the text of the line."""
    path = script("""
        from mpiexecutor import RMAChannelExecutor
        def divide(number):
            return 1 / number
        with RMAChannelExecutor() as executor:
            print(executor.submit(divide, 0).exception().__cause__)
    """)
    assert f'File "{path}", line 4, in divide\n    return 1 / number' in run_job(2, ["-m", "mpiexecutor", str(path)]).stdout


@both_ways
def test_a_script_needs_no_guard(script, way):
    """Without ``if __name__ == "__main__"`` nothing is run twice."""
    assert lines_of(run_job(3, [*way, str(script(TASKS.replace('if __name__ == "__main__":', "if True:")))])) == TASKS_SAY


def test_functions_and_classes_of_code_and_of_a_module_are_tasks(script, tmp_path):
    """The same for -c, and for a module that is run with -m."""
    assert lines_of(run_job(3, ["-c", TASKS])) == TASKS_SAY
    assert lines_of(run_job(3, ["-m", "mpiexecutor", "-c", TASKS])) == TASKS_SAY
    script(TASKS, "tasks.py")
    assert lines_of(run_job(3, ["-m", "mpiexecutor", "-m", "tasks"], flags=AS_USERS, cwd=tmp_path)) == TASKS_SAY


@both_ways
def test_modules_beside_the_script_can_be_imported_by_the_workers(script, way):
    """A module that lies beside the script is found by the workers, wherever the job was started."""
    script("def double(number):\n    return 2 * number", "beside.py")
    path = script("""
        import beside
        from mpiexecutor import RMAChannelExecutor
        with RMAChannelExecutor() as executor:
            print(list(executor.map(beside.double, range(3))))
    """)
    assert lines_of(run_job(3, [*way, str(path)], flags=AS_USERS)) == ["[0, 2, 4]"]


@both_ways
def test_what_the_script_adds_to_the_path_can_be_imported_by_the_workers(script, tmp_path, way):
    """The workers search where the script searches."""
    (tmp_path / "elsewhere").mkdir()
    script("def double(number):\n    return 2 * number", "elsewhere/far_away.py")
    path = script(f"""
        import sys
        from mpiexecutor import RMAChannelExecutor
        sys.path.insert(0, {str(tmp_path / "elsewhere")!r})
        import far_away
        with RMAChannelExecutor() as executor:
            print(list(executor.map(far_away.double, range(3))))
    """)
    assert lines_of(run_job(3, [*way, str(path)])) == ["[0, 2, 4]"]


@both_ways
def test_what_tasks_print_is_seen(script, way):
    """The output of calls, and of the programs that they start, appears with that of the job."""
    path = script(r"""
        import subprocess, sys
        from mpiexecutor import RMAChannelExecutor
        def say(number):
            sys.stdout.write(f"task {number}\n")  # in one piece, buffered or not: other ranks write, too
            sys.stderr.write(f"task's error {number}\n")
        with RMAChannelExecutor() as executor:
            list(executor.map(say, range(5)))
            executor.submit(lambda: subprocess.run(["echo", "child"], check=True) and None).result()
    """)
    job = run_job(3, [*way, str(path)])
    assert sorted(lines_of(job)) == ["child", *(f"task {number}" for number in range(5))]
    assert all(f"task's error {number}" in job.stderr for number in range(5))


@both_ways
@pytest.mark.parametrize("ranks", [1, 2, 5])
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
    assert ranks > 1 or "mpiexec -n 5 python" in job.stderr


# -- how it ends


@both_ways
@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('the text')", 1, "the text"),
        ("sys.exit()", 0, ""),
        ("raise LookupError('the text')", 1, "LookupError: the text"),
    ],
)
def test_the_status_of_the_script_is_that_of_the_job(script, way, end, status, said):
    """sys.exit, a text or an error give mpiexec the status they give Python; nobody is left."""
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
    assert job.stderr.count("Traceback (most recent call last)") == end.startswith("raise")


@both_ways
def test_exit_keeps_the_promise_of_pending_calls(script, tmp_path, way):
    """A script that ends without shutdown ends when its calls have been run, like a ProcessPoolExecutor's."""
    path = script("""
        import pathlib, sys
        from mpiexecutor import RMAChannelExecutor
        executor = RMAChannelExecutor()
        for number in range(200):
            executor.submit(pathlib.Path(sys.argv[1], f"done-{number}").touch)
        executor.submit(abs, -1).add_done_callback(lambda future: print("called back", future.result()))
    """)
    assert lines_of(run_job(3, [*way, str(path), str(tmp_path)])) == ["called back 1"]
    assert len(list(tmp_path.glob("done-*"))) == 200


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


@both_ways
@pytest.mark.parametrize("ranks", [1, 3])
def test_an_error_ends_the_job_at_once(script, tmp_path, way, ranks):
    """A script that raises while a worker is in an endless call ends the job: its traceback once, a status, nobody left."""
    job = run_job(ranks, [*way, str(script(RAISES)), str(tmp_path)], expect="failure")
    assert job.stderr.count("Traceback (most recent call last)") == 1
    assert job.stderr.count("LookupError: from the script") == 1
    assert "in main" in job.stderr
    assert "runpy" not in job.stderr
    assert "__main__.py" not in job.stderr


@both_ways
def test_an_error_before_the_executor_ends_the_job(script, way):
    """A script that raises before it has made an executor ends the job, too; every rank that comes so far before that says so."""
    job = run_job(3, [*way, str(script("raise LookupError('from the script')"))], expect="failure")
    assert job.stderr.count("LookupError: from the script") in ({1} if way else {1, 2, 3})


def test_a_syntax_error_ends_the_job(script):
    """A script that is not Python ends the job: Python's message, once."""
    job = run_job(3, ["-m", "mpiexecutor", str(script("x = = 1"))], expect="failure")
    assert job.stderr.count("SyntaxError") == 1


def test_a_script_that_is_not_there_ends_the_job(tmp_path):
    """The error names it, once."""
    job = run_job(3, ["-m", "mpiexecutor", str(tmp_path / "nowhere.py")], expect="failure")
    assert "nowhere.py" in job.stderr
    assert job.stderr.count("FileNotFoundError") <= 1
    job = run_job(3, ["-m", "mpiexecutor", "-m", "there_is_no_such_module"], expect="failure")
    assert job.stderr.count("No module named there_is_no_such_module") == 1


def test_a_script_without_an_executor_ends_as_it_would_alone(script):
    """The workers go home when the script ends, whatever its status."""
    assert lines_of(run_job(3, ["-m", "mpiexecutor", str(script("print('hello')"))])) == ["hello"]
    assert lines_of(run_job(3, ["-m", "mpiexecutor", "-c", "import sys; print('hello', flush=True); sys.exit(4)"], expect=4)) == [
        "hello"
    ]


INTERRUPTED = """
    import contextlib, os, pathlib, signal, sys, time
    from mpiexecutor import RMAChannelExecutor

    def interrupt(pid):
        # CPython misses a signal that comes after its last look and before the wait itself: let the root be waiting.
        time.sleep(0.5)
        os.kill(pid, signal.SIGINT)
        time.sleep(1000)

    {how}
        executor.submit(interrupt, os.getpid()).result()
"""


@both_ways
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    "how", ["executor = RMAChannelExecutor()\n    if True:", "with RMAChannelExecutor() as executor:"], ids=["plain", "with"]
)
def test_one_interrupt_ends_the_job(script, way, how, ranks):
    """Ctrl-C ends a script that waits for an endless call, inside a with statement, too: one traceback, a status, nobody left."""
    job = run_job(ranks, [*way, str(script(INTERRUPTED.format(how=how)))], expect="failure", deadline=30)
    assert job.stderr.count("Traceback (most recent call last)") == 1
    assert "KeyboardInterrupt" in job.stderr


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
def test_nothing_can_be_submitted_when_the_interpreter_has_gone_so_far(script, way):
    """An exit handler that is run before the executor's can submit; one that is run after it gets RuntimeError; none hangs."""
    path = script("""
        import atexit
        from mpiexecutor import RMAChannelExecutor

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
        print(executor.submit(abs, -2).result(), flush=True)
        atexit.register(submit, "registered after")
    """)
    assert lines_of(run_job(3, [*way, str(path)])) == [
        "2",
        "registered after 1",
        "registered after another 1",
        "registered before cannot schedule new futures after interpreter shutdown",
        "registered before another: cannot make an executor at interpreter shutdown",
    ]


@both_ways
def test_threads_of_the_script_may_go_on_after_its_end(script, way):
    """A thread that is no daemon submits after the main thread has ended, as long as it runs."""
    path = script("""
        import threading
        from mpiexecutor import RMAChannelExecutor
        executor = RMAChannelExecutor()
        main = threading.current_thread()
        def go_on():
            main.join()
            print(sum(executor.map(abs, range(100))), flush=True)
        threading.Thread(target=go_on).start()
    """)
    assert lines_of(run_job(3, [*way, str(path)])) == ["4950"]


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


@both_ways
@pytest.mark.parametrize("code", ["sys.exit(5)", "exit(5)", "raise KeyboardInterrupt"])
def test_an_exit_of_a_task_ends_no_worker(script, way, code):
    """A task that exits, like this, has failed; its worker goes on."""
    path = script(f"""
        import sys
        from mpiexecutor import RMAChannelExecutor
        def leave():
            {code}
        with RMAChannelExecutor() as executor:
            for _ in range(5):
                print(type(executor.submit(leave).exception()).__name__)
            print(sum(executor.map(abs, range(100))))
    """)
    kind = "KeyboardInterrupt" if "raise" in code else "SystemExit"
    assert lines_of(run_job(3, [*way, str(path)])) == [kind] * 5 + ["4950"]


@both_ways
def test_an_exit_of_a_task_can_be_the_scripts(script, way):
    """A script that lets a task's SystemExit escape ends with its status."""
    path = script("""
        import sys
        from mpiexecutor import RMAChannelExecutor
        with RMAChannelExecutor() as executor:
            executor.submit(sys.exit, 6).result()
    """)
    run_job(3, [*way, str(path)], expect=6)


# -- who takes part


def test_a_rank_that_does_not_come_is_named_and_waited_for(script, tmp_path):
    """The root says which rank has not made the executor, and what to do; when it comes the job goes on."""
    path = script("""
        import pathlib, sys, time
        from mpi4py import MPI
        import mpiexecutor._orders, logging
        from mpiexecutor import RMAChannelExecutor

        told = pathlib.Path(sys.argv[1], "told")

        class Tell(logging.Handler):
            def emit(self, record):
                print(record.getMessage(), flush=True)
                told.touch()

        logging.getLogger("mpiexecutor").addHandler(Tell())
        mpiexecutor._orders._PATIENCE = 2 if MPI.COMM_WORLD.rank == 0 else 1000
        if MPI.COMM_WORLD.rank == 2:
            while not told.exists():
                time.sleep(0.001)
        with RMAChannelExecutor() as executor:
            print(sum(executor.map(abs, range(10))))
    """)
    said, total = lines_of(run_job(4, [str(path), str(tmp_path)]))
    assert said.startswith("the executor on rank 0 still waits for rank 2: ")
    assert "every rank" in said
    assert "python -m mpiexecutor" in said
    assert total == "45"


def test_ranks_that_do_not_come_are_named_together(script, tmp_path):
    """The same for several of them, once, to the standard error, if the script has set up no logging."""
    path = script("""
        import pathlib, sys, time
        from mpi4py import MPI
        import mpiexecutor._orders
        from mpiexecutor import RMAChannelExecutor

        mpiexecutor._orders._PATIENCE = 0.1 if MPI.COMM_WORLD.rank == 0 else 1000
        if MPI.COMM_WORLD.rank > 0:
            time.sleep(3)
        with RMAChannelExecutor() as executor:
            print(sum(executor.map(abs, range(10))))
    """)
    job = run_job(3, [str(path), str(tmp_path)])
    assert lines_of(job) == ["45"]
    assert job.stderr.count("the executor on rank 0 still waits for ranks 1, 2: ") == 1


def test_workers_say_so_if_the_root_does_not_come(script):
    """A worker that waits for the root says so, after a longer time."""
    path = script("""
        import time
        from mpi4py import MPI
        import mpiexecutor._orders
        from mpiexecutor import RMAChannelExecutor

        mpiexecutor._orders._PATIENCE = 0.01 if MPI.COMM_WORLD.rank == 1 else 1000
        if MPI.COMM_WORLD.rank == 0:
            time.sleep(3)
        with RMAChannelExecutor() as executor:
            print(sum(executor.map(abs, range(10))))
    """)
    job = run_job(3, [str(path)])
    assert lines_of(job) == ["45"]
    assert job.stderr.count("worker rank 1 still waits for rank 0 to make an executor") == 1


@pytest.mark.parametrize("root", [1, 2])
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


@both_ways
def test_a_worker_cannot_make_an_executor_in_a_thread_either(script, way):
    """A thread that a task has started is told that it is in a worker."""
    path = script("""
        import threading
        from mpiexecutor import RMAChannelExecutor

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

        with RMAChannelExecutor() as executor:
            print(executor.submit(attempt).result())
    """)
    assert lines_of(run_job(2, [*way, str(path)])) == ["['rank 1 is a worker: only rank 0 can make executors from here on']"]


def test_importing_the_package_initialises_no_mpi():
    """Neither the package nor its channel imports mpi4py.MPI, which would initialise MPI."""
    code = "import sys, mpiexecutor, mpiexecutor.channel; print('mpi4py.MPI' in sys.modules)"
    assert lines_of(run_job(None, ["-c", code])) == ["False"]


def test_many_executors_of_one_job(script):
    """The constructor on the other ranks does not return: the script makes as many executors as it likes, on the root."""
    path = script("""
        from mpiexecutor import RMAChannelExecutor
        totals = []
        for number in range(20):
            with RMAChannelExecutor() as executor:
                totals.append(sum(executor.map(abs, range(number))))
        print(totals == [sum(range(number)) for number in range(20)])
    """)
    assert lines_of(run_job(3, [str(path)])) == ["True"]


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

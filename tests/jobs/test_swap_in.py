"""A script for ProcessPoolExecutor needs another import, and nothing else: tests/programs/swap_in, in every way to start.

Each program prints a line for each of its checks. What it prints with ProcessPoolExecutor is the reference: the same names,
in the same order, and all of them ok.
"""

import ast
import functools
import re
import textwrap
from pathlib import Path

import pytest
from jobs import Job, run_job

PROGRAMS = Path(__file__).parent.parent / "programs"
SWAP_IN = {path.stem: path for path in sorted((PROGRAMS / "swap_in").glob("*.py"))}
LARGEST = "own_state"  # is started in every way by default; the others in those of BY_DEFAULT
BY_DEFAULT = ("script", "unguarded")
DEADLINE = 200
GUARD = 'if __name__ == "__main__":\n'
FROM_STANDARD_INPUT = """
import os, sys
os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)
os.execv(sys.executable, [sys.executable, "-"])
"""
_CHECK = re.compile(r"^(.+?): (ok|WRONG, .*)$", re.MULTILINE)
_NOTHING_IS_RUN_AGAIN = {"BY_VALUE": "1"}  # in the workers: see the programs

pytestmark = pytest.mark.mpi


def script(path, folder):
    return run_job(None, path, deadline=DEADLINE)


def launched(path, folder):
    return run_job(None, ["-m", "mpiexecutor", "-n", "3", path.name], deadline=DEADLINE, cwd=path.parent)


def mpiexec_launched(path, folder):
    return run_job(3, ["-m", "mpiexecutor", str(path)], deadline=DEADLINE)


def mpiexec(path, folder):
    return run_job(3, path, deadline=DEADLINE)


def package(path, folder):
    return run_job(None, ["-m", module_of_package(path, folder)], deadline=DEADLINE, env={"PYTHONPATH": str(folder)})


def launched_package(path, folder):
    arguments = ["-m", "mpiexecutor", "-n", "3", "-m", module_of_package(path, folder)]
    return run_job(None, arguments, deadline=DEADLINE, env={"PYTHONPATH": str(folder)})


def mpiexec_package(path, folder):
    return run_job(3, ["-m", module_of_package(path, folder)], deadline=DEADLINE, env={"PYTHONPATH": str(folder)})


def main_of_package(path, folder):
    """As `python -m study`, whose __main__ multiprocessing does not run again either."""
    module_of_package(path, folder)
    (folder / "study" / path.name).rename(folder / "study" / "__main__.py")
    return run_job(None, ["-m", "study"], deadline=DEADLINE, env={"PYTHONPATH": str(folder), **_NOTHING_IS_RUN_AGAIN})


def directory(path, folder):
    """As `python "my study"`, of a folder with a __main__.py."""
    (folder / "my study").mkdir()
    (folder / "my study" / "__main__.py").write_text(path.read_text())
    return run_job(None, ["my study"], deadline=DEADLINE, cwd=folder, env=_NOTHING_IS_RUN_AGAIN)


def odd_name(path, folder):
    """A script whose name is no module's."""
    (folder / "my script-2.txt").write_text(path.read_text())
    return run_job(None, ["my script-2.txt"], deadline=DEADLINE, cwd=folder)


def unguarded(path, folder):
    return run_job(None, without_guard(path, folder), deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


def launched_unguarded(path, folder):
    arguments = ["-m", "mpiexecutor", "-n", "3", str(without_guard(path, folder))]
    return run_job(None, arguments, deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


def mpiexec_unguarded(path, folder):
    return run_job(3, without_guard(path, folder), deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


def flagged(path, folder):
    """A guard that lets workers in, too: where they run the script again, they reach the executor."""
    flag = 'if "--unguarded" in sys.argv or __name__ == "__main__":\n'
    changed = without_guard(path, folder, "import sys\n\n" + flag)
    return run_job(None, [str(changed), "--unguarded"], deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


def command(path, folder):
    return run_job(None, ["-c", path.read_text()], deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


def launched_command(path, folder):
    arguments = ["-m", "mpiexecutor", "-n", "3", "-c", path.read_text()]
    return run_job(None, arguments, deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


def standard_input(path, folder):
    return run_job(None, ["-c", FROM_STANDARD_INPUT, str(path)], deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


def prompt(path, folder):
    """As at the interactive prompt: one statement after the other, and no blank lines inside."""
    lines = ["import sys; sys.ps1 = sys.ps2 = ''"]
    for statement in ast.parse(path.read_text()).body:
        lines += [line for line in ast.unparse(statement).splitlines() if line.strip()] + [""]
    (folder / path.name).write_text("\n".join(lines) + "\n")
    arguments = ["-c", FROM_STANDARD_INPUT.replace('"-"', '"-i", "-q", "-"'), str(folder / path.name)]
    return run_job(None, arguments, deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


def notebook(path, folder):
    return run_job(None, [str(PROGRAMS / "notebook.py"), str(path)], deadline=DEADLINE, env=_NOTHING_IS_RUN_AGAIN)


WAYS = {
    way.__name__: way
    for way in (
        script,
        launched,
        mpiexec_launched,
        mpiexec,
        package,
        launched_package,
        mpiexec_package,
        main_of_package,
        directory,
        odd_name,
        unguarded,
        launched_unguarded,
        mpiexec_unguarded,
        flagged,
        command,
        launched_command,
        standard_input,
        prompt,
        notebook,
    )
}


def module_of_package(path, folder):
    """Copy a program into a package, and give the name of its module."""
    (folder / "study").mkdir()
    (folder / "study" / "__init__.py").touch()
    (folder / "study" / path.name).write_text(path.read_text())
    return f"study.{path.stem}"


def without_guard(path, folder, instead="if True:\n"):
    """Copy a program with something else in place of its guard."""
    before, guard, after = path.read_text().rpartition(GUARD)
    assert guard, f"{path.name} has no guard"
    changed = folder / path.name
    changed.write_text(before + instead + after)
    return changed


def checks(job: Job) -> dict[str, str]:
    """Give what a job has said of each of its checks."""
    return dict(_CHECK.findall(job.stdout))


@functools.cache
def reference(name: str) -> dict[str, str]:
    """Give what a program says of its checks with ProcessPoolExecutor."""
    return checks(run_job(None, SWAP_IN[name], deadline=DEADLINE, env={"PPE": "1"}))


def judge(job: Job, wanted: dict[str, str]) -> None:
    """Fail with the names of the checks that do not hold, or were not made."""
    found = checks(job)
    wrong = [f"{name}: {found.get(name, 'not checked')}" for name in wanted if found.get(name) != "ok"]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(wanted)} checks do not hold:", *wrong, "", str(job)])
    assert list(found) == list(wanted), f"other checks than those of the reference:\n{job}"


@pytest.fixture(autouse=True)
def _no_test(monkeypatch):
    """Hide the test from its jobs: a kernel at the sight of one leaves its standard output alone."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")


@pytest.mark.parametrize("name", SWAP_IN)
def test_every_check_holds_with_processes(name):
    """The programs are right: with ProcessPoolExecutor each of their checks holds."""
    found = reference(name)
    assert found, "no check was made"
    assert set(found.values()) == {"ok"}, "\n".join(f"{check}: {said}" for check, said in found.items() if said != "ok")


def test_there_are_enough_checks():
    """No program was lost on the way."""
    assert sum(len(reference(name)) for name in SWAP_IN) >= 300


def every_program_in_every_way():
    for name in SWAP_IN:
        for way in WAYS:
            marks = [] if name == LARGEST or way in BY_DEFAULT else [pytest.mark.slow]
            yield pytest.param(name, way, marks=marks, id=f"{name}-{way}")


@pytest.mark.parametrize(("name", "way"), [*every_program_in_every_way()])
def test_a_script_needs_nothing_but_another_import(name, way, tmp_path):
    """What a program for ProcessPoolExecutor relies on holds with ours, however it is started."""
    job = WAYS[way](SWAP_IN[name], tmp_path)
    judge(job, reference(name))


@pytest.mark.parametrize("program", ["script", "unguarded"])
def test_with_one_rank_too(program, tmp_path):
    """Calls run in a thread of the script's process then, and see what the initializer has set."""
    path = tmp_path / "one.py"
    text = """
        import warnings
        from mpiexecutor import RMAChannelExecutor

        factor = 1

        def set_factor(value):
            global factor
            factor = value

        def times(x):
            return x * factor

        class Thing:
            pass

        if __name__ == "__main__":
            warnings.simplefilter("ignore")
            with RMAChannelExecutor(initializer=set_factor, initargs=(3,)) as executor:
                print(list(executor.map(times, [1, 2])), executor.submit(times, 3).result())
                print(type(executor.submit(Thing).result()) is Thing)
    """
    path.write_text(textwrap.dedent(text))
    job = run_job(1, path if program == "script" else without_guard(path, tmp_path))
    assert job.stdout == "[3, 6] 9\nTrue\n"


@pytest.mark.parametrize("ranks", [None, 3])
def test_a_module_of_a_package_imports_its_siblings(ranks, tmp_path):
    """Relative imports hold in the workers, and the module's own globals are those of `python -m`."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "__init__.py").write_text("name = 'study'\n")
    (folder / "helpers.py").write_text("unit = 2\n\ndef scaled(x):\n    return x * unit\n")
    text = """
        from mpiexecutor import RMAChannelExecutor
        from . import helpers, name
        from .helpers import scaled

        offset = 0

        def set_offset(value):
            global offset
            offset = value
            helpers.unit = 10

        def run(x):
            return scaled(x) + offset, name, __package__

        if __name__ == "__main__":
            with RMAChannelExecutor(2, initializer=set_offset, initargs=(1,)) as executor:
                print(list(executor.map(run, [1, 2])), helpers.unit, executor.submit(scaled, 5).result())
    """
    (folder / "run.py").write_text(textwrap.dedent(text))
    job = run_job(ranks, ["-m", "study.run"], env={"PYTHONPATH": str(tmp_path)})
    assert job.stdout == "[(11, 'study', 'study'), (21, 'study', 'study')] 2 50\n"


@pytest.mark.parametrize("way", ["script", "unguarded", "mpiexec"])
def test_modules_that_the_script_puts_on_its_path_are_found(way, tmp_path):
    """A folder of one's own modules, put on sys.path at the top: their functions, classes and globals are found by calls."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tools.py").write_text(
        "state = {'n': 0}\n\nclass Tool:\n    size = 1\n\ndef use(x):\n    return x, state['n']\n"
    )
    text = """
        import os, sys
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
        import tools
        from mpiexecutor import RMAChannelExecutor
        from tools import use

        def set_up(n):
            tools.state["n"] = n

        def work(x):
            return use(x), tools.Tool()

        if __name__ == "__main__":
            with RMAChannelExecutor(2, initializer=set_up, initargs=(5,)) as executor:
                found = list(executor.map(work, [1, 2])) + [executor.submit(work, 3).result()]
                same = {type(tool) is tools.Tool for _, tool in found}
                print([row for row, _ in found], same, executor.submit(tools.use, 4).result())
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    if way == "unguarded":
        path = without_guard(path, tmp_path)
    job = run_job(3 if way == "mpiexec" else None, path)
    assert job.stdout == "[(1, 5), (2, 5), (3, 5)] {True} (4, 5)\n"


@pytest.mark.parametrize("ranks", [None, 3])
def test_daemonic_children_of_calls_end_with_their_workers(ranks, tmp_path):
    """As those of ProcessPoolExecutor's workers do: a process that a call has left behind does not keep the job from its end."""
    text = """
        import multiprocessing, os
        from mpiexecutor import RMAChannelExecutor

        fork = multiprocessing.get_context("fork")
        kept = []

        def wait_for_ever(ends):
            ends[0].recv()

        def leave_behind(_):
            ends = fork.Pipe()
            kept.append((ends, fork.Process(target=wait_for_ever, args=(ends,), daemon=True)))
            kept[-1][1].start()
            return kept[-1][1].is_alive()

        if __name__ == "__main__":
            with RMAChannelExecutor(2) as executor:
                print(list(executor.map(leave_behind, range(4))))
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    assert run_job(ranks, path, deadline=60).stdout == "[True, True, True, True]\n"


@pytest.mark.parametrize("way", ["script", "launched", "unguarded"])
def test_what_the_top_level_does_to_the_surroundings_can_be_done_again(way, tmp_path):
    """A folder is entered by its relative name, an argument is taken, and files are opened to write: none is truncated."""
    (tmp_path / "data").mkdir()
    text = """
        import os, sys
        from pathlib import Path
        from mpiexecutor import RMAChannelExecutor

        name = sys.argv.pop(1)
        os.chdir("data")
        results = open("results.txt", "w")
        print("header", file=results, flush=True)
        os.makedirs("parts", exist_ok=True)
        Path("parts", "from the script").write_text("once")
        exclusive = open("exclusive.txt", "x")
        print("header", file=exclusive, flush=True)

        def work(x):
            Path("parts", f"{x}").touch()
            print("call", file=exclusive, flush=True)
            return name, sys.argv[1:], Path.cwd().name, x * x

        if __name__ == "__main__":
            with RMAChannelExecutor(2) as executor:
                for row in executor.map(work, range(4)):
                    print(*row, file=results)
                print(*executor.submit(work, 5).result(), file=results)
            results.close()
            print(sorted(os.listdir("parts")))
            print(Path("results.txt").read_text())
            print(Path("exclusive.txt").read_text().splitlines() == ["header"] + 5 * ["call"])
            print(Path("parts", "from the script").read_text())
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    if way == "unguarded":
        path = without_guard(path, tmp_path)
    start = ["-m", "mpiexecutor", "-n", "3"] if way == "launched" else []
    job = run_job(None, [*start, path.name, "first", "second"], cwd=tmp_path)
    rows = "".join(f"first ['second'] data {x * x}\n" for x in (0, 1, 2, 3, 5))
    assert job.stdout == f"['0', '1', '2', '3', '5', 'from the script']\nheader\n{rows}\nTrue\nonce\n"


def test_what_calls_print_is_shown_once(tmp_path):
    """Whole lines, without a flush in the call, by the end of the script."""
    text = """
        from mpiexecutor import RMAChannelExecutor

        print("top")

        def say(x):
            print("call", x)
            return x

        if __name__ == "__main__":
            with RMAChannelExecutor(2) as executor:
                print(sum(executor.map(say, range(20))))
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    assert sorted(run_job(None, path).stdout.splitlines()) == sorted(["top", "190", *(f"call {x}" for x in range(20))])


def test_what_the_top_level_prints_is_shown_once():
    """Workers run it again, and say nothing."""
    job = script(SWAP_IN["top_level"], None)
    assert job.stdout.count("the top level begins\n") == job.stdout.count("the top level ends\n") == 1, job


def test_task_timeout_does_not_count_imports(tmp_path):
    """A call whose module blocks its import is not overdue: time begins when the function does."""
    (tmp_path / "slow_module.py").write_text(
        "import os, time\nif 'QUICK' not in os.environ:\n    time.sleep(4)\n\ndef f(x):\n    return x\n"
    )
    text = f"""
        import os, sys
        from mpiexecutor import RMAChannelExecutor

        if __name__ == "__main__":
            sys.path.insert(0, {str(tmp_path)!r})
            os.environ["QUICK"] = ""
            import slow_module
            del os.environ["QUICK"]
            with RMAChannelExecutor(2, task_timeout=2) as executor:
                print([executor.submit(slow_module.f, x).result() for x in range(3)], executor.num_workers)
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    assert run_job(None, path).stdout == "[0, 1, 2] 2\n"


def test_an_intercommunicator_is_refused():
    """On every rank, at once, by both executors."""
    text = """
        from mpi4py import MPI
        from mpiexecutor import RMAChannelExecutor, RMACommExecutor

        local = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank > 0)
        inter = local.Create_intercomm(0, MPI.COMM_WORLD, 1 if MPI.COMM_WORLD.rank == 0 else 0)
        refused = 0
        for make in (RMACommExecutor, lambda comm: RMAChannelExecutor(comm=comm)):
            try:
                with make(inter):
                    pass
            except ValueError:
                refused += 1
        print(refused, flush=True)
    """
    job = run_job(3, ["-c", textwrap.dedent(text)])
    assert sorted(job.stdout.split()) == ["2"] * 3


def test_two_scripts_at_once_have_their_own_names(tmp_path):
    """Each with the same names, and other values."""
    text = """
        import subprocess, sys
        from mpiexecutor import RMAChannelExecutor

        value = sys.argv[1]

        def get_value():
            return value

        if __name__ == "__main__":
            with RMAChannelExecutor(1) as executor:
                own = executor.submit(get_value).result()
                if value == "outer":
                    done = subprocess.run([sys.executable, sys.argv[0], "inner"], capture_output=True, text=True, timeout=60)
                    print(done.stdout.strip())
                print(own, executor.submit(get_value).result())
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    assert run_job(None, [str(path), "outer"]).stdout == "inner inner\nouter outer\n"

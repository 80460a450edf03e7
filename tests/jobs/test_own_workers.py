"""Scripts that no mpiexec has started: they start their own workers, whatever they are run by, and leave nothing behind."""

import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import Job, mpi_name, run_job

SQUARES = """
from mpiexecutor import RMAChannelExecutor

def square(x):
    return x * x

with RMAChannelExecutor(max_workers=2) as executor:
    print(list(executor.map(square, range(5))), executor.submit(lambda: "lambda").result(), executor.num_workers)
"""
SQUARED = "[0, 1, 4, 9, 16] lambda 2"


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def alone(script: Callable[[str], Path], tmp_path: Path) -> Callable[..., Job]:
    """Return a function that runs a script without mpiexec; afterwards the temporary folder has to be empty."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    def run(text: str, **options: object) -> Job:
        job = run_job(None, script(text), **{"env": {"TMPDIR": str(temporary)}, **options})
        assert not list(temporary.glob("*mpiexecutor*"))
        return job

    return run


def test_a_command_starts_its_own_workers():
    """Python -c."""
    assert SQUARED in run_job(None, ["-c", SQUARES]).stdout


def test_standard_input_starts_its_own_workers():
    """A script that Python reads from its standard input, which mpiexec leaves alone."""
    done = subprocess.run([sys.executable, "-P", "-"], input=SQUARES, capture_output=True, text=True, timeout=60, check=True)
    assert SQUARED in done.stdout


def test_a_prompt_starts_its_own_workers(tmp_path):
    """At the REPL, on a terminal; Ctrl-C while a result is waited for leaves the pool usable."""
    gate = tmp_path / "gate"
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-P", "-i"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    said = b""

    def enter(*lines: str) -> None:
        os.write(master, "\n".join(lines).encode() + b"\n")

    def listen(until: bytes, seconds: float) -> bool:
        nonlocal said
        ends = time.monotonic() + seconds
        while until not in said and select.select([master], [], [], max(0, ends - time.monotonic()))[0]:
            try:
                said += os.read(master, 4096)
            except OSError:  # the terminal has no other side any more
                break
        return until in said

    enter(
        "from mpiexecutor import RMAChannelExecutor",
        "import time, pathlib",
        "executor = RMAChannelExecutor(max_workers=2)",
        f"def wait():\n  while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n",
        "print('now', 'waiting'); executor.submit(wait).result()",
    )
    assert listen(b"now waiting\r\n", 60), said.decode()
    while not listen(b"KeyboardInterrupt", 1):  # again: Python can miss a signal just before it blocks
        assert process.poll() is None, said.decode()
        process.send_signal(signal.SIGINT)
    gate.touch()
    enter("print('still', executor.submit(lambda: 6 * 7).result())", "exit()")
    assert listen(b"still 42", 60), said.decode()
    listen(b"nothing more", 60)
    assert process.wait(60) == 0, said.decode()


def test_a_notebook_starts_its_own_workers(monkeypatch):
    """Functions and lambdas of cells; what calls print appears in the notebook."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # at the sight of which a kernel leaves its standard output alone
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cells = [
        "from mpiexecutor import RMAChannelExecutor\nexecutor = RMAChannelExecutor(max_workers=2)",
        "def triple(x):\n    print('tripling', x)\n    return 3 * x",
        # In one piece, lest what calls print comes in between.
        "results = [*executor.map(triple, [1, 2]), executor.submit(lambda: 'lambda').result()]\nprint(str(results))",
        "try:\n    executor.submit(lambda: 1 / 0).result()\nexcept ZeroDivisionError as error:\n    print('caught', error)",
    ]
    # What calls print comes when it comes, and is shown below the cell that runs then.
    cells += ["import time; time.sleep(0.1)"] * 100
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3")
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
            shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)
            if "caught" in shown and "tripling 1" in shown:
                break
    assert "[3, 6, 'lambda']" in shown
    assert "caught division by zero" in shown
    assert "tripling 1" in shown


def test_a_thread_starts_its_own_workers(alone):
    """A thread that is not the main one may make the first executor, and two may at the same time."""
    job = alone("""
        import threading
        from mpiexecutor import RMAChannelExecutor

        sums = []

        def work():
            with RMAChannelExecutor(max_workers=2) as executor:
                sums.append(sum(executor.map(abs, range(-9, 0))))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(sums)
    """)
    assert job.stdout.strip() == "[45, 45, 45]"


def test_executors_share_the_workers(alone):
    """A later executor has the same workers; one that asks for more gets those, and learns how to have more."""
    job = alone("""
        import os, time, warnings
        from mpiexecutor import RMAChannelExecutor

        def pids(executor):
            return set(executor.map(lambda _: (time.sleep(0.01), os.getpid())[1], range(40)))

        with RMAChannelExecutor(2) as first, RMAChannelExecutor() as second, warnings.catch_warnings(record=True) as caught:
            assert pids(first) == pids(second)
            third = RMAChannelExecutor(5)
        print(third.num_workers, caught[0].message)
    """)
    assert job.stdout == "2 5 workers were asked for, there are 2; MPIEXECUTOR_MAX_WORKERS sets how many are started\n"


def test_the_environment_says_how_many_workers(alone):
    """MPIEXECUTOR_MAX_WORKERS goes before the first executor's max_workers, which stays a limit."""
    text = """
        from mpiexecutor import RMAChannelExecutor
        print(RMAChannelExecutor(max_workers=1).num_workers, RMAChannelExecutor().num_workers)
    """
    assert alone(text, env={"MPIEXECUTOR_MAX_WORKERS": "3"}).stdout == "1 3\n"


def test_workers_have_what_the_script_has(alone, tmp_path):
    """The path for imports, the working directory, the environment, warning filters; and their output is the script's."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "helper.py").write_text("def number():\n    return 17\n")
    job = alone(f"""
        import os, sys, warnings
        sys.path.append({str(tmp_path / "elsewhere")!r})
        os.chdir({str(tmp_path)!r})
        os.environ["COLOUR"] = "red"
        warnings.filterwarnings("error", message="beware")
        import helper
        from mpiexecutor import RMAChannelExecutor

        def look():
            print("printed by a worker")
            print("and to standard error", file=sys.stderr)
            try:
                warnings.warn("beware")
            except UserWarning:
                return helper.number(), os.getcwd() == {str(tmp_path)!r}, os.environ["COLOUR"]

        with RMAChannelExecutor(1) as executor:
            print(executor.submit(look).result())
    """)
    assert "(17, True, 'red')\n" in job.stdout
    assert "printed by a worker\n" in job.stdout
    assert "and to standard error\n" in job.stderr


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, marks=pytest.mark.mpi),
        pytest.param("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, marks=pytest.mark.wide),
        pytest.param("os.kill(os.getpid(), signal.SIGHUP)", -signal.SIGHUP, marks=pytest.mark.wide),
        ("os._exit(7)", 7),
        ("sys.exit(3)", 3),
        pytest.param("raise ValueError('the script fails')", 1, marks=pytest.mark.mpi),
    ],
)
def test_a_script_that_ends_leaves_nothing(alone, ending, status):
    """However it ends, with calls that would run for ever: no process, and no file in the temporary folder; its own status."""
    forever = "" if ending.startswith("sys.exit") else "executor.submit(time.sleep, 1000)"
    alone(
        f"""
        import os, signal, sys, time
        from mpiexecutor import RMAChannelExecutor
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        executor = RMAChannelExecutor(max_workers=2)
        list(executor.map(abs, range(20)))
        {forever}
        {ending}
        """,
        expect=status,
    )


@pytest.mark.parametrize("inside", [pytest.param("with executor:", marks=pytest.mark.mpi), "if True:"])
def test_an_interrupt_ends_the_script(alone, inside):
    """Ctrl-C, once: KeyboardInterrupt, the exit handlers, no process left; it does not wait for calls that run."""
    job = alone(
        f"""
        import atexit, os, signal, time
        from mpiexecutor import RMAChannelExecutor
        atexit.register(print, "the first exit handler", flush=True)
        executor = RMAChannelExecutor(max_workers=2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        {inside}
            executor.submit(abs, 1).result()
            executor.submit(time.sleep, 1000)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1000)
        """,
        expect="failure",
        deadline=30,
    )
    assert job.stderr.count("KeyboardInterrupt") == 1
    assert job.stdout == "the first exit handler\n"


@pytest.mark.parametrize("step", ["Links", "PoolRecovery"], ids=["the workers wait", "the workers serve"])
def test_an_interrupt_while_the_pool_is_made_ends_the_script(alone, step):
    """MPI cannot be finalised then, as the workers wait for what all make together: they are ended."""
    job = alone(
        f"""
        from mpiexecutor import RMAChannelExecutor
        from mpiexecutor._pool import worker_pool

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        worker_pool.{step} = interrupt
        RMAChannelExecutor(max_workers=2)
        """,
        expect="failure",
        deadline=60,
    )
    assert job.stderr.endswith("\nKeyboardInterrupt\n")


def test_a_script_may_catch_an_interrupt(alone):
    """And go on with the pool."""
    job = alone("""
        import os, signal
        from mpiexecutor import RMAChannelExecutor
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with RMAChannelExecutor(max_workers=2) as executor:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                signal.pause()
            except KeyboardInterrupt:
                print(sum(executor.map(abs, range(10))))
    """)
    assert job.stdout == "45\n"


@pytest.mark.mpi
def test_a_forked_child_does_not_keep_the_job(alone):
    """A child that outlives the script does not keep the workers alive."""
    job = alone(
        """
        import os, signal, time
        from mpiexecutor import RMAChannelExecutor
        executor = RMAChannelExecutor(max_workers=1)
        worker = executor.submit(os.getpid).result()
        if os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(1000):
            if not os.path.exists(f"/proc/{worker}"):
                break
            time.sleep(0.01)
        print("there" if os.path.exists(f"/proc/{worker}") else "gone", flush=True)
        os._exit(0)
        """,
        expect=-signal.SIGKILL,
    )
    assert job.stdout == "gone\n"


@pytest.mark.mpi
def test_an_interrupt_while_a_window_is_allocated_ends_the_script(alone):
    """The worker never comes to it, and MPI waits for that outside Python."""
    job = alone(
        """
        import os, signal, threading, time
        from mpiexecutor import RMAChannelExecutor
        from mpiexecutor._start import job
        from mpiexecutor._start.process import PROCESS

        hook = "from mpiexecutor._pool import serve; serve.Links = lambda *_, **__: __import__('time').sleep(1000); main()"
        job._PROGRAM = job._PROGRAM.replace("main()", hook)

        def interrupt():
            while not PROCESS.joining:
                time.sleep(0.01)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        RMAChannelExecutor(1)
        """,
        expect="any",
    )
    assert "KeyboardInterrupt" in job.stderr


@pytest.mark.mpi
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_a_killed_script_leaves_no_shared_memory(alone, number):
    """Even if mpiexec ends the workers before they have time to remove it: here their supervisors never do."""
    job = alone(
        f"""
        import os, signal
        from mpiexecutor import RMAChannelExecutor
        from mpiexecutor._liveness import process_manager
        from mpiexecutor._start import job
        hook = "import signal; from mpiexecutor._liveness import supervisor as s; s.Supervisor._obey = lambda _: signal.pause()"
        job._PROGRAM = job._PROGRAM.replace("main()", hook + "; main()")
        executor = RMAChannelExecutor(max_workers=1)
        executor.submit(abs, -1).result()
        print(*process_manager.mapped()[1], flush=True)
        os.kill(os.getpid(), signal.{number})
        signal.pause()
        """,
        expect=-signal.Signals[number],
    )
    assert mpi_name() == "impi" or job.stdout.split()
    assert not [file for file in job.stdout.split() if Path(file).exists()]


def test_a_forked_child_leaves_the_pool_alone(alone):
    """It cannot use its parent's executor, and ends as it likes; the parent's goes on."""
    job = alone("""
        import os, sys
        from mpiexecutor import RMAChannelExecutor
        executor = RMAChannelExecutor(max_workers=1)
        executor.submit(abs, -1).result()
        if os.fork() == 0:
            try:
                executor.submit(abs, -1)
            except RuntimeError as error:
                print(error, flush=True)
            sys.exit(5)
        print(os.waitstatus_to_exitcode(os.wait()[1]), executor.submit(abs, -2).result())
    """)
    assert job.stdout == "this executor belongs to the process that has made it, not to one forked from it\n5 2\n"


def test_an_interrupt_at_the_end_of_the_script_ends_it(alone):
    """While the calls that are left are waited for."""
    job = alone(
        """
        import os, signal, threading, time
        from mpiexecutor import RMAChannelExecutor
        signal.signal(signal.SIGINT, signal.default_int_handler)
        executor = RMAChannelExecutor(max_workers=1)
        executor.submit(abs, 1).result()
        executor.submit(time.sleep, 1000)
        interrupt = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.daemon = True  # or the interpreter would wait for it, before it waits for the calls
        interrupt.start()
        """,
        expect="any",
        deadline=30,
    )
    assert "KeyboardInterrupt" in job.stderr


def test_a_process_of_multiprocessing_gets_no_pool_of_its_own(alone):
    """It would run the script again, and so on: one sentence says so."""
    job = alone("""
        import multiprocessing, sys
        from mpiexecutor import RMAChannelExecutor

        def make():
            try:
                RMAChannelExecutor(1)
            except RuntimeError as error:
                print(error, flush=True)

        process = multiprocessing.get_context("fork").Process(target=make)
        process.start()
        process.join()
    """)
    assert job.stdout.startswith("an executor cannot be made in a process that multiprocessing has started")


def test_no_mpiexec_is_an_error(alone):
    """It says which extra to install."""
    job = alone(
        """
        import sys
        sys.prefix = "/nowhere"
        from mpiexecutor import RMAChannelExecutor
        RMAChannelExecutor()
        """,
        env={"PATH": "/nowhere"},
        expect=1,
    )
    assert "no mpiexec was found" in job.stderr
    assert "pip install 'mpiexecutor[mpich]'" in job.stderr


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("echo the machine is on fire >&2; exit 3", "the machine is on fire"),
        ("exec sleep 1000", "the workers have not come in time: MPIEXECUTOR_START_TIMEOUT"),
    ],
)
def test_workers_that_do_not_come_are_an_error(alone, tmp_path, body, text):
    """With what they said; and nothing is left running."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mpiexec").write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{body}\n')
    (folder / "mpiexec").chmod(0o755)
    job = alone(
        f"""
        import sys
        sys.prefix = {str(tmp_path)!r}
        from mpiexecutor import RMAChannelExecutor, StartError
        try:
            RMAChannelExecutor()
        except StartError as error:
            print(error)
        """,
        env={"MPIEXECUTOR_START_TIMEOUT": "1"},
    )
    assert text in job.stdout


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("MPI_Init", "from mpiexecutor._start import process; process.initialise = lambda _: __import__('time').sleep(1000)"),
        ("a window", "from mpiexecutor._pool import serve; serve.Links = lambda *_, **__: __import__('time').sleep(1000)"),
    ],
)
def test_a_start_that_hangs_inside_mpi_ends_in_time(alone, place, hook):
    """A worker does not come to MPI_Init, or to the window that all allocate: the script waits there, outside Python."""
    job = alone(
        f"""
        from mpiexecutor import RMAChannelExecutor, StartError
        from mpiexecutor._start import job

        job._PROGRAM = job._PROGRAM.replace("main()", {hook + "; main()"!r})
        for _ in range(2):
            try:
                RMAChannelExecutor(1)
            except StartError as error:
                print(error, flush=True)
        """,
        env={"MPIEXECUTOR_START_TIMEOUT": "5"},
        expect="any",  # Open MPI ends the script when the job is ended
        deadline=90,
    )
    assert "the workers have not come in time: MPIEXECUTOR_START_TIMEOUT" in job.stderr
    if job.status == 0:
        assert "in time" in job.stdout
        assert job.stdout.endswith("a process initialises MPI once only: start the script again\n")


@pytest.mark.mpi
def test_the_wrong_mpiexec_is_an_error(alone, tmp_path):
    """One of another MPI than mpi4py loads is told from the right one before MPI is initialised, and named."""
    from mpiexecutor._start.mpiexec import Mpiexec

    other = "Intel(R) MPI Library" if mpi_name() != "impi" else "mpiexec (Open MPI)"
    folder = tmp_path / "bin"
    folder.mkdir()
    flags = " ".join(Mpiexec.find()._flags(hostfile=None, here=True))
    (folder / "mpiexec").write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "{other}" && exit 0\n'
        f'while [ "$1" != -n ]; do shift; done\nexec "{Mpiexec.find().path}" {flags} "$@"\n'
    )
    (folder / "mpiexec").chmod(0o755)
    job = alone(
        f"""
        import sys
        sys.prefix = {str(tmp_path)!r}
        from mpiexecutor import RMAChannelExecutor, StartError
        try:
            RMAChannelExecutor(1)
        except StartError as error:
            print(error, "mpi4py.MPI" in sys.modules)
        """
    )
    assert f"{folder}/mpiexec belongs to" in job.stdout
    assert "but mpi4py loads" in job.stdout
    assert job.stdout.endswith("False\n")


def test_mpi_initialised_by_the_script_is_an_error(alone):
    """It says what to do."""
    job = alone(
        """
        from mpi4py import MPI
        from mpiexecutor import RMAChannelExecutor
        RMAChannelExecutor()
        """,
        expect=1,
    )
    assert "StartError: this script has initialised MPI already" in job.stderr
    assert "python -m mpiexecutor" in job.stderr


@pytest.mark.mpi
def test_the_launcher_starts_the_ranks(script):
    """Python -m mpiexecutor -n N finds the mpiexec and its flags; the script's own options are its own; -v shows the command."""
    path = script("""
        import sys
        from mpiexecutor import RMAChannelExecutor
        with RMAChannelExecutor() as executor:
            print(sys.argv[1:], executor.num_workers, executor.submit(lambda: "lambda").result())
        sys.exit(5)
    """)
    arguments = ["-m", "mpiexecutor", "-v", "-n", "3", str(path), "-n", "7", "-v", "--info"]
    job = run_job(None, arguments, expect=5)
    assert job.stdout == "['-n', '7', '-v', '--info'] 2 lambda\n"
    assert "mpiexec" in job.stderr.splitlines()[0]


@pytest.mark.mpi
def test_the_launcher_describes_the_installation():
    """--info, for a report."""
    job = run_job(None, ["-m", "mpiexecutor", "--info"])
    for name in ("mpiexec", "mpi4py", "MPI library", "thread level", "hosts", "cores", "one RMA call", "one call"):
        assert name in job.stdout


@pytest.mark.mpi
def test_a_block_on_a_communicator_lets_every_rank_go_on():
    """RMACommExecutor: any root, several times, and the ranks' own communication afterwards."""
    program = """
from mpi4py import MPI
from mpiexecutor import RMACommExecutor
comm = MPI.COMM_WORLD
for root in range(comm.size):
    with RMACommExecutor(comm, root) as executor:
        assert (executor is not None) == (comm.rank == root)
        if executor is not None:
            assert list(executor.map(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
print("after", comm.allreduce(1))
"""
    assert run_job(3, ["-c", program]).stdout.count("after") == 3


def test_blocks_on_a_communicator_may_be_in_a_script_that_has_workers(script):
    """RMACommExecutor under python -m mpiexecutor, twice; the workers go home at the end.

    It is above a guard: workers run the script up to the first block, and go no further.
    """
    path = script("""
        from mpiexecutor import RMACommExecutor
        offset = 1
        def add(x):
            return x + offset
        for _ in range(2):
            with RMACommExecutor() as executor:
                print(executor.submit(add, 1).result(), flush=True)
        if __name__ == "__main__":
            print("the end")
    """)
    assert run_job(3, ["-m", "mpiexecutor", str(path)]).stdout == "2\n2\nthe end\n"


def test_a_block_that_cannot_be_made_lets_every_rank_go_on():
    """The root gets the error, the others are dismissed."""
    program = """
import threading
from mpi4py import MPI
from mpiexecutor import RMACommExecutor
try:
    with RMACommExecutor(initializer=print, initargs=(threading.Lock(),)):
        pass
except TypeError as error:
    print(error, flush=True)
MPI.COMM_WORLD.Barrier()
"""
    assert run_job(3, ["-c", program]).stdout == "cannot pickle '_thread.lock' object\n"


def test_nothing_is_left_in_the_temporary_folder():
    """By any of the above."""
    assert not list(Path(tempfile.gettempdir()).glob("mpiexecutor-*"))

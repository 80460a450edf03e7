"""Workers die, really, under every way to start: what they had begun is lost, and nothing else; the script ends as it wants to."""

from pathlib import Path

import pytest
from jobs import PROGRAMS, mpi_name, run_job

from mpiexecutor._util.seconds import SCALE_VARIABLE

MORTAL = str(PROGRAMS / "mortal.py")
RANKS = 20  # what it needs
STEPS = 19  # what it says "ok" to
STATUS = 5  # that it is told to end with


@pytest.mark.parametrize(
    ("ranks", "module"),
    [
        pytest.param(None, [], id="python", marks=pytest.mark.mpi),
        pytest.param(RANKS, ["-m", "mpiexecutor"], id="mpiexec python -m mpiexecutor", marks=pytest.mark.mpi),
        pytest.param(RANKS, [], id="mpiexec python", marks=pytest.mark.wide),
        pytest.param(None, ["-m", "mpiexecutor"], id="python -m mpiexecutor -n", marks=pytest.mark.wide),
    ],
)
def test_only_what_a_failed_worker_had_begun_is_lost(ranks, module, tmp_path):
    """One worker after another dies, at a chosen step, down to none; then the exit handlers run, and the status is the script's."""
    own = ["-n", str(RANKS)] if module and ranks is None else []
    job = run_job(
        ranks,
        [*module, *own, MORTAL, str(tmp_path), str(STATUS)],
        env={"MPIEXECUTOR_MAX_WORKERS": str(RANKS - 1)},
        expect=STATUS,
        deadline=120,
    )
    said = [line for line in job.stdout.splitlines() if line.startswith("ok: ")]
    assert len(said) == STEPS, str(job)
    assert said[-1] == "ok: the last of the exit handlers", str(job)
    files = [line.partition(" ")[2] for line in job.stdout.splitlines() if line.startswith("file: ")]
    assert files or mpi_name() == "impi", "which removes them at once"
    assert [file for file in files if Path(file).exists()] == [], "shared memory is left"


DIES = """
import logging, os, signal
logging.basicConfig(level=logging.INFO)
from mpiexecutor import BrokenWorkerError, RMAChannelExecutor
{before}
if __name__ == "__main__":
    with RMAChannelExecutor() as executor:
        try:
            executor.submit(lambda: os.kill(os.getpid(), signal.SIGKILL)).result()
        except BrokenWorkerError as error:
            print(error.rank, error.host, error.pid, error.end)
        print(executor.submit(abs, -7).result(), executor.num_workers)
"""


@pytest.mark.mpi
def test_the_error_says_which_worker_died_and_how(tmp_path):
    """Rank, host, pid, and the signal: in one sentence, and one by one. The root's log has a line of it."""
    script = tmp_path / "script.py"
    script.write_text(DIES.format(before=""))
    job = run_job(3, ["-m", "mpiexecutor", str(script)])
    rank, host, pid, *end = job.stdout.splitlines()[0].split()
    assert rank in {"1", "2"}
    assert " ".join(end) == "was killed by SIGKILL"
    assert f"the worker on rank {rank}, host {host}, pid {pid}, was killed by SIGKILL" in job.stderr
    assert job.stdout.splitlines()[-1] == "7 1"


@pytest.mark.parametrize("why", [pytest.param("switched off", marks=pytest.mark.mpi), "threads", "OpenMP", "MPI is initialised"])
def test_without_supervisors_a_death_ends_the_job(why, tmp_path):
    """As MPI has it; if there can be no supervisor, a line says so."""
    before = {
        "switched off": "os.environ['MPIEXECUTOR_SUPERVISOR'] = '0'",
        "threads": "import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
        "OpenMP": (  # or so it is called
            "import _ctypes, ctypes, shutil, tempfile\n"
            f"ctypes.CDLL(shutil.copy(_ctypes.__file__, tempfile.mkdtemp(dir={str(tmp_path)!r}) + '/libgomp.so.1'))"
        ),
        "MPI is initialised": "import mpi4py.MPI",
    }[why]
    script = tmp_path / "script.py"
    script.write_text(DIES.format(before=before))
    job = run_job(3, script, expect="failure")
    assert "7 1" not in job.stdout
    assert ("has no supervisor" in job.stderr) == (why != "switched off"), str(job)


STOPS = """
import os, signal
from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

def stop_in_the_middle_of_a_put():
    from mpiexecutor.channel._ring.producer import Producer
    swap = Producer._swap
    def swap_and_stop(*arguments):
        seen = swap(*arguments)
        os.kill(os.getpid(), signal.SIGSTOP)
        return seen
    Producer._swap = swap_and_stop

def run(what):
    if what == "stop":
        stop_in_the_middle_of_a_put()
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()

with RMAChannelExecutor() as executor:
    ready = set()  # workers that have what this call needs: they could not ask for it behind the message that is not finished
    while len(ready) < executor.num_workers:
        ready |= set(executor.map(run, range(10)))
    stopped = executor.submit(run, "stop")
    killed = executor.submit(run, "die")
    error = killed.exception()
    print(type(error) is BrokenWorkerError, error.end)
    print(stopped.result() in ready)
    print(executor.submit(abs, -7).result(), executor.num_workers)
"""


@pytest.mark.mpi
def test_a_stopped_worker_that_keeps_a_channel_from_being_recovered_is_killed(tmp_path):
    """In the middle of a message: no rank can put or take until the channel is recovered, and none waits for that for ever.

    Its call had come to its end, and so is not lost.
    """
    script = tmp_path / "script.py"
    script.write_text(STOPS)
    job = run_job(4, ["-m", "mpiexecutor", str(script)], env={SCALE_VARIABLE: "0.5"})
    assert job.stdout.splitlines() == ["True was killed by SIGKILL", "True", "7 1"]


SCRIBBLES = """
import gc, os, signal
from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

def scribble_and_die(data):
    from mpiexecutor._liveness.status_page import _HELD, StatusPage
    page = next(each for each in gc.get_objects() if type(each) is StatusPage)
    page._outcomes[:len(data)] = data
    page._numbers[_HELD] = len(data)
    os.kill(os.getpid(), signal.SIGKILL)

with RMAChannelExecutor() as executor:
    for data in (b"garbage" * 20, b"N."):
        print(type(executor.submit(scribble_and_die, data).exception()) is BrokenWorkerError)
    print(executor.submit(abs, -7).result(), executor.num_workers)
"""


def test_garbage_in_the_memory_of_a_failed_worker_does_no_harm(tmp_path):
    """The root looks there for its outcomes: it logs that they cannot be read, and the call is lost as any."""
    script = tmp_path / "script.py"
    script.write_text(SCRIBBLES)
    job = run_job(4, ["-m", "mpiexecutor", str(script)])
    assert job.stdout.splitlines() == ["True", "True", "7 1"]
    assert job.stderr.count("not all of what a failed worker had run can be read") == 2


# The module is not imported here: it initialises MPI, after which there are no supervisors.
WITHOUT_LOCKS = """
import builtins, runpy, sys

load = builtins.__import__
def load_and_patch(*arguments, **options):
    found = load(*arguments, **options)
    if window := sys.modules.get("mpiexecutor._rma.window"):
        window.on_one_node = lambda comm: False
    return found
builtins.__import__ = load_and_patch

sys.argv[0] = "mpiexecutor"
runpy.run_module("mpiexecutor", run_name="__main__")
"""


@pytest.mark.mpi
def test_a_lock_of_mpi_that_a_failed_worker_holds_ends_the_executor_and_not_the_script():
    """Between nodes atomic steps go through MPI. The thread that enters MPI next may wait for ever; nothing else does."""
    program = ["-c", WITHOUT_LOCKS, str(PROGRAMS / "wedged.py"), str(STATUS)]
    job = run_job(7, program, env={SCALE_VARIABLE: "0.3"}, expect=STATUS)
    assert job.stdout.splitlines()[-1] == "ok: the last of the exit handlers", str(job)
    if given_up := [line for line in job.stdout.splitlines() if "given up" in line]:  # as nearly always
        end = ", was killed by SIGKILL, inside MPI, where it holds a lock that no rank can take any more"
        assert given_up[0].endswith(end), str(job)


LOSES_ALL = """
import os, signal, sys, time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from mpiexecutor import RMAChannelExecutor
{before}
mark = Path(sys.argv[0] + ".mark")

def die():
    while not mark.exists():
        time.sleep(0.01)
    {call}

with RMAChannelExecutor(2) as executor:
    calls = [executor.submit(die) for _ in range(10)]
    mark.touch()  # only now: else the job may have ended before all are submitted
    print({{isinstance(call.exception(), BrokenProcessPool) for call in calls}})
    try:
        executor.submit(abs, 1)
    except BrokenProcessPool as error:
        print("refused:", error)
print("the end")
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("before", "call"),
    [
        ("os.environ['MPIEXECUTOR_SUPERVISOR'] = '0'", "os.kill(os.getpid(), signal.SIGKILL)"),
        ("", "os.kill(os.getppid(), signal.SIGKILL), time.sleep(60)"),
    ],
    ids=["without supervisors", "the supervisor dies"],
)
def test_a_script_that_has_started_its_workers_outlives_the_job(before, call, tmp_path):
    """A death that MPI sees ends mpiexec and all workers, but not the script: its calls fail, and it ends as it wants to."""
    script = tmp_path / "script.py"
    script.write_text(LOSES_ALL.format(before=before, call=call))
    job = run_job(None, script, env={SCALE_VARIABLE: "0.3"})
    for said in ("{True}\n", "refused: ", "the end\n"):  # in the middle of what mpiexec has to say
        assert said in job.stdout, str(job)


HOLDERS = """
import os, signal
import numpy as np
from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

KEPT = []

def keep(values):
    KEPT.append(values)
    return values * 2

def keep_and_die(values):
    KEPT.append(values)
    os.kill(os.getpid(), signal.SIGKILL)

def shared():
    return sum(name.startswith("/memfd:mpiexecutor ") for name in map(os.readlink, descriptors()))

def descriptors():
    return [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]

if __name__ == "__main__":
    with RMAChannelExecutor() as executor:
        results = []
        for number in range(12):
            results.append(executor.submit(keep, np.full(1 << 18, number)).result())
        while executor.num_workers > 1:
            try:
                executor.submit(keep_and_die, np.ones(1 << 18)).result()
            except BrokenWorkerError:
                pass
            for number in range(12, 18):
                results.append(executor.submit(keep, np.full(1 << 18, number)).result())
        print(all(len(set(values)) == 1 and values[0] % 2 == 0 for values in results), shared() > 0)
"""


@pytest.mark.mpi
def test_large_arrays_of_failed_workers_stay(tmp_path):
    """Those that came from them, and those that the root sends to others after it."""
    script = tmp_path / "script.py"
    script.write_text(HOLDERS)
    assert run_job(4, ["-m", "mpiexecutor", str(script)]).stdout == "True True\n"


DIES_IN_A_MAP = """
import os, signal, sys, time
from pathlib import Path
from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

log = Path({log!r})

def run(number, odd=-1):
    if number == odd:
        with (log / "deaths").open("a") as file:
            file.write("one ")
        os.kill(os.getpid(), signal.SIGKILL)
    with (log / str(os.getpid())).open("a") as file:
        file.write(f"{{number}} ")
    return number

with RMAChannelExecutor(**{options}) as executor:
    sum(executor.map(run, range(1000)))  # they are known to be short, and travel together
    for file in log.iterdir():
        file.unlink()
    found = []
    try:
        for result in executor.map(run, range(2000), [1234] * 2000, unordered=True):
            found.append(result)
    except BrokenWorkerError as error:
        print("lost:", error.end)
print("twice:", len(found) - len(set(found)), 1234 in found)
runs = sorted(int(word) for file in log.iterdir() if file.name != "deaths" for word in file.read_text().split())
print("run twice:", len(runs) - len(set(runs)), "deaths:", len((log / "deaths").read_text().split()))
"""


@pytest.mark.mpi
@pytest.mark.parametrize("retries", [0, 2])
def test_only_the_call_of_a_map_that_a_failed_worker_had_begun_is_lost(retries, tmp_path):
    """Of many that travel together: what was run before it is not run again, and it is run again alone if that is wanted."""
    script = tmp_path / "script.py"
    log = tmp_path / "log"
    log.mkdir()
    script.write_text(DIES_IN_A_MAP.format(log=str(log), options={"retries": retries}))
    job = run_job(6, ["-m", "mpiexecutor", str(script)])
    assert job.stdout.splitlines() == [
        "lost: was killed by SIGKILL",
        "twice: 0 False",
        f"run twice: 0 deaths: {1 + retries}",
    ], str(job)

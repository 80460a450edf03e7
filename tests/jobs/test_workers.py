"""What is known of the workers, and how they are ended: a call that hangs, a pool that is to end at once."""

import ast
import re

import pytest
from jobs import run_job

from mpiexecutor._util.seconds import SCALE_VARIABLE

HEAD = """
import ctypes, os, signal, sys, time
from concurrent.futures import CancelledError
from pathlib import Path
from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

FOLDER = Path(sys.argv[1])

def until(condition):
    end = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.01)

def hold(number):
    (FOLDER / f"pid {os.getpid()}").touch()
    until((FOLDER / "open").exists)
    return number

def hang():
    while True:
        pass

def hold_gil(pipe):
    # until something can be read
    return ctypes.PyDLL(None).read(os.open(pipe, os.O_RDONLY), ctypes.create_string_buffer(1), 1)

def held():
    return [int(path.name.split()[1]) for path in FOLDER.glob("pid *")]

def state_of(pid):
    return next(worker.state for worker in executor.workers() if worker.pid == pid)
"""


def run(tmp_path, body, *arguments, ranks=4, **options):
    """Run a script; every way to start has the same workers."""
    script = tmp_path / "script.py"
    script.write_text(HEAD + body)
    return run_job(ranks, ["-m", "mpiexecutor", str(script), str(tmp_path), *arguments], **options)


STATES = """
import socket
from mpiexecutor._util.seconds import SILENT
isolated = len(sys.argv) > 2
with RMAChannelExecutor(isolate=isolated) as executor:
    sum(executor.map(abs, range(100)))
    assert [(worker.rank, worker.host) for worker in executor.workers()] == [(rank, socket.gethostname()) for rank in (1, 2, 3)]
    assert sum(worker.done for worker in executor.workers()) == 100
    until(lambda: {worker.state for worker in executor.workers()} == {"idle"})
    before = time.time()
    call = executor.submit(hold, 1)
    until(held)
    pid, = held()
    until(lambda: state_of(pid) == "running")
    busy, = (worker for worker in executor.workers() if worker.pid == pid)
    assert before - 0.1 <= busy.since <= time.time(), (busy, before)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "silent")
    silent, = (worker for worker in executor.workers() if worker.pid == pid)
    assert busy.since - 2 <= silent.since <= time.time() - SILENT, (busy, silent)
    assert executor.submit(abs, -7).result() == 7
    os.kill(pid, signal.SIGCONT)
    until(lambda: state_of(pid) == "running")
    (FOLDER / "open").touch()
    assert call.result() == 1
    until(lambda: state_of(pid) == "idle")
    os.mkfifo(FOLDER / "pipe")
    pipe = os.open(FOLDER / "pipe", os.O_RDWR)
    call = executor.submit(hold_gil, FOLDER / "pipe")
    until(lambda: "silent" in {worker.state for worker in executor.workers()})
    os.write(pipe, b"x")
    assert call.result() == 1
    until(lambda: {worker.state for worker in executor.workers()} == {"idle"})
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in {worker.pid for worker in executor.workers()} if isolated else state_of(pid) == "lost")
    assert sum(worker.done for worker in executor.workers()) == 103
print("ok")
"""


@pytest.mark.parametrize(
    "isolated", [pytest.param((), marks=pytest.mark.mpi, id="worker"), pytest.param(("isolated",), id="child")]
)
def test_workers_says_what_each_worker_does(isolated, tmp_path):
    """Idle, running a call, stopped, holding the GIL, dead: since when, and how much it has done. To be silent is no death."""
    assert run(tmp_path, STATES, *isolated, env={SCALE_VARIABLE: "0.5"}).stdout == "ok\n"


def test_a_worker_without_supervisor_is_known_by_name(tmp_path):
    """But not what it does."""
    body = """
def meet(_):
    (FOLDER / f"met {os.getpid()}").touch()
    until(lambda: len(list(FOLDER.glob("met *"))) == 3)
    return os.getpid()

with RMAChannelExecutor() as executor:
    pids = set(executor.map(meet, range(30)))
    assert {worker.pid for worker in executor.workers()} == pids
    assert {worker.state for worker in executor.workers()} == {"unknown"}
    assert sum(worker.done for worker in executor.workers()) == 30
print("ok")
"""
    assert run(tmp_path, body, env={"MPIEXECUTOR_KEEPER": "0"}).stdout == "ok\n"  # the older name of MPIEXECUTOR_SUPERVISOR


OVERDUE = """
os.mkfifo(FOLDER / "pipe")
pipe = os.open(FOLDER / "pipe", os.O_RDWR)  # no process writes into it
with RMAChannelExecutor(task_timeout=1, retries=3, isolate={isolate}) as executor, RMAChannelExecutor() as patient:
    calls = [executor.submit(abs, -number) for number in range(300)]
    hanging = [executor.submit({hang})]
    calls += [executor.submit(abs, -number) for number in range(300)]
    long = patient.submit(time.sleep, 3)
    assert [call.result() for call in calls] == [*range(300)] * 2
    for call in hanging:
        error = call.exception()
        assert type(error) is TimeoutError, error
        print(error)
    assert long.result() is None
    calls = [executor.submit(abs, -number) for number in range(300)]
    assert [call.result() for call in calls] == [*range(300)]
    last = "lost" if {isolate} is False else "idle"
    assert executor.num_workers == 2 + (last == "idle")
    assert sorted(worker.state for worker in executor.workers()) == ["idle", "idle", last]
print("ok")
sys.exit(5)
"""


@pytest.mark.parametrize(
    "hang",
    [
        pytest.param("hang", marks=pytest.mark.mpi),
        "hold_gil, FOLDER / 'pipe'",
        "lambda: os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["loop", "GIL", "stopped"],
)
@pytest.mark.parametrize("isolate", [None, False])
def test_a_call_that_runs_too_long_fails_alone(hang, isolate, tmp_path):
    """Its process is killed, whatever it is in the middle of; that call is not tried again, all others have their results.

    Calls of an executor that has set no limit may run as long as they like.
    """
    job = run(tmp_path, OVERDUE.format(hang=hang, isolate=isolate), expect=5)
    assert job.stdout.startswith("this call ran longer than task_timeout: the worker on rank "), str(job)
    assert job.stdout.endswith(", was killed, as its call ran longer than 1 s\nok\n"), str(job)


def test_it_is_said_that_calls_cannot_be_ended_where_there_is_no_supervisor(tmp_path):
    """A limit that is not enforced is reported."""
    body = """
import warnings
warnings.simplefilter("error")
try:
    RMAChannelExecutor(task_timeout=1)
except RuntimeWarning as warning:
    print(warning)
"""
    text = "ranks 1, 2, 3 have no supervisor (see the README): task_timeout cannot end their calls\n"
    assert run(tmp_path, body, env={"MPIEXECUTOR_SUPERVISOR": "0"}).stdout == text


ENDS = """
executor, other = RMAChannelExecutor(), RMAChannelExecutor()
running = [executor.submit(hold, number) for number in range(3)]
until(lambda: len(held()) == 3)
unsent = [executor.submit(abs, number) for number in range(3000)]
others = [other.submit(abs, number) for number in range(3000)]
executor.{how}_workers()
assert {{type(call.exception()) for call in running}} == {{BrokenWorkerError}}
for call in unsent:
    assert call.cancelled() or isinstance(call.exception(), BrokenProcessPool)
assert unsent[-1].cancelled()
assert all(isinstance(call.exception(), BrokenProcessPool) for call in others)
assert {{worker.state for worker in executor.workers()}} == {{"lost"}}
print(running[0].exception().end)
for pool in (executor, other):
    try:
        pool.submit(abs, 1)
    except RuntimeError as error:
        print(error)
executor.{how}_workers()
sys.exit(5)
"""


@pytest.mark.parametrize(("how", "name"), [("terminate", "SIGTERM"), pytest.param("kill", "SIGKILL", marks=pytest.mark.mpi)])
def test_a_pool_is_ended_at_once(how, name, tmp_path):
    """What runs is lost, what waits is cancelled, other executors of these workers break; the script goes on."""
    body = "from concurrent.futures.process import BrokenProcessPool\n" + ENDS.format(how=how)
    said = run(tmp_path, body, expect=5).stdout.splitlines()
    assert said[0] == f"was killed by {name}"
    assert [line.startswith("all workers are lost; the last of them, the worker on rank ") for line in said[1:]] == [True, True]


@pytest.mark.parametrize(
    ("ranks", "named"), [(3, "ranks 1, 2 have no supervisor (see the README)"), (1, "this job has one rank, and no workers")]
)
def test_a_pool_that_cannot_be_ended_alone_is_not(ranks, named, tmp_path):
    """To end its workers would end the job: an error says so, and the pool does not change."""
    body = """
with RMAChannelExecutor() as executor:
    try:
        executor.kill_workers()
    except RuntimeError as error:
        print(error)
    print(executor.submit(abs, -7).result())
"""
    said = run(tmp_path, body, ranks=ranks, env={"MPIEXECUTOR_SUPERVISOR": "0"}).stdout
    assert said == f"{named}: they can only end together with the whole job\n7\n"


STOPPED = """
import os, signal, sys, time
from mpiexecutor import RMAChannelExecutor

executor = RMAChannelExecutor(2)
ran = executor.submit(os.getpid).result()
if sys.argv[1] == "its child":
    isolated = RMAChannelExecutor(isolate=True)
    ran = isolated.submit(os.getpid).result()
    while ran in {worker.pid for worker in executor.workers()}:  # until its worker has run a call itself
        list(executor.map(time.sleep, [0.01] * 4))
    os.kill(ran, signal.SIGSTOP)
else:
    os.kill(next(worker.pid for worker in executor.workers() if worker.pid != ran), signal.SIGSTOP)  # asleep, not in MPI
if sys.argv[1] == "terminated":
    executor.terminate_workers()
sys.exit(5)
"""


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "how"), [(None, "left alone"), (3, "left alone"), (3, "terminated"), (None, "its child")])
def test_a_worker_that_is_stopped_does_not_keep_the_script_from_its_end(ranks, how, tmp_path):
    """It is killed, as it would neither leave nor end by SIGTERM; so is one whose child is. The script has its own status."""
    script = tmp_path / "script.py"
    script.write_text(STOPPED)
    module = ["-m", "mpiexecutor"] if ranks else []
    env = {"MPIEXECUTOR_MAX_WORKERS": "2", SCALE_VARIABLE: "0.2"}
    job = run_job(ranks, [*module, str(script), how], env=env, expect=5)
    if how != "terminated":  # else mpiexec may have been faster
        assert ", gives no signs of life, and keeps this job from its end: it is killed" in job.stderr


SUSPENDED = """
import os, signal, subprocess, sys
from mpiexecutor import RMAChannelExecutor

SUSPEND = '''
import os, signal, sys, time
root, worker = map(int, sys.argv[1:])
time.sleep(2)
os.kill(root, signal.SIGSTOP)
time.sleep(10)
os.kill(root, signal.SIGCONT)
time.sleep(0.3)
os.kill(worker, signal.SIGCONT)
'''

executor = RMAChannelExecutor(2)
ran = executor.submit(os.getpid).result()
worker = next(worker.pid for worker in executor.workers() if worker.pid != ran)
subprocess.Popen([sys.executable, "-c", SUSPEND, str(os.getpid()), str(worker)])
os.kill(worker, signal.SIGSTOP)
sys.exit(5)
"""


@pytest.mark.long
def test_a_job_that_was_suspended_at_its_end_goes_on_and_no_worker_is_killed(tmp_path):
    """The root is continued first, and finds that a worker gives no signs of life, for much longer than it would wait for one."""
    script = tmp_path / "script.py"
    script.write_text(SUSPENDED)
    job = run_job(3, ["-m", "mpiexecutor", str(script)], expect=5)
    assert "gives no signs of life" not in job.stderr


LITTLE = {"MALLOC_ARENA_MAX": "1"}  # or each new thread would reserve 64 MiB of what is left

TOO_LARGE = """
import resource
from functools import partial
import numpy as np

def lower_limit(bytes_more):
    import numpy  # whose libraries take some, too
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + bytes_more, resource.RLIM_INFINITY))

def leave_files(more):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + more, hard))

def die_once_it_is_skipped(mark):
    from mpiexecutor.channel import RemoteChannel
    skip = RemoteChannel.skip
    def skip_and_die(channel, number):
        skipped = skip(channel, number)
        if skipped and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return skipped
    RemoteChannel.skip = skip_and_die

def have_all(function, argument):
    done = set()
    calls = lambda: executor.map(lambda _: (function(argument), time.sleep(0.1), os.getpid())[2], range(3))
    until(lambda: done.update(calls()) or len(done) == 3)

def total(common, number):
    return len(common) + number

with RMAChannelExecutor() as executor:
    workers = 3
    have_all(leave_files, 50)
    have_all(lower_limit, 100 << 20)
    if sys.argv[2] == "killed":
        have_all(die_once_it_is_skipped, FOLDER / "mark")
        workers = 2
    calls = [executor.submit(len, bytes(size)) for size in (300_000_000, 7, 1_000_000, 200_000_000, 8)]
    for call in calls:
        print(repr(call.exception() or call.result()))
    many = [np.zeros(70_000, "u1") for _ in range(99)]
    for common, kind in (bytes(200_000_000), MemoryError), (np.zeros(200_000_000, "u1"), MemoryError), (many, OSError):
        for _ in range(2):
            try:
                next(executor.map(partial(total, common), range(4)))  # which goes by itself, once to each worker
            except kind as error:
                assert "this call" not in str(error)
            else:
                raise AssertionError("there was room for what these calls have in common")
        assert [*executor.map(partial(total, bytes(100_000)), range(100))] == [*range(100_000, 100_100)]
    assert executor.num_workers == workers
"""


@pytest.mark.parametrize("then", ["reported", "killed"])
def test_a_call_too_large_for_the_memory_of_its_worker_fails_alone(then, tmp_path):
    """As one that is too large once it is unpickled does; no worker dies of it, and those behind it are run.

    If a worker is killed before it can say so another finds the same. And what many calls have in common may be too large, too.
    """
    said = run(tmp_path, TOO_LARGE, then, env=LITTLE).stdout.splitlines()
    assert said[1:3] + said[4:] == ["7", "1000000", "8"]
    for line in (said[0], said[3]):
        assert re.match(r"""MemoryError\("this call is too large for its worker's memory, \d00000\d\d\d bytes when""", line)


RESULT_TOO_LARGE = """
import resource

with RMAChannelExecutor() as executor:
    sum(executor.map(len, [b""] * 300))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (200 << 20), resource.RLIM_INFINITY))
    calls = [executor.submit(bytes, size) for size in (1, 300_000_000, 2, 5_000_000, 400_000_000, 3)]
    for call in calls:
        print(repr(call.exception()) if call.exception() else len(call.result()))
    print(sum(executor.map(abs, range(100))), sum(worker.done for worker in executor.workers()))
sys.exit(5)
"""


def test_a_result_too_large_for_the_memory_of_the_script_fails_alone(tmp_path):
    """Its worker goes on, those before and behind it are not lost, and the script ends as it wants to."""
    said = run(tmp_path, RESULT_TOO_LARGE, expect=5, env=LITTLE).stdout.splitlines()
    text = r"""MemoryError\("the result of this call is too large for the memory of the script's process, %d00000\d{3} bytes when"""
    assert re.match(text % 3, said.pop(1))
    assert re.match(text % 4, said.pop(3))
    assert said == ["1", "2", "5000000", "3", "4950 406"]


LITTLE_ROOM = """
from mpiexecutor._rma.window import _RemoteMemory
from mpiexecutor._util.segments import SegmentReader

allocate, open_segment = _RemoteMemory.allocate, SegmentReader.open
room = int(sys.argv[2])

def allocate_little(memory, size):
    if size > room:
        raise MemoryError
    return allocate(memory, size)

def open_little(reader, name):
    parts = open_segment(reader, name)
    if sum(map(len, parts)) > room:
        raise MemoryError("too many bytes when pickled")
    return parts

def make(size):
    until((FOLDER / "open").exists)
    return bytes(size)

_RemoteMemory.allocate, SegmentReader.open = allocate_little, open_little
with RMAChannelExecutor() as executor:
    (FOLDER / "open").touch()
    list(executor.map(make, [1] * 300))
    (FOLDER / "open").unlink()
    sizes = [*range(room - 300, room + 100, 5), 1000, 200_000, 150_000] * 2
    calls = [executor.submit(make, size) for size in sizes]
    (FOLDER / "open").touch()
    for size, call in zip(sizes, calls):
        if error := call.exception():
            assert type(error) is not MemoryError or size > room - 300, (size, error)
        else:
            assert call.result() == bytes(size) and size <= room, size
    print({str(type(call.exception()).__name__) for call in calls})
sys.exit(5)
"""


@pytest.mark.parametrize(("room", "errors"), [(3 << 18, {"NoneType", "MemoryError"}), (300_000, {"NoneType", "BrokenProcessPool"})])
def test_a_result_that_just_does_not_fit_is_an_error(room, errors, tmp_path):
    """Of its call, if it is long; with no room for those that share a message nothing can go on. No thread waits for ever."""
    said = run(tmp_path, LITTLE_ROOM, str(room), expect=5).stdout
    assert ast.literal_eval(said) == errors


FAULT = """
from functools import partial
from mpiexecutor._calls.scheduling.collector import Collector

def make(size):
    until((FOLDER / "open").exists)
    return bytes(size)

def total(common, number):
    until((FOLDER / "open").exists)
    return len(common) + number

def fail(collector, replies, steps):
    raise ZeroDivisionError("a fault of ours")

with RMAChannelExecutor() as executor:
    calls = [executor.submit(make, 12 << 20) for _ in range(3)]
    if sys.argv[2] == "a function is on its way":
        results = executor.map(partial(total, bytes(20_000_000)), range(9))
    else:
        calls += [executor.submit(make, 12 << 20) for _ in range(9)]
    until(lambda: {worker.state for worker in executor.workers()} == {"running"})
    Collector._note_all = fail
    (FOLDER / "open").touch()
    print({str(error) for call in calls if (error := call.exception())})
    time.sleep(2)  # in which the workers ask for the function
sys.exit(5)
"""


@pytest.mark.parametrize("what", ["results are long", "a function is on its way"])
def test_a_fault_of_the_collector_keeps_no_thread_waiting(what, tmp_path):
    """Every call fails; workers in the middle of long results, or that want something, come to their end, as does the script."""
    said = run(tmp_path, FAULT, what, expect=5).stdout
    assert said == """{"the collector failed: ZeroDivisionError('a fault of ours')"}\n"""

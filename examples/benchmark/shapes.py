"""What is measured: the same code for every executor.

A shape is a function that is given an executor, runs once, and returns its figures by name; its docstring says what they show.
The arguments that follow say how much of it there is, by default as much as is measured.
"""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from statistics import median

from processes import TOKEN, cpu_seconds, peak_memory, resident_memory, with_token

MIB = 1 << 20


# -- what is called ----------------------------------------------------------------------------------------------------------------


def nothing(_=None):
    """Do nothing: the call costs what calling costs."""


def nap(seconds):
    """Take so long, without a core."""
    if seconds:
        time.sleep(seconds)


def compute(seconds):
    """Take so much time of a core, in pure Python."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def plus_one(values):
    return values + 1


def first(values, _):
    """Look at an array that many calls have in common."""
    return float(values[0])


def until_there(path):
    """Take until a file is there."""
    while not Path(path).exists():
        time.sleep(0.005)


def pid(seconds):
    """Name the process, slowly enough for others to get a call, too."""
    time.sleep(seconds)
    return str(os.getpid())


# -- shapes of executors -----------------------------------------------------------------------------------------------------------


def calls(executor, n=8000):
    """No-op calls are submitted, then awaited: what a call costs at the least, when there are many."""
    began = time.perf_counter()
    wait([executor.submit(nothing) for _ in range(n)])
    return {"rate": n / (time.perf_counter() - began)}


def map_calls(executor, n=8000):
    """No-op calls by map with chunksize 1, results in order: the same, as most scripts would write it."""
    began = time.perf_counter()
    for _ in executor.map(nothing, range(n)):
        pass
    return {"rate": n / (time.perf_counter() - began)}


def one_call(executor, n=300):
    """One no-op call is submitted and awaited, then the next: what a script waits for that needs a result before it goes on."""
    return {"time": median(there_and_back(executor) for _ in range(n))}


def map_of_8(executor, n=100):
    """A map of 8 no-op calls, then the next: what a script pays that has little to do at a time."""
    return {"time": median(timed(partial(list_map, executor, 8)) for _ in range(n))}


def long_map(executor, n=100_000):
    """100,000 no-op calls by map, without chunksize, and with the best of two: must a script choose it?"""
    sizes = [max(1, n // parts) for parts in (40, 8)]
    return {"rate": mapped(executor, n, 1), "best chunksize": max(mapped(executor, n, size) for size in sizes)}


def computing(executor, n=1000, seconds=0.001):
    """Calls that compute for 1 ms each, by map: what remains of two cores, and what do all processes together take of them?"""
    pids = [str(process) for process in with_token(os.environ[TOKEN])]
    before = sum(map(cpu_seconds, pids))
    time_taken = timed(lambda: sum(1 for _ in executor.map(compute, [seconds] * n))) / 1e6
    return {"time": time_taken, "processor time": sum(map(cpu_seconds, pids)) - before}


def busy(shape):
    """Return a shape that runs another one beside one computing process a core."""

    def beside_others(executor, **arguments):
        with computing_processes():
            return shape(executor, **arguments)

    beside_others.__doc__ = f"Beside one computing process a core: {shape.__doc__}"
    return beside_others


def after_idleness(executor, n=10, seconds=0.2):
    """The same after a pause, in which everybody has gone to sleep."""
    durations = []
    for _ in range(n):
        time.sleep(seconds)
        durations.append(there_and_back(executor))
    return {"time": median(durations)}


def after_work(executor, n=500, seconds=0.0003):
    """One call there and back after the script itself has computed for a moment: do waiting threads disturb it, or sleep?"""
    durations = []
    for _ in range(n):
        compute(seconds)
        durations.append(there_and_back(executor))
    return {"time": median(durations)}


def array(executor, n=5, mib=16):
    """An array goes there, and one as large comes back: how often large data are copied, and touched for the first time."""
    return {"16 MiB": median(carried(executor, mib) for _ in range(n))}


def large_array(executor, mib=16, gib=1.0):
    """The same with 1 GiB: does the rate hold, and how much memory is needed above the argument and the result?

    The user's own copies are, on the root, both arrays; on the worker both, too.
    """
    small = carried(executor, mib)
    workers = worker_pids(executor)
    resident = {who: resident_memory(who) for who in ("self", *workers)}
    large = carried(executor, int(gib * 1024))
    payload = gib * 1024 * MIB
    figures = {"16 MiB": small, "1 GiB": large}
    # The root has made its argument meanwhile, and got its result: two arrays.
    figures["root's memory"] = (peak_memory("self") - resident["self"]) / payload - 2
    used = [(peak_memory(worker) - resident[worker]) / payload - 2 for worker in workers]
    return figures | ({"worker's memory": max(used)} if used else {})


def common_array(executor, n=200, mib=64, limit=10.0):
    """The same array is an argument of many calls, bound by functools.partial: is it pickled and sent once, or with each call?

    A contender that has not done them all in 10 s is stopped there.
    """
    values = an_array(mib)
    began = time.perf_counter()
    results = executor.map(partial(first, values), range(n))
    done = 0
    for _ in results:
        done += 1
        if time.perf_counter() - began > limit:
            break
    seconds = time.perf_counter() - began
    results.close()  # cancels the others
    return {"rate": done / seconds}


def idle(executor, pause=1.5, seconds=3.0):
    """A pool of 4 has had work, and has none any more: what share of a core do the root and the busiest worker take?"""
    workers = worker_pids(executor)
    wait([executor.submit(nothing) for _ in range(1000)])
    time.sleep(pause)
    before = {who: cpu_seconds(who) for who in ("self", *workers)}
    time.sleep(seconds)
    share = {who: 100 * (cpu_seconds(who) - before[who]) / seconds for who in before}
    root = share.pop("self")
    return {"root": root} | ({"worker": max(share.values())} if share else {})


def uneven(executor, short=390, long=10, short_seconds=0.001, long_seconds=0.15):
    """Short naps and a few long ones in a random order, the same in each run: does a short call wait behind a long one?"""
    naps = [short_seconds] * short + [long_seconds] * long
    random.Random(4).shuffle(naps)
    return {"time": napped(executor, naps)}


def suddenly_long(executor, n=20_000, long=20, seconds=0.1):
    """Long naps follow no-op calls of the same function: is what was learnt of the short ones held against the long ones?"""
    wait([executor.submit(nap, 0) for _ in range(n)])
    return {"time": napped(executor, [seconds] * long)}


def busy_root(executor, n=8000, limit=10.0):
    """No-op calls while the root's main thread goes on to compute in pure Python: how much do calls need of its GIL?

    A contender that has not done them all in 10 s is stopped there.
    """
    began = time.perf_counter()
    futures = [executor.submit(nothing) for _ in range(n)]
    while not futures[-1].done() and time.perf_counter() - began < limit:
        for _ in range(10_000):
            pass
    done = sum(future.done() for future in futures)
    seconds = time.perf_counter() - began
    give_up(futures)
    return {"rate": done / seconds}


def pending(executor, n=20_000, blockers=64):
    """Calls are submitted while all workers are busy: how much memory does a waiting call take on the root?"""
    with gate() as (path, opened):
        futures = [executor.submit(until_there, path) for _ in range(blockers)]
        before = resident_memory("self")
        futures += [executor.submit(nothing) for _ in range(n)]
        size = (resident_memory("self") - before) / n
        opened()
        give_up(futures)
    return {"memory": size}


def endless_map(executor, n=10**7, buffersize=1000, settled=10_000):
    """Ten million calls by map with a buffersize: does the root's memory grow once it has got going?"""
    before = 0.0
    for done, _ in enumerate(executor.map(nothing, range(n), buffersize=buffersize)):
        if done == min(settled, n // 2):
            before = resident_memory("self")
    return {"growth": max(0.0, resident_memory("self") - before) / MIB}


def isolated(executor, rounds=5, n=300):
    """Isolated calls and others, in turn, on the same workers: the figures of the isolated ones divided by those of the others."""
    shapes = {
        "one call": partial(one_call, n=n),
        "calls": partial(calls, n=10 * n),
        "map": partial(map_calls, n=10 * n),
        "array": array,
    }
    found = {}
    with type(executor)(isolate=True) as other:
        for name, shape in shapes.items():
            shape(other)  # its processes start
            pairs = [(*shape(executor).values(), *shape(other).values()) for _ in range(rounds)]
            found[name] = median(isolated / own for own, isolated in pairs)
    return found


# -- their parts -------------------------------------------------------------------------------------------------------------------


def timed(step):
    """Return the microseconds of a step."""
    began = time.perf_counter()
    step()
    return 1e6 * (time.perf_counter() - began)


def there_and_back(executor):
    """Return the microseconds of one no-op call."""
    return timed(lambda: executor.submit(nothing).result())


def list_map(executor, n):
    """Have a map of so many no-op calls, and all its results."""
    return list(executor.map(nothing, range(n)))


def mapped(executor, n, chunksize):
    """Return the calls a second of a map."""
    began = time.perf_counter()
    for _ in executor.map(nothing, range(n), chunksize=chunksize):
        pass
    return n / (time.perf_counter() - began)


@contextlib.contextmanager
def computing_processes():
    """Have one process a core that computes, in a session of its own as another job has it."""
    code = "print(flush=True)\nwhile True: pass"
    command = [sys.executable, "-c", code]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) for _ in os.sched_getaffinity(0)]
    try:
        for other in others:
            other.stdout.readline()
        yield
    finally:
        for other in others:
            other.kill()
            other.communicate()


def an_array(mib):
    """Make an array whose memory has been touched, and is not all the same."""
    import numpy as np

    return np.arange(mib * MIB // 8, dtype="d")


def carried(executor, mib):
    """Return the MiB a second at which an array goes there, and comes back changed; both ways count once."""
    values = an_array(mib)
    began = time.perf_counter()
    result = executor.submit(plus_one, values).result()
    seconds = time.perf_counter() - began
    assert result[-1] == values[-1] + 1
    return mib / seconds


def napped(executor, naps):
    """Return the seconds that naps took, all submitted at once."""
    began = time.perf_counter()
    wait([executor.submit(nap, seconds) for seconds in naps])
    return time.perf_counter() - began


def give_up(futures):
    """Cancel what has not begun, and wait for the rest."""
    wait([future for future in futures if not future.cancel()])


def worker_pids(executor, seconds=1.0):
    """Name the processes that run calls, those that come forward within a second; none if that is this one."""
    pids: set[str] = set()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pids.update(future.result() for future in [executor.submit(pid, 0.02) for _ in range(8)])
    return sorted(pids - {pid(0)})


@contextlib.contextmanager
def gate() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the path of a file that is not there, and what makes it; it is made in any case."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "open")
        try:
            yield str(path), path.touch
        finally:
            path.touch()

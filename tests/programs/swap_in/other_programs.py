"""Calls start programs that use MPI, or an executor, by themselves; children that the script started before its executor."""

import multiprocessing as mp
import os
import subprocess
import sys
import threading

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

fork = mp.get_context("fork")
WITH_MPI = "from mpi4py import MPI; print('size', MPI.COMM_WORLD.size)"
WITH_EXECUTOR = """
from mpiexecutor import RMAChannelExecutor as Executor

factor = 1

def set_factor(value):
    global factor
    factor = value

def times(x):
    return x * factor

if __name__ == "__main__":
    with Executor(1, initializer=set_factor, initargs=(3,)) as executor:
        print(list(executor.map(times, [1, 2])))
"""


def run_program(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], timeout=100, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip() or done.stderr[-200:]


def add(shared, key):
    shared[key] = key * key
    return shared[key]


def serve(connection):
    while (x := connection.recv()) is not None:
        connection.send(x + 1)


def wait_for(event):
    event.wait(100)


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def main():
    manager = fork.Manager()
    shared = manager.dict()
    here, there = fork.Pipe()
    server = fork.Process(target=serve, args=(there,), daemon=True)
    server.start()
    event = threading.Event()
    thread = threading.Thread(target=event.wait, args=(100,), daemon=True)
    thread.start()
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Executor(2) as ex:

        def run(function, *args):
            return ex.submit(function, *args).result(120)

        attempt(
            "a manager from before the executor",
            lambda: ([run(add, shared, n) for n in (2, 3)], dict(shared)),
            ([4, 9], {2: 4, 3: 9}),
        )
        attempt("a process from before the executor", lambda: (here.send(1), here.recv())[1], 2)
        attempt("mpi4py in a subprocess", lambda: run(run_program, WITH_MPI), (0, "size 1"))
        attempt("an executor in a subprocess", lambda: PPE or run(run_program, WITH_EXECUTOR) == (0, "[3, 6]"))
    event.set()
    thread.join(60)
    here.send(None)
    server.join(60)
    sleeper.communicate(b"\n", timeout=60)
    manager.shutdown()
    attempt("the children end", lambda: (server.exitcode, sleeper.returncode), (0, 0))


if __name__ == "__main__":
    main()

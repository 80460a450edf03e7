"""What calls do by themselves: pickle, copy, shelve, multiprocessing, subprocesses, threads, pools, coroutines."""

import asyncio
import collections
import concurrent.futures
import copy
import functools
import json
import multiprocessing as mp
import os
import pickle
import queue
import shelve
import subprocess
import sys
import tempfile
import threading
import types
from multiprocessing.pool import ThreadPool

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

fork = mp.get_context("fork")
base = 1
table = {}
done = []


class Item:
    made = 0

    def __init__(self, name, parent=None):
        Item.made += 1
        self.name, self.parent = name, parent

    def __eq__(self, other):
        return type(other) is Item and self.name == other.name

    def __hash__(self):
        return hash(self.name)

    def label(self):
        return f"{self.name}+{base}"


class Encoder(json.JSONEncoder):
    def default(self, obj):
        return {"item": obj.name} if isinstance(obj, Item) else super().default(obj)


class Worker(fork.Process):
    def __init__(self, results, n):
        super().__init__(daemon=True)
        self.results, self.n = results, n

    def run(self):
        self.results.put(("worker", self.n * base))


class Summing(threading.Thread):
    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.sum = numbers, None

    def run(self):
        self.sum = sum(self.numbers) + base


def set_base(value):
    global base
    base = value


def plus_base(x):
    return x + base


def item_label(item):
    return item.label()


def make_item(name):
    return Item(name)


def pickle_item(path):
    with open(path, "wb") as file:
        pickle.dump([Item("a"), Item, plus_base, {Item("k"): 1}], file)
    with open(path, "rb") as file:
        item, cls, function, table = pickle.load(file)
    return item == Item("a"), cls is Item, function is plus_base, table[Item("k")], pickle.loads(pickle.dumps(Item("b"))).name


def pickled_item():
    return pickle.dumps(Item("from a call"))


def unpickled(data):
    item = pickle.loads(data)
    return type(item) is Item, item.name


def copied():
    parent = Item("parent")
    child = Item("child", parent)
    parent.child = child
    other = copy.deepcopy(child)
    return other.parent.child is other, other.parent is not parent, type(copy.copy(child)) is Item


def shelved(path):
    with shelve.open(path) as shelf:
        shelf["item"] = Item("kept")
    with shelve.open(path) as shelf:
        return shelf["item"].label()


def read_shelf(path):
    with shelve.open(path) as shelf:
        return type(shelf["item"]) is Item


def as_json():
    return json.dumps([Item("j"), base], cls=Encoder)


def with_pool(n):
    with fork.Pool(2) as pool:
        return (
            pool.map(plus_base, range(n)),
            [item.name for item in pool.map(make_item, "ab")],
            pool.apply(item_label, (Item("p"),)),
        )


def with_pool_initializer():
    with fork.Pool(2, initializer=set_base, initargs=(50,)) as pool:
        return pool.map(plus_base, [1, 2]), base


def with_processes():
    results = fork.Queue()
    processes = [fork.Process(target=put, args=(results, n), daemon=True) for n in range(2)] + [Worker(results, 3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    return sorted(found), [process.exitcode for process in processes]


def put(results, n):
    results.put((Item("x").name, n + base))


def with_value():
    value = fork.Value("i", 0)
    process = fork.Process(target=add_to, args=(value,), daemon=True)
    process.start()
    process.join(30)
    return value.value


def add_to(value):
    with value.get_lock():
        value.value += base


def with_pipe():
    here, there = fork.Pipe()
    process = fork.Process(target=answer, args=(here, there), daemon=True)
    process.start()
    here.send(Item("sent"))
    found = here.recv()
    process.join(30)
    return found


def answer(other_end, connection):
    other_end.close()
    item = connection.recv()
    connection.send((type(item) is Item, item.label()))


def with_manager():
    with fork.Manager() as manager:
        shared = manager.dict()
        process = fork.Process(target=fill, args=(shared,), daemon=True)
        process.start()
        process.join(30)
        return shared["item"].name, shared["base"]


def fill(shared):
    shared["item"], shared["base"] = Item("managed"), base


def with_spawn():
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.map(abs, [-1, -2])


def with_executors():
    with (
        concurrent.futures.ProcessPoolExecutor(2, mp_context=fork) as processes,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        return (
            list(processes.map(plus_base, [1, 2])),
            list(threads.map(plus_base, [3, 4])),
            processes.submit(item_label, Item("i")).result(),
        )


def with_threads():
    threads = [Summing(range(n)) for n in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ThreadPool(2) as pool:
        return [thread.sum for thread in threads], pool.map(plus_base, [1])


def with_timer():
    event = threading.Event()
    timer = threading.Timer(0, event.set)
    timer.start()
    return event.wait(30)


def produce_and_consume():
    items, found = queue.Queue(), []
    consumer = threading.Thread(target=lambda: found.extend(iter(items.get, None)))
    consumer.start()
    for n in range(3):
        items.put(n * base)
    items.put(None)
    consumer.join()
    return found


def subprocess_output(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False).stdout.strip()


def shell(command):
    return subprocess.check_output(command, shell=True, text=True, timeout=60)


def forked():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, str(base).encode())
        os._exit(0)
    os.close(write)
    found = os.read(read, 10)
    os.close(read)
    return found, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def double(x):
    await asyncio.sleep(0)
    return 2 * x * base


async def run_all():
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        found = await asyncio.gather(double(1), double(2))
        found.append(await asyncio.to_thread(plus_base, 1))
        found.append(await loop.run_in_executor(None, functools.partial(plus_base, 2)))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print('sub')", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return found, out.strip()


def with_asyncio():
    return asyncio.run(run_all())


def put_and_lock(shared_queue, shared_dict, shared_lock, shared_list, x):
    with shared_lock:
        shared_dict[x] = shared_dict.get("n", 0) + 1
        shared_dict["n"] = shared_dict[x]
        shared_list.append(Item(f"i{x}"))
    shared_queue.put((x, type(shared_dict).__name__))
    return len(shared_list)


def set_event(event, namespace):
    namespace.value = base
    event.set()


def start_background():
    """A thread of a call works on after it; another call meets it."""
    started = threading.Event()
    thread = threading.Thread(target=lambda: (done.append("background"), started.set()), daemon=True)
    thread.start()
    started.wait(30)
    return os.getpid(), len(done)


def traced():
    found = []
    sys.settrace(None)
    sys.setprofile(lambda *_: found.append(1))
    plus_base(1)
    sys.setprofile(None)
    return len(found) > 0


def code_object():
    module = types.ModuleType("made")
    exec(compile("def f(x):\n    return x * 2\n", "made", "exec"), module.__dict__)
    return module.f(4)


def counter_of(words):
    return collections.Counter(words)


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def main():
    with Executor(2, initializer=set_base, initargs=(10,)) as ex, tempfile.TemporaryDirectory() as folder:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        attempt("pickle to a file and back", lambda: run(pickle_item, os.path.join(folder, "p")), (True, True, True, 1, "b"))
        attempt("pickle in a call, unpickle in the script", lambda: unpickled(run(pickled_item)), (True, "from a call"))
        attempt("pickle in the script, unpickle in a call", lambda: run(unpickled, pickle.dumps(Item("here"))), (True, "here"))
        attempt(
            "pickle in a call, unpickle in another",
            lambda: [run(unpickled, run(pickled_item)) for _ in range(4)],
            [(True, "from a call")] * 4,
        )
        attempt("copy and deepcopy", lambda: run(copied), (True, True, True))
        attempt(
            "shelve",
            lambda: (
                run(shelved, os.path.join(folder, "s")),
                run(read_shelf, os.path.join(folder, "s")),
                read_shelf(os.path.join(folder, "s")),
            ),
            ("kept+10", True, True),
        )
        attempt("a JSONEncoder of the script", lambda: run(as_json), '[{"item": "j"}, 10]')
        attempt("a pool of processes", lambda: run(with_pool, 3), ([10, 11, 12], ["a", "b"], "p+10"))
        attempt("a pool of processes with an initializer", lambda: run(with_pool_initializer), ([51, 52], 10))
        attempt("processes and a queue", lambda: run(with_processes), ([("worker", 30), ("x", 10), ("x", 11)], [0, 0, 0]))
        attempt("a shared value", lambda: run(with_value), 10)
        attempt("a pipe", lambda: run(with_pipe), (True, "sent+10"))
        attempt("a manager in a call", lambda: run(with_manager), ("managed", 10))
        attempt("other executors in a call", lambda: run(with_executors), ([11, 12], [13, 14], "i+10"))
        attempt("threads and a pool of threads", lambda: run(with_threads), ([13, 16], [11]))
        attempt("a timer", lambda: run(with_timer))
        attempt("a producer and a consumer", lambda: run(produce_and_consume), [0, 10, 20])
        attempt("a subprocess", lambda: (run(subprocess_output, "print(1 + 1)"), run(shell, "echo $((2 + 3))").strip()), ("2", "5"))
        attempt("os.fork", lambda: run(forked), (b"10", 0))
        attempt("asyncio with threads and a subprocess", lambda: run(with_asyncio), ([20, 40, 11, 12], b"sub"))
        attempt(
            "a thread that a call has started",
            lambda: [run(start_background) for _ in range(4)],
            lambda rows: sum(max(n for p, n in rows if p == pid) for pid in dict(rows)) == 4,
        )
        attempt("sys.setprofile", lambda: run(traced))
        attempt("a module made in a call", lambda: run(code_object), 8)
        attempt(
            "a Counter added up over calls",
            lambda: sum(ex.map(counter_of, ["ab", "bc", "b"]), collections.Counter()),
            collections.Counter("abbcb"),
        )
        attempt(
            "a subprocess has no variable of the process manager",
            lambda: run(
                subprocess_output,
                "import os; print([n for n in os.environ if n.startswith(('PMI_', 'PMIX_', 'OMPI_', 'PRTE_', 'HYDI_', 'MPIR_')) and '_MCA_' not in n])",
            ),
            lambda found: PPE or found == "[]",
        )
        with fork.Manager() as manager:
            shared_queue, shared_dict, shared_lock, shared_list = manager.Queue(), manager.dict(), manager.Lock(), manager.list()
            event, namespace = manager.Event(), manager.Namespace()
            attempt(
                "a manager's queue, dict, lock and list as arguments",
                lambda: (
                    [run(put_and_lock, shared_queue, shared_dict, shared_lock, shared_list, x) for x in range(5)],
                    sorted(shared_queue.get(timeout=30) for _ in range(5)),
                    shared_dict["n"],
                    [item.name for item in shared_list],
                ),
                ([1, 2, 3, 4, 5], [(x, "DictProxy") for x in range(5)], 5, [f"i{x}" for x in range(5)]),
            )
            attempt(
                "a manager's event and namespace as arguments",
                lambda: (run(set_event, event, namespace), event.wait(30), namespace.value),
                (None, True, 10),
            )
        attempt("the script's state is left alone", lambda: (base, done, mp.current_process().name), (1, [], "MainProcess"))


if __name__ == "__main__":
    main()

"""What a script has at its top level and cannot be pickled: locks, files, connections, caches, C functions.

With BY_VALUE=1 nothing is run again in the workers: what cannot be made anew from its kind there may be an error that names it.
"""

import array
import atexit
import collections
import concurrent.futures
import contextvars
import ctypes
import ctypes.util
import functools
import io
import itertools
import logging
import mmap
import os
import queue
import re
import secrets
import socket
import sqlite3
import string
import struct
import sys
import tempfile
import threading
import types
import weakref
import zlib
from xml.etree import ElementTree

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

import multiprocessing as mp

BY_VALUE = bool(os.environ.get("BY_VALUE"))
lock = threading.Lock()
recursive = threading.RLock()
condition = threading.Condition()
event = threading.Event()
set_event = threading.Event()
set_event.set()
semaphore = threading.BoundedSemaphore(2)
local = threading.local()
barrier = threading.Barrier(1)
jobs = queue.Queue()
urgent = queue.PriorityQueue(maxsize=5)
jobs.put("first")
variable = contextvars.ContextVar("variable", default="default")
without_default = contextvars.ContextVar("without_default")
process_lock = mp.Lock()
total = mp.Value("i", 0)
libc = ctypes.CDLL(None)
absolute = libc.abs
string_length = ctypes.CDLL(None).strlen
string_length.argtypes = [ctypes.c_char_p]
string_length.restype = ctypes.c_size_t
libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
libm.cos.restype = ctypes.c_double
libm.cos.argtypes = [ctypes.c_double]
compare_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
null = open(os.devnull, "w")
text = open(os.path.join(os.path.dirname(os.__file__), "keyword.py"))
first_line = text.readline()
word = re.compile(r"\b(\w+)\b")
log = logging.getLogger("swap_in")
log.setLevel(logging.INFO)
numbers = itertools.count(100)
letters = itertools.cycle("ab")
squares = (x * x for x in range(10))
database = sqlite3.connect(":memory:", check_same_thread=False)
database.execute("create table found (x int)")
database.executemany("insert into found values (?)", [(1,), (2,)])
out = sys.stdout
buffer = io.StringIO("in the buffer")
raw = io.BytesIO(b"bytes")
view = memoryview(bytearray(b"abc"))
pages = mmap.mmap(-1, 16)
pages[:3] = b"map"
packed = struct.Struct("<ih")
template = string.Template("$who")
module_type = types.SimpleNamespace(count=0)
tree = ElementTree.fromstring("<a><b n='1'/><b n='2'/></a>")
checksum = zlib.crc32
floats = array.array("d", [1, 2])
read_only = types.MappingProxyType({"a": 1})
keys = {"x": 1}.keys()
frame_free = functools.partial(int, base=2)
ordered = collections.OrderedDict(a=1)
chain = collections.ChainMap({"a": 1}, {"b": 2})
system = secrets.SystemRandom()
threads = concurrent.futures.ThreadPoolExecutor(2)
pool = []
finished = []
atexit.register(finished.append, "exit")


class Thing:
    pass


class Cached:
    """Keeps a lock of its own, which its pickle leaves out."""

    def __init__(self):
        self.lock, self.values = threading.Lock(), {}

    def __getstate__(self):
        return {"values": self.values}

    def __setstate__(self, state):
        self.__dict__.update(state, lock=threading.Lock())

    def get(self, key):
        with self.lock:
            return self.values.setdefault(key, len(self.values))


class Plain:
    """Keeps a lock, too, and cannot be pickled."""

    def __init__(self):
        self.lock, self.n = threading.Lock(), 0

    def next(self):
        with self.lock:
            self.n += 1
            return self.n


thing = Thing()
reference = weakref.ref(thing)
known_things = weakref.WeakSet([thing])
by_thing = weakref.WeakKeyDictionary({thing: "value"})
cached = Cached()
plain = Plain()


def with_locks():
    with lock, recursive, recursive, condition, semaphore, process_lock:
        return lock.locked(), event.is_set(), event.wait(0), barrier.wait()


def a_set_event():
    return set_event.is_set()


def notified():
    with condition:
        thread = threading.Thread(target=notify)
        thread.start()
        found = condition.wait(30)
    thread.join()
    return found


def notify():
    with condition:
        condition.notify_all()


def in_local(value):
    before = getattr(local, "values", [])
    local.values = [*before, value]
    return os.getpid(), len(local.values)


def through_queues():
    jobs.put("second")
    urgent.put((2, "later"))
    urgent.put((1, "now"))
    return jobs.qsize() >= 1, urgent.get_nowait()[1], urgent.get_nowait()[1], urgent.maxsize


def first_job():
    return jobs.get_nowait()


def in_context():
    token = variable.set("set")
    found = variable.get()
    variable.reset(token)
    return found, variable.get(), contextvars.copy_context().run(variable.get), without_default.get("none")


def with_library():
    return libc.abs(-3)


def with_typed_library():
    return round(libm.cos(0.0), 6)


def with_c_functions():
    return absolute(-4), string_length(b"four")


def with_callback():
    return compare_type(lambda x: x + 1)(2)


def with_files():
    return null.write("four"), null.name == os.devnull


def from_text():
    return first_line.startswith(('"', "#")), text.name.endswith("keyword.py"), text.readable()


def find_words(line):
    return word.findall(line), word.sub(lambda m: m[1].upper(), line)


def with_logger():
    return log.name, log.level, log is logging.getLogger("swap_in")


def next_number():
    return os.getpid(), next(numbers)


def next_letters():
    return {next(letters), next(letters)}


def next_square():
    return os.getpid(), next(squares)


def ask_database(x):
    database.execute("insert into found values (?)", (x,))
    return os.getpid(), database.execute("select count(*), min(x) from found").fetchone()


def write_out():
    return out is sys.stdout, callable(out.write)


def with_buffers():
    return buffer.getvalue(), raw.getvalue()


def with_view():
    return bytes(view)


def with_pages():
    return bytes(pages[:3])


def with_plain_objects():
    module_type.count += 1
    return (
        packed.pack(1, 2),
        template.substitute(who="me"),
        [b.get("n") for b in tree.iter("b")],
        checksum(b"a"),
        list(floats),
        frame_free("101"),
        list(ordered),
        chain["b"],
    )


def with_proxies():
    return read_only["a"], list(keys)


def with_weak():
    return reference() is thing, list(known_things) == [thing], by_thing[thing]


def with_threads():
    return list(threads.map(abs, [-1, -2]))


def with_cached(key):
    return os.getpid(), cached.get(key) == cached.get(key)


def with_plain():
    return os.getpid(), plain.next()


def system_random():
    return 0 <= system.random() < 1


def with_pool():
    if not pool:
        pool.append(threading.Lock())
    return os.getpid(), id(pool[0])


def connect():
    """A connection that is made at its first use, as scripts do."""
    global connection
    try:
        connection
    except NameError:
        connection = sqlite3.connect(":memory:")
        connection.execute("create table t (x)")
    connection.execute("insert into t values (1)")
    return os.getpid(), connection.execute("select count(*) from t").fetchone()[0]


def open_in_initializer(path):
    global shared_file, counter_lock, server
    shared_file = open(path)
    counter_lock = threading.Lock()
    server = socket.socket()


def read_from_initializer():
    with counter_lock:
        shared_file.seek(0)
        return shared_file.read(), server.fileno() >= 0


def append_line(path, line):
    with open(path, "a") as file:
        file.write(line + "\n")


def attempt(name, found, wanted=True, names=()):
    """Print whether it is what was wanted; where nothing is run again, an error that names one of the globals `names` is fine."""
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok = BY_VALUE and any(re.search(rf"\b{each}\b", str(error)) for each in names)
        said = f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def add_up_to(wanted, rows):
    last = {}
    for pid, number in rows:
        last[pid] = max(number, last.get(pid, 0))
    return sum(last.values()) == wanted


def main():
    with Executor(2) as ex, tempfile.TemporaryDirectory() as folder:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        attempt(
            "locks, semaphores, events, a barrier",
            lambda: [run(with_locks) for _ in range(3)],
            [(True, False, False, 0)] * 3,
            names=["process_lock"],
        )
        attempt("an event that was set", lambda: run(a_set_event), True, names=["set_event"])
        attempt("a condition with a thread", lambda: run(notified))
        attempt("a thread-local stays", lambda: [run(in_local, i) for i in range(8)], lambda rows: add_up_to(8, rows))
        attempt("queues", lambda: run(through_queues), (True, "now", "later", 5), names=["jobs", "urgent"])
        attempt("what the top level has put into a queue", lambda: run(first_job), "first", names=["jobs"])
        attempt("ContextVars", lambda: run(in_context), ("set", "default", "default", "none"))
        attempt("a C library", lambda: run(with_library), 3)
        attempt("a C library whose functions have types", lambda: run(with_typed_library), 1.0, names=["libm"])
        attempt("C functions", lambda: run(with_c_functions), (4, 4), names=["absolute", "string_length"])
        attempt("a C callback", lambda: run(with_callback), 3, names=["compare_type"])
        attempt("an open file to write", lambda: run(with_files), (4, True), names=["null"])
        attempt("an open file to read", lambda: run(from_text), (True, True, True), names=["text"])
        attempt("a compiled regular expression", lambda: run(find_words, "a bc"), (["a", "bc"], "A BC"))
        attempt(
            "a logger",
            lambda: run(with_logger),
            lambda found: found[::2] == ("swap_in", True) and (found[1] == logging.INFO or BY_VALUE),
        )
        attempt(
            "itertools.count",
            lambda: [run(next_number) for _ in range(8)],
            lambda rows: add_up_to(8, [(pid, n - 99) for pid, n in rows]),
            names=["numbers"],
        )
        attempt("itertools.cycle", lambda: run(next_letters), {"a", "b"}, names=["letters"])
        attempt(
            "a generator",
            lambda: [run(next_square) for _ in range(2)],
            lambda rows: sorted(n for _, n in rows) == ([0, 1] if len(dict(rows)) == 1 else [0, 0]),
            names=["squares"],
        )
        attempt(
            "a database in memory, each worker its own",
            lambda: [run(ask_database, 3) for _ in range(6)],
            lambda rows: all(low == 1 for _, (_, low) in rows) and add_up_to(6, [(pid, n - 2) for pid, (n, _) in rows]),
            names=["database"],
        )
        attempt("another name for sys.stdout", lambda: run(write_out)[1], names=["out"])
        attempt("StringIO and BytesIO", lambda: run(with_buffers), ("in the buffer", b"bytes"), names=["buffer", "raw"])
        attempt("a memoryview", lambda: run(with_view), b"abc", names=["view"])
        attempt("an mmap", lambda: run(with_pages), b"map", names=["pages"])
        attempt(
            "Struct, Template, Element, array, partial",
            lambda: run(with_plain_objects),
            (packed.pack(1, 2), "me", ["1", "2"], 3904355907, [1.0, 2.0], 5, ["a"], 2),
            names=["packed"],
        )
        attempt("a mapping proxy and keys", lambda: run(with_proxies), (1, ["x"]), names=["read_only", "keys"])
        attempt("weak references", lambda: run(with_weak), (True, True, "value"), names=["reference", "known_things", "by_thing"])
        attempt("a pool of threads", lambda: run(with_threads), [1, 2], names=["threads"]) if not PPE else attempt(
            "a pool of threads", lambda: True
        )
        attempt("an instance with a lock that its state leaves out", lambda: [run(with_cached, k)[1] for k in "aab"], [True] * 3)
        attempt("an instance with a lock", lambda: add_up_to(7, [run(with_plain) for _ in range(7)]), names=["plain"])
        attempt("SystemRandom", lambda: run(system_random), names=["system"])
        attempt(
            "a list that a call fills with a lock",
            lambda: {(pid, key) for pid, key in [run(with_pool) for _ in range(8)]},
            lambda found: len(found) == len({pid for pid, _ in found}),
        )
        attempt("a connection made at its first use", lambda: add_up_to(9, [run(connect) for _ in range(9)]))
        attempt(
            "the locks of the script are left alone",
            lambda: (
                lock.locked(),
                set_event.is_set(),
                jobs.qsize(),
                next(numbers),
                plain.n,
                hasattr(local, "values"),
                text.tell() == len(first_line.encode()),
                pool,
            ),
            lambda found: found == (False, True, 1, 100, 0, False, True, []) or (PPE and found[6] is False),
        )
        path = os.path.join(folder, "lines")
        attempt(
            "files that calls append to",
            lambda: ([run(append_line, path, f"{i:03}") for i in range(20)], sorted(open(path).read().split()))[1],
            [f"{i:03}" for i in range(20)],
        )
        with Executor(2, initializer=open_in_initializer, initargs=(path,)) as other:
            attempt(
                "an initializer opens files and sockets",
                lambda: [other.submit(read_from_initializer).result(60) for _ in range(4)],
                lambda rows: all(len(lines) == 80 and ok for lines, ok in rows),
            )


if __name__ == "__main__":
    main()

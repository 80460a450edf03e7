"""Globals that a worker rebuilds by reducers, and random numbers."""

import random
import sys
import threading
from textwrap import dedent

import numpy as np
import pytest
from script_pair import own_main

from mpiexecutor._script.pickling import reducers
from mpiexecutor._script.pickling.named_objects import reduce_named
from mpiexecutor._script.pickling.reducers import reduce_kind
from mpiexecutor._script.pickling.shared_memory import NotShared
from mpiexecutor._script.random_generators import STREAM, GeneratorStates, ModuleSeeds, is_generator
from mpiexecutor._script.state import Origin

# Files that the script leaves open, as scripts do.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
ONLY_NOTHING = pytest.mark.parametrize("origin", [Origin.NOTHING])

# A global x, and what is so of the worker's.
KINDS = {
    "lock": ("import threading\nx = threading.Lock()\nx.acquire()", "not x.locked()"),
    "rlock": ("import threading\nx = threading.RLock()", "x.acquire(blocking=False)"),
    "semaphore": ("import threading\nx = threading.Semaphore(2)", "x.acquire(blocking=False) and x.acquire(blocking=False)"),
    "condition": ("import threading\nx = threading.Condition()", "x.acquire(blocking=False)"),
    "event": ("import threading\nx = threading.Event()\nx.set()", "x.is_set()"),
    "barrier": ("import threading\nx = threading.Barrier(1)", "x.wait() == 0"),
    "local": ("import threading\nx = threading.local()\nx.y = 1", "not hasattr(x, 'y')"),
    "context variable": ("import contextvars\nx = contextvars.ContextVar('x', default=5)", "x.get() == 5 and x.name == 'x'"),
    "context variable without a default": (
        "import contextvars\nx = contextvars.ContextVar('x')",
        "x.get('no') == 'no' and x.name == 'x'",
    ),
    "queue": ("import queue\nx = queue.Queue(3)\nx.put(1)", "x.qsize() == 1 and x.maxsize == 3"),
    "simple queue": ("import queue\nx = queue.SimpleQueue()", "x.empty()"),
    "library": (
        "import ctypes\nx = ctypes.CDLL(None)\nx.abs.argtypes = [ctypes.c_int]\nx.abs.restype = ctypes.c_int",
        "x.abs(-3) == 3 and x.abs.argtypes == [ctypes.c_int] and x._name is None",
    ),
    "stdout": ("import sys\nx = sys.stdout", "x is sys.stdout"),
    "stderr": ("import sys\nx = sys.__stderr__", "x.writable()"),
    "devnull": ("import os\nx = open(os.devnull, 'w')", "x.write('ab') == 2 and x.name == os.devnull"),
    "lru_cache": (
        "import functools\n@functools.lru_cache(maxsize=3)\ndef x(y): return y + 1",
        "x(1) == 2 and x.cache_parameters()['maxsize'] == 3",
    ),
    "lru_cache of a lambda": (
        "import functools\nx = functools.lru_cache(lambda y: y + 1)",
        "x(1) == 2 and x.cache_info().misses == 1",
    ),
    "cache with an attribute": (
        "import functools\n@functools.cache\ndef x(y): return y\nx.note = 5",
        "x.note == 5 and x.__wrapped__(3) == 3",
    ),
    "cache in a class": (
        """
        import functools
        class A:
            @functools.lru_cache
            def f(self): return 5
            @functools.cached_property
            def g(self): return 6
            @functools.singledispatchmethod
            def h(self, y): return 'any'
            @h.register
            def _(self, y: int): return 'int'
        x = A()
    """,
        "(x.f(), x.g, x.h(''), x.h(1)) == (5, 6, 'any', 'int')",
    ),
    "singledispatch": (
        """
        import functools
        @functools.singledispatch
        def x(y): return 'any'
        @x.register
        def _(y: int): return 'int'
        @x.register(str)
        def text(y): return 'str'
    """,
        "(x(None), x(1), x(''), x.__name__) == ('any', 'int', 'str', 'x')",
    ),
    "new type": (
        "import typing\nx = typing.NewType('x', int)",
        "x(3) == 3 and x.__supertype__ is int and x.__module__ == '__main__'",
    ),
    "type variable": ("import typing\nx = typing.TypeVar('x', bound=int)", "x.__bound__ is int"),
    "parameters": ("import typing\nx = typing.ParamSpec('x')", "x.__name__ == 'x' and x.args.__origin__ is x"),
    "weak values": (
        "import weakref\nclass A: pass\na = A()\nx = weakref.WeakValueDictionary(a=a)\ndef hold(): return a",
        "hold() is x['a'] and type(x) is weakref.WeakValueDictionary",
    ),
    "weak keys": (
        "import weakref\nclass A: pass\na = A()\nx = weakref.WeakKeyDictionary({a: 1})\ndef hold(): return a",
        "x[hold()] == 1",
    ),
    "system random": ("import random\nx = random.SystemRandom()", "0 <= x.random() < 1"),
    "compiled pattern": ("import re\nx = re.compile('a+')", "x.match('aa').end() == 2"),
    "logger": ("import logging\nx = logging.getLogger('a.b')", "x is logging.getLogger('a.b')"),
    "module": ("import os.path\nx = os.path", "x is __import__('os').path"),
    "partial": ("import functools\ndef g(a, b): return a - b\nx = functools.partial(g, b=1)", "x(3) == 2"),
    "method": ("class A:\n    def __init__(self): self.y = 1\n    def f(self): return self.y\nx = A().f", "x() == 1"),
    "builtin": ("x = len", "x('ab') == 2"),
    "abstract class": (
        """
        import abc
        class A(abc.ABC):
            @abc.abstractmethod
            def f(self): ...
        class x(A):
            def f(self): return 1
        A.register(int)
    """,
        "x().f() == 1 and isinstance(x(), A) and isinstance(5, A)",
    ),
    "protocol": (
        """
        import typing
        @typing.runtime_checkable
        class x(typing.Protocol):
            def f(self): ...
        class A:
            def f(self): pass
    """,
        "isinstance(A(), x) and not isinstance(1, x)",
    ),
    "generic": (
        "import typing\nT = typing.TypeVar('T')\nclass x(typing.Generic[T]):\n    def f(self): return x[int]",
        "x().f().__origin__ is x",
    ),
    "named tuple": (
        "import typing, collections\nclass x(typing.NamedTuple):\n    a: int = 1\ny = collections.namedtuple('y', 'b')",
        "x().a == 1 and y(2).b == 2",
    ),
    "typed dictionary": ("import typing\nclass x(typing.TypedDict):\n    a: int", "x(a=1) == {'a': 1}"),
    "dataclass": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True, slots=True)\nclass x:\n    a: int = 1",
        "dataclasses.replace(x(), a=2) == x(2) and hash(x()) == hash(x(1))",
    ),
    "slots": ("class x:\n    __slots__ = ('a', 'b')\n    def __init__(self): self.a = 1", "x().a == 1 and not hasattr(x(), 'b')"),
    "flag": (
        "import enum\nclass x(enum.Flag):\n    A = enum.auto()\n    B = enum.auto()\ny = x.A | x.B",
        "y == x.A | x.B and x.A in y",
    ),
    "exception": ("class x(Exception):\n    def __init__(self, a): super().__init__(a)", "x(1).args == (1,)"),
}
KINDS = {kind: (dedent(text), expression) for kind, (text, expression) in KINDS.items()}
OF_THE_OWN = {kind: KINDS[kind][0].partition("\nx.")[0] for kind in ("lock", "local")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_global_of_this_kind_works(pair, kind, origin):
    """As with ProcessPoolExecutor, whose workers have their own."""
    text, expression = KINDS[kind]
    if origin is not Origin.NOTHING:  # there the worker's own is used, to which the top level has done what it does
        text = OF_THE_OWN.get(kind, text)
    this = pair(f"{text}\ndef f(): return bool({expression})\n")
    assert this.call("f()") is True
    assert this.call("(lambda: bool(f()) or True)()") is True


@pytest.mark.parametrize("kind", KINDS)
def test_a_global_of_this_kind_may_be_bound_again(pair, kind):
    """It is as good as the first."""
    text, expression = KINDS[kind]
    text = OF_THE_OWN.get(kind, text)
    this = pair(f"{text}\nother = 1\ndef f(): return bool({expression}), other\n")
    this.call("f()")
    this.run(text)
    this.run("other = 2")
    assert this.call("f()") == (True, 2)
    assert this.call("f()", worker=2) == (True, 2)


@ONLY_NOTHING
def test_a_cache_is_empty_in_a_worker(pair):
    """What the script has in it may be worth nothing there."""
    this = pair(
        "import functools\n@functools.lru_cache\ndef x(y): return y\nx(1)\ndef f():\n    x(1)\n    return x.cache_info()[:2]\n"
    )
    assert [this.call("f()"), this.call("f()"), this.call("f()", worker=2)] == [(0, 1), (1, 1), (0, 1)]


# -- files


@pytest.mark.parametrize("mode", ["w", "a", "x", "wb", "r+"])
def test_a_file_is_opened_again_and_never_cut(pair, tmp_path, mode):
    """The script has written to it."""
    file = tmp_path / "file.txt"
    if mode == "r+":
        file.write_text("")
    text = b"text" if "b" in mode else "text"
    this = pair(f"x = None\ndef f():\n    x.write({text!r})\n    x.flush()\n    return x.mode\n")
    this.run(f"x = open({str(file)!r}, {mode!r})\nx.write({text!r})\nx.flush()")
    this.call("f()")
    assert file.read_text() == ("text" if mode == "r+" else "texttext")
    this.run("x.close()")


def test_a_file_that_is_read_is_at_the_same_place(pair, tmp_path):
    """With the same encoding."""
    file = tmp_path / "file.txt"
    file.write_text("äbc\ndef\n", "latin-1")
    this = pair(
        "x = None\ndef f():\n    try:\n        return x.readline(), x.encoding, x.errors\n    finally:\n        x.close()\n"
    )
    this.run(f"x = open({str(file)!r}, encoding='latin-1', errors='ignore')\nx.read(1)")
    assert this.call("f()") == ("bc\n", "latin-1", "ignore")
    this.run("x.close()")


@ONLY_NOTHING
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import os\nx = open(os.devnull)\nx.close()", "a closed file"),
        ("import os\na, b = os.pipe()\nx = open(a)\nos.close(b)", "without a name"),
    ],
)
def test_a_file_that_cannot_be_opened_again_is_named(pair, text, why):
    """With the reason."""
    this = pair(text + "\ndef f(): return x.name\n")
    with pytest.raises(NameError, match=f"global 'x' is not in this worker.*{why}"):
        this.call("f()")
    this.run("x.close()")


def test_a_stream_in_memory_has_its_content(pair):
    """It is copied, as pickle does."""
    this = pair("import io\nx = io.StringIO('text')\ny = io.BytesIO(b'bytes')\ndef f(): return x.read(), y.getvalue()\n")
    assert this.call("f()") == ("text", b"bytes")


# -- what is shared by inheritance


@pytest.mark.parametrize("what", ["Queue()", "SimpleQueue()", "Value('i', 1)", "Array('i', 3)", "Pipe()[0]"])
def test_what_only_forked_processes_share_is_refused(pair, what):
    """A copy would be silently wrong, and the worker's own would be another."""
    this = pair("import multiprocessing\nx = multiprocessing." + what + "\ndef f(): return bool(x)\n")
    with pytest.raises(
        NameError, match="'x' is not in this worker.*shared with forked processes only: use that of a multiprocessing.Manager"
    ):
        this.call("f()")


@pytest.mark.parametrize(
    ("what", "use"),
    [
        ("Lock()", "x.acquire(timeout=0)"),
        ("RLock()", "x.acquire() and x.acquire()"),
        ("Semaphore(2)", "x.get_value() == 2"),
        ("BoundedSemaphore(3)", "x.get_value() == 3"),
        ("Event()", "not x.is_set()"),
        ("Condition()", "x.acquire()"),
        ("Barrier(2)", "x.parties == 2"),
    ],
)
def test_a_lock_of_multiprocessing_is_the_workers_own(pair, what, use):
    """It excludes the worker's threads and children."""
    this = pair(f"import multiprocessing\nx = multiprocessing.{what}\ndef f(): return bool({use})\n")
    assert this.call("f()")


@ONLY_NOTHING
def test_an_event_that_is_set_is_set(pair):
    """And one that is rebuilt, too."""
    this = pair("import multiprocessing\nx = multiprocessing.Event()\nx.set()\ndef f(): return x.is_set()\n")
    assert this.call("f()")


def test_what_is_refused_says_so():
    """It is no error of pickle."""
    import multiprocessing

    with pytest.raises(NotShared, match="multiprocessing Queue"):
        reduce_kind(multiprocessing.Queue())
    assert reduce_kind(multiprocessing.current_process()) is None


# -- what is left to pickle


@pytest.mark.parametrize("value", [1, "text", [1], {}, object(), len, KeyError("x"), np.arange(3), threading.Thread()])
def test_what_pickle_knows_is_left_to_it(value):
    """And what it refuses rightly."""
    assert reduce_kind(value) is None
    assert reduce_named(value) is None


def test_other_things_of_ctypes_are_left_to_pickle():
    """Numbers and structures."""
    import ctypes

    assert reduce_kind(ctypes.c_int(5)) is None
    assert reduce_kind(np.random) is None


# -- random numbers

GENERATORS = {
    "random.random": "from random import random as x",
    "random.randint": "from random import randint\ndef x(): return randint(0, 10 ** 12)",
    "random module": "import random\ndef x(): return random.random()",
    "Random": "import random\ngenerator = random.Random(5)\nx = generator.random",
    "Random in a function": "import random\ngenerator = random.Random(5)\ndef x(): return generator.random()",
    "Random of its own class": """
        import random
        class Own(random.Random):
            pass
        generator = Own(5)
        def x(): return generator.random()
    """,
    "Random in a list": "import random\ngenerators = [random.Random(5)]\ndef x(): return generators[0].random()",
    "numpy.random.rand": "from numpy.random import rand as x",
    "numpy.random module": "import numpy\ndef x(): return numpy.random.rand()",
    "default_rng": "import numpy\ngenerator = numpy.random.default_rng(5)\ndef x(): return generator.random()",
    "its method": "import numpy\nx = numpy.random.default_rng(5).random",
    "RandomState": "import numpy\ngenerator = numpy.random.RandomState(5)\ndef x(): return generator.rand()",
    "MT19937": "import numpy\ngenerator = numpy.random.Generator(numpy.random.MT19937(5))\ndef x(): return generator.random()",
    "Philox": "import numpy\ngenerator = numpy.random.Philox(5)\ndef x(): return float(generator.random_raw())",
    "SFC64": "import numpy\ngenerator = numpy.random.Generator(numpy.random.SFC64(5))\ndef x(): return generator.random()",
}
GENERATORS = {name: dedent(text) for name, text in GENERATORS.items()}


def draw(pair, text):
    """Return three numbers of each of two workers of two executors."""
    this = pair(text + "\ndef f(): return x()\n")
    this.run("import random, numpy\nrandom.seed(1)\nnumpy.random.seed(1)")
    executors = [this.executor(), this.executor()]
    return [this.call("f()", worker=worker, executor=each) for each in executors for worker in (1, 2) for _ in range(3)]


@pytest.mark.parametrize("generator", GENERATORS)
def test_streams_differ(pair, generator):
    """By worker and by executor."""
    numbers = draw(pair, GENERATORS[generator])
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("generator", GENERATORS)
def test_streams_are_the_same_in_two_runs(pair, generator, origin):
    """Of a script that seeds what it uses."""
    seed = "import random, numpy\nrandom.seed(1)\nnumpy.random.seed(1)\n"
    assert draw(pair, seed + GENERATORS[generator]) == draw(pair, seed + GENERATORS[generator])


MODULES = {name: text for name, text in GENERATORS.items() if "generator" not in text and "default_rng" not in text}


def draw_in_new_workers(pair, seed):
    """Return numbers of a script that seeds the modules' generators in main()."""
    numbers = {}
    for name, text in MODULES.items():
        this = pair(f"import random, numpy\n{text}\ndef f(): return x()\n")
        this.run(seed)
        executors = [this.executor(), this.executor()]
        numbers[name] = [
            this.call("f()", worker=worker, executor=each) for each in executors for worker in (1, 2) for _ in range(2)
        ]
    return numbers


def test_streams_are_those_of_the_scripts_seed_however_it_was_started(pair):
    """Workers are new processes, or have run another part of the script: what they had before does not matter."""
    seed = "random.seed(1)\nnumpy.random.seed(1)"
    once, again = (draw_in_new_workers(pair, seed) for _ in range(2))
    assert once == again
    assert all(len(set(numbers)) == 8 for numbers in once.values())
    other = draw_in_new_workers(pair, seed.replace("1", "2"))
    assert all(set(numbers).isdisjoint(once[name]) for name, numbers in other.items())


def test_without_a_seed_streams_differ_between_runs(pair):
    """Those of the script do."""
    seed = "random.seed()\nnumpy.random.seed()"
    once, again = (draw_in_new_workers(pair, seed) for _ in range(2))
    assert all(set(numbers).isdisjoint(again[name]) for name, numbers in once.items())


def test_streams_of_two_seeds_differ(pair):
    """The seed counts."""
    text = "import random\ngenerator = random.Random({})\ndef x(): return generator.random()"
    assert set(draw(pair, text.format(5))).isdisjoint(draw(pair, text.format(6)))


def test_an_initializer_may_seed(pair):
    """Then the numbers are those of that seed."""
    this = pair("import random\ndef seed(n): random.seed(n)\ndef f(): return random.random()\n")
    this.call("seed(5)")
    assert this.call("f()") == random.Random(5).random()


def test_a_generator_in_an_argument_is_as_it_was(pair):
    """As with ProcessPoolExecutor: how to get numbers that don't depend on the scheduling."""
    this = pair(
        "import random, numpy\nx = random.Random(5)\ny = numpy.random.default_rng(5)\ndef f(a, b): return a.random(), b.random()\n"
    )
    expected = random.Random(5).random(), np.random.default_rng(5).random()
    assert this.call("f(random.Random(5), numpy.random.default_rng(5))") == expected
    assert this.call("f(x, y)", worker=2) == expected


def test_the_scripts_own_generators_are_left_alone(pair):
    """Nobody draws from them."""
    this = pair("import random\nx = random.Random(5)\ndef f(): return x.random()\n")
    before = random.getstate()
    this.call("f()")
    assert this.get("x.random()") == random.Random(5).random()
    assert random.getstate() == before


def test_modules_have_streams_by_key():
    """And their states can be had again."""
    states = GeneratorStates()
    with own_main():
        drawn = []
        for key in [(1, 1), (2, 1), (1, 2), (1, 1)]:
            random.seed(5)
            np.random.seed(5)  # noqa: NPY002 - the module's own generator
            STREAM.key = key
            ModuleSeeds.of_this_process().reseed()
            drawn.append((random.random(), np.random.rand()))  # noqa: NPY002 - the module's own generator
        assert drawn[0] == drawn[3]
        assert len(set(drawn)) == 3
        expected = []
        for _ in range(2):
            random.seed(7)
            np.random.seed(7)  # noqa: NPY002 - the module's own generator
            kept = GeneratorStates()
            expected.append((random.random(), np.random.rand()))  # noqa: NPY002 - the module's own generator
            kept.restore()
            assert (random.random(), np.random.rand()) == expected[-1]  # noqa: NPY002 - the module's own generator
    states.restore()


def test_without_numpy_there_is_nothing_to_do(monkeypatch):
    """It is not imported for this."""
    monkeypatch.delitem(sys.modules, "numpy.random")
    states = GeneratorStates()
    ModuleSeeds.of_this_process().reseed()
    states.restore()
    assert "numpy.random" not in sys.modules


@pytest.mark.parametrize(
    ("value", "generates"),
    [
        (random.Random(), True),
        (random.SystemRandom(), False),
        (np.random.default_rng(), True),
        (np.random.RandomState(), True),
        (np.random.PCG64(), True),
        (np.random.SeedSequence(1), False),
        (1, False),
    ],
)
def test_what_generates_random_numbers(value, generates):
    """A SeedSequence has no state that is used up: it is copied as it is."""
    assert is_generator(value) is generates
    assert generates or isinstance(value, random.SystemRandom) or reduce_kind(value) is None


def test_kinds_are_looked_for_by_their_base():
    """A subclass is one, too."""
    assert all(isinstance(kind, type) for kind in reducers._KINDS)


# -- what belongs to the script alone


def test_a_temporary_file_of_the_script_is_opened_and_not_deleted(pair):
    """A worker that lets go of it leaves it where it is."""
    this = pair(
        "import os, tempfile\nx = tempfile.NamedTemporaryFile('w+')\nname = x.name\n"
        "def f(): return x.name == name, os.path.exists(name)\n"
    )
    assert this.call("f()") == (True, True)
    assert this.call("f()") == (True, True)


@pytest.mark.parametrize("array", ["np.frombuffer(raw)", "np.frombuffer(raw)[1:]"])
def test_an_array_in_memory_that_processes_share_is_refused(pair, array):
    """What a worker writes there the script would not see."""
    this = pair(
        f"import multiprocessing\nimport numpy as np\nraw = multiprocessing.RawArray('d', 4)\nx = {array}\ndef f(): return x\n"
    )
    with pytest.raises(NameError, match="'x' is not in this worker.*multiprocessing"):
        this.call("f()")


def test_what_is_only_set_keeps_what_it_was_set_to(pair):
    """Though the script had another value: it was there before."""
    this = pair("state = None\ndef clear():\n    global state\n    state = None\ndef f(): return state\n")
    this.run("state = [1]")
    this.call("clear()")
    assert this.call("f()") is None

"""The script's globals on the root: versions, states, payloads, and whatever objects a script may have."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import numpy as np
import pytest
from script_pair import script_of

from mpiexecutor._script.pickling import load_definitions
from mpiexecutor._script.root.script import Script
from mpiexecutor._script.state import Origin, Registry

LIMIT = 30  # seconds
OWN = pytest.mark.parametrize("origin", [Origin.TOP_LEVEL, Origin.RANK])
ONLY_NOTHING = pytest.mark.parametrize("origin", [Origin.NOTHING])

# A global x, and what is so of the worker's.
ODD = {
    "unhashable": ("class A:\n    __hash__ = None\nx = A()", "type(x) is A"),
    "equal to nothing": (
        "class A:\n    def __eq__(self, other): raise ValueError('eq')\n    def __hash__(self): raise ValueError\nx = A()",
        "type(x) is A",
    ),
    "neither true nor false": (
        "class A:\n    def __bool__(self): raise ValueError('bool')\n    def __len__(self): raise ValueError\nx = A()",
        "type(x) is A",
    ),
    "with every attribute": (
        """
        class A:
            def __getattr__(self, name):
                if name.startswith('__'): raise AttributeError(name)
                return 5
        x = A()
    """,
        "x.y == 5",
    ),
    "without a text": (
        "class A:\n    def __repr__(self): raise ValueError('repr')\n    __str__ = __repr__\nx = A()",
        "type(x) is A",
    ),
    "with a module of its own kind": (
        "class A: pass\nx = A()\nx.__module__ = 5\nx.__qualname__ = []\nx.__name__ = x.__module__",
        "x.__module__ == 5",
    ),
    "numpy array": ("import numpy\nx = numpy.arange(5)", "x.sum() == 10 and x.flags.writeable"),
    "read-only numpy array": ("import numpy\nx = numpy.arange(5)\nx.flags.writeable = False", "x.sum() == 10"),
    "array of objects": ("import numpy\nx = numpy.array([{}, None, 'a'], dtype=object)", "list(x) == [{}, None, 'a']"),
    "not a number": ("x = float('nan')", "x != x"),
    "a long text": ("x = 'a' * 100_000", "len(x) == 100_000"),
    "a class with a strange metaclass": (
        """
        class M(type):
            def __eq__(cls, other): raise ValueError('eq')
            __hash__ = type.__hash__
        class x(metaclass=M):
            y = 1
    """,
        "x.y == 1",
    ),
    "a metaclass with arguments": (
        """
        class M(type):
            def __new__(meta, name, bases, names, *, size): return super().__new__(meta, name, bases, dict(names, size=size))
            def __init__(cls, name, bases, names, *, size): super().__init__(name, bases, names)
        class x(metaclass=M, size=3):
            def f(self): return __class__
    """,
        "x.size == 3 and x().f() is x and type(x) is M",
    ),
    "a metaclass that registers": (
        """
        made = []
        class M(type):
            def __init__(cls, *a):
                super().__init__(*a)
                made.append(cls)
        class x(metaclass=M): pass
        class y(x): pass
    """,
        "made == [x, y]",
    ),
    "a metaclass with prepare": (
        "class M(type):\n    @classmethod\n    def __prepare__(meta, name, bases): return {'given': 1}\nclass x(metaclass=M): pass",
        "x.given == 1",
    ),
    "__init_subclass__ with arguments": (
        """
        class A:
            def __init_subclass__(cls, *, size, **more):
                super().__init_subclass__(**more)
                cls.size = size
        class x(A, size=3): pass
    """,
        "x.size == 3 and x().size == 3 and issubclass(x, A)",
    ),
    "__init_subclass__ that registers": (
        """
        made = {}
        class A:
            def __init_subclass__(cls):
                assert cls.__name__ not in made
                made[cls.__name__] = cls
        class x(A): pass
        class y(x): pass
    """,
        "made == {'x': x, 'y': y}",
    ),
    "__set_name__": (
        """
        class D:
            names = []
            def __set_name__(self, owner, name):
                D.names.append(name)
                self.name = name
        class x:
            a = D()
            b = D()
    """,
        "x.a.name == 'a' and D.names == ['a', 'b']",
    ),
    "a class of bases rebuilt": ("import typing\nclass x(typing.List[int]): pass", "x([1])[0] == 1 and x.__orig_bases__"),
    "properties and others": (
        """
        class x:
            def __init__(self): self._y = 1
            @property
            def y(self): return self._y
            @y.setter
            def y(self, v): self._y = v
            @staticmethod
            def s(): return x
            @classmethod
            def c(cls): return cls
            def m(self): return super().__init__ and __class__
    """,
        "x().y == 1 and x.s() is x.c() is x().m() is x",
    ),
    "a generator function": ("def x():\n    yield from range(3)", "list(x()) == [0, 1, 2]"),
    "a coroutine function": ("import asyncio\nasync def x(): return 5", "asyncio.run(x()) == 5"),
    "a global named as a builtin": ("def len(y): return 5\nx = len", "x('') == 5 and len('') == 5"),
    "a name with stars": ("from os.path import *\nx = join", "x('a', 'b') == 'a/b'"),
    "a global that is main": ("import sys\nx = sys.modules['__main__']", "x is sys.modules['__main__']"),
}
ODD = {kind: (dedent(text), expression) for kind, (text, expression) in ODD.items()}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_whatever_a_global_is(pair, kind):
    """Nothing is compared, hashed or shown that the script has not written for it. It is there, also after it was bound again."""
    text, expression = ODD[kind]
    this = pair(f"{text}\nother = 1\ndef f(): return bool({expression}), other\n")
    assert this.call("f()") == (True, 1)
    this.run("other = 2")
    assert this.call("f()") == (True, 2)
    assert this.call("f()", worker=2) == (True, 2)


@ONLY_NOTHING
@pytest.mark.parametrize("error", ["ValueError('own')", "KeyboardInterrupt", "SystemExit"])
def test_a_global_whose_pickling_raises_is_missing(pair, error):
    """Its error is named; only one that is meant for the script goes there."""
    this = pair(f"class A:\n    def __reduce__(self): raise {error}\nx = A()\ndef f(): return x\n")
    if error == "KeyboardInterrupt":
        with pytest.raises(KeyboardInterrupt):
            this.call("f()")
    else:
        with pytest.raises(NameError, match=f"global 'x'.*{error.partition('(')[0]}: "):
            this.call("f()")
    this.run("x = 1")
    assert this.call("f()") == 1


def test_a_global_whose_pickling_submits_is_pickled(pair):
    """From within: the same thread."""
    this = pair(
        """
        class A:
            def __reduce__(self):
                submit()
                return A, ()
        x = None
        def submit(): pass
        def g(): return 1
        def f(): return type(x) is A
    """
    )
    this.main.submit = lambda: this.submit("g()")
    this.run("x = A()")
    call = this.submit("f()")
    this.main.submit = lambda: None
    assert this.finish(call) is True
    assert this.call("g()") == 1


def test_a_global_whose_pickling_binds_a_global_is_pickled(pair):
    """The names change while they are looked at."""
    this = pair(
        """
        class A:
            def __reduce__(self):
                globals()[f'new{len(globals())}'] = 1
                return A, ()
        x = None
        def f(): return type(x) is A
    """
    )
    this.run("x = A()")
    assert this.call("f()") is True


def test_threads_may_submit_at_once(pair):
    """Each call finds what it needs."""
    names = range(40)
    this = pair("".join(f"g{n} = {n}\ndef f{n}(): return g{n}\n" for n in names))
    start = threading.Barrier(4, timeout=LIMIT)

    def submit(part):
        start.wait()
        return [(n, this.submit(f"f{n}()")) for n in names if n % 4 == part or n % 5 == 0]

    assert this.default
    with ThreadPoolExecutor(4) as pool:
        calls = [call for part in pool.map(submit, range(4)) for call in part]
    assert [this.finish(call) for _, call in calls] == [n for n, _ in calls]


# -- states and versions


@pytest.fixture
def script(main):
    """Return a way to make a script that workers have nothing of, with its registry."""

    def make(text):
        return script_of(text), Script(Registry(), Origin.NOTHING)

    return make


def test_a_state_is_the_same_until_something_has_changed(script):
    """Something that a call needs, or has needed."""
    names, this = script("a = 1\nb = []\ndef f(): return a\ndef g(): return b\n")
    first = this.state(frozenset({"f"}))
    assert this.state(frozenset({"f"})) is first
    assert set(first.versions) >= {"f", "a"}
    assert "b" not in first.versions
    second = this.state(frozenset({"g"}))
    assert second is not first
    assert set(second.versions) > set(first.versions)
    names.b.append(1)  # in place
    assert this.state(frozenset({"f"})) is this.state(frozenset({"g"})) is second
    names.a = 2
    third = this.state(frozenset({"f"}))
    assert {name for name in third.versions if third.versions[name] is not second.versions.get(name)} == {"a"}
    assert this.state(frozenset()) is third


def test_what_is_in_no_state_is_forgotten(script):
    """But the newest one lives as long as the executor."""
    names, this = script("a = 1\ndef f(): return a\n")
    number = this.state(frozenset({"f"})).number
    assert this.registry.find(number) is not None
    payload = this.state(frozenset({"f"})).versions["a"].payload
    names.a = 2
    this.state(frozenset({"f"}))
    gc.collect()
    assert this.registry.find(number) is None
    assert this.registry.find(payload) is None
    newest = weakref.ref(this.state(frozenset({"f"})))
    del this
    gc.collect()
    assert newest() is None


def test_numbers_are_given_once():
    """To states, payloads and functions, of all executors."""
    registry = Registry()
    assert [registry.next() for _ in range(3)] == [1, 2, 3]
    assert registry.find(1) is None


def test_a_value_is_that_of_the_first_call(script):
    """It is pickled at once; what is done to it later is not seen."""
    names, this = script("a = [1]\ndef f(): return a\n")
    state = this.state(frozenset({"f"}))
    names.a.append(2)
    assert load_definitions(this.registry.find(state.versions["a"].payload).pickled().data) == {"a": [1]}


def test_a_short_payload_goes_with_the_state_and_a_long_one_alone(script):
    """A state with a large array is small."""
    _, this = script("import numpy\na = 1\nb = numpy.arange(100_000)\nc = bytes(30_000)\ndef f(): return a, b, c\n")
    state = this.state(frozenset({"f"}))
    assert len(state.pickled(0, []).data) < 10_000
    difference = load_definitions(state.pickled(0, [7]).data)[""]
    inline = {name for name, version in state.versions.items() if version.payload in difference.inline}
    assert {"a", "f"} <= inline
    assert inline.isdisjoint({"b", "c"})
    assert difference.ended == [7]
    data, buffers = this.registry.find(state.versions["b"].payload).pickled()
    assert len(data) < 1_000
    assert np.array_equal(load_definitions(data, buffers)["b"], np.arange(100_000))


def test_the_difference_is_told_of_any_earlier_state(script):
    """Also of one that is forgotten; of a later one everything."""
    names, this = script("a = 1\nb = 1\ndef f(): return a, b\n")
    first = this.state(frozenset({"f"}))
    names.a = 2
    second = this.state(frozenset({"f"}))

    def told(state, known):
        difference = load_definitions(state.pickled(known, []).data)[""]
        return {version.name for version in difference.versions if "." not in version.name}, difference.setup is None

    everything = {"a", "b", "f"}
    assert told(second, first.number) == ({"a"}, True)
    assert told(first, second.number) == (everything, True)
    assert told(second, second.number) == (set(), True)
    assert told(second, 0) == (everything, False)

"""Which object has which name in the script, and which names a piece of code uses."""

import functools
import sys
import types
import typing

import pytest
from script_pair import script_of

from mpiexecutor._script import names
from mpiexecutor._script.names import LOOKUP, by_name, expanded, globals_of, main_dict, main_modules, name_of, resolve, top_of

pytestmark = pytest.mark.usefixtures("main")

NAMED = """
import functools, typing
def function(): pass
class Class:
    class Inner:
        def method(self): pass
    def method(self): pass
@functools.lru_cache
def cached(): pass
UserId = typing.NewType("UserId", int)
T = typing.TypeVar("T")
P = typing.ParamSpec("P")
"""


@pytest.mark.parametrize(
    "name", ["function", "Class", "Class.Inner", "Class.Inner.method", "Class.method", "cached", "UserId", "T", "P"]
)
def test_what_knows_its_name_has_it(name):
    """Functions, classes, what they have, caches, types."""
    script_of(NAMED)
    assert name_of(resolve(name)) == name


def test_a_name_is_a_plain_string():
    """Whatever the script has made of it."""
    script = script_of("class Name(str): pass\ndef f(): pass\nf.__qualname__ = Name('f')")
    assert type(name_of(script.f)) is str


@pytest.mark.parametrize(
    "text",
    [
        "def make():\n    def x(): pass\n    return x\nx = make()",
        "def make():\n    class x: pass\n    return x\nx = make()",
        "x = lambda: None",
        "def y(): pass\nx = y\ndef y(): pass",
        "class y: pass\nx = y\ndel y",
        "def x(): pass\nx.__qualname__ = x.__name__ = 'other'",
        "def x(): pass\nx.__module__ = None",
        "def x(): pass\nx.__module__ = 'elsewhere'",
        "import os\nx = os.path.join",
        "x = 5",
        "class A:\n    __module__ = '__main__'\n    __qualname__ = None\n    __name__ = 5\nx = A",
    ],
)
def test_what_means_something_else_has_no_name(text):
    """Local, deleted, bound again, of another module; whatever calls itself what it likes."""
    if "__qualname__ = None" in text:
        text = "class A:\n    pass\nx = A()\nx.__module__ = '__main__'\nx.__qualname__ = 5"
    assert name_of(script_of(text).x) is None


def test_an_object_whose_attributes_raise_is_not_asked_for_more_than_its_module(main):
    """Only AttributeError means that there is none."""
    script = script_of(
        "class A:\n    __module__ = '__main__'\n    def __getattr__(self, name): raise AttributeError(name)\nx = A()"
    )
    assert name_of(script.x) is None


def test_a_name_is_looked_up_in_what_is_main_now():
    """And brought before, where something brings it."""
    script = script_of("class A:\n    level = 1\n")
    assert by_name("A.level") == 1
    assert main_dict() is vars(script)
    brought = []
    LOOKUP.bring = brought.append
    assert by_name("A.level") == 1
    assert brought == ["A"]
    with pytest.raises(AttributeError):
        by_name("missing")
    assert top_of("A.level") == top_of("A") == "A"


def test_what_multiprocessing_takes_for_main_is_main():
    """If there is such a thing."""
    sys.modules.pop("__mp_main__", None)
    script = script_of("")
    assert main_modules() == {"__main__": script}
    sys.modules["__mp_main__"] = script
    assert main_modules() == {"__main__": script, "__mp_main__": script}


CODE = """
a = b = c = d = e = f = g = h = 1
def reads(): return a
def nested(): return lambda: [b for _ in range(3)]
def stores():
    global c
    c = 5
def local():
    d = 1
    return d
def in_class():
    class Local:
        level = e
        def method(self): return f
    return Local
def default(x=g): return x
def attribute(x): return x.h
def deletes():
    global h
    del h
def comprehension(): return {a: b for _ in c}
def unknown(): return unheard_of, __name__
def evaluates(): return eval("a")
def executes(): exec("a")
def all_globals(): return globals()["a"]
def imports():
    import __main__
    return __main__.a
def imports_from():
    from __main__ import a
    return a
def by_modules():
    import sys
    return sys.modules["__main__"].a
def by_own_name():
    import sys
    return sys.modules[__name__].a
"""


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("reads", {"a"}),
        ("nested", {"b", "range"}),
        ("stores", {"c"}),
        ("local", set()),
        ("in_class", {"e", "f"}),
        ("default", set()),
        ("attribute", set()),
        ("comprehension", {"a", "b", "c"}),
        ("unknown", {"unheard_of"}),
    ],
)
def test_code_needs_the_names_that_it_reads(name, read):
    """Those that the script does not have may come yet; those of the module itself are there."""
    script = script_of(CODE)
    assert expanded(globals_of(getattr(script, name).__code__), vars(script)) == read


@pytest.mark.parametrize("name", ["evaluates", "executes", "all_globals", "imports", "imports_from", "by_modules", "by_own_name"])
def test_code_that_may_read_any_name_needs_all(name):
    """By eval, globals(), or through the module."""
    script = script_of(CODE + "_private = _ = _1 = _i2 = 1\n")
    found = expanded(globals_of(getattr(script, name).__code__), vars(script))
    assert found >= {"a", "b", "reads", "by_own_name"}
    assert "_private" in found
    assert not found & {"_", "_1", "_i2", "__name__", "__builtins__"}


def test_a_function_of_the_script_called_eval_is_just_that():
    """It reads what it reads."""
    script = script_of("a = 1\ndef eval(x): return x\ndef f(): return eval(1)\n")
    assert expanded(globals_of(script.f.__code__), vars(script)) == {"eval"}


def test_kinds_that_know_their_name_are_types():
    """So isinstance takes them; those of later Pythons included."""
    assert all(isinstance(kind, type) for kind in names.NAMED_KINDS)
    assert isinstance(functools.lru_cache(len), names.LruCacheWrapper)
    assert {types.FunctionType, type, typing.TypeVar} <= set(names.NAMED_KINDS)

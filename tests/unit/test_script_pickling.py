"""Pickles that name what belongs to the script, and digests of globals."""

import pickle
import random
import sys

import cloudpickle
import numpy as np
import pytest
from script_pair import script_of

from mpiexecutor._script import pickling
from mpiexecutor._script.names import LOOKUP
from mpiexecutor._script.pickling import digest_of, dump_definitions, dumps, identities_of, load_definitions
from mpiexecutor._script.pickling.calls import module_level
from mpiexecutor._script.random_generators import STREAM

pytestmark = pytest.mark.usefixtures("main")

TEXT = """
import enum
level = 1
class A:
    kind = "a"
    class Inner: pass
class Color(enum.Enum):
    RED = 1
def f(x=1): return level
def make(n):
    def inner(): return level + n
    return inner
def local():
    class Local:
        level = 5
        def get(self): return level
    return Local
"""


def there(obj, text=TEXT, has=pickling.always):
    """Pickle an object here, and load it in another run of the script; return it, that run, and what it needs."""
    needed = set()
    data, buffers = dumps(obj, needed, has)
    other = script_of(text)
    LOOKUP.bring, STREAM.key = list, (1, 1)  # as in a worker
    return pickle.loads(data, buffers=[bytearray(each) for each in buffers]), other, needed


@pytest.mark.parametrize(
    ("name", "needed"), [("A", {"A"}), ("A.Inner", {"A"}), ("Color", {"Color"}), ("f", {"f"}), ("Color.RED", {"Color"})]
)
@pytest.mark.parametrize("beside", [None, lambda: None], ids=["plain", "cloudpickle"])
def test_what_has_a_name_is_named(name, needed, beside):
    """By the plain pickler, and beside what only cloudpickle can carry."""
    script = script_of(TEXT)
    (found, _), other, names = there((eval(name, vars(script)), beside))
    assert found is eval(name, vars(other))
    assert names == needed


def test_lambdas_and_closures_have_the_globals_where_they_arrive():
    """And need those that they read."""
    script = script_of(TEXT)
    inner, other, needed = there(script.make(10))
    assert needed == {"level"}
    other.level = 7
    assert inner() == 17


def test_local_classes_go_by_value():
    """Their methods have the globals where they arrive."""
    script = script_of(TEXT)
    made, other, needed = there(script.local()())
    assert needed == {"level"}
    other.level = 8
    assert (made.get(), made.level, type(made).__qualname__) == (8, 5, "local.<locals>.Local")


def test_functions_of_no_module_and_of_others_are_cloudpickles():
    """As ever."""
    script_of(TEXT)
    elsewhere = {"__name__": "elsewhere"}
    exec("level = 4\ndef g(): return level\n", elsewhere)
    g, _, needed = there(elsewhere["g"])
    assert g() == 4
    assert needed == set()
    nowhere = {}
    exec("h = lambda: 6", nowhere)
    nowhere["h"].__module__ = None
    assert there(nowhere["h"])[0]() == 6


def test_modules_that_are_registered_go_by_value(request):
    """As cloudpickle is told; the script's names still go by name."""
    import jobs

    cloudpickle.register_pickle_by_value(jobs)
    request.addfinalizer(lambda: cloudpickle.unregister_pickle_by_value(jobs))
    script = script_of(TEXT)
    (run_job, kind), other, _ = there((jobs.run_job, script.A))
    assert run_job is not jobs.run_job
    assert kind is other.A


@pytest.mark.parametrize("function", [random.random, random.randint, np.random.rand, np.random.seed, random.seed])
@pytest.mark.parametrize("beside", [None, lambda: None], ids=["plain", "cloudpickle"])
def test_methods_of_a_modules_hidden_object_are_named(function, beside):
    """So they are those of the worker's module: a copy would have a state of its own."""
    script_of(TEXT)
    found, _ = there((function, beside))[0]
    assert found == function
    assert getattr(found, "__self__", None) is getattr(function, "__self__", None)


def test_other_methods_go_with_their_object():
    """Bound to a copy."""
    script_of(TEXT)
    generator = random.Random(5)
    drawn = there(generator.random)[0]()
    assert drawn == random.Random(5).random()
    assert there([1, 2].count)[0](1) == 1
    assert there(dict.fromkeys)[0]("a") == {"a": None}
    assert there("abc".upper)[0]() == "ABC"


def test_what_a_module_has_is_looked_up_where_it_arrives(monkeypatch):
    """The module is imported if it is not there yet."""
    import email.mime.text

    monkeypatch.delitem(sys.modules, "email.mime.text")
    assert module_level("email.mime.text", "MIMEText").__name__ == "MIMEText"
    assert module_level("random", "random") is random.random
    assert email.mime.text.MIMEText is not None


@pytest.mark.parametrize("error", [ValueError("own"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("beside", [None, lambda: None], ids=["plain", "cloudpickle"])
def test_what_an_objects_pickling_raises_is_raised(error, beside):
    """Whatever it is."""

    class Raises:
        def __reduce__(self):
            raise error

    script_of(TEXT)
    with pytest.raises(type(error)):
        dumps((Raises(), beside), set())


def test_names_of_a_pickle_that_failed_are_not_needed():
    """The plain pickler has seen some before cloudpickle was asked."""
    script = script_of(TEXT)
    needed = set()
    with pytest.raises(ValueError, match="own"):
        dumps([script.A, _raising("own")], needed)
    assert needed <= {"A"}


def _raising(text):
    class Raises:
        def __reduce__(self):
            raise ValueError(text)

    return Raises()


def test_an_instance_of_a_metaclass_that_is_no_more_is_made_without_it():
    """A metaclass of the script is not run again."""
    text = """class M(type):
    made = []
    def __new__(meta, name, bases, names, **options):
        kind = super().__new__(meta, name, bases, names)
        M.made.append(name)
        return kind
    def __init__(cls, *_, **options): pass
def make():
    class Local(metaclass=M, size=3): pass
    return Local
"""
    script = script_of(text)
    kind, other, _ = there(script.make(), text)
    assert type(kind) is other.M
    assert other.M.made == []
    assert script.M.made == ["Local"]


# -- definitions and digests


def digest(text, name="x"):
    """Return a digest of a global of a script."""
    script = script_of(text)
    return digest_of(name, getattr(script, name), set(), identities_of(vars(script)), set())


LOCAL = "def make():\n    {}\n    return x\nx = make()"
SAME = [
    "x = 5",
    "x = {'a': [1, 2], 'b': (3, None)}",
    "x = lambda y: y + 1",
    "def x(y=1, *, z=2):\n    '''Text.'''\n    return [y for _ in {1, 2, 'a', 'b', 'c'}]",
    "def x(y): return y in {'a', 'b', 'c', 'd'}",
    "class x:\n    a = 1\n    def f(self): return 1",
    "import numpy\nx = numpy.arange(10.0)",
    "import os\nx = os",
    "a = []\nx = [a]",
    "def make():\n    class x: pass\n    return x\nx = make()()",
    "import threading\nx = threading.Lock()",
]


@pytest.mark.parametrize("text", SAME)
def test_the_same_has_the_same_digest(text):
    """In two runs of a script."""
    assert digest(text) == digest(text) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 5", "x = 6"),
        ("x = 5", "x = 5.0"),
        ("x = [1, 2]", "x = [2, 1]"),
        ("x = lambda y: y + 1", "x = lambda y: y + 2"),
        ("x = lambda y: y.a", "x = lambda y: y.b"),
        (LOCAL.format("def x(y=1): pass"), LOCAL.format("def x(y=2): pass")),
        ("def x(): return lambda: 1", "def x(): return lambda: 2"),
        (LOCAL.format("class x: a = 1"), LOCAL.format("class x: a = 2")),
        (LOCAL.format("class x: f = lambda self: 1"), LOCAL.format("class x: f = lambda self: 2")),
        ("class x: pass", "class x(dict): pass"),
        ("import numpy\nx = numpy.arange(10.0)", "import numpy\nx = numpy.arange(10.0) + 1"),
        ("import numpy\nx = numpy.arange(100_000)", "import numpy\nx = numpy.arange(100_000)[::-1].copy()"),
        ("a = []\nx = [a]", "a = []\nx = [[]]"),
        ("import random\nx = random.Random(5)", "import random\nx = random.Random(5)"),
        ("import numpy\nx = numpy.random.default_rng(5)", "import numpy\nx = numpy.random.default_rng(5)"),
    ],
)
def test_what_differs_has_another_digest(one, other):
    """Values, code, defaults, identities; generators never agree."""
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def x(y=1): pass", "def x(y=2): pass"),
        ("class x: a = 1", "class x: a = 2"),
        ("class x:\n    def f(self): return 1", "class x:\n    def f(self): return 2"),
    ],
)
def test_the_digest_of_a_definition_has_no_attributes(one, other):
    """They have digests of their own."""
    assert digest(one) == digest(other)


def test_the_digest_of_what_cannot_be_pickled_is_its_type():
    """Whatever its own code raises."""
    assert digest("class A:\n    def __reduce__(self): raise ValueError\nx = A()") == b"__main__.A"


def test_definitions_name_the_globals_that_they_share():
    """And say which have to be there when they are loaded."""
    script = script_of("a = []\nclass A: pass\nx = [a, A(), lambda: b]\nb = 5\n")
    needed = set()
    data, _, refers = dump_definitions({"x": script.x}, needed, identities_of(vars(script)))
    assert needed == {"a", "A", "b"}
    assert refers == {"a", "A"}
    other = script_of("a = []\nclass A: pass\nb = 7\n")
    x = load_definitions(data)["x"]
    assert x[0] is other.a
    assert type(x[1]) is other.A
    assert x[2]() == 7


def test_identities_are_those_of_what_can_change():
    """Numbers, texts, functions and modules have none; of two names the first counts."""
    script = script_of("import os\na = []\nb = a\nc = 5\nd = 'text'\ndef e(): pass\nf = object()\n")
    assert identities_of(vars(script)) == {id(script.a): "a", id(script.f): "f"}

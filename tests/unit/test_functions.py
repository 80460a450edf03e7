"""Functions that go to each worker once: when the root may name one by its number, and what a worker keeps."""

import math
import pickle
from functools import partial
from types import FunctionType

import cloudpickle
import pytest

from mpiexecutor import _functions
from mpiexecutor._functions import Catalogue, Dependencies, Shelf
from mpiexecutor._outcomes import Blob
from mpiexecutor._parcels import Pages


def script(text):
    """Run a script's lines; give its names, among which functions are found as in ``__main__``."""
    names = {"__name__": "__main__"}
    exec(text, names)
    return names


SCRIPT = """
import math
factor = 2
names = ["mutable"]
pair = (1, "a")

def helper(x, power=1):
    return factor * x ** power

def plain(x):
    return x + 1

def calls(x):
    return helper(x) + math.pi + len(pair)

def recursive(x):
    return x and recursive(x - 1)

def lists(x):
    return names

def default(x, found=[]):
    return found

def outer():
    inside = 1
    def inner(x):
        return x + inside
    return inner

def noted(x):
    return x
noted.note = 1

class Class:
    pass

def makes(x):
    return Class()

nested = outer()
square = lambda x: (lambda y: y * factor)(x)
"""


@pytest.mark.parametrize("name", ["plain", "helper", "calls", "recursive", "nested", "square"])
def test_a_function_of_constants_and_functions_depends_on_nothing_hidden(name):
    """Numbers, strings, modules, tuples of these, functions like itself."""
    dependencies = Dependencies.of(script(SCRIPT)[name])
    assert dependencies is not None
    assert dependencies.unchanged()


@pytest.mark.parametrize("name", ["lists", "default", "makes", "noted"])
def test_a_function_of_what_can_change_unseen_is_pickled_every_time(name):
    """A list, a default that is one, a class of the script, an attribute."""
    assert Dependencies.of(script(SCRIPT)[name]) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("helper", "factor = 3"),
        ("calls", "factor = 3"),
        ("calls", "def helper(x): return x"),
        ("calls", "helper.__defaults__ = (2,)"),
        ("calls", "helper.__code__ = plain.__code__"),
        ("calls", "helper.note = 1"),
        ("calls", "math = None"),
        ("calls", "len = max"),
        ("square", "factor = 3"),
        ("recursive", "recursive = plain"),
    ],
)
def test_a_change_is_seen(name, change):
    """Another value under a name, in the function or in one that it calls, or another body or default."""
    names = script(SCRIPT)
    dependencies = Dependencies.of(names[name])
    exec(change, names)
    assert not dependencies.unchanged()


def test_a_change_of_a_closure_is_seen():
    """The variable of the function around it."""
    value = 1

    def inner():
        return value

    dependencies = Dependencies.of(inner)
    value = 2
    assert inner() == 2
    assert not dependencies.unchanged()


def test_what_is_submitted_again_is_sent_by_number_until_it_changes():
    """At first, and after a change, it is pickled with the call; then it has another number."""
    names = script(SCRIPT)
    catalogue = Catalogue()
    assert catalogue.submitted(names["calls"]) is None
    assert catalogue.submitted(names["calls"]) is None
    first = catalogue.submitted(names["calls"])
    assert catalogue.submitted(names["calls"]) is first
    assert catalogue.find(first.number) is first
    exec("factor = 3", names)
    assert catalogue.submitted(names["calls"]) is None
    second = catalogue.submitted(names["calls"])
    assert second.number != first.number
    assert pickle.loads(second.blob.data)(1) != pickle.loads(first.blob.data)(1)


@pytest.mark.parametrize("what", [math.sin, int, partial(len), "abc".upper, 42])
def test_only_functions_are_sent_by_number_when_submitted(what):
    """Anything else may hold what changes, or goes by name anyway."""
    catalogue = Catalogue()
    assert catalogue.submitted(what) is None
    assert catalogue.submitted(what) is None


def test_a_map_sends_functions_and_what_is_large_by_number():
    """At once; what is small is as well pickled with every call."""
    catalogue = Catalogue()
    function = catalogue.mapped(math.sin)
    assert function is None
    assert catalogue.mapped(partial(len, "x")) is None
    large = catalogue.mapped(partial(len, bytes(100_000)))
    assert large is not None
    plain = script(SCRIPT)["plain"]
    assert catalogue.mapped(plain) is catalogue.mapped(plain)
    lists = script(SCRIPT)["lists"]
    assert catalogue.mapped(lists) is not catalogue.mapped(lists)


def test_a_function_that_nobody_holds_is_forgotten():
    """Neither the function nor its pickle stays."""
    catalogue = Catalogue()
    names = script(SCRIPT)
    number = catalogue.mapped(names.pop("plain")).number
    del names
    assert catalogue.find(number) is None
    assert not catalogue._known_functions


class Root:
    """The other end of a shelf: answers with what it is asked for."""

    def __init__(self, *what):
        self._blobs = {number: Blob.of(each) for number, each in enumerate(what, 1)}
        self.asked = []
        self.closed = False

    def ask(self, number):
        if not self.closed:
            self.asked.append(number)
        return not self.closed

    def receive(self):
        blob = self._blobs.get(self.asked[-1])
        if blob is None:
            return None
        buffers = []
        for buffer in blob.buffers:
            pages = Pages(len(buffer))
            pages.view[:] = buffer
            buffers.append(pages)
        return memoryview(blob.data), buffers

    def shelf(self):
        return Shelf(self, self.ask)


def test_a_worker_that_cannot_ask_any_more_does_not_wait_for_an_answer():
    """The call is not run: nobody wants its outcome."""
    root = Root(len)
    root.closed = True
    with pytest.raises(LookupError, match="wanted no more"):
        root.shelf().get(1)


def test_a_worker_asks_once():
    """What it has, it keeps."""
    root = Root(len)
    shelf = root.shelf()
    assert shelf.get(1)("abc") == 3
    assert shelf.get(1)("ab") == 2
    assert root.asked == [1]


def test_calls_share_a_plain_function():
    """As with multiprocessing: what it keeps in its module's names, the next call finds there."""
    names = script("count = 0\ndef counts():\n    global count\n    count += 1\n    return count")
    shelf = Root(names["counts"]).shelf()
    assert [shelf.get(1)() for _ in range(3)] == [1, 2, 3]


def test_calls_share_nothing_else():
    """What a call does to an array that is bound, the next one does not see, and it may write to it."""
    np = pytest.importorskip("numpy")
    names = script("def add(array, x):\n    array += x\n    return array.sum()")
    shelf = Root(partial(names["add"], np.zeros(100_000))).shelf()
    assert [shelf.get(1)(1) for _ in range(3)] == [100_000] * 3


def test_what_is_wanted_no_more_is_an_error():
    """The root has nothing of that number: the calls that named it are gone."""
    with pytest.raises(LookupError, match="no more"):
        Root().shelf().get(7)


def test_what_is_taken_is_not_kept():
    """An initializer is needed once."""
    root = Root(len)
    shelf = root.shelf()
    shelf.take(1)
    shelf.take(1)
    assert root.asked == [1, 1]


def test_a_worker_keeps_what_it_used_last(monkeypatch):
    """No more than so many, and no more bytes; the newest always."""
    monkeypatch.setattr(_functions, "_KEPT", 2)
    root = Root(len, abs, min)
    shelf = root.shelf()
    for number in (1, 2, 1, 3, 1, 2):
        shelf.get(number)
    assert root.asked == [1, 2, 3, 2]
    monkeypatch.setattr(_functions, "_KEPT_BYTES", 1)
    shelf.get(3)
    shelf.get(3)
    shelf.get(1)
    assert root.asked == [1, 2, 3, 2, 3, 1]


def test_what_cannot_be_unpickled_says_so_every_time():
    """And is not asked for again."""

    class Fails:
        def __reduce__(self):
            return int, ("no number",)

    root = Root(Fails())
    shelf = root.shelf()
    for _ in range(2):
        with pytest.raises(ValueError, match="no number"):
            shelf.get(1)
    assert root.asked == [1]


def test_copies_of_pages_are_private():
    """Writing to one changes neither the others nor what later ones show."""
    pages = Pages(10_000)
    pages.view[:] = b"x" * 10_000
    first, second = pages.copy(), pages.copy()
    first[5] = 0
    assert second[5] == pages.view[5] == pages.copy()[5] == ord("x")


def test_pages_without_memory_files_are_copied(monkeypatch):
    """Where the system has none."""
    monkeypatch.delattr("os.memfd_create")
    pages = Pages(10)
    pages.view[:] = b"0123456789"
    copy = pages.copy()
    copy[0] = 0
    assert bytes(pages.view) == b"0123456789"


def test_a_name_that_means_something_else_is_no_name():
    """Only what the worker finds under the same name goes by it."""
    assert _functions._goes_by_name(script)
    other = FunctionType(script.__code__, {}, "script")
    other.__module__ = script.__module__
    assert not _functions._goes_by_name(other)
    other.__module__ = None
    assert not _functions._goes_by_name(other)


def test_modules_registered_to_go_by_value_do(request):
    """As cloudpickle is told."""
    import jobs

    cloudpickle.register_pickle_by_value(jobs)
    request.addfinalizer(lambda: cloudpickle.unregister_pickle_by_value(jobs))
    assert not _functions._goes_by_name(jobs.run_job)

"""Functions that go to each worker once: when the root may name one by its number, and what a worker keeps."""

import gc
import math
import pickle
import threading
from functools import partial
from textwrap import dedent
from types import FunctionType

import cloudpickle
import pytest
from script_pair import own_main, script_of

from mpiexecutor._calls import functions
from mpiexecutor._calls.bulk import Pages
from mpiexecutor._calls.functions import Dependencies, FunctionCache, FunctionRegistry
from mpiexecutor._calls.outcomes import pickled
from mpiexecutor._script.state import Registry


@pytest.fixture
def script():
    """Run a script's lines as `__main__`; yield its names."""
    with own_main():
        yield lambda text: vars(script_of(text))


SCRIPT = """
import math
factor = 2
names = ["mutable"]

def helper(x, power=1):
    return factor * x ** power

def plain(x):
    return x + 1

def lists(x):
    return names

def default(x, found=[]):
    return found

def noted(x):
    return x
noted.note = 1

class Class:
    pass

def outer(inside, *others):
    def inner(x=1):
        return x, inside, others
    return inner

def around(value):
    def inner():
        return value
    def set_value(new):
        nonlocal value
        value = new
    return inner, set_value

nested = outer(1)
calls = outer(helper)
makes = outer(Class)
deep = outer(1, "a", math, (None, 2.5, helper))
of_closure_in_tuple = outer(1, outer(2))
deeper = outer(outer(nested))
square = lambda x: (lambda y: y * factor)(x)
recursive = (lambda: (f := lambda x: x and f(x - 1)))()
of_list = outer(names)
of_list_in_tuple = outer(1, [])
of_local_class = outer(type("Local", (), {}))
with_default = lambda x, found=[]: found
with_note = outer(1)
with_note.note = 1
through_another = outer(outer([]))
"""


@pytest.mark.parametrize("name", ["nested", "calls", "makes", "deep", "deeper", "square", "recursive"])
def test_a_closure_of_constants_and_functions_depends_on_nothing_hidden(name, script):
    """Numbers, strings, modules, tuples of these, what the script has under a name, closures like itself."""
    dependencies = Dependencies.of(script(SCRIPT)[name])
    assert dependencies is not None
    assert dependencies.unchanged()


@pytest.mark.parametrize(
    "name",
    ["of_list", "of_list_in_tuple", "of_closure_in_tuple", "of_local_class", "with_default", "with_note", "through_another"],
)
def test_a_closure_of_what_can_change_unseen_is_pickled_every_time(name, script):
    """A list, a default that is one, a class without a name, an attribute."""
    assert Dependencies.of(script(SCRIPT)[name]) is None


@pytest.mark.parametrize("name", ["plain", "helper", "lists", "default", "noted"])
def test_a_function_with_a_name_depends_on_nothing(name, script):
    """Its globals, defaults and attributes have versions of their own: see _script."""
    names = script(SCRIPT)
    dependencies = Dependencies.of(names[name])
    names[name].__defaults__, names[name].note, names["factor"] = (5,), 2, 3
    assert dependencies.unchanged()


@pytest.mark.parametrize("change", ["factor = 3", "helper.__defaults__ = (2,)", "helper.note = 1", "math = None", "len = max"])
def test_globals_that_a_closure_uses_have_versions_of_their_own(change, script):
    """They are no part of its pickle."""
    names = script(SCRIPT)
    dependencies = [Dependencies.of(names[name]) for name in ("square", "calls")]
    exec(change, names)
    assert all(each.unchanged() for each in dependencies)


def test_a_function_of_another_module_that_has_no_name_there_is_pickled_every_time(script):
    """It goes by value with the globals that it has."""
    script(SCRIPT)
    elsewhere = {"__name__": "elsewhere"}
    exec("value = []\nfound = lambda: value", elsewhere)
    assert Dependencies.of(elsewhere["found"]) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("nested", "nested.__defaults__ = (2,)"),
        ("nested", "nested.__kwdefaults__ = {'x': 2}"),
        ("nested", "nested.__code__ = with_note.__code__.replace(co_name='other')"),
        ("nested", "nested.note = 1"),
        ("deeper", "nested.__defaults__ = (2,)"),
        ("calls", "def helper(x): return x"),
        ("deep", "del helper"),
        ("makes", "class Class: pass"),
        ("makes", "del Class"),
    ],
)
def test_a_change_is_seen(name, change, script):
    """Another body or default, in the closure or in one that it holds; another thing under the name of what it holds."""
    names = script(SCRIPT)
    dependencies = Dependencies.of(names[name])
    exec(change, names)
    assert not dependencies.unchanged()


def test_a_change_of_a_closure_is_seen(script):
    """The variable of the function around it."""
    inner, set_value = script(SCRIPT)["around"](1)
    dependencies = Dependencies.of(inner)
    assert dependencies.unchanged()
    set_value(2)
    assert inner() == 2
    assert not dependencies.unchanged()


def test_a_closure_whose_function_has_become_none_has_changed(script):
    """The function that it held does not exist any more."""
    names = script(SCRIPT)
    inner, set_value = names["around"](names["outer"](1))
    dependencies = Dependencies.of(inner)
    set_value(None)
    gc.collect()
    assert inner() is None
    assert not dependencies.unchanged()


def test_a_closure_without_references_has_changed(script):
    """It is not kept alive to be compared."""
    names = script(SCRIPT)
    dependencies = Dependencies.of(names["nested"])
    del names["nested"], names["deeper"]
    gc.collect()
    assert not dependencies.unchanged()


@pytest.fixture
def registry():
    return Registry()


@pytest.fixture
def registered(registry):
    return FunctionRegistry(registry)


def test_what_is_submitted_again_is_sent_by_number_until_it_changes(script, registered, registry):
    """At first, and after a change, it is pickled with the call; then it has another number."""
    inner, set_value = script(SCRIPT)["around"](1)
    assert registered.submitted(inner) is None
    assert registered.submitted(inner) is None
    first = registered.submitted(inner)
    assert registered.submitted(inner) is first
    assert registry.find(first.number) is first
    set_value(2)
    assert registered.submitted(inner) is None
    second = registered.submitted(inner)
    assert second.number != first.number
    assert pickle.loads(second.pickle.data)() == 2
    assert pickle.loads(first.pickle.data)() == 1


def test_what_is_sent_by_number_names_the_globals_that_it_needs(script, registered):
    """A call that names it needs them."""
    names = script(SCRIPT)
    assert registered.add(names["square"]).names == {"factor"}
    assert registered.add((names["calls"], (names["Class"], 1))).names >= {"helper", "Class"}


def test_a_function_that_cannot_be_pickled_fails_where_it_is_added(registered):
    """Whatever its pickling raises."""
    with pytest.raises(TypeError, match="pickle"):
        registered.add(partial(len, threading.Lock()))


@pytest.mark.parametrize("what", [math.sin, int, partial(len), "abc".upper, 42])
def test_only_functions_are_sent_by_number_when_submitted(what, registered):
    """Anything else may hold what changes, or goes by name anyway."""
    assert registered.submitted(what) is None
    assert registered.submitted(what) is None


def test_a_map_sends_functions_and_what_is_large_by_number(script, registered):
    """At once; what is small is as well pickled with every call."""
    function = registered.mapped(math.sin)
    assert function is None
    assert registered.mapped(partial(len, "x")) is None
    large = registered.mapped(partial(len, bytes(100_000)))
    assert large is not None
    names = script(SCRIPT)
    assert registered.mapped(names["nested"]) is registered.mapped(names["nested"])
    assert registered.mapped(names["of_list"]) is not registered.mapped(names["of_list"])


def test_a_function_without_references_is_forgotten(script, registered, registry):
    """Neither the function nor its pickle stays."""
    names = script(SCRIPT)
    del names["deeper"]
    number = registered.mapped(names.pop("nested")).number
    gc.collect()
    assert registry.find(number) is None
    assert not registered._known_functions


class Root:
    """The other end of a cache: answers with what it is asked for."""

    def __init__(self, *what):
        self._pickles = {number: pickled(each) for number, each in enumerate(what, 1)}
        self.asked = []
        self.closed = False

    def ask(self, number):
        if not self.closed:
            self.asked.append(number)
        return not self.closed

    def receive(self):
        what = self._pickles.get(self.asked[-1])
        if what is None:
            return None
        buffers = []
        for buffer in what.buffers:
            pages = Pages(len(buffer))
            pages.view[:] = buffer
            buffers.append(pages)
        return memoryview(what.data), buffers

    def cache(self):
        return FunctionCache(self, self.ask)


def test_a_worker_that_cannot_ask_any_more_does_not_wait_for_an_answer():
    """The call is not run: its outcome is not needed."""
    root = Root(len)
    root.closed = True
    with pytest.raises(LookupError, match="the function of this call is not needed any more"):
        root.cache().get(1)


def test_a_worker_asks_once():
    """What it has, it keeps."""
    root = Root(len)
    cache = root.cache()
    assert cache.get(1)("abc") == 3
    assert cache.get(1)("ab") == 2
    assert root.asked == [1]


@pytest.mark.parametrize("name", ["counts", "closure"])
def test_calls_share_a_plain_function(name, script):
    """As with multiprocessing: what it keeps in its module's names, the next call finds there."""
    text = """
        count = 0
        def counts():
            global count
            count += 1
            return count
        def make():
            def inner():
                return counts()
            return inner
        closure = make()
    """
    names = script(dedent(text))
    cache = Root(names[name]).cache()
    assert [cache.get(1)() for _ in range(3)] == [1, 2, 3]


def test_calls_share_nothing_else(script):
    """What a call does to an array that is bound, the next one does not see, and it may write to it."""
    np = pytest.importorskip("numpy")
    names = script("def add(array, x):\n    array += x\n    return array.sum()")
    cache = Root(partial(names["add"], np.zeros(100_000))).cache()
    assert [cache.get(1)(1) for _ in range(3)] == [100_000] * 3


def test_a_function_that_is_not_needed_any_more_is_an_error():
    """The root has nothing of that number: the calls that named it are gone."""
    with pytest.raises(LookupError, match="not needed any more"):
        Root().cache().get(7)


def test_what_is_taken_is_not_kept():
    """An initializer is needed once."""
    root = Root(len)
    cache = root.cache()
    cache.take(1)
    cache.take(1)
    assert root.asked == [1, 1]


def test_a_worker_keeps_what_it_used_last(monkeypatch):
    """No more than so many, and no more bytes; the newest always."""
    monkeypatch.setattr(functions, "_KEPT", 2)
    root = Root(len, abs, min)
    cache = root.cache()
    for number in (1, 2, 1, 3, 1, 2):
        cache.get(number)
    assert root.asked == [1, 2, 3, 2]
    monkeypatch.setattr(functions, "_KEPT_BYTES", 1)
    cache.get(3)
    cache.get(3)
    cache.get(1)
    assert root.asked == [1, 2, 3, 2, 3, 1]


def test_nothing_is_kept_of_executors_that_have_ended(monkeypatch):
    """What other executors have stays; and nothing is remembered of what was dropped before."""
    root = Root(len, abs, min, max)
    cache = root.cache()
    for number, executor in ((1, 5), (2, 6), (3, 5), (4, 7)):
        cache.get(number, executor)
    cache.forget([5, 7, 8])
    cache.get(2, 6)
    assert root.asked == [1, 2, 3, 4]
    for number in (1, 3, 4):
        cache.get(number, 6)
    assert root.asked == [1, 2, 3, 4, 1, 3, 4]
    monkeypatch.setattr(functions, "_KEPT", 1)
    cache.take(1)
    cache.get(1, 6)
    cache.forget([])
    assert set(cache._executors) == set(cache._kept)
    cache.forget([6])
    assert not cache._executors
    assert not cache._kept


def test_what_cannot_be_unpickled_says_so_every_time():
    """And is not asked for again."""

    class Fails:
        def __reduce__(self):
            return int, ("no number",)

    root = Root(Fails())
    cache = root.cache()
    for _ in range(2):
        with pytest.raises(ValueError, match="no number"):
            cache.get(1)
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
    assert functions._goes_by_name(dedent)
    other = FunctionType(dedent.__code__, {}, "dedent")
    other.__module__ = dedent.__module__
    assert not functions._goes_by_name(other)
    other.__module__ = None
    assert not functions._goes_by_name(other)


def test_modules_registered_to_go_by_value_do(request):
    """As cloudpickle is told."""
    import jobs

    cloudpickle.register_pickle_by_value(jobs)
    request.addfinalizer(lambda: cloudpickle.unregister_pickle_by_value(jobs))
    assert not functions._goes_by_name(jobs.run_job)

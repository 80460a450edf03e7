"""The `__main__` of a worker: which values calls find there, and what is asked for."""

import gc
import sys
import weakref
from contextlib import contextmanager
from textwrap import dedent
from types import ModuleType

import pytest

from mpiexecutor._script.state import Origin

OWN = pytest.mark.parametrize("origin", [Origin.TOP_LEVEL, Origin.RANK])
ONLY_NOTHING = pytest.mark.parametrize("origin", [Origin.NOTHING])

COUNTS = """
    scale = 1
    seen = []

    def set_scale(value):
        global scale
        scale = value

    def get_scale():
        return scale

    def remember(value):
        seen.append(value)
        return list(seen)
"""


# -- which value a call finds


def test_a_call_finds_what_the_script_had_when_it_was_first_needed(pair):
    """What main() has set before the first call is seen."""
    this = pair(COUNTS)
    this.run("scale = 2")
    assert this.call("get_scale()") == 2


def test_what_an_initializer_sets_wins(pair):
    """Over the script's first value, which it has had all along."""
    this = pair(COUNTS)
    this.call("set_scale(7)")
    assert this.call("get_scale()") == 7
    assert this.get("scale") == 1


def test_what_an_initializer_sets_wins_over_what_main_has_set(pair):
    """The value that main() has set before the first call is the first one."""
    this = pair(COUNTS)
    this.run("scale = 5")
    this.call("set_scale(7)")
    assert this.call("get_scale()") == 7


def test_what_an_initializer_sets_wins_over_a_value_needed_later(pair):
    """The initializer does not read what it sets; the call that does comes later."""
    this = pair("def set_it():\n    global it\n    it = 'set'\ndef get_it():\n    return it\nit = None\n")
    this.call("set_it()")
    this.run("other = 1")
    assert this.call("get_it()") == "set"


def test_binding_again_in_the_script_wins_after_that(pair):
    """Over the first value, and over what a call has set."""
    this = pair(COUNTS)
    this.call("set_scale(7)")
    assert this.call("get_scale()") == 7
    this.run("scale = 9")
    assert this.call("get_scale()") == 9
    this.call("set_scale(3)")
    assert this.call("get_scale()") == 3
    this.run("scale = 10")
    assert this.call("get_scale()") == 10


def test_binding_the_same_object_is_no_change(pair):
    """What the worker has set stays."""
    this = pair(COUNTS)
    assert this.call("get_scale()") == 1
    this.call("set_scale(7)")
    this.run("scale = scale")
    assert this.call("get_scale()") == 7


def test_what_a_call_sets_stays_in_its_worker(pair):
    """Other workers don't see it, and the script does not."""
    this = pair(COUNTS)
    this.call("set_scale(7)", worker=1)
    assert (this.call("get_scale()", worker=1), this.call("get_scale()", worker=2), this.get("scale")) == (7, 1, 1)


def test_what_a_call_changes_in_place_stays(pair):
    """A cache, a list, a counter."""
    this = pair(COUNTS)
    assert [this.call("remember(1)"), this.call("remember(2)"), this.call("remember(3)", worker=2)] == [[1], [1, 2], [3]]
    assert this.get("seen") == []


def test_lambdas_and_closures_see_the_same_globals(pair):
    """As functions with a name."""
    this = pair(COUNTS + "\n    def make():\n        return lambda: (scale, remember(0))\n    held = [make()]\n")
    this.call("set_scale(7)")
    this.call("remember(1)")
    assert this.call("(lambda: scale)()") == 7
    assert this.call("make()()") == (7, [1, 0])
    assert this.call("(lambda call: call())(make())") == (7, [1, 0, 0])


def test_a_lambda_that_sets_a_global_sets_it_for_all(pair):
    """There is one `__main__`."""
    this = pair(COUNTS)
    this.call("(lambda: globals().update(scale=8))()")
    assert this.call("get_scale()") == 8


def test_two_executors_do_not_see_each_other(pair):
    """Each has a `__main__` of its own, also when their calls alternate."""
    this = pair(COUNTS)
    first, second = this.executor(), this.executor()
    this.call("set_scale(5)", executor=first)
    assert this.call("get_scale()", executor=second) == 1
    this.call("set_scale(6)", executor=second)
    assert [this.call("get_scale()", executor=each) for each in (first, second, first)] == [5, 6, 5]
    assert this.call("get_scale()", executor=this.executor()) == 1


def test_executors_that_have_ended_are_let_go(pair):
    """With all that was in their `__main__`."""
    this = pair(COUNTS + "\n    class Thing: pass\n    thing = Thing()\n    def get_thing(): return thing.__class__.__name__\n")
    first, second = this.executor(), this.executor()
    this.call("get_thing()", executor=first)
    gone = weakref.ref(this.inside("thing", executor=first))
    this.call("get_thing()", executor=second)
    if this.origin is not Origin.RANK:  # there it is the script's own
        this.ended = [first.number]
        this.run("scale = 4")
        this.call("get_scale()", executor=second)
        gc.collect()
        assert gone() is None
    assert this.call("get_thing()", executor=second) == "Thing"


@contextmanager
def no_collection():
    """Have objects that refer to themselves stay until the garbage collector runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("first_call", [True, False], ids=["first call of the next", "later"])
@pytest.mark.parametrize("origin", [Origin.TOP_LEVEL, Origin.NOTHING])
def test_a_large_global_of_an_executor_that_has_ended_is_let_go_at_once(pair, first_call):
    """Its module and its functions refer to each other; it is not known when such objects are collected."""
    this = pair("import numpy\ntable = None\ndef total(): return float(table.sum())\ndef other(): pass\n")
    this.run("table = numpy.ones(100_000)")
    first, second = this.executor(), this.executor()
    assert this.call("total()", executor=first) == 100_000
    gone = weakref.ref(this.inside("table", executor=first))
    assert gone() is not this.get("table")
    with no_collection():
        if not first_call:
            this.call("other()", executor=second)
        assert gone() is not None
        this.ended = [first.number]
        this.run("def other(): return 1")
        assert this.call("other()", executor=second) == 1
        assert gone() is None
    assert this.call("total()", executor=second) == 100_000


def test_functions_of_an_executor_that_has_ended_are_let_go(pair):
    """Closures that calls have named by number, with what they hold; those of other executors stay."""
    this = pair("def make(x): return lambda y: (x, y)\nclosures = [make(1), make(2)]\ndef function(): pass\n")
    first, second = this.executor(), this.executor()
    for index, executor in enumerate((first, second)):
        (call,) = this.map(f"closures[{index}]", [5], executor)
        assert not isinstance(call.called, str)
        assert this.finish(call) == (index + 1, 5)
    functions = this.functions()
    assert len(functions._kept) == 2
    this.ended = [first.number]
    this.run("def function(): return 1")
    assert this.call("function()", executor=second) == 1
    assert [kept.get()(5) for kept in functions._kept.values()] == [(2, 5)]


# -- what is not finalised in a worker


@pytest.fixture
def finalised(monkeypatch):
    """Return what objects with `__del__` note of themselves."""
    module = ModuleType("finalised")
    module.names = []
    monkeypatch.setitem(sys.modules, "finalised", module)
    return module.names


WITH_DEL = """
    import finalised
    class Work:
        def __init__(self, name): self.name = name
        def __del__(self): finalised.names.append(self.name)
    work = Work("of the top level")
    def get(): return work.name
    def other(): return None
"""


def test_what_a_worker_replaces_is_not_finalised_there(pair, finalised):
    """It may delete what is the script's: as in forked processes, which never come to finalise what they have inherited."""
    this = pair(WITH_DEL)
    this.run("kept = [work]\nwork = Work('of main')\nkept.append(work)")
    for number in range(3):
        for worker in (1, 2):
            assert this.call("get()", worker) == this.get("work.name")
        this.run(f"work = Work('number {number}')\nkept.append(work)")
        gc.collect()
    assert finalised == []


def test_what_a_call_replaces_is_finalised(pair, finalised):
    """It is the call's own doing."""
    this = pair(WITH_DEL + "\n    def replace():\n        global made\n        made = Work('made'); made = None\n")
    this.call("replace()")
    assert finalised == ["made"]


def test_the_end_of_an_executor_finalises_nothing_that_came_from_the_script(pair, finalised):
    """With its `__main__`, in a worker."""
    this = pair(WITH_DEL)
    this.run("kept = [work]\nwork = Work('of main')\nkept.append(work)")
    first, second = this.executor(), this.executor()
    assert this.call("get()", executor=first) == "of main"
    this.call("other()", executor=second)
    this.ended = [first.number]
    this.run("def other(): return 1")
    assert this.call("other()", executor=second) == 1
    gc.collect()
    assert finalised == []


def test_the_end_of_an_executor_finalises_nothing_that_its_top_level_has_made(pair, finalised):
    """It is equal to the script's, and may stand for the same files."""
    this = pair(WITH_DEL)
    first, second = this.executor(), this.executor()
    assert this.call("get()", executor=first) == "of the top level"
    this.call("other()", executor=second)
    this.ended = [first.number]
    this.run("def other(): return 1")
    assert this.call("other()", executor=second) == 1
    gc.collect()
    assert finalised == []


# -- states


def test_a_call_of_an_older_state_sees_the_older_value(pair):
    """A retried call; the newer value comes back with the next."""
    this = pair(COUNTS)
    older = this.submit("get_scale()")
    this.run("scale = 2")
    newer = this.submit("get_scale()")
    assert [this.finish(call) for call in (newer, older, newer, older)] == [2, 1, 2, 1]


def test_what_a_worker_has_set_survives_going_to_and_fro(pair):
    """Only what differs between the states is bound again."""
    this = pair(COUNTS + "\n    other = 1\n    def get_both(): return scale, other\n")
    older = this.submit("get_both()")
    this.run("other = 2")
    newer = this.submit("get_both()")
    this.finish(older)
    this.call("set_scale(7)")
    assert [this.finish(call) for call in (newer, older, newer)] == [(7, 2), (7, 1), (7, 2)]


def test_what_an_older_state_does_not_name_stays(pair):
    """And is not asked for again."""
    this = pair(COUNTS + "\n    other = 1\n    def get_other(): return other\n")
    older = this.submit("get_scale()")
    newer = this.submit("get_other()")
    this.finish(newer)
    this.call("(lambda: globals().update(other=5))()")
    assert [this.finish(call) for call in (older, newer)] == [1, 5]


def test_versions_that_no_call_needs_are_forgotten(pair):
    """With the values that they hold."""
    this = pair("class Thing:\n    pass\nthing = Thing()\ndef get():\n    return type(thing).__name__\n")
    call = this.submit("get()")
    number = call.state.number
    thing = weakref.ref(this.get("thing"))
    this.run("thing = Thing()")
    this.call("get()")
    gc.collect()
    assert this.registry.find(number) is call.state
    assert this.finish(call) == "Thing"
    del call
    this.run("thing = Thing()")
    this.call("get()")
    gc.collect()
    assert this.registry.find(number) is None
    assert thing() is None


def test_a_worker_in_a_state_that_is_forgotten_is_told_everything(pair):
    """And keeps what it has set itself."""
    this = pair(COUNTS + "\n    other = 1\n    def get_both(): return scale, other\n")
    assert this.call("get_both()") == (1, 1)
    this.call("set_scale(7)")
    for value in (2, 3, 4):
        this.run(f"other = {value}")
        this.submit("get_both()")
    gc.collect()
    assert this.call("get_both()") == (7, 4)


def test_settings_of_calls_survive_a_forgotten_state(pair):
    """The surroundings, warning filters included, are told again, but taken on only once."""
    text = """
        import os, sys, warnings
        other = 1
        def ignore():
            warnings.simplefilter("ignore", ResourceWarning)
            sys.setrecursionlimit(3210)
            os.environ["SET_BY_A_CALL"] = "1"
        def look():
            filters = [category for action, _, category, *_ in warnings.filters if action == "ignore"]
            return ResourceWarning in filters[:1], sys.getrecursionlimit(), os.environ.get("SET_BY_A_CALL"), other
    """
    this = pair(text)
    this.call("look()")
    this.call("ignore()")
    for value in (2, 3):
        this.run(f"other = {value}")
        this.submit("look()")
    gc.collect()
    assert this.call("look()") == (True, 3210, "1", 3)


def test_a_failure_on_the_way_is_made_good_by_the_next_call(pair, monkeypatch):
    """A state is not taken for reached if it was not."""
    this = pair("value = 1\ndef get(): return value\n")
    assert this.call("get()") == 1
    this.run("value = 2")
    call = this.submit("get()")
    fetch = this._fetch

    def fail(*_):
        raise LookupError("lost")

    monkeypatch.setattr(this, "_fetch", fail)
    with pytest.raises(LookupError, match="lost"):
        this.finish(call)
    monkeypatch.setattr(this, "_fetch", fetch)
    assert this.finish(call) == 2


# -- what is asked for


def test_nothing_is_asked_for_twice(pair):
    """A state is asked for once by each worker; then calls cost nothing."""
    this = pair(COUNTS)
    for worker in (1, 2):
        for _ in range(3):
            this.call("get_scale()", worker=worker)
    assert [(each.worker, each.names) for each in this.fetched] == [(1, None), (2, None)]


def test_only_the_difference_is_told(pair):
    """A large table does not come again because a number has changed."""
    this = pair("table = list(range(50_000))\nscale = 1\ndef get(): return scale, len(table)\n")
    this.run("table = list(range(60_000))")
    assert this.call("get()") == (1, 60_000)
    before = len(this.fetched)
    assert sum(each.size > 50_000 for each in this.fetched) == 1
    this.run("scale = 2")
    assert this.call("get()") == (2, 60_000)
    assert [each.names for each in this.fetched[before:]] == [None]
    assert this.fetched[-1].size < 2_000


@pytest.mark.parametrize("call", ["get()", "(lambda: total(table))()", "list(map(total, [table]))", "total(table)"])
def test_a_large_global_goes_to_each_worker_once(pair, call):
    """However often it is used; an argument goes with its call."""
    text = """
        import numpy
        table = numpy.arange(100_000.0)
        def total(array): return float(array.sum())
        def get(): return total(table)
    """
    this = pair(text)
    this.run("table = table + 1")
    for _ in range(3):
        this.call(call)
    assert sum(each.size > 100_000 for each in this.fetched) == (0 if "total(table)" == call or call.startswith("list") else 1)


@OWN
def test_a_large_global_is_not_asked_for_where_the_workers_own_is_equal(pair):
    """Its digest says so."""
    this = pair("import numpy\ntable = numpy.arange(100_000.0)\ndef get():\n    table[0] += 1\n    return table[0]\n")
    assert [this.call("get()") for _ in range(3)] == [1.0, 2.0, 3.0]
    assert [each.names for each in this.fetched] == [None]


@OWN
def test_a_large_global_is_asked_for_where_it_differs(pair):
    """By each worker once."""
    this = pair("import os, numpy\ntable = numpy.arange(100_000.0)\ndef get(): return table[0]\n")
    this.run("table[0] = 5")
    assert [this.call("get()", worker=worker) for worker in (1, 2, 1)] == [5.0, 5.0, 5.0]
    assert [each.worker for each in this.fetched if each.names == {"table"}] == [1, 2]


# -- a worker's own


SAME = {
    "a sentinel": ("missing = object()\ndef f(x=missing): return x is missing\n", "f()"),
    "a sentinel in a class": (
        "missing = object()\nclass A:\n    none = missing\n    def f(self, x=missing): return x is missing is A.none\n",
        "A().f()",
    ),
    "an alias": ("a = []\nb = a\ndef f():\n    a.append(1)\n    return a is b\n", "f()"),
    "an alias in a container": ("a = {}\nb = [a, (a,)]\ndef f():\n    a[1] = 2\n    return b[0] is a and b[1][0] is a\n", "f()"),
    "an alias of a function": ("def g(): pass\nh = g\ndef f(): return g is h\n", "f()"),
    "an alias of a class": ("class A: pass\nB = A\ndef f(): return A is B and isinstance(A(), B)\n", "f()"),
    "a default": (
        "cache = {}\ndef f(x=1, *, found=cache):\n    found[x] = 1\n    return cache == {1: 1} and found is cache\n",
        "f()",
    ),
    "a closure": (
        """
        state = []
        def make():
            held = state
            def inner():
                held.append(1)
                return held is state
            return inner
        g = make()
        def f(): return g()
    """,
        "f()",
    ),
    "a class attribute": ("rows = []\nclass A:\n    all = rows\ndef f():\n    A.all.append(1)\n    return rows is A.all\n", "f()"),
    "an instance in a registry": (
        """
        class A:
            made = []
            def __init__(self): A.made.append(self)
        a = A()
        def f(): return A.made[0] is a and len(A.made) == 1
    """,
        "f()",
    ),
    "a decorated function": (
        """
        import functools
        def noted(g):
            @functools.wraps(g)
            def inner(*a):
                inner.count += 1
                return g(*a)
            inner.count = 0
            return inner
        @noted
        def h(x): return x
        def f():
            h(1)
            return h.count == 1
    """,
        "f()",
    ),
    "a registered function": (
        "table = {}\ndef put(g):\n    table[g.__name__] = g\n    return g\n@put\ndef h(): pass\ndef f(): return table['h'] is h\n",
        "f()",
    ),
    "an enum": (
        """
        import enum
        class Color(enum.Enum):
            RED = 1
        favourite = Color.RED
        def f(): return favourite is Color.RED is Color(1)
    """,
        "f()",
    ),
}
SAME = {case: (dedent(text), dedent(other)) for case, (text, other) in SAME.items()}


@pytest.mark.parametrize("case", SAME)
def test_identity_is_kept(pair, case):
    """Between globals, defaults, closures, attributes of classes."""
    text, call = SAME[case]
    this = pair(text)
    assert this.call(call) is True
    assert this.fetched[0].worker == 1


@pytest.mark.parametrize("case", SAME)
def test_identity_is_kept_after_something_else_was_bound_again(pair, case):
    """Another state brings nothing that is there."""
    text, call = SAME[case]
    this = pair(text + "other = 1\ndef get_other(): return other\n")
    this.call("get_other()")
    this.run("other = 2")
    assert this.call("get_other()") == 2
    assert this.call(call) is True


@OWN
@pytest.mark.parametrize("case", SAME)
def test_what_is_equal_is_the_workers_own(pair, case):
    """Nothing is asked for but the state."""
    text, call = SAME[case]
    this = pair(text)
    this.call(call)
    assert [each.names for each in this.fetched] == [None]


@OWN
def test_what_differs_is_replaced_attribute_by_attribute(pair):
    """The class stays the worker's own, with what it has registered."""
    text = """
        made = []
        class Config:
            level = 1
            name = "same"
            def method(self): return "old"
        config = Config()
        made.append(config)
        def f(): return Config.level, Config.name, config.method(), isinstance(config, Config), made[0] is config
    """
    this = pair(text)
    this.run("Config.level = 5")
    assert this.call("f()") == (5, "same", "old", True, True)
    this.run("Config.method = lambda self: 'new'")
    assert this.call("f()") == (5, "same", "new", True, True)
    this.run("del Config.name\nConfig.name2 = 1")
    with pytest.raises(AttributeError, match="name"):
        this.call("f()")


def test_attributes_of_classes_and_functions_are_globals(pair):
    """What main() sets before the first call is seen, what it binds again, deletes, or a call sets, too."""
    text = """
        class Config:
            level = 1
        def counted():
            counted.calls = getattr(counted, "calls", 0) + 1
            return Config.level, counted.calls
        def set_level(value): Config.level = value
        def with_default(x=1, *, y=2): return x, y
    """
    this = pair(text)
    this.run("Config.level = 5\ncounted.calls = 10\nwith_default.__defaults__ = (3,)")
    assert [this.call("counted()"), this.call("counted()")] == [(5, 11), (5, 12)]
    assert this.call("with_default()") == (3, 2)
    this.call("set_level(7)")
    assert this.call("counted()") == (7, 13)
    this.run("Config.level = 8\nwith_default.__kwdefaults__ = {'y': 4}")
    assert this.call("counted()") == (8, 14)
    assert this.call("with_default()") == (3, 4)
    this.run("del counted.calls")
    assert this.call("counted()") == (8, 1)


def test_an_attribute_that_a_call_sets_first_wins(pair):
    """As a global that an initializer sets."""
    this = pair("class Config:\n    level = 1\ndef set_level(value): Config.level = value\ndef get(): return Config.level\n")
    this.call("set_level(7)")
    assert this.call("get()") == 7
    this.run("Config.level = 1000")
    assert this.call("get()") == 1000


def test_a_function_that_is_defined_again_is_the_new_one_in_the_next_call(pair):
    """As in a notebook; also where another calls it."""
    this = pair("def f(): return 'old'\ndef g(): return f()\nclass A:\n    def f(self): return 'old'\ndef h(): return A().f()\n")
    assert [this.call(call) for call in ("f()", "g()", "h()")] == ["old", "old", "old"]
    this.run("def f(): return 'new'\nclass A:\n    def f(self): return 'new'\n")
    assert [this.call(call) for call in ("f()", "g()", "h()")] == ["new", "new", "new"]


def test_code_that_is_replaced_is_the_new_one_in_the_next_call(pair):
    """`f.__code__ = ...`, as autoreload does."""
    this = pair("def f(): return 'old'\ndef g(): return 'new'\n")
    assert this.call("f()") == "old"
    this.run("f.__code__ = g.__code__")
    assert this.call("f()") == "new"


def test_what_new_code_uses_is_there(pair):
    """Names that it reads and the old did not."""
    this = pair("value = 1\ndef f(): return 'old'\ndef g(): return value\n")
    assert this.call("f()") == "old"
    this.run("f.__code__ = g.__code__\nvalue = 2")
    assert this.call("f()") == 2


def test_a_name_that_is_new_is_there(pair):
    """In the state of the first call that needs it, and no value is lost."""
    this = pair("def f(): return 1\n")
    assert this.call("f()") == 1
    this.run("extra = 5\ndef f(): return extra")
    assert this.call("f()") == 5
    this.run("def get(): return extra, late\nlate = 'late'")
    assert this.call("get()") == (5, "late")


def test_a_name_that_was_not_there_at_first_is_found_later(pair):
    """A call fails as the script would, and works once the script has the name."""
    this = pair("def f(): return late\n")
    with pytest.raises(NameError, match="late"):
        this.call("f()")
    this.run("late = 3")
    assert this.call("f()") == 3


# -- circles


CIRCLES = {
    "two instances": (
        "class A: pass\na = A()\nb = A()\na.other = b\nb.other = a\ndef f(): return a.other is b and b.other is a\n",
        "a = A()\nb = A()\na.other = b\nb.other = a",
    ),
    "a base class with a list of its subclasses": (
        """
        class Base:
            known = []
            def __init_subclass__(cls): Base.known.append(cls)
        class One(Base): pass
        class Two(Base): pass
        def f(): return Base.known == [One, Two] and issubclass(One, Base) and Base.known[1] is Two
    """,
        "class One(Base): pass\nclass Two(Base): pass\nBase.known = [One, Two]",
    ),
    "two containers": (
        "a = []\nb = {'a': a}\na.append(b)\ndef f(): return a[0] is b and b['a'] is a\n",
        "a = []\nb = {'a': a}\na.append(b)",
    ),
    "three of them": (
        "a, b, c = [], [], []\na.append(b); b.append(c); c.append(a)\ndef f(): return a[0] is b and b[0] is c and c[0] is a\n",
        "a, b, c = [], [], []\na.append(b); b.append(c); c.append(a)",
    ),
    "itself": ("a = []\na.append(a)\ndef f(): return a[0] is a\n", "a = []\na.append(a)"),
    "an instance and a registry": (
        """
        registry = {}
        class A:
            def __init__(self, name):
                self.registry = registry
                registry[name] = self
        a = A('a')
        b = A('b')
        def f(): return a.registry is registry and registry['b'] is b and b.registry['a'] is a
    """,
        "registry = {}\na = A('a')\nb = A('b')",
    ),
    "a class attribute": (
        "class A: pass\na = A()\nA.one = a\na.kind = A\ndef f(): return A.one is a and a.kind is A and type(a) is A\n",
        "class A: pass\na = A()\nA.one = a\na.kind = A",
    ),
    "a class and its instance": (
        "class A: pass\na = A()\nA.one = a\ndef f(): return A.one is a and type(a) is A\n",
        "class A: pass\na = A()\nA.one = a",
    ),
    "an instance and its class": (
        "a = A = None\nclass A: pass\na = A()\nA.one = a\ndef f(): return type(a) is A and A.one is a\n",
        "class A: pass\na = A()\nA.one = a",
    ),
    "two functions": (
        """
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        def f(): return even(10) and odd(7)
    """,
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)",
    ),
    "a function with an attribute": (
        "def g(): return g.me\ng.me = g\ng.table = table = [g]\ndef f(): return g() is g and g.table is table and table[0] is g\n",
        "def g(): return g.me\ng.me = g\ng.table = table = [g]",
    ),
    "a dataclass": (
        """
        import dataclasses
        @dataclasses.dataclass
        class Node:
            parent: object = None
            children: list = dataclasses.field(default_factory=list)
        root = Node()
        leaf = Node(root)
        root.children.append(leaf)
        def f(): return root.children[0] is leaf and leaf.parent is root
    """,
        "root = Node()\nleaf = Node(root)\nroot.children.append(leaf)",
    ),
}
CIRCLES = {case: (dedent(text), dedent(other)) for case, (text, other) in CIRCLES.items()}


@pytest.mark.parametrize("case", CIRCLES)
def test_what_refers_to_each_other_still_does(pair, case):
    """At first, after it was bound again, and in a worker that comes later."""
    text, again = CIRCLES[case]
    this = pair(text)
    assert this.call("f()") is True
    this.run(again)
    assert this.call("f()") is True
    assert this.call("f()", worker=2) is True


@pytest.mark.parametrize("case", CIRCLES)
def test_what_main_has_bound_again_before_the_first_call_refers_to_each_other(pair, case):
    """The worker's own differs then, or not."""
    text, again = CIRCLES[case]
    this = pair(text)
    this.run(again)
    assert this.call("f()") is True


LATE = """
    shared = [1]
    holder = {"x": shared}
    class Config:
        rows = shared
    def with_default(x=shared): return x
    def f(): return holder["x"], Config.rows, with_default(), shared
"""


@pytest.mark.parametrize("worker", [1, 2])
def test_what_refers_to_an_older_value_still_has_that_one(pair, worker):
    """Also in a worker whose first call comes after the name was bound again."""
    this = pair(LATE)
    assert this.call("f()") == ([1], [1], [1], [1])
    this.run("shared = [2]")
    assert this.call("f()", worker=worker) == ([1], [1], [1], [2])


@pytest.mark.parametrize("worker", [1, 2])
def test_an_instance_of_an_older_class_still_is_one(pair, worker):
    """As in a notebook, where a cell defines the class again."""
    this = pair("class A:\n    def who(self): return 'old'\na = A()\ndef f(): return a.who(), A().who(), isinstance(a, A)\n")
    assert this.call("f()") == ("old", "old", True)
    this.run("class A:\n    def who(self): return 'new'\n")
    assert this.call("f()", worker=worker) == ("old", "new", False)


@pytest.mark.parametrize("worker", [1, 2])
def test_a_circle_may_come_later(pair, worker):
    """The class is known already, and referred to another thing under that name."""
    this = pair("x = []\nclass A:\n    one = x\ndef f(): return type(x) is A, A.one is x, A.one == []\n")
    assert this.call("f()") == (False, True, True)
    this.run("x = A()")
    assert this.call("f()", worker=worker) == (True, False, True)


PARTLY = {
    "an instance that its class has": (
        "class A: pass\na = A()\nA.one = a\ndef f(): return type(a) is A and A.one is a and a.x == 5\n",
        "a.x = 5",
    ),
    "one of two instances": (
        """
        class A: pass
        a = A()
        b = A()
        a.other = b
        b.other = a
        def f(): return a.other is b and b.other is a and type(a) is A and a.x == 5
    """,
        "a.x = 5",
    ),
    "a subclass that its base class has": (
        """
        class Base:
            known = []
            def __init_subclass__(cls): Base.known.append(cls)
        class One(Base): level = 1
        def f(): return Base.known == [One] and issubclass(One, Base) and One.level == 5
    """,
        "class One(Base):\n    level = 5\n    def method(self): pass\nBase.known = [One]",
    ),
    "a table that a function has": (
        "def g(): return g.table\ng.table = table = [g]\ndef f(): return g() is table and table[0] is g and table[1] == 5\n",
        "table.append(5)",
    ),
    "an alias in a container": ("a = []\nb = [a]\ndef f(): return b[0] is a and a == [5]\n", "a.append(5)"),
    "a default": ("a = []\ndef g(x=a): return x\ndef f(): return g() is a and a == [5]\n", "a.append(5)"),
    "a class attribute": ("a = []\nclass A:\n    x = a\ndef f(): return A.x is a and a == [5]\n", "a.append(5)"),
    "a list of two": ("a = []\nb = [a]\na.append(b)\ndef f(): return a[0] is b and b[0] is a and a[1] == 5\n", "a.append(5)"),
}
PARTLY = {case: (dedent(text), dedent(other)) for case, (text, other) in PARTLY.items()}


for _case, _other in (("one of two instances", "b.x = 5"), ("a list of two", "b.append(5)")):
    PARTLY[f"{_case}, the other one"] = PARTLY[_case][0].replace("a.x == 5", "b.x == 5").replace("a[1] == 5", "b[1] == 5"), _other


@pytest.mark.parametrize("case", PARTLY)
def test_what_refers_to_a_part_that_differs_has_that_part_in_the_worker(pair, case):
    """main() has changed a part of it before the first call."""
    text, change = PARTLY[case]
    this = pair(text)
    this.run(change)
    assert this.call("f()") is True


@pytest.mark.parametrize("case", CIRCLES)
def test_what_only_main_defines_refers_to_each_other(pair, case):
    """Workers have nothing of it, where they have run the top level."""
    text, again = CIRCLES[case]
    this = pair("")
    this.run(text)
    assert this.call("f()") is True
    this.run(again)
    assert this.call("f()") is True


# -- what cannot be had


UNPICKLABLE = """
        class Held:
            def __reduce__(self): raise TypeError('cannot pickle this')
        held = Held()
        def f(): return type(held).__name__
    """


@OWN
def test_what_cannot_be_pickled_is_the_workers_own(pair):
    """It has one from the top level."""
    assert pair(UNPICKLABLE).call("f()") == "Held"


@ONLY_NOTHING
def test_what_cannot_be_pickled_is_named_where_it_is_missing(pair):
    """With the way out; a call that does not need it works."""
    this = pair(dedent(UNPICKLABLE) + "def g(): return 1\n")
    with pytest.raises(
        NameError, match="global 'held' is not in this worker: it cannot be pickled .TypeError: cannot pickle this.*initializer"
    ):
        this.call("f()")
    assert this.call("g()") == 1


@ONLY_NOTHING
def test_what_cannot_be_pickled_may_be_made_by_an_initializer(pair):
    """Then calls find that."""
    this = pair(dedent(UNPICKLABLE) + "def make():\n    global held\n    held = Held()\n")
    this.call("make()")
    assert this.call("f()") == "Held"


def test_what_cannot_be_pickled_any_more_is_missing(pair):
    """The script has bound the name to it: the old value would be silently wrong."""
    this = pair(UNPICKLABLE.replace("held = Held()", "held = 1"))
    assert this.call("f()") == "int"
    this.run("held = Held()")
    with pytest.raises(NameError, match="held.*cannot be pickled"):
        this.call("f()")
    this.run("held = 'text'")
    assert this.call("f()") == "str"


def test_what_cannot_be_rebuilt_is_named(pair):
    """It was pickled well."""
    this = pair(
        """
        def fail(): raise ValueError('not here')
        class Held:
            def __reduce__(self): return fail, ()
        held = 1
        def f(): return held
    """
    )
    assert this.call("f()") == 1
    this.run("held = Held()")
    with pytest.raises(
        NameError, match="global 'held' is not in this worker: it cannot be rebuilt from its pickle .ValueError: not here"
    ):
        this.call("f()")


def test_other_name_errors_are_left_alone(pair):
    """And other errors."""
    this = pair("def f(): return unheard_of\ndef g(): raise KeyError('held')\n")
    with pytest.raises(NameError, match="^name 'unheard_of' is not defined$"):
        this.call("f()")
    with pytest.raises(KeyError, match="held"):
        this.call("g()")


# -- results


RESULTS = """
    import enum
    class Thing:
        level = 1
        def __init__(self, x): self.x = x
    class Color(enum.Enum):
        RED = 1
    def function(): pass
    class Outer:
        class Inner: pass
    def make(x): return Thing(x)
    def names(): return Thing, Color.RED, function, Outer.Inner
    def raising(): raise Error("text")
    class Error(Exception): pass
    def same(x): return x
    def is_mine(x): return type(x) is Thing
"""


def test_results_are_of_the_scripts_own_classes(pair):
    """Identity included."""
    this = pair(RESULTS)
    made = this.call("make(3)")
    assert type(made) is this.get("Thing")
    assert made.x == 3
    assert all(a is b for a, b in zip(this.call("names()"), this.get("names()"), strict=True))
    with pytest.raises(this.get("Error"), match="text"):
        this.call("raising()")


def test_arguments_are_of_the_workers_own_classes(pair):
    """And what goes there and back is the script's."""
    this = pair(RESULTS)
    assert this.call("is_mine(Thing(1))") is True
    for name in ("Thing", "Color.RED", "function", "Outer.Inner"):
        assert this.call(f"same({name})") is this.get(name)


@pytest.mark.parametrize("name", ["UserId", "T", "P", "cached"])
def test_whatever_knows_its_name_comes_back_as_itself(pair, name):
    """New types, type variables, caches."""
    text = """
        import functools, typing
        UserId = typing.NewType("UserId", int)
        T = typing.TypeVar("T")
        P = typing.ParamSpec("P")
        @functools.cache
        def cached(): pass
        def named(name): return globals()[name]
        def same(x): return x
    """
    this = pair(text)
    assert this.call(f"named({name!r})") is this.get(name)
    assert this.call(f"same({name})") is this.get(name)


def test_a_result_changes_no_class_of_the_script(pair):
    """Nor do arguments those of the worker."""
    this = pair(
        RESULTS
        + "    def change(x):\n        Thing.level = 2\n        return Thing(x)\n    def level(x): return Thing.level, x.level\n"
    )
    assert this.call("change(1)").level == 1
    assert this.get("Thing.level") == 1
    assert this.call("level(Thing(1))") == (2, 2)


def test_local_classes_keep_their_identity_both_ways(pair):
    """A class that a function has made comes back as itself, and two instances have the same."""
    this = pair(
        """
        def local():
            class Local:
                def __init__(self, x): self.x = x
            return Local
        Local = local()
        del local
        Local.__qualname__ = 'x.<locals>.Local'
        def same(*x): return x
    """
    )
    kind = this.get("Local")
    first, second = this.call("same(Local(1), Local(2))")
    assert type(first) is type(second) is kind
    assert this.call("same(Local)")[0] is kind
    kind.level = 5
    assert type(this.call("same(Local(3))")[0]) is kind
    assert kind.level == 5


def test_a_local_class_is_not_changed_by_a_result(pair):
    """What a call sets there stays there."""
    text = """
        def local():
            class Local:
                level = 1
            return Local
        kept = [local()]
        def change(x):
            type(x).level = 2
            return x, type(x).level
    """
    this = pair(text)
    found, level = this.call("change(kept[0]())")
    assert (type(found), level, found.level) == (this.get("kept[0]"), 2, 1)


def test_a_class_that_only_a_call_has_made_comes_by_value(pair):
    """Twice the same class."""
    this = pair(
        """
        def make():
            class Local:
                level = 3
            globals().setdefault('kept', Local)
            return kept()
        kept = None
        del kept
    """
    )
    first, second = this.call("make()"), this.call("make()")
    assert type(first) is type(second)
    assert first.level == 3


def test_a_class_that_only_the_worker_has_comes_by_value(pair):
    """It has a name there that the script does not have."""
    text = """
        def make():
            exec("class Own:\\n    level = 4\\ndef own(): return 4", globals())
            return Own(), own
    """
    this = pair(text)
    made, function = this.call("make()")
    assert made.level == 4
    assert type(made).__name__ == "Own"
    assert function() == 4
    assert not hasattr(this.main, "Own")


def test_pickle_inside_a_call_finds_the_scripts_names(pair):
    """What it writes, the script can read, and the other way round."""
    this = pair(
        RESULTS
        + """
    import pickle
    def dump(): return pickle.dumps([Thing(2), function, Color.RED])
    def load(data): return pickle.loads(data)
    """
    )
    import pickle

    thing, function, red = pickle.loads(this.call("dump()"))
    assert type(thing) is this.get("Thing")
    assert function is this.get("function")
    assert red is this.get("Color.RED")
    this.run("data = dump()")
    assert this.call("load(data)")[1] is this.get("function")


@ONLY_NOTHING
def test_what_only_pickle_names_is_there_from_the_first_call_on(pair):
    """All functions and classes are: it cannot be seen which of them a pickle names."""
    this = pair(RESULTS)
    this.call("same(1)")
    assert this.inside("[name for name in ('Thing', 'Color', 'function', 'Outer') if name not in globals()]") == []


@OWN
def test_a_function_whose_closure_cannot_be_pickled_is_the_workers_own(pair):
    """A decorator holds a connection, for example."""
    this = pair(
        """
        import functools
        class Connection:
            def __reduce__(self): raise ValueError("own")
        def connected(function):
            connection = Connection()
            @functools.wraps(function)
            def wrapper(): return function(), type(connection).__name__
            return wrapper
        @connected
        def f(): return 1
    """
    )
    assert this.call("f()") == (1, "Connection")

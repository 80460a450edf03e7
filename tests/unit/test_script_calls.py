"""Which function a call runs: the one that was submitted, whatever its name means by the time that the call runs."""

import pytest

SCRIPT = """
    import functools
    def f(x): return "old", x
    def g(x): return "other", x
    class Model:
        def f(self): return "old method"
        @staticmethod
        def s(x): return "old static", x
        class Part:
            @staticmethod
            def s(x): return "old part", x
    def wraps(function):
        def inner(x): return function(x)
        return inner
    wrapped = [wraps(f)]
    filled = [functools.partial(f, bytes(20_000))]
"""
NEW = 'def f(x): return "new", x\n'


def in_turn(items, act, at):
    """Yield items, and do something before one of them."""
    for number, item in enumerate(items):
        if number == at:
            act()
        yield item


# -- map


@pytest.mark.parametrize("at", [0, 2, 3])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_each_call_of_a_map_runs_the_function_that_map_was_given(pair, at, chunksize):
    """Though what it iterates over binds the function's name to another, before the first call or in between."""
    this = pair(SCRIPT)
    calls = this.map("f", in_turn(range(4), lambda: this.run(NEW), at), chunksize=chunksize)
    found = [this.finish(call) for call in calls]
    if chunksize > 1:
        found = [result for chunk in found for result in chunk]
    assert found == [("old", number) for number in range(4)]
    assert this.call("f(5)") == ("new", 5)


def test_calls_of_a_map_find_their_function_in_any_order(pair):
    """In a worker that has run newer calls already, and in one that comes later."""
    this = pair(SCRIPT)
    calls = this.map("f", in_turn(range(4), lambda: this.run(NEW), 2))
    newer = this.submit("f(5)")
    assert this.finish(newer) == ("new", 5)
    assert [this.finish(call) for call in reversed(calls)] == [("old", number) for number in (3, 2, 1, 0)]
    assert [this.finish(call, worker=2) for call in (*calls, newer)] == [*(("old", number) for number in range(4)), ("new", 5)]


def test_a_map_whose_functions_name_is_deleted_runs_it_all_the_same(pair):
    """It goes by value from then on."""
    this = pair(SCRIPT)
    calls = this.map("f", in_turn(range(4), lambda: this.run("del f"), 2))
    assert [this.finish(call) for call in calls] == [("old", number) for number in range(4)]


# -- submit


def submitted(this, call, worker=1):
    """Submit a call, and have it run; return what it names, and what came of it."""
    made = this.submit(call)
    return made.called, this.finish(made, worker)


def test_a_function_without_its_name_goes_by_value_and_by_name_again_once_it_has_it(pair):
    """What has the name goes by it; each is called when its call runs, in any worker and order."""
    this = pair(SCRIPT)
    this.run("kept = [f]")
    calls = [(this.submit("f(1)"), "f", "old")]
    for _ in range(4):
        calls.append((this.submit("f(1)"), "f", "old"))
        this.run(NEW)
        calls += [(this.submit("f(1)"), "f", "new"), (this.submit("kept[0](1)"), None, "old"), (this.submit("f(1)"), "f", "new")]
        this.run("f = kept[0]")
        calls.append((this.submit("kept[0](1)"), "f", "old"))
    assert [call.called if isinstance(call.called, str) else None for call, _, _ in calls] == [name for _, name, _ in calls]
    for some, worker in ((calls, 1), (calls[::-1], 1), (calls[::-1], 2)):
        assert [this.finish(call, worker)[0] for call, _, _ in some] == [result for _, _, result in some]


def test_a_function_without_its_name_does_not_take_that_of_another(pair):
    """It is called like a function that calls have named since."""
    this = pair(SCRIPT)
    this.run("kept = [f]")
    assert submitted(this, "f(1)") == ("f", ("old", 1))
    this.run(NEW)
    assert submitted(this, "f(1)") == ("f", ("new", 1))
    for worker in (1, 2):
        called, found = submitted(this, "kept[0](1)", worker)
        assert not isinstance(called, str)
        assert found == ("old", 1)


@pytest.mark.parametrize("change", ["f.__code__ = g.__code__", "f.__defaults__ = (5,)", "f.note = 1", "other = 1"])
def test_a_function_that_only_changes_keeps_its_name(pair, change):
    """The name is looked for again, and found."""
    this = pair(SCRIPT)
    assert submitted(this, "f(1)")[0] == "f"
    this.run(change)
    assert submitted(this, "f(1)") == ("f", this.get("f(1)"))


def test_a_function_that_gets_another_name_and_is_called_so_goes_by_that(pair):
    """`f` is what `g` was, and says so."""
    this = pair(SCRIPT)
    assert submitted(this, "f(1)")[0] == "f"
    this.run('f, g = g, f\nf.__qualname__ = f.__name__ = "f"\ng.__qualname__ = g.__name__ = "g"')
    assert submitted(this, "f(1)") == ("f", ("other", 1))
    assert submitted(this, "g(1)") == ("g", ("old", 1))


@pytest.mark.parametrize(("name", "call"), [("Model.s", "Model.s(1)"), ("Model.f", "Model.f(None)")])
@pytest.mark.parametrize(
    "again", ["Model.{0} = g", "del Model.{0}", "Model = None", "class Model:\n    def f(self): pass\n    s = f"]
)
def test_a_function_of_a_class_goes_by_its_name_as_long_as_it_has_it(pair, name, call, again):
    """Whether the class's attribute is bound anew, or the class."""
    this = pair(SCRIPT)
    this.run(f"kept = [{name}, Model]")
    expected = this.get(call)
    by_name = this.submit(call)
    assert by_name.called == name
    attribute = name.partition(".")[2]
    this.run(again.format(attribute))
    call = call.replace(name, "kept[0]")
    by_value = this.submit(call)
    assert not isinstance(by_value.called, str)
    this.run(f"Model = kept[1]\nModel.{attribute} = " + ("staticmethod(kept[0])" if attribute == "s" else "kept[0]"))
    again_by_name = this.submit(call)
    assert again_by_name.called == name
    for worker in (1, 2):
        assert [this.finish(made, worker) for made in (by_name, by_value, again_by_name, by_value)] == [expected] * 4


def test_what_a_classs_attribute_is_bound_to_is_called_by_the_next_call(pair):
    """By the class's name and the attribute's, as the script would."""
    this = pair(SCRIPT + "\n    def calls(): return Model.s(1), Model().f()\n")
    assert (this.call("Model.s(1)"), this.call("calls()")) == (("old static", 1), (("old static", 1), "old method"))
    this.run("Model.s = staticmethod(g)\nModel.f = lambda self: 'new method'")
    assert (this.call("Model.s(1)"), this.call("calls()")) == (("other", 1), (("other", 1), "new method"))


# -- functions that a map sends once, and what they refer to by name

REFER = (
    SCRIPT
    + """
    large = bytes(20_000)
    class Own:
        def __init__(self, held): self.held, self.data = held, large
        def __call__(self, x): return self.held(x)
    def made(kind):
        def inner(x): return kind.s(x)
        return inner
    def reads():
        return lambda x: f(x)
    maps = {
        "partial": functools.partial(f, *[]),
        "large partial": functools.partial(functools.partial(lambda function, _data, x: function(x), f), large),
        "closure": wraps(f),
        "closure over a class": made(Model),
        "default": lambda x, function=f: function(x),
        "callable object": Own(f),
        "method": functools.partial(Model.s),
    }
"""
)
NEW_NAMES = (
    NEW
    + """
class Model:
    @staticmethod
    def s(x): return "new static", x
class Own:
    def __call__(self, x): return "new own", x
"""
)


@pytest.mark.parametrize("again", [NEW_NAMES, "del f, Model, Own"], ids=["bound anew", "deleted"])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize(
    "what", ["partial", "large partial", "closure", "closure over a class", "default", "callable object", "method"]
)
def test_what_a_map_calls_keeps_what_it_refers_to(pair, what, chunksize, at, again):
    """Though what it iterates over binds that name anew: as with submit, each call has the objects that it was submitted with."""
    this = pair(REFER)
    kind = "old static" if "class" in what or what == "method" else "old"
    calls = this.map(f"maps[{what!r}]", in_turn(range(6), lambda: this.run(again), at), chunksize=chunksize)
    for worker, order in ((1, calls), (1, calls[::-1]), (2, calls[::-1])):
        found = [this.finish(call, worker) for call in order]
        if chunksize > 1:
            found = [result for chunk in found for result in chunk]
        assert sorted(found) == [(kind, number) for number in range(6)]


def test_a_map_sends_its_function_once_as_long_as_its_names_hold(pair):
    """Else with each call. Values that it reads as globals do not matter, nor does a name that is what it was again."""
    this = pair(REFER)
    this.run("kept, count = f, 0\ndef step(): global count; count += 1")
    acts = [None, "step()", NEW_NAMES, None, "f = kept", "count = 7"]
    calls = this.map("maps['large partial']", (this.run(act) or 1 if act else 1 for act in acts))
    assert [type(call.called).__name__ for call in calls] == [*["Function"] * 2, *["NoneType"] * 2, *["Function"] * 2]
    assert [this.finish(call) for call in calls] == [("old", 1)] * 6


def test_a_closure_that_reads_a_global_function_has_the_newest(pair):
    """Its code looks the name up when it runs, as in the script."""
    this = pair(REFER)
    this.run("reader = reads()")
    calls = this.map("reader", in_turn(range(4), lambda: this.run(NEW), 2))
    assert [this.finish(call)[0] for call in calls] == ["old", "old", "new", "new"]


@pytest.mark.parametrize("what", ["partial", "large partial", "closure", "callable object"])
def test_each_submitted_call_keeps_what_it_refers_to(pair, what):
    """Pickled when it is submitted, whether it goes by number or not."""
    this = pair(REFER)
    calls = []
    for number in range(6):
        if number == 3:
            this.run(NEW_NAMES)
        calls.append(this.submit(f"maps[{what!r}](1)"))
    for order, worker in ((calls, 1), (calls[::-1], 2)):
        assert [this.finish(call, worker)[0] for call in order] == ["old"] * 6

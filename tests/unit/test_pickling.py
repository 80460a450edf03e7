"""Objects to bytes: which way they go, and what happens to errors on the way."""

import functools
import inspect
import linecache
import operator
import pickle
import subprocess
import sys
import types
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import mpiexecutor
from mpiexecutor._util import pickling
from mpiexecutor._util.pickling import dumps, is_plain, loads

OUT_OF_BAND = 64 << 10


class Point:
    """Importable, with a method and a property to tell it by."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    def __hash__(self) -> int:
        return self.x

    def double(self) -> int:
        return 2 * self.x


def double(x: int) -> int:
    return 2 * x


class Raises:
    """Cannot be pickled: its own method raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> str | tuple[object, ...]:
        raise self.error


def there_and_back(obj):
    pickled, buffers = dumps(obj)
    return loads(pickled, [bytearray(buffer) for buffer in buffers])


@pytest.fixture
def in_main(monkeypatch):
    """Return a way to run source text as if it were the script's."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)

    def run(source):
        exec(source, main.__dict__)
        return main

    return run


@pytest.fixture
def only_plain(monkeypatch):
    """Make cloudpickle fail the test."""

    def refuse(*_args, **_kwargs):
        pytest.fail("cloudpickle was asked")

    monkeypatch.setattr(cloudpickle, "Pickler", refuse)


@pytest.mark.usefixtures("only_plain")
@pytest.mark.parametrize(
    "obj",
    [None, 5, "text", [1, (2,)], {"a": {3}}, Point(4), double, Point, operator.add],
    ids=lambda obj: getattr(obj, "__name__", type(obj).__name__),
)
def test_what_another_process_can_import_goes_the_plain_way(obj):
    """Plain pickle is four times as fast: values, importable functions and classes, their instances."""
    found = there_and_back(obj)
    assert found == obj
    pickled, buffers = dumps(obj)
    assert b"cloudpickle" not in pickled
    assert buffers == []


def test_lambdas_and_closures_go_by_value():
    """With what they refer to, also inside of something else."""
    factor = 3
    assert there_and_back(lambda x: factor * x)(5) == 15
    assert there_and_back({"f": [functools.partial(lambda x, y: x - y, 10)]})["f"][0](4) == 6

    def nested(x: int) -> int:
        return factor + x

    assert there_and_back(nested)(1) == 4


def test_the_traceback_of_a_function_that_went_by_value_has_its_lines():
    """Also of one that is made inside of it: the file's name goes with the code."""

    def divide(x: int) -> float:
        inverse = lambda: 1 / x  # noqa: E731 - a code inside of a code
        return inverse()

    with pytest.raises(ZeroDivisionError) as raised:
        there_and_back(divide)(0)
    where = [(entry.path, str(entry.statement).strip()) for entry in raised.traceback[-2:]]
    assert where == [
        (Path(__file__), "return inverse()"),
        (Path(__file__), "inverse = lambda: 1 / x  # noqa: E731 - a code inside of a code"),
    ]


def test_the_source_of_a_cell_goes_with_its_functions(monkeypatch):
    """It is in no file; a source that the loading process knows already stays."""
    monkeypatch.setattr(linecache, "cache", {})
    source = "def double(x):\n    return 2 * x\n"
    variables = {}
    exec(compile(source, "<a cell>", "exec"), variables)
    linecache.cache["<a cell>"] = len(source), None, source.splitlines(keepends=True), "<a cell>"
    pickled = dumps(variables["double"])
    assert inspect.getsource(loads(*pickled)) == source
    linecache.cache.clear()
    assert inspect.getsource(loads(*pickled)) == source
    linecache.cache["<a cell>"] = 4, None, ["own\n"], "<a cell>"
    loads(*pickled)
    assert linecache.getlines("<a cell>") == ["own\n"]


def test_the_source_of_a_file_does_not_go_with_its_functions(monkeypatch, tmp_path):
    """The loading process reads the file; one that was not read yet, or a file's entry, is no source."""
    monkeypatch.setattr(linecache, "cache", {"lazy": (lambda: "text",)})
    path = tmp_path / "script.py"
    path.write_text("1\n")
    assert linecache.getlines(str(path)) == ["1\n"]
    assert [pickling.source_of(name) for name in (str(path), "lazy", "never seen")] == [None] * 3


def test_functions_of_main_go_by_value(in_main):
    """The name means something else in a process with another script."""
    main = in_main("base = 40\ndef f(x): return base + x")
    pickled, _ = dumps(main.f)
    del main.f, main.base
    assert loads(pickled)(2) == 42


def test_classes_of_main_go_by_value_with_their_instances(in_main):
    """Also where only an instance is in the message, deep inside."""
    main = in_main("class C:\n    def __init__(self, x): self.x = x\n    def twice(self): return 2 * self.x")
    pickled, _ = dumps([{"c": main.C(21)}])
    del main.C
    assert loads(pickled)[0]["c"].twice() == 42


def test_a_function_of_main_is_rebuilt_in_another_process(in_main, tmp_path):
    """Where __main__ is another script altogether."""
    pickled, _ = dumps(in_main("def f(x): return [x, g(x)]\ndef g(x): return -x").f)
    file = tmp_path / "f.pickle"
    file.write_bytes(pickled)
    script = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))(7))"
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[7, -7]"


def test_modules_that_are_registered_go_by_value():
    """cloudpickle.register_pickle_by_value is obeyed: the user says that the module is not there to be imported."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        pickled, _ = dumps(double)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert b"cloudpickle" in pickled
    assert loads(pickled)(4) == 8


@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: [array, "and", lambda: array]], ids=["plain", "cloudpickle"])
def test_large_buffers_stay_outside_of_the_pickle(wrap):
    """They are given as they lie, not copied, once each."""
    large = np.arange(OUT_OF_BAND, dtype="u1")
    pickled, buffers = dumps(wrap(large))
    assert len(pickled) < OUT_OF_BAND
    assert [np.shares_memory(large, np.frombuffer(buffer, "u1")) for buffer in buffers] == [True]


def test_small_buffers_go_into_the_pickle():
    """They would keep a whole message alive, and cost more by themselves."""
    pickled, buffers = dumps(np.zeros(OUT_OF_BAND - 1, "u1"))
    assert len(pickled) >= OUT_OF_BAND - 1
    assert buffers == []


def test_arrays_that_do_not_lie_together_come_back():
    """Every other element, and columns: copied, as they must be."""
    values = np.arange(1 << 17).reshape(2, -1)
    for message in (values[:, ::2], values.T, values[::-1]):
        assert np.array_equal(there_and_back(message), message)


def test_a_large_array_is_rebuilt_on_its_buffer():
    """No second copy on the way out."""
    large = np.arange(OUT_OF_BAND, dtype="u1")
    pickled, buffers = dumps(large)
    memory = bytearray(buffers[0])
    found = loads(pickled, [memory])
    assert np.array_equal(found, large)
    assert np.shares_memory(found, np.frombuffer(memory, "u1"))


@pytest.mark.parametrize("size", [6, OUT_OF_BAND], ids=["small", "large"])
@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: [array, lambda: array]], ids=["plain", "cloudpickle"])
def test_an_array_that_is_read_only_arrives_writable_in_the_same_order(size, wrap):
    """As a writable one: calls may work in place, and by columns if those lie together."""
    values = np.arange(size * 4.0).reshape(2, size, 2)
    for array in (values, np.asfortranarray(values), values.T, values.transpose(1, 0, 2), values[:, ::2], values.ravel()):
        expected = there_and_back(array)
        assert expected.flags.writeable
        array.flags.writeable = False
        found = there_and_back(wrap(array))
        found = found if isinstance(found, np.ndarray) else found[0]
        assert np.array_equal(found, array)
        assert found.flags.writeable
        assert found.strides == expected.strides
        assert not array.flags.writeable
        array.flags.writeable = True


class NeitherTrueNorFalse:
    def __bool__(self) -> bool:
        raise ValueError("neither")

    __len__ = __bool__


class Tuple(tuple):  # noqa: SLOT001 - as users write it
    pass


class List(list):
    pass


class Dict(dict):
    pass


PLAIN = [None, 5, "text", (), [], {}, (1, [], {}, ()), [(), [{}]], ("a", (1, (2, (3,))))]
NOT_PLAIN = {
    "a dict that is not empty": {1: 2},
    "an array": np.arange(2),
    "an array in a tuple": (1, np.arange(2)),
    "an empty array": (np.arange(0),),
    "neither true nor false": (NeitherTrueNorFalse(),),
    "neither true nor false, further inside": [((), [NeitherTrueNorFalse()])],
    "of a class": (Point(1),),
    "an empty set": (set(),),
    **{f"{kind.__name__}, empty": kind() for kind in (Tuple, List, Dict)},
    **{f"{kind.__name__}, empty, in a tuple": (kind(),) for kind in (Tuple, List, Dict)},
    **{f"{kind.__name__}, empty, in a list": [[kind()]] for kind in (Tuple, List, Dict)},
    "a subclass of int": (type("Int", (int,), {})(0),),
    "many": (0,) * 9,
    "deep": ((((((),),),),),),
}


@pytest.mark.parametrize("obj", PLAIN, ids=repr)
def test_what_is_plain_is_seen_at_once(obj):
    """Without a pickler of our own."""
    assert is_plain(obj)
    assert there_and_back(obj) == obj


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_what_may_need_care_is_not_plain(case):
    """Its truth and its length are not asked for: only its class counts."""
    assert not is_plain(NOT_PLAIN[case])


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [0, [x]]], ids=["alone", "in a tuple", "further inside"])
def test_an_empty_object_of_a_class_of_main_goes_by_value(kind, wrap, in_main):
    """It looks like a plain one, and its class has to go with it."""
    main = in_main(f"class Own({kind}):\n    def level(self): return 5")
    pickled, _ = dumps(wrap(main.Own()))
    del main.Own
    found = loads(pickled)
    while type(found) in (tuple, list):
        found = found[-1]
    assert found.level() == 5
    assert len(found) == 0


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(
    "wrap", [lambda obj: obj, lambda obj: [1, obj], lambda obj: lambda: obj], ids=["alone", "inside", "in a closure"]
)
def test_what_the_objects_own_methods_raise_is_raised(error, wrap):
    """Not a PicklingError in its place: the very exception."""
    with pytest.raises(type(error)) as caught:
        dumps(wrap(Raises(error)))
    assert caught.value is error


def test_what_cannot_be_pickled_at_all_is_an_error():
    """TypeError or PicklingError, as cloudpickle has it; and the next object is none the worse."""
    large = np.zeros(OUT_OF_BAND)
    with pytest.raises((TypeError, pickle.PicklingError)):
        dumps([large, (each for each in ())])
    assert len(dumps(large)[1]) == 1


def test_an_object_that_contains_itself_comes_back():
    """References are kept as they are."""
    ring: list[object] = [1]
    ring.append(ring)
    found = there_and_back(ring)
    assert found[1] is found


def test_an_object_without_an_end_is_an_error():
    """Nested too deep for pickle: RecursionError or PicklingError, not a crash."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((RecursionError, pickle.PicklingError)):
        dumps(deep)


def test_pickling_does_not_import_mpi():
    """A process that only pickles does not start MPI."""
    script = "import sys; from mpiexecutor._util import pickling; pickling.dumps(1); assert 'mpi4py.MPI' not in sys.modules"
    root = str(Path(mpiexecutor.__file__).parents[1])
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {script}"], check=True, timeout=60)

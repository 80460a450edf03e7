"""What is kept, and for how long: arguments until the call is over, results as long as a reference to them exists."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from gates import LIMIT, executor_of, identity, square, until

alive = weakref.WeakSet()  # in each process


class Thing:
    """Every process knows which of its own are alive."""

    def __init__(self, name="thing"):
        self.name = name
        alive.add(self)

    def __setstate__(self, state):
        self.__dict__.update(state)
        alive.add(self)

    def __hash__(self):
        return id(self)

    def fail(self):
        raise Failed(self.name)


class Failed(Exception):
    pass


class FailsToPickle(Thing):
    def __reduce__(self):
        raise ValueError("planned")


def how_many_alive(name):
    return sum(thing.name == name for thing in list(alive))


def name_of(thing):
    return thing.name


def one_with_array(name):
    import numpy as np

    thing = Thing(name)
    thing.array = np.zeros(1 << 18)
    return thing


@pytest.fixture
def workers_free(executor):
    """Return a check that no worker holds a thing of a name: the next call of each that answers is asked."""

    def check(name):
        others = executor.map(how_many_alive, [name] * (10 * executor.num_workers), timeout=LIMIT)
        assert set(others) == {0}

    return check


def test_a_worker_frees_the_arguments_when_the_call_is_over(executor, workers_free):
    """The next call in a worker finds nothing of the arguments of the one before it."""
    assert list(executor.map(name_of, [Thing("argument") for _ in range(30)], timeout=LIMIT)) == ["argument"] * 30
    workers_free("argument")


def test_a_worker_frees_the_result_when_it_is_sent(executor, workers_free):
    """The next call in a worker finds nothing of the result of the one before it."""
    assert [thing.name for thing in executor.map(Thing, ["result"] * 30, timeout=LIMIT)] == ["result"] * 30
    workers_free("result")


def test_a_worker_frees_large_results(executor, workers_free):
    """The same for a result with a buffer that is sent as it lies."""
    assert executor.submit(one_with_array, "large").result(LIMIT).array.nbytes == 2 << 20
    workers_free("large")


def test_a_worker_frees_the_arguments_of_a_call_that_failed(executor, workers_free):
    """An error's traceback holds on to nothing in the worker."""
    for future in [executor.submit(Thing("failed").fail) for _ in range(10)]:
        assert isinstance(future.exception(LIMIT), Failed)
    workers_free("failed")


def test_a_worker_holds_nothing_while_it_waits(executor, ranks):
    """What the last call left is freed at once, not when the next one comes."""
    if ranks > 1:
        pytest.skip("seen from inside the process only, with one rank")
    assert executor.submit(name_of, Thing("last")).result(LIMIT) == "last"
    until(lambda: how_many_alive("last") == 0)


def test_the_root_does_not_keep_the_arguments(executor, gate):
    """The object that was an argument can be freed while the call is pending: it was pickled."""
    thing = Thing()
    reference = weakref.ref(thing)
    future = executor.submit(gate.wait, thing)
    del thing
    assert reference() is None
    gate.open()
    assert isinstance(future.result(LIMIT), Thing)


def test_the_root_does_not_keep_an_argument_that_cannot_be_pickled(executor):
    """The error of a call that could not be pickled holds on to nothing."""
    thing = FailsToPickle()
    reference = weakref.ref(thing)
    future = executor.submit(identity, thing)
    assert isinstance(future.exception(LIMIT), ValueError)
    del thing
    gc.collect()
    assert reference() is None


def test_large_arguments_are_freed_when_the_call_is_over(executor):
    """A large array is sent as it lies, and let go when its call is done."""
    np = pytest.importorskip("numpy")
    array = np.zeros(1 << 18)
    reference = weakref.ref(array)
    assert executor.submit(len, array).result(LIMIT) == 1 << 18
    del array
    until(lambda: reference() is None)


def test_a_result_lives_as_long_as_its_future(executor):
    """A result that the program does not hold is freed with its future."""
    future = executor.submit(Thing)
    reference = weakref.ref(future.result(LIMIT))
    assert reference() is not None
    del future
    until(lambda: reference() is None)


def test_a_future_that_is_not_kept_is_freed(executor, gate):
    """Nothing holds a future once it is done."""
    future = executor.submit(gate.wait, 1)
    reference = weakref.ref(future)
    del future
    assert reference() is not None
    gate.open()
    until(lambda: reference() is None)


@pytest.mark.parametrize("options", [{}, {"chunksize": 4}, {"buffersize": 2}, {"unordered": True}], ids=str)
def test_map_does_not_keep_what_it_has_given(executor, options):
    """A result is freed when the program has let it go, while the iterator is at the next one."""
    results = executor.map(Thing, ["mapped"] * 12, timeout=LIMIT, **options)
    given = 0
    for thing in results:
        reference = weakref.ref(thing)
        del thing
        until(lambda reference=reference: reference() is None)
        given += 1
    assert given == 12


def test_map_does_not_keep_the_error_it_has_raised(executor):
    """An error, and what its frames hold, is freed though the iterator is still there: no cycle holds it."""
    gc.disable()
    try:
        results = executor.map(Thing.fail, [Thing("raised")], timeout=LIMIT)
        try:
            next(results)
        except Failed as error:
            reference = weakref.ref(error)
        until(lambda: reference() is None)
    finally:
        gc.enable()


def test_a_dropped_executor_frees_its_results():
    """When the executor and its futures are gone nothing of the results is left."""
    executor = executor_of()
    futures = [executor.submit(Thing, "dropped") for _ in range(10)]
    executor.shutdown()
    references = [weakref.ref(future.result()) for future in futures]
    assert executor.num_workers >= 1
    del executor, futures
    until(lambda: all(reference() is None for reference in references))


def test_the_channel_does_not_grow(executor):
    """Thousands of calls later there are no more objects than before."""
    list(executor.map(square, range(2000), timeout=LIMIT))
    gc.collect()
    before = len(gc.get_objects())
    list(executor.map(square, range(4000), timeout=LIMIT))
    gc.collect()
    assert len(gc.get_objects()) < before + 1000


def test_an_executor_that_is_dropped_waits_for_no_lock():
    """The collector of garbage may drop it in any thread, even one that the holder of the lock waits for."""
    dropped = executor_of()
    lock = dropped._scheduler._state.lock
    held, may_go = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            may_go.wait(LIMIT)

    with ThreadPoolExecutor(1) as threads:
        holder = threads.submit(hold)
        assert held.wait(LIMIT)
        del dropped
        gc.collect()
        assert not holder.done()
        may_go.set()
    with executor_of() as another:
        assert another.submit(square, 2).result(LIMIT) == 4

"""map and starmap: what they take, in which order they yield results, how far ahead they go, how they end."""

import itertools
import operator
import threading
from concurrent.futures import CancelledError
from functools import partial

import pytest
from gates import LIMIT, Gate, executor_of, identity, occupy, square, until


def fail_at(bad, number):
    if number == bad:
        raise ValueError(f"number {number}")
    return number


class Counted:
    """An iterator that knows how many elements were taken from it, and whether it was closed."""

    def __init__(self, iterable):
        self.iterator = iter(iterable)
        self.taken = 0

    def __iter__(self):
        return self

    def __next__(self):
        element = next(self.iterator)
        self.taken += 1
        return element


def test_results_come_in_order(executor):
    """Whatever call is done first, results come in the order of the arguments."""
    assert list(executor.map(square, range(300), timeout=LIMIT)) == [number * number for number in range(300)]


def test_results_come_in_order_even_if_the_first_is_the_last_to_be_done(executor, gate):
    """A slow first call holds the others' results back, and nothing is lost."""
    if executor.num_workers == 1:
        pytest.skip("one worker runs calls in order")

    def slow_first(number):
        return gate.wait(number) if number == 0 else number

    results = executor.map(slow_first, range(20), timeout=LIMIT)
    gate.until_arrived(1)
    gate.open()
    assert list(results) == list(range(20))


def test_several_iterables_give_several_arguments(executor):
    """The n-th call gets the n-th element of each iterable."""
    assert list(executor.map(pow, [2, 3, 4], [5, 2, 1], timeout=LIMIT)) == [32, 9, 4]


def test_the_shortest_iterable_ends_it(executor):
    """As with the built-in map, the shortest iterable decides how many calls there are."""
    assert list(executor.map(operator.add, itertools.count(), [10, 20, 30], timeout=LIMIT)) == [10, 21, 32]


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("buffersize", [None, 2])
@pytest.mark.parametrize("unordered", [False, True])
def test_nothing_in_nothing_out(executor, chunksize, buffersize, unordered):
    """An empty iterable makes no calls; no iterable at all neither."""
    options = {"chunksize": chunksize, "buffersize": buffersize, "unordered": unordered}
    assert list(executor.map(square, [], **options)) == []
    assert list(executor.map(square, **options)) == []
    assert list(executor.starmap(square, [], **options)) == []


def test_calls_begin_before_the_results_are_asked_for(executor, gate):
    """map submits at once, not when the first result is asked for."""
    results = executor.map(gate.wait, range(executor.num_workers))
    gate.until_arrived(executor.num_workers)
    gate.open()
    assert list(results) == list(range(executor.num_workers))


def test_a_timeout_counts_from_the_call_of_map(executor, gate):
    """A result that is not there in time raises TimeoutError; those before it are given."""
    results = executor.map(lambda number: gate.wait() if number == 1 else number, range(3), timeout=1)
    assert next(results) == 0
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


def test_a_timeout_cancels_what_is_pending(executor, gate):
    """After a TimeoutError the calls that have not been sent are never run, and the iterator is at its end."""
    busy = occupy(executor, gate)
    results = executor.map(square, range(10), timeout=0)
    with pytest.raises(TimeoutError):
        next(results)
    assert list(results) == []
    gate.open()
    assert [future.result(LIMIT) for future in busy] == list(range(len(busy)))


@pytest.mark.parametrize("chunksize", [2, 3, 7, 20, 100])
def test_chunks_make_no_difference_to_the_results(executor, chunksize):
    """Whether the chunks come out even or not, each call has its own result, in order."""
    assert list(executor.map(square, range(20), chunksize=chunksize, timeout=LIMIT)) == [number * number for number in range(20)]


def test_a_chunk_is_run_by_one_worker_as_one_call(executor, gate):
    """The calls of a chunk are run one after another: the gate never sees more of them than there are chunks."""
    results = executor.map(gate.wait, range(3 * executor.num_workers), chunksize=3, timeout=LIMIT)
    gate.until_arrived(executor.num_workers)
    assert gate.arrived == executor.num_workers
    gate.open()
    assert list(results) == list(range(3 * executor.num_workers))


@pytest.mark.parametrize("unordered", [False, True])
@pytest.mark.parametrize("chunksize", [0, -1])
def test_a_chunk_has_at_least_one_call(executor, chunksize, unordered):
    """A chunksize below 1 is refused at once."""
    with pytest.raises(ValueError, match=r"^chunksize must be >= 1\.$"):
        executor.map(square, [], chunksize=chunksize, unordered=unordered)


@pytest.mark.parametrize("chunksize", ["2", 1.5, None])
def test_a_chunksize_is_a_whole_number(executor, chunksize):
    """Anything else is refused at once, with the rule."""
    with pytest.raises(TypeError, match=f"^chunksize is a number of calls, at least 1, not {chunksize!r}$"):
        executor.map(square, [], chunksize=chunksize)


@pytest.mark.parametrize("buffersize", [0, -1])
def test_a_buffer_holds_at_least_one_call(executor, buffersize):
    """A buffersize below 1 is refused at once."""
    with pytest.raises(ValueError, match="^buffersize must be None or > 0$"):
        executor.map(square, [], buffersize=buffersize)


@pytest.mark.parametrize("buffersize", ["4", 4.0])
def test_a_buffersize_is_a_whole_number(executor, buffersize):
    """A buffersize that is no integer is refused at once."""
    with pytest.raises(TypeError, match="^buffersize must be an integer or None$"):
        executor.map(square, [], buffersize=buffersize)


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("unordered", [False, True])
@pytest.mark.parametrize("buffersize", [1, 4])
def test_a_buffersize_bounds_how_far_ahead_it_reads(executor, buffersize, chunksize, unordered):
    """Of an endless iterable no more elements are taken than results were given, and `buffersize` calls more."""
    numbers = Counted(itertools.count())
    results = executor.map(identity, numbers, buffersize=buffersize, chunksize=chunksize, unordered=unordered, timeout=LIMIT)
    assert numbers.taken == buffersize * chunksize
    given = []
    for result in itertools.islice(results, 60):
        given.append(result)
        assert numbers.taken <= (buffersize + -(-len(given) // chunksize)) * chunksize
    assert len(given) == len(set(given)) == 60
    assert max(given) < numbers.taken
    assert unordered or given == list(range(60))


def test_calls_go_on_while_a_result_is_looked_at(executor, gate):
    """Between two results `buffersize` calls are on their way, as in Python 3.14: one too, if it is one."""
    numbers = Counted([0, 1])
    results = executor.map(lambda number: gate.wait(number) if number else number, numbers, buffersize=1, timeout=LIMIT)
    assert next(results) == 0
    gate.until_arrived(1)
    gate.open()
    assert list(results) == [1]


def test_without_a_buffersize_everything_is_read_at_once(executor):
    """map without buffersize reads its iterables to the end before it returns."""
    numbers = Counted(range(100))
    results = executor.map(square, numbers)
    assert numbers.taken == 100
    assert len(list(results)) == 100


def test_a_full_buffer_is_run_without_a_request(executor):
    """Calls in the buffer are run while the program does something else; the rest is not read."""
    numbers = Counted(itertools.count())
    results = executor.map(square, numbers, buffersize=4)
    executor.shutdown()
    assert numbers.taken == 4
    results.close()


def test_closing_the_iterator_cancels_the_rest(executor, gate, tmp_path):
    """Calls that have not been sent when the iterator is closed are never run."""
    one = Gate(tmp_path / "one")
    one.folder.mkdir()

    def run(number):
        if number:
            gate.wait()
        (one.folder / f"arrived-{number}").touch()
        return number

    calls = 5 + 4 * executor.num_workers
    results = executor.map(run, range(calls))
    assert next(results) == 0
    gate.until_arrived(executor.num_workers)
    results.close()
    gate.open()
    executor.shutdown()
    assert 1 + executor.num_workers <= one.arrived < calls
    assert list(results) == []


def test_closing_an_unordered_iterator_cancels_the_rest(executor, gate):
    """The same for an iterator whose results come as they are ready."""
    calls = 5 + 4 * executor.num_workers
    results = executor.map(lambda number: gate.wait() if number else number, range(calls), unordered=True)
    assert next(results) == 0
    gate.until_arrived(executor.num_workers)
    results.close()
    gate.open()
    executor.shutdown()
    assert gate.arrived < calls - 1


def test_dropping_the_iterator_cancels_the_rest(executor, gate):
    """An iterator that is left by break, and not kept, is closed."""
    calls = 5 + 4 * executor.num_workers
    for result in executor.map(lambda number: gate.wait() if number else number, range(calls)):
        assert result == 0
        break
    gate.until_arrived(executor.num_workers)
    gate.open()
    executor.shutdown()
    assert gate.arrived < calls - 1


@pytest.mark.parametrize("buffersize", [None, 2])
def test_an_error_is_raised_in_its_place(executor, buffersize):
    """The results before the call that failed are given; then its error is raised, and the iterator has ended."""
    results = executor.map(fail_at, itertools.repeat(3), range(10), buffersize=buffersize, timeout=LIMIT)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="^number 3$"):
        next(results)
    assert list(results) == []


def test_an_error_in_a_chunk_is_raised_in_place_of_the_chunk(executor):
    """A chunk is one call: it fails as a whole, and those before it are given."""
    results = executor.map(fail_at, itertools.repeat(5), range(10), chunksize=4, timeout=LIMIT)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="^number 5$"):
        next(results)


def test_an_error_of_the_iterable_is_raised_as_it_is(executor):
    """An iterable that fails makes map fail; with a buffersize the iterator, once it is read so far."""

    def numbers():
        yield 1
        yield 2
        raise LookupError("the iterable's own")

    with pytest.raises(LookupError, match="own"):
        executor.map(square, numbers())
    results = executor.map(square, numbers(), buffersize=1, timeout=LIMIT)
    with pytest.raises(LookupError, match="own"):
        list(results)
    assert executor.submit(square, 2).result(LIMIT) == 4


def test_one_that_was_cancelled_raises_so(executor, gate):
    """If shutdown has cancelled the calls, their iterator says so."""
    occupy(executor, gate)
    results = executor.map(square, range(3))
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        next(results)
    gate.open()


def test_starmap_takes_the_arguments_of_each_call_together(executor):
    """Each element of the iterable is the arguments of one call."""
    pairs = [(2, 5), [3, 2], (4, 1)]
    assert list(executor.starmap(pow, pairs, timeout=LIMIT)) == [32, 9, 4]
    assert list(executor.starmap(pow, iter(pairs), chunksize=2, timeout=LIMIT)) == [32, 9, 4]
    assert list(executor.starmap(max, [(1, 2, 3), (5, 4)], timeout=LIMIT)) == [3, 5]


def test_starmap_reads_ahead_like_map(executor):
    """starmap knows buffersize and unordered as map does."""
    pairs = Counted((number, 2) for number in itertools.count())
    results = executor.starmap(pow, pairs, buffersize=3, unordered=True, timeout=LIMIT)
    assert pairs.taken == 3
    assert {next(results) for _ in range(3)} <= {number * number for number in range(6)}
    results.close()


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("buffersize", [None, 1, 5])
def test_unordered_gives_all_results_once(executor, chunksize, buffersize):
    """Every result comes, in whatever order, and none twice."""
    results = executor.map(square, range(50), chunksize=chunksize, buffersize=buffersize, unordered=True, timeout=LIMIT)
    assert sorted(results) == [number * number for number in range(50)]


@pytest.mark.parametrize("buffersize", [None, 3])
def test_unordered_gives_what_is_ready(executor, gate, buffersize):
    """A slow call does not hold the others' results back."""
    if executor.num_workers == 1:
        pytest.skip("one worker runs calls in order")

    def slow_first(number):
        return gate.wait(number) if number == 0 else number

    results = executor.map(slow_first, range(20), unordered=True, buffersize=buffersize, timeout=LIMIT)
    assert {next(results) for _ in range(19)} == set(range(1, 20))
    gate.open()
    assert list(results) == [0]


def test_unordered_raises_an_error_when_it_is_there(executor, gate):
    """The error of a call is raised as soon as it is the next that is ready, and ends the iterator."""
    occupied = executor.num_workers - 1
    held = [executor.submit(gate.wait) for _ in range(occupied)]
    gate.until_arrived(occupied)
    results = executor.map(fail_at, itertools.repeat(0), range(5), unordered=True, timeout=LIMIT)
    with pytest.raises(ValueError, match="^number 0$"):
        list(results)
    assert list(results) == []
    gate.open()
    assert [future.result(LIMIT) for future in held] == [None] * occupied


def test_unordered_times_out(executor, gate):
    """With nothing ready in time, TimeoutError."""
    occupy(executor, gate)
    with pytest.raises(TimeoutError):
        next(executor.map(square, range(3), unordered=True, timeout=0))
    gate.open()


def test_results_can_be_asked_for_after_the_executor_was_dropped():
    """The iterator needs no executor any more, if all calls were submitted."""
    assert list(executor_of().map(square, range(20), timeout=LIMIT)) == [number * number for number in range(20)]


def test_several_maps_can_be_read_in_turn(executor):
    """Iterators of one executor do not wait for each other."""
    squares, same = executor.map(square, range(50), timeout=LIMIT), executor.map(identity, range(50), timeout=LIMIT)
    for number, (squared, plain) in enumerate(zip(squares, same, strict=True)):
        assert (squared, plain) == (number * number, number)


def test_calls_of_one_map_may_wait_for_each_other(executor, gate):
    """With two workers a call may wait for what the next one does: that is run meanwhile."""
    if executor.num_workers == 1:
        pytest.skip("one worker runs calls in order")

    def wait_for_the_next(number):
        (gate.folder / f"here-{number}").touch()
        if number == 200:
            until((gate.folder / "here-201").exists)
        return number

    assert list(executor.map(wait_for_the_next, range(400), timeout=LIMIT)) == list(range(400))


# -- what all calls have in common --------------------------------------------------------------------------------


class Large:
    """Something to be called that is large, and counts how often it is pickled."""

    pickled = 0

    def __init__(self):
        self.data = bytes(100_000)
        self.calls = 0

    def __getstate__(self):
        Large.pickled += 1
        return self.__dict__

    def __call__(self, number):
        self.calls += 1
        return number + len(self.data), self.calls


@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_large_function_is_pickled_once(executor, chunksize):
    """Not once a call; and each chunk has one of its own, as if it had been."""
    Large.pickled = 0
    found = list(executor.map(Large(), range(10), chunksize=chunksize))
    assert found == [(number + 100_000, number % chunksize + 1) for number in range(10)]
    assert Large.pickled == 1


def test_an_array_that_is_bound_is_every_calls_own(executor):
    """A call may change it, and the next does not see that."""
    np = pytest.importorskip("numpy")
    array = np.zeros(1_000_000)
    assert list(executor.map(partial(add_up, array), range(20))) == [1_000_000.0] * 20
    assert array.sum() == 0


def add_up(array, _):
    array += 1
    return float(array.sum())


def test_a_change_between_two_calls_is_seen(executor):
    """Of a variable that the function refers to, however often it was submitted before."""
    factor = 1

    def scale(number):
        return factor * number

    assert [executor.submit(scale, 1).result(LIMIT) for _ in range(5)] == [1] * 5
    factor = 2
    assert [executor.submit(scale, 1).result(LIMIT) for _ in range(5)] == [2] * 5
    assert list(executor.map(scale, [1, 2])) == [2, 4]
    factor = 3
    assert list(executor.map(scale, [1, 2])) == [3, 6]


def test_a_function_that_cannot_be_pickled_fails_in_every_call(executor):
    """As if it had been pickled with each."""
    results = executor.map(partial(identity, threading.Lock()), range(3))
    with pytest.raises(TypeError, match="cannot pickle"):
        next(results)


def test_a_function_that_cannot_be_unpickled_fails_in_every_call(executor):
    """Each call has the error; others are not harmed."""
    results = [executor.submit(FailsThere(), number) for number in range(3)]
    assert [str(future.exception(LIMIT)) for future in results] == ["not here"] * 3
    with pytest.raises(RuntimeError, match="not here"):
        list(executor.map(partial(identity, FailsThere(), bytes(100_000)), range(3)))
    assert executor.submit(identity, 1).result(LIMIT) == 1


class FailsThere:
    def __reduce__(self):
        return fails_there, ()


def fails_there():
    raise RuntimeError("not here")


# -- short calls, many of which travel together ---------------------------------------------------------------------


class Unpicklable:
    """Can be pickled so many times."""

    def __init__(self, times):
        self.times = times

    def __reduce__(self):
        if not self.times:
            raise LookupError("not to be pickled")
        return Unpicklable, (self.times - 1,)


def odd_one(kind, odd, number):
    """Return the number, but at one place do something else."""
    if number != odd:
        return number
    if kind == "unpicklable":
        return Unpicklable(0)
    if kind == "large":
        return bytes(1_000_000)
    raise {"error": ValueError, "interrupt": KeyboardInterrupt, "exit": SystemExit}[kind](f"number {number}")


def warm_up(executor, kind, odd):
    """Have the executor know that these calls are short, so that they travel together."""
    assert list(executor.starmap(odd_one, [(kind, -1, number) for number in range(500)], timeout=LIMIT)) == [*range(500)]


@pytest.mark.parametrize("odd", [0, 1777, 2999])
@pytest.mark.parametrize(
    ("kind", "error"),
    [("error", ValueError), ("interrupt", KeyboardInterrupt), ("exit", SystemExit), ("unpicklable", LookupError)],
)
def test_a_short_call_fails_alone(executor, kind, error, odd):
    """All results before it are yielded, its error is raised with its traceback, and the executor goes on."""
    warm_up(executor, kind, odd)
    results = executor.map(odd_one, itertools.repeat(kind), itertools.repeat(odd), range(3000), timeout=LIMIT)
    assert [next(results) for _ in range(odd)] == [*range(odd)]
    with pytest.raises(error) as caught:
        next(results)
    assert "rank" in str(caught.value.__cause__)
    assert executor.submit(square, 3).result(LIMIT) == 9


@pytest.mark.parametrize("unordered", [False, True])
def test_a_large_result_among_short_ones_has_its_place(executor, unordered):
    """It travels alone."""
    warm_up(executor, "large", 1777)
    arguments = [("large", 1777, number) for number in range(3000)]
    found = list(executor.starmap(odd_one, arguments, unordered=unordered, timeout=LIMIT))
    lengths = [1777 if isinstance(each, bytes) else each for each in found]
    assert len(lengths) == 3000
    assert (sorted(lengths) if unordered else lengths) == [*range(3000)]


def test_an_argument_that_cannot_be_pickled_fails_in_its_place(executor):
    """Those before it are yielded."""
    arguments = [*range(1000), Unpicklable(0), *range(1000)]
    results = executor.map(identity, arguments, timeout=LIMIT)
    assert [next(results) for _ in range(1000)] == [*range(1000)]
    with pytest.raises(LookupError, match="not to be pickled"):
        next(results)
    assert executor.submit(square, 3).result(LIMIT) == 9


def test_an_argument_that_cannot_be_unpickled_fails_in_its_place(executor):
    """The same in the worker."""
    results = executor.map(identity, [*range(1000), FailsThere(), *range(1000)], timeout=LIMIT)
    assert [next(results) for _ in range(1000)] == [*range(1000)]
    with pytest.raises(RuntimeError, match="not here"):
        next(results)


@pytest.mark.parametrize("buffersize", [None, 100])
def test_arguments_of_any_size_have_their_results_in_order(executor, buffersize):
    """Short ones, long ones that travel alone, and numbers of any length."""
    arguments = [[number, b"x" * 3 ** (number % 13), 10 ** (number * 7 % 500), "y" * number][number % 4] for number in range(400)]
    assert list(executor.map(identity, arguments, buffersize=buffersize, timeout=LIMIT)) == arguments
    assert list(executor.map(identity, (each for each in arguments), buffersize=buffersize, timeout=LIMIT)) == arguments


def count(values):
    values.append(len(values))
    return len(values)


def test_an_argument_is_every_calls_own(executor):
    """A call may change it, and no other sees that."""
    same = []
    assert list(executor.map(count, [same] * 1000, timeout=LIMIT)) == [1] * 1000
    assert same == []


def test_a_call_that_is_unexpectedly_long_holds_no_result_back(executor, gate):
    """Those before it are yielded; with another worker those behind it, too."""
    path = gate.folder

    def slow_at(odd, number):
        return gate.wait(number) if number == odd else number

    assert list(executor.map(slow_at, itertools.repeat(-1), range(500), timeout=LIMIT)) == [*range(500)]
    results = executor.map(slow_at, itertools.repeat(300), range(1000), unordered=True, timeout=LIMIT)
    others = 999 if executor.num_workers > 1 else 300
    assert len({next(results) for _ in range(others)}) == others
    assert not (path / "open").exists()
    gate.open()
    assert 300 in list(results)

"""submit: what can be called, with what, from where."""

import functools
import itertools
import operator
import os
import subprocess
import sys
import threading
from concurrent.futures import Future

import pytest
from gates import LIMIT, Gate, executor_of, identity, pid_of, square, touch, until

from mpiexecutor import RMAChannelExecutor


def show(*args, **kwargs):
    return args, kwargs


class Scale:
    """Its instances and their methods can be submitted."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, number):
        return self.factor * number

    def apply(self, number):
        return self.factor * number

    @classmethod
    def by_two(cls, number):
        return cls(2)(number)

    @staticmethod
    def negative(number):
        return -number


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) + 1

    return wrapper


@decorated
def one_more(number):
    return number


def test_gives_a_future_of_the_result(executor):
    """What submit gives is a Future of the standard library, and its result is what the call returned."""
    future = executor.submit(pow, 2, 10)
    assert isinstance(future, Future)
    assert future.result(LIMIT) == 1024


def test_passes_positional_and_keyword_arguments(executor):
    """A call gets its arguments as they were given."""
    assert executor.submit(show, 1, "two", three=3, four=[4]).result(LIMIT) == ((1, "two"), {"three": 3, "four": [4]})


def test_keywords_may_have_any_name(executor):
    """The executor and the function are positional only: ``self`` and ``fn`` are the function's own keywords."""
    assert executor.submit(show, self=1, fn=2, args=3, kwargs=4).result(LIMIT) == ((), {"self": 1, "fn": 2, "args": 3, "kwargs": 4})


def test_the_function_is_positional_only(executor):
    """As in the standard library, ``fn=`` is no way to name the function."""
    with pytest.raises(TypeError):
        executor.submit(fn=pow)
    with pytest.raises(TypeError):
        executor.submit()


def test_none_is_a_result(executor):
    """A call that returns nothing is done like any other."""
    future = executor.submit(identity, None)
    assert future.result(LIMIT) is None
    assert future.exception() is None


def test_what_cannot_be_called_fails_in_its_future(executor):
    """submit does not look at the function: the call fails, where it is run."""
    assert isinstance(executor.submit(42).exception(LIMIT), TypeError)


@pytest.mark.parametrize(
    ("function", "argument", "expected"),
    [
        (abs, -3, 3),
        (operator.neg, 3, -3),
        (functools.partial(pow, 2), 3, 8),
        (functools.partial(functools.partial(show, 1), 2), 3, ((1, 2, 3), {})),
        (Scale(2), 3, 6),
        (Scale(2).apply, 3, 6),
        (Scale.by_two, 3, 6),
        (Scale.negative, 3, -3),
        (Scale, 3, None),
        (lambda number: 5 * number, 3, 15),
        (one_more, 3, 4),
        ("abc".startswith, "ab", True),
        (str.upper, "abc", "ABC"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__) if callable(value) else None,
)
def test_calls_anything_that_can_be_called(executor, function, argument, expected):
    """Functions, classes, methods, partials, lambdas and callable objects can be submitted."""
    result = executor.submit(function, argument).result(LIMIT)
    assert result.factor == argument if expected is None else result == expected


def test_a_closure_takes_along_what_it_closes_over(executor):
    """A function made inside another one works, with the values it had when it was submitted."""
    offset = 10

    def shifted(number):
        return inner(number) + offset

    def inner(number):
        return 2 * number

    future = executor.submit(shifted, 1)
    offset = 20
    assert future.result(LIMIT) == 12
    assert executor.submit(shifted, 1).result(LIMIT) == 22


def test_a_class_made_in_a_function_comes_back_as_itself(executor):
    """An instance of a local class that has been to a worker and back is an instance of the same class."""

    class Point:
        def __init__(self, x):
            self.x = x

        def moved(self):
            return type(self)(self.x + 1)

    moved = executor.submit(Point.moved, Point(1)).result(LIMIT)
    assert type(moved) is Point
    assert moved.x == 2


def test_a_recursive_closure_can_be_called(executor):
    """A local function that refers to itself can be submitted."""

    def factorial(number):
        return number * factorial(number - 1) if number else 1

    assert executor.submit(factorial, 20).result(LIMIT) == 2432902008176640000


def test_calls_run_in_the_workers(executor, ranks):
    """The root runs no calls itself, unless it is alone."""
    pids = {executor.submit(pid_of).result(LIMIT) for _ in range(20)}
    assert pids <= ({os.getpid()} if ranks == 1 else pids - {os.getpid()})


def test_all_workers_run_calls_at_the_same_time(executor, gate):
    """As many calls run at a time as there are workers, each in a worker of its own."""
    futures = [executor.submit(lambda: (gate.wait(), os.getpid())) for _ in range(executor.num_workers)]
    gate.until_arrived(executor.num_workers)
    gate.open()
    assert len({future.result(LIMIT)[1] for future in futures}) == executor.num_workers


def test_many_calls_each_have_their_own_result(executor):
    """Of thousands of short calls none is lost, run twice or mixed up with another one."""
    numbers = range(3000)
    futures = [executor.submit(square, number) for number in numbers]
    assert [future.result(LIMIT) for future in futures] == [number * number for number in numbers]


def test_short_calls_do_not_wait_for_a_long_one(gate):
    """While one worker is busy for long, the others run what comes."""
    with executor_of() as executor:
        if executor.num_workers == 1:
            pytest.skip("one worker has no others")
        long = executor.submit(gate.wait, "long")
        gate.until_arrived(1)
        assert list(executor.map(square, range(500), timeout=LIMIT)) == [number * number for number in range(500)]
        assert not long.done()
        gate.open()
        assert long.result(LIMIT) == "long"


class Sometimes:
    """A function that is short but for one number, where it waits at a gate."""

    def __init__(self, gate: Gate, number: int) -> None:
        self.gate = gate
        self.number = number

    def __call__(self, number: int) -> int:
        return self.gate.wait(number) if number == self.number else number


def after_many_short_ones(executor, gate, slow, calls):
    """Submit calls of a function that is known to be short, so many at once that they go in batches; one of them is not short."""
    list(executor.map(slow, itertools.repeat(-1, 200), timeout=LIMIT))
    first = Gate(gate.folder / "first")
    first.folder.mkdir()
    held = [executor.submit(first.wait) for _ in range(3 * executor.num_workers)]
    futures = [executor.submit(slow, number) for number in range(calls)]
    first.open()
    for future in held:
        future.result(LIMIT)
    return futures


def test_results_do_not_wait_for_a_later_call_that_is_unexpectedly_long(executor, gate):
    """A call of a kind that has been short so far may take its time: the results of the calls before it are there meanwhile."""
    slow = Sometimes(gate, 50)
    futures = after_many_short_ones(executor, gate, slow, 100)
    for number in range(50):
        assert futures[number].result(LIMIT) == number
    gate.open()
    assert [future.result(LIMIT) for future in futures] == list(range(100))


def test_calls_do_not_wait_for_an_earlier_one_that_is_unexpectedly_long(executor, gate):
    """A call of a kind that has been short so far may take its time: the calls behind it are run by the other workers meanwhile."""
    if executor.num_workers == 1:
        pytest.skip("one worker has no others")
    slow = Sometimes(gate, 50)
    futures = after_many_short_ones(executor, gate, slow, 100)
    for number in (*range(50), *range(51, 100)):
        assert futures[number].result(LIMIT) == number
    gate.open()
    assert futures[50].result(LIMIT) == 50


def test_threads_submit_at_the_same_time(executor):
    """Eight threads that submit at once get their own results, all of them."""
    start = threading.Barrier(8)
    results = {}

    def use(thread):
        start.wait(LIMIT)
        futures = [executor.submit(identity, (thread, number)) for number in range(200)]
        results[thread] = [future.result(LIMIT) for future in futures]

    threads = [threading.Thread(target=use, args=[number], daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert results == {thread: [(thread, number) for number in range(200)] for thread in range(8)}


def test_a_callback_may_submit(executor):
    """A chain of calls, each submitted from the callback of the one before it, runs to its end."""
    end = Future()

    def go_on(future):
        if future.result() == 30:
            end.set_result("the end")
        else:
            executor.submit(operator.add, future.result(), 1).add_done_callback(go_on)

    executor.submit(identity, 0).add_done_callback(go_on)
    assert end.result(LIMIT) == "the end"


def test_a_call_may_start_threads_and_processes(executor):
    """Threads and child processes of a call work as anywhere."""

    def work():
        said = []
        thread = threading.Thread(target=lambda: said.append("thread"))
        thread.start()
        thread.join()
        code = [sys.executable, "-c", "print('child')"]
        said.append(subprocess.run(code, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip())
        return said

    assert executor.submit(work).result(LIMIT) == ["thread", "child"]


def test_an_executor_cannot_be_made_inside_a_call(executor):
    """A worker that tries gets an error that says what is wrong, and goes on."""
    error = executor.submit(RMAChannelExecutor).exception(LIMIT)
    assert isinstance(error, RuntimeError)
    assert str(error) == "an executor cannot be made inside a call that an executor runs: submit from the root instead"
    assert executor.submit(square, 3).result(LIMIT) == 9


def test_a_call_is_pickled_when_it_is_submitted(executor, gate):
    """What is changed after submit has no effect on the call."""
    numbers = [1, 2, 3]
    first = executor.submit(gate.wait)
    second = executor.submit(sum, numbers)
    numbers.clear()
    gate.open()
    assert second.result(LIMIT) == 6
    assert first.result(LIMIT) is None


def test_a_call_without_a_waiting_thread_is_run(executor, tmp_path):
    """A call runs, whether its future is kept or not."""
    executor.submit(touch, tmp_path / "done")
    until((tmp_path / "done").exists)

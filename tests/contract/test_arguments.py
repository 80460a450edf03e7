"""The constructor: what it takes, what it refuses, and what can be asked of the executor afterwards."""

import multiprocessing
import warnings

import pytest
from gates import LIMIT, executor_of, square
from mpi4py import MPI

from mpiexecutor import RMAChannelExecutor


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -2}, ValueError, "max_workers must be greater than 0"),
        (
            {"mp_context": multiprocessing.get_context("spawn")},
            ValueError,
            "mp_context cannot be chosen: workers are ranks of the MPI job, not processes that this one starts",
        ),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child is at least 1, not 0"),
        ({"max_tasks_per_child": "1"}, TypeError, "max_tasks_per_child is a whole number or None, not '1'"),
        (
            {"max_tasks_per_child": 1, "isolate": False},
            ValueError,
            "max_tasks_per_child needs child processes: leave isolate=False out",
        ),
        ({"isolate": "yes"}, TypeError, "isolate is True, False or None, not 'yes'"),
        ({"initializer": 42}, TypeError, "initializer is called in each worker: 42 cannot be called"),
        ({"initializer": abs, "initargs": 3}, TypeError, "initargs are what initializer is called with, a tuple, not 3"),
        ({"comm": 3}, TypeError, "comm is an MPI communicator, or None for MPI.COMM_WORLD, not 3"),
        ({"root": "first"}, TypeError, "root is a rank of the communicator, a whole number, not 'first'"),
        ({"retries": -1}, ValueError, "retries is at least 0, not -1"),
        ({"retries": 1.5}, TypeError, "retries is a whole number, not 1.5"),
        ({"max_pending": 0}, ValueError, "max_pending is at least 1, not 0"),
        ({"max_pending": "many"}, TypeError, "max_pending is a whole number or None, not 'many'"),
        ({"task_timeout": 0}, ValueError, "task_timeout is a number of seconds above 0, or None, not 0"),
        ({"task_timeout": float("nan")}, ValueError, "task_timeout is a number of seconds above 0, or None, not nan"),
        ({"task_timeout": float("inf")}, ValueError, "task_timeout is a number of seconds above 0, or None, not inf"),
        ({"task_timeout": "1 s"}, TypeError, "task_timeout is a number of seconds or None, not '1 s'"),
        ({"max_workers": 1.5}, TypeError, "max_workers is a whole number or None, not 1.5"),
        ({"max_workers": True}, TypeError, "max_workers is a whole number or None, not True"),
        ({"root": -1}, ValueError, "root is a rank of the communicator, 0 to LAST, not -1"),
        ({"root": MPI.COMM_WORLD.size}, ValueError, "root is a rank of the communicator, 0 to LAST, not SIZE"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_arguments_that_cannot_be_are_refused(arguments, kind, text, ranks):
    """Each is an error that says what may be, and why; executors can be made afterwards."""
    with pytest.raises(kind) as raised:
        RMAChannelExecutor(**arguments)
    assert str(raised.value) == text.replace("LAST", str(ranks - 1)).replace("SIZE", str(ranks))
    with executor_of() as executor:
        assert executor.submit(square, 2).result(LIMIT) == 4


def test_the_first_four_arguments_may_be_positional():
    """max_workers, mp_context, initializer and initargs stand where ProcessPoolExecutor has them; the others are named."""
    with executor_of(1, None, abs, (1,)) as executor:
        assert executor.submit(square, 2).result(LIMIT) == 4
    with pytest.raises(TypeError):
        RMAChannelExecutor(1, None, None, (), None)


def test_what_process_pools_are_made_with_is_taken():
    """The defaults of ProcessPoolExecutor can be given as they are."""
    arguments = {"max_workers": None, "mp_context": None, "initializer": None, "initargs": (), "max_tasks_per_child": None}
    with executor_of(**arguments) as executor:
        assert executor.submit(square, 2).result(LIMIT) == 4


class Seconds(float):
    """A number as NumPy's, of a class of its own."""


def test_a_limit_may_be_any_float():
    """It is a number of seconds."""
    with executor_of(task_timeout=Seconds(1000)) as executor:
        assert executor.submit(square, 2).result(LIMIT) == 4


def test_there_are_as_many_workers_as_other_ranks(executor, ranks):
    """num_workers, and the names under which other programs ask for it, say how many calls can run at a time."""
    assert executor.num_workers == executor._max_workers == executor.size == max(1, ranks - 1)


def test_fewer_workers_can_be_asked_for():
    """max_workers below what is there is kept."""
    with executor_of(max_workers=1) as executor:
        assert executor.num_workers == executor._max_workers == executor.size == 1


def test_more_workers_than_there_are_is_a_warning(ranks):
    """Asking for more than there is gives what there is, and one warning, at the line that asked."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        executor = RMAChannelExecutor(ranks + 5)
    there = max(1, ranks - 1)
    about_it = [warning for warning in caught if f"{ranks + 5} workers were asked for, there are {there}" in str(warning.message)]
    assert [(warning.category, warning.filename) for warning in about_it] == [(RuntimeWarning, __file__)]
    assert len(caught) == (2 if ranks == 1 else 1)
    with executor:
        assert executor.num_workers == there
        assert list(executor.map(square, range(10), timeout=LIMIT)) == [number * number for number in range(10)]


def test_one_rank_alone_is_a_warning_that_says_how_to_start_more():
    """On a communicator of one rank calls run here; the warning is at the line that made the executor."""
    with pytest.warns(RuntimeWarning, match="this job has one rank") as caught:
        executor = RMAChannelExecutor(comm=MPI.COMM_SELF)
    assert [warning.filename for warning in caught] == [__file__]
    assert "A job of N ranks, started by 'mpiexec -n N python ...', has N - 1 workers" in str(caught[0].message)
    with executor:
        assert executor.num_workers == 1
        assert list(executor.map(square, range(10), timeout=LIMIT)) == [number * number for number in range(10)]


def test_executors_on_two_communicators_work_side_by_side(executor):
    """Each communicator has a pool of its own."""
    with executor_of(comm=MPI.COMM_SELF) as alone:
        pairs = zip(executor.map(square, range(50), timeout=LIMIT), alone.map(square, range(50), timeout=LIMIT), strict=True)
        assert all(one == other for one, other in pairs)


def test_its_repr_says_how_many_workers_it_has(executor):
    """An executor looks like what it is."""
    assert repr(executor) == f"<RMAChannelExecutor with {executor.num_workers} workers>"

"""Outcomes: values and errors as bytes, and back."""

import pickle
import sys
import threading
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
from script_pair import own_main, script_of

from mpiexecutor import BrokenWorkerError, RemoteError, RemoteTraceback
from mpiexecutor._calls.outcomes import Failure, Location, dumps_sized, error_from, failure_of, pickled, traceback_of, with_cause
from mpiexecutor._util.pickling import Pickled

HERE = Location(2, 5, "host", 123)


class NeedsTwo(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class HoldsALock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class HasNoText(HoldsALock):
    def __str__(self):
        raise SystemExit("not even this")


class NotAnError(Exception):
    def __reduce__(self):
        return int, (5,)


class RefusesAttributes(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


def caught(error, cause=None):
    try:
        raise error from cause
    except BaseException as raised:
        return raised


def there_and_back(error):
    """Have the failure be bytes, as it is on its way to the root."""
    failure = failure_of(caught_by_worker(error), HERE)
    return error_from(Failure.loads(*failure.dumps()))


def caught_by_worker(error):
    """Raise it two frames deep: the frame that catches it is not shown."""

    def run():
        raise error

    try:
        run()
    except BaseException as raised:
        return raised


def test_a_place_says_where_it_is():
    """The rank of how many, the host and the process."""
    assert str(HERE) == "rank 2 of 5 on host (pid 123)"
    assert Location.here(0, 1).pid > 0


def test_a_pickle_has_its_large_buffers_beside_it():
    """An array of 64 KiB and more is not copied into the pickle; a smaller one is."""
    np = pytest.importorskip("numpy")
    large, small = np.arange(100_000), np.arange(10)
    found = pickled([large, small])
    assert [len(buffer) for buffer in found.buffers] == [large.nbytes]
    assert len(found.data) < 1000
    assert found.size == len(found.data) + large.nbytes
    one, other = found.load()
    assert np.array_equal(one, large)
    assert np.array_equal(other, small)


def test_buffers_count_as_bytes():
    """What is beside the pickle is part of the size, and the same comes out as went in."""
    np = pytest.importorskip("numpy")
    large = np.arange(100_000, dtype="u1")
    found, size = dumps_sized([large, 1])
    assert size == found.size
    assert large.nbytes < size < large.nbytes + 1000
    assert found.load()[0].tolist() == large.tolist()
    assert dumps_sized("small") == (Pickled(pickle.dumps("small", 5)), len(pickle.dumps("small", 5)))


def test_what_cannot_be_pickled_raises_what_pickle_raises():
    """The pickle of a lock is a TypeError."""
    with pytest.raises(TypeError, match="cannot pickle"):
        pickled(threading.Lock())


@pytest.mark.parametrize("error", [ValueError("text", 5), SystemExit(3), KeyboardInterrupt(), OSError(2, "gone", "file")], ids=repr)
def test_an_error_arrives_with_its_traceback_as_cause(error):
    """Class and arguments are kept; the cause has the location and the traceback, without the frame that caught it."""
    arrived = there_and_back(error)
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert isinstance(arrived.__cause__, RemoteTraceback)
    text = str(arrived.__cause__)
    assert "rank 2 of 5 on host (pid 123):\nTraceback (most recent call last):\n" in text
    assert "in run" in text
    assert "in caught_by_worker" not in text
    assert type(error).__name__ in text


@pytest.mark.parametrize(
    ("error", "text", "why"),
    [
        (HoldsALock("locked"), "locked", "the exception itself cannot be pickled"),
        (NeedsTwo("this", "that"), "this and that", "the exception itself cannot be rebuilt from its pickle: TypeError("),
        (HasNoText("unseen"), "<no text: SystemExit>", "the exception itself cannot be pickled"),
        (NotAnError("text"), "text", "the exception's pickle gives int instead"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_that_cannot_be_carried_is_named(error, text, why):
    """RemoteError has its class, its text and the reason; the traceback is kept."""
    arrived = there_and_back(error)
    assert type(arrived) is RemoteError
    assert str(arrived).startswith(f"{__name__}.{type(error).__name__}: {text} ({why}")
    assert "in run" in str(arrived.__cause__)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_the_pickle_of_an_error_is_not_copied(size):
    """Its bytes are beside those of the failure."""
    data = bytes(size)
    failure = Failure("ValueError", "text", "trace", Pickled(data, [memoryview(b"buffer")]))
    encoded = failure.dumps()
    assert len(encoded.data) < 200
    assert [part.obj is data for part in encoded.buffers] == [True, False]
    again = Failure.loads(*encoded)
    assert (again[:3], bytes(again.error.data), [bytes(part) for part in again.error.buffers]) == (failure[:3], data, [b"buffer"])


def test_an_error_that_refuses_attributes_has_a_cause_all_the_same():
    """An exception class may forbid to set attributes: its cause is set, where it came from a worker and where it happened here."""
    arrived = there_and_back(RefusesAttributes("mine"))
    assert type(arrived) is RefusesAttributes
    assert isinstance(arrived.__cause__, RemoteTraceback)
    own = with_cause(caught(RefusesAttributes("mine")), HERE)
    assert isinstance(own.__cause__, RemoteTraceback)
    assert own.__traceback__ is None


def test_an_error_that_cannot_be_formatted_has_a_traceback_all_the_same():
    """What the traceback module fails on still has its class, its text and its location."""
    error = SyntaxError("planned")
    error.lineno, error.offset, error.text, error.filename = 1, "x", "abc", "file"
    text = traceback_of(caught_by_worker(error), HERE)
    assert "rank 2 of 5 on host" in text
    assert "SyntaxError: planned" in text


def test_an_error_that_was_never_raised_can_be_described():
    """No traceback is needed."""
    assert "ValueError: text" in traceback_of(ValueError("text"), HERE)


def test_the_text_has_the_causes():
    """What led to an error is part of its traceback."""
    text = traceback_of(caught(ValueError("second"), caught(LookupError("first"))), HERE)
    assert text.index("LookupError: first") < text.index("direct cause") < text.index("ValueError: second")


def test_an_error_here_gets_the_same_kind_of_cause():
    """with_cause takes the frames off the error and keeps them as text."""
    error = caught_by_worker(ValueError("text"))
    assert with_cause(error, HERE) is error
    assert error.__traceback__ is None
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in run" in str(error.__cause__)


def test_an_error_in_a_result_holds_no_frames():
    """The failure of a call does not keep what the call was given alive."""
    thing = set()
    before = sys.getrefcount(thing)

    def fail(_):
        raise ValueError("text")

    try:
        fail(thing)
    except ValueError as error:
        failure = failure_of(error, HERE)
    assert failure[:2] == ("ValueError", "text")
    assert sys.getrefcount(thing) == before


@pytest.mark.parametrize("error", [RemoteTraceback("text"), RemoteError("text")])
def test_our_own_errors_can_be_pickled(error):
    """They may be results of calls themselves."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == "text"


def test_our_own_errors_have_public_names():
    """Tracebacks and pickles show them as they are imported."""
    assert {RemoteTraceback.__module__, RemoteError.__module__} == {"mpiexecutor"}


def test_the_text_of_a_traceback_is_where_the_standard_library_has_it():
    """As `tb` of concurrent.futures.process._RemoteTraceback."""
    assert RemoteTraceback("text").tb == str(RemoteTraceback("text")) == "text"


def test_a_dead_worker_is_a_broken_process_pool():
    """So it is caught as with ProcessPoolExecutor, and where any broken executor is."""
    assert issubclass(BrokenWorkerError, BrokenProcessPool)
    assert issubclass(BrokenWorkerError, BrokenExecutor)


def test_what_the_receiver_does_not_have_goes_by_value():
    """A class or function that only the sender has; what the receiver has is named."""
    with own_main():
        names = script_of("class Known:\n    level = 1\nclass Own(Known):\n    level = 2\n")
        found = pickled((names.Known(), names.Own()), {"Known"}.__contains__)
        failure = failure_of(ValueError(names.Own()), HERE, {"Known"}.__contains__)
        there = script_of("class Known:\n    level = 3\n")
        known, own = found.load()
        assert type(known) is there.Known
        assert type(own).__mro__[1] is there.Known
        assert (known.level, own.level) == (3, 2)
        assert error_from(failure).args[0].level == 2


def test_a_pickle_names_the_globals_that_it_needs():
    """They have to be there where it is rebuilt."""
    with own_main():
        names = script_of("factor = 2\ndef double(x):\n    return factor * x\n")
        needed = set()
        dumps_sized((names.double, lambda: None), needed)
        assert needed == {"double"}

"""What fails fails alone: whatever a call does wrong, and wherever, is the exception of its own future, and the rest goes on."""

import dataclasses
import importlib
import pickle
import re
import sys
import threading
from concurrent.futures import CancelledError

import pytest
from gates import LIMIT, identity, square

from mpiexecutor import RemoteError, RemoteTraceback


def fail_with(error):
    raise error


def planned(kind):
    return kind("planned")


class FailsToPickle:
    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        fail_with(planned(self.kind))


class FailsToUnpickle:
    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return fail_with, (planned(self.kind),)


STAGES = {
    "pickling the call": lambda executor, kind: executor.submit(identity, FailsToPickle(kind)),
    "unpickling the call": lambda executor, kind: executor.submit(identity, FailsToUnpickle(kind)),
    "running": lambda executor, kind: executor.submit(fail_with, planned(kind)),
    "pickling the result": lambda executor, kind: executor.submit(FailsToPickle, kind),
    "unpickling the result": lambda executor, kind: executor.submit(FailsToUnpickle, kind),
}
ON_THE_ROOT = {"pickling the call", "unpickling the result"}


def as_it_arrives(stage, kind):
    """Return class and text of the error: what would end the script is none that pickling its own call may raise."""
    if stage == "pickling the call" and not issubclass(kind, Exception):
        return pickle.PicklingError, f"pickling this call raised {kind.__name__}: planned"
    return kind, "planned"


FAILURES = [
    (stage, kind)
    for stage in STAGES
    for kind in (ValueError, SystemExit, KeyboardInterrupt)
    if (stage, kind) != ("pickling the call", KeyboardInterrupt)  # this interrupts submit
]


@pytest.mark.parametrize(("stage", "kind"), FAILURES)
def test_a_failure_is_that_of_its_own_future(executor, ranks, stage, kind):
    """Whatever is raised at whatever stage is raised by result(), with its traceback and its place as cause; the others go on."""
    before = [executor.submit(square, number) for number in range(20)]
    future = STAGES[stage](executor, kind)
    behind = [executor.submit(square, number) for number in range(20)]

    error = future.exception(LIMIT)
    arrived, said = as_it_arrives(stage, kind)
    assert type(error) is arrived
    assert error.args == (said,)
    assert isinstance(error.__cause__, RemoteTraceback)
    text = str(error.__cause__)
    place = re.search(rf"rank (\d+) of {ranks} on \S+", text)
    assert place is not None
    assert (int(place[1]) == 0) == (stage in ON_THE_ROOT or ranks == 1)
    assert "Traceback (most recent call last)" in text
    assert "in fail_with" in text
    assert f"{kind.__name__}: planned" in text
    with pytest.raises(arrived, match="planned"):
        future.result(0)

    for futures in (before, behind):
        assert [other.result(LIMIT) for other in futures] == [number * number for number in range(20)]
    assert executor.submit(square, 3).result(LIMIT) == 9


def test_an_interrupt_while_a_call_is_pickled_interrupts_submit(executor):
    """It is Ctrl-C nearly always; the executor goes on."""
    with pytest.raises(KeyboardInterrupt):
        executor.submit(identity, FailsToPickle(KeyboardInterrupt))
    assert executor.submit(square, 3).result(LIMIT) == 9


@pytest.mark.parametrize(("stage", "kind"), FAILURES)
def test_many_failures_among_many_calls(executor, stage, kind):
    """Every third call fails: each of them has its error, each other one its result."""
    futures = [STAGES[stage](executor, kind) if number % 3 == 0 else executor.submit(square, number) for number in range(120)]
    for number, future in enumerate(futures):
        error = future.exception(LIMIT)
        assert type(error) is as_it_arrives(stage, kind)[0] if number % 3 == 0 else future.result() == number * number


def test_an_exit_keeps_its_status(executor):
    """sys.exit in a call reaches the caller as SystemExit, with its code."""
    for code in (3, None, "text"):
        error = executor.submit(sys.exit, code).exception(LIMIT)
        assert type(error) is SystemExit
        assert error.code == code


def generator():
    return (number for number in range(3))


unpicklable = pytest.mark.parametrize("make", [threading.Lock, generator, sys._getframe])


@unpicklable
def test_an_argument_that_cannot_be_pickled(executor, make):
    """It is a TypeError of the call, not of submit."""
    assert isinstance(executor.submit(identity, make()).exception(LIMIT), TypeError)
    assert executor.submit(square, 3).result(LIMIT) == 9


@unpicklable
def test_a_result_that_cannot_be_pickled(executor, make):
    """It is a TypeError of the call; the worker goes on."""
    assert isinstance(executor.submit(make).exception(LIMIT), TypeError)
    assert executor.submit(square, 3).result(LIMIT) == 9


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def endless(number):
    return endless(number + 1)


def test_what_is_nested_too_deep(executor):
    """Arguments and results nested too deep for pickle, and endless recursion, are an error of the call that says so."""
    for future in (executor.submit(identity, nested(100_000)), executor.submit(nested, 100_000)):
        error = future.exception(LIMIT)
        assert isinstance(error, (RecursionError, pickle.PicklingError))
        assert "recursion" in str(error)
    assert isinstance(executor.submit(endless, 0).exception(LIMIT), RecursionError)
    assert executor.submit(square, 3).result(LIMIT) == 9


class OnlyHere:
    """Refers to a module that the other side cannot import."""

    def __reduce__(self):
        return importlib.import_module, ("there_is_no_such_module",)


def test_what_the_other_side_cannot_import(executor):
    """A module that is missing there is a ModuleNotFoundError of the call."""
    for future in (executor.submit(identity, OnlyHere()), executor.submit(OnlyHere)):
        error = future.exception(LIMIT)
        assert type(error) is ModuleNotFoundError
        assert "there_is_no_such_module" in str(error)


# -- errors that are hard to carry


class NeedsTwo(Exception):
    """Its constructor takes other arguments than it hands on: it cannot be rebuilt."""

    def __init__(self, name, number):
        super().__init__(f"{name} has {number}")


class HoldsALock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class HasNoText(Exception):
    def __str__(self):
        raise LookupError("no text")

    __repr__ = __str__


class HasNoTextAndALock(HasNoText, HoldsALock):
    pass


class WillNotBePickled(Exception):
    def __reduce__(self):
        raise LookupError("not to be pickled")


class ExitsWhenPickled(Exception):
    def __reduce__(self):
        raise SystemExit(7)


class ExitsWhenUnpickled(Exception):
    def __reduce__(self):
        return fail_with, (SystemExit(7),)


class BecomesSomethingElse(Exception):
    def __reduce__(self):
        return str, ("something else",)


@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        (NeedsTwo, ("the box", 3), "the box has 3"),
        (HoldsALock, ("locked",), "locked"),
        (HasNoTextAndALock, ("unseen",), "<no text: LookupError>"),
        (WillNotBePickled, ("stays",), "stays"),
        (ExitsWhenPickled, ("stays",), "stays"),
        (ExitsWhenUnpickled, ("gone",), "gone"),
        (BecomesSomethingElse, ("changed",), "changed"),
    ],
)
def test_an_error_that_cannot_be_carried_is_named(executor, kind, arguments, text):
    """RemoteError says of which class it was, and its text; the traceback is kept; the pool goes on."""

    def fail():
        raise kind(*arguments)

    error = executor.submit(fail).exception(LIMIT)
    assert type(error) is RemoteError
    assert str(error).startswith(f"test_failures.{kind.__name__}: {text} (the exception")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in fail\n" in str(error.__cause__)
    assert kind.__name__ in str(error.__cause__)
    assert executor.submit(square, 3).result(LIMIT) == 9


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An error none of whose attributes can be set: not its cause either."""

    number: int

    def __reduce__(self):
        return Frozen, (self.number,)


class RefusesAttributes(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


class WithAttributes(Exception):
    def __init__(self, text, number=0):
        super().__init__(text)
        self.number = number


class OfNoOne(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        Frozen(3),
        RefusesAttributes("mine"),
        WithAttributes("mine", 4),
        HasNoText("unseen"),
        OfNoOne("mine"),
        OSError(2, "gone", "file"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("stage", ["running", "pickling the call", "unpickling the result"])
def test_an_error_that_can_be_carried_arrives_as_it_is(executor, error, stage):
    """Its class, its arguments and its attributes are kept, and it has the traceback as cause: odd ones, too."""
    stages = {
        "running": lambda: executor.submit(fail_with, error),
        "pickling the call": lambda: executor.submit(identity, FailsToPickle(lambda _: error)),
        "unpickling the result": lambda: executor.submit(FailsToUnpickle, lambda _: error),
    }
    arrived = stages[stage]().exception(LIMIT)
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert {**vars(arrived), "__notes__": 0} == {**vars(error), "__notes__": 0}
    assert isinstance(arrived.__cause__, RemoteTraceback)
    assert "in fail_with" in str(arrived.__cause__)
    assert executor.submit(square, 3).result(LIMIT) == 9


class CannotBeFormatted(SyntaxError):
    """The traceback module fails on it: what it says of its place makes no sense."""

    def __init__(self, text):
        super().__init__(text)
        self.lineno, self.offset, self.text, self.filename = 1, "x", "abc", "file"


@pytest.mark.parametrize("stage", ["running", "pickling the call", "unpickling the result"])
def test_an_error_that_cannot_be_formatted(executor, stage):
    """An error whose traceback cannot be printed is the error of its call all the same."""
    error = STAGES[stage](executor, CannotBeFormatted).exception(LIMIT)
    assert isinstance(error, (CannotBeFormatted, RemoteError))
    assert "planned" in str(error)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert executor.submit(square, 3).result(LIMIT) == 9


def test_the_traceback_tells_the_whole_story(executor):
    """The causes, the context, the notes and the groups of an error are in the text of its cause."""

    def fail():
        try:
            fail_with(LookupError("first"))
        except LookupError as first:
            error = ValueError("second")
            error.add_note("a note")
            raise ExceptionGroup("a group", [error, TypeError("third")]) from first

    error = executor.submit(fail).exception(LIMIT)
    assert type(error) is ExceptionGroup
    assert [str(one) for one in error.exceptions] == ["second", "third"]
    text = str(error.__cause__)
    for part in ("LookupError: first", "direct cause", "a group", "second", "a note", "third"):
        assert part in text


def test_the_traceback_does_not_show_the_worker(executor):
    """The text begins in the call, not in the frames that ran it."""
    text = str(executor.submit(fail_with, ValueError("planned")).exception(LIMIT).__cause__)
    assert "_worker.py" not in text
    assert text.count("File ") == 1


def test_an_error_class_made_in_a_function_is_caught_as_itself(executor):
    """A local exception class comes back as the very class."""

    class Local(Exception):
        pass

    def fail():
        raise Local("mine")

    with pytest.raises(Local, match="mine"):
        executor.submit(fail).result(LIMIT)


def test_an_error_that_is_returned_is_a_result(executor):
    """An exception as a value is a value."""
    result = executor.submit(ValueError, "returned").result(LIMIT)
    assert type(result) is ValueError
    assert result.args == ("returned",)
    assert result.__cause__ is None


@pytest.mark.parametrize("kind", [StopIteration, GeneratorExit, StopAsyncIteration, CancelledError])
def test_errors_that_mean_something_to_others_are_errors_of_the_call(executor, kind):
    """An error that ends iterators, or means that a future was cancelled, is the call's error like any other."""
    future = executor.submit(fail_with, kind("planned"))
    assert type(future.exception(LIMIT)) is kind
    assert future.done()
    assert not future.cancelled()
    assert executor.submit(square, 3).result(LIMIT) == 9


class Text(str):
    """A text that cannot be pickled."""

    __slots__ = ()

    def __reduce_ex__(self, protocol):
        raise TypeError("no")


class Wordy(Exception):
    def __str__(self):
        return Text("a text of its own")

    def __reduce__(self):
        raise TypeError("no")


def raise_wordy():
    raise Wordy


def test_an_error_whose_text_cannot_be_pickled_fails_alone(executor):
    """Its text arrives as a plain one."""
    with pytest.raises(RemoteError, match="a text of its own"):
        executor.submit(raise_wordy).result(LIMIT)
    assert executor.submit(abs, -1).result(LIMIT) == 1


class Proxy:
    """An object with any attribute, of an unexpected type."""

    def __getattr__(self, name):
        if name.startswith("__reduce") or name in {"__getstate__", "__setstate__"}:
            raise AttributeError(name)
        return [name]

    def __call__(self):
        return "called"


def test_a_callable_may_have_strange_attributes(executor):
    """It is called, and does not stop those behind it."""
    assert executor.submit(Proxy()).result(LIMIT) == "called"
    assert executor.submit(abs, -1).result(LIMIT) == 1

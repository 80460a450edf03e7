"""The kinds of calls: which calls are expected to take equally long."""

import functools

import pytest

from mpiexecutor._calls.submission import kind_of


def short():
    pass


def long():
    return sum(range(10**6))


def plain(fn):
    def inner(*args):
        return fn(*args)

    return inner


def wrapping(fn):
    return functools.wraps(fn)(plain(fn))


def by_default(fn):
    def inner(*args, fn=fn):
        return fn(*args)

    return inner


def by_first_default(fn):
    return lambda fn=fn: fn()


class Timed:
    def __init__(self, fn):
        self.fn = fn

    def __call__(self, *args):
        return self.fn(*args)

    def run(self, *args):
        return self.fn(*args)


def as_method(fn):
    return Timed(fn).run


def in_partial(fn):
    return functools.partial(map, fn)


DECORATORS = [plain, wrapping, by_first_default, by_default, Timed, as_method, in_partial, functools.cache, functools.partial]


@pytest.mark.parametrize("decorate", DECORATORS)
def test_functions_of_one_decorator_are_of_different_kinds(decorate):
    """They share the code of the decorator: a short one must not be expected to take as long as a long one."""
    assert kind_of(decorate(short)) != kind_of(decorate(long))
    assert kind_of(plain(decorate(short))) != kind_of(plain(decorate(long)))


@pytest.mark.parametrize("decorate", DECORATORS)
def test_a_function_that_is_decorated_again_is_of_the_same_kind(decorate):
    """Functions that are made anew for each call do not each begin without an expectation, and do not fill the table."""
    assert kind_of(decorate(short)) == kind_of(decorate(short))
    assert hash(kind_of(decorate(short))) == hash(kind_of(decorate(short)))


def test_methods_of_different_classes_are_of_different_kinds():
    """An inherited method may call what the class defines."""

    class Base:
        def run(self):
            return self.step()

    class Left(Base):
        step = short

    class Right(Base):
        step = long

    assert kind_of(Left().run) != kind_of(Right().run)
    assert kind_of(Left().run) == kind_of(Left().run)


def test_what_a_closure_holds_besides_functions_does_not_matter():
    """Lambdas that a loop makes are of one kind."""
    assert len({kind_of(lambda i=i, j=[i]: short() or i or j) for i in range(3)}) == 1


def test_functions_that_refer_to_themselves_or_to_many_have_a_kind():
    """The number of functions that are looked at is limited, and empty cells are no matter."""

    def factorial(n):
        return n * factorial(n - 1) if n else missing

    if not factorial:
        missing = 1
    assert kind_of(factorial) == kind_of(factorial)
    many = [plain(short) for _ in range(100)]
    for fn in many:
        many.append(functools.partial(fn, *many)) if len(many) < 200 else None
    assert len(kind_of(many[-1])) < 10


def test_own_code_that_fails_does_not_matter():
    """What is called may be any object."""

    class Awkward:
        def __getattribute__(self, name):
            raise RuntimeError(name)

        def __call__(self):
            pass

    assert "Awkward" in str(kind_of(Awkward()))

"""Calls of maps: how many are sent together, and that each of them fails, is lost, is cancelled alone. No MPI: see fakes.py."""

import itertools
import threading
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool

import pytest
from fakes import LIMIT, FakeWorker, fake_crew, identity, in_a_thread, new_page, real_worker, until

from mpiexecutor import BrokenWorkerError
from mpiexecutor._calls import batch
from mpiexecutor._calls.messages import MapCalls, load_outcomes
from mpiexecutor._calls.submission import kind_of
from mpiexecutor._liveness.status_page import INITIALIZER

KIND = kind_of(identity)


@pytest.fixture
def crew():
    with fake_crew(workers=2) as crew:
        yield crew


def mapped(crew, *names, seconds=1e-6, **options):
    """Have calls of a map go in one message for one worker; return the iterator, and the worker that has taken it."""
    session = crew.open(1, **options.pop("of_session", {}))
    crew.submit("goes before", session=session, kind=KIND)
    first = FakeWorker(crew, 1)
    first.take()
    crew.scheduler._state.seconds[KIND] = seconds
    results = crew.map(identity, names, session=session, **options)
    first.answer(seconds=seconds)
    crew.settle()
    worker = FakeWorker(crew, 1)
    assert worker.take_map() == list(names)
    return results, worker


# -- how many go together


def test_before_the_first_result_each_goes_alone(crew):
    """Nothing is known of how long they take. Then what waits goes together."""
    results = crew.map(identity, range(100))
    workers = [FakeWorker(crew, rank) for rank in (1, 2, 1, 2)]
    assert [worker.take_map() for worker in workers] == [[0], [1], [2], [3]]
    workers[0].answer_map(seconds=1e-6)
    crew.settle()
    assert len(workers[0].take_map()) == 96  # all, as a message takes longer than they do
    workers[0].answer_map()
    for worker in workers[1:]:
        worker.answer_map()
    assert list(results) == [*range(100)]


@pytest.mark.parametrize(("seconds", "expected"), [(1e-7, 4000), (1e-6, 4000), (1e-5, 400), (1e-3, 4), (4e-3, 1), (1.0, 1)])
def test_a_message_has_calls_for_four_milliseconds_at_most(crew, seconds, expected):
    """As they are expected to take; and 4,096 at most."""
    crew.scheduler._state.seconds[KIND] = seconds
    crew.work.room = 0  # until all wait
    crew.submit("goes before")
    crew.map(identity, range(100_000))
    crew.work.room = 1
    crew.work.end_stream()
    FakeWorker(crew, 1).take()
    assert abs(len(FakeWorker(crew, 1).take_map()) - expected) <= expected // 40  # rounding


def test_the_last_messages_are_small(crew):
    """What is left is shared by the messages that may be under way, so that the last does not take longer than the others."""
    crew.scheduler._state.seconds[KIND] = 1e-3
    results = crew.map(identity, range(40))
    sizes = []
    while len(crew.work):
        worker = FakeWorker(crew, 1)
        sizes.append(len(worker.take_map()))
        worker.answer_map(seconds=1e-3)
        crew.settle()
    assert sum(sizes) == 40
    assert max(sizes) == 4
    assert sizes[-3:] == [1, 1, 1]
    assert list(results) == [*range(40)]


def test_a_message_has_256_kib_at_most(crew):
    """Of calls with long arguments it has fewer."""
    crew.scheduler._state.seconds[KIND] = 1e-7
    crew.work.room = 0  # until all wait
    crew.submit("goes before")
    crew.map(identity, [(number, bytes(50_000)) for number in range(20)])
    crew.work.room = 1
    crew.work.end_stream()
    FakeWorker(crew, 1).take()
    assert len(FakeWorker(crew, 1).take_map()) == 6


def test_calls_of_a_slow_iterable_are_sent_as_they_come(crew):
    """None waits for the next to be there."""
    go_on = threading.Event()

    def slow():
        yield 1
        assert go_on.wait(LIMIT)
        yield 2

    mapping = in_a_thread(crew.map, identity, slow(), at_hand=False)
    until(lambda: len(crew.work))
    worker = FakeWorker(crew, 1)
    assert worker.take_map() == [1]
    go_on.set()
    results = mapping.result(LIMIT)
    other = FakeWorker(crew, 2)
    assert other.take_map() == [2]
    worker.answer_map()
    other.answer_map()
    assert list(results) == [1, 2]


def test_calls_of_maps_and_others_are_sent_in_the_order_in_which_they_came(crew):
    """First come, first served."""
    crew.scheduler._state.seconds[KIND] = 1e-6
    crew.submit(*"abcd")
    first, second = crew.map(identity, range(3)), crew.map(identity, range(10, 13))
    future = crew.submit_one("e")
    third = crew.map(identity, range(20, 23))
    worker = FakeWorker(crew, 1)
    for _ in "abcd":
        worker.take()
        worker.answer()
    crew.settle()
    worker = FakeWorker(crew, 1)
    assert worker.take_map() == [0, 1, 2]
    worker.answer_map()
    assert worker.take_map() == [10, 11, 12]
    worker.answer_map()
    other = FakeWorker(crew, 1)
    assert other.take() == ["e"]
    other.answer()
    assert worker.take_map() == [20, 21, 22]
    worker.answer_map()
    assert [list(each) for each in (first, second, third)] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    assert future.result(LIMIT) == "e"


def test_a_map_with_buffersize_reads_no_further(crew):
    """One call more for each result that the iterator yields."""
    numbers = itertools.count()
    results = crew.map(identity, numbers, buffersize=6, at_hand=False)
    worker = FakeWorker(crew, 1)
    while len(crew.work):
        worker.take_map()
        worker.answer_map()
        crew.settle()
    assert next(numbers) == 6
    assert next(results) == 0
    assert next(numbers) == 8
    results.close()


# -- results


def test_results_come_in_order_or_as_they_are_ready(crew):
    """A block that is late holds back those behind it only if the order is wanted."""
    ordered, unordered = crew.map(identity, [1, 2]), crew.map(identity, [3, 4], unordered=True)
    workers = [FakeWorker(crew, 1) for _ in range(4)]
    assert [worker.take_map() for worker in workers] == [[1], [2], [3], [4]]
    workers[3].answer_map()
    assert next(unordered) == 4
    workers[2].answer_map()
    assert list(unordered) == [3]
    workers[1].answer_map()
    crew.settle()
    workers[0].answer_map()
    assert list(ordered) == [1, 2]


def test_the_parts_of_a_block_come_as_they_are_ready(crew):
    """The iterator has the first results while the worker runs the others."""
    results, worker = mapped(crew, 1, 2, 3)
    worker.answer_map(1, 2)
    assert [next(results), next(results)] == [1, 2]
    worker.answer_map(3)
    assert list(results) == [3]


def test_an_executor_is_idle_when_all_calls_are_settled(crew):
    """Of a map as of others: `shutdown` waits for it."""
    results, worker = mapped(crew, 1, 2, 3)
    session = crew.session_of(worker)
    waiting = in_a_thread(crew.scheduler.wait, session)
    worker.answer_map(1, 2)
    crew.settle()
    assert not waiting.done()
    assert session.unsettled == 1
    worker.answer_map(3)
    waiting.result(LIMIT)
    assert list(results) == [1, 2, 3]


# -- calls that go alone


def test_a_long_call_goes_alone_and_has_its_result_in_its_place(crew):
    """As one of `submit`."""
    long = bytes(100_000)
    results = crew.map(identity, [1, long, 3])
    first, alone, last = FakeWorker(crew, 1), FakeWorker(crew, 1), FakeWorker(crew, 2)
    assert first.take_map() == [1]
    assert alone.take() == [long]
    assert last.take_map() == [3]
    last.answer_map()
    alone.answer(value="the long one")
    first.answer_map()
    assert list(results) == [1, "the long one", 3]


def test_a_long_call_is_cancelled_with_the_others(crew):
    """If it was not sent."""
    crew.submit(*"abcd")
    long = bytes(100_000)
    results = crew.map(identity, [0, 1, long], buffersize=3)
    worker = FakeWorker(crew, 1)
    for _ in "abc":
        worker.take()
        worker.answer()
    crew.settle()
    assert worker.take() == ["d"]
    (first,) = [worker] if worker.take_map() == [0] else []
    first.answer_map()
    assert next(results) == 0
    results.close()
    crew.settle()
    assert [FakeWorker(crew, 1).take_map()] == [[1]]
    assert len(crew.work) in {0, 1}


class Unpicklable:
    def __reduce__(self):
        raise LookupError("not to be pickled")


def test_a_call_that_cannot_be_pickled_fails_in_its_place(crew):
    """The others are run."""
    results = crew.map(identity, [1, Unpicklable(), 3], unordered=False)
    worker = FakeWorker(crew, 1)
    assert worker.take_map() == [1]
    worker.answer_map()
    assert worker.take_map() == [3]
    assert next(results) == 1
    with pytest.raises(LookupError, match="not to be pickled") as caught:
        next(results)
    assert "rank 0" in str(caught.value.__cause__)


# -- deaths


def test_only_the_call_that_a_failed_worker_had_begun_is_lost(crew):
    """What it held is known; what it had not begun is sent again, before all others."""
    results, worker = mapped(crew, 1, 2, 3, 4, 5, unordered=True)
    session = crew.session_of(worker)
    behind = crew.map(identity, [6], session=session)
    worker.answer_map(1)
    worker.die(begun=3, holding=[1, 2])
    crew.settle()
    other = FakeWorker(crew, 2)
    assert other.take_map() == [4, 5]
    other.answer_map()
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(BrokenWorkerError, match="was killed by SIGKILL while it ran this call"):
        next(results)
    crew.settle()
    assert other.take_map() == [6]
    other.answer_map()
    assert list(behind) == [6]
    assert session.idle
    assert crew.scheduler.done_by(1) == 1 + 2


def test_a_call_that_is_lost_is_run_again_alone(crew):
    """With `retries`; those behind it follow in another message, so that it is not their worker that it kills."""
    results, worker = mapped(crew, 1, 2, 3, 4, of_session={"retries": 1})
    worker.die(begun=2, holding=[1])
    crew.settle()
    again = FakeWorker(crew, 2)
    assert again.take_map() == [2]
    again.answer_map()
    crew.settle()
    assert again.take_map() == [3, 4]
    again.answer_map()
    assert list(results) == [1, 2, 3, 4]


def test_retries_are_counted_by_call():
    """Not by message: a call whose worker dies once more fails; one that was in the same message does not."""
    with fake_crew(workers=4) as crew:
        results, worker = mapped(crew, 1, 2, 3, of_session={"retries": 1})
        session = crew.session_of(worker)
        worker.die(begun=1)
        crew.settle()
        second = FakeWorker(crew, 2)
        assert second.take_map() == [1]
        second.answer_map()
        crew.settle()
        assert second.take_map() == [2, 3]
        second.die(begun=2)
        crew.settle()
        third = FakeWorker(crew, 3)
        assert third.take_map() == [2]
        third.die(begun=2)
        crew.settle()
        fourth = FakeWorker(crew, 4)
        assert fourth.take_map() == [3]
        fourth.answer_map()
        assert next(results) == 1
        with pytest.raises(BrokenWorkerError):
            next(results)
        crew.settle()
        assert session.idle


def test_a_call_that_was_not_begun_is_not_lost(crew):
    """It is sent again, as are those behind it."""
    results, worker = mapped(crew, 1, 2, 3)
    worker.die()
    crew.settle()
    other = FakeWorker(crew, 2)
    assert other.take_map() == [1]
    other.answer_map()
    crew.settle()
    assert other.take_map() == [2, 3]
    other.answer_map()
    assert list(results) == [1, 2, 3]


def test_nothing_is_lost_with_a_worker_that_dies_between_two_calls(crew):
    """Its page has the result of the call that was begun last."""
    results, worker = mapped(crew, 1, 2, 3)
    worker.die(begun=2, holding=[1, 2])
    crew.settle()
    other = FakeWorker(crew, 2)
    assert other.take_map() == [3]
    other.answer_map()
    assert list(results) == [1, 2, 3]


def test_results_that_were_put_and_held_count_once(crew):
    """The page may have what was put, too."""
    results, worker = mapped(crew, 1, 2, 3, 4)
    worker.answer_map(1, 2)
    worker.die(begun=4, holding=[1, 2, 3, 4])
    assert list(results) == [1, 2, 3, 4]
    crew.settle()
    assert crew.session_of(worker).idle


def test_results_that_come_after_the_page_was_read_count_once(crew):
    """A worker that was taken for dead goes on, perhaps."""
    results, worker = mapped(crew, 1, 2, 3)
    worker.die(begun=3, holding=[1, 2])
    crew.settle()
    worker.answer_map(1, 2, 3)
    crew.settle()
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(BrokenWorkerError):
        next(results)


def test_a_worker_that_is_given_up_may_have_begun_all_calls(crew):
    """It is not known: none of them is run twice."""
    results, worker = mapped(crew, 1, 2, 3, unordered=True)
    worker.answer_map(1)
    worker.die(begun=None)
    assert next(results) == 1
    with pytest.raises(BrokenWorkerError):
        next(results)
    crew.settle()
    assert len(crew.work) == 0
    assert crew.session_of(worker).idle


@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_result_in_the_memory_of_a_failed_worker_is_lost_with_it(crew, lost, retries):
    """Although the reply itself has come. Those behind it are not lost; it is run again if the executor wants that."""
    results, worker = mapped(crew, 1, 2, 3, 4, unordered=True, of_session={"retries": retries})
    with crew.replies.together():
        if lost > 1:
            worker.answer_map(*range(1, lost))
        worker.answer_in_lost_memory(lost)
        if lost < 3:
            worker.answer_map(*range(lost + 1, 4))
        worker.die(begun=4, holding=[4])
    assert {next(results), next(results), next(results)} == {1, 2, 3, 4} - {lost}
    if retries:
        crew.settle()
        other = FakeWorker(crew, 2)
        assert other.take_map() == [lost]
        other.answer_map()
        assert list(results) == [lost]
    else:
        with pytest.raises(BrokenWorkerError):
            next(results)
    crew.settle()
    assert crew.session_of(worker).idle


def test_a_call_that_runs_too_long_fails_alone(crew):
    """With TimeoutError, and is not run again; those behind it are."""
    results, worker = mapped(crew, 1, 2, 3, of_session={"retries": 5, "task_timeout": 0.5})
    assert worker.task_timeout == 0.5
    worker.die(begun=1, overdue=0.5)
    crew.settle()
    other = FakeWorker(crew, 2)
    assert other.take_map() == [2, 3]
    with pytest.raises(TimeoutError, match="ran longer than task_timeout"):
        next(results)


def test_a_worker_that_dies_in_the_initializer_breaks_the_executor(crew):
    """As with other calls."""
    results, worker = mapped(crew, 1, 2)
    worker.die(begun=INITIALIZER)
    with pytest.raises(BrokenProcessPool, match="initializer"):
        next(results)


def test_without_workers_all_calls_of_a_map_fail(crew):
    """Those that wait, too; and the executor is idle then."""
    results = crew.map(identity, range(100))
    for rank in (1, 2):
        worker = FakeWorker(crew, rank)
        worker.take_map()
        worker.die()
    with pytest.raises(BrokenProcessPool, match="all workers are lost"):
        next(results)
    until(lambda: crew.session.idle)
    with pytest.raises(BrokenProcessPool):
        crew.map(identity, range(3))


# -- given back


def test_calls_that_are_given_back_are_sent_again_before_all_others(crew):
    """By themselves; and calls of their kind are expected to be long."""
    results, worker = mapped(crew, 1, 2, 3, 4, 5)
    crew.session_of(worker).limit = 2
    worker.answer_map(1)
    worker.give_back_from(3)
    crew.settle()
    assert crew.scheduler._state.seconds[KIND] == 2e-3
    other = FakeWorker(crew, 2)
    assert other.take_map() == [3, 4]  # two milliseconds each
    other.answer_map(seconds=1e-3)
    worker.answer_map(2)
    crew.settle()
    assert other.take_map() == [5]
    other.answer_map()
    assert list(results) == [1, 2, 3, 4, 5]


def test_a_block_that_was_given_back_in_part_can_be_lost(crew):
    """What is another worker's by then is not this one's."""
    results, worker = mapped(crew, 1, 2, 3)
    crew.session_of(worker).limit = 2
    worker.give_back_from(2)
    crew.settle()
    other = FakeWorker(crew, 2)
    assert other.take_map() == [2]
    worker.die(begun=1)
    other.answer_map()
    with pytest.raises(BrokenWorkerError):
        next(results)
    crew.settle()
    assert other.take_map() == [3]  # sent before the map has failed
    other.answer_map()
    crew.settle()
    assert crew.session_of(worker).idle


# -- the end


def test_calls_that_were_not_sent_are_cancelled_when_the_iterator_is_closed(crew):
    """Those that were given back, too."""
    results, worker = mapped(crew, 1, 2, 3)
    session = crew.session_of(worker)
    more = crew.map(identity, range(10, 20), session=session)
    worker.answer_map(1)
    assert next(results) == 1
    results.close()
    worker.give_back_from(3)
    worker.answer_map(2)
    crew.settle()
    other = FakeWorker(crew, 1)
    assert other.take_map() == [*range(10, 12)]  # two milliseconds each
    more.close()


def test_an_error_ends_the_iterator_and_cancels_the_rest(crew):
    """As `map` has it."""
    crew.scheduler._state.seconds[KIND] = 1.0
    results = crew.map(identity, range(10))
    worker = FakeWorker(crew, 1)
    assert worker.take_map() == [0]
    worker.die(begun=0)
    with pytest.raises(BrokenWorkerError):
        next(results)
    assert list(results) == []
    for name in (1, 2, 3):
        worker = FakeWorker(crew, 2)
        assert worker.take_map() == [name]
        worker.answer_map()
    crew.settle()
    assert len(crew.work) == 0
    assert crew.session.idle


def test_calls_that_shutdown_cancels_raise_so(crew):
    """After the results of those that were sent."""
    results = crew.map(identity, range(10))
    crew.scheduler.close(crew.session, "closed", cancel=True)
    for name in range(4):
        worker = FakeWorker(crew, 1)
        assert worker.take_map() == [name]
        worker.answer_map()
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(CancelledError):
        next(results)
    crew.settle()
    assert crew.session.idle


def test_a_map_of_an_executor_that_is_closed_meanwhile_is_refused(crew):
    """What was submitted before is run."""

    def closing():
        yield 1
        crew.scheduler.close(crew.session, "closed")
        yield 2

    with pytest.raises(RuntimeError, match="closed"):
        crew.map(identity, closing(), at_hand=False)
    worker = FakeWorker(crew, 1)
    assert worker.take_map() == [1]
    worker.answer_map()
    crew.settle()
    assert crew.session.idle


def test_a_call_that_is_queued_while_its_executor_closes_is_withdrawn(crew):
    """The executor was closed between the look and the queueing: then nothing may wait for it."""
    crew.submit(*"abcd")
    check = crew.scheduler.check_open
    backlog = crew.session.backlog

    class Closing(type(backlog)):
        def extend(self, values):
            super().extend(values)
            crew.scheduler.close(crew.session, "closed")

    crew.session.backlog = Closing()
    with pytest.raises(RuntimeError, match="closed"):
        crew.map(identity, [1, 2, 3])
    assert not crew.session.backlog
    with pytest.raises(RuntimeError):
        check(crew.session)


def test_a_map_waits_for_room(crew):
    """While `max_pending` is reached; calls that are cancelled make room at once."""
    session = crew.open(max_pending=3)
    mapping = in_a_thread(crew.map, identity, range(5), session=session)
    until(lambda: crew.scheduler._state.changed._waiters)
    worker = FakeWorker(crew, 1)
    for name in range(3):
        assert worker.take_map() == [name]
    assert not mapping.done()
    worker.answer_map()
    until(lambda: len(crew.work))
    other = FakeWorker(crew, 2)
    assert other.take_map() == [3]
    mapping.cancel()


def test_messages_that_cannot_be_put_fail_their_map(crew):
    """As with other calls; the executor goes on."""
    crew.work.error = OverflowError("too long for the channel")
    results = crew.map(identity, range(3))
    with pytest.raises(OverflowError, match="too long"):
        next(results)
    crew.work.error = None
    results = crew.map(identity, [5])
    worker = FakeWorker(crew, 1)
    assert worker.take_map() == [5]
    worker.answer_map()
    assert list(results) == [5]


# -- real workers


@pytest.fixture
def worker(crew):
    """Have a real worker serve."""
    serving = in_a_thread(real_worker(crew).serve)
    yield
    crew.work.close()
    serving.result(LIMIT)


@pytest.mark.parametrize("at_hand", [True, False])
@pytest.mark.usefixtures("worker")
def test_a_real_worker_runs_the_calls_of_a_map(crew, at_hand):
    """Both sides agree on what the messages look like; arguments and results of all kinds are what they were."""
    things = [1, -(10**30), 10**400, 2.5, 1j, None, True, "text", "long " * 100, b"bytes", (1, (2,)), [1], {"a": 1}, float("inf")]
    results = crew.map(identity, things * 20, at_hand=at_hand)
    assert list(results) == things * 20
    assert crew.scheduler.done_by(1) == len(things) * 20


class Fails:
    """Fails where it is told to."""

    def __init__(self, where, error):
        self.where, self.error = where, error

    def __reduce__(self):
        if self.where == "result":
            raise self.error
        return unpickled, (self.where, self.error)


def unpickled(where, error):
    if where == "argument":
        raise error
    if where == "there and back":
        return Fails("result", error)
    return Fails(where, error)


def fail(what):
    if isinstance(what, Fails) and what.where == "call":
        raise what.error
    return what


@pytest.mark.parametrize("where", ["argument", "call", "there and back"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.usefixtures("worker")
def test_a_call_fails_alone(crew, where, kind):
    """Wherever it fails, and whatever it raises: the results before it are yielded, and those behind it exist."""
    crew.scheduler._state.seconds[kind_of(fail)] = 1e-6  # all go together
    arguments = [*range(10), Fails(where, kind("planned")), *range(10, 20)]
    results = crew.map(fail, arguments)
    assert [next(results) for _ in range(10)] == [*range(10)]
    with pytest.raises(kind, match="planned") as caught:
        next(results)
    assert "rank 1" in str(caught.value.__cause__)
    assert list(crew.map(fail, range(10))) == [*range(10)]


def changed(values):
    values.append(1)
    return len(values)


@pytest.mark.usefixtures("worker")
def test_what_a_call_does_to_its_arguments_is_not_seen_by_others(crew):
    """Each has its own, though they are the same object in the script."""
    same = []
    crew.scheduler._state.seconds[kind_of(changed)] = 1e-6
    assert list(crew.map(changed, [same] * 50)) == [1] * 50
    assert same == []


def long_if(number):
    return bytes(300_000) if number % 7 == 3 else number


@pytest.mark.usefixtures("worker")
def test_large_results_come_in_their_places(crew):
    """They go alone, between the others."""
    crew.scheduler._state.seconds[kind_of(long_if)] = 1e-6
    found = [len(each) if isinstance(each, bytes) else each for each in crew.map(long_if, range(50))]
    assert found == [300_000 if number % 7 == 3 else number for number in range(50)]


GATE = threading.Event()


def wait_if(number):
    if number == 3:
        assert GATE.wait(LIMIT)
    return number


@pytest.mark.usefixtures("worker")
def test_a_long_call_holds_nothing_back(crew):
    """The results before it come, and another worker runs the calls behind it."""
    GATE.clear()
    crew.scheduler._state.seconds[kind_of(wait_if)] = 1e-6
    results = crew.map(wait_if, range(10), unordered=True)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    other = in_a_thread(real_worker(crew, rank=2).serve)
    assert {next(results) for _ in range(6)} == {*range(4, 10)}
    GATE.set()
    assert next(results) == 3
    crew.work.close()
    other.result(LIMIT)


PAGES = []


def look(number):
    """Return whether the page names this call, and holds the results of those before it."""
    page = PAGES[-1]
    held = dict(load_outcomes(page.held))
    running = page.begun
    return [running - number, page.running_since is not None, [held.get(running - back) for back in range(1, number + 1)]]


def test_the_page_names_the_running_call_and_holds_the_results_before_it(crew):
    """Before the next call begins: this is what the root has when the worker dies in it."""
    page = new_page()
    PAGES.append(page)
    crew.scheduler._state.seconds[kind_of(look)] = 1e-6
    results = crew.map(look, range(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "HELD_OF_MAP", LIMIT)
        worker = real_worker(crew, messages=1, page=page)
        worker._flusher.watch = int  # or it might give some back
        worker.serve()
    first, *others = results
    number = first[0]
    assert [each[:2] for each in (first, *others)] == [[number, True]] * 4
    assert [len(list(filter(None, each[2]))) for each in others] == [1, 2, 3]
    assert page.held == b""
    assert page.running_since is None


def test_results_are_put_in_order_though_two_threads_put_them():
    """The flusher is on its way with the first while the worker has more: they wait for it."""
    page = new_page()
    putting, may_put, running, put = threading.Event(), threading.Event(), threading.Event(), []

    def slow(_block, position, _seconds, values):
        if position == 0:
            putting.set()
            assert may_put.wait(LIMIT)
        put.append((position, values))

    def call(number):
        if number == 1:
            running.set()
            assert putting.wait(LIMIT)
        return number

    block = batch.CurrentBlock(page, slow, pytest.fail, put.append, pytest.fail)
    message = MapCalls(0, None, 0.0, 1, None, 100, None, 1, [(0,), (1,)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "HELD_OF_MAP", LIMIT)
        worker = in_a_thread(block.run, message, lambda: lambda: call, bool)
        assert running.wait(LIMIT)
        flusher = in_a_thread(block.flush_if_still, 101)
        until(lambda: dict(load_outcomes(page.held)) == {100: 0, 101: 1})
        assert not worker.done()
        assert put == []
        may_put.set()
        flusher.result(LIMIT)
        worker.result(LIMIT)
    assert put == [(0, [0]), (1, [1])]
    assert page.held == b""


def test_a_flusher_that_comes_late_gives_nothing_back():
    """The call that it saw twice has ended, or its block."""
    put = []
    block = batch.CurrentBlock(new_page(), lambda *what: put.append(what), pytest.fail, put.append, pytest.fail)
    block.begin(100, [(0,), (1,)], 0.0)
    block.running = 100
    block.flush_if_still(101)
    block.flush_if_still(None)
    assert [*block.rows] == [(0,), (1,)]
    block.rows.clear()
    block.end()
    block.begin(200, [(2,)], 0.0)
    block.flush_if_still(100)
    assert [*block.rows] == [(2,)]
    assert put == []

"""The dispatcher and the collector: what is sent when, what waits meanwhile, and whose future gets what. No MPI: see fakes.py."""

import threading
from concurrent.futures import CancelledError, Future

import pytest
from fakes import LIMIT, UNKNOWN, FakeWorker, fake_crew, in_a_thread, real_worker, until

from mpiexecutor._calls.outcomes import RemoteTraceback


@pytest.fixture
def crew():
    with fake_crew(workers=2) as crew:
        yield crew


def results(futures):
    return [future.result(LIMIT) for future in futures]


# -- what is sent


def test_calls_are_sent_in_order_and_each_has_its_own_result(crew):
    """Whatever the order in which the results come."""
    futures = crew.submit("a", "b", "c")
    first, second, third = (FakeWorker(crew, rank) for rank in (1, 2, 1))
    assert [worker.take() for worker in (first, second, third)] == [["a"], ["b"], ["c"]]
    for worker in (third, first, second):
        worker.answer()
    assert results(futures) == ["a", "b", "c"]


def test_a_real_worker_runs_what_is_sent(crew):
    """The two sides agree on what the messages look like."""
    futures = crew.submit("a", "b", "c")
    real_worker(crew, messages=3).serve()
    assert results(futures) == ["a", "b", "c"]
    crew.settle()
    assert crew.scheduler.done_by(1) == 3


def test_two_messages_a_worker_are_on_their_way_and_the_rest_can_be_cancelled(crew):
    """One that is run, and one that waits for it. What has been sent cannot be cancelled, and what was cancelled is not sent."""
    futures = crew.submit("a", "b", "c", "d", "e", "f")
    assert [future.running() for future in futures] == [True] * 4 + [False] * 2
    assert [future.cancel() for future in futures] == [False] * 4 + [True] * 2
    last = crew.submit_one("g")
    worker = FakeWorker(crew, 1)
    for name in "abcd":
        assert worker.take() == [name]
        worker.answer()
        crew.settle()
    assert worker.take() == ["g"]
    worker.answer()
    assert last.result(LIMIT) == "g"
    with pytest.raises(CancelledError):
        futures[4].result(LIMIT)


def test_each_message_that_is_done_makes_room_for_another(crew):
    """At once, and in order."""
    futures = crew.submit(*range(8))
    worker = FakeWorker(crew, 1)
    for name in range(8):
        assert len(crew.work) == min(4, 8 - name)
        assert worker.take() == [name]
        worker.answer()
        crew.settle()
    assert results(futures) == [*range(8)]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_an_executor_with_fewer_workers_has_one_message_for_each(most):
    """Any worker may take it, so only the number of messages keeps the number of workers."""
    with fake_crew(workers=4) as crew:
        crew.submit(*range(9), session=crew.open(most))
        assert len(crew.work) == most


def test_executors_take_turns(crew):
    """One with many calls leaves another its own room, and of what can be sent at a time each sends one message in turn."""
    busy, other = crew.open(), crew.open()
    crew.work.room = 0
    crew.submit(*range(20), session=busy)
    crew.submit("mine", "mine, too", session=other)
    assert crew.take_all() == [[0]]
    crew.work.room = 100
    crew.work.end_stream()
    assert crew.take_all() == [[1], ["mine"], [2], ["mine, too"], [3]]


def test_what_many_calls_are_expected_to_take_decides_how_many_go_together():
    """Unknown: each goes alone. Known to be short: many wait here until they make up a message together."""
    with fake_crew(workers=100) as crew:
        crew.submit(*range(10))
        assert crew.take_all() == [[name] for name in range(10)]
        crew.teach("short", 0.0)
        crew.submit(*range(10), kind="short", session=crew.open())
        assert crew.take_all() == [[0], [1], [2], [3]]  # as many as the root can feed
        assert crew.scheduler._dispatcher._slow_check.wanted
        crew.teach("long", 1.0)
        crew.submit(*range(150), kind="long", session=crew.open())
        assert crew.take_all() == [[name] for name in range(150)]


def test_more_is_sent_at_a_time_the_longer_calls_take():
    """As the root has time to feed more workers then: two messages a worker, and one worker each 25 us."""
    with fake_crew(workers=100) as crew:
        crew.teach("short", 101e-6)
        crew.submit(*range(50), kind="short")
        assert len(crew.work) == 2 * (2 + 4)


@pytest.mark.parametrize(("seconds", "size", "expected"), [(0.0, 10, 256), (0.0, 100 << 10, 2), (0.4e-3, 10, 2), (0.0, 1 << 20, 1)])
def test_a_message_is_cut_by_count_by_bytes_and_by_time(crew, seconds, size, expected):
    """It has 256 calls, 256 KiB and a millisecond at the most; and what is left is shared by those that will follow."""
    crew.teach("kind", seconds)
    crew.submit(*range(2000), kind="kind", size=size)
    worker = FakeWorker(crew, 1)
    assert [worker.take() for _ in range(4)] == [[0], [1], [2], [3]]
    worker.answer(seconds=seconds)
    crew.settle()
    assert worker.take() == [*range(4, 4 + expected)]


def test_a_message_leaves_something_for_the_others(crew):
    """Few calls, which would all fit into one message, go in as many as may be sent."""
    crew.teach("short", 0.0)
    futures = crew.submit(*range(12), kind="short")
    worker = FakeWorker(crew, 1)
    assert [worker.take() for _ in range(4)] == [[0], [1], [2], [3]]
    worker.answer()
    assert futures[3].result(LIMIT) == 3
    crew.settle()
    assert worker.take() == [4, 5]  # a quarter of what there is


def test_what_waits_behind_slow_messages_is_sent_after_two_looks():
    """They were expected to be short, and are not: others do not wait for them, though more than the usual is on its way then."""
    with fake_crew(workers=100) as crew:
        crew.teach("short", 0.0)
        crew.submit(*range(10), kind="short")
        assert crew.take_all() == [[0], [1], [2], [3]]
        crew.look()
        assert not crew.work
        crew.look()
        assert crew.take_all() == [[4], [5], [6], [7]]
        crew.look()
        assert not crew.work
        crew.look()
        assert crew.take_all() == [[8], [9]]


def test_a_slow_message_that_is_done_counts_no_more():
    """Then it lets no call through."""
    with fake_crew(workers=100) as crew:
        crew.teach("short", 0.0)
        first = crew.submit(*range(4), kind="short")
        workers = [FakeWorker(crew, rank) for rank in range(1, 5)]
        for worker in workers:
            worker.take()
        crew.submit("more", kind="short")
        crew.look(2)
        assert crew.take_all() == [["more"]]
        for worker in workers:
            worker.answer()
        assert results(first) == [0, 1, 2, 3]
        crew.settle()
        crew.submit(*range(5), kind="short")
        assert len(crew.work) == 3  # with "more", which nobody has looked at twice


def test_what_cannot_be_put_fails_alone(crew):
    """A call that no channel carries, say: its error is that of its future, and others are sent."""
    before = crew.submit_one("before")
    put, crew.work.put_nowait = crew.work.put_nowait, lambda _: 1 // 0
    future = crew.submit_one("too much")
    crew.work.put_nowait = put
    behind = crew.submit_one("behind")
    error = future.exception(LIMIT)
    assert type(error) is ZeroDivisionError
    assert type(error.__cause__) is RemoteTraceback
    assert crew.take_all() == [["before"], ["behind"]]
    assert not before.done()
    assert not behind.done()
    crew.scheduler.close(crew.session, "closed")


def test_an_interrupt_while_a_message_is_put_loses_no_call(crew):
    """Ctrl-C in the thread that submits: the next that has something to send sends it."""
    put = crew.work.put_nowait

    def interrupt(_):
        crew.work.put_nowait = put
        raise KeyboardInterrupt

    crew.work.put_nowait = interrupt
    with pytest.raises(KeyboardInterrupt):
        crew.submit("a")
    crew.submit("b")
    assert crew.take_all() == [["a"], ["b"]]


# -- when there is no room


def test_what_has_no_room_is_put_in_the_background_and_nothing_else_before_it(crew):
    """No thread waits for it here; the rest is sent, in order, when its put is over."""
    crew.work.room = 0
    futures = crew.submit("long", "b", "c")
    assert crew.take_all() == [["long"]]
    crew.work.room = 10
    futures += crew.submit("d")
    assert not crew.work
    crew.work.end_stream()
    assert crew.take_all() == [["b"], ["c"], ["d"]]


def test_the_end_of_a_long_put_may_find_the_next_one_long(crew):
    """One after another."""
    crew.work.room = 0
    crew.submit("a", "b")
    assert crew.take_all() == [["a"]]
    crew.work.end_stream()
    assert crew.take_all() == [["b"]]
    crew.work.end_stream()


def test_results_come_while_a_message_is_put(crew):
    """The collector does not wait for room, as only the collector makes room."""
    first = crew.submit_one("a")
    worker = FakeWorker(crew, 1)
    worker.take()
    crew.work.room = 0
    crew.submit("long")
    worker.answer()
    assert first.result(LIMIT) == "a"
    crew.work.end_stream()


def test_a_put_in_the_background_that_fails_fails_its_calls_alone(crew):
    """The process may open no more files, say, when it is about to sleep until there is room."""
    crew.work.room = 0
    future = crew.submit_one("long")
    crew.work.end_stream(OSError("too many open files"))
    crew.settle()
    assert future.done()
    assert type(future.exception()) is OSError


# -- what comes back


def test_a_failed_call_fails_alone(crew):
    """With the worker's traceback as cause."""
    futures = crew.submit("a", "b")
    worker = FakeWorker(crew, 2)
    assert worker.take() == ["a"]
    worker.fail("a", ZeroDivisionError("planned"))
    error = futures[0].exception(LIMIT)
    assert type(error) is ZeroDivisionError
    assert "rank 2 of 3 on host (pid 1002)" in str(error.__cause__)
    assert worker.take() == ["b"]
    worker.answer()
    assert futures[1].result(LIMIT) == "b"


class FailsToUnpickle:
    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return fail, (self.kind,)


def fail(kind):
    raise kind("planned")


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_result_that_cannot_be_unpickled_fails_alone(crew, kind):
    """Whatever it raises, the collector goes on."""
    futures = crew.submit("a", "b")
    first, second = FakeWorker(crew, 1), FakeWorker(crew, 2)
    first.take()
    second.take()
    first.answer(value=FailsToUnpickle(kind))
    second.answer()
    assert type(futures[0].exception(LIMIT)) is kind
    assert "rank 0 of 3" in str(futures[0].exception().__cause__)
    assert futures[1].result(LIMIT) == "b"


def test_an_outcome_that_comes_twice_counts_once(crew):
    """The second finds no call."""
    future = crew.submit_one("a")
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.answer()
    worker.answer(value="something else")
    crew.settle()
    assert future.result(LIMIT) == "a"
    assert (crew.scheduler.done_by(1), crew.scheduler.done_by(2)) == (1, 0)


def test_calls_that_are_given_back_are_sent_first_and_their_kind_is_taken_to_be_long():
    """In their order, each alone, before what was submitted later."""
    with fake_crew(workers=2) as crew:
        crew.teach("short", 0.0)
        futures = crew.submit(*range(20), kind="short")
        worker = FakeWorker(crew, 1)
        for name in range(4):
            assert worker.take() == [name]
            worker.answer()
            assert futures[name].result(LIMIT) == name
        crew.settle()
        assert worker.take() == [4, 5, 6, 7]
        worker.give_back(5, 6, 7)
        crew.settle()
        assert len(crew.take_all()) == 3  # what had been sent before
        for name, following in ((4, 5), (5, 6), (6, 7)):
            worker.answer(name)
            assert futures[name].result(LIMIT) == name
            crew.settle()
            assert worker.take() == [following]


def test_a_call_that_is_given_back_and_has_an_outcome_is_of_no_batch_any_more(crew):
    """It was given back by mistake."""
    future = crew.submit_one("a")
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.answer()
    worker.give_back("a")
    crew.settle()
    assert future.result(LIMIT) == "a"
    assert not crew.work


def test_a_function_is_sent_to_the_worker_that_asks_for_it(crew):
    """As long as a call may need it; then nothing, so that the worker does not wait."""
    function = crew.function(abs)
    crew.submit("a", function=function)
    worker = FakeWorker(crew, 2)
    worker.take()
    worker.ask()
    crew.settle()
    assert crew.given == [(2, abs)]
    worker.answer()
    crew.settle()
    del function
    worker.ask()
    crew.settle()
    assert crew.given[1:] == [(2, None)]


# -- what is too large for somebody's memory


def test_a_call_too_large_for_its_worker_fails_alone(crew):
    """Its worker has thrown it away; others, also in messages of the same worker, go on."""
    futures = crew.submit("a", "large", "b")
    worker = FakeWorker(crew, 1)
    worker.take()
    FakeWorker(crew, 2).throw_away()
    worker.answer()
    error = futures[1].exception(LIMIT)
    assert type(error) is MemoryError
    assert str(error) == f"this call is too large for its worker's memory, {1 << 30} bytes when pickled"
    assert worker.take() == ["b"]
    worker.answer()
    assert [futures[0].result(LIMIT), futures[2].result(LIMIT)] == ["a", "b"]
    crew.settle()
    assert not crew.session.under_way  # it makes room for others, too


def test_a_call_that_is_too_large_fails_while_it_is_still_being_put(crew):
    """Its message has no number yet, and needs none: the worker names the call."""
    crew.work.room = 0
    future = crew.submit_one("large")
    FakeWorker(crew, 1).throw_away()
    assert type(future.exception(LIMIT)) is MemoryError
    crew.work.end_stream()
    assert not crew.session.under_way


def test_a_result_too_large_for_the_root_fails_alone(crew):
    """It is thrown away; its first bytes have the number of the call."""
    futures = crew.submit("a", "b")
    workers = [FakeWorker(crew, rank) for rank in (1, 2)]
    for worker in workers:
        worker.take()
    workers[0].answer_at_length("a", size=1 << 30)
    workers[1].answer()
    error = futures[0].exception(LIMIT)
    assert type(error) is MemoryError
    assert "the result of this call is too large for the memory of the script's process" in str(error)
    assert futures[1].result(LIMIT) == "b"


def test_a_short_reply_that_does_not_fit_fails_everything(crew):
    """With no memory for those that travel together nothing can go on."""
    future = crew.submit_one("a")
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.answer_at_length("a", size=100)
    assert "the collector failed" in str(future.exception(LIMIT))
    crew.replies.sizes.clear()


# -- max_pending


def until_somebody_waits(crew):
    until(lambda: crew.scheduler._state.changed._waiters)


def test_submit_waits_while_max_pending_is_reached(crew):
    """Until a future is done, and no longer."""
    session = crew.open(max_pending=2)
    futures = crew.submit("a", "b", session=session)
    third = in_a_thread(crew.submit_one, "c", session=session)
    until_somebody_waits(crew)
    worker = FakeWorker(crew, 1)
    assert worker.take() == ["a"]
    assert len(crew.work) == 1
    worker.answer()
    assert third.result(LIMIT).running()
    assert futures[0].done()
    assert crew.take_all() == [["b"], ["c"]]


def test_a_cancelled_call_makes_room(crew):
    """For a thread that waits to submit already."""
    session = crew.open(1, max_pending=2)
    futures = crew.submit("a", "b", session=session)
    third = in_a_thread(crew.submit_one, "c", session=session)
    until_somebody_waits(crew)
    assert futures[1].cancel()
    assert not third.result(LIMIT).done()
    assert crew.take_all() == [["a"]]


def test_a_submit_that_waits_is_told_of_the_end(crew):
    """As is a submit after it."""
    session = crew.open(max_pending=1)
    crew.submit("a", session=session)
    second = in_a_thread(crew.submit_one, "b", session=session)
    until_somebody_waits(crew)
    crew.scheduler.close(session, "this is the end")
    with pytest.raises(RuntimeError, match="this is the end"):
        second.result(LIMIT)
    assert crew.take_all() == [["a"]]


def test_a_callback_submits_though_its_executor_is_full(crew):
    """It would wait for itself: the thread that it runs in makes room."""
    session = crew.open(max_pending=1)
    more = []
    first = crew.submit_one("a", session=session)
    first.add_done_callback(lambda _: more.extend(crew.submit("b", "c", session=session)))
    worker = FakeWorker(crew, 1)
    for name in "abc":
        until(lambda: len(crew.work))
        assert worker.take() == [name]
        worker.answer()
    crew.settle()
    assert results([first, *more]) == ["a", "b", "c"]


# -- callbacks


def test_a_callback_that_exits_stops_nothing(crew, caplog):
    """It is logged; all other futures are settled."""
    futures = crew.submit("a", "b")

    def leave(_):
        raise SystemExit(7)

    futures[0].add_done_callback(leave)
    worker = FakeWorker(crew, 1)
    for _ in futures:
        worker.take()
        worker.answer()
    assert results(futures) == ["a", "b"]
    crew.settle()
    assert "a callback of a future has failed" in caplog.text


def test_a_callback_cannot_wait_for_its_executor(crew):
    """It would wait for itself; RuntimeError says so."""
    futures = crew.submit("a", "b")
    found = in_callback = Future()

    def wait(_):
        try:
            crew.scheduler.wait(crew.session)
        except RuntimeError as error:
            in_callback.set_result(error)

    futures[0].add_done_callback(wait)
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.answer()
    assert "a callback of a future cannot wait for its executor" in str(found.result(LIMIT))


def test_a_thread_that_waits_finds_all_futures_done(crew):
    """Their callbacks have come to their end, too."""
    (future,) = crew.submit("a")
    called, go_on = threading.Event(), threading.Event()

    def take_long(_):
        called.set()
        go_on.wait(LIMIT)

    future.add_done_callback(take_long)
    waiting = in_a_thread(crew.scheduler.wait, crew.session)
    until_somebody_waits(crew)
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.answer()
    assert called.wait(LIMIT)
    assert not waiting.done()
    assert not crew.session.idle
    go_on.set()
    waiting.result(LIMIT)
    assert crew.session.idle


def test_kinds_are_told_apart(crew):
    """What is known of one says nothing of another."""
    crew.teach("short", 0.0)
    crew.submit(*range(3), kind="short")
    crew.submit("other", kind=UNKNOWN)
    assert crew.take_all() == [[0], [1], [2], ["other"]]

"""What becomes of calls when workers die: which are lost, which are run again, which futures are told. No MPI: see fakes.py."""

from concurrent.futures.process import BrokenProcessPool

import pytest
from fakes import LIMIT, FakeWorker, fake_crew

from mpiexecutor import BrokenWorkerError
from mpiexecutor._liveness.status_page import INITIALIZER
from mpiexecutor._util.segments import SegmentReader
from mpiexecutor.channel import Share


@pytest.fixture
def crew():
    with fake_crew(workers=4) as crew:
        yield crew


def raise_error(error):
    def fail(*_):
        raise error

    return fail


def results(futures):
    return [future.result(LIMIT) for future in futures]


# -- the calls of its message


def test_what_it_had_not_begun_is_sent_again_before_all_others(crew):
    """In order: nothing is lost."""
    futures, worker = crew.send_together("a", "b", "c")
    futures += crew.submit("d", session=crew.session_of(worker), kind="short")
    worker.die()
    crew.settle()
    worker = FakeWorker(crew, 2)
    assert worker.take() == ["a", "b", "c", "d"]
    worker.answer()
    assert results(futures) == ["a", "b", "c", "d"]


def test_only_what_it_had_begun_is_lost(crew):
    """The error says which worker has died, and how: in one sentence, and attribute by attribute."""
    futures, worker = crew.send_together("a", "b", "c", "d")
    worker.answer("a")
    worker.die(begun="b")
    error = futures[1].exception(LIMIT)
    assert type(error) is BrokenWorkerError
    assert (error.rank, error.host, error.pid, error.end) == (1, "host", 1001, "was killed by SIGKILL")
    text = "the worker on rank 1, host host, pid 1001, was killed by SIGKILL while it ran this call, or before the result was there"
    assert str(error) == text
    crew.settle()
    other = FakeWorker(crew, 2)
    assert other.take() == ["c", "d"]
    other.answer()
    assert [futures[index].result(LIMIT) for index in (0, 2, 3)] == ["a", "c", "d"]


def test_what_it_had_run_before_and_not_put_is_lost_with_it(crew):
    """Unless its page has kept that: here it has not."""
    futures, worker = crew.send_together("a", "b", "c")
    worker.die(begun="b")
    assert [type(future.exception(LIMIT)) for future in futures[:2]] == [BrokenWorkerError] * 2
    crew.settle()
    assert crew.take_all() == [["c"]]


def test_what_its_status_page_has_kept_counts(crew):
    """As if it had been put; and once, if it had been."""
    futures, worker = crew.send_together("a", "b", "c")
    worker.answer("a")
    worker.die(begun="c", holding=["a", "b"])
    assert results(futures[:2]) == ["a", "b"]
    assert type(futures[2].exception(LIMIT)) is BrokenWorkerError
    assert crew.scheduler.done_by(1) == 2 + 2  # with those that went before


def test_its_last_call_may_have_come_to_its_end(crew):
    """Nothing is lost then."""
    futures, worker = crew.send_together("a", "b")
    worker.die(begun="b", holding=["a", "b"])
    assert results(futures) == ["a", "b"]


@pytest.mark.parametrize("held", [b"garbage" * 20, b"N."])
def test_garbage_on_its_status_page_does_no_harm(crew, held, caplog):
    """It is logged that this cannot be read, and its call is lost as any."""
    futures, worker = crew.send_together("a", "b")
    worker.die(begun="a", held=held)
    assert type(futures[0].exception(LIMIT)) is BrokenWorkerError
    assert "not all of what a failed worker had run can be read" in caplog.text
    crew.settle()
    assert crew.take_all() == [["b"]]


def test_what_it_had_put_is_collected_first(crew):
    """Replies that come before the news of its death, all in one go."""
    futures, worker = crew.send_together("a", "b")
    with crew.replies.together():
        worker.answer("a", "b")
        worker.die(begun="b")
    assert results(futures) == ["a", "b"]


def test_an_outcome_in_the_memory_of_a_failed_worker_is_lost_with_it(crew):
    """Although the reply itself has come. It may run again if the executor wants that, and others of the message are not lost."""
    futures, worker = crew.send_together("a", "b", "c", retries=1)
    more = crew.submit("d")
    other = FakeWorker(crew, 2)
    assert other.take() == ["d"]
    with crew.replies.together():
        worker.answer("a")
        worker.answer_in_lost_memory("b")
        other.answer_in_lost_memory("d")
        worker.die(begun="c")
        other.die(begun="d")
    assert futures[0].result(LIMIT) == "a"
    assert type(more[0].exception(LIMIT)) is BrokenWorkerError
    crew.settle()
    third = FakeWorker(crew, 3)
    assert third.take() == ["b", "c"]
    third.answer()
    assert results(futures[1:]) == ["b", "c"]


def test_an_outcome_that_cannot_be_read_here_fails_its_call(crew, monkeypatch):
    """If too many files are open, say: its worker lives."""
    monkeypatch.setattr(SegmentReader, "open", raise_error(OSError(24, "Too many open files")))
    futures, worker = crew.send_together("a")
    worker.answer_in_lost_memory("a")
    with pytest.raises(OSError, match="Too many open files"):
        futures[0].result(LIMIT)


def test_a_worker_that_is_given_up_may_have_begun_everything(crew):
    """It is not known: none of its calls is run twice."""
    futures, worker = crew.send_together("a", "b")
    worker.die(begun=None)
    assert [type(future.exception(LIMIT)) for future in futures] == [BrokenWorkerError] * 2


def test_what_it_begins_is_of_its_last_message(crew):
    """Its page may still speak of a call of the one before, which it has come to the end of."""
    futures = crew.submit("a", "b")
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.answer()
    crew.settle()
    begun = worker._numbers["a"]
    worker.take()
    worker.die(begun=begun)
    crew.settle()
    assert crew.take_all() == [["b"]]
    assert futures[0].result(LIMIT) == "a"
    assert futures[1].running()


def test_one_that_has_no_message_loses_nothing(crew):
    """It was idle."""
    future = crew.submit_one("a")
    FakeWorker(crew, 1).die()
    crew.settle()
    worker = FakeWorker(crew, 2)
    assert worker.take() == ["a"]
    worker.answer()
    assert future.result(LIMIT) == "a"
    assert crew.scheduler.workers == 3


def test_the_calls_of_other_workers_and_executors_go_on(crew):
    """They are in other messages."""
    futures = crew.submit("a", "b", session=crew.open()) + crew.submit("c", "d", session=crew.open())
    workers = [FakeWorker(crew, rank) for rank in (1, 2, 3, 4)]
    for worker, name in zip(workers, "abcd", strict=True):
        assert worker.take() == [name]
    workers[2].die(begun="c")
    assert type(futures[2].exception(LIMIT)) is BrokenWorkerError
    for worker in (workers[0], workers[1], workers[3]):
        worker.answer()
    assert [futures[index].result(LIMIT) for index in (0, 1, 3)] == ["a", "b", "d"]


def test_the_message_of_a_failed_worker_is_not_on_its_way_any_more(crew):
    """It makes room for others; but there is also a worker less, which had two."""
    futures = crew.submit(*range(20))
    victim, *others = [FakeWorker(crew, rank) for rank in (1, 2, 3, 4, 2, 3, 4, 2)]
    for worker in (victim, *others):
        worker.take()
    victim.die(begun=0)
    assert type(futures[0].exception(LIMIT)) is BrokenWorkerError
    others[0].answer(seconds=1.0)
    crew.settle()
    assert not crew.work
    others[1].answer(seconds=1.0)
    crew.settle()
    assert crew.take_all() == [[8]]


# -- run again


def test_a_call_is_run_again_as_often_as_its_executor_wants(crew):
    """And then it is lost."""
    session = crew.open(retries=2)
    future = crew.submit_one("deadly", session=session)
    for rank in (1, 2, 3):
        worker = FakeWorker(crew, rank)
        assert worker.take() == ["deadly"]
        assert not future.done()
        worker.die(begun="deadly")
        crew.settle()
    assert type(future.exception(LIMIT)) is BrokenWorkerError
    assert future.exception().rank == 3
    assert not crew.work


def test_a_call_that_is_run_again_may_have_a_result(crew):
    """Of the second worker."""
    future = crew.submit_one("a", session=crew.open(retries=1))
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.die(begun="a")
    crew.settle()
    worker = FakeWorker(crew, 2)
    assert worker.take() == ["a"]
    worker.answer()
    assert future.result(LIMIT) == "a"


def test_a_call_that_kills_each_receiver_is_lost_in_the_end():
    """Three workers may die before they begin it: it may be what kills them."""
    with fake_crew(workers=6) as crew:
        future = crew.submit_one("deadly")
        for rank in (1, 2, 3, 4):
            assert not future.done()
            worker = FakeWorker(crew, rank)
            assert worker.take() == ["deadly"]
            worker.die()
            crew.settle()
        assert type(future.exception(LIMIT)) is BrokenWorkerError
        assert crew.scheduler.workers == 2


def test_a_call_that_runs_too_long_is_a_timeout_and_not_run_again(crew):
    """However often its executor would have others run again."""
    futures, worker = crew.send_together("a", "long", "b", retries=9, task_timeout=1.5)
    assert worker.task_timeout == 1.5
    worker.answer("a")
    worker.die(begun="long", overdue=1.5)
    error = futures[1].exception(LIMIT)
    assert type(error) is TimeoutError
    assert str(error).startswith("this call ran longer than task_timeout: the worker on rank 1, host host")
    crew.settle()
    assert crew.take_all(2) == [["b"]]


# -- the end of all


def test_a_worker_that_dies_of_its_initializer_breaks_the_executor(crew):
    """As one that fails does; other executors go on."""
    session, other = crew.open(initializer=crew.initializer(print)), crew.open()
    futures = crew.submit(*range(20), session=session)
    others = crew.submit_one("other", session=other)
    worker = FakeWorker(crew, 1)
    assert worker.take() == [0]
    worker.ask()
    crew.settle()
    assert crew.given == [(1, (print, ()))]
    loss = worker.die(begun=INITIALIZER)
    for future in futures:
        assert type(future.exception(LIMIT)) is BrokenProcessPool
        assert str(future.exception()) == f"the initializer was being run when {loss}"
    with pytest.raises(BrokenProcessPool, match="the initializer was being run"):
        crew.submit("late", session=session)
    crew.settle()
    worker = FakeWorker(crew, 2)
    while worker.take() != ["other"]:
        pass
    worker.answer()
    assert others.result(LIMIT) == "other"


def test_when_all_are_lost_everything_fails():
    """Calls that were sent, that wait, that come later; and another executor cannot be made."""
    with fake_crew(workers=2) as crew:
        futures = crew.submit(*range(10))
        other = crew.submit("other", session=crew.open())
        first, last = FakeWorker(crew, 1), FakeWorker(crew, 2)
        first.take()
        last.take()
        first.die(begun=0)
        loss = last.die(begun=1)
        reason = f"all workers are lost; the last of them, {loss}"
        assert [type(future.exception(LIMIT)) for future in futures[:2]] == [BrokenWorkerError] * 2
        for future in futures[2:] + other:
            assert type(future.exception(LIMIT)) is BrokenProcessPool
            assert str(future.exception()) == reason
        assert crew.scheduler.workers == 0
        for late in (crew.submit_one, lambda _: crew.open()):
            with pytest.raises(BrokenProcessPool) as raised:
                late("late")
            assert str(raised.value) == reason
        crew.scheduler.wait(crew.session)


def test_a_callback_of_what_is_lost_last_finds_the_executor_broken():
    """It cannot submit, nor does it wait for ever."""
    with fake_crew(workers=1) as crew:
        futures = crew.submit("a", "b")
        found = []

        def submit(_):
            try:
                crew.submit("c")
            except BrokenProcessPool as error:
                found.append(str(error))

        futures[1].add_done_callback(submit)
        worker = FakeWorker(crew, 1)
        worker.take()
        worker.die(begun="a")
        assert type(futures[1].exception(LIMIT)) is BrokenProcessPool
        crew.settle()
        assert found == [str(futures[1].exception())]


# -- workers that are fewer, and more again


def test_fewer_messages_are_on_their_way_when_workers_are_fewer():
    """Two for each that is left; and as many as before if it turns out to live."""
    with fake_crew(workers=3) as crew:
        FakeWorker(crew, 3).die()
        crew.settle()
        assert crew.scheduler.workers == 2
        crew.submit(*range(9))
        assert len(crew.work) == 4
        crew.scheduler.regain(3)
        assert crew.scheduler.workers == 3
        assert len(crew.work) == 6


def test_late_replies_of_a_worker_that_was_given_up_are_of_no_interest(crew):
    """Its call has an error already; what it takes then it runs."""
    futures = crew.submit("a")
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.die(begun=None)
    assert type(futures[0].exception(LIMIT)) is BrokenWorkerError
    crew.scheduler.regain(1)
    worker.answer()
    later = crew.submit_one("b")
    assert worker.take() == ["b"]
    worker.answer()
    assert later.result(LIMIT) == "b"
    assert type(futures[0].exception()) is BrokenWorkerError


# -- messages, by their numbers


def test_messages_that_have_other_numbers_are_found_by_those(crew):
    """A channel may renumber the messages that it keeps when it is recovered."""
    futures = crew.submit("a", "b", "c")
    first = FakeWorker(crew, 1)
    first.take()
    crew.scheduler.renumber(crew.work.renumber(10), 10)
    victim = FakeWorker(crew, 2)
    assert victim.take() == ["b"]
    assert victim.message == 10
    victim.die(begun="b")
    assert type(futures[1].exception(LIMIT)) is BrokenWorkerError
    assert [futures[0].running(), futures[2].running()] == [True, True]
    crew.submit("d")
    third = FakeWorker(crew, 3)
    assert [third.take(), third.take()] == [["c"], ["d"]]
    assert third.message == 12
    third.die(begun="d")
    crew.settle()
    assert [future.done() for future in futures] == [False, True, False]


def test_a_death_is_looked_at_when_the_long_message_it_may_be_about_has_its_number(crew):
    """The failed worker may have claimed a message that is still being put."""
    crew.work.room = 0
    future = crew.submit_one("long")
    worker = FakeWorker(crew, 1)
    worker.take()
    worker.die(begun="long")
    crew.settle()
    assert not future.done()
    crew.work.end_stream()
    assert type(future.exception(LIMIT)) is BrokenWorkerError


def test_a_death_during_a_long_put_may_be_about_another_message(crew):
    """Which is known at once; that one goes on."""
    first = crew.submit_one("a")
    worker = FakeWorker(crew, 1)
    worker.take()
    crew.work.room = 0
    streaming = crew.submit_one("long")
    worker.die(begun="a")
    assert type(first.exception(LIMIT)) is BrokenWorkerError
    crew.work.end_stream()
    other = FakeWorker(crew, 2)
    assert other.take() == ["long"]
    other.answer()
    assert streaming.result(LIMIT) == "long"


def test_a_share_may_be_of_several_messages(crew):
    """A worker takes one at a time; but whatever the channel says it had is looked for."""
    futures = crew.submit("a", "b", "c")
    worker = FakeWorker(crew, 1)
    worker.take()
    crew.scheduler.lose(worker.loss(begun="a"), Share(1, range(3), received=None))
    crew.settle()
    assert type(futures[0].exception(LIMIT)) is BrokenWorkerError


def test_a_death_after_the_end_changes_nothing(crew):
    """The reply channel takes no more."""
    crew.replies.close()
    FakeWorker(crew, 1).die()
    assert crew.scheduler.workers == 4

"""Submits the calls of a map, and iterates over their results.

An iterator does not keep its executor alive, and does not refer to a result after it has yielded it.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from mpiexecutor._script.state import State
from mpiexecutor._util.pickling import OUT_OF_BAND

from .functions import Function
from .messages import goes_as_it_is
from .scheduling.futures import slim_future
from .scheduling.series import Raised, Runs, Series
from .submission import Submitter, kind_of
from .worker import run_chunk

T = TypeVar("T")

_FIRST, _MOST = 8, 512  # calls that are submitted together if they are there already: at first, and later
_GIVE_WAY = 5e-5  # seconds


def map_results(
    submitter: Submitter,
    fn: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
    unordered: bool,
    at_hand: bool = False,
) -> Iterator[T]:
    """Submit a call for each tuple of arguments; return an iterator over the results.

    For the options see `map`. `at_hand` says that the arguments are there already, so that none is waited for.
    """
    deadline = None if timeout is None else timeout + time.monotonic()
    called: Callable[..., Any] = fn
    kind = kind_of(fn)
    if chunksize > 1:
        called, kind = partial(run_chunk, fn), ("chunk", kind)
        calls = ((chunk,) for chunk in _chunks(calls, chunksize))
    feed = Feed(submitter, called, kind, calls)
    feed.read(buffersize, at_hand=at_hand and chunksize == 1)
    results = _results(feed, deadline, unordered=unordered)
    return results if chunksize == 1 else _flattened(results)


def _chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(calls, size)):
        yield chunk


def _flattened(chunks: Iterator[list[T]]) -> Iterator[T]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()  # nothing here refers to a result that was yielded


class Feed:
    """Submits the calls of a map, in order, and has their results."""

    def __init__(self, submitter: Submitter, fn: Callable[..., Any], kind: object, calls: Iterator[tuple[Any, ...]]) -> None:
        self._submitter = weakref.ref(submitter)
        self._fn = fn
        self._kind = kind
        self._calls = calls
        self._function = submitter.numbered(fn)
        self._series: Series | None = None
        self._series_end = 0  # number of the call that would go on with it
        self._futures: set[Future[Any]] = set()  # of long calls that have no result
        self.runs = Runs()
        self.count = 0  # calls that were submitted
        self.has_more = True
        self._began = time.monotonic()
        self._slept = 0.0  # seconds

    def read(self, most: int | None = None, *, at_hand: bool = False) -> None:
        """Submit the next calls: `most` of them, or all."""
        before = self.count
        if at_hand:
            size = _FIRST
            while chunk := list(islice(self._calls, size if most is None else min(size, most))):
                if not (all(map(goes_as_it_is, chain.from_iterable(chunk))) and self._add_plain(chunk)):
                    for arguments in chunk:
                        self._add(arguments)
                if size == _MOST:
                    self._give_way()
                size = min(2 * size, _MOST)
                most = None if most is None else most - len(chunk)
        else:
            for arguments in islice(self._calls, most):
                self._add(arguments)
                if not self.count % _MOST:
                    self._give_way()
        self.has_more = most is not None and self.count > before

    def _give_way(self) -> None:
        """Let the collector have the GIL, which it would get after 5 ms otherwise. Sleep a third of the time at most."""
        now = time.monotonic()
        if 3 * self._slept < now - self._began:
            time.sleep(_GIVE_WAY)
            self._slept += time.monotonic() - now

    def cancel(self) -> None:
        """Cancel the calls that were not sent, and drop the results of the others."""
        self.runs.close()
        for future in list(self._futures):
            Future.cancel(future)  # not one whose call runs, although a child process may run it
        if (submitter := self._submitter()) is not None:
            submitter.scheduler.note_cancelled(submitter.session)

    def _add_plain(self, calls: list[tuple[Any, ...]]) -> bool:
        """Submit calls whose arguments go as they are. Return False if the function has to be pickled with each."""
        submitter = self._get_submitter()
        try:
            called, state = submitter.target(self._fn, self._function)
        except Exception:  # noqa: BLE001 - raised by the pickling of the function, and raised again by each call
            return False
        if called is None:
            return False
        submitter.scheduler.append(submitter.session, self._series_for(called, state, len(calls)), calls)
        return True

    def _add(self, arguments: tuple[Any, ...]) -> None:
        """Submit a call. A long one is sent alone, as by `submit`; one that cannot be pickled fails in its place."""
        if all(map(goes_as_it_is, arguments)) and self._add_plain([arguments]):
            return
        submitter = self._get_submitter()
        try:
            call = submitter.prepared(self._fn, arguments, {}, self._function)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - raised by the pickling of the call
            self.runs.put(self.count, [Raised(submitter.refusal(error))])
            self.count += 1
            return
        called, state, pickle, size = call
        if size < OUT_OF_BAND:
            submitter.scheduler.append(submitter.session, self._series_for(called, state, 1), [pickle.data])
        else:
            future = slim_future()
            self._futures.add(future)
            future.add_done_callback(partial(self._take, self.count))
            self.count += 1
            submitter.scheduler.submit(submitter.session, future, self._kind, *call)

    def _series_for(self, called: Function | str | None, state: State | None, calls: int) -> Series:
        """Return the series for the next calls."""
        series = self._series
        if series is None or series.function != called or series.state is not state or self._series_end != self.count:
            series = self._series = Series(self.runs, self._kind, called, state, self.count)
        self.count += calls
        self._series_end = self.count
        return series

    def _take(self, index: int, future: Future[Any]) -> None:
        """Put the result of a call that was sent alone into its place."""
        self._futures.discard(future)
        error = CancelledError() if future.cancelled() else future.exception()
        self.runs.put(index, [future.result() if error is None else Raised(error)])

    def _get_submitter(self) -> Submitter:
        submitter = self._submitter()
        if submitter is None:
            raise RuntimeError("cannot schedule new futures: the executor is gone")
        return submitter


def _results(feed: Feed, deadline: float | None, *, unordered: bool) -> Iterator[Any]:
    run: list[Any] = []
    done = 0
    try:
        while done < feed.count:
            if feed.has_more:
                feed.read(1)  # before waiting, and before the caller works on the result
            if not run:
                run = feed.runs.any(deadline) if unordered else feed.runs.next(done, deadline)
                run.reverse()
            while True:
                done += 1
                if type(run[-1]) is Raised:
                    raise run.pop().error
                yield run.pop()  # nothing here refers to a result that was yielded
                if feed.has_more or not run:
                    break
    finally:
        feed.cancel()

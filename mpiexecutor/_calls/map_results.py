"""Submits the calls of a map, and iterates over their results.

An iterator does not keep its executor alive, and does not refer to a result after it has yielded it.
"""

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from queue import Empty
from typing import Any, TypeVar

from mpiexecutor._util.inbox import Inbox

from .functions import Function
from .submission import Submitter, kind_of
from .worker import run_chunk

T = TypeVar("T")


def map_results(
    submitter: Submitter,
    fn: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
    unordered: bool,
) -> Iterator[T]:
    """Submit a call for each tuple of arguments; return an iterator over the results. For the options see `map`."""
    deadline = None if timeout is None else timeout + time.monotonic()
    called: Callable[..., Any] = fn
    kind = kind_of(fn)
    if chunksize > 1:
        called, kind = partial(run_chunk, fn), ("chunk", kind)
        calls = ((chunk,) for chunk in _chunks(calls, chunksize))
    function = submitter.numbered(called)
    first = calls if buffersize is None else islice(calls, buffersize)
    futures = deque([submitter.submit(called, call, {}, kind, function) for call in first])
    submit = partial(_submit_weakly, weakref.ref(submitter), called, kind, function)
    more = iter(()) if buffersize is None else calls
    results = _unordered(futures, submit, more, deadline) if unordered else _ordered(futures, submit, more, deadline)
    return results if chunksize == 1 else _flattened(results)


def _submit_weakly(
    reference: "weakref.ref[Submitter]",
    fn: Callable[..., Any],
    kind: object,
    function: Function | None,
    args: tuple[Any, ...],
) -> Future[Any]:
    """Submit for an iterator. RuntimeError if its executor is gone."""
    submitter = reference()
    if submitter is None:
        raise RuntimeError("cannot schedule new futures: the executor is gone")
    return submitter.submit(fn, args, {}, kind, function)


def _chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(calls, size)):
        yield chunk


def _flattened(chunks: Iterator[list[T]]) -> Iterator[T]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()  # nothing here refers to a result that was yielded


def _ordered(
    futures: deque[Future[T]], submit: Callable[[Any], Future[T]], more: Iterator[Any], deadline: float | None
) -> Iterator[T]:
    try:
        while futures:
            futures.extend(map(submit, islice(more, 1)))  # before waiting, and before the caller works on the result
            yield _result(futures, deadline)
    finally:
        for future in futures:
            future.cancel()


def _result(futures: deque[Future[T]], deadline: float | None) -> T:
    """Wait for the result of the first future, and remove that. Cancel it when out of time, or interrupted."""
    future = futures.popleft()
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()
        del future  # its exception refers to this frame


def _unordered(
    futures: deque[Future[T]], submit: Callable[[Any], Future[T]], more: Iterator[Any], deadline: float | None
) -> Iterator[T]:
    ready: Inbox[Future[T]] = Inbox()
    waiting: set[Future[T]] = set()

    def watch(future: Future[T]) -> None:
        waiting.add(future)
        future.add_done_callback(ready.put)

    while futures:
        watch(futures.popleft())
    try:
        while waiting:
            for call in islice(more, 1):
                watch(submit(call))
            yield _next_ready(ready, waiting, deadline)
    finally:
        for future in waiting:
            future.cancel()


def _next_ready(ready: Inbox[Future[T]], waiting: set[Future[T]], deadline: float | None) -> T:
    try:
        future = ready.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except Empty:
        raise TimeoutError from None
    waiting.discard(future)
    try:
        return future.result()
    finally:
        del future  # its exception refers to this frame

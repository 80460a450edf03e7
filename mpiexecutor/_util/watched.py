"""A step that may hang outside Python, such as inside MPI, and that this process is to outlive."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


def run_watched(step: Callable[[], T], check: Callable[[], object], every: float) -> T:
    """Run a step in a thread of its own, and return what it returns, or raise its error.

    `check` is called every `every` seconds meanwhile. If it raises, or Ctrl-C is pressed, the thread is left where it is. A process
    that is ending starts no thread: there the step runs without checks.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(step())
        except BaseException as error:  # noqa: BLE001 - raised below
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="mpiexecutor watched", daemon=True).start()
    except RuntimeError:
        run()
    while not wait((future,), every).done:
        check()
    return future.result()

"""A step that may hang outside Python, such as inside MPI, and that this process is to outlive."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_watched(step: Callable[[], T], check: Callable[[], object], every: float) -> T:
    """Run a step in a thread of its own, and return what it returns, or raise its error.

    `check` is called every so many seconds meanwhile. If it raises, or Ctrl-C is pressed, the thread is left where it is.
    """
    done = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(step())
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="mpiexecutor start", daemon=True).start()
    while not done.wait(every):
        check()
    if errors:
        raise errors.pop()
    return results[0]

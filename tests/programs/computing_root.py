"""Run pytest in a thread, while the main thread computes in pure Python for seconds at a time:

mpiexec -n 4 python -m mpiexecutor tests/programs/computing_root.py ARGUMENT...
"""

import sys
import threading
import time

import pytest

_BURST = 3.0  # seconds


def compute(seconds: float) -> int:
    """Keep the GIL for so long, but for the switches that are forced upon it."""
    number, until = 1, time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(1000):
            number = number * 1103515245 + 12345 & 0x7FFFFFFF
    return number


def main() -> int:
    status: list[int] = []
    tests = threading.Thread(target=lambda: status.append(pytest.main(sys.argv[1:])))
    tests.start()
    while tests.is_alive():
        compute(_BURST)
    return status[0]


if __name__ == "__main__":
    sys.exit(main())

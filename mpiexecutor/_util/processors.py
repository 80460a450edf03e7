"""Whether this machine has a processor to spare, so that a thread may spin instead of sleeping."""

import os
import re
import sys
from functools import cache

# The fourth field begins with the number of threads that run, or could run.
_LOADAVG = "/proc/loadavg"

# Since this version Linux counts a thread that has gone to sleep a while longer if it has had more than its share of a processor,
# as one that has spun: "deferred dequeue" in https://docs.kernel.org/scheduler/sched-eevdf.html
_DEFERS = 6, 12


def processors_lacking() -> int:
    """Return how many threads run, this one included, for which the machine has no processor; 0 or less: none. Takes 3 us.

    One thread does not count where the system counts those that have just gone to sleep, as the other party of a spinning thread
    probably has. Where the system does not tell how many threads run: 0.
    """
    file = _file()
    if file is None:
        return 0
    running = int(os.pread(file, 64, 0).split(b" ", 4)[3].partition(b"/")[0])
    return running - (os.cpu_count() or 1) - _counts_sleepers()


@cache
def _counts_sleepers() -> bool:
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return sys.platform == "linux" and version is not None and tuple(map(int, version.groups())) >= _DEFERS


@cache
def _file() -> int | None:
    try:
        return os.open(_LOADAVG, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

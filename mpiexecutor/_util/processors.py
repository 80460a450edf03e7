"""Whether this machine has a processor to spare, so that a thread may spin instead of sleeping."""

import os
from functools import cache

_LOADAVG = "/proc/loadavg"  # its fourth field: threads that run or could run, a slash, all threads


def one_is_free() -> bool:
    """Whether the machine has a processor for each running thread, this one included. Takes 3 us.

    Where the system does not tell: True.
    """
    file, processors = _file(), os.cpu_count() or 1
    return file is None or int(os.pread(file, 64, 0).split(b" ", 4)[3].partition(b"/")[0]) <= processors


@cache
def _file() -> int | None:
    try:
        return os.open(_LOADAVG, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

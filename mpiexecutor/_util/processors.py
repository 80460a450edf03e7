"""Whether this machine has a processor to spare, so that a thread may spin instead of sleeping."""

import os
from functools import cache

# The first field is the average of the last minute, of threads that run or could run. The fourth field begins with their number at
# this moment.
_LOADAVG = "/proc/loadavg"


def one_is_free() -> bool:
    """Whether the machine has a processor for each running thread, this one included. Takes 3 us.

    Where the system does not tell: True.
    """
    fields = _read()
    return not fields or int(fields[3].partition(b"/")[0]) <= _count()


def are_overloaded() -> bool:
    """Whether in the last minute, on average, at least one thread more could run than the machine has processors. Takes 3 us.

    One more, because threads of this package that spin are counted, too. Where the system does not tell: False.
    """
    fields = _read()
    return bool(fields) and float(fields[0]) >= _count() + 1


def _read() -> list[bytes]:
    file = _file()
    return [] if file is None else os.pread(file, 64, 0).split(b" ", 4)


def _count() -> int:
    return os.cpu_count() or 1


@cache
def _file() -> int | None:
    try:
        return os.open(_LOADAVG, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

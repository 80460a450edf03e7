"""All timeouts of the package, and the interval between signs of life, in seconds.

Each is many times longer than a busy machine needs. Tests of what happens after a timeout set MPIEXECUTOR_TEST_SCALE to a number
below 1, by which all of them are multiplied. Only tests set it.
"""

import contextlib
import math
import os
from typing import Final

SCALE_VARIABLE: Final = "MPIEXECUTOR_TEST_SCALE"
_SCALE: Final = float(os.environ.get(SCALE_VARIABLE, "1"))

PATIENCE: Final = 10 * _SCALE  # until a rank that waits for others logs which ones
LATE: Final = 3 * _SCALE  # after PATIENCE, when the job ends, until a worker without signs of life is killed

PULSE: Final = 1 * _SCALE  # between two signs of life of a worker
SILENT: Final = 3 * PULSE  # without a sign of life until a worker is called silent
ASLEEP: Final = 1 * _SCALE  # without a check by the root, after which it gives up no worker: it had no time to listen

# After a worker has died. REST < WEDGED: the other ranks finish before the watchdog takes this process for stuck.
REST: Final = 6 * _SCALE  # for the other ranks to finish puts and takes that they have begun
WEDGED: Final = 9 * _SCALE  # until this process is taken for stuck inside MPI
STUCK: Final = 2 * _SCALE  # for any thread to leave the scheduler, when the executor is given up
LOOK: Final = 10 * _SCALE  # for one check by the progress thread

# Of supervisors.
COMING: Final = 5 * _SCALE  # to connect to the root, after their ranks serve
HELLO: Final = 5 * _SCALE  # to say which rank is theirs, after connecting
WELCOME: Final = 5 * _SCALE  # for the monitor of another worker to answer one: a call may hold its GIL
LEAVING: Final = 10 * _SCALE  # to end, all of them

# Of mpiexec and its process managers.
NOTICE: Final = 1 * _SCALE  # for mpiexec to end by itself after rank 0: rarely it does not notice, but obeys SIGTERM
GRACE: Final = 5 * _SCALE  # for mpiexec to end its ranks
WAITING: Final = 10 * _SCALE  # for mpiexec to end after the script, when it waits for a lost node
ANSWER: Final = 1 * _SCALE  # for the process manager to acknowledge


def from_environment(name: str, default: float) -> float:
    """Return the seconds that an environment variable sets. ValueError if that is no finite number above 0."""
    text = os.environ.get(name, str(default))
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise ValueError(f"{name} is a number of seconds above 0 and finite, not {text!r}")

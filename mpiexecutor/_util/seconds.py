"""How long the package waits for what may never come, and for the next sign of life: all such seconds, in one place.

Each is many times what a busy machine needs. A test that shows what happens after one would have to wait as long; its job sets
MPIEXECUTOR_TEST_SCALE to a number below 1, by which all of them are multiplied. Only tests set it.
"""

import os
from typing import Final

SCALE_VARIABLE: Final = "MPIEXECUTOR_TEST_SCALE"
_SCALE: Final = float(os.environ.get(SCALE_VARIABLE, "1"))

PATIENCE: Final = 10 * _SCALE  # until a rank says that it waits for others, and whom for
LATE: Final = 3 * _SCALE  # after that, in the end, until a worker that gives no signs of life is killed

PULSE: Final = 1 * _SCALE  # between two signs of life
SILENT: Final = 3 * PULSE  # without one, after which a worker is called silent
ASLEEP: Final = 1 * _SCALE  # without a look of the root: it had no time, and cannot say who was silent

# After a death. The living rest before the watchdog calls this process stuck.
REST: Final = 6 * _SCALE  # that the living have to finish what they have begun
WEDGED: Final = 9 * _SCALE  # after which this process is taken to be stuck inside MPI
STUCK: Final = 2 * _SCALE  # that any thread may be at work in the pump, when the executor is given up
LOOK: Final = 10 * _SCALE  # that a look of the progress thread may take

# Of supervisors.
COMING: Final = 5 * _SCALE  # that they have to come, once their ranks serve
HELLO: Final = 5 * _SCALE  # that one has to say who it is
WELCOME: Final = 5 * _SCALE  # that another worker's watch has to answer one: a call may hold its GIL
LEAVING: Final = 10 * _SCALE  # that all of them have to end

# Of mpiexec and its process managers.
GRACE: Final = 5 * _SCALE  # that an mpiexec has to end its ranks
WAITING: Final = 10 * _SCALE  # that an mpiexec has to end after the script, when it waits for a lost host
ANSWER: Final = 1 * _SCALE  # that the process manager has to acknowledge

"""On the path of every Python process of a job: upon SIGUSR2 it writes the stacks of all its threads to a file, and goes on."""

import faulthandler
import os
import signal

if folder := os.environ.get("MPIEXECUTOR_TEST_STACKS"):
    file = os.open(os.path.join(folder, str(os.getpid())), os.O_WRONLY | os.O_CREAT)  # noqa: PTH118 - every process pays for an import
    faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)

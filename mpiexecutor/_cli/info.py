"""A description of the installation for a report of a problem: which MPI this is, how it is started, and how fast it is here."""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

from mpiexecutor._start.job import StartError
from mpiexecutor._start.mpiexec import Mpiexec, NoMpiexecError, launched, usable_cores
from mpiexecutor.executor import RMAChannelExecutor

_TIMES = 200  # that a duration is measured, for the median


def show(mpiexec: str | None) -> None:
    """Print the description; under mpiexec, the root prints it.

    Raises:
        SystemExit: There is no mpiexec, or the workers cannot be started; the text says so.

    """
    try:
        lines = list(_describe(mpiexec))
    except (NoMpiexecError, StartError) as error:
        sys.exit(str(error))
    width = max(len(name) for name, _ in lines)
    sys.stdout.write("".join(f"{name:{width}}  {value}\n" for name, value in lines))


def _describe(path: str | None) -> Iterator[tuple[str, str]]:
    """Yield a name and a value for each line."""
    yield "mpiexecutor", version("mpiexecutor")
    yield "Python", f"{platform.python_version()} at {sys.executable}"
    yield "mpi4py", version("mpi4py")
    if not launched():
        mpiexec = Mpiexec.find(path)
        yield "mpiexec", f"{mpiexec.path} ({mpiexec.flavour.value}: {mpiexec.version})"
        yield "starts", " ".join(mpiexec.command(usable_cores() + 1, ["python", "-m", "mpiexecutor", "script.py"]))
    yield "cores", str(usable_cores())
    with RMAChannelExecutor() as executor:
        from mpi4py import MPI  # noqa: PLC0415

        yield "MPI library", " ".join(MPI.Get_library_version().split())[:100]
        levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
        yield "thread level", levels.get(MPI.Query_thread(), "multiple")
        hosts = set(executor.map(_host, range(4 * executor.num_workers))) | {_host(0)}
        yield "hosts", f"{len(hosts)}: {', '.join(sorted(hosts))}"
        yield "workers", str(executor.num_workers)
        yield "one RMA call", f"{executor.submit(_rma_call).result() * 1e6:.1f} us"
        yield "one call", f"{_median(lambda: executor.submit(_nothing).result()) * 1e6:.0f} us there and back"


def _host(_: int) -> str:
    return platform.node()


def _nothing() -> None:
    pass


def _rma_call() -> float:
    """Return the median seconds of a Get and a Flush, on a window of this rank alone."""
    from mpi4py import MPI  # noqa: PLC0415

    win = MPI.Win.Allocate(64, 1, comm=MPI.COMM_SELF)
    win.Lock_all(MPI.MODE_NOCHECK)
    word = bytearray(8)

    def get() -> None:
        win.Get(word, 0, 0)
        win.Flush(0)

    seconds = _median(get)
    win.Unlock_all()
    win.Free()
    return seconds


def _median(step: Callable[[], object]) -> float:
    durations = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        step()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)

"""Isolated calls, with deaths at random moments: each call has one outcome, none runs twice, in a minute no process grows.

    python tests/programs/isolated_soak.py MINUTES [DEATHS A SECOND] [PAUSE] [SEED]

Children die by signals and by exits of their own, while they unpickle, run or return something large, between calls, and while
they start; calls are cancelled while they run, exceed their time, and children retire. PAUSE is the mean of seconds between two
calls: with 0.05 the machine is nearly idle. It ends with figures, or with an error that has the seed.
"""

import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from mpiexecutor import BrokenWorkerError, RMAChannelExecutor

WORKERS = 2  # that are started, if no mpiexec has done so
AHEAD = 30  # calls that are not done, at most
SIGNALS = signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM
GROWTH, SLACK = 1.25, 16 << 20  # of a process's memory over what it had in the first third; bytes besides
DESCRIPTORS = 16  # that a process may have more at the end than at first
LONG = 60.0  # seconds after which processes have all the segments that they keep, and no longer grow


def die(how: int) -> None:
    if how:
        os.kill(os.getpid(), how)
    os._exit(3)


class Fatal:
    """Kills the process that unpickles it."""

    def __init__(self, how: int) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return die, (self.how,)


class FatalResult(Fatal):
    """Kills the process that pickles it."""

    def __reduce__(self) -> Any:
        die(self.how)


def note(folder: str, what: str, ticket: int) -> None:
    """Append a line to a file: in one step."""
    file = os.open(f"{folder}/{what}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{ticket}\n".encode())
    os.close(file)


def run(folder: str, ticket: int, what: str, how: int, size: int, _: object = None) -> Any:
    """Note that this call has begun, do what it is to do, and note that it has ended."""
    note(folder, "begun", ticket)
    if what == "die":
        die(how)
    if what == "sleep":
        time.sleep(random.random() * 0.05)
    if what == "hang":
        time.sleep(1000)
    if what == "fatal result":
        return FatalResult(how)
    data = bytes(size)
    note(folder, "ended", ticket)
    return ticket, data


class Soak:
    """Submits, kills, cancels and checks."""

    def __init__(self, executors: list[RMAChannelExecutor], folder: str, chance: random.Random, rate: float) -> None:
        self._executors = executors
        self._folder = folder
        self._chance = chance
        self._rate = rate  # deaths a second, by each of the two ways
        self._waiting: deque[tuple[int, str, Future[Any]]] = deque()
        self._over = False
        self.counts: Counter[str] = Counter()
        self.outcomes: dict[int, str] = {}  # by ticket
        self.memory: list[dict[int, tuple[int, int]]] = []  # bytes and descriptors, by process

    def run(self, seconds: float, pause: float) -> None:
        began = looked = died = time.monotonic()
        killer = threading.Thread(target=self._kill)
        killer.start()
        ticket = 0
        try:
            while (now := time.monotonic()) - began < seconds:
                what = self._chance.choice(["return"] * 3 + ["sleep"])
                if now - died > 1 / self._rate:
                    died, what = now, self._chance.choice(["die", "unpickle", "fatal result", "hang", "cancel"])
                self._submit(ticket, what)
                ticket += 1
                while len(self._waiting) >= AHEAD:
                    self._check(*self._waiting.popleft())
                if now - looked > seconds / 60:
                    looked = now
                    self.memory.append(processes())
                if pause:
                    time.sleep(self._chance.random() * 2 * pause)
            while self._waiting:
                self._check(*self._waiting.popleft())
            self.memory.append(processes())
        finally:
            self._over = True
            killer.join()

    def _submit(self, ticket: int, what: str) -> None:
        how = self._chance.choice([0, *SIGNALS])
        size = self._chance.choice([0, 0, 100, 100_000, 2_000_000])
        plain, timed, retiring = self._executors
        executor = timed if what == "hang" else self._chance.choice([plain, plain, timed, retiring])
        given = Fatal(how) if what == "unpickle" else bytearray(size)
        does = "hang" if what == "cancel" else what
        future = (plain if what == "cancel" else executor).submit(run, self._folder, ticket, does, how, size, given)
        if what == "cancel":
            threading.Timer(self._chance.random() * 0.2, future.cancel).start()
        self._waiting.append((ticket, what, future))

    def _check(self, ticket: int, what: str, future: "Future[Any]") -> None:
        try:
            number, _ = future.result(120)
            assert number == ticket
            outcome = "returned"
        except (BrokenWorkerError, CancelledError, TimeoutError) as error:
            assert not future.running(), f"call {ticket} ({what}) hangs"
            outcome = type(error).__name__
        self.outcomes[ticket] = outcome
        self.counts[f"{what}: {outcome}"] += 1

    def _kill(self) -> None:
        """Kill children from outside, at any moment."""
        chance = random.Random(self._chance.random())
        ranks = {worker.pid for worker in self._executors[0].workers()}
        while not self._over:
            time.sleep(chance.random() * 2 / self._rate)
            children = [worker.pid for worker in self._executors[0].workers() if worker.pid not in ranks]
            if children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(children), chance.choice(SIGNALS))
                    self.counts["killed from outside"] += 1

    def check_all(self) -> None:
        """Check that no call was lost, and that none has run twice."""
        begun, ended = (Counter(map(int, (Path(self._folder) / what).read_text().split())) for what in ("begun", "ended"))
        twice = [ticket for ticket, count in begun.items() if count > 1]
        assert not twice, f"run twice: {twice}"
        missing = [ticket for ticket, outcome in self.outcomes.items() if outcome == "returned" and not ended[ticket]]
        assert not missing, f"returned, and never ended: {missing}"
        assert all(worker.state != "lost" for worker in self._executors[0].workers())

    def check_memory(self) -> None:
        """Check that processes which live from the first third to the last have not grown."""
        third = len(self.memory) // 3
        first, last = self.memory[:third], self.memory[-third:]
        for pid in set.intersection(*map(set, self.memory)):
            before, after = (max(found[pid][0] for found in part) for part in (first, last))
            files, more_files = (max(found[pid][1] for found in part) for part in (first, last))
            sys.stdout.write(f"process {pid}: {before >> 20} and {after >> 20} MiB, {files} and {more_files} descriptors at most\n")
            assert after <= GROWTH * before + SLACK, f"the memory of {pid} has grown"
            assert more_files <= files + DESCRIPTORS, f"{pid} has more and more files open"


def processes() -> dict[int, tuple[int, int]]:
    """Return memory and open files of all processes of this job."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found: dict[int, tuple[int, int]] = {}
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        waiting += [child for child, parent in parents.items() if parent == pid]
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            memory = sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
            found[pid] = memory, len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return found


def main(minutes: float, rate: float, pause: float, seed: int) -> None:
    chance = random.Random(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        RMAChannelExecutor(WORKERS) as rank_only,
        RMAChannelExecutor(isolate=True) as plain,
        RMAChannelExecutor(task_timeout=0.5) as timed,
        RMAChannelExecutor(max_tasks_per_child=5) as retiring,
    ):
        workers = plain.num_workers
        assert len(set(rank_only.map(abs, range(10)))) == 10
        for what in "begun", "ended":
            (Path(folder) / what).touch()
        soak = Soak([plain, timed, retiring], folder, chance, rate)
        soak.run(60 * minutes, pause)
        soak.check_all()
        deaths: Counter[str] = Counter()  # by host
        for worker in plain.workers():
            deaths[worker.host] += worker.deaths
        assert all(deaths.values()), f"nothing was shown of a host: {deaths}"
        assert plain.num_workers == workers
    for name, count in sorted(soak.counts.items()):
        sys.stdout.write(f"{name}: {count}\n")
    sys.stdout.write(f"{len(soak.outcomes)} calls, {deaths.total()} deaths on {len(deaths)} hosts\n")
    if 60 * minutes >= LONG:
        soak.check_memory()


if __name__ == "__main__":
    arguments = [float(argument) for argument in sys.argv[1:]]
    used = [1.0, 1.0, 0.0, float(int.from_bytes(os.urandom(3), "big"))]
    used[: len(arguments)] = arguments
    sys.stdout.write(f"seed {used[3]:g}\n")
    main(used[0], used[1], used[2], int(used[3]))

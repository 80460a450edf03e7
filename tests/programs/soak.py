"""Calls of random sizes and kinds, for some time: each result is checked, each call is run once, and no rank's memory grows.

    python -m mpiexecutor -n 5 tests/programs/soak.py SECONDS [SEED]

Sizes are from 0 B to 5 MB, as many below 2 kB as above. It ends with figures, or with an error that has the seed.
"""

import hashlib
import itertools
import os
import random
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiexecutor import RemoteError, RMAChannelExecutor

if TYPE_CHECKING:
    from concurrent.futures import Future

LARGEST = 5_000_000  # bytes
AHEAD = 60  # calls that are not done, at most
GROWTH = 1.25  # of a rank's memory over what it had in the first third, at the most,
SLACK = 48 << 20  # bytes, and besides: what the largest calls at one time can take more than others


class Refused(Exception):
    """What some calls raise."""


class Unpicklable:
    """What some calls return."""

    def __reduce__(self) -> Any:
        raise Refused("pickling")


class Unloadable:
    """What some calls are given."""

    def __reduce__(self) -> Any:
        return refuse, ("unpickling",)


def refuse(why: str) -> None:
    raise Refused(why)


def payload(seed: int, kind: str, size: int) -> Any:
    """Make the same data anywhere."""
    data = random.Random(seed).randbytes(size)
    match kind:
        case "bytes":
            return data
        case "bytearray":
            return bytearray(data)
        case "array":
            return array("B", data)
        case "list":
            return [data[at : at + 1000] for at in range(0, size, 1000)]
        case "dict":
            return {"seed": seed, "text": data.decode("latin-1"), "nested": {"data": data}}
    raise AssertionError(kind)


def digest(value: Any) -> str:
    """Return the hash of data of any of those kinds."""
    if isinstance(value, dict):
        value = [value["text"].encode("latin-1"), value["nested"]["data"]]
    parts = value if isinstance(value, list) else [value]
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def answer(ticket: int, seed: int, kind: str, size: int, data: Any, hashed: str) -> tuple[int, int, Any]:
    """Check what came, and give as much back."""
    if digest(data) != hashed:
        raise ValueError(f"the data of call {ticket} came to another hash")
    return ticket, os.getpid(), payload(seed, kind, size)


def fail(ticket: int, how: str, _: object = None) -> Any:
    """Fail in one of the ways that leave the worker alive."""
    if how == "exit":
        sys.exit(ticket)
    return Unpicklable() if how == "pickling" else refuse(how)


KINDS = ("bytes", "bytearray", "array", "list", "dict")
FAILURES: dict[str, type[BaseException]] = {
    "raised": Refused,
    "exit": SystemExit,
    "pickling": Refused,
    "unpickling": Refused,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call, and what is to become of it."""

    ticket: int
    future: "Future[Any]"
    check: Callable[[Any], None]
    error: type[BaseException] | None = None


class Soak:
    """Submits, checks, and looks at memory."""

    def __init__(self, executor: RMAChannelExecutor, seed: int) -> None:
        self._executor = executor
        self._random = random.Random(seed)
        self._tickets = itertools.count()
        self._waiting: deque[Call] = deque()
        self.counts: Counter[str] = Counter()
        self.memory: list[tuple[float, dict[int, int]]] = []  # when, and bytes by process

    def run(self, seconds: float) -> None:
        began = looked = time.monotonic()
        while (now := time.monotonic()) - began < seconds:
            self._waiting.append(self._submit())
            if len(self._waiting) >= self._random.randrange(1, AHEAD):
                self._check(self._waiting.popleft())
            if now - looked > seconds / 100:
                looked = now
                self.memory.append((now - began, self._resident()))
        while self._waiting:
            self._check(self._waiting.popleft())

    def _submit(self) -> Call:
        ticket = next(self._tickets)
        if self._random.random() < 0.1:
            how = self._random.choice(list(FAILURES))
            given = Unloadable() if how == "unpickling" else None
            return Call(ticket, self._executor.submit(fail, ticket, how, given), lambda _: None, FAILURES[how])
        seed = self._random.getrandbits(32)
        there, back = (round((LARGEST + 1) ** self._random.random()) - 1 for _ in range(2))
        kind, kind_back = self._random.choice(KINDS), self._random.choice(KINDS)
        data = payload(seed, kind, there)
        future = self._executor.submit(answer, ticket, seed + 1, kind_back, back, data, digest(data))
        expected = digest(payload(seed + 1, kind_back, back))
        self.counts["bytes"] += there + back

        def check(result: Any) -> None:
            assert result[0] == ticket, (result[0], ticket)
            assert digest(result[2]) == expected, ticket

        return Call(ticket, future, check)

    def _check(self, call: Call) -> None:
        error = call.future.exception(120)
        if call.error is not None:
            assert isinstance(error, (call.error, RemoteError)), (call, error)
            self.counts["failed as they should"] += 1
            return
        if error is not None:
            raise error
        call.check(call.future.result())
        self.counts["calls"] += 1

    def _resident(self) -> dict[int, int]:
        pids = [os.getpid(), *(worker.pid for worker in self._executor.workers())]
        return {pid: resident(pid) for pid in pids}

    def growth(self) -> dict[int, tuple[int, int]]:
        """Return each process's largest memory in the first third, and in the last, in bytes."""
        third = len(self.memory) // 3
        first, last = self.memory[:third], self.memory[-third:]
        return {pid: tuple(max(found[pid] for _, found in part) for part in (first, last)) for pid in first[0][1]}


def resident(pid: int) -> int:
    """Return a process's memory that is its own, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError(pid)


def main(seconds: float, seed: int) -> None:
    with RMAChannelExecutor(max_pending=AHEAD) as executor:
        soak = Soak(executor, seed)
        soak.run(seconds)
        done = sum(worker.done for worker in executor.workers())
        assert done == soak.counts["calls"] + soak.counts["failed as they should"], (done, soak.counts)
        growth = soak.growth()
    figures = ", ".join(f"{name}: {count:,}" for name, count in sorted(soak.counts.items()))
    sys.stdout.write(f"{seconds:g} s, seed {seed}: {figures}\n")
    for pid, (first, last) in growth.items():
        sys.stdout.write(f"process {pid}: {first >> 20} MiB at most in the first third, {last >> 20} MiB in the last\n")
    too_much = [pid for pid, (first, last) in growth.items() if last > GROWTH * first + SLACK]
    assert not too_much, f"the memory of {too_much} has grown"


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().getrandbits(32))

"""The small program of many a tutorial and folder: argparse, logging, a class that keeps the executor's work together, no main() but a guard."""

import argparse
import dataclasses
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, as_completed, wait
from pathlib import Path
from typing import Any

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Pool
else:
    from mpiexecutor import RMAChannelExecutor as Pool

logging.basicConfig(level=logging.WARNING, format="%(levelname)s:%(name)s:%(message)s")
logger = logging.getLogger(__name__)
args = argparse.Namespace(power=1, names=[])
PRIMES = [112272535095293, 112582705942171, 115280095190773, 115797848077099, 1099726899285419]


@dataclasses.dataclass
class Job:
    path: Path
    power: int = 1
    result: Any = None
    error: str | None = None


class Pipeline:
    """Steps that are methods, over an executor that is an argument."""

    steps: list[str] = []

    def __init__(self, pool: Executor, power: int):
        self._pool, self.power = pool, power

    def __getstate__(self):
        return {"power": self.power, "_pool": None}

    def process(self, job: Job) -> Job:
        self.steps.append("process")
        try:
            return dataclasses.replace(job, result=sum(json.loads(job.path.read_text())) ** self.power)
        except (OSError, ValueError) as error:
            logger.info("failed: %s", error)
            return dataclasses.replace(job, error=type(error).__name__)

    def run(self, jobs: Iterable[Job]) -> list[Job]:
        futures = {self._pool.submit(self.process, job): job for job in jobs}
        return sorted((future.result() for future in as_completed(futures)), key=lambda job: job.path.name)


class Progress:
    def __init__(self):
        self.done = 0

    def __call__(self, future: Future) -> None:
        self.done += 1


def is_prime(n):
    if n < 2 or n % 2 == 0:
        return n == 2
    d = 3
    while d * d <= min(n, 10**10):
        if n % d == 0:
            return False
        d += 2
    return True


def to_power(x):
    return x**args.power


def greeting(_):
    return [f"hello {name}" for name in args.names]


def word_count(path):
    with open(path, encoding="utf-8") as file:
        return {path.name: len(file.read().split())}


def integrate(a, b, n=1000):
    h = (b - a) / n
    return sum(function(a + (i + 0.5) * h) for i in range(n)) * h


def function(x):
    return 3 * x * x


def log_level(_):
    return logging.getLogger().level, logger.name, logger.isEnabledFor(logging.WARNING)


def matrix_row(row):
    return [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*MATRIX, strict=True)]


MATRIX = [[1, 2], [3, 4]]


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def drain(pool):
    pending, found = {pool.submit(to_power, x) for x in range(6)}, []
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED, timeout=60)
        found += [future.result() for future in done]
        if len(found) == 3:
            pending |= {pool.submit(to_power, 10)}
    return sorted(found)[:6]


def with_callbacks(pool):
    progress = Progress()
    with pool as inner:
        for x in range(5):
            inner.submit(to_power, x).add_done_callback(progress)
    return progress.done


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--power", type=int, default=3)
    parser.add_argument("names", nargs="*", default=["ann", "bob"])
    args = parser.parse_args(
        []
        if len(sys.argv) < 2 or sys.argv[0] == "-c" or "ipykernel" in sys.argv[0] or sys.argv[1].startswith("-")
        else sys.argv[1:]
    )

    with Pool(max_workers=2) as pool:
        attempt("arguments of the command line", lambda: list(pool.map(to_power, range(4))), [0, 1, 8, 27])
        attempt(
            "a list of the command line", lambda: list(pool.map(greeting, [0, 1])), [[f"hello {name}" for name in args.names]] * 2
        )
        attempt(
            "primes, zip",
            lambda: dict(zip([2, 15, 97, 561], pool.map(is_prime, [2, 15, 97, 561]))),
            {2: True, 15: False, 97: True, 561: False},
        )
        with tempfile.TemporaryDirectory() as folder:
            for i in range(4):
                Path(folder, f"{i}.json").write_text(json.dumps([i, i + 1]) if i != 2 else "no json")
            pipeline = Pipeline(pool, 2)
            jobs = pipeline.run([*(Job(Path(folder, f"{i}.json")) for i in range(4)), Job(Path(folder, "none"))])
            attempt(
                "a pipeline of methods",
                lambda: [(job.result, job.error) for job in jobs],
                [(1, None), (9, None), (None, "JSONDecodeError"), (49, None), (None, "FileNotFoundError")],
            )
            attempt(
                "the classes of what comes back", lambda: {type(job) is Job and isinstance(job.path, Path) for job in jobs}, {True}
            )
            attempt("the pipeline's own list is left alone", lambda: (Pipeline.steps, pipeline._pool is pool), ([], True))
            Path(folder, "text").write_text("one two  three")
            attempt("words of a file", lambda: list(pool.map(word_count, [Path(folder, "text")])), [{"text": 3}])
        edges = [0, 1, 2, 3]
        attempt("an integral in parts", lambda: round(sum(pool.map(integrate, edges, edges[1:])), 3), 27.0)
        attempt(
            "the level of logging",
            lambda: set(pool.map(log_level, range(4))),
            lambda found: {level for level, *_ in found} == {logging.WARNING} and {on for *_, on in found} == {True},
        )
        attempt("a matrix times itself", lambda: list(pool.map(matrix_row, MATRIX)), [[7, 10], [15, 22]])
        attempt("wait for the first of many", lambda: drain(pool), [0, 1, 8, 27, 64, 125])
        args.power = 2
    with Pool(max_workers=2) as pool:
        attempt("another executor sees what was changed in place", lambda: list(pool.map(to_power, range(4))), [0, 1, 4, 9])
        attempt("callbacks are called before the end of the block", lambda: with_callbacks(pool), 5)

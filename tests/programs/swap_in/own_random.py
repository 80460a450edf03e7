"""Random numbers of a script: streams that differ between calls, seeds that hold, and the script's own streams left alone.

Workers of ProcessPoolExecutor that are forked share the state of generators that are globals, so there half as many numbers may differ.
"""

import os
import random
import random as rnd
import uuid
from random import choice, gauss, randint, randrange, sample, shuffle, uniform
from random import random as draw

import numpy as np
from numpy.random import SeedSequence, default_rng, normal, rand

PPE = bool(os.environ.get("PPE"))
if PPE:
    from concurrent.futures import ProcessPoolExecutor as Executor
else:
    from mpiexecutor import RMAChannelExecutor as Executor

random.seed(0)
np.random.seed(0)
rng = default_rng()
seeded = default_rng(7)
legacy = np.random.RandomState(7)
own = random.Random(7)
methods = [own.random, rng.random]
roll = own.randint
normals = rng.standard_normal
bits = np.random.Generator(np.random.Philox(3))


class Simulation:
    rng = np.random.default_rng(11)

    def __init__(self, seed=None):
        self.own = np.random.default_rng(seed)
        self.old = random.Random(seed)

    def step(self):
        return float(Simulation.rng.random())

    def own_step(self):
        return float(self.own.random()), self.old.random()


def from_import():
    return draw()


def through_module():
    return random.random(), rnd.uniform(0, 1)


def other_imports():
    return randint(0, 2**60), randrange(2**60), uniform(0, 1), gauss(0, 1), choice(range(2**60)), tuple(sample(range(10**6), 3))


def shuffled():
    items = list(range(30))
    shuffle(items)
    return tuple(items)


def numpy_module():
    return float(np.random.rand()), int(np.random.randint(2**60))


def numpy_imports():
    return float(rand()), float(normal()), float(np.random.uniform())


def from_generator():
    return float(rng.random())


def from_seeded():
    return float(seeded.random())


def from_legacy():
    return float(legacy.rand())


def from_own():
    return own.random()


def from_bits():
    return int(bits.integers(2**60))


def from_methods():
    return tuple(float(method()) for method in methods)


def from_bound():
    return roll(0, 2**60), float(normals())


def with_pid(name):
    return os.getpid(), numbers[name]()


def from_argument(generator):
    return float(generator.random())


def from_seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    return random.random(), float(np.random.rand()), float(default_rng(seed).random())


def estimate(seed_sequence, n):
    points = default_rng(seed_sequence).random((n, 2))
    return int((points**2).sum(axis=1).__lt__(1).sum())


def set_seed(seed):
    random.seed(seed)
    np.random.seed(seed)


def set_generator(seed):
    global rng, own
    rng = default_rng(seed)
    own = random.Random(seed)


def secrets_of():
    return os.urandom(8), uuid.uuid4(), random.SystemRandom().random()


def keep_state(n):
    state = random.getstate()
    first = [random.random() for _ in range(n)]
    random.setstate(state)
    return first == [random.random() for _ in range(n)]


numbers = {"random": draw, "numpy": np.random.rand, "rng": from_generator, "own": from_own}


def attempt(name, found, wanted=True):
    try:
        value = found()
        ok = wanted(value) if callable(wanted) else value == wanted
        said = f"found {value!r}"
    except BaseException as error:
        ok, said = False, f"found {type(error).__name__}: {error}"
    print(f"{name}: {'ok' if ok else 'WRONG, ' + said[:300]}", flush=True)


def streams(rows, reference):
    """Whether the numbers of each worker are the first of the reference, in any order."""
    by_worker = {}
    for pid, number in rows:
        by_worker.setdefault(pid, []).append(number)
    return all(sorted(found) == sorted(reference[: len(found)]) for found in by_worker.values())


def main():
    with Executor(2) as ex:

        def run(function, *args):
            return ex.submit(function, *args).result(60)

        def differ(function, n=12):
            found = [future.result(60) for future in [ex.submit(function) for _ in range(n)]]
            columns = list(zip(*found)) if isinstance(found[0], tuple) and not isinstance(found[0][0], tuple) else [found]
            return min(len(set(column)) for column in columns)

        def all_differ(n):
            return n == 12

        def differ_where_they_can(n):
            return n == 12 or (PPE and n >= 6)

        attempt("from random import random", lambda: differ(from_import), all_differ)
        attempt("random as a module", lambda: differ(through_module), all_differ)
        attempt("randint, uniform, gauss, choice, sample", lambda: differ(other_imports), all_differ)
        attempt("shuffle", lambda: len({run(shuffled) for _ in range(12)}), all_differ)
        attempt("numpy.random as a module", lambda: differ(numpy_module), differ_where_they_can)
        attempt("from numpy.random import rand, normal", lambda: differ(numpy_imports), differ_where_they_can)
        attempt("default_rng() as global", lambda: differ(from_generator), differ_where_they_can)
        attempt("default_rng(seed) as global", lambda: differ(from_seeded), differ_where_they_can)
        attempt("RandomState as global", lambda: differ(from_legacy), differ_where_they_can)
        attempt("Random(seed) as global", lambda: differ(from_own), differ_where_they_can)
        attempt("Generator(Philox) as global", lambda: differ(from_bits), differ_where_they_can)
        attempt("bound methods of generators in a list", lambda: differ(from_methods), differ_where_they_can)
        attempt("bound methods of generators as globals", lambda: differ(from_bound), differ_where_they_can)
        attempt("a generator as class attribute", lambda: differ(Simulation(1).step), differ_where_they_can)
        attempt("map draws, too", lambda: len({v for _, v in ex.map(with_pid, ["random"] * 20, chunksize=3)}), 20)
        attempt("random.random itself as the call", lambda: differ(random.random), lambda n: PPE or n == 12)
        attempt("numpy.random.rand itself as the call", lambda: differ(np.random.rand), lambda n: PPE or n == 12)
        attempt("os.urandom, uuid4, SystemRandom", lambda: differ(secrets_of), all_differ)
        attempt(
            "a generator as argument has the script's state",
            lambda: ([run(from_argument, default_rng(5)) for _ in range(3)], [run(from_argument, random.Random(5))] * 2),
            ([float(default_rng(5).random())] * 3, [random.Random(5).random()] * 2),
        )
        attempt(
            "a global generator as argument has the script's state",
            lambda: ({run(from_argument, own) for _ in range(4)}, random.Random(7).random()),
            lambda found: found[0] == {found[1]},
        )
        attempt(
            "an instance with generators of its own",
            lambda: {run(Simulation(3).own_step) for _ in range(4)},
            {(float(default_rng(3).random()), random.Random(3).random())},
        )
        attempt(
            "a seed in the call",
            lambda: [run(from_seed, s) for s in (1, 2, 1)],
            lambda found: found == [from_seed_here(s) for s in (1, 2, 1)],
        )
        attempt(
            "a seed in the call, map",
            lambda: list(ex.map(from_seed, range(6))),
            lambda found: found == [from_seed_here(s) for s in range(6)],
        )
        attempt(
            "a SeedSequence child for each call",
            lambda: (
                list(ex.map(estimate, SeedSequence(1).spawn(6), [1000] * 6)),
                [run(estimate, s, 1000) for s in SeedSequence(1).spawn(6)],
            ),
            lambda found: found == ([estimate(s, 1000) for s in SeedSequence(1).spawn(6)],) * 2,
        )
        attempt("getstate and setstate in a call", lambda: run(keep_state, 5))
        attempt(
            "the script's seeds hold in the script",
            lambda: (random.random(), float(np.random.rand()), float(seeded.random()), float(legacy.rand()), own.random()),
            (
                random.Random(0).random(),
                float(np.random.RandomState(0).rand()),
                float(default_rng(7).random()),
                float(np.random.RandomState(7).rand()),
                random.Random(7).random(),
            ),
        )
        after = random.random(), float(np.random.rand())
        run(from_import), run(from_seed, 3), run(numpy_imports)
        attempt(
            "the script's streams go on as if there were no calls",
            lambda: (after, random.random(), float(np.random.rand())),
            lambda found: found == next_of_seed(0),
        )
    with Executor(2, initializer=set_seed, initargs=(5,)) as ex:
        attempt(
            "an initializer seeds random",
            lambda: [ex.submit(with_pid, "random").result(60) for _ in range(8)],
            lambda rows: streams(rows, [(r := random.Random(5)).random(), *(r.random() for _ in range(7))]),
        )
        attempt(
            "an initializer seeds numpy.random",
            lambda: [ex.submit(with_pid, "numpy").result(60) for _ in range(8)],
            lambda rows: streams(rows, list(np.random.RandomState(5).rand(8))),
        )
    with Executor(2, initializer=set_generator, initargs=(5,)) as ex:
        attempt(
            "an initializer sets a generator",
            lambda: [ex.submit(with_pid, "rng").result(60) for _ in range(8)],
            lambda rows: streams(rows, list(default_rng(5).random(8))),
        )
        attempt(
            "an initializer sets a Random",
            lambda: [ex.submit(with_pid, "own").result(60) for _ in range(8)],
            lambda rows: streams(rows, [(r := random.Random(5)).random(), *(r.random() for _ in range(7))]),
        )
    found = set()
    for _ in range(6):
        with Executor(2) as ex:
            found |= {ex.submit(from_import).result(60) for _ in range(2)}
    attempt("executors one after another draw other numbers", lambda: len(found), 12)


def from_seed_here(seed):
    """The same numbers, without touching the streams of the script."""
    return random.Random(seed).random(), float(np.random.RandomState(seed).rand()), float(default_rng(seed).random())


def next_of_seed(seed):
    old, new = random.Random(seed), np.random.RandomState(seed)
    old.random(), new.rand()
    return (old.random(), float(new.rand())), old.random(), float(new.rand())


if __name__ == "__main__":
    main()

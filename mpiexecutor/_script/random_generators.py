"""Random numbers: each worker draws from a stream of its own.

The seed of a stream is derived from the state of a generator of the script, the rank of the worker, the number of the executor,
and, in a child process of a worker, the number of the child.
A generator that is a global of the script is rebuilt in a worker and then seeded. The global generators of `random` and
`numpy.random` are seeded before the first call of an executor, from their states in the script when the executor was made.
"""

import contextlib
import hashlib
import importlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


class Stream:
    """The stream of random numbers of this process, which sets `key` before it rebuilds globals."""

    key: tuple[int, ...] = ()  # rank and number of the executor; empty in the script
    child: int = 0  # number of this child process among those of the worker; 0: this is the worker


STREAM: Final = Stream()


def is_generator(obj: Any) -> bool:
    """Whether an object generates random numbers."""
    if isinstance(obj, random.Random):
        return not isinstance(obj, random.SystemRandom)
    return type(obj).__module__.startswith("numpy.random") and isinstance(obj, _numpy_generators())


@dataclass(frozen=True, slots=True)
class ModuleSeeds:
    """What the streams of `random` and `numpy.random` in workers are derived from: the states of these generators in the script."""

    random: bytes
    numpy: bytes | None  # None: the script has not imported numpy.random

    @classmethod
    def of_this_process(cls) -> "ModuleSeeds":
        """Note the states of now, of which nothing is drawn."""
        numpy_random = sys.modules.get("numpy.random")
        numpy = None if numpy_random is None else _digest(_plain(numpy_random.get_state(legacy=False)))
        return cls(_digest(random.getstate()), numpy)

    def reseed(self) -> None:
        """Have these generators of this worker draw from its stream.

        Where the script has imported numpy.random, so does the worker, if it can: it has no seed of the script's later.
        """
        random.seed(_seed_from(self.random))
        if self.numpy is not None:
            with contextlib.suppress(Exception):
                importlib.import_module("numpy.random")
        if (numpy_random := sys.modules.get("numpy.random")) is not None:
            numpy_random.seed(_words_from(self.numpy or _digest(_plain(numpy_random.get_state(legacy=False)))))


class GeneratorStates:
    """The states of the global generators of `random` and `numpy.random` at one moment."""

    def __init__(self) -> None:
        self._random = random.getstate()
        self._numpy = sys.modules["numpy.random"].get_state() if "numpy.random" in sys.modules else None

    def restore(self) -> None:
        random.setstate(self._random)
        if self._numpy is not None:
            sys.modules["numpy.random"].set_state(self._numpy)


def reduce_random(obj: random.Random) -> tuple[Any, ...]:
    if isinstance(obj, random.SystemRandom):
        return type(obj), ()
    return type(obj), (), obj.getstate(), None, None, _set_random


def _set_random(obj: random.Random, state: Any) -> None:
    obj.setstate(state)
    obj.seed(_seed_from(state))


def reduce_numpy_generator(obj: Any) -> tuple[Any, ...] | None:
    if not isinstance(obj, _numpy_generators()):
        return None
    reduced: Any = obj.__reduce_ex__(5)
    make, arguments, *rest = reduced
    return _make_numpy_generator, (make, arguments, rest[0] if rest else None)


def _make_numpy_generator(make: Callable[..., Any], arguments: tuple[Any, ...], state: Any) -> Any:
    generator = make(*arguments)
    if state is not None:
        generator.__setstate__(state)
    numpy_random = sys.modules["numpy.random"]
    source = generator if isinstance(generator, numpy_random.BitGenerator) else generator._bit_generator  # noqa: SLF001 - of both kinds
    seeds = numpy_random.SeedSequence(_seed_from(_plain(source.state)))
    source.state = type(source)(seeds).state
    return generator


def _numpy_generators() -> tuple[type, ...]:
    numpy_random = sys.modules["numpy.random"]
    return numpy_random.Generator, numpy_random.RandomState, numpy_random.BitGenerator


def _seed_from(state: object) -> int:
    return int.from_bytes(_digest((state, STREAM.key, STREAM.child)), "big")


def _digest(state: object) -> bytes:
    return hashlib.sha256(repr(state).encode()).digest()


def _words_from(seed: bytes) -> list[int]:
    digest = _digest((seed, STREAM.key, STREAM.child))
    return [int.from_bytes(digest[start : start + 4], "big") for start in range(0, 32, 4)]


def _plain(state: Any) -> Any:
    """Replace arrays in a generator's state by their bytes: `repr` abbreviates long arrays."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state

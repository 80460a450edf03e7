"""Digests of the script's globals: equal digests mean that a worker's own global is as good as the script's."""

import hashlib
import pickle
import secrets
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any

from mpiexecutor._script.random_generators import is_generator

from .definitions import DefinitionPickler


def digest_of(name: str, value: Any, names: set[str], identities: Mapping[int, str], refers: set[str]) -> bytes | None:
    """Return a digest of the value of a global; None if it cannot be pickled. Collect the globals that it needs and refers to."""
    file = _Hash()
    pickler = DigestPickler(file, file.keep, names, (name,), identities)
    try:
        pickler.dump(value)  # without the name: it may be the same string as one in the value, or only an equal one
    except (Exception, SystemExit):  # noqa: BLE001 - whatever its own code raises
        return None
    finally:
        refers |= pickler.refers
    return file.digest()


def header_of(value: Any) -> Any:
    """Return what of a function or class decides whether a worker's own is the same, but for its attributes."""
    if isinstance(value, FunctionType):
        return value.__code__, value.__closure__, vars(value).get("__wrapped__")
    return type(value), value.__bases__, vars(value).get("__slots__")


class DigestPickler(DefinitionPickler):
    """Pickles for comparison only: what is no part of a global's meaning is left out."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, CodeType):
            return str, (_digest_of_code(obj),)
        if is_generator(obj):
            return str, (secrets.token_hex(8),)  # never equal: each worker has a stream of its own
        return super().reducer_override(obj)

    def _dynamic_function_reduce(self, function: FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(function)
        reduced[2][1]["_cloudpickle_submodules"] = []  # those that happen to be imported
        return reduced

    def _reduce_class(self, kind: type, reduced: Any, *, is_local: bool) -> Any:
        make, (maker, arguments, _, extra), state, *rest = super()._reduce_class(kind, reduced, is_local=is_local)
        return make, (maker, arguments, None, extra), state, *rest


class _Hash:
    """A file that keeps nothing but a digest of what is written to it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha1(usedforsecurity=False)  # the fastest where processors have instructions for it

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return len(data)

    def keep(self, buffer: pickle.PickleBuffer) -> bool:
        self._hash.update(buffer.raw())
        return False

    def digest(self) -> bytes:
        return self._hash.digest()


def _digest_of_code(code: CodeType) -> str:
    """Say in a few characters what code does: the same for the same source, however it was compiled and stored."""
    constants = [_digest_of_code(constant) if isinstance(constant, CodeType) else _text(constant) for constant in code.co_consts]
    parts = (
        code.co_code,
        constants,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_flags,
        code.co_argcount,
        code.co_kwonlyargcount,
        code.co_posonlyargcount,
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _text(constant: object) -> str:
    """Return the text of a constant; sets have no order."""
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)

"""Digests of the script's globals. If the worker's own value has the same digest as the script's, the worker keeps its own.

Two processes that have run the same top level have the same digests. A generator of random numbers never has the same digest as
another one, so a worker always gets the script's, for a stream of its own.
"""

import hashlib
import pickle
import secrets
from collections.abc import Mapping
from types import CodeType, FunctionType
from typing import Any

from mpiexecutor._script.names import is_definition
from mpiexecutor._script.random_generators import is_generator
from mpiexecutor._util.pickling import PROTOCOL

from .definitions import DefinitionPickler


def digest_of(name: str, value: Any, needs: set[str], identities: Mapping[int, str], references: set[str]) -> bytes:
    """Return the digest of a global, or of an attribute of a function or class.

    Functions and classes that the script has defined have a digest without their attributes, which have digests of their own. If
    the value cannot be pickled, its digest says of which type it is.

    Args:
        name: The qualified name of the value.
        value: The value. Whatever its own methods raise is suppressed, but KeyboardInterrupt.
        needs: Takes the globals that the value needs.
        identities: See `identities_of`.
        references: Takes the globals that the value refers to.

    """
    file = _Hash()
    pickler = DigestPickler(needs, references, (name,), identities, file, PROTOCOL, buffer_callback=file.keep)
    try:
        # Without the name: a string in the value may be the same object as the name in one process, and not in another one.
        pickler.dump(_header_of(value) if is_definition(name, value) else value)
    except (Exception, SystemExit):  # noqa: BLE001 - the script's own code
        return type_digest(value)
    return file.digest()


def type_digest(value: Any) -> bytes:
    """Return the digest of a value that cannot be pickled."""
    return f"{type(value).__module__}.{type(value).__qualname__}".encode()


def _header_of(value: Any) -> Any:
    """Return what makes up a function or class, except its attributes."""
    if isinstance(value, FunctionType):
        return value.__code__, value.__closure__, vars(value).get("__wrapped__")
    return type(value), value.__bases__, vars(value).get("__slots__")


class DigestPickler(DefinitionPickler):
    """Pickles for comparison only: leaves out what may differ between processes that have run the same code."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, CodeType):
            return str, (_digest_of_code(obj),)
        if is_generator(obj):
            return str, (secrets.token_hex(8),)  # never equal
        return super().reducer_override(obj)

    def _dynamic_function_reduce(self, function: FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(function)
        reduced[2][1]["_cloudpickle_submodules"] = []  # they depend on what is imported
        return reduced

    def _reduce_class(self, kind: type, reduced: Any, *, is_local: bool) -> Any:
        make, (maker, arguments, _, extra), state, *rest = super()._reduce_class(kind, reduced, is_local=is_local)
        return make, (maker, arguments, None, extra), state, *rest


class _Hash:
    """A file that keeps only a digest of what is written to it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha1(usedforsecurity=False)  # the fastest on processors that have instructions for it

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return len(data)

    def keep(self, buffer: pickle.PickleBuffer) -> bool:
        self._hash.update(buffer.raw())
        return False

    def digest(self) -> bytes:
        return self._hash.digest()


def _digest_of_code(code: CodeType) -> str:
    """Return a digest of code: the same for the same source, whether it was compiled or loaded from a cache."""
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
    """Return the text of a constant; the order of a set differs between processes."""
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)

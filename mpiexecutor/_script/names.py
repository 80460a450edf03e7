"""The names of a script: which object has which name in ``__main__``, and which names a piece of code uses."""

import dis
import functools
import re
import sys
import typing
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

MAIN: Final = "__main__"
MISSING: Final = object()
# What code only sets it needs, too: the script's value has to be there before.
_USES_GLOBALS: Final = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_OF_PROMPTS: Final = re.compile(r"_+$|_i*\d*$|_(ih|oh|dh|exit_code)$")  # what IPython and the interpreter keep of what was typed
_READS_ANY: Final = {"globals", "eval", "exec"}  # builtins whose caller may look up any name
ANY: Final = "*"  # stands for all names of the script
LruCacheWrapper: Final = type(functools.lru_cache(len))
# Objects that know the name under which a module has them.
NAMED_KINDS: Final = (
    type,
    FunctionType,
    LruCacheWrapper,
    typing.NewType,
    typing.TypeVar,
    typing.ParamSpec,
    *(getattr(typing, name) for name in ("TypeVarTuple", "TypeAliasType") if hasattr(typing, name)),
)


class Lookup:
    """Where names of the script are looked up in this process.

    A worker sets `bring`: it defines a name that the script has and the worker does not have yet.
    """

    bring: Callable[[str], object] | None = None


LOOKUP: Final = Lookup()


def main_dict() -> dict[str, Any]:
    """Return the globals of the script, or of the executor whose calls this worker runs."""
    return vars(sys.modules[MAIN])


def by_name(name: str) -> Any:
    """Return what the script calls this: a qualified name. AttributeError if there is no such thing."""
    if LOOKUP.bring is not None:
        LOOKUP.bring(top_of(name))
    return found(name)


def function_of(name: str) -> Any:
    """Return a function of the script that is there already. AttributeError if there is no such thing."""
    function = vars(sys.modules[MAIN]).get(name)
    return found(name) if function is None else function


def found(name: str) -> Any:
    """Return what ``__main__`` has under a qualified name now."""
    value: Any = sys.modules[MAIN]
    for part in name.split("."):
        value = getattr(value, part)
    return value


def top_of(name: str) -> str:
    """Return the global that a qualified name begins with."""
    return name.partition(".")[0]


def name_of(obj: Any) -> str | None:
    """Return the qualified name under which ``__main__`` has an object of one of the NAMED_KINDS; None if it has none."""
    if getattr(obj, "__module__", None) != MAIN:
        return None
    if isinstance(obj, FunctionType) and vars(sys.modules[MAIN]).get(obj.__qualname__, MISSING) is obj:  # as most
        return obj.__qualname__
    name: Any = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if type(name) is not str or "<" in name:  # of a lambda, or local to a function
        return None
    try:
        return name if found(name) is obj else None
    except AttributeError:  # defined in a function, or deleted
        return None


@functools.lru_cache(4096)
def globals_of(code: CodeType) -> frozenset[str]:
    """Return the global names that code reads, nested functions included, and ANY if it may read others."""
    names: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in _USES_GLOBALS:
            names.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME" and instruction.argval == MAIN:
            names.add(ANY)
    if MAIN in code.co_consts or ("__name__" in names and "modules" in code.co_names):
        names.add(ANY)  # sys.modules["__main__"], sys.modules[__name__]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= globals_of(constant)
    return frozenset(names)


def reads_any(name: str, main: dict[str, Any]) -> bool:
    """Whether code that reads this name may read any: by a builtin such as eval, unless the script has another of that name."""
    return name == ANY or (name in _READS_ANY and name not in main)


def expanded(names: Iterable[str], main: dict[str, Any]) -> set[str]:
    """Return names that code reads, with all names of the script in the place of ANY; without those that every module has."""
    names = set(names)
    if any(reads_any(name, main) for name in names):
        names |= {name for name in list(main) if not _OF_PROMPTS.match(name)}
        names.discard(ANY)
    return {name for name in names if not (name.startswith("__") and name.endswith("__"))}


def main_modules() -> dict[str, ModuleType]:
    """Return what is `__main__` now, and what multiprocessing takes for it."""
    return {name: sys.modules[name] for name in (MAIN, "__mp_main__") if name in sys.modules}

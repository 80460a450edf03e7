"""Names of the script: which object has which name in ``__main__``, and which globals a piece of code uses.

A *global* is a name of the module ("Model"). A *qualified name* begins with a global, and may go on with attributes
("Model.level").
"""

import dis
import functools
import re
import sys
import typing
from collections.abc import Callable, Iterable
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, Final

MAIN: Final = "__main__"
MISSING: Final = object()  # stands for the value of a name that does not exist: None is a value
ANY: Final = "*"  # stands for all globals of the script, in the names that a piece of code uses
# A global that code only sets is needed, too: if the script's value came later, it would replace what the code has set.
_USES_GLOBALS: Final = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_OF_PROMPTS: Final = re.compile(r"_+$|_i*\d*$|_(ih|oh|dh|exit_code)$")  # the input and output that IPython and the interpreter keep
_READS_ANY: Final = {"globals", "eval", "exec"}  # builtins with which code may read any global
LruCacheWrapper: Final = type(functools.lru_cache(len))
# Types of objects that pickle refers to by module and name. `name_of` finds the name of one in the script.
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
    """How names of the script are looked up in this process.

    A worker sets `bring`: it brings a global to the version that the call needs, before the global is looked up.
    """

    bring: Callable[[str], object] | None = None


LOOKUP: Final = Lookup()


def main_dict() -> dict[str, Any]:
    """Return the globals of the script, or of the executor whose calls this worker runs."""
    return vars(sys.modules[MAIN])


def by_name(name: str) -> Any:
    """Return the object that has this qualified name in the script. Pickles call this.

    Raises:
        AttributeError: The script has no such object.

    """
    if LOOKUP.bring is not None:
        LOOKUP.bring(top_of(name))
    return resolve(name)


def function_of(name: str) -> Any:
    """Return the function that a call names, without bringing it: the state of the call has done that.

    Raises:
        AttributeError: There is no such function.

    """
    function = vars(sys.modules[MAIN]).get(name)
    return resolve(name) if function is None else function


def resolve(name: str) -> Any:
    """Return the object that has this qualified name in ``__main__`` now."""
    value: Any = sys.modules[MAIN]
    for part in name.split("."):
        value = getattr(value, part)
    return value


def top_of(name: str) -> str:
    """Return the global that a qualified name begins with."""
    return name.partition(".")[0]


def name_of(obj: Any) -> str | None:
    """Return the qualified name of an object in ``__main__``; None if it has none there. It is of one of the NAMED_KINDS."""
    if getattr(obj, "__module__", None) != MAIN:
        return None
    if isinstance(obj, FunctionType) and vars(sys.modules[MAIN]).get(obj.__qualname__, MISSING) is obj:  # most
        return str(obj.__qualname__)  # of no class of its own: it is part of messages
    name: Any = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if type(name) is not str or "<" in name:  # a lambda, or local to a function
        return None
    try:
        return name if resolve(name) is obj else None
    except AttributeError:  # defined in a function, or deleted
        return None


def is_definition(name: str, value: Any) -> bool:
    """Whether a global is a function or class that the script has defined under this name: not an imported one, nor an alias."""
    return isinstance(value, (type, FunctionType)) and "." not in name and name_of(value) == name


@functools.lru_cache(4096)
def globals_of(code: CodeType) -> frozenset[str]:
    """Return the globals that code uses, nested functions included, and ANY if it may use others."""
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
    """Whether code that uses this name may read any global: by a builtin such as eval, unless the script has defined that name."""
    return name == ANY or (name in _READS_ANY and name not in main)


def expanded(names: Iterable[str], main: dict[str, Any]) -> set[str]:
    """Return names that code uses, with all globals of the script in the place of ANY, and without those that every module has."""
    names = set(names)
    if any(reads_any(name, main) for name in names):
        names |= {name for name in list(main) if not _OF_PROMPTS.match(name)}
        names.discard(ANY)
    return {name for name in names if not (name.startswith("__") and name.endswith("__"))}


def held_by(function: FunctionType) -> list[object]:
    """Return the values in the closure of a function, MISSING for an empty cell, and its defaults."""
    contents = [content_of(cell) for cell in function.__closure__ or ()]
    return [*contents, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def content_of(cell: CellType) -> object:
    """Return the value in a cell of a closure; MISSING if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def main_modules() -> dict[str, ModuleType]:
    """Return the modules that are `__main__` now: `__mp_main__` is its name in multiprocessing."""
    return {name: sys.modules[name] for name in (MAIN, "__mp_main__") if name in sys.modules}

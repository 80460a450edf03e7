"""A script in this process: a `__main__` of its own, made of a text."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from mpiexecutor._script.kinds import STREAM
from mpiexecutor._script.names import LOOKUP, MAIN


def script_of(text: str) -> ModuleType:
    """Run a script's lines in a module of their own, which is `__main__` from here on."""
    module = ModuleType(MAIN)
    sys.modules[MAIN] = module
    exec(text, vars(module))
    return module


@contextmanager
def own_main() -> Iterator[None]:
    """Have what is `__main__` now again at the end."""
    saved = {name: sys.modules.get(name) for name in (MAIN, "__mp_main__")}
    bring, key = LOOKUP.bring, STREAM.key
    try:
        yield
    finally:
        LOOKUP.bring, STREAM.key = bring, key
        for name, module in saved.items():
            _set_module(name, module)


def _set_module(name: str, module: Any) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module

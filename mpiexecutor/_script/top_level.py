"""The top level of a guarded script, which each worker runs once for each executor.

A guard is a comparison of `__name__` with "__main__" at the top level of the script. In a worker the comparison is replaced by the
result that it has in a module that is imported, so what it guards does not run. `__name__` itself is "__main__" in workers, as in
forked workers of ProcessPoolExecutor. So classes have the same module, and the script can read pickles that calls write.
"""

import ast
import builtins
import contextlib
import functools
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import spec_from_loader
from multiprocessing.process import ORIGINAL_DIR  # type: ignore[attr-defined]
from pathlib import Path
from types import CodeType, ModuleType
from typing import IO, Any, Final

from .names import MAIN
from .surroundings import set_working_directory, working_directory


class TopLevelEnd(BaseException):
    """Raised in a worker where the top level makes an executor: the rest of the top level does not run there."""


class Running:
    """Whether this process runs the top level of a script as a worker."""

    now = False


RUNNING: Final = Running()


@dataclass(frozen=True, slots=True)
class TopLevel:
    """The source of a script, and the attributes of its module."""

    source: bytes | None  # None: workers do not run it, as it has no guard, or as they have run it already
    file: str | None
    package: str | None
    module: str | None  # the name of the module that `python -m` runs
    folder: str  # working directory in which the script was started
    arguments: list[str]  # sys.argv with which it was started

    def run(self) -> tuple[ModuleType, BaseException | None]:
        """Run the top level in a new module, which becomes `__main__`. Its output is not shown.

        Returns:
            The module, and the error that has ended the top level early, or None. The module has what was defined by then.

        """
        module = self.module_without_names()
        sys.modules[MAIN] = sys.modules["__mp_main__"] = module
        if self.source is None:
            return module, None
        RUNNING.now = True
        folder = _set_folder_and_arguments(self.folder, self.arguments)
        try:
            with _silence(), _keep_files():
                exec(_compiled(self.source, self.file or "<script>"), vars(module))  # noqa: S102 - the script itself
        except (TopLevelEnd, SystemExit):
            pass
        except BaseException as error:  # noqa: BLE001 - the script's own code
            return module, error
        finally:
            RUNNING.now = False
            _set_folder_and_arguments(folder, sys.argv)
        return module, None

    def module_without_names(self) -> ModuleType:
        """Return a module that has only the names that Python defines for a script."""
        module = ModuleType(MAIN)
        spec = spec_from_loader(self.module, None) if self.module else None
        if spec is not None:
            module.__spec__ = spec
            spec.origin = self.file
        vars(module).update(__builtins__=builtins, __package__=self.package)
        if self.file is not None:
            vars(module)["__file__"] = self.file
        return module


def of_this_process(*, run_again: bool) -> TopLevel:
    """Describe the script of this process; with its source only if workers are to run it, and it has a guard."""
    main = sys.modules[MAIN]
    file = getattr(main, "__file__", None)
    spec = getattr(main, "__spec__", None)
    source = _guarded_source(file) if run_again and isinstance(file, str) else None
    name = spec.name if spec is not None else None
    return TopLevel(source, file, getattr(main, "__package__", None), name, ORIGINAL_DIR, _first_arguments(file))


def _first_arguments(file: str | None) -> list[str]:
    """Return sys.argv as the script found it: the script may have removed arguments since."""
    arguments = list(getattr(sys, "argv", ()))
    given = sys.orig_argv
    for position in range(1, len(given) if file is not None and arguments else 0):
        if given[position] in {file, arguments[0]} or Path(given[position]).absolute() == Path(str(file)):
            return [arguments[0], *given[position + 1 :]]
    return arguments


def _set_folder_and_arguments(folder: str | None, arguments: list[str]) -> str | None:
    """Set working directory, if it exists, and sys.argv; return the working directory before."""
    before = working_directory()
    set_working_directory(folder)
    sys.argv = list(arguments)
    return before


@functools.cache  # the file may be edited while the script runs
def _guarded_source(file: str) -> bytes | None:
    try:
        source = Path(file).read_bytes()
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return None
    guards = _Guards()
    guards.visit(tree)
    return source if guards.found else None


@functools.cache
def _compiled(source: bytes, file: str) -> CodeType:
    tree = _Guards().visit(ast.parse(source))
    return compile(ast.fix_missing_locations(tree), file, "exec", dont_inherit=True)


class _Guards(ast.NodeTransformer):
    """Replaces guards by their result."""

    found = False

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        sides = [node.left, *node.comparators]
        names = any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
        mains = any(isinstance(side, ast.Constant) and side.value == MAIN for side in sides)
        if len(sides) != 2 or not names or not mains or not isinstance(node.ops[0], (ast.Eq, ast.NotEq)):  # noqa: PLR2004
            return node
        self.found = True
        return ast.copy_location(ast.Constant(isinstance(node.ops[0], ast.NotEq)), node)

    def visit_FunctionDef(self, node: Any) -> Any:
        return node

    visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = visit_FunctionDef  # noqa: N815 - inside of these there are no guards


@contextlib.contextmanager
def _keep_files() -> Iterator[None]:
    """Keep the contents of files that the top level opens for writing: the script has written to them already.

    Such a file is opened as the null device, so what the top level writes again is dropped. If the file is still open afterwards,
    it is connected to the real file, and calls append to that.
    """
    opened: list[tuple[IO[Any], str]] = []
    original = builtins.open

    def open_and_keep(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> IO[Any]:
        if not isinstance(file, (str, bytes, os.PathLike)) or not {"w", "x"} & set(mode) or options.get("opener") is not None:
            return original(file, mode, *arguments, **options)
        options["opener"] = lambda _path, flags: os.open(os.devnull, flags & ~(os.O_CREAT | os.O_EXCL))
        stream = original(file, mode, *arguments, **options)
        opened.append((stream, os.path.abspath(os.fsdecode(file))))  # noqa: PTH100 - of any kind of path
        return stream

    builtins.open = io.open = open_and_keep  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.open = io.open = original
        for stream, path in opened:
            if not stream.closed:
                stream.flush()
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
                os.dup2(descriptor, stream.fileno(), inheritable=False)
                os.close(descriptor)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop all output, of Python and of libraries, until the end of the block. The stream objects stay the same."""
    saved = [(stream, descriptor, os.dup(descriptor)) for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2))]
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream, descriptor, _ in saved:
            stream.flush()
            os.dup2(nothing, descriptor)
        yield
    finally:
        for stream, descriptor, copy in saved:
            with contextlib.suppress(ValueError, OSError):  # closed by the script
                stream.flush()
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nothing)

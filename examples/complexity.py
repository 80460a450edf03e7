"""Rank the functions of Python's standard library by complexity: one call for each of its files.

    mpiexec -n 5 python -m mpiexecutor examples/complexity.py [--check]

The complexity of a function is McCabe's: one more than the number of places where it branches.
"""

import argparse
import ast
import sysconfig
import time
from pathlib import Path

from mpiexecutor import RMAChannelExecutor

BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.comprehension, ast.match_case)


def complexity(function):
    """Count the branches of a function, those of functions inside it too."""
    nodes = list(ast.walk(function))
    branches = sum(isinstance(node, BRANCHES) for node in nodes)
    return 1 + branches + sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))


def functions_of(path):
    """Return (complexity, file, line, name) for each function of a file; nothing if it is not Python that this Python can parse."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # files of the library's own tests that are wrong on purpose
        return []
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(complexity(node), str(path), node.lineno, node.name) for node in functions]


def main():
    """Print the ten most complex functions, and the total over all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="do it again without the executor, and compare")
    parser.add_argument("--folder", type=Path, default=Path(sysconfig.get_path("stdlib")), help="instead of the standard library")
    options = parser.parse_args()
    files = sorted(path for path in options.folder.rglob("*.py") if "site-packages" not in path.parts)

    began = time.perf_counter()
    with RMAChannelExecutor() as executor:
        found = [function for functions in executor.map(functions_of, files) for function in functions]
        workers = executor.num_workers
    seconds = time.perf_counter() - began

    found.sort(reverse=True)
    for score, path, line, name in found[:10]:
        print(f"{score:5}  {name:30}  {Path(path).relative_to(options.folder)}:{line}")
    total = sum(score for score, *_ in found)
    print(f"{len(files)} files, {len(found)} functions, complexity {total} in all; {seconds:.1f} s with {workers} workers")
    if options.check:
        serial = sum(score for path in files for score, *_ in functions_of(path))
        print("the same without the executor" if serial == total else f"but {serial} without the executor")
        raise SystemExit(serial != total)


if __name__ == "__main__":
    main()

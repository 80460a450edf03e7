"""What the package is as a whole: what importing it does, what it exports, what it says of itself."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import metadata, version
from importlib.resources import files

import pytest
from jobs import ROOT

import mpiexecutor
import mpiexecutor.channel


def python(code: str) -> str:
    """Run a program in a fresh interpreter; return what it printed."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.parametrize("module", ["mpiexecutor", "mpiexecutor.channel", "mpiexecutor.executor"])
def test_importing_initialises_no_mpi(module):
    """MPI is first touched when a channel or an executor is made; NumPy only if a channel has its dtype."""
    loaded = python(f"import sys, {module}; print([m for m in ('mpi4py.MPI', 'numpy') if m in sys.modules])")
    assert loaded == "[]"


def test_a_worker_imports_no_executor():
    """On a full node all workers import at once: for 64 of them on two cores this is a tenth of their start."""
    absent = "mpiexecutor.executor", "mpiexecutor._calls.scheduling.scheduler", "concurrent.futures.process"
    code = f"import sys, mpiexecutor._cli.child, mpiexecutor._pool.serve; print([m for m in {absent} if m in sys.modules])"
    assert python(code) == "[]"


def test_every_public_name_can_be_imported_and_says_where_from():
    """Though each is imported only when it is needed."""
    code = "import sys, mpiexecutor as m; print(set(m.__all__) <= set(dir(m)), {getattr(m, n).__module__ for n in m.__all__})"
    assert python(code) == "True {'mpiexecutor'}"


def test_importing_starts_no_thread():
    """Nothing runs in the background before there is something to do."""
    assert python("import threading, mpiexecutor, mpiexecutor.channel; print(threading.active_count())") == "1"


def test_the_version_is_that_of_the_package_metadata():
    """There is one home for the version: pyproject.toml."""
    assert mpiexecutor.__version__ == version("mpiexecutor")
    assert re.fullmatch(r"\d+\.\d+\.\d+", mpiexecutor.__version__)


def test_the_changelog_begins_with_this_version():
    """Changes are listed under the version that has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"^## \[(.*?)\] - (?:unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == project["version"]
    assert len(versions) == len(set(versions))


def test_the_package_is_typed():
    """Type checkers look at the package's own annotations."""
    assert files("mpiexecutor").joinpath("py.typed").is_file()


def test_it_needs_mpi4py_and_cloudpickle_only():
    """Whatever else there is, is an extra."""
    needed = [line for line in metadata("mpiexecutor").get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.match(r"[\w-]+", line)[0] for line in needed) == ["cloudpickle", "mpi4py"]
    assert {"mpich", "openmpi", "impi", "numpy", "test"} <= set(metadata("mpiexecutor").get_all("Provides-Extra"))


@pytest.mark.parametrize("package", [mpiexecutor, mpiexecutor.channel])
def test_public_names_live_where_they_are_imported_from(package):
    """What a traceback or a pickle calls them is what users import; all are documented."""
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__module__ == package.__name__
        assert getattr(package, name).__doc__


def test_every_module_says_what_it_is():
    """Every module has a head that says what is in it."""
    heads = {file: file.read_text().startswith('"""') for file in (ROOT / "mpiexecutor").rglob("*.py")}
    assert [str(file) for file, there in heads.items() if not there] == []


def test_files_classes_and_folders_are_short():
    """At most 350 lines a file, 250 a class, 10 files a folder."""
    modules = list((ROOT / "mpiexecutor").rglob("*.py"))
    texts = {file: file.read_text() for file in modules}
    classes = [node for text in texts.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    assert not {file: lines for file, text in texts.items() if (lines := len(text.splitlines())) > 350}
    assert not {node.name: lines for node in classes if (lines := 1 + (node.end_lineno or 0) - node.lineno) > 250}
    assert not {folder: count for folder, count in Counter(file.parent for file in modules).items() if count > 10}


def test_what_the_contributors_page_names_exists():
    """Folders and files, of the project, of the package, or of the tests."""
    page = (ROOT / "tests" / "README.md").read_text()
    named = re.findall(r"`((?:\w+/)*(?:_\w+|\w+\.(?:py|md)|\w+/\w+))`", page)
    assert len(named) > 10
    assert [name for name in named if not any((ROOT / folder / name).exists() for folder in (".", "mpiexecutor", "tests"))] == []

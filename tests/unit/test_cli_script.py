"""How rank 0 of python -m mpiexecutor runs the script: without ranks, in processes that MPI knows nothing of."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# Rank 0 does this, with the arguments that name the program; -m has put the current folder onto the path by then.
RANK_0 = """
import os, sys
if not sys.flags.safe_path:
    sys.path[0] = os.getcwd()
from mpiexecutor._cli.script import run
run(sys.argv[1:])
"""
SHOW = """
import sys
print("argv", sys.argv)
print("path", sys.path[0])
print("name", __name__)
print("file", globals().get("__file__"))
print("main", sys.modules["__main__"].__dict__ is globals())
"""


@pytest.fixture
def write(tmp_path: Path):
    """Return a function that writes a file, and gives its path."""

    def write(code: str, name: str = "script.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(code))
        return str(path)

    return write


def python(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run Python as users do: a script finds what lies beside it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def rank_0(*program: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program as rank 0 does."""
    return python("-c", RANK_0, *program, cwd=cwd)


# -- what the script sees


def test_a_script_sees_what_python_shows_it(write, tmp_path):
    """sys.argv, sys.path[0], __name__, __file__ and __main__ of a script are as without the package."""
    program = [write(SHOW), "one", "--two", "-m"]
    expected = python(*program).stdout
    assert f"path {tmp_path.resolve()}" in expected
    assert rank_0(*program).stdout == expected


def test_a_script_named_without_its_folder(write, tmp_path):
    """The same with a relative path."""
    write(SHOW)
    expected = python("script.py", cwd=tmp_path).stdout
    assert "name __main__" in expected
    assert rank_0("script.py", cwd=tmp_path).stdout == expected


def test_a_module_sees_what_python_shows_it(write, tmp_path):
    """The same for -m: a module, with options of its own."""
    write(SHOW, "shown.py")
    program = ["-m", "shown", "-c", "one"]
    expected = python(*program, cwd=tmp_path).stdout
    assert "name __main__" in expected
    assert rank_0(*program, cwd=tmp_path).stdout == expected


def test_a_package_can_be_run(write, tmp_path):
    """A package is run by its __main__, relative imports included."""
    write("", "shown/__init__.py")
    write("VALUE = 42", "shown/values.py")
    write("from .values import VALUE\nprint(VALUE, __package__)" + SHOW, "shown/__main__.py")
    expected = python("-m", "shown", "one", cwd=tmp_path).stdout
    assert "42 shown" in expected
    assert rank_0("-m", "shown", "one", cwd=tmp_path).stdout == expected


def test_code_sees_what_python_shows_it(tmp_path):
    """The same for -c."""
    expected = python("-c", SHOW, "one", "-m", cwd=tmp_path).stdout
    assert "name __main__" in expected
    assert rank_0("-c", SHOW, "one", "-m", cwd=tmp_path).stdout == expected


# -- how it ends


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('the text')", 1, "the text\n"),
        ("sys.exit()", 0, ""),
        ("raise LookupError('the text')", 1, "LookupError: the text\n"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\n"),
    ],
)
def test_the_status_is_the_scripts(write, end, status, said):
    """sys.exit, a text or an error; of an error there is one traceback, which begins in the script."""
    done = rank_0(write(f"import sys\ndef main():\n    {end}\nmain()"))
    assert done.returncode == status
    assert done.stderr.endswith(said)
    assert done.stderr.count("Traceback (most recent call last)") == end.startswith("raise")
    assert "runpy" not in done.stderr
    assert "_cli" not in done.stderr


def test_a_syntax_error_is_pythons(write):
    """A script that is not Python: Python's message, once."""
    done = rank_0(write("x = = 1"))
    assert done.returncode == 1
    assert done.stderr.count("SyntaxError") == 1


def test_a_script_that_is_not_there_is_named(tmp_path):
    """Once."""
    done = rank_0(str(tmp_path / "nowhere.py"))
    assert done.returncode != 0
    assert "nowhere.py" in done.stderr
    assert done.stderr.count("FileNotFoundError") <= 1
    done = rank_0("-m", "there_is_no_such_module")
    assert done.returncode != 0
    assert done.stderr.count("No module named there_is_no_such_module") == 1

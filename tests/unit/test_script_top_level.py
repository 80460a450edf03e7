"""The top level of a script in a worker: what is found to be a guard, what is run, what is shown of it."""

import os
import sys
import types
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from textwrap import dedent

import pytest
from script_pair import script_of

from mpiexecutor._script import top_level
from mpiexecutor._script.top_level import RUNNING, TopLevel, TopLevelEnd, of_this_process

pytestmark = pytest.mark.usefixtures("main")


@pytest.fixture
def top(tmp_path):
    """Return a way to have a text as the top level of this process's script."""

    def describe(text, **attributes):
        file = tmp_path / "script.py"
        file.write_text(dedent(text))
        script = script_of("")
        script.__file__ = str(file)
        vars(script).update(attributes)
        return of_this_process(run_again=True)

    return describe


GUARDS = {
    "as usual": 'if __name__ == "__main__":\n    guarded = 1\n',
    "swapped": 'if "__main__" == __name__:\n    guarded = 1\n',
    "not equal": 'if __name__ != "__main__":\n    imported = 1\nelse:\n    guarded = 1\n',
    "swapped, not equal": 'if "__main__" != __name__:\n    imported = 1\nelse:\n    guarded = 1\n',
    "and": 'if __name__ == "__main__" and True:\n    guarded = 1\n',
    "or": 'if __name__ == "__main__" or False:\n    guarded = 1\n',
    "not": 'if not __name__ == "__main__":\n    imported = 1\nelse:\n    guarded = 1\n',
    "in try": 'try:\n    if __name__ == "__main__":\n        guarded = 1\nfinally:\n    pass\n',
    "in with": 'import contextlib\nwith contextlib.suppress(KeyError):\n    if __name__ == "__main__":\n        guarded = 1\n',
    "in another if": 'if True:\n    if __name__ == "__main__":\n        guarded = 1\n',
    "assigned": 'is_main = __name__ == "__main__"\nif is_main:\n    guarded = 1\n',
    "an expression": '__name__ == "__main__" and globals().update(guarded=1)\n',
    "exit": 'import sys\nif __name__ != "__main__":\n    sys.exit()\nguarded = 1\n',
    "first": 'if __name__ == "__main__":\n    guarded = 1\nbelow = 1\n',
}


@pytest.mark.parametrize("guard", GUARDS)
def test_what_is_guarded_is_not_run(top, guard):
    """The rest is, under the script's own name."""
    found = top("above = __name__\n" + GUARDS[guard])
    assert found.source is not None
    module, error = found.run()
    assert error is None
    assert not hasattr(module, "guarded")
    assert module.above == "__main__"
    assert hasattr(module, "imported") == ("imported" in GUARDS[guard])
    assert hasattr(module, "below") == (guard == "first")
    assert sys.modules["__main__"] is sys.modules["__mp_main__"] is module
    assert module.__name__ == "__main__"


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n",
        'def main():\n    if __name__ == "__main__":\n        pass\n',
        'async def main():\n    if __name__ == "__main__":\n        pass\n',
        'class Main:\n    if __name__ == "__main__":\n        pass\n',
        'is_main = lambda: __name__ == "__main__"\n',
        'if __name__ == "other":\n    pass\n',
        'if name == "__main__":\n    pass\n',
        'if __name__ is "__main__":\n    pass\n',
        'if __name__ in ("__main__", "other"):\n    pass\n',
        'if "a" == __name__ == "__main__":\n    pass\n',
        'text = "if __name__ == __main__"\n# if __name__ == "__main__":\n',
    ],
)
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_without_a_guard_nothing_is_run(top, text):
    """Inside functions and classes it is none; other comparisons are none."""
    found = top(text)
    assert found.source is None
    module, error = found.run()
    assert error is None
    assert {name for name in vars(module) if not name.startswith("__")} == set()


def test_comparisons_inside_functions_mean_what_they_say(top):
    """The module is called `__main__`."""
    module, _ = top('def is_main(): return __name__ == "__main__"\nif __name__ == "__main__":\n    pass\n').run()
    assert module.is_main() is True


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"def broken(:\n", b"x = '\0'\n", None])
def test_a_script_that_cannot_be_read_is_not_run(content, tmp_path):
    """Changed meanwhile, or gone."""
    file = tmp_path / "script.py"
    if content is not None:
        file.write_bytes(content)
    script = script_of("")
    script.__file__ = str(file)
    assert of_this_process(run_again=True).source is None


def test_without_a_file_nothing_is_run():
    """`-c`, stdin, a REPL."""
    script_of("")
    found = of_this_process(run_again=True)
    assert (found.source, found.file, found.package, found.module) == (None, None, None, None)


def test_nothing_is_run_where_it_is_not_asked_for(top):
    """Where workers have run the script, or have nothing of it."""
    top(GUARDS["as usual"])
    found = of_this_process(run_again=False)
    assert found.source is None
    assert found.file.endswith("script.py")


def test_the_encoding_of_the_source_is_respected(tmp_path):
    """As Python does."""
    file = tmp_path / "script.py"
    file.write_bytes("# coding: latin-1\ntext = 'ä'\n".encode("latin-1") + GUARDS["as usual"].encode())
    script = script_of("")
    script.__file__ = str(file)
    module, error = of_this_process(run_again=True).run()
    assert error is None
    assert module.text == "ä"


def test_futures_of_the_script_hold_and_those_of_this_package_do_not(top):
    """`from __future__ import annotations`."""
    module, _ = top("from __future__ import annotations\nx: unheard_of = 1\n" + GUARDS["as usual"]).run()
    assert module.__annotations__ == {"x": "unheard_of"}


def test_the_source_is_that_of_the_first_executor(top, tmp_path):
    """The file may be edited while the script runs."""
    found = top("x = 1\n" + GUARDS["as usual"])
    (tmp_path / "script.py").write_text("x = 2\n" + GUARDS["as usual"])
    assert of_this_process(run_again=True).source == found.source


def test_a_traceback_shows_the_scripts_lines(top):
    """The functions are compiled under the file's name, with their own lines."""
    found = top("\n\ndef f():\n    pass\n" + GUARDS["as usual"])
    module, _ = found.run()
    assert (module.f.__code__.co_filename, module.f.__code__.co_firstlineno) == (found.file, 3)
    assert module.__file__ == found.file


# -- how it ends


@pytest.mark.parametrize("make", ["RMAChannelExecutor()", "RMACommExecutor()", "with RMACommExecutor() as executor: inside = 1"])
def test_it_ends_where_an_executor_is_made(top, make):
    """What is defined by then stays. A worker that entered RMACommExecutor's block would wait for the others in it."""
    end = "from mpiexecutor import RMAChannelExecutor, RMACommExecutor\n"
    module, error = top(end + f"above = 1\n{make}\nbelow = 1\n" + GUARDS["as usual"]).run()
    assert error is None
    assert module.above == 1
    assert not hasattr(module, "inside")
    assert not hasattr(module, "below")
    assert not RUNNING.now


def test_the_end_goes_through_what_catches_errors(top):
    """It is no Exception."""
    text = "from mpiexecutor import RMAChannelExecutor\ntry:\n    RMAChannelExecutor()\nexcept Exception:\n    caught = 1\n"
    module, error = top(text + GUARDS["as usual"]).run()
    assert error is None
    assert not hasattr(module, "caught")
    assert not issubclass(TopLevelEnd, Exception)


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "import sys; sys.exit('bye')", "exit = None; raise SystemExit"])
def test_an_exit_is_an_end(top, text):
    """Not of the worker."""
    module, error = top("above = 1\n" + text + "\nbelow = 1\n" + GUARDS["as usual"]).run()
    assert error is None
    assert module.above == 1
    assert not hasattr(module, "below")


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_error_is_told_and_what_was_defined_stays(top, kind):
    """Whatever it is."""
    module, error = top(f"above = 1\nraise {kind.__name__}('text')\n" + GUARDS["as usual"]).run()
    assert type(error) is kind
    assert module.above == 1
    assert not RUNNING.now


# -- what it shows


@contextmanager
def plain_streams():
    """Have Python's streams write to the descriptors, as they do without pytest."""
    with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err, redirect_stdout(out), redirect_stderr(err):
        yield


def test_nothing_is_shown_that_it_prints(top, capfd):
    """By Python, by a child process, or by C."""
    text = """
        import os, sys
        print("printed")
        print("an error", file=sys.stderr)
        os.write(1, b"written")
        os.system("echo from a child")
        sys.stdout.write("left in a buffer")
    """
    with plain_streams():
        sys.stdout.write("before\n")
        _, error = top(dedent(text) + GUARDS["as usual"]).run()
        sys.stdout.write("after\n")
    assert error is None
    assert tuple(capfd.readouterr()) == ("before\nafter\n", "")


def test_what_was_printed_before_is_shown(top, capfd):
    """Though it still lay in a buffer."""
    with plain_streams():
        sys.stdout.write("before ")
        top(GUARDS["as usual"]).run()
        sys.stdout.write("after")
    assert capfd.readouterr().out == "before after"


def test_what_it_keeps_of_the_streams_works_afterwards(top, capfd):
    """A logging handler, a bound print."""
    with plain_streams():
        module, _ = top("import sys\nkept = sys.stdout\nerrors = sys.stderr\n" + GUARDS["as usual"]).run()
        print("by what was kept", file=module.kept, flush=True)
        print("an error", file=module.errors, flush=True)
    assert tuple(capfd.readouterr()) == ("by what was kept\n", "an error\n")


def test_no_descriptor_is_left(top):
    """Of those that silence it."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    top("x = 1\n" + GUARDS["as usual"]).run()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_stream_that_it_closes_is_no_error(top, monkeypatch):
    """It is the script's own affair."""
    with Path(os.devnull).open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        module, error = top("import sys\nsys.stderr.close()\nbelow = 1\n" + GUARDS["as usual"]).run()
        assert error is None
        assert module.below == 1


# -- how its module is called


def test_a_module_that_python_runs_has_a_spec(top):
    """`python -m package.module`: its relative imports work, and multiprocessing finds it."""
    spec = types.SimpleNamespace(name="email.mime.script")
    found = top("from . import base\nfrom .text import MIMEText\n" + GUARDS["as usual"], __spec__=spec, __package__="email.mime")
    assert (found.package, found.module) == ("email.mime", "email.mime.script")
    module, error = found.run()
    assert error is None
    assert module.base.__name__ == "email.mime.base"
    assert module.__spec__.name == "email.mime.script"
    assert module.__spec__.origin == found.file
    assert module.__package__ == "email.mime"


def test_a_module_without_names_has_what_python_gives_to_a_script():
    """Built-in names, a package, a file if there is one."""
    module = TopLevel(None, None, None, None, "", []).module_without_names()
    assert module.__builtins__ is __import__("builtins")
    assert not hasattr(module, "__file__")
    assert module.__spec__ is None
    assert module.__package__ is None


def test_each_run_has_a_module_of_its_own(top):
    """Of each executor."""
    found = top("x = []\n" + GUARDS["as usual"])
    assert found.run()[0].x is not found.run()[0].x
    assert top_level._compiled(found.source, found.file) is top_level._compiled(found.source, found.file)

"""What python -m mpiexecutor makes of its arguments: in pytest's own process, and nothing is started."""

import os
import re
import sys

import pytest
from jobs import ROOT

from mpiexecutor import __main__ as command


@pytest.mark.parametrize(
    ("arguments", "status"),
    [([], 2), (["-m"], 2), (["-c"], 2), (["--nonsense"], 2), (["-h"], 0), (["--help"], 0)],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else None,
)
def test_the_usage_is_shown(arguments, status, capsys):
    """Without a script the usage is an error, asked for it is not."""
    with pytest.raises(SystemExit) as caught:
        command._parse(arguments)
    said = capsys.readouterr()
    assert caught.value.code == status
    assert (said.out if status == 0 else said.err).count("usage: python -m mpiexecutor") == 1
    assert "usage" not in (said.err if status == 0 else said.out)


def test_the_help_describes_the_environment_variables(capsys):
    """All that the package reads, but for those that its own processes and its tests set."""
    sources = "".join(path.read_text() for path in (ROOT / "mpiexecutor").rglob("*.py"))
    read = set(re.findall(r'"(MPIEXECUTOR_\w+)"', sources)) - {"MPIEXECUTOR_JOB", "MPIEXECUTOR_TEST_SCALE"}
    with pytest.raises(SystemExit):
        command._parse(["--help"])
    described = re.findall(r"^  (MPIEXECUTOR_\w+) ", capsys.readouterr().out, re.MULTILINE)
    assert read == set(described)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["-c"], "-c is followed by the code to run"),
        (["-n", "3", "-m"], "-m is followed by the module to run"),
        (["-"], "the script cannot come from standard input: name a file, or run 'python -', which starts workers, too"),
        (["-v", "-", "-c"], "the script cannot come from standard input"),
    ],
)
def test_a_program_that_cannot_be_run_is_explained(arguments, remedy, capsys):
    """And what to do instead."""
    with pytest.raises(SystemExit) as caught:
        command._parse(arguments)
    assert caught.value.code == 2
    assert f"python -m mpiexecutor: error: {remedy}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["-n", "0", "x.py"], ["-n", "2"], ["--unknown", "x.py"], ["--mpiexec", "/nowhere", "x.py"]])
def test_nonsense_is_refused(arguments, capsys, monkeypatch):
    """In one sentence, and nothing is started."""
    monkeypatch.setattr(sys, "argv", ["mpiexecutor", *arguments])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("something was started"))
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code != 0
    assert "python -m mpiexecutor: " in f"{caught.value.code} {capsys.readouterr().err}"


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_hostfile_that_cannot_be_read_is_named(name, tmp_path, monkeypatch):
    """In one sentence of this command, before mpiexec has many."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("something was started"))
    options, program = command._parse(["--hostfile", name, "x.py"])
    with pytest.raises(SystemExit) as caught:
        command._become_mpiexec(options, program)
    assert caught.value.code == f"python -m mpiexecutor: --hostfile names a file that lists the hosts, but {name} cannot be read"


def test_a_hostfile_goes_to_mpiexec(tmp_path, monkeypatch):
    """As it was named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text("localhost\n")
    started = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    command._become_mpiexec(*command._parse(["--hostfile", "hosts", "x.py"]))
    assert "hosts" in started[0]


def test_ranks_that_another_explains_things_for_are_quiet(capsys):
    """They end with success, and leave the status to that one."""
    with pytest.raises(SystemExit) as caught:
        command._parse_quietly(["--nonsense"])
    assert caught.value.code == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("option", [["-n", "3"], ["--hostfile", "hosts"], ["--mpiexec", "mpiexec"]])
def test_what_starts_ranks_is_refused_in_a_rank(option, capsys, monkeypatch):
    """There is nothing left to start."""
    monkeypatch.setattr(command, "launched", lambda: True)
    with pytest.raises(SystemExit):
        command._parse([*option, "x.py"])
    assert "an mpiexec has started this one already" in capsys.readouterr().err


def test_the_options_behind_the_script_are_its_own():
    """Whatever they look like."""
    options, program = command._parse(["-v", "-n", "3", "x.py", "-n", "7", "-v", "--info"])
    assert (options.n, options.verbose, options.info) == (3, True, False)
    assert program == ["x.py", "-n", "7", "-v", "--info"]

"""Whether a processor is free: what the system tells is a file here."""

import os

import pytest

from mpiexecutor._util import processors


@pytest.fixture
def loadavg(monkeypatch, tmp_path):
    """What the system tells, on a machine with 4 processors."""
    file = tmp_path / "loadavg"
    monkeypatch.setattr(processors, "_LOADAVG", str(file))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    processors._file.cache_clear()
    yield file
    processors._file.cache_clear()


@pytest.mark.parametrize(("running", "free"), [(1, True), (4, True), (5, False), (120, False)])
def test_a_processor_is_free_while_no_more_threads_run_than_there_are(loadavg, running, free):
    """The thread that asks is one of them. It is asked anew each time."""
    loadavg.write_text("0.20 0.18 0.12 0/80 11206\n")
    assert processors.one_is_free()
    loadavg.write_text(f"9.20 0.18 0.12 {running}/80 11206\n")
    assert processors.one_is_free() == free


@pytest.mark.parametrize(("average", "overloaded"), [("0.00", False), ("4.99", False), ("5.00", True), ("120.25", True)])
def test_the_machine_is_overloaded_if_for_a_minute_more_threads_could_run_than_there_are_processors(loadavg, average, overloaded):
    """One more, as own threads that spin are counted, too."""
    loadavg.write_text(f"{average} 0.18 0.12 1/80 11206\n")
    assert processors.are_overloaded() == overloaded


def test_without_such_a_file_a_processor_is_taken_for_free(loadavg):
    """As on systems other than Linux."""
    assert not loadavg.exists()
    assert processors.one_is_free()
    assert not processors.are_overloaded()

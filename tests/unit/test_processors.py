"""Whether a processor is free: what the system tells is a file here."""

import os
import sys
from types import SimpleNamespace

import pytest

from mpiexecutor._util import processors


@pytest.fixture
def loadavg(monkeypatch, tmp_path):
    """What the system tells, on a machine with 4 processors."""
    file = tmp_path / "loadavg"
    monkeypatch.setattr(processors, "_LOADAVG", str(file))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="5.14"))
    for cached in (processors._file, processors._counts_sleepers):
        cached.cache_clear()
    yield file
    for cached in (processors._file, processors._counts_sleepers):
        cached.cache_clear()


@pytest.mark.parametrize(("running", "lacking"), [(1, -3), (4, 0), (5, 1), (120, 116)])
def test_a_processor_is_free_while_no_more_threads_run_than_there_are(loadavg, running, lacking):
    """The thread that asks is one of them. It is asked anew each time."""
    loadavg.write_text("0.20 0.18 0.12 0/80 11206\n")
    assert processors.processors_lacking() <= 0
    loadavg.write_text(f"9.20 0.18 0.12 {running}/80 11206\n")
    assert processors.processors_lacking() == lacking


OLD, NEW = ["5.14.0-427.el9", "6.6.9", "unknown"], ["6.12.1", "6.18.44-fc", "7.0"]


@pytest.mark.parametrize(("release", "free"), [*((each, 4) for each in OLD), *((each, 5) for each in NEW)])
def test_a_thread_that_sleeps_since_a_moment_does_not_count_where_the_system_counts_it(loadavg, monkeypatch, release, free):
    """As Linux 6.12 and later do."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    for running in range(1, 9):
        loadavg.write_text(f"9.20 0.18 0.12 {running}/80 11206\n")
        assert processors.processors_lacking() == running - free


def test_without_such_a_file_a_processor_is_taken_for_free(loadavg):
    """As on systems other than Linux."""
    assert not loadavg.exists()
    assert processors.processors_lacking() == 0

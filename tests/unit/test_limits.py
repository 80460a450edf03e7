"""The warnings about a machine that lacks a resource for a job."""

import os
import resource
from types import SimpleNamespace

import pytest

from mpiexecutor._start.limits import shortages
from mpiexecutor._util.flavour import Flavour


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets what this machine has."""

    def has(memory=1 << 40, files=1 << 20, most_files=1 << 20):
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=memory >> 12, f_frsize=1 << 12))
        monkeypatch.setattr(resource, "getrlimit", lambda _: (files, most_files))

    has()
    return has


def test_a_machine_that_has_enough_has_no_shortage(machine):
    """A large machine, and many ranks."""
    assert not shortages(256, Flavour.MPICH)
    machine(files=resource.RLIM_INFINITY)
    assert not shortages(1000, Flavour.MPICH)


def test_shared_memory_is_named_with_the_way_out(machine):
    """Docker gives a container 64 MiB: not enough for MPICH with 12 workers, but with 11, and for the other MPIs."""
    machine(memory=64 << 20)
    assert not shortages(12, Flavour.MPICH)
    assert not shortages(64, Flavour.OPEN_MPI)
    assert shortages(13, Flavour.MPICH) == [
        "/dev/shm has 64 MiB free, and 13 ranks may need 65 MiB ('docker run --shm-size=1g' has a container have more)"
    ]


def test_shared_memory_that_cannot_be_used_is_named(machine, monkeypatch):
    """None is there, say."""

    def fail(_):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "statvfs", fail)
    assert shortages(2, Flavour.MPICH) == ["/dev/shm, the shared memory of MPI, cannot be used: No such file or directory"]


@pytest.mark.parametrize(("most_files", "remedy"), [(1024, "'ulimit -n "), (32, "the administrator set this limit")])
def test_a_limit_of_open_files_is_named_with_the_way_out(machine, most_files, remedy):
    """Files that the script has open already count."""
    machine(files=32, most_files=most_files)
    (text,) = shortages(3, Flavour.INTEL_MPI)
    assert text.startswith("a process may have 32 files open, and with 3 ranks this one may need ")
    assert remedy in text

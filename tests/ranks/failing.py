"""A test that fails on one rank, while the others wait for it: test_channel.py sees what becomes of it."""

from together import COMM, RANK


def test_fails_on_rank_1():
    """True on the other ranks, but they never learn that."""
    assert RANK != 1
    COMM.recv(source=1)

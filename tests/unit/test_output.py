"""What a job prints, on its way through pipes: marks that come in pieces, and what an error message shows of it."""

import os

import pytest

from mpiexecutor._start.output import Output, end_of_output

MARK = end_of_output("token")


@pytest.fixture
def pipes():
    """Yield an output, a function that prints, and one that reads what was copied."""
    source, printed = os.pipe()
    copied, target = os.pipe()
    yield Output(source, target, MARK), lambda data: os.write(printed, data), lambda: os.read(copied, 1 << 16)
    os.close(printed)
    os.close(copied)


@pytest.mark.parametrize("cut", range(1, len(MARK)))
def test_a_mark_is_not_shown_though_it_comes_in_pieces(pipes, cut):
    """What precedes it and what follows it are shown."""
    output, write, read = pipes
    write(b"before" + MARK[:cut])
    shown = read()
    write(MARK[cut:] + b"after")
    output.wait(1, 60)
    while not shown.endswith(b"after"):
        shown += read()
    assert shown == b"beforeafter"


def test_what_only_begins_like_a_mark_is_shown(pipes):
    """Once something else follows."""
    _, write, read = pipes
    write(MARK[:5])
    write(b" but no mark")
    shown = b""
    while not shown.endswith(b"no mark"):
        shown += read()
    assert shown == MARK[:5] + b" but no mark"


def test_the_last_part_is_kept(pipes):
    """4,000 bytes of it, also of what was not shown as the output was muted."""
    output, write, _ = pipes
    output.mute()
    write(b"x" * 5000 + b"the end" + MARK)
    output.wait(1, 60)
    assert len(output.tail()) == 4000
    assert output.tail().endswith("xthe end")


def test_a_wait_for_marks_that_do_not_come_ends_in_time(pipes):
    """Of a worker that was killed."""
    output, write, _ = pipes
    write(MARK)
    output.wait(2, 0.01)

"""What a worker writes down of itself."""

import os
import subprocess
import sys
import time

from mpiexecutor._liveness.status_page import INITIALIZER, NOTHING, Slate

WRITER = """
import sys
from mpiexecutor._liveness.status_page import Slate
slate = Slate(int(sys.argv[1]))
slate.limit(2.5)
slate.begin(1 << 62, 7.25)
slate.pulse()
"""


def test_whoever_has_the_descriptor_reads_what_another_process_has_written():
    """Numbers and times, as they were."""
    slate, descriptor = Slate.new()
    subprocess.run([sys.executable, "-c", WRITER, str(descriptor)], pass_fds=(descriptor,), check=True)
    reader = Slate(descriptor)
    os.close(descriptor)
    for each in (slate, reader):
        assert (each.begun, each.running_since, each.most) == (1 << 62, 7.25, 2.5)
        assert 0 <= time.monotonic() - each.seen < 60


def test_what_was_begun_last_is_known_when_it_has_ended():
    """That is what is lost if the worker dies before the outcome is put; a new message begins with nothing."""
    slate, descriptor = Slate.new()
    os.close(descriptor)
    assert slate.begun == NOTHING
    slate.begin(5, 1.0)
    slate.finish()
    assert (slate.begun, slate.running_since) == (5, None)
    slate.wipe()
    assert slate.begun == NOTHING
    slate.begin(INITIALIZER, 2.0)
    assert (slate.begun, slate.running_since) == (INITIALIZER, 2.0)


def test_outcomes_are_kept_until_all_are_put():
    """In order, as bytes; what there is no room for is left out, and so is what nobody else would see."""
    slate, descriptor = Slate.new()
    reader = Slate(descriptor)
    os.close(descriptor)
    assert (slate.holds, reader.held) == (True, b"")
    slate.hold(b"first")
    slate.hold(b"second")
    slate.hold(bytes(700_000))
    slate.hold(b"last")
    assert reader.held == b"firstsecondlast"
    slate.let_go()
    assert reader.held == b""
    reader._numbers[4] = -1
    assert reader.held == b""
    alone = Slate()
    alone.hold(b"first")
    assert (alone.holds, alone.held) == (False, b"")


def test_says_how_long_there_is_nothing_to_enforce():
    """For a whole limit if none runs: one that begins now is overdue after that."""
    slate = Slate()
    slate.begin(5, 10.0)
    assert slate.left(100.0) is None
    slate.limit(3.0)
    assert slate.left(11.0) == 2.0
    assert slate.left(14.0) == -1.0
    slate.finish()
    assert slate.left(14.0) == 3.0

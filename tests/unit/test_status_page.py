"""What a worker writes down of itself."""

import os
import subprocess
import sys
import time

from fakes import FakeClock

from mpiexecutor._liveness import status_page
from mpiexecutor._liveness.status_page import INITIALIZER, NOTHING, StatusPage

WRITER = """
import sys
from mpiexecutor._liveness.status_page import StatusPage
page = StatusPage(int(sys.argv[1]))
page.limit(2.5)
page.begin(1 << 62, 7.25)
page.pulse()
"""


def test_a_process_with_the_descriptor_reads_what_another_has_written():
    """Numbers and times, as they were."""
    page, descriptor = StatusPage.new()
    subprocess.run([sys.executable, "-c", WRITER, str(descriptor)], pass_fds=(descriptor,), check=True)
    reader = StatusPage(descriptor)
    os.close(descriptor)
    for each in (page, reader):
        assert (each.begun, each.running_since, each.most) == (1 << 62, 7.25, 2.5)
        assert 0 <= time.monotonic() - each.seen < 60


def test_what_was_begun_last_is_known_when_it_has_ended():
    """That is what is lost if the worker dies before the outcome is put; a new message begins with nothing."""
    page, descriptor = StatusPage.new()
    os.close(descriptor)
    assert page.begun == NOTHING
    page.begin(5, 1.0)
    page.finish()
    assert (page.begun, page.running_since) == (5, None)
    page.wipe()
    assert page.begun == NOTHING
    page.prepare(6, 3.0)
    assert (page.begun, page.busy_since, page.running_since) == (6, 3.0, None)
    page.begin(INITIALIZER, 2.0)
    assert (page.begun, page.running_since) == (INITIALIZER, 2.0)


def test_outcomes_are_kept_until_all_are_put():
    """In order, as bytes; what there is no room for is left out, and so is what nobody else would see."""
    page, descriptor = StatusPage.new()
    reader = StatusPage(descriptor)
    os.close(descriptor)
    assert (page.holds, reader.held) == (True, b"")
    page.hold(b"first")
    page.hold(b"second")
    page.hold(bytes(700_000))
    page.hold(b"last")
    assert reader.held == b"firstsecondlast"
    page.let_go()
    assert reader.held == b""
    reader._numbers[4] = -1
    assert reader.held == b""
    alone = StatusPage()
    alone.hold(b"first")
    assert (alone.holds, alone.held) == (False, b"")


def test_says_how_long_there_is_nothing_to_enforce():
    """For a whole limit if none runs: one that begins now is overdue after that."""
    page = StatusPage()
    page.begin(5, 10.0)
    assert page.left(100.0) is None
    page.limit(3.0)
    assert page.left(11.0) == 2.0
    assert page.left(14.0) == -1.0
    page.finish()
    assert page.left(14.0) == 3.0
    page.prepare(6, 10.0)
    assert page.left(14.0) == 3.0


def test_a_rank_seems_to_be_as_silent_as_the_child_that_runs_its_calls(monkeypatch):
    """It has one pulse, and the child another; what other children do is of no interest."""
    clock = FakeClock()
    monkeypatch.setattr(status_page, "time", clock)
    page = StatusPage()
    page.send(os.getpid(), 0)
    sent = clock.monotonic()
    clock.now += 5
    page.pulse()
    assert page.seen == sent
    page.pulse_of_child()
    assert page.seen == sent + 5
    page.expect(os.getpid() + 1)
    clock.now += 5
    page.pulse_of_child()
    page.pulse()
    assert page.seen == sent + 5
    page.expect(0)
    assert page.seen == sent + 10

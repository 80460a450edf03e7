"""Large buffers from one process to another by shared memory."""

import array
import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mpiexecutor._util.segments import (
    SMALLEST,
    SegmentGone,
    SegmentPool,
    SegmentReader,
    free_memory,
    is_within_reach,
    pid_namespace,
)
from mpiexecutor._util.segments import pool as pool_module

LARGE = 2 * SMALLEST

pytestmark = pytest.mark.skipif(not pid_namespace(), reason="this system has no memfd")


def some(size=LARGE, seed=0):
    """Return a buffer whose bytes differ."""
    return memoryview(bytearray((seed + index) % 251 for index in range(251)) * (-(-size // 251)))[:size]


@pytest.fixture
def pool():
    pool = new_pool()
    yield pool
    pool.close()


def new_pool(most=64 << 20, most_segments=4):
    pool = SegmentPool(most, most_segments)
    assert pool.put([some()]) is None  # see test_the_first_buffers_are_no_reason_to_make_a_segment
    return pool


@pytest.fixture
def reader():
    reader = SegmentReader()
    yield reader
    reader.close()


def file_of(name):
    """Return what says which segment a name is of."""
    return name[:32]


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def other_process(program, *arguments):
    """Start a process that has a reader, and does more; it ends when its standard input is closed."""
    text = "import sys; from mpiexecutor._util.segments import *; reader = SegmentReader()\n" + textwrap.dedent(program)
    command = [sys.executable, "-P", "-c", text, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


HOLD = """
    parts = reader.open(bytes.fromhex(sys.argv[1]))
    print(bytes(parts[0][:100]).hex(), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("sizes", [(LARGE,), (LARGE, 0, 1, 63, 64, 65, LARGE + 1), (0, LARGE), (SMALLEST, SMALLEST)], ids=str)
def test_buffers_come_as_they_were_put(pool, reader, sizes):
    parts = [some(size, size) for size in sizes]
    received = reader.open(pool.put(parts))
    assert [bytes(part) for part in received] == [bytes(part) for part in parts]
    assert not any(part.readonly for part in received)


def test_another_process_gets_them(pool):
    with other_process(HOLD, pool.put([some()]).hex()) as other:
        assert bytes.fromhex(other.stdout.readline()) == some()[:100]
        other.stdin.close()


def test_the_first_buffers_are_no_reason_to_make_a_segment():
    pool = SegmentPool(64 << 20, 4)
    assert pool.put([some()]) is None
    assert pool.put([some()]) is not None
    pool.close()


@pytest.mark.parametrize("size", [0, 1, SMALLEST - 65, 40 << 20])
def test_some_are_too_small_or_too_large(pool, size):
    assert pool.put([memoryview(bytes(size))]) is None


def test_a_segment_is_used_again_once_nothing_refers_to_its_buffers(pool, reader):
    """Not before: a slice is enough."""
    name = pool.put([some()])
    part = reader.open(name)[0][1000:1001]
    other = pool.put([some(seed=1)])
    assert file_of(other) != file_of(name)
    assert part[0] == some()[1000]
    del part
    gc.collect()
    assert file_of(pool.put([some()])) == file_of(name)


def test_a_receiver_may_write_to_its_own(pool, reader):
    """The sender's stays as it is, and so does what comes next."""
    source = some()
    before = bytes(source)
    (part,) = reader.open(pool.put([source]))
    part[:] = bytes(len(part))
    assert bytes(source) == before
    del part
    assert bytes(reader.open(pool.put([source]))[0]) == before


def test_what_the_sender_writes_later_is_not_seen(pool, reader):
    source = some()
    before = bytes(source)
    name = pool.put([source])
    source[:] = bytes(len(source))
    assert bytes(reader.open(name)[0]) == before


def test_what_is_under_way_stays(pool, reader):
    """Until it is opened, or cannot be any more."""
    wanted = [True]
    name = pool.put([some()], lambda: wanted[0])
    assert file_of(pool.put([some()])) != file_of(name)
    wanted[0] = False
    assert file_of(pool.put([some(seed=1)])) == file_of(name)
    with pytest.raises(SegmentGone):
        reader.open(name)


def test_a_receiver_that_dies_holds_nothing(pool):
    name = pool.put([some()])
    with other_process(HOLD, name.hex()) as other:
        other.stdout.readline()
        assert file_of(pool.put([some()])) != file_of(name)
        other.kill()
        other.wait()
    assert file_of(pool.put([some()])) == file_of(name)


def test_a_sender_that_has_died_has_nothing(reader):
    """It has its own error, and takes no descriptor along."""
    program = """
        pool = SegmentPool(64 << 20, 4)
        names = [pool.put([memoryview(bytes(1 << 20))]) for _ in range(2)]
        print(names[1].hex(), flush=True)
        sys.stdin.read()
    """
    with other_process(program) as other:
        name = bytes.fromhex(other.stdout.readline())
        other.kill()
        other.wait()
    before = descriptors()
    with pytest.raises(SegmentGone):
        reader.open(name)
    assert descriptors() == before


def test_another_file_of_the_same_number_is_not_taken_for_it(reader, tmp_path):
    path = tmp_path / "other"
    path.write_bytes(bytes(LARGE))
    with path.open("r+b") as file, pytest.raises(SegmentGone):
        reader.open(array.array("q", [os.getpid(), file.fileno(), 1, LARGE, 1, 100]).tobytes())


def test_what_was_received_outlives_the_pool(pool, reader):
    (part,) = reader.open(pool.put([some()]))
    pool.close()
    reader.close()
    assert bytes(part) == bytes(some())
    assert pool.put([some()]) is None


def test_nothing_stays_open(reader):
    before = descriptors()
    pool = new_pool()
    parts = [reader.open(pool.put([some()])) for _ in range(3)]
    assert descriptors() == before + 6
    pool.close()
    del parts
    gc.collect()
    reader.close()
    assert descriptors() == before


def test_a_reader_keeps_no_segments_that_their_sender_has_given_up(reader):
    before = descriptors()
    pool = new_pool()
    reader.open(pool.put([some()]))
    pool.close()
    pool = new_pool()
    reader.open(pool.put([some()]))
    assert descriptors() == before + 2
    pool.close()


def test_there_are_so_many_at_the_most(reader):
    """Then there is none until one is free."""
    pool = new_pool(most_segments=2)
    parts = [reader.open(pool.put([some()])) for _ in range(2)]
    assert pool.put([some()]) is None
    del parts[0]
    assert pool.put([some()]) is not None
    pool.close()


def test_there_are_so_many_bytes_at_the_most():
    pool = new_pool(most=5 * LARGE)
    assert [pool.put([some()]) is None for _ in range(5)] == [False] * 4 + [True]
    pool.close()


def test_one_that_fits_nothing_any_more_makes_room(reader, monkeypatch):
    monkeypatch.setattr(pool_module, "_UNUSED", 3)
    pool = new_pool(most=16 * LARGE, most_segments=2)
    large = some(8 * LARGE - 1000)
    assert reader.open(pool.put([large]))
    for _ in range(4):
        assert reader.open(pool.put([some()]))
    held = reader.open(pool.put([some()]))
    assert reader.open(pool.put([some()]))  # in the room of the large one
    del held
    pool.close()


def test_no_memory_is_no_error(pool, monkeypatch):
    """The buffers take another way."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    before = descriptors()
    assert pool.put([some()]) is None
    assert descriptors() == before


def test_an_interrupted_copy_leaves_the_segment_free(pool):
    class Interrupted:
        def __len__(self):
            return LARGE

        def __getitem__(self, place):
            raise KeyboardInterrupt

    first = pool.put([some()], lambda: False)
    with pytest.raises(KeyboardInterrupt):
        pool.put([Interrupted()])
    assert file_of(pool.put([some()])) == file_of(first)


def test_a_forked_process_keeps_what_its_parent_had(pool):
    """What either of them writes, or receives, later does not show in the other, whoever gives it back first."""
    program = """
        import os
        names = [bytes.fromhex(name) for name in sys.argv[1:]]
        (kept,), _ = reader.open(names[0]), reader.open(names[1])
        (goes, comes), (child_goes, child_comes) = os.pipe(), os.pipe()
        del _
        before = bytes(kept)
        if not os.fork():
            os.read(goes, 1)  # the parent has changed its own, and has given it back
            assert bytes(kept) == before
            kept[:] = bytes(len(kept))
            os.write(child_comes, b"!")
            os.read(goes, 1)
            os._exit(0)
        kept[:] = b"x" * len(kept)
        os.write(comes, b"!")
        os.read(child_goes, 1)
        assert bytes(kept) == b"x" * len(kept)
        del kept
        print("parent is done", flush=True)
        sys.stdin.readline()
        os.write(comes, b"!")
        os.wait()
        print("child is done", flush=True)
    """
    names = [pool.put([some()]) for _ in range(2)]
    with other_process(program, *(name.hex() for name in names)) as other:
        assert other.stdout.readline() == "parent is done\n"
        assert file_of(pool.put([some()])) == file_of(names[1])  # it was given back before the fork
        assert file_of(pool.put([some()])) != file_of(names[0])  # the child has it
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "child is done\n"
    assert file_of(pool.put([some()])) == file_of(names[0])


def test_a_process_ends_quietly_with_what_it_holds(pool):
    """Its buffers are finalised after the modules, perhaps."""
    program = "kept = reader.open(bytes.fromhex(sys.argv[1])); sys.stderr = sys.stdout"
    with other_process(program, pool.put([some()]).hex()) as other:
        assert other.communicate()[0] == ""
    assert other.returncode == 0


def test_processes_of_one_namespace_reach_each_other():
    assert is_within_reach(os.getpid(), pid_namespace())
    assert not is_within_reach(os.getpid(), 0)
    assert not is_within_reach(os.getpid(), pid_namespace() + 1)
    with other_process("sys.stdin.read()") as other:
        assert is_within_reach(other.pid, pid_namespace())
        other.stdin.close()
    assert not is_within_reach(other.pid, pid_namespace())


def test_free_memory_is_known_within_limits(monkeypatch):
    assert 0 < free_memory() < 1 << 60
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "max")
    assert free_memory() == 0

"""Large buffers from one process of a node to another, by one copy: shared memory that is used again and again.

file    a segment: a file in memory, mapped; its name, and what lies where
pool    the sender's segments
reader  the receiver's mappings of them
reach   which processes can use segments together, and how much memory is free

Theory of operation
    Fresh pages make large data slow: their first touch runs at 1 GB/s, a copy at 10. So the sender keeps files in memory (memfd),
    its *segments*, and both processes keep their mappings. The sender copies buffers into a free segment, and sends its *name* in
    any message. The receiver opens the file through /proc, and uses the buffers in place. A segment has one receiver, which may
    write to it.

    The kernel knows which segment is in use. The receiver holds a shared flock from `SegmentReader.open` until nothing refers to
    the buffers any more, or until it dies. A number in the head of the segment says that its name is under way: the sender sets
    it, and the receiver clears it once it has the lock. A segment is free if the number is 0 and the sender gets an exclusive lock.

    The kernel frees the memory with the last process that has it. Segments take no room in /dev/shm.

Invariants
    The sender writes to a segment only while it has the exclusive lock.
    The receiver uses a segment only if it got the lock and then found the number of the name in the head.
    No mapping is removed while a buffer in it is alive.

Forks
    Parent and child must not see each other's writes. So before a fork all segments that this process has received become private
    mappings. They are not used again: parent and child have the same open file, whose lock lasts until both have unmapped it.
"""

from .file import SegmentGone, SegmentName, pid_of
from .pool import SMALLEST, SegmentPool
from .reach import free_memory, is_within_reach, pid_namespace
from .reader import SegmentReader

__all__ = [
    "SMALLEST",
    "SegmentGone",
    "SegmentName",
    "SegmentPool",
    "SegmentReader",
    "free_memory",
    "is_within_reach",
    "pid_namespace",
    "pid_of",
]

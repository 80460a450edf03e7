"""The receiver's mappings of segments."""

import atexit
import fcntl
import os
import threading
import weakref
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from .file import Mapping, SegmentGone, SegmentName, inode_of, path_of, places_of

_FILE: Final = 4 * 8  # bytes of a name that say which file it is
_KEPT: Final = 128  # mappings that a receiver keeps, at most, besides those in use


class SegmentReader:
    """Opens segments of other processes."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Mapping] = {}  # not in use, by pid, descriptor, inode and size
        self._used: dict[Mapping, weakref.ref[Any]] = {}
        self._lock = threading.RLock()  # no thread is in the middle of something when a process is forked
        _READERS.add(self)

    def open(self, name: SegmentName) -> list[memoryview]:
        """Return the buffers. They are this process's own until nothing refers to them.

        Raises:
            SegmentGone: The sender has died, or has taken the segment back.
            OSError: Too many files are open.
            MemoryError: There is no room for the mapping; the text has the bytes.

        """
        file, (number, *sizes) = tuple(array("q", name[:_FILE])), array("q", name[_FILE:])
        try:
            with self._lock:
                mapping = self._take(file)
                try:
                    memory = self._claim(mapping, number)
                except BaseException:
                    mapping.remove()
                    raise
                self._used[mapping] = weakref.ref(memory, partial(self._release, file, mapping))
                mapping.head[0] = 0
        except MemoryError as error:
            raise MemoryError(f"{sum(sizes)} bytes when pickled") from error
        view = memoryview(memory).cast("B")
        return [view[place] for place in places_of(sizes)]

    def close(self) -> None:
        """Keep no mappings but those in use."""
        with self._lock:
            while self._kept:
                self._kept.popitem()[1].remove()

    def forget(self) -> None:
        """At the end of this process: leave everything to the kernel."""
        self._used.clear()  # no weak reference, no call of `_release`

    def _claim(self, mapping: Mapping, number: int) -> Any:
        """Lock a segment whose name has this number, and return its memory."""
        try:
            fcntl.flock(mapping.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SegmentGone("the segment is being used again") from error
        if mapping.head[0] != number:
            raise SegmentGone("the segment was used again")
        return mapping.memory()

    def _take(self, file: tuple[int, ...]) -> Mapping:
        """Return the mapping of a file, kept or new."""
        pid, number, inode, size = file
        mapping = self._kept.pop(file, None)
        if mapping is not None and not mapping.is_private:
            return mapping
        if mapping is not None:
            mapping.remove()
        for old in list(self._kept):  # their senders have given them up, or have died
            if len(self._kept) > _KEPT or inode_of(path_of(*old[:2])) != old[2]:
                self._kept.pop(old).remove()
        try:
            descriptor = os.open(path_of(pid, number), os.O_RDWR)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise SegmentGone("the process that has sent it has ended") from error
        try:
            if os.fstat(descriptor).st_ino == inode:
                return Mapping(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        raise SegmentGone("the process that has sent it has ended, and another one has its number")

    def _release(self, file: tuple[int, ...], mapping: Mapping, _: object) -> None:
        """Unlock a segment: nothing refers to it any more. This may be at any line, of any thread."""
        self._used.pop(mapping, None)
        if not mapping.is_private:
            fcntl.flock(mapping.descriptor, fcntl.LOCK_UN)
            # From here on another thread may open the segment again, with a mapping of its own.
            if self._kept.setdefault(file, mapping) is mapping:
                return
        mapping.remove()

    def before_fork(self) -> None:
        self._lock.acquire()
        for mapping in list(self._used):
            mapping.make_private()

    def after_fork(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Forget the mappings that are not in use: the parent locks and unlocks the same open files."""
        self._lock = threading.RLock()
        self.close()


_READERS: "weakref.WeakSet[SegmentReader]" = weakref.WeakSet()


def _all_readers(act: Callable[[SegmentReader], None]) -> Callable[[], None]:
    def act_on_all() -> None:
        for reader in list(_READERS):
            act(reader)

    return act_on_all


os.register_at_fork(
    before=_all_readers(SegmentReader.before_fork),
    after_in_parent=_all_readers(SegmentReader.after_fork),
    after_in_child=_all_readers(SegmentReader.after_fork_in_child),
)
atexit.register(_all_readers(SegmentReader.forget))

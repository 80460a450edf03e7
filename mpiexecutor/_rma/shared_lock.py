"""A lock in shared memory. If its holder dies, the kernel frees it.

It is a robust mutex of POSIX threads (https://man7.org/linux/man-pages/man3/pthread_mutexattr_setrobust.3.html). To acquire a free
one, and to release it, takes no system call, and keeps the GIL. A thread that finds it held sleeps in the kernel.
"""

import ctypes
import sys
from typing import Final

SIZE: Final = 64  # bytes of a lock: more than any C library's mutex, and a cache line, so that two locks do not slow each other

_ROBUST = _SHARED = 1  # PTHREAD_MUTEX_ROBUST and PTHREAD_PROCESS_SHARED, in glibc and in musl
_BUSY, _HOLDER_DIED = 16, 130  # EBUSY and EOWNERDEAD, on Linux


def are_supported() -> bool:
    """Whether this process can use such locks."""
    return sys.platform == "linux" and hasattr(ctypes.PyDLL(None), "pthread_mutex_consistent")


class SharedLock:
    """A handle on the lock at an address of this process. Any number of handles, in any number of processes, are one lock.

    Acquire it in a `try` whose `finally` releases it: an interrupt may raise between the two. Only a thread that holds the lock can
    release it; for any other, `release` does nothing.
    """

    def __init__(self, address: int) -> None:
        keeps_gil = ctypes.PyDLL(None)
        self._at = ctypes.c_void_p(address)
        self._try_acquire = keeps_gil.pthread_mutex_trylock
        self._wait = ctypes.CDLL(None).pthread_mutex_lock
        self._release = keeps_gil.pthread_mutex_unlock
        self._make_consistent = keeps_gil.pthread_mutex_consistent

    def create(self) -> None:
        """Make the lock, free: once, before any handle is used."""
        library = ctypes.PyDLL(None)
        attributes = ctypes.create_string_buffer(SIZE)
        library.pthread_mutexattr_init(attributes)
        library.pthread_mutexattr_setpshared(attributes, _SHARED)
        library.pthread_mutexattr_setrobust(attributes, _ROBUST)
        library.pthread_mutex_init(self._at, attributes)

    def acquire(self) -> None:
        """Acquire the lock. What the lock protects is as the last holder left it, which may have died in the middle."""
        try:
            error = self._try_acquire(self._at)
            if error == _BUSY:
                error = self._wait(self._at)
        except BaseException:  # an interrupt, perhaps after the lock was acquired
            self._make_consistent(self._at)
            raise
        if error == _HOLDER_DIED:
            self._make_consistent(self._at)  # else no thread can acquire it again

    def release(self) -> None:
        """Release the lock."""
        self._release(self._at)

"""A lock in shared memory: it excludes other processes, and the kernel frees it when its holder dies."""

import ctypes
import mmap
import os
import select
import signal
import threading

import pytest
from fakes import LIMIT

from mpiexecutor._rma import shared_lock
from mpiexecutor._rma.shared_lock import SharedLock

pytestmark = pytest.mark.skipif(not shared_lock.are_supported(), reason="there are no such locks here")


@pytest.fixture
def lock():
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    created = SharedLock(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    created.memory = memory
    created.create()
    return created


def handle(lock):
    return SharedLock(lock._at.value)


def in_child(body):
    """Fork a child that does this; return a file that is at its end once the child has ended, and wait until it has said so."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            body(lambda: os.write(write, b"!"))
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"!"
    return child, read


def is_free(lock):
    """Try from another thread: the one that holds it would not get it either, but may release it."""
    found = []

    def look():
        found.append(handle(lock)._try_acquire(lock._at))
        if not found[0]:
            lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(LIMIT)
    return not found[0]


def test_only_one_holds_it(lock):
    """Any two handles, of any threads, are one lock."""
    lock.acquire()
    assert not is_free(lock)
    lock.release()
    assert is_free(lock)


def test_another_process_waits_for_it(lock):
    """It gets the lock once it is released."""
    lock.acquire()

    def body(say):
        say()
        handle(lock).acquire()
        say()

    child, end = in_child(body)
    assert not select.select([end], [], [], 0.1)[0]
    lock.release()
    assert os.read(end, 1) == b"!"
    os.waitpid(child, 0)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_holder_that_is_killed_frees_it(lock, waiting):
    """Whether another thread waits for it, or comes later. The lock goes on to work."""

    def body(say):
        handle(lock).acquire()
        say()
        signal.pause()

    child, _ = in_child(body)
    assert not is_free(lock)
    acquired = threading.Event()

    def acquire():
        lock.acquire()
        lock.release()
        acquired.set()

    waiter = threading.Thread(target=acquire, daemon=True)
    if waiting:
        waiter.start()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not waiting:
        waiter.start()
    assert acquired.wait(LIMIT)
    assert is_free(lock)


def test_an_interrupt_that_comes_with_the_lock_of_a_dead_holder_leaves_it_whole(lock):
    """It may come before the lock is made consistent: without that no thread could acquire it any more."""

    def body(say):
        handle(lock).acquire()
        say()

    child, _ = in_child(body)
    os.waitpid(child, 0)
    real = lock._try_acquire

    def interrupted(at):
        real(at)
        raise KeyboardInterrupt

    lock._try_acquire = interrupted
    with pytest.raises(KeyboardInterrupt):
        try:
            lock.acquire()
        finally:
            lock.release()
    assert is_free(lock)


def test_to_release_what_another_thread_holds_does_nothing(lock):
    """As after an interrupt that came before the lock was acquired."""
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join(LIMIT)
    assert not is_free(lock)

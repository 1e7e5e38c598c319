"""The lock watch: a stuck holder is killed, and no other process is."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from shm import process
from shm._native import ffi
from shm.errors import Busy
from shm.lock_watch import INTERVAL_SECONDS, SAMPLES, LockWatch
from testing.block_fixture import Formed, Witness, begin, end, exit_of, take_mutex, wait_until
from testing.eventually import HANG_SECONDS
from tests.shm.conftest import Form

Hold = Callable[[Callable[[], object]], int]


@pytest.fixture
def hold(formed: Formed) -> Iterator[Hold]:
    """Start children that lock the mutex and then run a function; those that are left are killed."""
    pids: list[int] = []

    def start(then: Callable[[], object]) -> int:
        def work() -> None:
            take_mutex(formed.block)
            then()

        pids.append(begin(work))
        wait_until(lambda: formed.block.mutex_owner() == pids[-1])
        return pids[-1]

    yield start
    for pid in pids:
        try:
            end(pid)
        except (ProcessLookupError, ChildProcessError):
            continue


def stop_myself() -> None:
    """Stop this process, as a debugger does."""
    os.kill(os.getpid(), signal.SIGSTOP)


def stopped(pid: int) -> None:
    """Wait until a child is stopped."""
    wait_until(lambda: os.waitpid(pid, os.WUNTRACED | os.WNOHANG)[0])


def asleep(pid: int) -> None:
    """Wait until a child waits, and uses no processor: on a busy machine it may have come no further than the lock."""
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING)


def samples(formed: Formed, count: int) -> list[process.Identity]:
    """Sample at the usual interval. Returns the holders that were killed."""
    watch = LockWatch(formed.block)
    removed = []
    for _ in range(count):
        removed.append(watch.sample())
        time.sleep(INTERVAL_SECONDS)
    return [one for one in removed if one]


class TestStuck:
    def test_others_get_busy_after_the_configured_wait(self, formed: Formed, hold: Hold) -> None:
        """While the holder is stopped, an admission raises Busy after the configured wait, not before it."""
        hold(signal.pause)
        formed.wait_ms = 60
        formed.be(0)
        began = time.monotonic()
        with pytest.raises(Busy):
            formed.accept()

        assert time.monotonic() - began >= 0.06
        assert (formed.block.region("rows", 0).lock_waits, formed.store.state().position) == (1, 1)
        assert formed.block.region("rows", 0).lock_wait_ns >= 60_000_000

    def test_stopped_holder_is_killed_at_the_fifth_sample(self, formed: Formed, hold: Hold) -> None:
        """Not at the fourth; afterwards events are admitted again."""
        bystander = begin(signal.pause)
        pid = hold(stop_myself)
        stopped(pid)
        identity = process.identify(pid)

        watch = LockWatch(formed.block)
        found = []
        for _ in range(SAMPLES):
            found.append(watch.sample())
            time.sleep(INTERVAL_SECONDS)
        assert found == [None] * (SAMPLES - 1) + [identity]
        assert exit_of(pid) == -signal.SIGKILL
        assert process.identify(bystander).alive
        formed.accept()
        Witness(formed).check()
        assert formed.block.region("lock").deaths == 1
        end(bystander)

    def test_sleeping_holder_is_stuck(self, formed: Formed, hold: Hold) -> None:
        """Whatever the holder waits for: a section never waits."""
        pid = hold(signal.pause)
        asleep(pid)

        assert samples(formed, SAMPLES + 1) == [process.identify(pid)]
        assert exit_of(pid) == -signal.SIGKILL

    def test_owner_is_read_from_the_mutex(self, formed: Formed, hold: Hold) -> None:
        """The owner is read from the mutex, whatever the field `holder` holds."""
        formed.block.region("lock").holder = os.getpid()
        pid = hold(stop_myself)
        stopped(pid)

        assert samples(formed, SAMPLES) == [process.identify(pid)]
        assert exit_of(pid) == -signal.SIGKILL


class TestNotStuck:
    def test_computing_holder_is_not_killed(self, formed: Formed, hold: Hold) -> None:
        """A holder that computes is never killed, however long it takes."""

        def work() -> None:
            while True:
                pass

        pid = hold(work)

        assert samples(formed, 3 * SAMPLES) == []
        assert process.identify(pid).alive

    def test_another_acquisition_is_another_section(self, form: Form) -> None:
        """The same owner with another number of acquisitions is in another section."""
        formed = form()

        def work() -> None:
            formed.be(1)
            while True:
                formed.accept()
                formed.block.map.wait_ms = 1000
                time.sleep(0.0005)

        pid = begin(work)
        wait_until(lambda: formed.store.state().position > 10)

        assert samples(formed, 3 * SAMPLES) == []
        assert process.identify(pid).alive
        end(pid)

    def test_new_acquisition_restarts_the_count(self, formed: Formed, hold: Hold) -> None:
        """After four equal samples a new acquisition starts the count again."""
        pid = hold(stop_myself)
        stopped(pid)
        watch = LockWatch(formed.block)
        lock = formed.block.region("lock")
        for _ in range(3):
            assert [watch.sample() for _ in range(SAMPLES - 1)] == [None] * (SAMPLES - 1)
            lock.acquisitions += 1

        assert process.identify(pid).alive

    def test_a_free_lock_has_no_stuck_holder(self, formed: Formed) -> None:
        """Nobody holds it, and nobody is killed."""
        assert formed.block.mutex_owner() == 0
        assert samples(formed, SAMPLES + 1) == []

    def test_a_dead_holder_is_not_killed(self, formed: Formed, hold: Hold) -> None:
        """A dead holder is not killed: the next process to enter takes the lock over."""
        end(hold(signal.pause))

        assert samples(formed, SAMPLES + 1) == []
        formed.accept()
        Witness(formed).check()


class TestOwner:
    def test_owner_is_a_thread(self, formed: Formed) -> None:
        """The mutex has the id of a thread; its process follows from there."""
        seen: list[tuple[int, int]] = []
        taken, seen_it = threading.Event(), threading.Event()

        def work() -> None:
            take_mutex(formed.block)
            taken.set()
            seen_it.wait(HANG_SECONDS)
            mutex = ctypes.c_void_p(int(ffi.cast("uintptr_t", formed.block.region("lock"))))
            ctypes.CDLL(None).pthread_mutex_unlock(mutex)

        thread = threading.Thread(target=work)
        thread.start()
        taken.wait(HANG_SECONDS)
        owner = formed.block.mutex_owner()
        seen.append((owner, process.process_of_thread(owner)))
        seen_it.set()
        thread.join()

        assert seen == [(thread.native_id, os.getpid())]
        assert formed.block.mutex_owner() == 0

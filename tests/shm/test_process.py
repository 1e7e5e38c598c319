"""Processes: identity, liveness, and that no other process is killed."""

import os
import resource
import signal

import pytest

from shm import process
from shm.process import NOBODY, Identity
from testing.block_fixture import begin, end, exit_of, wait_until


class TestIdentity:
    def test_identify_self(self) -> None:
        """This process is alive, and its identity stays the same."""
        me = process.identify_self()

        assert (os.getpid(), True) == (me.pid, me.alive)
        assert me == process.identify(os.getpid())

    def test_nobody_is_never_alive(self) -> None:
        """Nobody is not alive, and a pid that nobody has is Nobody."""
        assert not NOBODY.alive
        assert process.identify(2**22 + 1) == NOBODY
        assert not Identity(0, 1).alive  # of a row whose owner died between the two words of its name

    @pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 2**40, 2**63, 2**64 - 1, -1, -(2**40)])
    def test_a_number_that_no_process_can_have(self, pid: int) -> None:
        """A damaged pid names nobody; no system call receives it."""
        damaged = Identity(pid, 1)

        assert [damaged.alive, damaged.runnable, process.kill(damaged)] == [False, False, False]
        assert process.identify(pid) == NOBODY
        assert [process.process_of_thread(pid), process.cpu_time_ns(pid)] == [0, 0]

    def test_dead_or_a_zombie(self) -> None:
        """A process that has ended is not alive, reaped or not."""
        child = begin(lambda: None)
        identity = process.identify(child)
        wait_until(lambda: not identity.alive)
        os.waitpid(child, 0)

        assert not identity.alive

    def test_another_start_time_is_another_process(self) -> None:
        """A pid alone does not identify a process."""
        me = process.identify_self()

        assert not Identity(me.pid, me.started + 1).alive

    def test_without_descriptors(self) -> None:
        """Without descriptors a live process is not called dead, and this process is not NOBODY."""
        dead = process.identify(begin(lambda: None))
        os.waitpid(dead.pid, 0)
        parent = process.identify_self()

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
            assert parent.alive
            assert not dead.alive
            assert not NOBODY.alive
            with pytest.raises(OSError, match="cannot be identified"):
                process.identify_self()

        assert exit_of(begin(work)) == 0

    def test_names_with_spaces_and_parentheses(self) -> None:
        """A command with spaces and parentheses does not break the reading of /proc/PID/stat."""

        def work() -> None:
            with open("/proc/self/comm", "w", encoding="ascii") as file:
                file.write(") R 1 (x")
            me = process.identify_self()
            assert me.alive
            assert me.pid == os.getpid()

        assert exit_of(begin(work)) == 0


class TestKill:
    def test_kills_exactly_this_process(self) -> None:
        """The given process is killed."""
        child = begin(signal.pause)

        assert process.kill(process.identify(child))
        assert exit_of(child) == -signal.SIGKILL

    def test_refuses_a_reused_pid(self) -> None:
        """One with the same pid and another start time is left alone."""
        child = begin(signal.pause)
        identity = process.identify(child)

        assert not process.kill(Identity(child, identity.started - 1))
        assert identity.alive
        end(child)

    def test_ended_process_is_no_error(self) -> None:
        """A process that has already ended is no error."""
        child = begin(lambda: None)
        identity = process.identify(child)
        os.waitpid(child, 0)

        assert not process.kill(identity)
        assert not process.kill(NOBODY)


class TestParent:
    def test_dies_with_it(self) -> None:
        """A grandchild ends when its parent is killed."""
        read, write = os.pipe()

        def middle() -> None:
            os.close(read)
            inner = begin(signal.pause)  # `begin` binds it to its parent
            os.write(write, str(inner).encode())
            signal.pause()

        child = begin(middle)
        os.close(write)
        inner = process.identify(int(os.read(read, 20)))
        assert inner.alive
        end(child)
        wait_until(lambda: not inner.alive)
        os.close(read)

    def test_parent_that_has_already_ended(self) -> None:
        """A parent that has already ended is noticed."""
        assert exit_of(begin(self._unbind)) == 0

    @staticmethod
    def _unbind() -> None:
        with pytest.raises(ProcessLookupError):
            process.die_with_parent(1)


def test_cpu_time_grows_with_work() -> None:
    """The CPU time of a process that works grows; that of one that waits stands still."""

    def work() -> None:
        while True:
            pass

    busy, idle = begin(work), begin(signal.pause)

    def still() -> bool:
        waited, worked = process.cpu_time_ns(idle), process.cpu_time_ns(busy)
        wait_until(lambda: process.cpu_time_ns(busy) > worked + 5_000_000)
        return waited == process.cpu_time_ns(idle)

    wait_until(still)  # on a busy machine it is a while until the child does nothing but wait
    end(busy)
    end(idle)
    assert process.cpu_time_ns(busy) == 0


def test_threads_belong_to_processes() -> None:
    """The main thread's id is the pid; an id that nobody has is 0."""
    assert os.getpid() == process.process_of_thread(os.getpid())
    assert process.process_of_thread(2**22 + 1) == 0

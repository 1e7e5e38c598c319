"""Processes: identifies them although pids are reused, tells whether they are alive, and kills exactly one.

Invariants: a pid alone does not identify a process, because it is reused. An `Identity` adds the start time in clock
ticks since boot; the kernel never gives the same pair twice. All code that waits for, checks or kills a process uses
one. A caller that has no free descriptor cannot read /proc: then a process that may be alive counts as alive, because
its row would be taken from it otherwise. A pid may come from shared memory, which can be damaged: a number that no
process can have names no process. It never reaches a system call, where it would raise OverflowError or name a group of
processes.
"""

import ctypes
import os
import signal
import time
from typing import Final, NamedTuple

_PR_SET_PDEATHSIG: Final = 1
_CPUCLOCK_SCHED: Final = 2
_PID_MAX: Final = 1 << 22  # of every Linux (PID_MAX_LIMIT); /proc/sys/kernel/pid_max only lowers it


class Identity(NamedTuple):
    """A process, identified even if its pid is reused. `started` is in clock ticks since boot; (0, 0) is NOBODY."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether exactly this process exists and is not a zombie.

        Without a free descriptor: whether any process has its pid.
        """
        stat = _stat(self.pid)
        if stat is None:
            return _exists(self.pid)
        return int(stat[19]) == self.started and stat[0] not in ("Z", "X")

    @property
    def runnable(self) -> bool:
        """Whether it is running or waits for a processor only."""
        stat = _stat(self.pid)
        return stat is not None and stat[0] == "R"


NOBODY: Final = Identity(0, 0)


def state_of(pid: int) -> str:
    """Return the state of a process as one letter (proc_pid_stat(5)), "" if there is none or it cannot be read."""
    stat = _stat(pid)
    return stat[0] if stat else ""


def _is_pid(number: int) -> bool:
    """Return whether a process can have this pid. kill(2) reads 0 and negative numbers as groups of processes."""
    return 0 < number <= _PID_MAX


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from `state` on (proc_pid_stat(5), field 3), or None if it cannot be read.

    The command before them may hold spaces and parentheses, so the fields begin behind the last parenthesis.
    """
    if not _is_pid(pid):
        return None
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def _exists(pid: int) -> bool:
    """Return whether a process has this pid, a zombie included. Needs no descriptor."""
    if not _is_pid(pid):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def identify(pid: int) -> Identity:
    """Return the identity of the process that has this pid now, NOBODY if there is none or /proc cannot be read."""
    stat = _stat(pid)
    return Identity(pid, int(stat[19])) if stat else NOBODY


def identify_self() -> Identity:
    """Return the identity of this process. Raises OSError if /proc cannot be read, for example without descriptors."""
    me = identify(os.getpid())
    if me == NOBODY:
        raise OSError("this process cannot be identified: /proc/self/stat cannot be read")
    return me


def process_of_thread(tid: int) -> int:
    """Return the pid of the process that a thread belongs to, 0 if there is none."""
    if not _is_pid(tid):
        return 0
    try:
        with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Tgid:")), 0)
    except OSError:
        return 0


def cpu_time_ns(pid: int) -> int:
    """Return the CPU time that a process has used, in ns; 0 if it has ended.

    The clock id is computed as clock_getcpuclockid(3) does.
    """
    if not _is_pid(pid):
        return 0
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0


def kill(target: Identity) -> bool:
    """SIGKILL exactly this process. Returns False if it had already ended.

    The pidfd is opened first and the identity checked after, so that a reused pid is not hit.
    """
    if not _is_pid(target.pid):
        return False
    try:
        pidfd = os.pidfd_open(target.pid)
    except OSError:
        return False
    try:
        if identify(target.pid) != target:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent ends. `parent` is the parent's pid.

    Raises ProcessLookupError if it has already ended, OSError if prctl(2) fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended between fork and prctl: no signal will come
        raise ProcessLookupError(f"parent {parent} has ended")

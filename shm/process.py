"""Processes: who is who, who is alive, and how one is ended without hitting another.

A pid alone names nobody: it is reused. An `Identity` is a pid with its start time in clock ticks since boot, which the
kernel never gives twice. Everything that waits for, judges or kills a process goes through one.

Who has no descriptor left cannot look into /proc. Then nobody is called dead who may live: a place would be taken from
its owner.
"""

import ctypes
import os
import signal
import time
from typing import Final, NamedTuple

_PR_SET_PDEATHSIG: Final = 1
_CPUCLOCK_SCHED: Final = 2


class Identity(NamedTuple):
    """A process that cannot be mistaken for another. `started` is in clock ticks since boot; (0, 0) is nobody."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """True while exactly this process exists and is not a zombie, and while there is one with its pid of which
        nobody can tell.
        """
        stat = _stat(self.pid)
        if stat is None:
            return self.pid != 0 and _exists(self.pid)  # kill(2) takes 0 for the group of who asks
        return int(stat[19]) == self.started and stat[0] not in ("Z", "X")

    @property
    def runnable(self) -> bool:
        """True while it is running or waiting for nothing but a processor."""
        stat = _stat(self.pid)
        return stat is not None and stat[0] == "R"


NOBODY: Final = Identity(0, 0)


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from `state` on, or None.

    The command may hold spaces and parentheses: split behind its last one.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def _exists(pid: int) -> bool:
    """Return whether there is a process with this pid, a zombie included; needs no descriptor."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def identify(pid: int) -> Identity:
    """Return the identity of a live pid, or NOBODY."""
    stat = _stat(pid)
    return Identity(pid, int(stat[19])) if stat else NOBODY


def identify_self() -> Identity:
    """Return the identity of this process. Raises OSError when it cannot look: there may be no descriptors."""
    me = identify(os.getpid())
    if me == NOBODY:
        raise OSError("this process cannot be identified: /proc/self/stat cannot be read")
    return me


def process_of_thread(tid: int) -> int:
    """Return the pid of the process that a thread belongs to, 0 when there is none."""
    try:
        with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Tgid:")), 0)
    except OSError:
        return 0


def cpu_time_ns(pid: int) -> int:
    """Return the CPU time that a process has used, in ns, or 0 when it is gone.

    Its clock id is made as clock_getcpuclockid(3) does.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0


def kill(target: Identity) -> bool:
    """SIGKILL exactly this process; False when it was already gone.

    The pidfd is opened first and the identity checked after.
    """
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
    """Have the kernel SIGKILL this process when its parent ends; raises ProcessLookupError when it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended between fork and prctl: the signal will never come
        raise ProcessLookupError(f"parent {parent} has ended")

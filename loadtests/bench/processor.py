"""Cores to run on, and the processor time of processes.

The time comes from the processes' CPU clocks (clock_getcpuclockid(3)): user and system time of all threads in
nanoseconds, ended threads included. /proc/PID/stat counts in ticks of 10 ms, 1 % of a measurement of a second.
"""

import ctypes
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil

_libc = ctypes.CDLL(None, use_errno=True)


class Cores(NamedTuple):
    """Where things run: the server on one core, the client on another, or on the same when there is but one."""

    server: int
    client: int
    everywhere: frozenset[int]

    @property
    def shared(self) -> bool:
        """Whether client and server take time from each other."""
        return self.server == self.client


def cores() -> Cores:
    """Return the cores that this program may use, shared out."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[-1], frozenset(allowed))


@contextmanager
def pinned(which: Iterable[int]) -> Iterator[None]:
    """Have processes that are started inside run on these cores alone: they inherit it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, which)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """Return the pids of a process and all its descendants."""
    parent = psutil.Process(pid)
    return [pid, *(child.pid for child in parent.children(recursive=True))]


def used_ns(pids: Iterable[int]) -> int:
    """Return the processor time that these processes have used so far. Raises ProcessLookupError when one has ended."""
    return sum(_used_ns(pid) for pid in pids)


def _used_ns(pid: int) -> int:
    clock = ctypes.c_int()
    if error := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(error, f"process {pid} has ended")
    return time.clock_gettime_ns(clock.value)

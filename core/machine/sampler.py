"""Samples of memory, CPU and disk use, relative to the limits of the container.

Each figure comes from the control group if that has a limit or an account, and from the host otherwise: a container
that may use half a core of 64 is busy at half a core, and one that may use 512 MB is full there. Memory is the working
set, without file cache that the kernel can drop, because a container that reads files would otherwise always look full.

A sample reads some twenty small kernel files and never blocks. CPU use is the difference to an earlier sample. The
history has at most one point per second, for 30 s.
Threading: none; the controller is the only user.
"""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from core.machine import host
from core.machine.cgroup import Cgroup

_MEBIBYTE = 1 << 20
_SECOND_NS = 1_000_000_000
_WINDOW_NS = 30 * _SECOND_NS
# CPU accounts advance in steps of up to 10 ms, a twentieth of this. The few milliseconds between the creation of a
# sampler and its first sample would count as fully busy or fully idle.
_INTERVAL_MIN_NS = _SECOND_NS // 5


class MachineSample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample. Percentages are from 0 to 100; sizes in MiB."""

    sampled_ns: int  # by the sampler's clock
    memory_percent: float
    memory_available_mb: float
    memory_total_mb: float
    cpu_percent: float  # of the allowance, since the previous sample; 0 in a first sample that is taken at once
    cpu_percent_30s: float  # mean of the last 30 s; the time before the first sample counts as idle
    cpu_count: int  # the allowance in cores, rounded up
    disk_percent: float  # of the file system of the working directory


class Sampler:
    """Takes samples below `root` (normally /). `clock` returns monotonic nanoseconds."""

    def __init__(self, root: Path, clock: Callable[[], int]) -> None:
        self._cgroup = Cgroup(root)
        self._clock = clock
        # Decided once: switching between the container's account and the host's would make the figure jump.
        self._accounted = self._cgroup.cpu_used_ns() is not None
        self._last = (clock(), self._cpu_used_ns())
        self._cpu_percent = 0.0
        self._history = deque([self._last])

    def sample(self) -> MachineSample:
        """Return the current use."""
        now_ns, used_ns = self._clock(), self._cpu_used_ns()
        cores = self._allowance()
        total, available = self._memory()
        if now_ns - self._last[0] >= _INTERVAL_MIN_NS:
            self._cpu_percent = _percent(used_ns - self._last[1], (now_ns - self._last[0]) * cores)
            self._last = (now_ns, used_ns)
        return MachineSample(
            sampled_ns=now_ns,
            memory_percent=_percent(total - available, total) if total else 100.0,  # a limit of 0 leaves no room
            memory_available_mb=available / _MEBIBYTE,
            memory_total_mb=total / _MEBIBYTE,
            cpu_percent=self._cpu_percent,
            cpu_percent_30s=self._mean_percent(now_ns, used_ns, cores),
            cpu_count=self._cgroup.usable_cores(),
            disk_percent=_disk_percent(),
        )

    @property
    def history_count(self) -> int:
        """The number of points in the history."""
        return len(self._history)

    def _mean_percent(self, now_ns: int, used_ns: int, cores: float) -> float:
        """Return the mean of the last 30 s; add this point to the history if its last point is a second old."""
        history = self._history
        while len(history) > 1 and history[1][0] <= now_ns - _WINDOW_NS:
            history.popleft()
        start_ns, used_at_start_ns = history[0]
        # The part of the window before the first sample counts as idle. Otherwise the work of starting (faulting in the
        # block keeps a core busy) would count as thirty busy seconds after one second.
        elapsed_ns = max(now_ns - start_ns, _WINDOW_NS)
        if now_ns - history[-1][0] >= _SECOND_NS:
            history.append((now_ns, used_ns))
        return _percent(used_ns - used_at_start_ns, elapsed_ns * cores)

    def _cpu_used_ns(self) -> int:
        """Return the CPU time used; always 0 if neither the container nor the host reports it."""
        used_ns = self._cgroup.cpu_used_ns() if self._accounted else None
        return (host.cpu_used_ns() or 0) if used_ns is None else used_ns

    def _allowance(self) -> float:
        """Return the number of cores that are 100 %."""
        if not self._accounted:
            return float(os.cpu_count() or 1)
        allowed = float(len(os.sched_getaffinity(0)))
        return min(allowed, self._cgroup.cpu_quota() or allowed)

    def _memory(self) -> tuple[int, int]:
        """Return total and available bytes: the container's if limited below the host's memory, else the host's."""
        total, available = host.memory()
        own = self._cgroup.tightest_memory_limit()
        if own is None or own.limit >= total:
            return total, available
        return own.limit, min(own.available, available)


def _percent(part: float, whole: float) -> float:
    """Return the share in percent, clamped to 0…100: a short interval can exceed a quota, which is per period."""
    return min(max(100.0 * part / whole, 0.0), 100.0) if whole > 0 else 0.0


def _disk_percent() -> float:
    """Return how much of the disk is used, of what a process without privileges may use, to a tenth."""
    disk = os.statvfs(".")  # "." works even when the directory has been removed
    used = disk.f_blocks - disk.f_bfree
    return round(_percent(used, used + disk.f_bavail), 1)

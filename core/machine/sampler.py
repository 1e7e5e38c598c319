"""What the controller feels of the machine it lives on: memory, CPU and disk, judged against the container's limits.

A container that may use half a core of sixty-four is busy at half a core, and one that may use 512 MB is full there,
whatever the host has. So each figure is the control group's where it has a limit or an account, and the host's only
where it has none. Memory is the working set: file cache that the kernel can drop at once is not counted, or a
container that reads files would always look full.

A sample reads some twenty small kernel files and never waits; CPU figures come from the difference to an earlier
sample. History is at most one point a second for 30 seconds. The controller is the one user; nothing here is shared
between threads.
"""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from core.machine.cgroup import Cgroup

_MEBIBYTE = 1 << 20
_SECOND_NS = 1_000_000_000
_WINDOW_NS = 30 * _SECOND_NS
# Accounts move in steps of up to 10 ms, a twentieth of this; and the few milliseconds between the making of a sampler
# and its first sample would be all busy or all idle.
_INTERVAL_MIN_NS = _SECOND_NS // 5


class MachineSample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample. Percentages are from 0 to 100; sizes in MiB."""

    sampled_ns: int  # by the sampler's clock
    memory_percent: float
    memory_available_mb: float
    memory_total_mb: float
    cpu_percent: float  # of the allowance, since the sample before; of the first, taken at once, 0
    cpu_percent_30s: float  # mean of the last 30 s; what came before the first sample counts as idle
    cpu_count: int  # cores that may be kept busy: the allowance rounded up
    disk_percent: float  # of the file system of the working directory


class Sampler:
    """Takes samples below `root` (normally /). `clock` returns monotonic nanoseconds."""

    def __init__(self, root: Path, clock: Callable[[], int]) -> None:
        self._cgroup = Cgroup(root)
        self._clock = clock
        # Decided once: a figure that changed between the container's account and the host's would jump.
        self._accounted = self._cgroup.cpu_used_ns() is not None
        self._last = (clock(), self._cpu_used_ns())
        self._cpu_percent = 0.0
        self._history = deque([self._last])

    def sample(self) -> MachineSample:
        """Return the state of things now."""
        now_ns, used_ns = self._clock(), self._cpu_used_ns()
        cores = self._allowance()
        total, available = self._memory()
        if now_ns - self._last[0] >= _INTERVAL_MIN_NS:
            self._cpu_percent = _percent(used_ns - self._last[1], (now_ns - self._last[0]) * cores)
            self._last = (now_ns, used_ns)
        return MachineSample(
            sampled_ns=now_ns,
            memory_percent=100.0 * (1 - available / total),
            memory_available_mb=available / _MEBIBYTE,
            memory_total_mb=total / _MEBIBYTE,
            cpu_percent=self._cpu_percent,
            cpu_percent_30s=self._mean_percent(now_ns, used_ns, cores),
            cpu_count=self._cgroup.usable_cores(),
            disk_percent=psutil.disk_usage(".").percent,  # "." also when the directory has been removed
        )

    def _mean_percent(self, now_ns: int, used_ns: int, cores: float) -> float:
        """Return the mean of the last 30 s; remember this point if the last one remembered is a second old."""
        history = self._history
        while len(history) > 1 and history[1][0] <= now_ns - _WINDOW_NS:
            history.popleft()
        start_ns, used_at_start_ns = history[0]
        # A window that reaches back before the first sample is filled up with idleness, so that the work of starting
        # (faulting in the block keeps a core busy) cannot be judged as thirty busy seconds after one.
        elapsed_ns = max(now_ns - start_ns, _WINDOW_NS)
        if now_ns - history[-1][0] >= _SECOND_NS:
            history.append((now_ns, used_ns))
        return _percent(used_ns - used_at_start_ns, elapsed_ns * cores)

    def _cpu_used_ns(self) -> int:
        used_ns = self._cgroup.cpu_used_ns() if self._accounted else None
        return _host_cpu_used_ns() if used_ns is None else used_ns

    def _allowance(self) -> float:
        """Return the cores against which use is measured."""
        if not self._accounted:
            return float(os.cpu_count() or 1)
        allowed = float(len(os.sched_getaffinity(0)))
        return min(allowed, self._cgroup.cpu_quota() or allowed)

    def _memory(self) -> tuple[int, int]:
        """Return total and available bytes: the container's if limited below what the host has, else the host's."""
        host = psutil.virtual_memory()
        room = self._cgroup.tightest_memory_limit()
        if room is None or room.limit >= host.total:
            return host.total, host.available
        return room.limit, min(room.available, host.available)


def _percent(part: float, whole: float) -> float:
    """Return the share in percent, from 0 to 100: a quota is settled per period, and a short interval may exceed it."""
    return min(max(100.0 * part / whole, 0.0), 100.0) if whole > 0 else 0.0


def _host_cpu_used_ns() -> int:
    """Return the CPU time used on the host since boot; time stolen by a hypervisor counts, for it is not to be had."""
    times = psutil.cpu_times()  # user includes guest
    used = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return int(used * _SECOND_NS)

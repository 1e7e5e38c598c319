"""The limits of this container: memory, CPU time and cores, from control groups v2, v1 or both.

A process is limited by its own group and by every group above it. So each limit is looked up from the group named in
/proc/self/cgroup up to the root of the mount, and the tightest one applies. With a cgroup namespace the path is `/`.
Without one (v1 under an older Docker) it is the host's path, of which only the root of the mount exists inside the
container; levels that do not exist are skipped.

Layouts, with `root` = "/":
    v2       sys/fs/cgroup/<path>/{memory.max, memory.current, memory.stat, cpu.max, cpu.stat}
    v1       sys/fs/cgroup/<controller or joint mount>/<path>/{memory.limit_in_bytes, cpu.cfs_quota_us, cpuacct.usage …}
    hybrid   v1 for the controllers above; the v2 mount is then at sys/fs/cgroup/unified and holds none of them

Nothing is written and nothing blocks: the kernel computes these files when they are read. A file that is missing or
unreadable counts as "no limit". Limits are read at each call, because a pod can be resized while it runs; groups are
found once, because a process is not moved. `root` is an argument so that tests can lay out a tree in a directory.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_UNLIMITED_V1 = 1 << 62  # v1 reports "no limit" as the largest multiple of a page below 2^63


class MemoryLimit(NamedTuple):
    """A memory limit and its use, in bytes."""

    limit: int
    used: int  # without inactive file cache, which the kernel reclaims before it kills

    @property
    def available(self) -> int:
        return max(self.limit - self.used, 0)


class Cgroup:
    """The control groups of the calling process, as seen below `root`."""

    def __init__(self, root: Path) -> None:
        paths = _paths_by_controller(root)
        self._memory = _levels(root, "memory", paths)
        self._cpu = _levels(root, "cpu", paths)
        self._cpuacct = _levels(root, "cpuacct", paths)

    def tightest_memory_limit(self) -> MemoryLimit | None:
        """Return the limit with the least memory available, or None when there is none.

        It is not always the smallest limit: a parent that other groups share can be nearly full.
        """
        return min(self._memory_limits(), key=lambda limit: limit.available, default=None)

    def cpu_quota(self) -> float | None:
        """Return the tightest CPU quota in cores (1.5: 150 ms of CPU time per 100 ms), or None when there is none."""
        return min((quota for quota in map(_quota, self._cpu) if quota is not None), default=None)

    def usable_cores(self) -> int:
        """Return the number of cores that the process can use: its affinity, or its quota rounded up if smaller."""
        allowed = len(os.sched_getaffinity(0))
        return min(allowed, math.ceil(self.cpu_quota() or allowed))

    def cpu_used_ns(self) -> int | None:
        """Return the CPU time used by the group since its creation, or None when it is not accounted.

        The group is the one with the tightest quota, which its other members share; without a quota the own one.
        """
        if not self._cpu:
            return None
        quotas = [(quota, depth) for depth, level in enumerate(self._cpu) if (quota := _quota(level)) is not None]
        depth = min(quotas)[1] if quotas else 0
        if (used_us := _field(self._cpu[depth] / "cpu.stat", "usage_usec")) is not None:
            return used_us * 1_000
        # In v1 cpuacct is a separate controller, mounted with cpu or on its own; its groups are usually the same.
        return _number(self._cpuacct[min(depth, len(self._cpuacct) - 1)] / "cpuacct.usage") if self._cpuacct else None

    def _memory_limits(self) -> Iterable[MemoryLimit]:
        for level in self._memory:
            limit = _number(level / "memory.max")
            used = _number(level / "memory.current")
            cache = _field(level / "memory.stat", "inactive_file")
            if limit is None:
                limit = _number(level / "memory.limit_in_bytes")
                used = _number(level / "memory.usage_in_bytes")
                cache = _field(level / "memory.stat", "total_inactive_file")
            if limit is not None and limit < _UNLIMITED_V1:
                yield MemoryLimit(limit, max((used or 0) - (cache or 0), 0))


def _paths_by_controller(root: Path) -> dict[str, tuple[str, str]]:
    """Return {controller: (name of its mount, path of the group)} from /proc/self/cgroup; the key of v2 is ""."""
    paths: dict[str, tuple[str, str]] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            paths[controller] = (controllers, path)
    return paths


def _levels(root: Path, controller: str, paths: dict[str, tuple[str, str]]) -> list[Path]:
    """Return the directories of the process's group and of the groups above it, its own first."""
    mount = root / "sys/fs/cgroup"
    if controller in paths:  # v1
        joint, path = paths[controller]
        mount = next((mount / name for name in (joint, controller) if (mount / name).is_dir()), mount / controller)
    elif "" in paths and (mount / "cgroup.controllers").exists():  # v2
        path = paths[""][1]
    else:
        return []
    # A path outside the namespace has ".."; the groups there are not visible.
    own = mount.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
    way_up = [own, *own.parents]
    return [level for level in way_up[: way_up.index(mount) + 1] if level.is_dir()]


def _quota(level: Path) -> float | None:
    """Return the quota of one level in cores, or None."""
    quota_us, _, period_us = _text(level / "cpu.max").strip().partition(" ")
    if not period_us:
        quota_us, period_us = _text(level / "cpu.cfs_quota_us"), _text(level / "cpu.cfs_period_us")
    try:
        quota = int(quota_us) / int(period_us)  # "max" is no number, v1 says -1
    except (ValueError, ZeroDivisionError):
        return None
    return quota if quota > 0 else None


def _field(path: Path, name: str) -> int | None:
    """Return the number of `name` in a file of "name number" lines, or None."""
    for line in _text(path).splitlines():
        key, _, number = line.partition(" ")
        if key == name and number.isdigit():
            return int(number)
    return None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""

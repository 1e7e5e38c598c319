"""The limits that the kernel puts on this container: memory, CPU time and cores, by control groups v2, v1 or both.

A process is bound by its own group and by every group above it, so each limit is sought on the whole way from the
group named in /proc/self/cgroup up to the mount's root, and the tightest holds. In a container the way is usually
short: with a cgroup namespace the path is `/`; without one (v1 under an older Docker) the path is the host's, of
which only the mount's root exists inside, and the levels that do not exist are passed over.

Layouts found in the wild, all with `root` = "/":
    v2       sys/fs/cgroup/<path>/{memory.max, memory.current, memory.stat, cpu.max, cpu.stat}
    v1       sys/fs/cgroup/<controller or joint mount>/<path>/{memory.limit_in_bytes, cpu.cfs_quota_us, cpuacct.usage …}
    hybrid   v1 for the controllers above; the v2 mount is then at sys/fs/cgroup/unified and holds none of them

Nothing is written, nothing blocks (these files are computed by the kernel when read), and whatever is missing or
unreadable reads as "no limit". Limits are read at each call, because a pod may be resized while it runs; the groups
are found once, because a process is not moved. `root` is an argument so that tests can lay out a tree in a directory.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_UNLIMITED_V1 = 1 << 62  # v1 says "no limit" with the largest multiple of a page below 2^63


class MemoryLimit(NamedTuple):
    """The memory limit that will be hit first. Bytes."""

    limit: int
    used: int  # without inactive file cache, which the kernel gives back before it kills

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
        """Return the limit with the least memory left below it, or None when there is none.

        That need not be the smallest limit: a parent shared with other groups may be nearly full.
        """
        return min(self._rooms(), key=lambda room: room.available, default=None)

    def cpu_quota(self) -> float | None:
        """Return the tightest CPU quota in cores (1.5: 150 ms of CPU time per 100 ms), or None when there is none."""
        return min((quota for quota in map(_quota, self._cpu) if quota is not None), default=None)

    def usable_cores(self) -> int:
        """Return how many cores the process may keep busy: as many as it may run on, or its quota rounded up."""
        allowed = len(os.sched_getaffinity(0))
        return min(allowed, math.ceil(self.cpu_quota() or allowed))

    def cpu_used_ns(self) -> int | None:
        """Return the CPU time that the group has used since it was made, or None when it is not accounted.

        The group is the one whose quota is tightest (its other members spend from the same quota), else the own one.
        """
        if not self._cpu:
            return None
        quotas = [(quota, depth) for depth, level in enumerate(self._cpu) if (quota := _quota(level)) is not None]
        depth = min(quotas)[1] if quotas else 0
        if (used_us := _field(self._cpu[depth] / "cpu.stat", "usage_usec")) is not None:
            return used_us * 1_000
        # v1 accounts in a controller of its own, mounted with cpu or beside it; its groups are usually, not always,
        # the same.
        return _number(self._cpuacct[min(depth, len(self._cpuacct) - 1)] / "cpuacct.usage") if self._cpuacct else None

    def _rooms(self) -> Iterable[MemoryLimit]:
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
    """Return {controller: (name of its mount, path of the group)} from /proc/self/cgroup; v2 stands under ""."""
    found: dict[str, tuple[str, str]] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            found[controller] = (controllers, path)
    return found


def _levels(root: Path, controller: str, paths: dict[str, tuple[str, str]]) -> list[Path]:
    """Return the directories of the process's group and of those above it, the process's own first."""
    mount = root / "sys/fs/cgroup"
    if controller in paths:  # v1
        joint, path = paths[controller]
        mount = next((mount / name for name in (joint, controller) if (mount / name).is_dir()), mount / controller)
    elif "" in paths and (mount / "cgroup.controllers").exists():  # v2
        path = paths[""][1]
    else:
        return []
    # ".." stands in paths outside the namespace; what is up there cannot be seen from here.
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
    """Return the number behind `name` in a file of "name number" lines."""
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

"""The limits of this container: memory, CPU time and cores, from control groups v2, v1 or both.

A process is limited by its own group and by every group above it. So each limit is looked up from the group named in
/proc/self/cgroup up to the root of the mount, and the tightest one applies. /proc/self/mountinfo says where a hierarchy
is mounted, which controllers it has, and which group is the root of the mount. A mount point can have any name:
controllers of v1 share one in any order. With a cgroup namespace the path is `/`. Without one (v1 under an older
Docker) it is the host's path, of which only the part below the root of the mount exists inside the container; levels
that do not exist are skipped.

Nothing is written and nothing blocks: the kernel computes these files when they are read. A file that is missing or
unreadable counts as "no limit". Limits are read at each call, because a pod can be resized while it runs; groups are
found once, because a process is not moved. `root` is an argument so that tests can lay out a tree in a directory.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Files of a level:
#     v2       memory.max, memory.current, memory.stat, cpu.max, cpu.stat
#     v1       memory.limit_in_bytes, memory.usage_in_bytes, memory.stat, cpu.cfs_quota_us, cpu.cfs_period_us,
#              cpuacct.usage
#     hybrid   v1 for these controllers; a v2 hierarchy is mounted beside them and has none of them
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
        paths, mounts = _paths_by_controller(root), list(_mounts(root))
        self._memory, self._cpu, self._cpuacct = (
            _levels(root, controller, paths, mounts) for controller in ("memory", "cpu", "cpuacct")
        )

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

        The group is the one with the tightest quota, which its other members share; without a quota it is the process's
        own. Time of programs that run at a lower priority (nice) does not count, where the kernel reports it.
        """
        if not self._cpu:
            return None
        quotas = [(quota, depth) for depth, level in enumerate(self._cpu) if (quota := _quota(level)) is not None]
        depth = min(quotas)[1] if quotas else 0
        if (used_us := _field(self._cpu[depth] / "cpu.stat", "usage_usec")) is not None:
            return (used_us - (_field(self._cpu[depth] / "cpu.stat", "nice_usec") or 0)) * 1_000
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


class _Mount(NamedTuple):
    """A mounted hierarchy of control groups."""

    top: str  # the group that is the root of the mount
    point: str  # where it is mounted
    controllers: frozenset[str]  # of v1; {""} for v2


def _paths_by_controller(root: Path) -> dict[str, str]:
    """Return {controller: path of the group} from /proc/self/cgroup; the key of v2 is ""."""
    paths: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _mounts(root: Path) -> Iterator[_Mount]:
    """Yield the mounts of control groups from /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, file_system = line.partition(" - ")
        match mount.split(), file_system.split():
            case [_, _, _, top, point, *_], ["cgroup", _, options]:
                yield _Mount(_unescape(top), _unescape(point), frozenset(options.split(",")))
            case [_, _, _, top, point, *_], ["cgroup2", *_]:
                yield _Mount(_unescape(top), _unescape(point), frozenset({""}))


def _unescape(text: str) -> str:
    """Return a path of mountinfo, in which a space is written as `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _levels(root: Path, controller: str, paths: dict[str, str], mounts: list[_Mount]) -> list[Path]:
    """Return the directories of the process's group and of the groups above it, its own first."""
    hierarchy = controller if controller in paths else ""  # a controller is in a v1 hierarchy or in v2's, never in both
    path = paths.get(hierarchy, "")
    own_mounts = [mount for mount in mounts if hierarchy in mount.controllers]
    # One that holds the group is better than one of another part of the hierarchy.
    mount = min(own_mounts, key=lambda mount: not _is_below(path, mount.top), default=None)
    if mount is None or hierarchy not in paths:
        return []
    below = path[len(mount.top.rstrip("/")) :] if _is_below(path, mount.top) else path
    # A path outside the namespace has ".."; the groups there are not visible.
    top = root / mount.point.lstrip("/")
    own = top.joinpath(*(part for part in below.split("/") if part not in ("", "..")))
    way_up = [own, *own.parents]
    return [level for level in way_up[: way_up.index(top) + 1] if level.is_dir()]


def _is_below(path: str, top: str) -> bool:
    return f"{path}/".startswith(f"{top.rstrip('/')}/")


def _quota(level: Path) -> float | None:
    """Return the quota of one level in cores, or None."""
    quota_us, _, period_us = _text(level / "cpu.max").strip().partition(" ")
    if not period_us:
        quota_us, period_us = _text(level / "cpu.cfs_quota_us"), _text(level / "cpu.cfs_period_us")
    try:
        quota = int(quota_us) / int(period_us)  # "max" is not a number, v1 says -1
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

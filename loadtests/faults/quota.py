"""A CPU quota for some processes, by a cgroup of version 1 or 2, whichever can be created here.

The processes are moved into a new group below the mount, and back afterwards. In version 2 the groups above must
delegate the CPU controller (cgroup.subtree_control), which is tried; it fails where processes live in the group above,
as in most containers. Then, and where cgroups are not writable, `find` returns None.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from testing.eventually import eventually

ROOT: Final = Path("/sys/fs/cgroup")


class Quota(NamedTuple):
    """Where a group can be made. `version` is that of the cgroups."""

    version: int
    mount: Path

    @contextmanager
    def on(self, members: list[int], share: float, period_seconds: float) -> Iterator[None]:
        """Give processes together `share` of one processor, counted in each period."""
        before = {pid: self._home(pid) for pid in members}
        group = self.mount / f"mlsdm-fault-{os.getpid()}"
        group.mkdir()
        try:
            self._limit(group, round(share * period_seconds * 1e6), round(period_seconds * 1e6))
            for pid in members:
                (group / "cgroup.procs").write_text(str(pid))
            yield
        finally:
            for pid, home in before.items():
                with suppress(ProcessLookupError):
                    (home / "cgroup.procs").write_text(str(pid))
            eventually(lambda: not (group / "cgroup.procs").read_text())
            group.rmdir()

    def _limit(self, group: Path, quota_us: int, period_us: int) -> None:
        if self.version == 2:
            (group / "cpu.max").write_text(f"{quota_us} {period_us}")
            return
        (group / "cpu.cfs_period_us").write_text(str(period_us))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))

    def _home(self, pid: int) -> Path:
        """Return where a process is among the groups: lines of `number:controllers:path`, version 2 without a name."""
        for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if (not controllers) if self.version == 2 else "cpu" in controllers.split(","):
                return self.mount / path.lstrip("/")
        raise RuntimeError(f"process {pid} is in no CPU cgroup")


def find(root: Path = ROOT) -> Quota | None:
    """Return where a quota can be set, or None."""
    for mount in (root / "cpu", root / "cpu,cpuacct"):
        if os.access(mount, os.W_OK) and (mount / "cpu.cfs_quota_us").exists():
            return Quota(1, mount)
    for mount in (root, root / "unified"):
        if os.access(mount, os.W_OK) and _passes_on(mount):
            return Quota(2, mount)
    return None


def _passes_on(mount: Path) -> bool:
    """Return whether groups below a mount of version 2 have the CPU controller, or can be given it."""
    try:
        if "cpu" not in (mount / "cgroup.controllers").read_text(encoding="ascii").split():
            return False
        passed_on = mount / "cgroup.subtree_control"
        if "cpu" not in passed_on.read_text(encoding="ascii").split():
            passed_on.write_text("+cpu", encoding="ascii")
    except OSError:  # no mount of version 2, or EBUSY: processes live in the group itself
        return False
    return True

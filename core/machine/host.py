"""Memory and CPU time of the whole host.

/proc holds both, unless it is mounted with `subset=pid`, which hides everything but processes. Then sysinfo(2) still
reports the memory, but its free memory excludes file cache, so less seems available than is. The CPU time is unknown
then. `proc` is an argument so that tests can lay out its files.

Rejected: psutil, whose import took 1 MB of every server for these two figures.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
_SECOND_NS: Final = 1_000_000_000


class HostMemory(NamedTuple):
    """The memory of the host, in bytes."""

    total: int
    available: int


def memory(proc: Path = PROC) -> HostMemory:
    """Return the memory of the host."""
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        page_size = os.sysconf("SC_PAGE_SIZE")
        return HostMemory(page_size * os.sysconf("SC_PHYS_PAGES"), page_size * os.sysconf("SC_AVPHYS_PAGES"))
    kibibytes = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)}
    return HostMemory(1024 * int(kibibytes["MemTotal"]), 1024 * int(kibibytes["MemAvailable"]))


def cpu_used_ns(proc: Path = PROC) -> int | None:
    """Return the CPU time used on the host since boot, or None when it is hidden.

    Time of programs that run at a lower priority (nice) does not count, because they give way to this server; nor does
    time that the hypervisor has stolen, because nothing here has used it.
    """
    try:
        with (proc / "stat").open(encoding="ascii") as stat:
            line = stat.readline()  # the sum; each core has a line below
    except FileNotFoundError:
        return None
    _, user, _nice, system, _idle, _iowait, irq, softirq, *_ = line.split()  # user includes guest
    ticks = sum(map(int, (user, system, irq, softirq)))
    return ticks * _SECOND_NS // os.sysconf("SC_CLK_TCK")

"""Memory and CPU time of the whole host.

/proc holds both, unless it is mounted with `subset=pid`, which hides everything but processes. Then sysinfo(2) still
tells the memory; what it calls free leaves out file cache, so less seems to be available than is. Nothing tells the CPU
time.
"""

import os
from typing import Final, NamedTuple

import psutil

_SECOND_NS: Final = 1_000_000_000


class HostMemory(NamedTuple):
    """In bytes."""

    total: int
    available: int


def memory() -> HostMemory:
    """Return the memory of the host."""
    try:
        memory = psutil.virtual_memory()
    except FileNotFoundError:
        page_size = os.sysconf("SC_PAGE_SIZE")
        return HostMemory(page_size * os.sysconf("SC_PHYS_PAGES"), page_size * os.sysconf("SC_AVPHYS_PAGES"))
    return HostMemory(memory.total, memory.available)


def cpu_used_ns() -> int | None:
    """Return the CPU time used on the host since boot, or None when it is hidden.

    Time that the hypervisor has stolen counts as used, because it was not available.
    """
    try:
        times = psutil.cpu_times()
    except FileNotFoundError:
        return None
    used = times.user + times.nice + times.system + times.irq + times.softirq + times.steal  # user includes guest
    return int(used * _SECOND_NS)

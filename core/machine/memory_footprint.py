"""The footprint of the service: the memory of its arbiter and of every process below it, shared pages counted once.

Proportional memory (PSS) of the processes added up: what a page counts for is divided among those who map it, so the
sum is what would be free if they all ended, but for libraries that they share with strangers. Resident memory would
count the block once for each process. The kernel walks the page tables for it, a millisecond for each process that maps
the block, so the controller asks every few seconds, and nobody at the time of a scrape.
"""

from contextlib import suppress
from pathlib import Path


def memory_footprint(root: Path, pid: int) -> int:
    """Return the proportional memory of a process and its descendants in bytes, 0 where the kernel does not tell it.

    `root` is normally /. A process that ends meanwhile counts for nothing.
    """
    total = 0
    left = [pid]
    while left:
        process = root / "proc" / str(left.pop())
        with suppress(OSError, ValueError):
            total += _pss(process / "smaps_rollup")
            for task in (process / "task").iterdir():  # each thread lists the children that it has forked
                left += [int(child) for child in (task / "children").read_text().split()]
    return total


def _pss(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0

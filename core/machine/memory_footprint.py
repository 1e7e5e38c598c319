"""The memory of the service: the arbiter and all processes below it, shared pages counted once.

It is the sum of the proportional set sizes (PSS): each page is divided among the processes that map it. The sum is what
would become free if all of them ended, except for libraries shared with other programs.
Rejected: resident memory (counts the block once per process).
Perf: the kernel walks the page tables, 1 ms per process that maps the block; so the controller samples every few
seconds, and a scrape never does.
"""

from contextlib import suppress
from pathlib import Path


def memory_footprint(root: Path, pid: int) -> int:
    """Return the proportional memory of a process and its descendants in bytes; 0 if the kernel does not report it.

    `root` is normally /. A process that ends during the call counts as 0.
    """
    total = 0
    pending = [pid]
    while pending:
        process = root / "proc" / str(pending.pop())
        with suppress(OSError, ValueError):
            total += _pss(process / "smaps_rollup")
            for task in (process / "task").iterdir():  # each thread lists the children that it forked
                pending += [int(child) for child in (task / "children").read_text().split()]
    return total


def _pss(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0

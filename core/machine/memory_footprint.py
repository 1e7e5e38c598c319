"""The memory of the server: the arbiter and all processes below it, shared pages counted once.

It is the sum of the proportional set sizes (PSS): each page is divided among the processes that map it. The sum is what
would become free if all of them ended, except for libraries shared with other programs. The kernel hides the PSS of
another user's processes, such as an arbiter whose workers have given up its privileges (`gunicorn --user`). Then
private pages are summed, and the largest shared part is added once.
Rejected: resident memory (counts the block once per process).
Perf: the kernel walks the page tables, 1 ms per process that maps the block; so the controller samples every few
seconds, and a scrape never does.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")


def memory_footprint(root: Path, pid: int) -> int:
    """Return the memory of a process and its descendants in bytes; 0 if the kernel does not report it.

    `root` is normally /. A process that ends during the call counts as 0.
    """
    total = shared_max = 0
    pending = [pid]
    while pending:
        process = root / "proc" / str(pending.pop())
        with suppress(OSError, ValueError, IndexError):
            try:
                total += _pss(process / "smaps_rollup")
            except PermissionError:
                private, shared = _resident(process / "statm")
                total += private
                shared_max = max(shared_max, shared)
            for task in (process / "task").iterdir():  # each thread lists the children that it forked
                pending += [int(child) for child in (task / "children").read_text().split()]
    return total + shared_max


def _pss(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _resident(path: Path) -> tuple[int, int]:
    """Return the bytes of private and of shared resident pages (proc_pid_statm(5))."""
    pages = [int(field) for field in path.read_text().split()]
    return (pages[1] - pages[2]) * _PAGE_SIZE, pages[2] * _PAGE_SIZE

"""The memory of a whole server, each page counted once, whatever else maps it.

PSS divides a page by the number of processes that map it, other programs included: a server looks smaller while
another one runs. So PSS is used only for pages that no other program can share: anonymous memory, shared by fork. Of
files, the pages in the page table of any process of the server are counted (pagemap of proc(5); bit 63 is readable by
the owner), and of the block, the existing pages.

It is an upper bound: pages that another program keeps in memory anyway are counted in full. Kernel memory, such as
page tables and socket buffers, is not included, as in PSS.
"""

import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from shm.block import find_blocks

_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_PRESENT = 1 << 63
_OF_FILE = 1 << 61  # not copied from it yet


class Footprint(NamedTuple):
    """What a server occupies, in MB (10⁶ bytes)."""

    own: float  # of its processes, anonymous
    files: float  # programs, libraries, metrics
    block: float

    @property
    def total(self) -> float:
        """All of it, in MB."""
        return sum(self)


def footprint(arbiter: int) -> Footprint:
    """Return the footprint of the server of an arbiter. A process that ends meanwhile may be missing."""
    members = [psutil.Process(arbiter), *psutil.Process(arbiter).children(recursive=True)]
    own, pages = 0, set[tuple[str, int]]()
    for member in members:
        with suppress(OSError, psutil.NoSuchProcess):
            own += _own_kilobytes(member.pid) * 1024
            pages.update(_pages(member.pid))
    block = sum(link.stat().st_blocks * 512 for _, link in find_blocks(arbiter))
    return Footprint(own / 1e6, len(pages) * _PAGE_SIZE / 1e6, block / 1e6)


def written_mb(arbiter: int) -> float:
    """Return the private dirty memory of a server's processes in MB."""
    members = [psutil.Process(arbiter), *psutil.Process(arbiter).children(recursive=True)]
    return sum(_rollup(member.pid)["Private_Dirty"] for member in members) * 1024 / 1e6


def _rollup(pid: int) -> dict[str, int]:
    """Return smaps_rollup: kilobytes by name."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name: int(kilobytes.split()[0]) for name, _, kilobytes in (line.partition(":") for line in lines)}


def _own_kilobytes(pid: int) -> int:
    return _rollup(pid)["Pss_Anon"]


def _pages(pid: int) -> Iterator[tuple[str, int]]:
    """Yield (file, number of the page) of each page of a file that a process has mapped and not copied.

    The block, whose pages are counted by themselves, is left out; what else forks share is a page or two.
    """
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            addresses, _, offset, device, inode, *name = line.split(maxsplit=5)
            if inode == "0" or (name and name[0].startswith("/memfd:")):
                continue
            first, end = (int(address, 16) // _PAGE_SIZE for address in addresses.split("-"))
            pagemap.seek(8 * first)
            words = array("Q", pagemap.read(8 * (end - first)))
            number = int(offset, 16) // _PAGE_SIZE
            for at, word in enumerate(words):
                if word & _PRESENT and word & _OF_FILE:
                    yield f"{device} {inode}", number + at

"""The footprint: proportional memory of a process and all below it, from the kernel's files."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from core.machine.memory_footprint import memory_footprint
from testing.eventually import eventually

MEGABYTE = 1 << 20
NESTED = """
import subprocess, sys
held = bytearray({size})
for at in range(0, len(held), 4096): held[at] = 1
if {depth}:
    subprocess.run([sys.executable, "-c", {child!r}])
else:
    print("there", flush=True)
    sys.stdin.read()
"""


def test_is_what_the_kernel_says_of_each() -> None:
    """A child and its child, together, and more than what they hold."""
    child = NESTED.format(size=20 * MEGABYTE, depth=0, child="")
    parent = NESTED.format(size=10 * MEGABYTE, depth=1, child=child)
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = psutil.Process(process.pid)

        def agree() -> bool:
            members = (seen, *seen.children(recursive=True))
            kernels = sum(member.memory_full_info().pss for member in members)
            return len(members) == 2 and abs(memory_footprint(Path("/"), process.pid) - kernels) < MEGABYTE

        eventually(agree)
        assert memory_footprint(Path("/"), process.pid) > 30 * MEGABYTE
        assert process.stdin is not None
        process.stdin.close()


def test_who_is_gone_counts_for_nothing(tmp_path: Path) -> None:
    """No process, and a kernel that does not tell."""
    assert memory_footprint(tmp_path, os.getpid()) == 0

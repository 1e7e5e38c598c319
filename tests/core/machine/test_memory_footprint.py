"""The memory footprint: proportional memory of a process and its descendants."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from core.machine.memory_footprint import memory_footprint
from testing.block_fixture import begin, exit_of
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


def test_footprint_is_the_sum_over_descendants() -> None:
    """A process and its child together, and more than what they have allocated."""
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


def test_a_missing_process_counts_as_zero(tmp_path: Path) -> None:
    """The process, or the kernel's file, does not exist."""
    assert memory_footprint(tmp_path, os.getpid()) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_processes_of_another_user() -> None:
    """Their proportional memory is hidden: private pages count, and the largest shared part once."""
    child = NESTED.format(size=20 * MEGABYTE, depth=0, child="")
    parent = NESTED.format(size=10 * MEGABYTE, depth=1, child=child)

    def measure() -> None:
        os.setuid(65534)
        with pytest.raises(PermissionError):
            Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        assert 30 * MEGABYTE < memory_footprint(Path("/"), process.pid) < 80 * MEGABYTE

    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert exit_of(begin(measure)) == 0
        assert process.stdin is not None
        process.stdin.close()

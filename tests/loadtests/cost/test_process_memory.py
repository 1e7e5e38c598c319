"""The memory of a server does not depend on other programs that map the same files."""

import os
import signal
import subprocess
import sys

import psutil

from loadtests.cost.process_memory import footprint
from testing.live_server import ROOT, LiveServer

# Reads the whole block of a process, and uses its libraries.
LOOK = """
import mmap, os, sys
import app.main
from shm.block import find_blocks
[(_, link)] = find_blocks(int(sys.argv[1]))
memory = mmap.mmap(os.open(link, os.O_RDONLY), 0, prot=mmap.PROT_READ)
print(sum(memory[at] for at in range(0, len(memory), 4096)) >= 0, flush=True)
sys.stdin.read()
"""


def test_another_mapper_does_not_reduce_the_footprint(small_server: LiveServer) -> None:
    """PSS would be smaller, because the other process shares the block and the libraries."""

    def proportional_mb() -> float:
        arbiter = psutil.Process(small_server.pid)
        members = [arbiter, *arbiter.children(recursive=True)]
        return sum(member.memory_full_info().pss for member in members) / 1e6

    before, proportional = footprint(small_server.pid), proportional_mb()
    command = [sys.executable, "-c", LOOK, str(small_server.pid)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == b"True\n"
        beside, proportional_beside = footprint(small_server.pid), proportional_mb()
        neighbour.communicate()

    assert before.block == beside.block
    assert abs(before.total - beside.total) < 1
    assert proportional_beside < proportional - before.block / 5 + 1


def test_shared_pages_count_once_and_copied_pages_twice() -> None:
    """Of 40 MB written by a parent, half of which a child changed, 60 MB exist."""
    program = """
import os, sys
octets = bytearray(b"x") * 40_000_000
if not os.fork():
    octets[:20_000_000] = b"y" * 20_000_000
    print("written", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"written\n"
        found = footprint(parent.pid)
        os.killpg(parent.pid, signal.SIGKILL)

    assert 60 <= found.own < 75
    assert found.block == 0
    assert 2 < found.files < 15

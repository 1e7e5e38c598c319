"""The figures of the host, from fake files of /proc and from the real ones."""

import os
from pathlib import Path

import psutil

from core.machine import host
from core.machine.host import HostMemory


def test_memory_is_total_and_available(tmp_path: Path) -> None:
    """In bytes; other lines do not matter."""
    (tmp_path / "meminfo").write_text("MemTotal:  16 kB\nMemFree:  1 kB\nMemAvailable:    4 kB\nHugePages_Total: 0\n")

    assert host.memory(tmp_path) == HostMemory(total=16_384, available=4_096)


def test_cpu_time_of_this_priority(tmp_path: Path) -> None:
    """Not idle and iowait, nor what gives way (nice) or runs elsewhere (steal); guests are part of user."""
    (tmp_path / "stat").write_text("cpu  1 20 300 9 9 4000 50000 600000 1 20\ncpu0 9 9 9 9 9 9 9 9 9 9\n")

    assert host.cpu_used_ns(tmp_path) == 54_301 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def test_a_proc_without_figures(tmp_path: Path) -> None:
    """The total is known all the same, the CPU time is not."""
    assert abs(host.memory(tmp_path).total - psutil.virtual_memory().total) < 1 << 20
    assert host.cpu_used_ns(tmp_path) is None


def test_the_machine_of_this_test() -> None:
    """The figures are those of psutil; CPU time grows between the calls."""
    before, used_ns, after = _cpu_used_seconds(), host.cpu_used_ns(), _cpu_used_seconds()

    assert host.memory().total == psutil.virtual_memory().total
    assert 0 < host.memory().available <= host.memory().total
    assert used_ns is not None
    assert before - 0.1 <= used_ns / 1e9 <= after + 0.1


def _cpu_used_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(getattr(times, name) for name in ("user", "system", "irq", "softirq")))

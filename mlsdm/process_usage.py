"""CPU and memory of the processes of a server, one by one.

Invariants: memory is proportional (PSS): pages that processes share, such as the block, are divided among them, so the
sum is the memory of the server. A process that ends meanwhile is left out; memory that this user may not read is None.
CPU is the mean over the time since the previous measurement of the same meter.
"""

from collections.abc import Iterable, Mapping

import msgspec
import psutil


class ProcessUsage(msgspec.Struct, frozen=True):
    """One process: its part in the server, its CPU in percent of one core, its proportional memory in bytes."""

    pid: int
    part: str
    cpu_percent: float
    memory_bytes: int | None


class UsageMeter:
    """Measures processes again and again."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}

    def measure(self, parts: Mapping[int, str], arbiter: int) -> list[ProcessUsage]:
        """Return the use of the processes in `parts` (by pid), and of the other children of the arbiter."""
        pids = dict(parts)
        for pid in _children_of(arbiter):
            pids.setdefault(pid, "child")
        self._processes = dict(self._found(pids))
        return [usage for pid, process in self._processes.items() if (usage := _usage(process, pids[pid])) is not None]

    def _found(self, pids: Iterable[int]) -> Iterable[tuple[int, psutil.Process]]:
        for pid in pids:
            known = self._processes.get(pid)
            try:
                # A process object remembers its start time: that of an earlier process with this pid is not running.
                yield pid, known if known is not None and known.is_running() else psutil.Process(pid)
            except psutil.Error:
                continue


def _children_of(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def _usage(process: psutil.Process, part: str) -> ProcessUsage | None:
    try:
        cpu_percent = process.cpu_percent()
    except psutil.Error:
        return None
    try:
        memory_bytes: int | None = process.memory_full_info().pss
    except psutil.Error:
        memory_bytes = None
    return ProcessUsage(process.pid, part, cpu_percent, memory_bytes)

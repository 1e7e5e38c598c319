"""The sampler, with fake control groups and a clock that starts at a random offset."""

import os
import random
import time
from pathlib import Path

import psutil
import pytest

from core.machine.sampler import MachineSample, Sampler

SECOND_NS = 1_000_000_000
START_NS = int(os.environ.get("START_NS") or random.randrange(10**18))


class Machine:
    """A v2 control group in a directory, and a clock: both moved by hand."""

    def __init__(self, root: Path, quota: str = "50000 100000") -> None:
        self.root = root
        print(f"the clock starts at {START_NS}; rerun with START_NS={START_NS} pytest {__file__}")
        self.now_ns = START_NS
        self.used_us = START_NS // 1_000_000
        self.group = root / "sys/fs/cgroup"
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text("0::/\n")
        (root / "proc/self/mountinfo").write_text("31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        self.group.mkdir(parents=True)
        (self.group / "cgroup.controllers").write_text("cpu memory\n")
        (self.group / "cpu.max").write_text(quota)
        self.run(0, 0)

    def run(self, seconds: float, cores: float) -> None:
        """Let `seconds` pass with `cores` busy."""
        self.now_ns += int(seconds * SECOND_NS)
        self.used_us += int(seconds * cores * 1_000_000)
        (self.group / "cpu.stat").write_text(f"usage_usec {self.used_us}\n")

    def sampler(self) -> Sampler:
        return Sampler(self.root, lambda: self.now_ns)

    def live(self, sampler: Sampler, seconds: int, cores: float) -> MachineSample:
        """Sample twice a second for so long; return the last sample."""
        for _ in range(2 * seconds):
            self.run(0.5, cores)
            vitals = sampler.sample()
        return vitals


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


class TestMemory:
    def test_memory_of_the_container(self, machine: Machine) -> None:
        """The limit, and the working set without reclaimable cache."""
        for name, text in (
            ("memory.max", f"{64 << 20}"),
            ("memory.current", f"{56 << 20}"),
            ("memory.stat", f"inactive_file {8 << 20}"),
        ):
            (machine.group / name).write_text(text)
        vitals = machine.sampler().sample()

        assert (vitals.memory_percent, vitals.memory_available_mb, vitals.memory_total_mb) == (75.0, 16.0, 64.0)

    def test_a_limit_of_zero_leaves_no_room(self, machine: Machine) -> None:
        """The kernel allows it; all of nothing is used."""
        (machine.group / "memory.max").write_text("0")

        assert machine.sampler().sample().memory_percent == 100

    @pytest.mark.parametrize("limit", ["max", str(1 << 60)])
    def test_memory_of_the_host_without_a_limit(self, machine: Machine, limit: str) -> None:
        """No limit, or one above the host's memory."""
        (machine.group / "memory.max").write_text(limit)

        assert psutil.virtual_memory().total / (1 << 20) == machine.sampler().sample().memory_total_mb


class TestCpu:
    def test_percent_is_of_the_quota(self, machine: Machine) -> None:
        """A quarter of a core is half of a quota of half a core."""
        sampler = machine.sampler()
        machine.run(2, 0.25)

        assert sampler.sample().cpu_percent == pytest.approx(50)

    def test_percent_is_since_the_last_sample(self, machine: Machine) -> None:
        """The figure follows idle, busy and idle intervals."""
        sampler = machine.sampler()
        percents = [machine.live(sampler, 1, cores).cpu_percent for cores in (0, 0.5, 0)]

        assert percents == pytest.approx([0, 100, 0])

    def test_percent_stays_within_its_bounds(self, machine: Machine) -> None:
        """A group can exceed its quota for a short time; a second sample at once keeps the figure."""
        sampler = machine.sampler()
        machine.run(0.25, 2)

        assert [sampler.sample().cpu_percent, sampler.sample().cpu_percent] == [100, 100]

    def test_a_first_sample_at_once_is_zero(self, machine: Machine) -> None:
        """Its interval is too short to measure; the next sample includes it."""
        sampler = machine.sampler()
        machine.run(0.01, 0.5)
        first = sampler.sample().cpu_percent
        machine.run(0.99, 0)

        assert [first, sampler.sample().cpu_percent] == pytest.approx([0, 1])

    def test_without_quota_percent_is_of_the_cores(self, tmp_path: Path) -> None:
        """One busy core is a share of the cores of the affinity."""
        machine = Machine(tmp_path, quota="max 100000")
        cores = len(os.sched_getaffinity(0))

        vitals = machine.live(machine.sampler(), 1, 1)
        assert vitals.cpu_percent == pytest.approx(100 / cores)
        assert vitals.cpu_count == cores

    def test_a_quota_can_change_at_run_time(self, machine: Machine) -> None:
        """A pod that is resized in place is measured against its new quota."""
        sampler = machine.sampler()
        before = machine.live(sampler, 1, 0.25).cpu_percent
        (machine.group / "cpu.max").write_text("25000 100000")

        assert [before, machine.live(sampler, 1, 0.25).cpu_percent] == pytest.approx([50, 100])


class TestCpuOver30Seconds:
    def test_30_s_mean_counts_the_time_before_the_start_as_idle(self, machine: Machine) -> None:
        """A busy second at the start is not thirty busy seconds."""
        sampler = machine.sampler()
        percents = [machine.live(sampler, seconds, 0.5).cpu_percent_30s for seconds in (3, 12, 14, 1)]

        assert percents == pytest.approx([10, 50, 290 / 3, 100])

    def test_30_s_mean_forgets_older_load(self, machine: Machine) -> None:
        """After thirty idle seconds the mean is zero, whatever the load was before."""
        sampler = machine.sampler()
        machine.live(sampler, 100, 0.5)
        percents = [machine.live(sampler, 15, 0).cpu_percent_30s for _ in range(3)]

        assert percents == pytest.approx([50, 0, 0], abs=100 / 30)  # the window ends within a second of 30

    def test_30_s_mean_of_a_spike(self, machine: Machine) -> None:
        """Nine busy seconds of thirty are 30 %."""
        sampler = machine.sampler()
        machine.live(sampler, 60, 0)
        machine.live(sampler, 9, 0.5)

        assert machine.live(sampler, 1, 0).cpu_percent_30s == pytest.approx(30)

    def test_history_is_bounded(self, machine: Machine) -> None:
        """At most one point per second is kept, for thirty seconds, at any sampling rate."""
        sampler = machine.sampler()
        for _ in range(2_000):
            machine.run(0.05, 0.1)
            sampler.sample()

        assert sampler.history_count <= 32


class TestSample:
    def test_time_cores_and_disk(self, machine: Machine) -> None:
        """A sample has its time, the number of cores and the use of the disk."""
        vitals = machine.sampler().sample()

        assert (machine.now_ns, 1) == (vitals.sampled_ns, vitals.cpu_count)
        assert 0 <= vitals.disk_percent <= 100

    def test_host_figures_without_control_groups(self, tmp_path: Path) -> None:
        """The use of a busy core shows in the host's figure."""
        sampler = Sampler(tmp_path, time.monotonic_ns)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            pass
        vitals = sampler.sample()

        assert 0 < vitals.cpu_percent <= 100
        assert 0 < vitals.memory_percent < 100

    def test_the_machine_of_this_test(self) -> None:
        """The figures of the real machine are within their bounds."""
        vitals = Sampler(Path("/"), time.monotonic_ns).sample()

        assert 0 <= vitals.cpu_percent_30s <= 100
        assert 0 < vitals.memory_available_mb <= vitals.memory_total_mb

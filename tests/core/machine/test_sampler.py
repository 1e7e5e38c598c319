"""The controller's samples, over fake control groups and a clock that starts anywhere."""

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
    def test_of_the_container(self, machine: Machine) -> None:
        """Limit, and working set without droppable cache."""
        for name, text in (
            ("memory.max", f"{64 << 20}"),
            ("memory.current", f"{56 << 20}"),
            ("memory.stat", f"inactive_file {8 << 20}"),
        ):
            (machine.group / name).write_text(text)
        vitals = machine.sampler().sample()

        assert (vitals.memory_percent, vitals.memory_available_mb, vitals.memory_total_mb) == (75.0, 16.0, 64.0)

    @pytest.mark.parametrize("limit", ["max", str(1 << 60)])
    def test_of_the_host_when_unlimited(self, machine: Machine, limit: str) -> None:
        """No limit, or one that the host could never fill."""
        (machine.group / "memory.max").write_text(limit)

        assert psutil.virtual_memory().total / (1 << 20) == machine.sampler().sample().memory_total_mb


class TestCpu:
    def test_percent_is_of_the_quota(self, machine: Machine) -> None:
        """A quarter of a core is half of a half."""
        sampler = machine.sampler()
        machine.run(2, 0.25)

        assert sampler.sample().cpu_percent == pytest.approx(50)

    def test_percent_is_since_the_last_sample(self, machine: Machine) -> None:
        """Idle, busy, idle."""
        sampler = machine.sampler()
        percents = [machine.live(sampler, 1, cores).cpu_percent for cores in (0, 0.5, 0)]

        assert percents == pytest.approx([0, 100, 0])

    def test_percent_stays_within_its_bounds(self, machine: Machine) -> None:
        """Over a short interval a group may spend more than its quota; without an interval the figure stays."""
        sampler = machine.sampler()
        machine.run(0.25, 2)

        assert [sampler.sample().cpu_percent, sampler.sample().cpu_percent] == [100, 100]

    def test_the_first_moments_are_no_figure(self, machine: Machine) -> None:
        """A sample right behind the making of the sampler is 0, however busy that was; the next one counts them in."""
        sampler = machine.sampler()
        machine.run(0.01, 0.5)
        first = sampler.sample().cpu_percent
        machine.run(0.99, 0)

        assert pytest.approx([0, 1]) == [first, sampler.sample().cpu_percent]

    def test_without_quota_percent_is_of_the_cores(self, tmp_path: Path) -> None:
        """One busy core of those that the process may run on."""
        machine = Machine(tmp_path, quota="max 100000")
        cores = len(os.sched_getaffinity(0))

        vitals = machine.live(machine.sampler(), 1, 1)
        assert vitals.cpu_percent == pytest.approx(100 / cores)
        assert vitals.cpu_count == cores

    def test_a_quota_may_change_while_it_runs(self, machine: Machine) -> None:
        """A pod that is resized in place is judged by its new allowance."""
        sampler = machine.sampler()
        before = machine.live(sampler, 1, 0.25).cpu_percent
        (machine.group / "cpu.max").write_text("25000 100000")

        assert pytest.approx([50, 100]) == [before, machine.live(sampler, 1, 0.25).cpu_percent]


class TestCpuOver30Seconds:
    def test_it_takes_thirty_seconds_to_be_busy(self, machine: Machine) -> None:
        """The work of starting is not judged as thirty busy seconds after one."""
        sampler = machine.sampler()
        percents = [machine.live(sampler, seconds, 0.5).cpu_percent_30s for seconds in (3, 12, 14, 1)]

        assert percents == pytest.approx([10, 50, 290 / 3, 100])

    def test_it_forgets_what_is_older(self, machine: Machine) -> None:
        """Half a minute of idleness after any load is idleness."""
        sampler = machine.sampler()
        machine.live(sampler, 100, 0.5)
        percents = [machine.live(sampler, 15, 0).cpu_percent_30s for _ in range(3)]

        assert percents == pytest.approx([50, 0, 0], abs=100 / 30)  # the window ends within a second of 30

    def test_a_spike_is_not_busy(self, machine: Machine) -> None:
        """Nine busy seconds of thirty."""
        sampler = machine.sampler()
        machine.live(sampler, 60, 0)
        machine.live(sampler, 9, 0.5)

        assert machine.live(sampler, 1, 0).cpu_percent_30s == pytest.approx(30)

    def test_history_is_bounded(self, machine: Machine) -> None:
        """However often it is sampled, a point a second is kept, for thirty seconds."""
        sampler = machine.sampler()
        for _ in range(2_000):
            machine.run(0.05, 0.1)
            sampler.sample()

        assert len(sampler._history) <= 32


class TestSample:
    def test_the_rest(self, machine: Machine) -> None:
        """When it was taken, the cores, the disk."""
        vitals = machine.sampler().sample()

        assert (machine.now_ns, 1) == (vitals.sampled_ns, vitals.cpu_count)
        assert 0 <= vitals.disk_percent <= 100

    def test_without_control_groups_it_is_the_hosts(self, tmp_path: Path) -> None:
        """Burning one core shows in the host's figure."""
        sampler = Sampler(tmp_path, time.monotonic_ns)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            pass
        vitals = sampler.sample()

        assert 0 < vitals.cpu_percent <= 100
        assert 0 < vitals.memory_percent < 100

    def test_the_real_one(self) -> None:
        """On whatever this test runs, the figures are within their bounds."""
        vitals = Sampler(Path("/"), time.monotonic_ns).sample()

        assert 0 <= vitals.cpu_percent_30s <= 100
        assert 0 < vitals.memory_available_mb <= vitals.memory_total_mb

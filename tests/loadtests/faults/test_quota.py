"""The CPU quota of the faults: on this machine where it can be set, and how it is found on others."""

import os
import time
from pathlib import Path

import pytest

from loadtests.faults import quota
from loadtests.faults.quota import Quota
from testing.block_fixture import begin, end


def spin() -> None:
    while True:
        pass


@pytest.mark.skipif(quota.find() is None, reason="no CPU cgroup can be made here")
def test_a_quota_limits_a_process() -> None:
    """A busy process gets a fifth of a core on average, and a whole one afterwards."""
    limit = quota.find()
    assert limit is not None
    pid = begin(spin)
    try:
        home = Path(f"/proc/{pid}/cgroup").read_text()
        with limit.on([pid], 0.2, 0.1):
            before, began = used_seconds(pid), time.monotonic()
            time.sleep(2)
            used, passed = used_seconds(pid) - before, time.monotonic() - began

        assert 0 < used < 0.2 * passed + 0.1
        assert home == Path(f"/proc/{pid}/cgroup").read_text()
    finally:
        end(pid)


def used_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class TestFind:
    """Directories that look like those of other machines: what the kernel does with the files is its own business."""

    def test_version_1_is_found(self, tmp_path: Path) -> None:
        """The controller has a mount of its own."""
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").touch()

        assert Quota(1, tmp_path / "cpu") == quota.find(tmp_path)

    @pytest.mark.parametrize("passed_on", ["", "cpu memory"])
    def test_version_2_is_found(self, tmp_path: Path, passed_on: str) -> None:
        """One mount has all controllers; CPU is delegated or gets delegated."""
        (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory\n")
        (tmp_path / "cgroup.subtree_control").write_text(passed_on)

        assert Quota(2, tmp_path) == quota.find(tmp_path)
        assert (passed_on or "+cpu") == (tmp_path / "cgroup.subtree_control").read_text()

    def test_version_2_takes_one_line(self, tmp_path: Path) -> None:
        """Quota and period are in µs."""
        Quota(2, tmp_path)._limit(tmp_path, 20_000, 100_000)

        assert (tmp_path / "cpu.max").read_text() == "20000 100000"

    def test_version_2_without_the_cpu_controller_is_none(self, tmp_path: Path) -> None:
        """The CPU controller belongs to a mount of version 1."""
        (tmp_path / "cgroup.controllers").write_text("\n")

        assert quota.find(tmp_path) is None

    def test_no_cgroups_is_none(self, tmp_path: Path) -> None:
        """There are no cgroups at all."""
        assert quota.find(tmp_path / "none") is None

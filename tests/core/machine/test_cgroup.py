"""Control groups in directories laid out as the kernel does: v2, v1 and both; nested, unlimited and malformed."""

import os
from pathlib import Path

import pytest

from core.machine.cgroup import Cgroup

UNLIMITED_V1 = "9223372036854771712\n"
CORES = len(os.sched_getaffinity(0))


def limit_of(cgroup: Cgroup) -> int | None:
    """The limit with the least room below it."""
    room = cgroup.tightest_memory_limit()
    return None if room is None else room.limit


def mounts(*lines: str) -> dict[str, str]:
    """Return the file mountinfo with one mount for each "root of the mount, mount point, type, options"."""
    text = ""
    for number, line in enumerate(lines):
        top, point, kind, options = line.split()
        text += f"{31 + number} 23 0:{number} {top} {point} rw,relatime shared:1 - {kind} {kind} rw,{options}\n"
    return {"proc/self/mountinfo": f"22 1 0:19 / / rw - overlay overlay rw\n{text}"}


V1_MEMORY = mounts("/ /sys/fs/cgroup/memory cgroup memory", "/ /sys/fs/cgroup/unified cgroup2 nsdelegate")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def v2(root: Path, path: str = "/", **levels: dict[str, str]) -> Path:
    """Lay out a v2 tree: `levels` are files by level, "_" for "/" in the level's name, `top` for the mount's root."""
    files = {"proc/self/cgroup": f"0::{path}\n"} | mounts("/ /sys/fs/cgroup cgroup2 nsdelegate")
    files["sys/fs/cgroup/cgroup.controllers"] = "cpu memory\n"
    for level, contents in levels.items():
        directory = "" if level == "top" else level.replace("_", "/") + "/"
        files |= {f"sys/fs/cgroup/{directory}{name.replace('_', '.')}": text for name, text in contents.items()}
    return tree(root, files)


class TestMemory:
    def test_v2_limit_and_working_set(self, tmp_path: Path) -> None:
        """The memory used is memory.current without the reclaimable file cache."""
        files = {"memory_max": "1000\n", "memory_current": "700\n", "memory_stat": "anon 1\ninactive_file 200\n"}
        cgroup = Cgroup(v2(tmp_path, top=files))

        assert limit_of(cgroup) == 1000
        assert cgroup.tightest_memory_limit() == (1000, 500)

    def test_the_fullest_level_applies(self, tmp_path: Path) -> None:
        """The level with the least memory available applies, not the smallest limit; siblings do not count."""
        root = v2(
            tmp_path,
            path="/pod/app",
            pod={"memory_max": "2000", "memory_current": "1950"},
            pod_app={"memory_max": "1000", "memory_current": "100"},
            pod_sidecar={"memory_max": "1", "memory_current": "1"},
        )

        assert Cgroup(root).tightest_memory_limit() == (2000, 1950)

    def test_a_parents_limit_applies_to_an_unlimited_group(self, tmp_path: Path) -> None:
        """The group has no limit and its parent has one."""
        root = v2(tmp_path, path="/a/b", a={"memory_max": "5"}, a_b={"memory_max": "max\n"})

        assert limit_of(Cgroup(root)) == 5

    def test_v1_limit_and_working_set(self, tmp_path: Path) -> None:
        """The files of v1, with the host's path of a group of which only the root of the mount is visible."""
        root = tree(
            tmp_path,
            V1_MEMORY
            | {
                "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "900\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
                "sys/fs/cgroup/unified/cgroup.controllers": "",
            },
        )

        assert Cgroup(root).tightest_memory_limit() == (1000, 600)

    @pytest.mark.parametrize("limit", [UNLIMITED_V1, "", "x"])
    def test_v1_unlimited(self, tmp_path: Path, limit: str) -> None:
        """The largest number means no limit, and so does a text that is not a number."""
        files = V1_MEMORY | {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": limit}

        assert limit_of(Cgroup(tree(tmp_path, files))) is None
        assert Cgroup(tmp_path).tightest_memory_limit() is None

    def test_used_is_never_negative(self, tmp_path: Path) -> None:
        """The counters are read one by one and may disagree; a group over its limit has nothing available."""
        under = {"memory_max": "10", "memory_current": "5", "memory_stat": "inactive_file 7"}
        over = {"memory_max": "10", "memory_current": "12"}
        cgroups = [Cgroup(v2(tmp_path / name, top=files)) for name, files in (("a", under), ("b", over))]
        limits = [cgroup.tightest_memory_limit() for cgroup in cgroups]

        assert [limit and limit.available for limit in limits] == [10, 0]


class TestCpu:
    @pytest.mark.parametrize(
        ("content", "quota"),
        [
            ("max 100000\n", None),
            ("150000 100000\n", 1.5),
            ("50000 100000\n", 0.5),
            ("100000\n", None),
            ("1 0\n", None),
            ("", None),
        ],
    )
    def test_v2_quota(self, tmp_path: Path, content: str, quota: float | None) -> None:
        """The quota in cores is quota divided by period."""
        assert Cgroup(v2(tmp_path, top={"cpu_max": content})).cpu_quota() == quota

    def test_the_tightest_quota_applies(self, tmp_path: Path) -> None:
        """It may be on any level."""
        root = v2(tmp_path, path="/a/b", a={"cpu_max": "50000 100000"}, a_b={"cpu_max": "400000 100000"})

        assert Cgroup(root).cpu_quota() == 0.5

    @pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("25000", 0.25)])
    @pytest.mark.parametrize("names", ["cpu,cpuacct", "cpuacct,cpu", "any name"])
    def test_v1_quota(self, tmp_path: Path, quota: str, expected: float | None, names: str) -> None:
        """-1 means no quota; both controllers share a mount, whose name has them in any order or not at all."""
        root = tree(
            tmp_path,
            mounts(f"/ /sys/fs/cgroup/{names.replace(' ', chr(92) + '040')} cgroup cpu,cpuacct")
            | {
                "proc/self/cgroup": "1:cpuacct,cpu:/\n",
                f"sys/fs/cgroup/{names}/cpu.cfs_quota_us": quota,
                f"sys/fs/cgroup/{names}/cpu.cfs_period_us": "100000",
                f"sys/fs/cgroup/{names}/cpuacct.usage": "123",
            },
        )

        assert Cgroup(root).cpu_quota() == expected
        assert Cgroup(root).cpu_used_ns() == 123

    @pytest.mark.parametrize(
        ("content", "cores"),
        [("max 100000", CORES), ("10000 100000", 1), ("100001 100000", min(2, CORES)), ("6400000 100000", CORES)],
    )
    def test_cores_are_rounded_up(self, tmp_path: Path, content: str, cores: int) -> None:
        """At least one core, and at most the cores of the affinity."""
        assert Cgroup(v2(tmp_path, top={"cpu_max": content})).usable_cores() == cores

    def test_use_is_counted_where_the_quota_is(self, tmp_path: Path) -> None:
        """CPU time is that of the group with the tightest quota, or of the process's own group if there is no quota."""
        usage = {"cpu_stat": "usage_usec 7\n"}
        limited = v2(
            tmp_path / "a", "/a/b", a={"cpu_max": "1 1", "cpu_stat": "nr 1\nusage_usec 9\nuser_usec 8"}, a_b=usage
        )
        unlimited = v2(tmp_path / "b", "/a/b", a={"cpu_stat": "usage_usec 9"}, a_b=usage)

        assert [Cgroup(root).cpu_used_ns() for root in (limited, unlimited)] == [9_000, 7_000]

    def test_v1_controllers_on_separate_mounts(self, tmp_path: Path) -> None:
        """The controller that accounts CPU time is not the one that limits it."""
        root = tree(
            tmp_path,
            mounts("/ /sys/fs/cgroup/cpu cgroup cpu", "/ /sys/fs/cgroup/cpuacct cgroup cpuacct")
            | {
                "proc/self/cgroup": "2:cpuacct:/x\n1:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpuacct/cpuacct.usage": "5",
            },
        )

        assert Cgroup(root).cpu_used_ns() == 5


class TestMounts:
    def test_a_part_of_the_hierarchy(self, tmp_path: Path) -> None:
        """The root of the mount is a group of the host; the path is the host's, too, and can go on below it."""
        top = "/docker/abc"
        files = mounts(f"{top} /sys/fs/cgroup/memory cgroup memory") | {"proc/self/cgroup": f"4:memory:{top}/app\n"}
        files["sys/fs/cgroup/memory/app/memory.limit_in_bytes"] = "7"

        assert limit_of(Cgroup(tree(tmp_path, files))) == 7

    def test_the_mount_that_holds_the_group(self, tmp_path: Path) -> None:
        """A hierarchy can be mounted twice; a group whose name begins like another one is not below it."""
        lines = ("/ab /elsewhere cgroup2 x", "/a /cgroup cgroup2 x")
        files = mounts(*lines) | {"proc/self/cgroup": "0::/a/b\n"}
        files |= {"cgroup/b/memory.max": "3", "elsewhere/memory.max": "1"}

        assert limit_of(Cgroup(tree(tmp_path, files))) == 3

    @pytest.mark.parametrize("text", ["", "\n", "- cgroup2\n", "31 23 0:1 / - cgroup2 x y\n", "a b c d e - \n"])
    def test_malformed_lines(self, tmp_path: Path, text: str) -> None:
        """Lines that name no mount are skipped."""
        files = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": text, "sys/fs/cgroup/memory.max": "1"}

        assert limit_of(Cgroup(tree(tmp_path, files))) is None


class TestAbsence:
    def test_no_control_groups(self, tmp_path: Path) -> None:
        """Without control groups nothing is limited or accounted."""
        cgroup = Cgroup(tmp_path)

        limits = (limit_of(cgroup), cgroup.tightest_memory_limit(), cgroup.cpu_quota(), cgroup.cpu_used_ns())
        assert limits == (None, None, None, None)
        assert cgroup.usable_cores() == CORES

    @pytest.mark.parametrize("path", ["/../../x", "", "/gone/away"])
    def test_paths_that_lead_nowhere(self, tmp_path: Path, path: str) -> None:
        """For a path outside the namespace, or of a removed group, the root of the mount applies."""
        assert limit_of(Cgroup(v2(tmp_path, path, top={"memory_max": "9"}))) == 9

    def test_the_machine_of_this_test(self) -> None:
        """The values of the real kernel are plausible."""
        cgroup = Cgroup(Path("/"))

        assert 1 <= cgroup.usable_cores() <= CORES
        assert (limit_of(cgroup) or 1) > 0

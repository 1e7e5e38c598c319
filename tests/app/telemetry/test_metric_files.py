"""The directory of metric files: locked while a server lives, removed when none does."""

import concurrent.futures
import fcntl
import os
from pathlib import Path

import pytest

from app.telemetry.metric_files import METRICS_PREFIX, lock_directory, make_directory, remove_directory
from testing.eventually import HANG_SECONDS, eventually

OWNER = (os.geteuid(), os.getegid())
OTHER = (65534, 65533) if os.geteuid() == 0 else OWNER  # only root may give files away


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have directories made below one of the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_directory_that_nobody_has_locked_is_removed_at_the_next_start(temporary: Path) -> None:
    """It was left over by a server that was killed."""
    left_over, in_use = temporary / f"{METRICS_PREFIX}dead", temporary / f"{METRICS_PREFIX}alive"
    left_over.mkdir()
    in_use.mkdir()
    descriptor = lock_directory(str(in_use), *OWNER)

    made = Path(make_directory(None, *OWNER))

    assert sorted(temporary.iterdir()) == sorted([in_use, made])
    os.close(descriptor)


def test_the_directory_of_the_operator_is_shared(temporary: Path) -> None:
    """Two servers may be given the same one; what else is in it stays."""
    given = temporary / "new/metrics"
    one, other = make_directory(str(given), *OWNER), make_directory(str(given), *OWNER)
    locks = {directory: lock_directory(directory, *OWNER) for directory in (one, other)}
    foreign = [given / name for name in ("counter_1.db", "accounts.db", "notes")]
    for file in foreign:
        file.touch()
    third = make_directory(str(given), *OWNER)

    assert sorted(given.iterdir()) == sorted([Path(one), Path(other), Path(third), *foreign])
    for directory, lock in locks.items():
        remove_directory(directory, lock)
        os.close(lock)
    assert sorted(given.iterdir()) == sorted([Path(third), *foreign])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_directory_belongs_to_the_workers(temporary: Path) -> None:
    """They may run as another user than the arbiter."""
    made = os.stat(make_directory(str(temporary), 65534, 65533))

    assert (made.st_uid, made.st_gid) == (65534, 65533)


def test_a_directory_that_cannot_be_made(temporary: Path) -> None:
    """The error names the directory, the cause and the remedy."""
    (temporary / "file").touch()

    with pytest.raises(ValueError, match=r"kept in .*/file/metrics \(Not a directory\): set PROMETHEUS_MULTIPROC_DIR"):
        make_directory(str(temporary / "file/metrics"), *OWNER)


def test_no_directory_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library finds none that can be written."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/none"])

    with pytest.raises(ValueError, match=r"kept in a directory for temporary files \(No usable temporary directory"):
        make_directory(None, *OWNER)


def test_the_last_arbiter_removes_the_directory(temporary: Path) -> None:
    """During an upgrade two have locked it."""
    made = make_directory(None, *OWNER)
    old, new = lock_directory(made, *OWNER), lock_directory(made, *OWNER)

    remove_directory(made, old)
    assert Path(made).exists()
    os.close(old)
    remove_directory(made, new)

    assert not Path(made).exists()
    os.close(new)


def test_a_directory_that_is_removed_before_it_is_locked_is_made_anew(temporary: Path) -> None:
    """A server that starts at the same moment may remove it as left over by a dead one. The workers own it again."""
    directory = temporary / "metrics"
    directory.mkdir()
    other = os.open(directory, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)

    def opened() -> bool:
        descriptors = list(Path("/proc/self/fd").iterdir())
        return sum(link.exists() and link.samefile(directory) for link in descriptors) == 2

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(lock_directory, str(directory), *OTHER)
        eventually(opened)
        directory.rmdir()
        os.close(other)
        descriptor = held.result(HANG_SECONDS)

    made = directory.stat()
    assert os.path.samestat(made, os.fstat(descriptor))
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (*OTHER, 0o700)
    os.close(descriptor)

"""The directory of metric files: locked while a server lives, removed when none does."""

import concurrent.futures
import fcntl
import os
from pathlib import Path

import pytest

from app.telemetry.metric_files import METRICS_PREFIX, lock_directory, prepare_directory, remove_directory
from testing.eventually import eventually


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
    descriptor = lock_directory(str(in_use))

    made = Path(prepare_directory(None))

    assert sorted(temporary.iterdir()) == sorted([in_use, made])
    os.close(descriptor)


def test_a_directory_of_the_operator_is_emptied_and_kept(temporary: Path) -> None:
    """Only metric files are removed."""
    given = temporary / "metrics"
    given.mkdir()
    (given / "counter_1.db").touch()
    (given / "notes").touch()

    assert prepare_directory(str(given)) == str(given)
    remove_directory(str(given), lock_directory(str(given)))

    assert list(given.iterdir()) == [given / "notes"]


def test_the_last_arbiter_removes_the_directory(temporary: Path) -> None:
    """During an upgrade two have locked it."""
    made = prepare_directory(None)
    old, new = lock_directory(made), lock_directory(made)

    remove_directory(made, old)
    assert Path(made).exists()
    os.close(old)
    remove_directory(made, new)

    assert not Path(made).exists()
    os.close(new)


def test_a_directory_that_is_removed_before_it_is_locked_is_made_anew(temporary: Path) -> None:
    """A server that starts at the same moment may remove it as left over by a dead one."""
    directory = temporary / "metrics"
    directory.mkdir()
    other = os.open(directory, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)

    def opened() -> bool:
        descriptors = list(Path("/proc/self/fd").iterdir())
        return sum(link.exists() and link.samefile(directory) for link in descriptors) == 2

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(lock_directory, str(directory))
        eventually(opened)
        directory.rmdir()
        os.close(other)
        descriptor = held.result(10)

    assert os.path.samestat(directory.stat(), os.fstat(descriptor))
    os.close(descriptor)

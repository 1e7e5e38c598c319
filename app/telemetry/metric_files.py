"""The directory of the workers' metric files (Prometheus multiprocess mode): made, locked, and removed at the end.

It is made in the directory that PROMETHEUS_MULTIPROC_DIR names, or else in the one for temporary files. Several servers
may be given the same one: each makes its own directory there and touches nothing else.

Invariants: a directory is locked (shared flock) by every arbiter that uses it, and the lock is inherited by its
children. So a directory that nobody has locked belonged to a server that was killed, and the next start removes it.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

METRICS_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
METRICS_PREFIX: Final = "mlsdm-metrics-"


def make_directory(parent: str | None, uid: int, gid: int) -> str:
    """Make an empty directory for the metrics of workers that run as `uid` and `gid`, in `parent`.

    Without a parent it is made in the directory for temporary files. Directories of servers that have ended are removed
    there. Raises ValueError, with a remedy, when none can be made.
    """
    try:
        directory = Path(parent or tempfile.gettempdir())
        directory.mkdir(parents=True, exist_ok=True)
        _remove_left_over(directory)
        made = tempfile.mkdtemp(prefix=METRICS_PREFIX, dir=directory)
        _give_to(made, uid, gid)
    except OSError as error:
        where = parent or "a directory for temporary files"
        remedy = f"set {METRICS_VARIABLE} to a directory that can be written"
        raise ValueError(f"metrics cannot be kept in {where} ({error.strerror}): {remedy}") from error
    return made


def _give_to(directory: str, uid: int, gid: int) -> None:
    if (uid, gid) != (os.geteuid(), os.getegid()):
        os.chown(directory, uid, gid)


def _remove_left_over(parent: Path) -> None:
    for left_over in parent.glob(METRICS_PREFIX + "*"):
        with suppress(OSError):
            descriptor = os.open(left_over, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left_over)
            finally:
                os.close(descriptor)


def lock_directory(directory: str, uid: int, gid: int) -> int:
    """Return a descriptor that keeps `directory` from being removed while this arbiter or one of its children lives.

    Each arbiter has its own descriptor: during an upgrade two arbiters share the directory, and either may stay. Before
    it is locked, a server that starts at the same moment may remove it as left over: then it is made again, for workers
    that run as `uid` and `gid`.
    """
    while True:
        with suppress(FileNotFoundError):  # removed since the line before
            # mkdir(exist_ok=True) alone would fail if the directory vanished between its attempt and its own check.
            if not os.path.isdir(directory):
                Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
                _give_to(directory, uid, gid)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.path.exists(directory) and os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                return descriptor
            os.close(descriptor)


def remove_directory(directory: str, descriptor: int) -> None:
    """Remove the directory, unless another arbiter has locked it: the replaced one, or the one that replaces.

    `descriptor` is this arbiter's lock on it.
    """
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)

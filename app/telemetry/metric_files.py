"""The directory of the workers' metric files (Prometheus multiprocess mode): made, locked, and removed at the end.

Invariants: a directory of our own is locked (shared flock) by every arbiter that uses it and inherited by its children,
so a directory that nobody has locked belonged to a server that was killed, and the next start removes it. A directory
that the operator named is never removed; only its metric files are, at the start.
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


def prepare_directory(given: str | None) -> str:
    """Return an empty directory for the workers' metrics: `given` by the operator, or one of our own.

    Directories of our own that no living server has locked are removed.
    """
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        for file in Path(given).glob("*.db"):
            file.unlink()
        return given
    for left_over in Path(tempfile.gettempdir()).glob(METRICS_PREFIX + "*"):
        with suppress(OSError):
            descriptor = os.open(left_over, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left_over)
            finally:
                os.close(descriptor)
    return tempfile.mkdtemp(prefix=METRICS_PREFIX)


def lock_directory(directory: str) -> int:
    """Return a descriptor that keeps `directory` from being removed while this arbiter or one of its children lives.

    Each arbiter has its own descriptor: during an upgrade two arbiters share the directory, and either may stay. Before
    it is locked, a server that starts at the same moment may remove it as left over: then it is made anew.
    """
    while True:
        with suppress(FileNotFoundError):  # removed since the line before
            if not os.path.isdir(directory):  # mkdir's own look is after its attempt, and fails if it vanishes between
                Path(directory).mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.path.exists(directory) and os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                return descriptor
            os.close(descriptor)


def remove_directory(directory: str, descriptor: int) -> None:
    """Remove a directory of our own, unless another arbiter has locked it: the replaced one, or the one that replaces.

    `descriptor` is this arbiter's lock on it.
    """
    if Path(directory).name.startswith(METRICS_PREFIX):
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory)

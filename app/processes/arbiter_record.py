"""The record of an arbiter: its last reload and what it has counted, in memory that its workers share.

Owns: one page, a memfd. The arbiter makes it before its first fork, and every process that it forks inherits it. So
each worker can expose it to a scrape, and `mlsdm stat` finds it among the descriptors of the arbiter.

Invariants: only the arbiter writes. Each figure is one word, so it is never seen half written; figures are written one
after the other and may be of different moments. An upgrade (USR2) begins with a new record.
"""

import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

NAME: Final = "mlsdm-arbiter"  # of the memfd
VERSION: Final = 1  # of the words below
_SIZE: Final = 4096
_VERSION, _LOADED_NS, _RESULT, _LOST_LINES, _RELOADS, _KILLS = 0, 1, 2, 3, 8, 16


class ReloadResult(IntEnum):
    """What became of a configuration that was read at the start or at a reload. The log has the reason."""

    SUCCEEDED = 0
    REFUSED = 1  # it has problems: the old one stays
    NOT_BOOTED = 2  # the new workers did not boot with it: the old ones stay, with the old configuration
    INCOMPLETE = 3  # it is in force, except for children or for the governor's settings
    FAILED = 4  # another step has failed: the old one stays


class KillReason(IntEnum):
    """Why the watch has killed a worker (app/processes/worker_watch.py)."""

    STOPPED = 0
    STUCK = 1


class ArbiterState(NamedTuple):
    """What a record says. `loaded_at` is Unix seconds, 0 before the first start is complete; `last_result` is of the
    start or of the last reload; counts are by the names of ReloadResult and KillReason in lower case.
    """

    loaded_at: float
    last_result: str
    reloads: dict[str, int]
    workers_killed: dict[str, int]
    lost_lines_descriptor: int  # of the arbiter (app/telemetry/lost_lines.py), -1 before it is known


class ArbiterRecord:
    """One record. `clock` returns Unix nanoseconds."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self.descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)  # it stays open, to be found
        os.ftruncate(self.descriptor, _SIZE)
        self._words = memoryview(mmap.mmap(self.descriptor, _SIZE)).cast("Q")
        self._words[_VERSION] = VERSION

    def started(self, result: ReloadResult, lost_lines_descriptor: int) -> None:
        """Note that the server has started with its first configuration."""
        self._words[_LOST_LINES] = lost_lines_descriptor + 1
        self._note(result)

    def reloaded(self, result: ReloadResult) -> None:
        """Note the result of a reload."""
        self._words[_RELOADS + result] += 1
        self._note(result)

    def _note(self, result: ReloadResult) -> None:
        self._words[_RESULT] = result
        self._words[_LOADED_NS] = self._clock()

    def worker_killed(self, reason: KillReason) -> None:
        """Count a worker that the watch has killed."""
        self._words[_KILLS + reason] += 1

    def state(self) -> ArbiterState:
        """Return what the record says now."""
        return _state(self._words)


def state_of(pid: int) -> ArbiterState | None:
    """Return what the record of an arbiter says, from any process that may read it.

    `pid` is of the arbiter, or of a process that it has forked. None when there is no record that can be read.
    """
    with suppress(OSError):
        for link in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda link: int(link.name)):
            with suppress(OSError):  # closed since it was listed
                if os.readlink(link).startswith(f"/memfd:{NAME} ") and (state := _read(link)) is not None:
                    return state
    return None


def _read(path: Path) -> ArbiterState | None:
    with path.open("rb") as file:
        content = file.read(_SIZE)
    words = memoryview(content.ljust(_SIZE, b"\0")).cast("Q")
    return _state(words) if words[_VERSION] == VERSION else None


def _state(words: "memoryview[int]") -> ArbiterState:
    return ArbiterState(
        loaded_at=words[_LOADED_NS] / 1e9,
        last_result=ReloadResult(words[_RESULT]).name.lower(),
        reloads={result.name.lower(): words[_RELOADS + result] for result in ReloadResult},
        workers_killed={reason.name.lower(): words[_KILLS + reason] for reason in KillReason},
        lost_lines_descriptor=words[_LOST_LINES] - 1,
    )

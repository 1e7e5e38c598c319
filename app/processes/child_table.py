"""The table of supervised children: one record for each, in memory that arbiter, children and workers share.

Owns: one anonymous shared page. The arbiter makes it before its first fork, and every process that it forks inherits
it. So each worker knows which children run, how often they were started, and why they ended last.

Invariants: `beats` and `beats_before` are written by the child, and before its fork by the arbiter; every other word is
written by the arbiter. A record is two cache lines, so no two children beat into the same line. `in_use` is written
last when a record is claimed, so a reader never sees a name that is half written.
"""

import mmap
from enum import IntEnum
from typing import Final, NamedTuple

CHILDREN_MAX: Final = 32
NAME_SIZE_MAX: Final = 32  # bytes, ASCII
_WORDS: Final = 16  # of a record, 8 bytes each
_IN_USE, _PID, _STARTS, _REASON, _STATUS, _NAME, _BEATS_BEFORE, _BEATS = 0, 1, 2, 3, 4, 8, 14, 15
_STATUS_BIAS: Final = 1 << 32  # exit statuses of signals are negative, and the words are unsigned


class Reason(IntEnum):
    """Why a child last ended."""

    NONE = 0  # it has not ended yet
    EXITED = 1  # by itself
    KILLED = 2  # by a signal that the arbiter did not send
    SILENT = 3  # killed: no heartbeat for too long
    MEMORY = 4  # killed: above its memory limit
    REPLACED = 5  # ended: its settings changed
    SUPERSEDED = 6  # ended: a newer arbiter has taken over
    ENDED = 7  # ended: it is no longer declared, or the server stops
    FINISHED = 8  # it was declared to run once, and has exited with status 0
    NOT_STARTED = 9  # the fork failed
    SLOW_START = 10  # killed: no first heartbeat in time


class ChildState(NamedTuple):
    """The state of one child. `pid` is 0 while it does not run. `reason` and `status` describe its last end: the name
    of a Reason in lower case, and the exit status, negative when a signal ended it.
    """

    pid: int
    starts: int
    reason: str
    status: int


class ChildRecord:
    """The record of one child."""

    def __init__(self, words: "memoryview[int]") -> None:
        self._words = words

    def beat(self) -> None:
        """Count one heartbeat. Called by the child only."""
        self._words[_BEATS] += 1

    @property
    def beats(self) -> int:
        """How many heartbeats the child has sent."""
        return self._words[_BEATS]

    def begin_start(self) -> None:
        """Note that the child begins to start, which its next heartbeat ends."""
        self._words[_BEATS_BEFORE] = self._words[_BEATS]

    @property
    def has_started(self) -> bool:
        """Whether the child has sent a heartbeat since it began to start."""
        return self._words[_BEATS] != self._words[_BEATS_BEFORE]

    def started(self, pid: int) -> None:
        """Note that the child runs."""
        self._words[_PID] = pid
        self._words[_STARTS] += 1

    def ended(self, reason: Reason, status: int) -> None:
        """Note that the child no longer runs."""
        self._words[_PID] = 0
        self._words[_REASON] = reason
        self._words[_STATUS] = status + _STATUS_BIAS

    def release(self) -> None:
        """Free the record for another child."""
        self._words[_IN_USE] = 0

    def state(self) -> ChildState:
        """Return what the record says now."""
        words = self._words
        status = words[_STATUS] - _STATUS_BIAS if words[_STATUS] else 0
        return ChildState(words[_PID], words[_STARTS], Reason(words[_REASON]).name.lower(), status)

    @property
    def in_use(self) -> bool:
        """Whether the record belongs to a child."""
        return bool(self._words[_IN_USE])

    @property
    def name(self) -> str:
        """The name of the child."""
        return bytes(self._words[_NAME : _NAME + NAME_SIZE_MAX // 8]).rstrip(b"\0").decode("ascii")

    def claim(self, name: str) -> None:
        """Give the record to a child."""
        for number in range(1, _WORDS):
            self._words[number] = 0
        padded = name.encode("ascii").ljust(NAME_SIZE_MAX, b"\0")
        for number in range(NAME_SIZE_MAX // 8):
            self._words[_NAME + number] = int.from_bytes(padded[8 * number : 8 * number + 8], "little")
        self._words[_IN_USE] = 1


class ChildTable:
    """All records."""

    def __init__(self) -> None:
        words = memoryview(mmap.mmap(-1, CHILDREN_MAX * _WORDS * 8)).cast("Q")
        self._records = [ChildRecord(words[n * _WORDS : (n + 1) * _WORDS]) for n in range(CHILDREN_MAX)]

    def claim(self, name: str) -> ChildRecord:
        """Give a free record to the child `name`. Raises ValueError when there is none."""
        for record in self._records:
            if not record.in_use:
                record.claim(name)
                return record
        raise ValueError(f"more than {CHILDREN_MAX} children cannot be supervised")

    @property
    def is_full(self) -> bool:
        """Whether every record belongs to a child."""
        return all(record.in_use for record in self._records)

    def states(self) -> dict[str, ChildState]:
        """Return the state of each child by its name."""
        return {record.name: record.state() for record in self._records if record.in_use}

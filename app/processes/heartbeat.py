"""The heartbeat of a child, as the supervisor reads it. Most children count beats in their record of the child table
(`ChildRecord`). The controller writes a time into the block, where workers and other arbiters read it too.
"""

from typing import Protocol

from shm.block import Block


class Heartbeat(Protocol):
    """The heartbeat of one child, as the arbiter reads it."""

    @property
    def beats(self) -> int:
        """A number that every beat changes."""

    @property
    def has_started(self) -> bool:
        """Whether the child has sent a heartbeat since its start began."""

    def begin_start(self) -> None:
        """Note that a start begins now. The arbiter calls it before the fork."""


class VitalsHeartbeat:
    """The heartbeat of the controller: a time in the vitals, which outlives the controller that wrote it."""

    def __init__(self, block: Block) -> None:
        self._vitals = block.region("vitals")
        self._before = 0

    @property
    def beats(self) -> int:
        """The time of the latest beat, in ns."""
        return int(self._vitals.heartbeat_ns)

    @property
    def has_started(self) -> bool:
        """Whether any controller has sent a heartbeat since the start began."""
        return self.beats != self._before

    def begin_start(self) -> None:
        """Note the predecessor's last beat."""
        self._before = self.beats

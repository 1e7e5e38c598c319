"""How many connections each worker has open. A worker with more than others leaves new connections to them.

A row counts only while its owner lives and beats: a dead or hanging worker must not keep the others from accepting.
"""

from collections.abc import Callable
from dataclasses import dataclass

from core.heartbeat import row_is_served
from shm.block import Block


@dataclass
class ConnectionCounts:
    """The counts of all workers, for the worker that owns `row`. `clock` returns CLOCK_BOOTTIME in ns."""

    block: Block
    row: int
    clock: Callable[[], int]

    def __post_init__(self) -> None:
        self._rows = [self.block.region("rows", number) for number in range(self.block.layout.rows)]
        self._own = self._rows[self.row]

    def publish(self, connections: int) -> None:
        """Publish how many connections this worker has open."""
        self._own.connections = connections

    def fewest(self) -> int:
        """Return the smallest number of connections of any live worker, this one included."""
        now_ns = self.clock()
        return min(
            (int(row.connections) for row in self._rows if row_is_served(row, now_ns)),
            default=int(self._own.connections),
        )

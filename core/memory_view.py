"""A read-only view of the store for processes that only read: the committed state and its position.

Never takes the lock, so it works on a mapping that cannot be written.
"""

from typing import NamedTuple

from core.follower import Cursor, Follower
from core.phases import PHASE_NAMES
from shm.block import Block
from shm.layout import FLAG_STOPPED
from shm.store import Store


class CommittedState(NamedTuple):
    """The state at one position of the log. `memories` live; `phase` is `wake` or `sleep`."""

    position: int
    threshold: float
    ema: float
    phase: str
    accepted: int
    rejected: int
    memories: int
    stopped: bool


class MemoryView:
    """The block as a reader sees it. Belongs to one thread."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._store = Store(block)

    @property
    def boot_id(self) -> str:
        """The identity of this memory, in hexadecimal digits."""
        return self._block.boot_id

    @property
    def log_id(self) -> str:
        """The identity of the history, in hexadecimal digits."""
        return self._block.log_id

    @property
    def dimension(self) -> int:
        """The number of elements in a vector."""
        return self._block.layout.dimension

    @property
    def capacity(self) -> int:
        """The number of memories that fit."""
        return self._block.layout.capacity

    @property
    def position(self) -> int:
        """The position that was committed last. Raises Corrupt where the commit word is damaged."""
        return self._block.position

    def follow(self, cursor: Cursor | None = None) -> Follower:
        """Return a follower of the history, from a cursor on or from its beginning. Raises CursorError, Corrupt."""
        return Follower(self._block, cursor)

    def state(self) -> CommittedState:
        """Return the committed state. Raises Busy when it changed during each of three attempts, Corrupt, Unformed."""
        state = self._store.state()
        scalars = state.scalars
        return CommittedState(
            int(state.position), float(scalars.theta), float(scalars.ema), PHASE_NAMES[scalars.phase],
            int(scalars.accepted), int(scalars.rejected), int(scalars.live), bool(scalars.flags & FLAG_STOPPED),
        )  # fmt: skip

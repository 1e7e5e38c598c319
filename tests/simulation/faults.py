"""Faults of the machine and the block during the simulation.

There are three faults. The container's memory fills and empties. A byte of the committed state or of the levels flips,
and later flips back, unlike real memory, so that the cause of an emergency can end; a reset may replace the levels
meanwhile. The mutex is lost: a process gets it from a dead holder and unlocks it without repair, so that no process can
acquire it; that ends only when all processes end and the mutex is made again.

Nothing is damaged while a process holds the mutex, because no checksum helps between its check and the use of the
bytes. `causes` returns the present causes as bits of an emergency.
"""

import ctypes
import os
import random
from typing import Any, Final

from core.limits import MEMORY_PERCENT
from shm._native import ffi, lib
from shm.layout import EMERGENCY_CORRUPT, EMERGENCY_LOST, EMERGENCY_MEMORY, LOST
from testing.block_fixture import Formed, take_mutex

_libc = ctypes.CDLL(None)
FULL: Final = float(MEMORY_PERCENT.value)
PERCENTS: Final = (10.0, FULL - 0.1, FULL, 99.0)
# Fields of the state that no reader uses before it has compared the checksum (unlike the ticket and the count of
# accepted).
FIELDS: Final = ("position", "scalars", "settings", "time_ns", "levels_checksum", "receipts", "checksum")


class Faults:
    """The faults of one block and its machine."""

    def __init__(self, formed: Formed, chance: random.Random) -> None:
        self._formed = formed
        self._random = chance
        self.memory_percent = PERCENTS[0]
        self.is_lock_lost = False
        self.is_state_corrupt = False  # a byte of the committed state is flipped
        self._flipped: tuple[int, int, int] | None = None  # offset in the block, flipped bits, index of the levels

    @property
    def is_corrupt(self) -> bool:
        """Whether a byte of the committed state or of its levels is flipped."""
        return self._flipped is not None

    @property
    def is_loss_reported(self) -> bool:
        """Whether a process has reported the loss of the mutex: it then looks held, but no process is inside."""
        return bool(self._formed.block.region("lock").lost == LOST)

    @property
    def causes(self) -> int:
        """The present causes, as bits of an emergency."""
        full = EMERGENCY_MEMORY * (self.memory_percent >= FULL)
        return full | EMERGENCY_LOST * self.is_lock_lost | EMERGENCY_CORRUPT * self.is_corrupt

    def change_memory(self) -> str:
        """Fill the memory, or free it if it is full; returns what happened."""
        self.memory_percent = self._random.choice(PERCENTS[1:]) if self.memory_percent < FULL else PERCENTS[0]
        return f"{self.memory_percent:g} % of memory are used"

    def corrupt_state(self, position: int) -> str:
        """Flip a byte of the state that was committed at `position`, or of its levels; returns what happened."""
        assert self._flipped is None
        state = self._committed(position)
        self.is_state_corrupt = self._random.random() < 0.5
        if self.is_state_corrupt:
            field = self._random.choice(FIELDS)
            offset, _ = self._formed.region_bytes("states")
            at = offset + (position & 1) * ffi.sizeof("struct mlsdm_state")
            at += ffi.offsetof("struct mlsdm_state", field) + self._random.randrange(8)
            what = field
        else:
            layout = self._formed.block.layout
            level = (state.levels & 1) * 3 + self._random.randrange(3)
            at = self._formed.region_bytes("levels")[0] + level * layout.vector_stride
            at += self._random.randrange(4 * layout.dimension)
            what = "a level"
        bits = self._random.randrange(1, 256)
        self._formed.block.memory[at] ^= bits
        self._flipped = at, bits, int(state.levels)
        return f"a byte of {what} flips"

    def restore(self) -> str:
        """Undo `corrupt_state`; returns what happened."""
        assert self._flipped is not None
        at, bits, _ = self._flipped
        self._formed.block.memory[at] ^= bits
        self._flipped, self.is_state_corrupt = None, False
        return "it flips back"

    def drop_replaced_levels(self, position: int) -> None:
        """Forget the damage of levels that are no longer those of the committed state, at the newest position."""
        if self._flipped and not self.is_state_corrupt and self._committed(position).levels != self._flipped[2]:
            self._flipped = None

    def lose_mutex(self) -> str:
        """Lose the mutex; returns what happened."""
        pid = os.fork()
        if not pid:
            take_mutex(self._formed.block)
            os._exit(0)
        os.waitpid(pid, 0)
        take_mutex(self._formed.block)  # and do not make it consistent
        _libc.pthread_mutex_unlock(ctypes.c_void_p(int(ffi.cast("uintptr_t", self._formed.block.region("lock")))))
        self.is_lock_lost = True
        return "the mutex is lost"

    def renew_mutex(self) -> str:
        """Make a new mutex; no actor may be alive. Returns what happened."""
        lock = self._formed.block.region("lock")
        ffi.memmove(lock.mutex, bytes(ffi.sizeof(lock.mutex)), ffi.sizeof(lock.mutex))
        assert lib.mlsdm_lock_create(self._formed.block.map) == 0
        lock.lost = 0
        self.is_lock_lost = False
        return "there is a new mutex"

    def _committed(self, position: int) -> Any:
        """Return the state that was committed at a position, unchecked."""
        return self._formed.block.region("states", position & 1)

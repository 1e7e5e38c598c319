"""Faults of the machine and the block during the simulation.

The container's memory fills and empties. A byte of the committed state or of the levels flips, and later flips back,
unlike real memory, so that the cause of an emergency can end; a reset may replace the levels meanwhile. The mutex is
lost: a process whose predecessor died with it unlocks it without repair, so that no process can acquire it; that ends
only with all processes and a new mutex.

Nothing is damaged while a process holds the mutex: between the check of a checksum and the use of its bytes no
checksum helps. `causes` returns the present causes as bits of an emergency.
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
# Of the state: what no reader looks at before the checksum. (A ticket, or the number of accepted, is.)
FIELDS: Final = ("position", "scalars", "settings", "time_ns", "epoch", "levels_checksum", "receipts", "checksum")


class Harm:
    """What is the matter with one block and its machine."""

    def __init__(self, formed: Formed, chance: random.Random) -> None:
        self._formed = formed
        self._random = chance
        self.memory_percent = PERCENTS[0]
        self.lost = False
        self.state = False  # a byte of the committed state is not what it was
        self._flipped: tuple[int, int, int] | None = None  # place in the block, what was flipped, levels

    @property
    def corrupt(self) -> bool:
        """Whether a byte of the committed state or of its levels is not what it was."""
        return self._flipped is not None

    @property
    def known_lost(self) -> bool:
        """Whether somebody has found out that the mutex is lost, and has said so: then it looks taken, but nobody
        is inside.
        """
        return bool(self._formed.block.region("lock").lost == LOST)

    @property
    def causes(self) -> int:
        """What is the matter: bits of an emergency."""
        full = EMERGENCY_MEMORY * (self.memory_percent >= FULL)
        return full | EMERGENCY_LOST * self.lost | EMERGENCY_CORRUPT * self.corrupt

    def fill(self) -> str:
        """Let memory be used as much as it was not before, or no more; returns what happened."""
        self.memory_percent = self._random.choice(PERCENTS[1:]) if self.memory_percent < FULL else PERCENTS[0]
        return f"{self.memory_percent:g} % of memory are used"

    def flip(self, position: int) -> str:
        """Flip a byte of the state that was committed at `position`, or of its levels; returns what happened."""
        assert self._flipped is None
        state = self._committed(position)
        self.state = self._random.random() < 0.5
        if self.state:
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

    def flip_back(self) -> str:
        """Undo it; returns what happened."""
        assert self._flipped is not None
        at, bits, _ = self._flipped
        self._formed.block.memory[at] ^= bits
        self._flipped, self.state = None, False
        return "it flips back"

    def see(self, position: int) -> None:
        """See whether levels that were damaged are still those in use, at the newest position."""
        if self._flipped and not self.state and self._committed(position).levels != self._flipped[2]:
            self._flipped = None

    def lose(self) -> str:
        """Lose the mutex; returns what happened."""
        pid = os.fork()
        if not pid:
            take_mutex(self._formed.block)
            os._exit(0)
        os.waitpid(pid, 0)
        take_mutex(self._formed.block)  # and do not make it consistent
        _libc.pthread_mutex_unlock(ctypes.c_void_p(int(ffi.cast("uintptr_t", self._formed.block.region("lock")))))
        self.lost = True
        return "the mutex is lost"

    def renew(self) -> str:
        """Make a new mutex; nobody else may live. Returns what happened."""
        lock = self._formed.block.region("lock")
        ffi.memmove(lock.mutex, bytes(ffi.sizeof(lock.mutex)), ffi.sizeof(lock.mutex))
        assert lib.mlsdm_lock_create(self._formed.block.map) == 0
        lock.lost = 0
        self.lost = False
        return "there is a new mutex"

    def _committed(self, position: int) -> Any:
        """Return the state that was committed at a position, unchecked."""
        return self._formed.block.region("states", position & 1)

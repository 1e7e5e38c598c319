"""The follower: reads the log of a live block, and the memories that its entries wrote, in order.

Invariants: it never takes the lock and writes nothing, so it works with a mapping that is read-only, and writers do
not wait for it. Every position after the cursor is returned once, as an entry or within a gap; the position of the
cursor is the last one that was returned. A reader that keeps the cursor with what it has made of the batch continues
there after its death.
What could not be read is a value: a `Gap` in the log, a `Missing` content. An exception means that nothing can be read.
Threading: a `Follower` belongs to one thread. It holds no more than one batch.
docs/design/follower.md says what is missing when.
"""

import re
import time
from enum import Enum
from typing import Final, NamedTuple, Self

from shm.block import Block
from shm.errors import CORRUPT, GONE, Corrupt, Gone
from shm.layout import KINDS
from shm.records import EntryPointer, decided_of
from shm.store import Content, Store

BATCH: Final = 256  # entries; with their memories of 384 dimensions and 1 kB of payload less than 0.8 MB
PAUSE_SECONDS_MIN: Final = 0.0002
PAUSE_SECONDS_MAX: Final = 0.02  # 50 looks at one word a second while nothing happens
_CURSOR: Final = re.compile(r"([0-9a-f]{32}):(0|[1-9][0-9]{0,14})")
_WRITING: Final = ("decision", "update")


class Cursor(NamedTuple):
    """A position of a history: `log_id` has 32 hexadecimal digits. Position 0 is before the first entry."""

    log_id: str
    position: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the cursor that `str` made a text of. Raises CursorError."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise CursorError(f"cursor is {text[:60]!r}, expected log_id:position, as in {'0' * 31}7:1234")
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.log_id}:{self.position}"


class CursorError(Exception):
    """A cursor that this block cannot continue. The message says why."""


class Missing(Enum):
    """Why the content of an entry is not there."""

    GONE = "gone"  # the slot was written again, or the memory was deleted, updated or superseded and then erased
    DAMAGED = "damaged"  # its bytes do not match their checksum


class Followed(NamedTuple):
    """An entry, and what it wrote: None if it wrote no memory."""

    entry: EntryPointer
    content: Content | Missing | None


class Gap(NamedTuple):
    """Positions `first` to `last`, which could not be read. `damaged`: an entry does not match its checksum; otherwise
    the log was overwritten before they were read.
    """

    first: int
    last: int
    damaged: bool


class Follower:
    """Reads the history of a block from a cursor on, or from its beginning."""

    def __init__(self, block: Block, cursor: Cursor | None = None) -> None:
        """Raises CursorError if the cursor is of another history, or of a position that has not happened; Corrupt."""
        self._block = block
        self._store = Store(block)
        self.cursor = cursor or Cursor(block.log_id, 0)
        if self.cursor.log_id != block.log_id:
            raise CursorError(f"cursor is of the history {self.cursor.log_id}, this block has {block.log_id}")
        if self.cursor.position > block.position:
            raise CursorError(f"cursor is at position {self.cursor.position}, the newest one is {block.position}")

    @property
    def lag(self) -> int:
        """The number of positions that have happened and were not returned. Raises Corrupt."""
        return self._block.position - self.cursor.position

    def read(self, count: int = BATCH) -> list[Followed | Gap]:
        """Return what happened next, at most `count` positions and the gaps between them; nothing if nothing did.

        Raises Corrupt if the commit word is damaged.
        """
        batch: list[Followed | Gap] = []
        first = self.cursor.position + 1
        page = self._store.log_page(first, count)
        if page.status == GONE:
            batch.append(Gap(first, page.oldest - 1, damaged=False))
            first = page.oldest
            page = self._store.log_page(first, count)  # overtaken again: the next batch begins with that gap
        batch += [Followed(entry, self._content_of(entry)) for entry in page.entries]
        first += len(page.entries)
        if page.status == CORRUPT:
            batch.append(Gap(first, first, damaged=True))
            first += 1
        self.cursor = Cursor(self.cursor.log_id, first - 1)
        return batch

    def wait(self, seconds: float) -> bool:
        """Wait until something has happened that was not read, at most `seconds`. Returns whether it has.

        It looks at the commit word, in pauses of 0.2 to 20 ms. Raises Corrupt.
        """
        deadline, pause = time.monotonic() + seconds, PAUSE_SECONDS_MIN
        while not self.lag:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
        return True

    def _content_of(self, entry: EntryPointer) -> Content | Missing | None:
        if KINDS[entry.kind] not in _WRITING or not decided_of(entry).slot:
            return None
        try:
            return self._store.written(entry)
        except Gone:
            return Missing.GONE
        except Corrupt:
            return Missing.DAMAGED

"""Decision writer: a decision as the JSON of its view, written by native code.

Invariants: the bytes are those that msgspec writes for the view. A number that the native code does not write is rare,
and then msgspec writes the whole view.
Perf: 0.4 µs for a decision; the view and msgspec take 1.3.
"""

from typing import Final

from app.api.codec._native import ffi, lib
from app.api.codec.media_types import encode
from app.api.decision_view import to_decision_view
from shm.store import DecisionFields

_FIELDS: Final = 9  # of a decision; the answer to a retry does not tell itself from the first one


class DecisionWriter:
    """Writes decisions of one block as JSON. Belongs to one thread: the buffer is used again."""

    def __init__(self, boot_id: str, log_id: str) -> None:
        self._boot_id, self._log_id = boot_id, log_id
        self._ids = f',"boot_id":"{boot_id}","log_id":"{log_id}"'.encode()
        self._written = ffi.new("uint8_t[]", lib.MLSDM_DECISION_SIZE + len(self._ids))
        self._bytes = ffi.buffer(self._written)

    def write(self, decided: DecisionFields) -> bytes:
        """Return the view of a decision as JSON."""
        size = lib.mlsdm_write_decision(self._ids, len(self._ids), self._written, *decided[:_FIELDS])
        return self._bytes[:size] if size else encode(to_decision_view(decided, self._boot_id, self._log_id))

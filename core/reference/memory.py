"""A memory of the store, reference version: what one slot holds while it is live.

Every change of a memory writes a whole new slot, so a `Memory` never changes; an update makes another one.

Units: positions are those of the log; times are log time, nanoseconds UTC. NEVER means no expiry.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from core.namespaces import NEVER, NamespaceId
from core.reference.filter_words import Metadata
from core.reference.vector import Vector


class Content(NamedTuple):
    """What a client stored: `vector` is float32[D] as bytes, `metadata` at most 16 members (see filter_words)."""

    vector: bytes
    payload: bytes = b""
    metadata: Metadata = {}  # noqa: RUF012  (never changed)

    def values(self) -> Vector:
        """Return the vector, float32[D]."""
        return np.frombuffer(self.vector, np.float32)

    def checksum(self) -> int:
        """Return a number of 64 bits that identifies the content. The block has a checksum of its own in its place."""
        digest = hashlib.blake2b(repr((self.vector, self.payload, sorted(self.metadata.items()))).encode())
        return int.from_bytes(digest.digest()[:8], "little")


class Memory(NamedTuple):
    """One live memory. `content` is what the client stored, the rest is what the transitions made of it.

    `memory_id` is never given twice. `version` is the position that wrote this slot; an update changes it.
    `admitted_at` is the position that admitted the memory; an update keeps it. `queued_at` is the position at which
    the memory joined the eviction list of its namespace; 0 while it is pinned, because then it is in none.
    `own_id` is the client's id, unique among the memories of a namespace; None without one. `phase` is the tag of
    core.phases. `scorer` is the version of the scorer that made the moral value, 0 for none.
    """

    memory_id: int
    version: int
    admitted_at: int
    queued_at: int
    namespace: NamespaceId
    own_id: str | None
    created_at: int
    updated_at: int
    expires_at: int
    moral: float
    moral_defaulted: bool
    scorer: int
    phase: int
    content: Content

    @property
    def pinned(self) -> bool:
        """Whether no transition may evict the memory to make room."""
        return self.queued_at == 0

    def has_expired(self, instant_ns: int) -> bool:
        """Return whether the memory is expired at an instant: from `expires_at` on."""
        return self.expires_at != NEVER and self.expires_at <= instant_ns

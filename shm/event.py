"""An event with everything that an event may have, as the native core reads it.

Perf: the hot path does not use it. An event of the default namespace with only a payload goes through `Store.admit`.
"""

from typing import Final, Literal, NamedTuple

from shm._native import ffi, lib
from shm.metadata import NO_METADATA, EncodedMetadata
from shm.records import NO_IDEMPOTENCY_HASH, Buffer, EventPointer, IdempotencyHash


class NamespaceId(NamedTuple):
    """The identity of a namespace: its row, and the generation of that row. A row is given again, the pair is not."""

    number: int
    generation: int


DEFAULT_NAMESPACE: Final = NamespaceId(0, 1)
DuplicatePolicy = Literal["keep", "skip", "supersede"]
POLICIES: Final = {
    "keep": lib.MLSDM_DECIDED_KEEP,
    "skip": lib.MLSDM_DECIDED_SKIP,
    "supersede": lib.MLSDM_DECIDED_SUPERSEDE,
}


class Event:
    """One event. `pointer` is what the native core takes; it is valid as long as this object."""

    def __init__(
        self,
        moral: float,
        vector: Buffer,
        payload: bytes = b"",
        *,
        namespace: NamespaceId = DEFAULT_NAMESPACE,
        metadata: EncodedMetadata = NO_METADATA,
        own_id: bytes = b"",
        own_id_hash: tuple[int, int] = (0, 0),
        ttl_ns: int | None = None,
        expires_ns: int | None = None,
        created_ns: int | None = None,
        moral_defaulted: bool = False,
        scorer: int = 0,
        key_id: int = 0,
        key: IdempotencyHash = NO_IDEMPOTENCY_HASH,
        dedupe: tuple[DuplicatePolicy, float] | None = None,
    ) -> None:
        """`moral` is 0 to 1, `vector` a contiguous buffer of float32-LE[dimension].

        `own_id` is UTF-8, and `own_id_hash` its keyed hash, not (0, 0) if it has one: it is kept for filters, and two
        memories may have the same. `ttl_ns` is a lifetime from the
        time of the entry on, `expires_ns` an instant, 0 for never; without both the lifetime of the namespace counts.
        `created_ns` is the time that the client names. `dedupe` is what to do with the event if the nearest memory of
        its namespace has a score of at least the threshold, -1 to 1.
        """
        flags = (
            (lib.MLSDM_EVENT_DEFAULTED if moral_defaulted else 0)
            | (0 if expires_ns is None else lib.MLSDM_EVENT_EXPIRES)
            | (0 if ttl_ns is None else lib.MLSDM_EVENT_TTL)
            | (0 if created_ns is None else lib.MLSDM_EVENT_CREATED)
        )
        # The structure holds bare pointers: these buffers live as long as this object.
        self._buffers = (
            ffi.from_buffer("uint8_t[]", vector),
            ffi.from_buffer("uint8_t[]", payload),
            ffi.from_buffer("uint8_t[]", metadata.encoded),
            ffi.from_buffer("uint8_t[]", own_id),
            metadata.members,
            key,
        )
        octets, payload_octets, metadata_octets, own_id_octets, *_ = self._buffers
        self.pointer: EventPointer = ffi.new(
            "struct mlsdm_event *",
            {
                "namespace": namespace.number,
                "generation": namespace.generation,
                "moral": moral,
                "vector": octets,
                "payload": payload_octets,
                "metadata": metadata_octets,
                "own_id": own_id_octets,
                "payload_size": len(payload),
                "metadata_size": len(metadata.encoded),
                "own_id_size": len(own_id),
                "flags": flags,
                "members": metadata.members,
                "own_id_hash": own_id_hash,
                "ttl_ns": ttl_ns or 0,
                "expires_ns": expires_ns or 0,
                "created_ns": created_ns or 0,
                "scorer": scorer,
                "key_id": key_id,
                "dedupe": POLICIES[dedupe[0]] if dedupe else 0,
                "dedupe_threshold": dedupe[1] if dedupe else 0.0,
                "hash": key,
            },
        )

"""Recall: the nearest memories to a vector, one native call.

Invariants: every exception is one of `shm.errors`; a recall changes nothing but the exclusion of damaged memories.
Perf: its working memory is allocated once for each thread, and a match is made of one unpacked record.
`shm/native/api.h` has the contract, docs/design/recall.md the proof.
"""

import struct
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from shm._native import ffi, lib
from shm.block import Block
from shm.errors import OK, raise_for
from shm.event import DEFAULT_NAMESPACE, NamespaceId
from shm.filters import CompiledFilter
from shm.layout import TOP_K_MAX
from shm.records import Buffer

_new_tuple: Final = tuple.__new__  # PERF: Match._make without its check of the length
NAMESPACES_QUERIED_MAX: Final = 64  # of one recall: the lock is held while they are compared


class Match(NamedTuple):
    """One memory that a recall found.

    `score` is the cosine. `time_ns` is log time of the first admission, `updated_ns` that of this version, `expires_ns`
    the instant from which the memory is absent, 0 for never. `version` is the position that wrote it. `metadata` are
    the encoded members (shm/metadata.py), `own_id` is UTF-8, empty without one. These two and `payload` are None unless
    payloads were asked for, `vector` (float32-LE[dimension] as bytes) is None unless vectors were.
    """

    id: int
    score: float
    moral: float
    time_ns: int
    updated_ns: int
    expires_ns: int
    version: int
    namespace: NamespaceId
    scorer: int
    phase: int
    moral_defaulted: bool
    pinned: bool
    payload: bytes | None
    metadata: bytes | None
    own_id: bytes | None
    vector: bytes | None


_MATCH: Final = struct.Struct("<Q2d3qQ10I")
assert _MATCH.size == ffi.sizeof("struct mlsdm_match")


class RecallResult(NamedTuple):
    """What a recall found.

    `matches` are the best first, ties newer first; they equal brute force immediately after position `as_of`. `scanned`
    live memories were compared, `candidates` of them scored in full. `corrupt_id` is a memory that was left out because
    its checksum is wrong, 0 for none. `attempts` is how often the recall began, at least 1.
    """

    matches: list[Match]
    as_of: int
    scanned: int
    candidates: int
    attempts: int
    corrupt_id: int


class Recall(threading.local):
    """The working memory of a recall: allocated once for each thread that uses it, reused for every query.

    Thread-local, because a large store is scanned on the worker's pool, where two recalls may run at a time.
    """

    def __init__(self, block: Block) -> None:
        assert block.writable, "recall settles its answer under the lock"
        self._map = block.map
        self._dimension = block.layout.dimension
        self._size = 4 * self._dimension  # bytes of a vector
        self._bounds = ffi.new("float[]", block.layout.slots)
        self._vectors = ffi.new("float[]", TOP_K_MAX * self._dimension)
        self._payloads = ffi.new("uint8_t[]", TOP_K_MAX * block.map.payload_stride)
        self._matches = ffi.new("struct mlsdm_match[]", TOP_K_MAX)
        self._vector_bytes = ffi.buffer(self._vectors)
        self._payload_bytes = ffi.buffer(self._payloads)
        self._match_bytes = ffi.buffer(self._matches)
        self._result = ffi.new("struct mlsdm_recall_result *")
        self._query = ffi.new("struct mlsdm_query *")
        self._query.bounds = self._bounds
        self._namespaces = ffi.new("struct mlsdm_namespace_id[]", NAMESPACES_QUERIED_MAX)
        self._query.namespaces = ffi.cast("struct mlsdm_namespace_id *", self._namespaces)

    def nearest(
        self,
        vector: Buffer,
        k: int,
        phase_masks: tuple[int, int],
        payloads: bool,
        vectors: bool,
        *,
        namespaces: Sequence[NamespaceId] = (DEFAULT_NAMESPACE,),
        condition: CompiledFilter | None = None,
        clock_ns: int = 0,
    ) -> RecallResult:
        """Return the k live memories nearest to `vector` by cosine, 1 ≤ k ≤ TOP_K_MAX.

        `vector` is a contiguous buffer of float32-LE[dimension]. `phase_masks[p]` has bit t set if memories tagged t
        match while the rhythm is in phase p. A memory matches if it is in one of the namespaces, which are open, if
        `condition` selects it, and if it has not expired: at log time `clock_ns`, or at the time of the position of the
        answer if that is later. With 0 the clock is read once the position is fixed. Exact: equals brute force over all
        memories that match.
        Raises NotFinite, TooLong, Unformed, Busy, Corrupt, Lost.
        """
        assert 1 <= k <= TOP_K_MAX
        assert len(namespaces) <= NAMESPACES_QUERIED_MAX
        query = self._query
        query.vector = buffer = ffi.from_buffer("float[]", vector)
        query.k = k
        query.phase_masks = phase_masks
        query.namespace_count = len(namespaces)
        for i, namespace in enumerate(namespaces):
            place = self._namespaces[i]
            place.number, place.generation = namespace
        query.filter = condition.pointer if condition else ffi.NULL
        query.clock_ns = clock_ns
        query.vectors = self._vectors if vectors else ffi.NULL
        query.payloads = self._payloads if payloads else ffi.NULL
        status = lib.mlsdm_recall(self._map, query, self._matches, self._result)
        del buffer  # not sooner: the query holds a bare pointer into it
        if status != OK:
            raise_for(status)
        result = self._result
        found = _MATCH.iter_unpack(self._match_bytes[: result.count * _MATCH.size])
        return RecallResult(
            [self._match(match, payloads, vectors) for match in found],
            result.as_of, result.scanned, result.candidates, result.attempts, result.corrupt_id,
        )  # fmt: skip

    def _match(self, fields: tuple[Any, ...], payloads: bool, vectors: bool) -> Match:
        """Return the match with these fields of `struct mlsdm_match`."""
        (
            id_, score, moral, time_ns, updated_ns, expires_ns, version, number, generation,
            payload_size, metadata_size, own_id_size, scorer, phase, flags, pinned, place,
        ) = fields  # fmt: skip
        payload = metadata = own_id = vector = None
        if payloads:
            start = place * self._map.payload_stride
            metadata_at = start + payload_size
            own_id_at = metadata_at + metadata_size
            payload = self._payload_bytes[start:metadata_at]
            metadata = self._payload_bytes[metadata_at:own_id_at]
            own_id = self._payload_bytes[own_id_at : own_id_at + own_id_size]
        if vectors:
            vector = self._vector_bytes[place * self._size : (place + 1) * self._size]
        return _new_tuple(Match, (
            id_, score, moral, time_ns, updated_ns, expires_ns, version, NamespaceId(number, generation), scorer, phase,
            flags & 1 != 0, pinned != 0, payload, metadata, own_id, vector,
        ))  # fmt: skip

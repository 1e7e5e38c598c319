"""The store: what a process can do with the block, one method for each native call.

A `Store` belongs to one process and one thread: it reuses its output buffers, so that the event path creates as few
objects as it can. Results that are handed out are cffi structures of the records in `layout`, valid until the next
call; decisions are plain tuples, because the event path reads all of one at once.

Every method raises the exceptions of `shm.errors`; `Busy` means that nothing happened.
"""

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from shm._native import ffi, lib
from shm.block import Block
from shm.errors import CORRUPT, OK, TAKEN, Taken, raise_for
from shm.layout import KINDS
from shm.process import NOBODY, Identity

Entry = Any  # struct mlsdm_entry *
State = Any  # struct mlsdm_state *
Settings = Any  # struct mlsdm_settings *
IdempotencyHash = Any  # struct mlsdm_idempotency_hash *
NO_IDEMPOTENCY_HASH: Final = ffi.NULL
TOP_K_MAX: Final = 100
KEYS: Final = 0  # bucket tables
PEERS: Final = 1
ANY_TICKET: Final = 2**64 - 1


class Decision(NamedTuple):
    """A decision: the record of that name. `repeated` is 1 when it was made for an earlier event with the same key."""

    position: int
    sequence: int
    memory_id: int
    moral: float
    theta_before: float
    theta_after: float
    ema: float
    phase: int
    repeated: int


DecisionFields = tuple[int, int, int, float, float, float, float, int, int]  # of a Decision
_DECISION: Final = struct.Struct("<3Q4d2I")  # PERF: one unpack costs what two attributes of a cffi structure cost
assert _DECISION.size == ffi.sizeof("struct mlsdm_decision")
_new_tuple: Final = tuple.__new__  # PERF: Decision._make without its look at the length, which the format has fixed


@dataclass(frozen=True)
class Memory:
    """One memory, copied out of the block.

    `vector` float32-LE[dimension] bytes; times CLOCK_BOOTTIME in ns; phase 0 wake, 1 sleep.
    """

    id: int
    position: int
    time_ns: int
    moral: float
    norm: float
    phase: int
    vector: bytes
    payload: bytes


@dataclass(frozen=True)
class Match:
    """One memory that a recall found. `vector` and `payload` are None unless they were asked for."""

    id: int
    score: float
    moral: float
    time_ns: int
    phase: int
    payload: bytes | None
    vector: bytes | None


@dataclass(frozen=True)
class RecallResult:
    """What a recall found, best first, ties newer first; equal to brute force immediately after position `as_of`."""

    matches: list[Match]
    as_of: int
    scanned: int
    candidates: int
    attempts: int
    corrupt_id: int


class Store:
    """The block, as one thread of one process uses it."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self._map = block.map
        self._dimension = block.layout.dimension
        self._size = 4 * self._dimension  # bytes of a vector
        self._payload_size_max = block.layout.payload_size_max
        self._entry = ffi.new("struct mlsdm_entry *")
        self._decision = ffi.new("struct mlsdm_decision *")
        self._decision_bytes = ffi.buffer(self._decision)
        self._state = ffi.new("struct mlsdm_state *")
        self._levels = ffi.new("float[]", 3 * self._map.padded)
        self._norms = ffi.new("double[3]")
        self._count = ffi.new("uint32_t *")
        self._words = ffi.new("uint64_t[3]")

    # -- admission ---------------------------------------------------------------------------------------------------

    def admit(
        self, now_ns: int, moral: float, vector: Any, payload: bytes, key: IdempotencyHash = NO_IDEMPOTENCY_HASH
    ) -> Decision:
        """Decide one event and remember it when it is accepted.

        `vector` float32-LE[dimension] as a buffer, `payload` within its limit. An event with a `key` (`new_key`) that
        was decided before gets its first decision again, and nothing changes.
        Raises NotFinite, TooLong, Stopped, Reused, Exhausted, Busy, Corrupt, Lost, Unformed.
        """
        octets = vector if type(vector) is bytes else ffi.from_buffer("uint8_t[]", vector)
        assert len(octets) == self._size
        assert len(payload) <= self._payload_size_max
        status = lib.mlsdm_admit(self._map, now_ns, moral, octets, payload, len(payload), key, self._decision)
        if status != OK:
            raise_for(status)
        return _new_tuple(Decision, _DECISION.unpack(self._decision_bytes))

    def admit_batch(
        self,
        now_ns: int,
        morals: Any,
        vectors: Any,
        payloads: Sequence[bytes] | None,
        key: IdempotencyHash = NO_IDEMPOTENCY_HASH,
    ) -> tuple[list[DecisionFields], int]:
        """Decide events in order. `morals` float64[n] and `vectors` float32[n × dimension] are contiguous buffers.

        Returns (the fields of each Decision, status): when they are fewer than the events, `status` says what stopped
        the rest.
        """
        moral = ffi.from_buffer("double[]", morals)
        count = len(moral)
        floats = ffi.from_buffer("float[]", vectors)
        assert len(floats) == count * self._dimension
        decisions = ffi.new("struct mlsdm_decision[]", count)
        joined, ends = ffi.NULL, ffi.NULL
        if payloads is not None:
            assert len(payloads) == count
            assert all(len(payload) <= self._payload_size_max for payload in payloads)
            joined = b"".join(payloads)
            total = 0
            ends = ffi.new("uint64_t[]", [total := total + len(payload) for payload in payloads])
        status = lib.mlsdm_admit_batch(
            self._map, now_ns, count, moral, floats, joined, ends, key, decisions, self._count
        )
        return list(_DECISION.iter_unpack(ffi.buffer(decisions, self._count[0] * _DECISION.size))), status

    def check_vectors(self, vectors: Any, count: int) -> tuple[int, int]:
        """Return (status, index) of the first of `count` vectors that cannot be admitted; (OK, count) when all can."""
        floats = ffi.from_buffer("float[]", vectors)
        assert len(floats) == count * self._dimension
        status = lib.mlsdm_vectors_check(self._map, floats, count, self._count)
        return status, int(self._count[0])

    def forget(self, now_ns: int, memory_id: int) -> Entry:
        """Delete one memory for good. Raises Unknown, Gone, Busy, Corrupt."""
        status = lib.mlsdm_forget(self._map, now_ns, memory_id, self._entry)
        if status != OK:
            raise_for(status)
        return self._entry

    # -- reading -----------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return the committed state, valid until the next call of `state` or `levels`."""
        status = lib.mlsdm_state_read(self._map, self._state, ffi.NULL)
        if status != OK:
            raise_for(status)
        return self._state

    def levels(self) -> tuple[State, tuple[float, float, float]]:
        """Return the committed state and the norms of its three levels, at one position."""
        status = lib.mlsdm_state_read(self._map, self._state, self._levels)
        if status != OK:
            raise_for(status)
        lib.mlsdm_levels_norms(self._map, self._levels, self._norms)
        return self._state, (self._norms[0], self._norms[1], self._norms[2])

    def level_bytes(self) -> bytes:
        """Return the levels that the last call of `levels` read: float32-LE[3][padded dimension]."""
        return bytes(ffi.buffer(self._levels))

    def tallies(self) -> tuple[int, int, int]:
        """Return (accepted, rejected, position): what the workers' own counts sum up to."""
        words = self._words
        status = lib.mlsdm_tallies_read(self._map, words, words + 1, words + 2)
        if status != OK:
            raise_for(status)
        return int(words[0]), int(words[1]), int(words[2])

    def entries(self, first: int, count: int) -> tuple[Sequence[Entry], int]:
        """Return up to `count` log entries from position `first` on, and the oldest position still in reach.

        Raises Gone when `first` was overwritten, Unknown when it is more than one past the newest.
        """
        entries = ffi.new("struct mlsdm_entry[]", count)
        status = lib.mlsdm_entries_read(self._map, first, count, entries, self._count, self._words)
        if status != OK:
            raise_for(status)
        # A copy each: an element of a cffi array does not keep the array alive.
        return [ffi.new("struct mlsdm_entry *", entries[i]) for i in range(self._count[0])], int(self._words[0])

    def memory(self, memory_id: int) -> Memory:
        """Return one memory. Raises Unknown when the id was never given, Gone when it was overwritten or deleted."""
        slot = ffi.new("struct mlsdm_slot *")
        vector = ffi.new("float[]", self.block.layout.dimension)
        payload = ffi.new("uint8_t[]", self._map.payload_stride)
        status = lib.mlsdm_memory_read(self._map, memory_id, slot, vector, payload)
        if status != OK:
            raise_for(status)
        return Memory(
            slot.id, slot.position, slot.time_ns, slot.moral, slot.norm, slot.phase,
            bytes(ffi.buffer(vector)), bytes(ffi.buffer(payload, slot.payload_size)),
        )  # fmt: skip

    def check_slot(self, slot: int) -> tuple[bool, int]:
        """Return (True, 0) when what is visible in a physical slot fits its checksum, else (False, its memory id)."""
        sound = lib.mlsdm_slot_check(self._map, slot, self._words)
        return (True, 0) if sound else (False, int(self._words[0]))

    def repair_slot(self, slot: int) -> bool:
        """Put right what `check_slot` has found, where the bytes of the memory tell what it was: its deletion mark and
        its hint. Returns False when the bytes themselves are damaged: then it is to be forgotten.
        """
        status = lib.mlsdm_slot_repair(self._map, slot)
        if status not in (OK, CORRUPT):
            raise_for(status)
        return bool(status == OK)

    def find_damaged_chain(self, first: int, count: int) -> int | None:
        """Return the first of `count` chains of receipts, from `first` on, whose head is damaged."""
        found = int(lib.mlsdm_chains_check(self._map, first, count))
        return found if found < first + count else None

    def repair_chain(self, chain: int) -> bool:
        """Find the head of a chain again. Returns False while a receipt is damaged that it may have named."""
        status = lib.mlsdm_chain_repair(self._map, chain)
        if status not in (OK, CORRUPT):
            raise_for(status)
        return bool(status == OK)

    # -- rows --------------------------------------------------------------------------------------------------------

    def claim_row(self, owner: Identity) -> int:
        """Claim the first worker row that is free or whose owner is dead, and return its number.

        Raises Taken when there is none. The row's counters go on from where its last owner left them.
        """
        for number in range(self.block.layout.rows):
            row = self.block.region("rows", number)
            holder = Identity(int(row.pid), int(row.started))
            if holder != NOBODY and holder.alive:
                continue
            status = lib.mlsdm_row_claim(self._map, number, *holder, *owner)
            if status == OK:
                return number
            if status != TAKEN:
                raise_for(status)
        raise Taken("every worker row belongs to a live process")

    def release_row(self, row: int, owner: Identity) -> None:
        """Give a row back; the next worker continues its counters."""
        status = lib.mlsdm_row_claim(self._map, row, *owner, *NOBODY)
        if status != OK:
            raise_for(status)

    # -- the controller and those who ask something of it -------------------------------------------------------------

    def begin_epoch(self, now_ns: int, settings: Settings) -> Entry:
        """Take over as the controller; the first one forms the initial state from `settings`."""
        return self._controlled(lib.mlsdm_epoch_begin(self._map, now_ns, settings, self._entry))

    def tick(self, now_ns: int, epoch: int) -> Entry:
        """Take one step of the rhythm. Raises Stale when a newer controller has taken over."""
        return self._controlled(lib.mlsdm_tick(self._map, now_ns, epoch, self._entry))

    def apply_command(self, now_ns: int, epoch: int) -> Entry | None:
        """Carry out the pending command, if any; returns its log entry or None. Raises Stale."""
        entry = self._controlled(lib.mlsdm_command_apply(self._map, now_ns, epoch, self._entry))
        return entry if entry.position else None

    def write_vitals(self, epoch: int, vitals: Any) -> None:
        """Publish the controller's vitals and heartbeat. Raises Stale."""
        self._controlled(lib.mlsdm_vitals_write(self._map, epoch, vitals))

    def write_vitals_unlocked(self, predecessor: int, vitals: Any) -> None:
        """Publish them without the lock, where it is lost or the state is corrupt that names the epoch.

        `predecessor` is the pid that signed them before this controller began. Raises Stale when another has since.
        """
        self._controlled(lib.mlsdm_vitals_write_unlocked(self._map, predecessor, vitals))

    def _controlled(self, status: int) -> Entry:
        if status != OK:
            raise_for(status)
        return self._entry

    def post_command(
        self, kind: str, settings: Settings | None = None, configured: int = 0, after: int = ANY_TICKET
    ) -> int:
        """Leave a command for the controller; returns its ticket.

        `configured` is the checksum of the settings when the configuration asks for them. Raises Taken while another
        command is pending, and when one was carried out since ticket `after`.
        """
        status = lib.mlsdm_command_post(
            self._map, KINDS.index(kind), settings or ffi.NULL, configured, after, self._words
        )
        if status != OK:
            raise_for(status)
        return int(self._words[0])

    def command_pending(self) -> bool:
        """Return whether a command waits for the controller."""
        return bool(lib.mlsdm_command_pending(self._map))

    def withdraw_command(self, ticket: int) -> bool:
        """Take back a command; False when it was carried out meanwhile."""
        status = lib.mlsdm_command_withdraw(self._map, ticket)
        if status not in (OK, TAKEN):
            raise_for(status)
        return bool(status == OK)


class Recall(threading.local):
    """The working memory of a recall: allocated once for each thread that uses it, reused for every query.

    Thread-local, because a large store is scanned on the worker's pool, where two recalls may run at a time.
    """

    def __init__(self, block: Block) -> None:
        assert block.writable, "recall settles its answer under the lock"
        self._map = block.map
        self._dimension = block.layout.dimension
        self._bounds = ffi.new("float[]", block.layout.capacity + 1)
        self._vectors = ffi.new("float[]", TOP_K_MAX * self._dimension)
        self._payloads = ffi.new("uint8_t[]", TOP_K_MAX * block.map.payload_stride)
        self._matches = ffi.new("struct mlsdm_match[]", TOP_K_MAX)
        self._answer = ffi.new("struct mlsdm_recall_result *")
        self._query = ffi.new("struct mlsdm_query *")
        self._query.bounds = self._bounds

    def nearest(self, vector: Any, k: int, masks: tuple[int, int], payloads: bool, vectors: bool) -> RecallResult:
        """Return the k live memories nearest to `vector` (float32-LE[dimension] as a buffer), 1 ≤ k ≤ 100.

        `masks[p]` has bit t set when, while the rhythm is in phase p, memories tagged t match. Raises NotFinite,
        TooLong, Busy, Corrupt, Unformed.
        """
        assert 1 <= k <= TOP_K_MAX
        query = self._query
        query.vector = held = ffi.from_buffer("float[]", vector)
        query.k = k
        query.masks = masks
        query.vectors = self._vectors if vectors else ffi.NULL
        query.payloads = self._payloads if payloads else ffi.NULL
        status = lib.mlsdm_recall(self._map, query, self._matches, self._answer)
        del held
        if status != OK:
            raise_for(status)
        answer, stride = self._answer, self._map.payload_stride
        return RecallResult(
            [
                Match(
                    match.id, match.score, match.moral, match.time_ns, match.phase,
                    bytes(ffi.buffer(self._payloads + i * stride, match.payload_size)) if payloads else None,
                    bytes(ffi.buffer(self._vectors + i * self._dimension, 4 * self._dimension)) if vectors else None,
                )
                for i, match in ((i, self._matches[i]) for i in range(answer.count))
            ],
            answer.as_of, answer.scanned, answer.candidates, answer.attempts, answer.corrupt_id,
        )  # fmt: skip


class Bucket:
    """The token bucket of one client, in the table of KEYS or of PEERS.

    Any thread may use it: a route on the pool takes tokens, too.
    """

    __slots__ = ("_account", "_map")

    def __init__(self, block: Block, table: int, owner: int, interval_ns: int, burst: int) -> None:
        """`owner` has 64 bits, not all 0. One token comes every `interval_ns`, up to `burst` of them."""
        self._map = block.map
        self._account = ffi.new("struct mlsdm_account *", (owner, interval_ns, burst, table))

    def spend(self, now_ns: int, count: int) -> int:
        """Take `count` tokens, 1 ≤ count ≤ burst, or none; `now_ns` is CLOCK_BOOTTIME.

        Returns the time until the bucket is full again, in ns; or, negative, when none was taken, the time until they
        would all be there.
        """
        full_ns: int = lib.mlsdm_tokens_spend(self._map, self._account, now_ns, count)
        return full_ns

    def refund(self, count: int) -> None:
        """Return tokens that a request had taken which was refused after all."""
        lib.mlsdm_tokens_refund(self._map, self._account, count)


def new_settings(**values: Any) -> Settings:
    """Make a `settings` record; every field must be given."""
    settings = ffi.new("struct mlsdm_settings *")
    assert set(values) == {name for name, _ in ffi.typeof("struct mlsdm_settings").fields}
    for name, value in values.items():
        setattr(settings, name, value)
    return settings


def settings_checksum(settings: Settings) -> int:
    """Return what tells one `settings` record from another."""
    return int(lib.mlsdm_settings_checksum(settings))


def is_configured(state: State) -> bool:
    """Whether the settings in force are those that the configuration asked for last."""
    return bool(lib.mlsdm_settings_checksum(ffi.addressof(state, "settings")) == state.configured)


def new_idempotency_hash(words: tuple[int, int], body: int) -> IdempotencyHash:
    """Make a `key` record: 128 and 64 bits of keyed hashes."""
    return ffi.new("struct mlsdm_idempotency_hash *", {"words": words, "body": body})


def new_vitals() -> Any:
    """Make an empty `vitals` record."""
    return ffi.new("struct mlsdm_vitals *")

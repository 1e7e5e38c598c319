"""The store: what a process can do with the block, one method for each native call.

Invariants: every exception is one of `shm.errors`; after it the block is unchanged, unless the method says otherwise. A
record that a method returns is a view of the store's own buffer, valid until the next call that returns one of the same
kind; decisions are tuples, because the event path reads all of their fields at once.
Threading: a `Store` belongs to one thread of one process.
Perf: output buffers are allocated once, so that a call creates as few objects as possible.

Every `time_ns` is log time in ns UTC (`Block.log_time`); a `now_ns` is CLOCK_BOOTTIME in ns. No method reads a clock.
`shm/native/api.h` has the contract of each native function.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from shm._native import ffi, lib
from shm.block import Block
from shm.errors import CORRUPT, DIVERGED, GAP, GONE, OK, TAKEN, Diverged, Gap, Taken, raise_for
from shm.event import Event, NamespaceId
from shm.layout import KINDS
from shm.process import NOBODY, Identity
from shm.records import (
    NO_IDEMPOTENCY_HASH,
    Buffer,
    Cell,
    EntryPointer,
    EventPointer,
    FloatArray,
    IdempotencyHash,
    SettingsPointer,
    State,
    StatePointer,
    Terms,
    TermsPointer,
    VitalsPointer,
    difference_of,
)  # fmt: skip

ROWS_PER_READ: Final = 32  # of namespaces
ANY_TICKET: Final = 2**64 - 1  # for `post_command`: post whatever was carried out before


class Decision(NamedTuple):
    """The fields of `struct mlsdm_decision`. `repeated` is 1 for the decision of an earlier event with the same key."""

    position: int
    sequence: int
    memory_id: int
    time_ns: int
    moral: float
    theta_before: float
    theta_after: float
    ema: float
    phase: int
    flags: int
    repeated: int


DecisionFields = tuple[int, int, int, int, float, float, float, float, int, int, int]  # of a Decision
_DECISION: Final = struct.Struct("<3Qq4d2HI")  # PERF: one unpack costs as much as two attributes of a cffi structure
assert _DECISION.size == ffi.sizeof("struct mlsdm_decision")
_new_tuple: Final = tuple.__new__  # PERF: Decision._make without its check of the length, which the format determines


class Content(NamedTuple):
    """What a log entry wrote.

    `vector` is float32-LE[dimension] as bytes, `metadata` the encoded members, `members` their record as bytes (both
    empty without metadata), `own_id` UTF-8, empty without one.
    """

    vector: bytes
    payload: bytes
    metadata: bytes = b""
    members: bytes = b""
    own_id: bytes = b""


class LogPage(NamedTuple):
    """Log entries that were read.

    `oldest` is the oldest position that can still be read. `status` is OK; GONE: the first one was overwritten;
    CORRUPT: the one after `entries` is damaged.
    """

    entries: list[EntryPointer]
    oldest: int
    status: int


class Memory(NamedTuple):
    """One memory, copied out of the block.

    `vector` is float32-LE[dimension] as bytes, `time_ns` log time of the admission, `phase` 0 wake, 1 sleep.
    """

    id: int
    position: int
    time_ns: int
    moral: float
    norm: float
    phase: int
    vector: bytes
    payload: bytes


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
        self._norms = ffi.new("double[]", 3)
        self._count = ffi.new("uint32_t *")
        self._words = ffi.new("uint64_t[]", 3)
        self._bounds: FloatArray | None = None  # float32[slots], for events that ask for their duplicate
        self._slot = ffi.new("struct mlsdm_slot *")
        self._vector = ffi.new("float[]", self._dimension)
        self._vector_bytes = ffi.buffer(self._vector)
        self._payload = ffi.new("uint8_t[]", self._map.payload_stride)
        self._payload_bytes = ffi.buffer(self._payload)
        self._members = ffi.new("struct mlsdm_members *")
        self._content = ffi.new(
            "struct mlsdm_event *", {"vector": ffi.cast("uint8_t *", self._vector), "payload": self._payload}
        )
        self._log_id = block.log_id

    # -- admission ---------------------------------------------------------------------------------------------------

    def admit(
        self, time_ns: int, moral: float, vector: Buffer, payload: bytes, key: IdempotencyHash = NO_IDEMPOTENCY_HASH
    ) -> Decision:
        """Decide one event, and remember it if it is accepted.

        `moral` is 0 to 1, `vector` a contiguous buffer of float32-LE[dimension], `payload` at most `payload_size_max`
        bytes. If an event with the same `key` was decided before and its receipt is kept, return the first decision
        with `repeated` = 1; then nothing changes.
        Raises NotFinite, TooLong, Stopped, Reused, Exhausted, Unformed, Busy, Corrupt, Lost.
        """
        octets = vector if type(vector) is bytes else ffi.from_buffer("uint8_t[]", vector)
        assert len(octets) == self._size
        assert len(payload) <= self._payload_size_max
        status = lib.mlsdm_admit(self._map, time_ns, moral, octets, payload, len(payload), key, self._decision)
        if status != OK:
            raise_for(status)
        return _new_tuple(Decision, _DECISION.unpack(self._decision_bytes))

    def admit_event(self, time_ns: int, event: Event) -> Decision:
        """Decide one event that may have everything an event can have. The rest is as in `admit`.

        Raises Unknown if its namespace is not in use, Closing if that is being deleted, Invalid if its expiry has
        passed or it has both kinds of it, and what `admit` raises.
        """
        if event.pointer.dedupe:
            if self._bounds is None:
                self._bounds = ffi.new("float[]", self.block.layout.slots)
            event.pointer.bounds = self._bounds
        status = lib.mlsdm_admit_event(self._map, time_ns, event.pointer, self._decision)
        if status != OK:
            raise_for(status)
        return _new_tuple(Decision, _DECISION.unpack(self._decision_bytes))

    def supersede(
        self,
        time_ns: int,
        memory_id: int,
        moral: float,
        vector: Buffer,
        payload: bytes,
        *,
        key: IdempotencyHash = NO_IDEMPOTENCY_HASH,
    ) -> Decision:
        """Decide one event that takes the place of a memory if it is accepted. The rest is as in `admit`.

        Raises Unknown if the id was never given, Gone if the memory does not live, and what `admit` raises.
        """
        octets = vector if type(vector) is bytes else ffi.from_buffer("uint8_t[]", vector)
        assert len(octets) == self._size
        assert len(payload) <= self._payload_size_max
        status = lib.mlsdm_supersede(
            self._map, time_ns, memory_id, moral, octets, payload, len(payload), key, self._decision
        )
        if status != OK:
            raise_for(status)
        return _new_tuple(Decision, _DECISION.unpack(self._decision_bytes))

    def update(self, time_ns: int, memory_id: int, payload: bytes | None) -> EntryPointer:
        """Write a new version of a memory, with another payload, or with its own if that is None.

        Returns the log entry. Raises Unknown if the id was never given, Gone if the memory does not live; Unformed,
        Busy, Corrupt, Lost.
        """
        assert payload is None or len(payload) <= self._payload_size_max
        size = 0 if payload is None else len(payload)
        octets = ffi.NULL if payload is None else payload
        return self._entry_after(lib.mlsdm_update(self._map, time_ns, memory_id, octets, size, self._entry))

    def admit_batch(
        self,
        time_ns: int,
        morals: Buffer,
        vectors: Buffer,
        payloads: Sequence[bytes] | None,
        key: IdempotencyHash = NO_IDEMPOTENCY_HASH,
    ) -> tuple[list[DecisionFields], int]:
        """Decide n events in order; events of other processes may come between them.

        `morals` float64[n] and `vectors` float32[n × dimension] are contiguous buffers; `payloads` has n items or is
        None.
        Returns (the fields of each Decision, status). If they are fewer than n, `status` tells why the next event was
        not decided; the events before it stay decided. Raises nothing.
        """
        moral = ffi.from_buffer("double[]", morals)
        count = len(moral)
        floats = ffi.from_buffer("float[]", vectors)
        assert len(floats) == count * self._dimension
        decisions = ffi.new("struct mlsdm_decision[]", count)
        if payloads is None:
            status = lib.mlsdm_admit_batch(
                self._map, time_ns, count, moral, floats, ffi.NULL, ffi.NULL, key, decisions, self._count
            )
        else:
            assert len(payloads) == count
            assert all(len(payload) <= self._payload_size_max for payload in payloads)
            total = 0
            ends = ffi.new("uint64_t[]", [total := total + len(payload) for payload in payloads])
            status = lib.mlsdm_admit_batch(
                self._map, time_ns, count, moral, floats, b"".join(payloads), ends, key, decisions, self._count
            )
        return list(_DECISION.iter_unpack(ffi.buffer(decisions, self._count[0] * _DECISION.size))), status

    def check_vectors(self, vectors: Buffer, count: int) -> tuple[int, int]:
        """Return (status, index) of the first vector that cannot be admitted, (OK, count) if all can. Raises nothing.

        `vectors` is a contiguous buffer of float32[count × dimension]; the status is NOT_FINITE or TOO_LONG.
        """
        floats = ffi.from_buffer("float[]", vectors)
        assert len(floats) == count * self._dimension
        status = lib.mlsdm_vectors_check(self._map, floats, count, self._count)
        return status, self._count[0]

    def forget(self, time_ns: int, memory_id: int) -> EntryPointer:
        """Delete one memory because a client asked for it, and erase its bytes. Returns the log entry.

        Raises Unknown if the id was never given, Gone if the memory was overwritten, deleted or lost; Unformed, Busy,
        Corrupt, Lost.
        """
        return self._entry_after(lib.mlsdm_forget(self._map, time_ns, memory_id, self._entry))

    # -- entries of another block ------------------------------------------------------------------------------------

    def apply(self, log_id: str, entry: EntryPointer, content: Content | None) -> bool:
        """Apply an entry that was decided elsewhere, in the history `log_id`. Returns False if it was applied before.

        `content` is that of the memory that the entry wrote, None if it wrote none. Entries are applied one by one,
        beginning with the start; no other process makes transitions of this block.
        Raises Diverged if the history is another one or the entry does not follow from the state: the message names the
        field with both values. Raises Gap if entries before it are missing, Gone if its content is; NotFinite, TooLong,
        Busy, Corrupt, Lost.
        """
        if log_id != self._log_id:
            raise Diverged(f"log_id is {log_id}, this block has {self._log_id}")
        made, offset = self._entry, self._count
        status = lib.mlsdm_apply(self._map, entry, self._event_of(content) if content else ffi.NULL, made, offset)
        if status == DIVERGED:
            raise Diverged(f"position {entry.position}: {difference_of(entry, made, offset[0])}")
        if status == GAP:
            raise Gap(f"position {entry.position} is not the next one, which is {made.position}")
        if status != OK:
            raise_for(status)
        return bool(made.position)

    def _event_of(self, content: Content) -> EventPointer:
        """Return the record of a content, which is copied into the store's own buffers: valid until the next call.

        PERF: two buffers of the arguments would take 1 µs longer than their copy.
        """
        vector, payload, metadata, members, own_id = content
        assert len(vector) == self._size
        octets = payload + metadata + own_id
        assert len(octets) <= self._payload_size_max
        assert bool(members) == bool(metadata)
        event, payload_size = self._content, len(payload)
        self._vector_bytes[:] = vector
        self._payload_bytes[: len(octets)] = octets
        event.payload_size, event.metadata_size, event.own_id_size = payload_size, len(metadata), len(own_id)
        event.members = ffi.NULL
        if len(octets) > payload_size:
            event.metadata = self._payload + payload_size
            event.own_id = self._payload + payload_size + len(metadata)
        if members:
            ffi.memmove(self._members, members, len(members))
            event.members = self._members
        return event

    # -- reading -----------------------------------------------------------------------------------------------------

    def state(self) -> StatePointer:
        """Return the committed state, valid until the next call of `state` or `levels`.

        Raises Unformed, Corrupt, Busy, Lost.
        """
        status = lib.mlsdm_state_read(self._map, self._state, ffi.NULL)
        if status != OK:
            raise_for(status)
        return self._state

    def levels(self) -> tuple[StatePointer, tuple[float, float, float]]:
        """Return the committed state and the norms of levels 1 to 3, at one position. Raises as `state` does."""
        status = lib.mlsdm_state_read(self._map, self._state, self._levels)
        if status != OK:
            raise_for(status)
        lib.mlsdm_levels_norms(self._map, self._levels, self._norms)
        return self._state, (self._norms[0], self._norms[1], self._norms[2])

    def level_bytes(self) -> bytes:
        """Return the levels that the last call of `levels` read: float32-LE[3][padded dimension]."""
        return bytes(ffi.buffer(self._levels))

    def tallies(self) -> tuple[int, int, int]:
        """Return (accepted, rejected, position): the sums of the workers' own counts at one position.

        Raises Corrupt, Busy, Lost.
        """
        words = self._words
        status = lib.mlsdm_tallies_read(self._map, words, words + 1, words + 2)
        if status != OK:
            raise_for(status)
        return words[0], words[1], words[2]

    def entries(self, first: int, count: int) -> tuple[Sequence[EntryPointer], int]:
        """Return copies of up to `count` log entries from position `first` on, and the oldest position still readable.

        Raises Gone if `first` was overwritten, Unknown if it is more than one past the newest, Corrupt.
        """
        page = self.log_page(first, count)
        if page.status != OK:
            raise_for(page.status)
        return page.entries, page.oldest

    def log_page(self, first: int, count: int) -> LogPage:
        """Return what can be read of up to `count` log entries from position `first` on.

        Raises Unknown if `first` is more than one past the newest position, Corrupt if the commit word is damaged.
        """
        entries = ffi.new("struct mlsdm_entry[]", count)
        status = lib.mlsdm_entries_read(self._map, first, count, entries, self._count, self._words)
        oldest, copied = self._words[0], self._count[0]
        if not oldest:
            raise_for(status)
        # Each is copied once more: an element of a cffi array does not keep the array alive.
        read = [ffi.new("struct mlsdm_entry *", entries[i]) for i in range(copied)] if status != GONE else []
        return LogPage(read, oldest, status)

    def written(self, entry: EntryPointer) -> Content:
        """Return the content of the memory that a log entry wrote: its kind is decision or update, `slot` is not 0.

        Raises Gone if the memory was overwritten, or erased after it was deleted, updated or superseded; Corrupt if it
        is damaged.
        """
        status = lib.mlsdm_written_read(self._map, entry, self._slot, self._vector, self._payload, self._members)
        if status != OK:
            raise_for(status)
        slot, octets = self._slot, self._payload_bytes
        payload_end = slot.payload_size
        if not (slot.metadata_size or slot.own_id_size):  # PERF: the common case
            return Content(self._vector_bytes[:], octets[:payload_end])
        metadata_end = payload_end + slot.metadata_size
        return Content(
            self._vector_bytes[:], octets[:payload_end], octets[payload_end:metadata_end],
            bytes(ffi.buffer(self._members)) if slot.metadata_size else b"",
            octets[metadata_end : metadata_end + slot.own_id_size],
        )  # fmt: skip

    def memory(self, memory_id: int) -> Memory:
        """Return one memory.

        Raises Unknown if the id was never given, Gone if the memory was overwritten, deleted or lost; Unformed,
        Corrupt, Busy, Lost.
        """
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

    # -- namespaces --------------------------------------------------------------------------------------------------

    def create_namespace(self, time_ns: int, terms: TermsPointer) -> EntryPointer:
        """Create a namespace and return the log entry; its detail names the row.

        Raises Exists if a namespace has the name, NamespacesFull if no row can be given, Invalid if the share is above
        the limit or the capacity, Promised if the shares and pins of all would exceed the capacity; Unformed, Busy,
        Corrupt, Lost.
        """
        return self._entry_after(lib.mlsdm_namespace_create(self._map, time_ns, terms, self._entry))

    def change_namespace(self, time_ns: int, namespace: NamespaceId, terms: TermsPointer) -> EntryPointer:
        """Set other terms of a namespace, which is given by number and generation; the name stays.

        Raises Unknown if it is not in use, Closing, Invalid, Promised; Unformed, Busy, Corrupt, Lost.
        """
        return self._entry_after(lib.mlsdm_namespace_change(self._map, time_ns, *namespace, terms, self._entry))

    def close_namespace(self, time_ns: int, namespace: NamespaceId) -> EntryPointer:
        """Close a namespace: events of it are refused, and it has no reserved share.

        Raises Unknown if it is not in use, Closing if it is closed, Invalid for the default one; Unformed, Busy,
        Corrupt, Lost.
        """
        return self._entry_after(lib.mlsdm_namespace_close(self._map, time_ns, *namespace, self._entry))

    def free_namespace(self, time_ns: int, namespace: NamespaceId) -> EntryPointer:
        """Free the row of a closed namespace.

        Raises Unknown if it is not in use, Invalid if it is not closed, NotEmpty if it has memories; Unformed, Busy,
        Corrupt, Lost.
        """
        return self._entry_after(lib.mlsdm_namespace_free(self._map, time_ns, *namespace, self._entry))

    def reset_namespace(self, time_ns: int, namespace: NamespaceId) -> EntryPointer:
        """Reset the own governor of a namespace.

        Raises Unknown if it is not in use, Invalid if it shares the server's; Unformed, Busy, Corrupt, Lost.
        """
        return self._entry_after(lib.mlsdm_namespace_reset(self._map, time_ns, *namespace, self._entry))

    def namespaces(self) -> Iterator[tuple[Terms, Cell]]:
        """Yield terms and cell of each row of the table, used or free.

        ROWS_PER_READ rows are read at one position; the next ones at that position or a later one. The records are
        valid until the next pair is asked for. Raises Unformed, Corrupt, Busy, Lost.
        """
        terms, cells = ffi.new("struct mlsdm_terms[]", ROWS_PER_READ), ffi.new("struct mlsdm_cell[]", ROWS_PER_READ)
        rows = self.block.layout.namespaces
        for first in range(0, rows, ROWS_PER_READ):
            count = min(ROWS_PER_READ, rows - first)
            status = lib.mlsdm_namespaces_read(self._map, first, count, terms, cells)
            if status != OK:
                raise_for(status)
            yield from ((terms[i], cells[i]) for i in range(count))

    def repair_namespaces(self, first: int, count: int) -> int:
        """Check `count` rows of namespaces from `first` on. Returns how many had a damaged copy, which is repaired.

        `count` is at most ROWS_PER_READ: the lock is held for it. Raises Corrupt if both copies of a row are damaged,
        or the committed state; Busy, Lost.
        """
        status = lib.mlsdm_namespaces_check(self._map, first, count, self._count)
        if status != OK:
            raise_for(status)
        return self._count[0]

    # -- scrub and repair --------------------------------------------------------------------------------------------

    def check_slot(self, slot: int) -> tuple[bool, int]:
        """Return (True, 0) if a slot is sound, else (False, the id of its memory, 0 if there is none).

        Raises nothing. `slot` is an index, below `slots` of the layout.
        """
        sound = lib.mlsdm_slot_check(self._map, slot, self._words)
        return (True, 0) if sound else (False, self._words[0])

    def repair_slot(self, slot: int) -> bool:
        """Repair the marks of a slot: each from the other, both from the bytes of its memory.

        Returns False if the bytes themselves are damaged (then `lose` the memory), or the committed state.
        Raises Unformed, Busy, Lost.
        """
        return self._is_ok(lib.mlsdm_slot_repair(self._map, slot), otherwise=CORRUPT)

    def repair_links(self, first: int, count: int) -> bool:
        """Hold index and lists against `count` slots from `first` on. Returns whether they had to be made again.

        `count` is at most 32: the lock is held for it. Raises Unformed, Busy, Corrupt, Lost.
        """
        status = lib.mlsdm_links_check(self._map, first, count, self._count)
        if status != OK:
            raise_for(status)
        return bool(self._count[0])

    def lose(self, time_ns: int, memory_id: int) -> EntryPointer | None:
        """Enter a corrupt memory as lost and erase its bytes. Returns the log entry, None if the memory is sound.

        Raises as `forget` does.
        """
        entry = self._entry_after(lib.mlsdm_lose(self._map, time_ns, memory_id, self._entry))
        return entry if entry.position else None

    def find_damaged_chain(self, first: int, count: int) -> int | None:
        """Return the first of `count` chains of receipts, from `first` on, whose head is damaged.

        Returns None if all are sound. Raises nothing.
        """
        found = lib.mlsdm_chains_check(self._map, first, count)
        return found if found < first + count else None

    def repair_chain(self, chain: int) -> bool:
        """Repair the head of a chain from the ring of receipts.

        Returns False while a receipt that the head may have named is damaged too, or if the committed state is corrupt.
        Raises Busy, Lost.
        """
        return self._is_ok(lib.mlsdm_chain_repair(self._map, chain), otherwise=CORRUPT)

    # -- rows --------------------------------------------------------------------------------------------------------

    def claim_row(self, owner: Identity) -> int:
        """Claim the first worker row that is free or whose owner is dead, and return its number.

        The counters of the row continue from its last owner's. Raises Taken if every row has a live owner; Busy, Lost.
        """
        for row in range(self.block.layout.rows):
            holder = self.block.row_owner(row)
            if holder.alive:
                continue
            if self._is_ok(lib.mlsdm_row_claim(self._map, row, *holder, *owner), otherwise=TAKEN):
                return row
        raise Taken("every worker row belongs to a live process")

    def release_row(self, row: int, owner: Identity) -> None:
        """Release a row; the next worker continues its counters. Raises Taken if it is not `owner`'s; Busy, Lost."""
        status = lib.mlsdm_row_claim(self._map, row, *owner, *NOBODY)
        if status != OK:
            raise_for(status)

    # -- the controller ----------------------------------------------------------------------------------------------

    def begin_epoch(self, time_ns: int, settings: SettingsPointer) -> int:
        """Become the controller; the first one forms the initial state from `settings`. Returns the epoch.

        Raises Busy, Corrupt, Lost.
        """
        status = lib.mlsdm_epoch_begin(self._map, time_ns, settings, self._words)
        if status != OK:
            raise_for(status)
        return self._words[0]

    def tick(self, time_ns: int, epoch: int) -> EntryPointer:
        """Take one step of the rhythm. Returns the log entry.

        Raises Stale if a newer controller has taken over or the word of the epoch is damaged; Unformed, Busy, Corrupt,
        Lost.
        """
        return self._entry_after(lib.mlsdm_tick(self._map, time_ns, epoch, self._entry))

    def apply_command(self, time_ns: int, epoch: int) -> EntryPointer | None:
        """Carry out the pending command. Returns its log entry, None if nothing is pending.

        Raises Stale if a newer controller has taken over or the word of the epoch is damaged; Busy, Corrupt, Lost.
        """
        entry = self._entry_after(lib.mlsdm_command_apply(self._map, time_ns, epoch, self._entry))
        return entry if entry.position else None

    def write_vitals(self, epoch: int, vitals: VitalsPointer) -> None:
        """Publish the controller's vitals and heartbeat.

        Raises Stale if a newer controller has taken over or the word of the epoch is damaged; Busy, Corrupt, Lost.
        """
        status = lib.mlsdm_vitals_write(self._map, epoch, vitals)
        if status != OK:
            raise_for(status)

    def write_vitals_unlocked(self, predecessor: int, vitals: VitalsPointer) -> None:
        """Publish the vitals without the lock, for use when the lock is lost or the committed state is corrupt.

        `predecessor` is the pid of the controller that signed them before this one began. Raises Stale if another
        process has signed them since.
        """
        status = lib.mlsdm_vitals_write_unlocked(self._map, predecessor, vitals)
        if status != OK:
            raise_for(status)

    # -- the command slot --------------------------------------------------------------------------------------------

    def post_command(
        self, kind: str, settings: SettingsPointer | None = None, configured: int = 0, after: int = ANY_TICKET
    ) -> int:
        """Post a command for the controller and return its ticket.

        `kind` is configure, reset, stop or resume; `configured` is the checksum of the settings if they come from the
        configuration, else 0.
        Raises Taken if another command is pending, or one was carried out after ticket `after`; Busy, Corrupt, Lost.
        """
        status = lib.mlsdm_command_post(
            self._map, KINDS.index(kind), settings or ffi.NULL, configured, after, self._words
        )
        if status != OK:
            raise_for(status)
        return self._words[0]

    def command_pending(self) -> bool:
        """Return whether a command waits for the controller. Raises nothing."""
        return bool(lib.mlsdm_command_pending(self._map))

    def withdraw_command(self, ticket: int) -> bool:
        """Withdraw a command. Returns False if it was carried out before. Raises Busy, Corrupt, Lost."""
        return self._is_ok(lib.mlsdm_command_withdraw(self._map, ticket), otherwise=TAKEN)

    def _entry_after(self, status: int) -> EntryPointer:
        if status != OK:
            raise_for(status)
        return self._entry

    def _is_ok(self, status: int, otherwise: int) -> bool:
        """Return True for OK and False for the status `otherwise`; raise for every other one."""
        if status not in (OK, otherwise):
            raise_for(status)
        return status == OK


def settings_checksum(settings: SettingsPointer) -> int:
    """Return a checksum that tells one `settings` record from another."""
    return lib.mlsdm_settings_checksum(settings)


def is_configured(state: State) -> bool:
    """Return whether the settings in force are those that the configuration asked for last."""
    return lib.mlsdm_settings_checksum(ffi.addressof(state, "settings")) == state.configured

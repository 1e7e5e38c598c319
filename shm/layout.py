"""The layout of the shared block: one table of every shared byte, with its type, unit and only writer.

Owns: the format. The C structures, the typed stubs and docs/layout.md are generated from the records below; their
fingerprint in the header of each block keeps code and memory of different layouts apart.
Invariants: (1) each field has one writer: `lock` is the process that holds the mutex, `row` the worker that owns the
row, `creator` the arbiter that made the block, `anyone` a process that changes a token bucket by one compare-and-swap.
(2) A transition from position p to p + 1 writes only what no reader reads while the commit word is p; one 8-byte store
then publishes all of it. (3) Records carry a checksum, words that change by one store carry a check inside (`seal`).
(4) Little-endian, naturally aligned; records are multiples of 8 bytes, regions begin on a cache line of 64.
A new field is one line here. A change of meaning without a change of shape must bump LAYOUT_VERSION.
Rejected: NumPy structured arrays for writing (1 µs for each field update), `multiprocessing.shared_memory` (its
resource tracker unlinks a live segment when an attached process exits), a C header as the source (Python would have to
parse it).
docs/design/crash-safety.md says which fields change in place and how.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

LAYOUT_VERSION: Final = 11
MAGIC: Final = int.from_bytes(b"MLSDMBLK", "little")
CACHE_LINE: Final = 64
PAGE: Final = 4096
MEMBERS_MAX: Final = 16  # members of one memory's metadata
MEMBERS_ABREAST: Final = 4  # of one memory, in one cache line; element n · slots + slot has members 4n to 4n + 3
TOP_K_MAX: Final = 100  # matches of one recall; sizes its buffers, and is the limit of `top_k` (core/limits.py)

assert sys.byteorder == "little", "the block is little-endian; this machine is not"

# dtype → (size in bytes, C type)
DTYPES: Final = {
    "u1": (1, "uint8_t"),
    "u2": (2, "uint16_t"),
    "u4": (4, "uint32_t"),
    "u8": (8, "uint64_t"),
    "i8": (8, "int64_t"),
    "f4": (4, "float"),
    "f8": (8, "double"),
}


@dataclass(frozen=True)
class Field:
    """One field of a record.

    `dtype` is a key of DTYPES or the name of an earlier record; `count` > 1 makes an array.
    """

    name: str
    dtype: str
    unit: str
    meaning: str
    count: int = 1


class Record(NamedTuple):
    """A C structure. `size` is in bytes and asserted against the sum of its fields; `writer` is its only writer."""

    name: str
    size: int
    writer: str
    fields: tuple[Field, ...]


RECORDS: Final = (
    Record(
        "header",
        192,
        "creator",
        (
            Field("magic", "u8", "–", "MLSDMBLK"),
            Field("layout_version", "u4", "–", "LAYOUT_VERSION of the code that created the block"),
            Field("dimension", "u4", "floats", "length D of every vector"),
            Field("capacity", "u4", "memories", "memories kept, C; there are C + 1 + slack slots"),
            Field("payload_size_max", "u4", "bytes", "largest payload of a memory"),
            Field("log_capacity", "u4", "entries", "length of the log ring"),
            Field("rows", "u4", "rows", "worker rows"),
            Field("receipt_capacity", "u4", "receipts", "receipts that are kept"),
            Field("slack", "u4", "slots", "slots that stay free besides the spare one"),
            Field("namespaces", "u4", "rows", "rows of the table of namespaces"),
            Field("pins_max", "u4", "memories", "pinned memories at most"),
            Field("archivist_size", "u4", "bytes", "size of the region `archivist`"),
            Field("identity_size", "u4", "bytes", "size of the region `identity`"),
            Field("modules_size", "u4", "bytes", "size of the region `modules`"),
            Field("outbox_size", "u4", "bytes", "size of the region `outbox`"),
            Field("block_size", "u8", "bytes", "size of the whole block"),
            Field("created_wall_ns", "i8", "ns UTC, log time", "time of the creation: CLOCK_REALTIME then"),
            Field("created_boot_ns", "i8", "ns", "CLOCK_BOOTTIME then; log time advances with it"),
            Field(
                "boot_id",
                "u1",
                "–",
                "random identity of this block",
                16,
            ),
            Field(
                "log_id",
                "u1",
                "–",
                "random identity of the history; positions and ids are valid only together with it",
                16,
            ),
            Field(
                "secret", "u1", "–", "random and secret; keys the hashes of clients' names and of idempotency keys", 16
            ),
            Field("fingerprint", "u1", "–", "SHA-256 of the table and the sizes", 32),
            Field("checksum", "u8", "–", "checksum of the 168 bytes above"),
            Field("reserved", "u8", "–", "zero", 2),
        ),
    ),
    Record(
        "lock",
        256,
        "lock",
        (
            Field(
                "mutex",
                "u8",
                "–",
                "pthread_mutex_t: robust, process-shared, error-checking; never unmapped, never reused",
                8,
            ),
            Field("holder", "u8", "pid", "process in the section; 0 after it has left"),
            Field(
                "acquisitions", "u8", "count", "sections entered; with `holder` it tells a stuck lock from a busy one"
            ),
            Field("deaths", "u8", "count", "holders that died inside the section"),
            Field("rollbacks", "u8", "count", "unpublished transitions that were undone"),
            Field(
                "intent_position",
                "u8",
                "position",
                "position being prepared; changes in place are undone while it is commit + 1",
            ),
            Field(
                "intent_erase", "u8", "slot + 1", "slot of the memory being removed; 0 when nothing is left to erase"
            ),
            Field("intent_slot", "u8", "slot + 1", "slots whose marks are being changed; 0 for none", 2),
            Field("intent_mark", "u8", "mark", "the marks of those slots before the change", 2),
            Field("intent_row", "u8", "row", "row whose tally is being changed"),
            Field("intent_chain", "u8", "chain + 1", "chain whose head is being changed; 0 for none"),
            Field("intent_head", "u8", "sealed ordinal", "head of that chain before the change"),
            Field("intent_namespace", "u2", "row + 1", "namespaces that are being changed; 0 for none", 8),
            Field(
                "lost", "u8", "–", "LOST once the mutex was found irrecoverable; then its word does not name an owner"
            ),
            Field(
                "sampled_ns", "i8", "ns", "CLOCK_MONOTONIC at which the section was entered; 0 if it is not measured"
            ),
            Field("caches", "u8", "count", "odd while index and lists change; whoever finds it odd rebuilds them"),
            Field("rebuilds", "u8", "count", "times that index and lists were made again from the slots"),
            Field(
                "epoch",
                "u8",
                "sealed count",
                "number of the newest controller; an older one may not write, and none while the word is damaged",
            ),
            Field(
                "terms",
                "u8",
                "count",
                "rises before and after terms change: then a search of the table without the lock is out of date",
            ),
            Field("reserved", "u8", "–", "zero", 3),
        ),
    ),
    Record(
        "commit",
        64,
        "lock",
        (
            Field(
                "sealed",
                "u8",
                "sealed position",
                "newest committed position: the linearization point",
            ),
            Field("reserved", "u8", "–", "zero; the word has a cache line of its own", 7),
        ),
    ),
    Record(
        "scalars",
        64,
        "lock",
        (
            Field("theta", "f8", "moral value", "threshold"),
            Field("ema", "f8", "–", "exponential mean of accept = 1, reject = 0"),
            Field("phase", "u2", "0 wake, 1 sleep", "phase of the rhythm"),
            Field("flags", "u2", "bits", "1: an operator has stopped admissions"),
            Field("counter", "u4", "steps", "steps left in this phase"),
            Field("accepted", "u8", "events", "accepted in total"),
            Field("rejected", "u8", "events", "rejected in total; accepted + rejected is the newest sequence number"),
            Field("step", "u8", "steps", "steps of the rhythm in total"),
            Field("newest_id", "u8", "memory id", "newest memory id that was given; none is given twice"),
            Field("live", "u8", "memories", "memories that live"),
        ),
    ),
    Record(
        "settings",
        104,
        "lock",
        (
            Field("initial_threshold", "f8", "moral value", "threshold after a reset"),
            Field("min_threshold", "f8", "moral value", "lower bound; nothing below it is accepted"),
            Field("max_threshold", "f8", "moral value", "upper bound; everything from it on is accepted"),
            Field("dead_band", "f8", "–", "distance of ema from 0.5 within which the threshold rests"),
            Field("ema_alpha", "f8", "–", "weight of the newest decision in ema"),
            Field(
                "adaptation_rate", "f8", "moral value", "change of the threshold per decision outside of the dead band"
            ),
            Field("theta_l1", "f8", "norm", "gate from level 1 to level 2"),
            Field("theta_l2", "f8", "norm", "gate from level 2 to level 3"),
            Field("cycle_ns", "i8", "ns", "length of a step of the rhythm if time drives it"),
            Field("decay", "f4", "–", "1 − λ of levels 1 to 3", 3),
            Field("gain12", "f4", "–", "share that passes from level 1 to 2"),
            Field("gain23", "f4", "–", "share that passes from level 2 to 3"),
            Field("wake_duration", "u4", "steps", "length of the wake phase"),
            Field("sleep_duration", "u4", "steps", "length of the sleep phase"),
            Field("flags", "u2", "bits", "1: consolidation · 2: a step per decision · 4: gate by element"),
            Field("mode", "u2", "mode", "mode of the server's governor, see MODES"),
        ),
    ),
    Record(
        "state",
        256,
        "lock",
        (
            Field("position", "u8", "position", "position that published this buffer"),
            Field("scalars", "scalars", "", "the part that each log entry has before and after"),
            Field("settings", "settings", "", "settings in force"),
            Field("time_ns", "i8", "ns UTC, log time", "time of the transition; never goes back"),
            Field("ticket", "u8", "count", "newest command that was carried out"),
            Field("levels", "u8", "0 or 1", "level buffer of this state"),
            Field("levels_checksum", "u8", "–", "checksum of that buffer"),
            Field("receipts", "u8", "receipts", "receipts in total; also the newest ordinal"),
            Field("configured", "u8", "–", "checksum of the settings that the configuration asked for last"),
            Field("ticket_position", "u8", "position", "position that carried out the newest command"),
            Field("spare", "u8", "slot", "free slot that the next memory is written into"),
            Field("pinned", "u4", "memories", "memories that are pinned"),
            Field("promised", "u4", "memories", "sum over the namespaces: the larger of reserved share and pins"),
            Field("checksum", "u8", "–", "checksum of the bytes above"),
        ),
    ),
    Record(
        "tally",
        24,
        "lock",
        (
            Field(
                "position",
                "u8",
                "position",
                "position of the newest decision; the cell does not count while it is above the commit word",
            ),
            Field("accepted", "u8", "events", "decided by this row"),
            Field("rejected", "u8", "events", "decided by this row"),
        ),
    ),
    Record(
        "row",
        128,
        "row",
        (
            Field("pid", "u8", "pid", "owner, 0 if the row is free; changed under the lock"),
            Field("started", "u8", "ticks", "start time of the owner, because a pid is reused"),
            Field("heartbeat_ns", "i8", "ns", "CLOCK_BOOTTIME of the newest beat; four a second"),
            Field("connections", "u8", "connections", "connections that are open"),
            Field("requests", "u8", "requests", "requests answered by all owners of the row"),
            Field("lock_waits", "u8", "count", "sections that found the lock taken"),
            Field("lock_wait_ns", "u8", "ns", "sum of those waits"),
            Field("tally", "tally", "", "two cells; the newest one at or before the commit word counts", 2),
            Field("lock_holds", "u8", "count", "sections that were measured: one of 64"),
            Field("lock_hold_ns", "u8", "ns", "sum of the measured times in the section"),
            Field("reserved", "u8", "–", "zero"),
        ),
    ),
    Record(
        "governor",
        48,
        "lock",
        (
            Field("initial_threshold", "f8", "moral value", "threshold with which it begins, and after a reset"),
            Field("min_threshold", "f8", "moral value", "as in `settings`"),
            Field("max_threshold", "f8", "moral value", "as in `settings`"),
            Field("dead_band", "f8", "–", "as in `settings`"),
            Field("ema_alpha", "f8", "–", "as in `settings`"),
            Field("adaptation_rate", "f8", "moral value", "as in `settings`"),
        ),
    ),
    Record(
        "terms",
        168,
        "lock",
        (
            Field("position", "u8", "position", "position that wrote this copy"),
            Field("name", "u1", "–", "UTF-8, zeros behind it", 64),
            Field("generation", "u4", "count", "namespaces that the row has held, this one included"),
            Field("flags", "u4", "bits", "1: in use · 2: closing · 4: it has its own governor"),
            Field("limit", "u4", "memories", "its memories at most, 0 for no limit"),
            Field("reserved", "u4", "memories", "its memories that no other namespace can evict"),
            Field("ttl_ns", "i8", "ns", "lifetime of a memory whose event names none, 0 for ever"),
            Field("governor", "governor", "", "constants of its own governor, zero without one"),
            Field("mode", "u4", "mode", "mode of its own governor, see MODES"),
            Field("reserved0", "u4", "–", "zero"),
            Field("freed", "u8", "position", "position that freed the row, 0 if it was never used"),
            Field("checksum", "u8", "–", "checksum of the bytes above"),
        ),
    ),
    Record(
        "cell",
        72,
        "lock",
        (
            Field("position", "u8", "position", "position that wrote this copy"),
            Field("theta", "f8", "moral value", "threshold of its own governor, 0 without one"),
            Field("ema", "f8", "–", "exponential mean of its own governor, 0 without one"),
            Field("accepted", "u8", "events", "let through"),
            Field("rejected", "u8", "events", "not let through"),
            Field("evicted", "u8", "memories", "lost to the limit or to the capacity"),
            Field("live", "u8", "memories", "memories that are not freed"),
            Field("pinned", "u8", "memories", "of these, pinned"),
            Field("checksum", "u8", "–", "checksum of the bytes above"),
        ),
    ),
    Record(
        "namespace",
        512,
        "lock",
        (
            Field("cells", "cell", "", "two copies of what decisions change; see docs/design/namespaces.md", 2),
            Field("terms", "terms", "", "two copies of what an operator sets", 2),
            Field("reserved", "u8", "–", "zero", 4),
        ),
    ),
    Record(
        "vitals",
        200,
        "lock",
        (
            Field("heartbeat_ns", "i8", "ns", "CLOCK_BOOTTIME of the controller's newest round"),
            Field("controller_pid", "u8", "pid", "controller that wrote the vitals"),
            Field("controller_started", "u8", "ticks", "its start time"),
            Field("arbiter_pid", "u8", "pid", "parent of the controller"),
            Field("arbiter_started", "u8", "ticks", "its start time"),
            Field("memory_percent", "f8", "%", "memory used, of the container's limit or else of the host's memory"),
            Field("memory_available_mb", "f8", "MB", "memory left under that limit"),
            Field("memory_total_mb", "f8", "MB", "that limit"),
            Field("cpu_percent", "f8", "%", "CPU used, of the allowance; newest sample"),
            Field("cpu_percent_30s", "f8", "%", "CPU used, of the allowance; mean of 30 s"),
            Field("cpu_count", "f8", "cores", "CPU allowance"),
            Field("disk_percent", "f8", "%", "used of the working directory's file system"),
            Field("scrubbed", "u8", "slots", "slots that the scrub has checked"),
            Field("torn", "u8", "slots", "memories that the scrub has found corrupt and entered as lost"),
            Field("drift_episodes", "u8", "count", "times the threshold drifted"),
            Field("lock_kills", "u8", "count", "stuck lock holders that the controller has killed"),
            Field("late_steps", "u8", "steps", "steps of the rhythm that were skipped because they were late"),
            Field(
                "emergency",
                "u8",
                "bits",
                "reasons for which no event is decided. 1: corrupt · 2: lock lost · 4: memory full",
            ),
            Field("emergency_overruled", "u8", "bits", "reasons that an operator has overruled until their cause ends"),
            Field(
                "emergency_since_ns",
                "i8",
                "ns UTC, log time",
                "time at which the emergency began, 0 if there is none",
            ),
            Field("emergency_episodes", "u8", "count", "times that a reason came into force"),
            Field("drift", "u8", "bits", "drift that lasts. 1: at the minimum · 2: at the maximum · 4: the mean moved"),
            Field(
                "mended", "u8", "count", "damaged headers, marks of slots, links and heads of chains that were repaired"
            ),
            Field("service_bytes", "u8", "bytes", "proportional memory of all processes of the server"),
            Field(
                "epoch",
                "u8",
                "sealed count",
                "number of the newest controller, from which the next one counts if the word in `lock` is damaged",
            ),
        ),
    ),
    Record(
        "command",
        144,
        "lock",
        (
            Field(
                "ticket",
                "u8",
                "count",
                "newest command; pending while above the ticket of the state and not withdrawn; stored last",
            ),
            Field("withdrawn", "u8", "count", "newest ticket that was withdrawn"),
            Field("kind", "u8", "kind", "configure, reset, stop or resume"),
            Field("settings", "settings", "", "new settings of a configure"),
            Field(
                "configured",
                "u8",
                "–",
                "checksum of these settings if the configuration asks for them, 0 if an operator does",
            ),
            Field("checksum", "u8", "–", "checksum of the bytes above; if it does not match, nothing is pending"),
        ),
    ),
    Record(
        "slot",
        128,
        "lock",
        (
            Field("id", "u8", "memory id", "memory in this slot"),
            Field("position", "u8", "position", "position that wrote this slot: the version of the memory"),
            Field("admitted", "u8", "position", "position that admitted the memory; an update keeps it"),
            Field("queued", "u8", "position", "position since which it waits to be evicted; 0 while it is pinned"),
            Field(
                "time_ns",
                "i8",
                "ns UTC, log time",
                "first admission, or the time that the client named; what supersedes a memory keeps it",
            ),
            Field("updated_ns", "i8", "ns UTC, log time", "time of the transition that wrote this slot"),
            Field("moral", "f8", "moral value", "moral value of the event"),
            Field("norm", "f8", "–", "norm of its vector"),
            Field("expires_ns", "i8", "ns UTC, log time", "instant from which the memory is absent, 0 for none"),
            Field("own_id", "u8", "–", "keyed hash of namespace and own id, 0 0 without one", 2),
            Field("namespace", "u4", "row", "namespace of the memory"),
            Field("generation", "u4", "count", "generation of that namespace"),
            Field("payload_size", "u4", "bytes", "length of the payload"),
            Field("metadata_size", "u4", "bytes", "length of the metadata, which follow the payload"),
            Field("scorer", "u4", "version", "version of the scorer that made the moral value, 0 for none"),
            Field("own_id_size", "u2", "bytes", "length of the own id, which follows the metadata"),
            Field("phase", "u1", "0 wake, 1 sleep", "phase in which it was admitted"),
            Field("flags", "u1", "bits", "1: the moral value is a default"),
            Field(
                "mark",
                "u8",
                "mark",
                "since which position the memory lives or the slot is free; the opposite holds while that is above the "
                "commit word",
            ),
            Field(
                "checksum",
                "u8",
                "–",
                "checksum of vector, code, shadow, payload, metadata, own id, members, and the fields above but `mark`",
            ),
        ),
    ),
    Record(
        "code",
        24,
        "lock",
        (
            Field("scale", "f4", "–", "v ÷ |v| ≈ scale × codes"),
            Field("error", "f4", "–", "no less than the norm of what that approximation leaves out"),
            Field(
                "tag",
                "u4",
                "bits",
                "what the scan has to know of the slot's line: bit 0 the phase, bits 1 to 10 the namespace, 2^16 if it "
                "expires, 2^17 if it has metadata",
            ),
            Field("excluded", "u4", "–", "EXCLUDED if recall has found the memory damaged: scans leave it out"),
            Field("mark", "u8", "mark", "mark of the slot again"),
        ),
    ),
    Record(
        "kinds",
        16,
        "lock",
        (
            Field(
                "members",
                "u1",
                "–",
                "for each member of the metadata its kind (VALUES), and above these two bits the top six bits of the "
                "hash of its name; 0 behind the last",
                MEMBERS_MAX,
            ),
        ),
    ),
    Record(
        "member",
        16,
        "lock",
        (
            Field("name", "u8", "–", "keyed hash of the name"),
            Field("value", "u8", "–", "bits of the double, 0 or 1 for a boolean, keyed hash of a string"),
        ),
    ),
    Record(
        "members",
        272,
        "lock",
        (
            Field("kinds", "kinds", "", "as the region of this name has them"),
            Field("members", "member", "", "as the region of this name has them", MEMBERS_MAX),
        ),
    ),
    Record(
        "link",
        24,
        "lock",
        (
            Field("id", "u8", "memory id", "memory in the slot, again; 0 while the slot is free"),
            Field("next", "u4", "slot + 1", "next memory of this chain of the index, 0 for none"),
            Field("older", "u4", "slot + 1", "neighbour in the list, towards `oldest`; 0 for none"),
            Field("newer", "u4", "slot + 1", "neighbour in the list, towards `newest`; 0 for none"),
            Field("list", "u4", "list", "list that the slot is in: 0 the free slots, 1 the memories"),
        ),
    ),
    Record(
        "list",
        16,
        "lock",
        (
            Field("oldest", "u4", "slot + 1", "freed longest ago, or evicted next; 0 if the list is empty"),
            Field("newest", "u4", "slot + 1", "the other end"),
            Field("count", "u4", "slots", "slots in the list"),
            Field("reserved", "u4", "–", "zero"),
        ),
    ),
    Record(
        "entry",
        384,
        "lock",
        (
            Field("position", "u8", "position", "position of this entry; valid while at or before the commit word"),
            Field("kind", "u2", "kind", "see KINDS"),
            Field("flags", "u2", "bits", "1: the configuration asked for the settings of a configure, no operator did"),
            Field("row", "u4", "row", "row of the worker, NO_ROW for the controller"),
            Field("time_ns", "i8", "ns UTC, log time", "time of the transition"),
            Field("ticket", "u8", "count", "command that was carried out, 0 if the kind is none of a command"),
            Field("before", "scalars", "", "scalars before the transition"),
            Field("after", "scalars", "", "scalars after the transition"),
            Field("state", "u8", "–", "checksum of the state before the transition, 0 of a start"),
            Field(
                "detail",
                "u8",
                "–",
                "by kind: `regimes` of start and configure, `changed` of namespace, `decided` of the kinds that name a "
                "memory and of a reset of a namespace",
                26,
            ),
            Field("checksum", "u8", "–", "checksum of the bytes above"),
        ),
    ),
    Record(
        "decided",
        208,
        "lock",
        (
            Field("moral", "f8", "moral value", "moral value of the event; 0 of a lost memory"),
            Field("memory_id", "u8", "memory id", "memory that was admitted, deleted, lost or updated, else 0"),
            Field(
                "vector_checksum",
                "u8",
                "–",
                "checksum of the vector; of a lost memory that of its admission, 0 if the log does not hold it",
            ),
            Field("content", "u8", "–", "checksum of the slot that was written, 0 if none was"),
            Field("receipt", "u8", "ordinal", "ordinal of its receipt, 0 if it came without an idempotency key"),
            Field("victim_id", "u8", "memory id", "memory that went, 0 for none"),
            Field("slot", "u4", "slot + 1", "slot that was written, 0 for none"),
            Field("victim_slot", "u4", "slot + 1", "slot that became free, 0 for none"),
            Field("cause", "u4", "cause", "why the memory went, see CAUSES"),
            Field("victim_namespace", "u4", "row", "namespace of the memory that went, 0 for none"),
            Field(
                "flags",
                "u4",
                "bits",
                "1: judged · 2: verdict · 4: stored · 8: the moral value is a default · 16: pinned; to be done with a "
                "duplicate: 32 keep · 64 skip · 128 supersede; 256: the namespace has its own governor",
            ),
            Field("phase", "u4", "0 wake, 1 sleep", "tag of the memory"),
            Field("namespace", "u4", "row", "namespace that the transition is about"),
            Field("generation", "u4", "count", "its generation, 0 if the transition is about none"),
            Field("own_theta", "f8", "moral value", "threshold of its own governor before and after, 0 without one", 2),
            Field("own_ema", "f8", "–", "exponential mean of its own governor before and after, 0 without one", 2),
            Field("created_ns", "i8", "ns UTC, log time", "first admission of the memory, 0 if none was written"),
            Field("updated_ns", "i8", "ns UTC, log time", "time of this version of the memory, 0 if none was written"),
            Field("expires_ns", "i8", "ns UTC, log time", "instant from which the memory is absent, 0 for none"),
            Field("own_id", "u8", "–", "keyed hash of namespace and own id, 0 0 without one", 2),
            Field("key", "u8", "–", "keyed hash of client and idempotency key, 0 0 without one", 2),
            Field("body", "u8", "–", "keyed hash of the route and of the decoded events, 0 without a key"),
            Field("scorer", "u4", "version", "version of the scorer that made the moral value, 0 for none"),
            Field("key_id", "u4", "number", "number of the API key, 0 for none"),
            Field("duplicate_of", "u8", "memory id", "nearest memory, if it was near enough; 0 for none"),
            Field("duplicate_score", "f8", "cosine", "its score"),
            Field("reserved", "u8", "–", "zero"),
        ),
    ),
    Record(
        "regimes",
        208,
        "lock",
        (
            Field("replaced", "settings", "", "settings before a configure; of a start equal to `settings`"),
            Field("settings", "settings", "", "settings after it"),
        ),
    ),
    Record(
        "changed",
        208,
        "lock",
        (
            Field("namespace", "u4", "row", "namespace that the transition is about"),
            Field("step", "u4", "step", "what it did, see STEPS"),
            Field("own_theta", "f8", "moral value", "threshold of its own governor before and after, 0 without one", 2),
            Field("own_ema", "f8", "–", "exponential mean of its own governor before and after, 0 without one", 2),
            Field("terms", "terms", "", "terms after it; of a freed row those that it had"),
        ),
    ),
    Record(
        "decision",
        72,
        "lock",
        (
            Field("position", "u8", "position", "position that published it"),
            Field("sequence", "u8", "count", "number of the decision, without gaps"),
            Field("memory_id", "u8", "memory id", "memory that was admitted, 0 if the event was rejected"),
            Field("time_ns", "i8", "ns UTC, log time", "time of the decision"),
            Field("moral", "f8", "moral value", "moral value of the event"),
            Field("theta_before", "f8", "moral value", "threshold that decided the event, of the governor that judged"),
            Field("theta_after", "f8", "moral value", "threshold afterwards"),
            Field("ema", "f8", "–", "ema afterwards"),
            Field("phase", "u2", "0 wake, 1 sleep", "phase in which it was decided"),
            Field("flags", "u2", "bits", "1: judged · 2: verdict · 4: stored"),
            Field("repeated", "u4", "0 or 1", "1 if it was read from a receipt: decided earlier, not now"),
        ),
    ),
    Record(
        "receipt",
        120,
        "lock",
        (
            Field(
                "ordinal",
                "u8",
                "ordinal",
                "ordinal of this receipt; does not count while above `receipts` of the state",
            ),
            Field("key", "u8", "–", "keyed hash of client and idempotency key", 2),
            Field("body", "u8", "–", "keyed hash of the route and of the decoded events"),
            Field("previous", "u8", "ordinal", "ordinal of the next older receipt of this chain, 0 for none"),
            Field("decision", "decision", "", "the first decision"),
            Field("checksum", "u8", "–", "checksum of the bytes above"),
        ),
    ),
    Record(
        "bucket",
        16,
        "anyone",
        (
            Field("owner", "u8", "–", "keyed hash of the client's name, 0 if never used"),
            Field(
                "due_ns", "i8", "ns", "CLOCK_BOOTTIME at which the bucket is full again; it is full if that has passed"
            ),
        ),
    ),
)

# The kinds of log entries; the first of a block is a start. A client has asked for a delete; the scrub enters a corrupt
# memory as lost, which may be restored.
KINDS: Final = (
    "none", "decision", "tick", "configure", "reset", "delete", "stop", "resume", "start", "lost", "update",
    "restore", "expire", "namespace",
)  # fmt: skip
# The record in `detail` of an entry, by kind; the other kinds leave it zero.
DETAILS: Final = {
    "decision": "decided", "delete": "decided", "lost": "decided", "update": "decided", "start": "regimes",
    "configure": "regimes", "restore": "decided", "namespace": "changed",
    "reset": "decided",  # of a namespace
}  # fmt: skip
# The statuses of native calls. shm/errors.py has a class for each but ok, whose `message` is its meaning.
STATUSES: Final = (
    "ok", "busy", "stopped", "stale", "corrupt", "unknown", "gone", "unformed", "taken", "not_finite", "too_long",
    "lost", "reused", "exhausted", "closing", "exists", "changed", "invalid", "pins_full", "namespace_full", "no_room",
    "promised", "namespaces_full", "not_empty", "gap", "diverged",
)  # fmt: skip
# Why a memory went. core/reference/allocation.py has the same.
CAUSES: Final = ("none", "expired", "superseded", "updated", "limit", "capacity", "deleted", "lost")
# The kinds of values of metadata. An integer is a number, and has the bits of the double.
VALUES: Final = ("none", "number", "boolean", "string")
TAG_EXPIRES: Final = 1 << 16  # of the tag in a code line; so is the next
TAG_MEMBERS: Final = 1 << 17
MODES: Final = ("enforce", "shadow", "off")  # of a governor; core/reference/namespace.py has the same
STEPS: Final = ("none", "create", "change", "close", "free")  # of an entry of kind namespace
NAMESPACES_MAX: Final = 1_024  # rows of the table at most: a tag has ten bits for the number
LISTS: Final = 2  # the free slots, and the memories in the order in which they are evicted
NO_ROW: Final = 0xFFFF_FFFF
UNLIMITED: Final = 0xFFFF_FFFF  # pins: any memory may be pinned
BUCKET_WAYS: Final = 8  # buckets that one client may have: two cache lines
KEY_BUCKETS: Final = 8_192  # eight for each key that a key file may list
PEER_BUCKETS: Final = 65_536
# Regions that belong to the processes of a block. The others belong to its history: docs/design/follower.md.
OWN_REGIONS: Final = (
    "header", "lock", "vitals", "command", "rows", "keys", "peers", "archivist", "identity", "modules", "outbox",
)  # fmt: skip
LOST: Final = int.from_bytes(b"LOCKLOST", "little")
EXCLUDED: Final = int.from_bytes(b"EXCL", "little")
FLAG_CONFIGURED: Final = 1  # of an entry
FLAG_STOPPED: Final = 1
FLAG_CONSOLIDATION: Final = 1
FLAG_EVENTS_CLOCK: Final = 2
FLAG_ELEMENT_GATE: Final = 4
NAMESPACE_USED: Final = 1
NAMESPACE_CLOSING: Final = 2
NAMESPACE_OWN: Final = 4
DECIDED_JUDGED: Final = 1
DECIDED_VERDICT: Final = 2
DECIDED_STORED: Final = 4
DECIDED_DEFAULTED: Final = 8
DECIDED_PINNED: Final = 16
DECIDED_KEEP: Final = 32
DECIDED_SKIP: Final = 64
DECIDED_SUPERSEDE: Final = 128
DECIDED_OWN: Final = 256
EMERGENCY_CORRUPT: Final = 1
EMERGENCY_LOST: Final = 2
EMERGENCY_MEMORY: Final = 4


def seal(position: int) -> int:
    """Return the sealed word of a position or ordinal below 2^48: the number, with a check of it in the top 16 bits.

    shm/native/block.h has the reasons.
    """
    assert 0 <= position < 2**48
    return position | (position * 0x9E3779B97F4A7C15 % 2**64) >> 48 << 48


def live_since(position: int) -> int:
    """Return the mark of a slot whose memory was published at `position`."""
    return seal(2 * position)


def free_since(position: int) -> int:
    """Return the mark of a slot that became free at `position`, 0 if it was never used."""
    return seal(2 * position + 1)


_RECORD: Final = {record.name: record for record in RECORDS}


def size_of(dtype: str) -> int:
    """Return the size in bytes of a scalar dtype or a record."""
    return DTYPES[dtype][0] if dtype in DTYPES else _RECORD[dtype].size


def offsets(record: Record) -> Iterator[tuple[Field, int]]:
    """Yield each field with its offset in bytes. Asserts natural alignment."""
    offset = 0
    for field in record.fields:
        size = size_of(field.dtype)
        assert offset % min(size, 8) == 0, f"{record.name}.{field.name} is not aligned"
        yield field, offset
        offset += size * field.count


for _record in RECORDS:
    _end = sum(size_of(field.dtype) * field.count for field in _record.fields)
    assert _end == _record.size, f"{_record.name}: fields take {_end} bytes, the table says {_record.size}"
    assert _record.size % 8 == 0, f"{_record.name} is not a multiple of 8 bytes"
    assert len(list(offsets(_record))) == len(_record.fields)


@dataclass(frozen=True)
class Region:
    """A run of `count` elements of `stride` bytes at `offset` from the start of the block."""

    name: str
    offset: int
    stride: int
    count: int
    writer: str

    @property
    def size(self) -> int:
        """Bytes of the region, without the padding behind it."""
        return self.stride * self.count


# In this order in memory, and in this order in the native core's table of offsets.
REGIONS: Final = (
    "header", "lock", "commit", "states", "levels", "vitals", "command", "rows", "namespaces",
    "slots", "codes", "shadow", "vectors", "payloads", "kinds", "members", "links", "lists", "index", "log", "receipts",
    "chains", "keys", "peers", "archivist", "identity", "modules", "outbox",
)  # fmt: skip


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


class Layout(NamedTuple):
    """The sizes of a block. With the table they determine everything else about it."""

    dimension: int
    capacity: int
    payload_size_max: int
    log_capacity: int
    rows: int
    receipt_capacity: int
    slack: int = 0
    namespaces: int = NAMESPACES_MAX
    pins_max: int = UNLIMITED
    archivist_size: int = 0
    identity_size: int = 0
    modules_size: int = 0
    outbox_size: int = 0

    @property
    def slots(self) -> int:
        """Slots of the block. One is spare: a half-written slot is never a visible one."""
        return self.capacity + 1 + self.slack

    @property
    def index_size(self) -> int:
        """Chains of the index: a power of two, no less than the slots."""
        return 1 << (self.slots - 1).bit_length()

    @property
    def vector_stride(self) -> int:
        """Bytes of one float32 vector, padded with zeros to a cache line: 16 floats."""
        return _round_up(self.dimension * 4, CACHE_LINE)

    @property
    def shadow_stride(self) -> int:
        """Bytes of one int8 shadow, padded with zeros to 16. The scan reads it and the 16-byte code of each memory."""
        return _round_up(self.dimension, 16)

    @lru_cache(maxsize=16)  # noqa: B019  (a layout is a few numbers) PERF: 0.1 ms, and the controller asks fifty times a second
    def regions(self) -> tuple[Region, ...]:
        """Return the regions in memory order. Lock and commit word have their own pages; slots begin on one."""
        slots = self.slots
        assert slots < 2**20, "references to slots have 20 bits"
        assert self.namespaces <= NAMESPACES_MAX
        shapes = {
            "header": (_RECORD["header"].size, 1, "creator"),
            "lock": (_RECORD["lock"].size, 1, "lock"),
            "commit": (_RECORD["commit"].size, 1, "lock"),
            "states": (_RECORD["state"].size, 2, "lock"),
            "levels": (3 * self.vector_stride, 2, "lock"),
            "vitals": (_RECORD["vitals"].size, 1, "lock"),
            "command": (_RECORD["command"].size, 1, "lock"),
            "rows": (_RECORD["row"].size, self.rows, "row"),
            "namespaces": (_RECORD["namespace"].size, self.namespaces, "lock"),
            "slots": (_RECORD["slot"].size, slots, "lock"),
            "codes": (_RECORD["code"].size, slots, "lock"),
            "shadow": (self.shadow_stride, slots, "lock"),
            "vectors": (self.vector_stride, slots, "lock"),
            "payloads": (_round_up(self.payload_size_max, 8), slots, "lock"),
            "kinds": (_RECORD["kinds"].size, slots, "lock"),
            "members": (
                MEMBERS_ABREAST * _RECORD["member"].size,
                MEMBERS_MAX // MEMBERS_ABREAST * slots,
                "lock",
            ),
            "links": (_RECORD["link"].size, slots, "lock"),
            "lists": (_RECORD["list"].size, LISTS, "lock"),
            "index": (4, self.index_size, "lock"),
            "log": (_RECORD["entry"].size, self.log_capacity, "lock"),
            "receipts": (_RECORD["receipt"].size, self.receipt_capacity + 1, "lock"),  # one spare
            "chains": (8, self.receipt_capacity, "lock"),
            "keys": (_RECORD["bucket"].size, KEY_BUCKETS, "anyone"),
            "peers": (_RECORD["bucket"].size, PEER_BUCKETS, "anyone"),
            # Reserved for supervised children: zero bytes unless the layout asks for more.
            "archivist": (_round_up(self.archivist_size, 8), 1, "child"),
            "identity": (_round_up(self.identity_size, 8), 1, "child"),
            "modules": (_round_up(self.modules_size, 8), 1, "child"),
            "outbox": (_round_up(self.outbox_size, 8), 1, "child"),
        }
        assert tuple(shapes) == REGIONS
        placed = []
        offset = 0
        for name, (stride, count, writer) in shapes.items():
            offset = _round_up(offset, PAGE if name in ("lock", "commit", "states", "slots") else CACHE_LINE)
            placed.append(Region(name, offset, stride, count, writer))
            offset += stride * count
        return tuple(placed)

    @property
    def block_size(self) -> int:
        """Bytes of the whole block, whole pages."""
        last = self.regions()[-1]
        return _round_up(last.offset + last.size, PAGE)

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of the table without its descriptions, and of these sizes."""
        table = [
            (
                record.name,
                record.size,
                record.writer,
                [(field.name, field.dtype, field.count) for field in record.fields],
            )
            for record in RECORDS
        ]
        return hashlib.sha256(
            repr((LAYOUT_VERSION, table, KINDS, CAUSES, VALUES, MODES, STEPS, tuple(self), self.regions())).encode()
        ).digest()


class Place(NamedTuple):
    """A scalar in a record: its dotted name, its dtype, its offset in bytes."""

    name: str
    dtype: str
    offset: int


def place_in(record: str, offset: int, details: str = "") -> Place:
    """Return the scalar at a byte of a record. `details` is the record that its field `detail` holds, if it has one."""
    field, start = next(
        (field, start)
        for field, start in offsets(_RECORD[record])
        if offset < start + size_of(field.dtype) * field.count
    )
    if field.name == "detail" and details:
        inner, prefix = details, ""
    elif field.dtype in DTYPES:
        index, size = (offset - start) // size_of(field.dtype), size_of(field.dtype)
        return Place(f"{field.name}[{index}]" if field.count > 1 else field.name, field.dtype, start + index * size)
    else:
        inner, prefix = field.dtype, f"{field.name}."
    found = place_in(inner, offset - start)
    return Place(prefix + found.name, found.dtype, start + found.offset)


def declarations() -> str:
    """Return the C declarations of the table, in a form that cffi reads, too. The native core has no others."""
    lines = []
    for record in RECORDS:
        lines.append(f"struct mlsdm_{record.name} {{")
        for field in record.fields:
            ctype = DTYPES[field.dtype][1] if field.dtype in DTYPES else f"struct mlsdm_{field.dtype}"
            lines.append(f"    {ctype} {field.name}{f'[{field.count}]' if field.count > 1 else ''};")
        lines.append("};")
    for prefix, names in (
        ("REGION", REGIONS),
        ("KIND", KINDS),
        ("STATUS", STATUSES),
        ("CAUSE", CAUSES),
        ("MODE", MODES),
        ("VALUE", VALUES),
        ("STEP", STEPS),
    ):
        members = ", ".join(f"MLSDM_{prefix}_{name.upper()} = {number}" for number, name in enumerate(names))
        lines.append(f"enum mlsdm_{prefix.lower()} {{ {members} }};")
    lines.append(f"#define MLSDM_REGIONS {len(REGIONS)}")
    constants = (
        "FLAG_CONFIGURED", "FLAG_STOPPED", "FLAG_CONSOLIDATION", "FLAG_EVENTS_CLOCK", "FLAG_ELEMENT_GATE",
        "EMERGENCY_CORRUPT", "EMERGENCY_LOST", "EMERGENCY_MEMORY", "BUCKET_WAYS", "LOST", "EXCLUDED", "LISTS",
        "TOP_K_MAX", "MEMBERS_MAX", "MEMBERS_ABREAST", "TAG_EXPIRES", "TAG_MEMBERS", "NAMESPACES_MAX",
        "NAMESPACE_USED", "NAMESPACE_CLOSING", "NAMESPACE_OWN", "DECIDED_JUDGED", "DECIDED_VERDICT", "DECIDED_STORED",
        "DECIDED_DEFAULTED", "DECIDED_PINNED", "DECIDED_KEEP", "DECIDED_SKIP", "DECIDED_SUPERSEDE",
        "DECIDED_OWN",
    )  # fmt: skip
    lines += [f"#define MLSDM_{name} {globals()[name]}" for name in constants]
    return "\n".join(lines) + "\n"


def assertions() -> str:
    """Return C assertions that the compiler gives every structure the size and the offsets of the table."""
    lines = []
    for record in RECORDS:
        lines.append(f'_Static_assert(sizeof(struct mlsdm_{record.name}) == {record.size}, "{record.name}");')
        for field, offset in offsets(record):
            lines.append(
                f"_Static_assert(offsetof(struct mlsdm_{record.name}, {field.name}) == {offset},"
                f' "{record.name}.{field.name}");'
            )
    return "\n".join(lines) + "\n"

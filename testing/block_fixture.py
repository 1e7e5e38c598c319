"""Block fixture: a small block with its first state, events for it, and a witness that compares it with the reference.

`Formed` is a real block; this process owns one of its rows. Events come from a `Pool` in which the moral value
determines the vector, so that the log alone (which holds moral values, but no vectors) determines the content of every
slot. `Witness` follows the log with the reference model and compares everything in the block with it: scalars and
levels to the last bit, tallies, checksums, the number of live memories.

Child processes are plain forks: the tests are about shared memory when processes meet or die.
"""

import ctypes
import errno
import os
import random
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Self

import numpy as np

from core.namespaces import NamespaceId, Namespaces
from core.reference.governor import Governor
from core.reference.log_replay import Model, Scalars
from core.reference.synapse import Synapse
from core.reference.vector import Vector
from core.regime import Regime
from core.settings.config import Config
from shm import process
from shm._native import ffi
from shm.block import Block, BlockIdentity
from shm.errors import Gone, Unknown
from shm.layout import DECIDED_JUDGED, DECIDED_STORED, DECIDED_VERDICT, KINDS, NO_ROW, Layout
from shm.numpy_views import view
from shm.records import (
    NO_IDEMPOTENCY_HASH,
    Entry,
    EntryPointer,
    IdempotencyHash,
    SettingsPointer,
    decided_of,
    new_idempotency_hash,
    new_settings,
)
from shm.store import Decision, Store
from testing.eventually import eventually

SMALL: Final = Layout(dimension=16, capacity=50, payload_size_max=64, log_capacity=4096, rows=4, receipt_capacity=16)
REGIME: Final = Regime.of(Config())
NORM_MAX: Final = 1e6
_libc = ctypes.CDLL(None)
WAIT_MS: Final = 2000  # for the lock: far above the delay of a section on a loaded machine


class Formed:
    """A block with its first state. Log time is the test's: it starts at a random time and moves with each `now()`."""

    def __init__(
        self,
        layout: Layout = SMALL,
        regime: Regime = REGIME,
        wait_ms: int = WAIT_MS,
        identity: BlockIdentity | None = None,
    ) -> None:
        self.started_ns = self._time_ns = random.randrange(10**18)
        self.booted_ns = self.started_ns - random.randrange(10**17)
        self.regime = regime
        boot_ns = self.started_ns - self.booted_ns
        self.block = Block.create(layout, identity or BlockIdentity.new(), self.started_ns, boot_ns)
        self.block.bind(os.getpid(), NO_ROW, wait_ms, NORM_MAX)
        self.wait_ms = wait_ms
        self.store = Store(self.block)
        self.epoch = self.store.begin_epoch(self.now(), regime.to_record())
        self.pool = Pool(layout.dimension)
        self.be(0)

    def now(self) -> int:
        """Return a log time in ns UTC, 1 µs later than the last one."""
        self._time_ns += 1000
        return self._time_ns

    def boot_now(self) -> int:
        """Return what CLOCK_BOOTTIME is, in ns, at the next log time."""
        return self.now() - self.booted_ns

    def be(self, row: int) -> None:
        """Bind the block to this process as the owner of `row`: after a fork, or to act as another process."""
        self.block.bind(os.getpid(), row, self.wait_ms, NORM_MAX)

    def admit(self, number: int, payload: bytes = b"") -> EntryPointer:
        """Admit event `number` of the pool. Returns a copy of its log entry."""
        return self.entry(self.decide(number, payload).position)

    def decide(self, number: int, payload: bytes = b"", key: IdempotencyHash = NO_IDEMPOTENCY_HASH) -> Decision:
        """Admit event `number` of the pool. Returns its decision, which with a key may be an earlier one."""
        moral, vector = self.pool.event(number)
        return self.store.admit(self.now(), moral, vector, payload, key)

    def entry(self, position: int) -> EntryPointer:
        """Return a copy of a log entry."""
        return self.store.entries(position, 1)[0][0]

    def accept(self, number: int = 0, payload: bytes = b"") -> int:
        """Admit an event that no threshold rejects. Returns its memory id."""
        return self.admit(950_000 + number % 50_000, payload).after.newest_id

    def apply(self, kind: str, regime: Regime | None = None) -> EntryPointer:
        """Post a command and carry it out at once. Returns a copy of its log entry."""
        self.store.post_command(kind, regime.to_record() if regime else None)
        entry = self.store.apply_command(self.now(), self.epoch)
        assert entry
        return copied(entry)

    def live_ids(self) -> list[int]:
        """Return the ids of all live memories."""
        found = []
        for memory_id in sorted({int(self.block.region("slots", slot).id) for slot in range(self.block.layout.slots)}):
            try:
                found.append(self.store.memory(memory_id).id)
            except (Gone, Unknown):  # Unknown: the slot was never used, or its event was never published
                continue
        return found

    def slot_of(self, memory_id: int) -> int:
        """Return the slot in which a memory is, or was if it has not been overwritten: the newest version of it."""
        slots = [slot for slot in range(self.block.layout.slots) if self.block.region("slots", slot).id == memory_id]
        return max(slots, key=lambda slot: int(self.block.region("slots", slot).position))

    def region_bytes(self, name: str) -> tuple[int, int]:
        """Return (offset, size) of a region in the block."""
        region = next(region for region in self.block.layout.regions() if region.name == name)
        return region.offset, region.size

    def close(self) -> None:
        """Close the block. Its mapping ends with the last object that refers to it."""
        self.block.close()
        del self.block, self.store


class Pool:
    """Events by number, 0 … 10⁶: the moral value is number ÷ 10⁶, the vector follows from it."""

    def __init__(self, dimension: int, count: int = 512) -> None:
        vectors = np.random.default_rng(20251122).standard_normal((count, dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = vectors
        self.vectors[1::7] = self.vectors[::7][: len(self.vectors[1::7])]  # ties
        self.vectors[3::50] = 0

    def event(self, number: int) -> tuple[float, Vector]:
        """Return (moral value, float32[D])."""
        return number / 1_000_000, self.vectors[number % len(self.vectors)]

    def index_of(self, moral: float) -> int:
        """Return which of the pool's vectors came with a moral value."""
        return round(moral * 1_000_000) % len(self.vectors)

    def vector_of(self, moral: float) -> Vector:
        """Return the vector that came with a moral value."""
        vector: Vector = self.vectors[self.index_of(moral)]
        return vector


class Witness:
    """Follows one block's log from its first entry on. `check` proves everything since the last check."""

    def __init__(self, formed: Formed) -> None:
        self.formed = formed
        self.model: Model | None = None
        self.vectors: dict[int, Vector] = {}
        self.decisions = 0
        self.counts: Counter[tuple[NamespaceId, bool]] = Counter()  # of decisions, and whether they were let through
        self.receipts = 0
        self.promised: deque[Decision] = deque(maxlen=formed.block.layout.receipt_capacity)

    def check(self) -> None:
        """Compare the block with a replay of its log. No process may write meanwhile."""
        formed, store, layout = self.formed, self.formed.store, self.formed.block.layout
        state, _ = store.levels()
        levels = view(formed.block, "levels")[state.levels]
        regime = Regime.of_record(state.settings)
        at = self.model.position + 1 if self.model else 1
        while at <= state.position:
            page, _ = store.entries(at, 1000)
            for entry in page:
                self._follow(entry, regime)
            at += len(page)
        model = self.model
        assert model is not None
        assert model.position == state.position
        assert model.scalars == Scalars.of(state.scalars)
        assert model.levels is not None
        assert [level.tobytes() for level in model.levels] == [level.tobytes() for level in levels]
        assert store.tallies() == (model.accepted, model.rejected, model.position)
        assert self.decisions == model.accepted + model.rejected
        self._check_namespaces(model)
        assert [(True, 0)] * layout.slots == [store.check_slot(slot) for slot in range(layout.slots)]
        assert model.live == len(formed.live_ids())
        assert self.receipts == state.receipts
        if formed.block.map.wait_ms:  # an observer cannot take the lock
            assert not store.repair_links(0, layout.slots)
            self._retry()

    def _check_namespaces(self, model: Model) -> None:
        """Hold the rows against the log: their counts and their own governors."""
        rows = Namespaces(self.formed.block, self.formed.store).all()
        for row in rows:
            assert (self.counts[row.id, True], self.counts[row.id, False]) == (row.accepted, row.rejected)
        assert model.live == sum(row.memories for row in rows)
        own = {row.id: Governor(row.theta, row.ema) for row in rows if row.theta is not None and row.ema is not None}
        assert {namespace: one.governor for namespace, one in model.own.items()} == own

    def _retry(self) -> None:
        """Send every event again whose receipt must be kept: each gets its first decision."""
        formed, position = self.formed, int(self.formed.store.state().position)
        places = view(formed.block, "receipts")
        nothing = np.zeros(formed.block.layout.dimension, np.float32)
        for ordinal, first in zip(range(self.receipts, 0, -1), reversed(self.promised), strict=False):
            receipt = places[ordinal % (formed.block.layout.receipt_capacity + 1)]
            assert ordinal == receipt["ordinal"]
            first_key, second_key = receipt["key"].tolist()
            key = new_idempotency_hash((first_key, second_key), int(receipt["body"]))
            assert first._replace(repeated=1) == formed.store.admit(formed.now(), 0.0, nothing, b"", key)
        assert position == formed.store.state().position

    def _follow(self, entry: Entry, regime: Regime) -> None:
        """Apply one entry. `regime` is in force at every position: tests that configure replay the log as a whole."""
        decided = decided_of(entry)
        if entry.kind == KINDS.index("decision"):
            self.decisions += 1
            namespace = NamespaceId(decided.namespace, decided.generation)
            self.counts[namespace, entry.after.accepted > entry.before.accepted] += 1
            assert entry.after.accepted + entry.after.rejected == self.decisions
            if decided.memory_id:
                self.vectors[decided.memory_id] = self.formed.pool.vector_of(decided.moral)
            if decided.receipt:
                self.receipts += 1
                assert self.receipts == decided.receipt
                self.promised.append(decision_of(entry))
        if self.model is None:
            self.model = Model.before(entry, regime, Synapse.initial(self.formed.block.layout.dimension))
        self.model = self.model.after(entry, regime, self.vectors.__getitem__)
        self.vectors.pop(decided.memory_id, None)

    def copy(self) -> Self:
        """Return a witness of the same history, to follow another continuation."""
        twin = type(self)(self.formed)
        twin.model, twin.decisions, twin.counts = self.model, self.decisions, self.counts.copy()
        twin.receipts, twin.promised = self.receipts, self.promised.copy()
        return twin


def decision_of(entry: Entry) -> Decision:
    """Return the decision that the sender of the event got, from its log entry."""
    decided, before, after = decided_of(entry), entry.before, entry.after
    return Decision(
        entry.position,
        after.accepted + after.rejected,
        decided.memory_id,
        entry.time_ns,
        decided.moral,
        before.theta,
        after.theta,
        after.ema,
        before.phase,
        decided.flags & (DECIDED_JUDGED | DECIDED_VERDICT | DECIDED_STORED),
        0,
    )


def copied(entry: EntryPointer) -> EntryPointer:
    """Return a copy of a log entry that outlives the store's next call."""
    own = ffi.new("struct mlsdm_entry *")
    ffi.memmove(own, entry, ffi.sizeof("struct mlsdm_entry"))
    return own


def settings_of(regime: Regime, **changes: float) -> SettingsPointer:
    """Return the record of a regime with single fields replaced."""
    record = regime.to_record()
    names = [name for name, _ in ffi.typeof("struct mlsdm_settings").fields]
    return new_settings(**{**{name: getattr(record, name) for name in names}, **changes})


def begin(work: Callable[[], object]) -> int:
    """Fork a child that does `work` and ends. Returns its pid.

    Its exit status is 1 if `work` raises. It is killed when this process ends.
    """
    sys.stdout.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            process.die_with_parent(parent)
            work()
        except BaseException:  # noqa: BLE001  the child must never return into pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def exit_of(pid: int) -> int:
    """Wait for a child; return its exit status, negative when a signal ended it. A child that never ends is killed,
    and AssertionError raised.
    """
    try:
        _, status = eventually(lambda: (ended := os.waitpid(pid, os.WNOHANG))[0] and ended)
    except AssertionError:
        end(pid)
        raise
    return os.waitstatus_to_exitcode(status)


def end(pid: int) -> None:
    """SIGKILL a child and reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    eventually(condition)


def take_mutex(block: Block) -> None:
    """Lock the mutex without the native core. After the death of its owner it is not made consistent."""
    mutex = ctypes.c_void_p(int(ffi.cast("uintptr_t", block.region("lock"))))
    assert _libc.pthread_mutex_lock(mutex) in (0, errno.EOWNERDEAD)


def make_mutex_irrecoverable(block: Block) -> None:
    """Make the mutex irrecoverable: its owner dies, and the next owner unlocks it without making it consistent."""

    def die() -> None:
        take_mutex(block)
        os._exit(0)

    assert exit_of(begin(die)) == 0
    take_mutex(block)
    mutex = ctypes.c_void_p(int(ffi.cast("uintptr_t", block.region("lock"))))
    assert _libc.pthread_mutex_unlock(mutex) == 0

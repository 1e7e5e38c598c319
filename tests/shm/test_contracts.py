"""The contract of each native function (shm/native/api.h): which status it returns when, and which lock it needs.

`CALLS` has one valid call of each function that returns a status. The tests put a block into a condition, make all
calls, and compare the statuses with the table of that condition.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import pytest

from shm._native import ffi, lib
from shm.block import Block
from shm.layout import (
    EMERGENCY_CORRUPT,
    EMERGENCY_LOST,
    EMERGENCY_MEMORY,
    KINDS,
    LOST,
    NAMESPACE_OWN,
    NO_ROW,
    STATUSES,
    Layout,
)
from shm.records import NO_IDEMPOTENCY_HASH, IdempotencyHash, bytes_of, new_idempotency_hash, new_vitals
from testing.block_fixture import (
    NORM_MAX,
    REGIME,
    Formed,
    begin,
    end,
    exit_of,
    make_mutex_irrecoverable,
    take_mutex,
    wait_until,
)
from tests.shm.conftest import Form

LAYOUT: Final = Layout(dimension=16, capacity=50, payload_size_max=64, log_capacity=64, rows=4, receipt_capacity=16)
NOW_NS: Final = 10**18
EPOCH: Final = 1
VECTOR: Final = np.ones(16, np.float32)
Call = Callable[[Block], int]


def admit(block: Block, hash_: IdempotencyHash = NO_IDEMPOTENCY_HASH, vector: np.ndarray = VECTOR) -> int:
    """Admit an event that no threshold rejects."""
    decision = ffi.new("struct mlsdm_decision *")
    return lib.mlsdm_admit(block.map, NOW_NS, 0.95, vector.tobytes(), ffi.NULL, 0, hash_, decision)


def admit_event(block: Block, namespace: int = 0, generation: int = 1, **fields: object) -> int:
    """Admit the same event with everything that an event may have."""
    vector = ffi.from_buffer("uint8_t[]", VECTOR)
    event = ffi.new("struct mlsdm_event *", {"vector": vector, "moral": 0.95, **fields})
    event.namespace, event.generation = namespace, generation
    return lib.mlsdm_admit_event(block.map, NOW_NS, event, ffi.new("struct mlsdm_decision *"))


def admit_batch(block: Block) -> int:
    """Admit two events."""
    morals = ffi.new("double[]", [0.95, 0.95])
    vectors, decisions = ffi.new("float[]", 32), ffi.new("struct mlsdm_decision[]", 2)
    done = ffi.new("uint32_t *")
    return lib.mlsdm_admit_batch(block.map, NOW_NS, 2, morals, vectors, ffi.NULL, ffi.NULL, ffi.NULL, decisions, done)


def forget(block: Block, memory_id: int | None = None) -> int:
    """Delete a memory, the newest one if none is named."""
    newest = max(block.region("slots", slot).id for slot in range(LAYOUT.slots))
    entry = ffi.new("struct mlsdm_entry *")
    return lib.mlsdm_forget(block.map, NOW_NS, newest if memory_id is None else memory_id, entry)


def supersede(block: Block, memory_id: int = 1, vector: np.ndarray = VECTOR) -> int:
    """Supersede a memory."""
    decision = ffi.new("struct mlsdm_decision *")
    return lib.mlsdm_supersede(block.map, NOW_NS, memory_id, 0.95, vector.tobytes(), ffi.NULL, 0, ffi.NULL, decision)


def update(block: Block, memory_id: int = 1) -> int:
    """Update a memory."""
    return lib.mlsdm_update(block.map, NOW_NS, memory_id, b"new", 3, ffi.new("struct mlsdm_entry *"))


def lose(block: Block, memory_id: int = 1) -> int:
    """Lose a memory; a sound one stays."""
    return lib.mlsdm_lose(block.map, NOW_NS, memory_id, ffi.new("struct mlsdm_entry *"))


def vectors_check(block: Block) -> int:
    """Check one vector."""
    return lib.mlsdm_vectors_check(block.map, ffi.new("float[]", 16), 1, ffi.new("uint32_t *"))


def epoch_begin(block: Block) -> int:
    """Become the controller."""
    return lib.mlsdm_epoch_begin(block.map, NOW_NS, REGIME.to_record(), ffi.new("uint64_t *"))


def tick(block: Block, epoch: int = EPOCH) -> int:
    """Take a step of the rhythm."""
    return lib.mlsdm_tick(block.map, NOW_NS, epoch, ffi.new("struct mlsdm_entry *"))


def command_apply(block: Block, epoch: int = EPOCH) -> int:
    """Carry out the pending command."""
    return lib.mlsdm_command_apply(block.map, NOW_NS, epoch, ffi.new("struct mlsdm_entry *"))


def command_post(block: Block, after: int = 2**64 - 1) -> int:
    """Post a command."""
    return lib.mlsdm_command_post(block.map, KINDS.index("reset"), ffi.NULL, 0, after, ffi.new("uint64_t *"))


def command_withdraw(block: Block, ticket: int = 1) -> int:
    """Withdraw a command."""
    return lib.mlsdm_command_withdraw(block.map, ticket)


def vitals_write(block: Block, epoch: int = EPOCH) -> int:
    """Publish vitals."""
    return lib.mlsdm_vitals_write(block.map, epoch, new_vitals())


def vitals_write_unlocked(block: Block, pid: int = 7, predecessor: int = 0) -> int:
    """Publish vitals without the lock."""
    vitals = new_vitals()
    vitals.controller_pid = pid
    return lib.mlsdm_vitals_write_unlocked(block.map, predecessor, vitals)


def state_read(block: Block) -> int:
    """Read the state and its levels."""
    return lib.mlsdm_state_read(block.map, ffi.new("struct mlsdm_state *"), ffi.new("float[]", 48))


def tallies_read(block: Block) -> int:
    """Add up the tallies."""
    words = ffi.new("uint64_t[]", 3)
    return lib.mlsdm_tallies_read(block.map, words, words + 1, words + 2)


def entries_read(block: Block, first: int = 1) -> int:
    """Copy log entries."""
    entries = ffi.new("struct mlsdm_entry[]", 4)
    return lib.mlsdm_entries_read(block.map, first, 4, entries, ffi.new("uint32_t *"), ffi.new("uint64_t *"))


def memory_read(block: Block, memory_id: int = 1) -> int:
    """Read a memory."""
    slot, vector, payload = ffi.new("struct mlsdm_slot *"), ffi.new("float[]", 16), ffi.new("uint8_t[]", 64)
    return lib.mlsdm_memory_read(block.map, memory_id, slot, vector, payload)


def written_read(block: Block) -> int:
    """Read what the second entry wrote."""
    slot, vector, payload = ffi.new("struct mlsdm_slot *"), ffi.new("float[]", 16), ffi.new("uint8_t[]", 64)
    return lib.mlsdm_written_read(
        block.map, block.region("log", 2), slot, vector, payload, ffi.new("struct mlsdm_members *")
    )


def apply(block: Block) -> int:
    """Apply the first entry to the block that has it."""
    made, differs = ffi.new("struct mlsdm_entry *"), ffi.new("uint32_t *")
    start = ffi.new("struct mlsdm_entry *", block.region("log", 1)[0])
    return lib.mlsdm_apply(block.map, start, ffi.NULL, made, differs)


def recall(block: Block, vector: np.ndarray = VECTOR) -> int:
    """Recall three memories."""
    floats, bounds = ffi.from_buffer("float[]", vector), ffi.new("float[]", LAYOUT.slots)
    query = ffi.new("struct mlsdm_query *", {"vector": floats, "k": 3, "phase_masks": (3, 3), "bounds": bounds})
    matches, result = ffi.new("struct mlsdm_match[]", 3), ffi.new("struct mlsdm_recall_result *")
    return lib.mlsdm_recall(block.map, query, matches, result)


def namespace_create(block: Block, name: bytes = b"ann", **fields: object) -> int:
    """Create a namespace with its own governor."""
    terms = ffi.new("struct mlsdm_terms *", {"name": name, "flags": NAMESPACE_OWN, **fields})
    return lib.mlsdm_namespace_create(block.map, NOW_NS, terms, ffi.new("struct mlsdm_entry *"))


def namespace_change(block: Block, row: int = 0, generation: int = 1, **fields: object) -> int:
    """Set other terms of a namespace."""
    terms = ffi.new("struct mlsdm_terms *", {"flags": NAMESPACE_OWN, **fields})
    return lib.mlsdm_namespace_change(block.map, NOW_NS, row, generation, terms, ffi.new("struct mlsdm_entry *"))


def namespace_reset(block: Block, row: int = 1, generation: int = 1) -> int:
    """Reset the own governor of a namespace."""
    return lib.mlsdm_namespace_reset(block.map, NOW_NS, row, generation, ffi.new("struct mlsdm_entry *"))


def namespace_close(block: Block, row: int = 1, generation: int = 1) -> int:
    """Close a namespace."""
    return lib.mlsdm_namespace_close(block.map, NOW_NS, row, generation, ffi.new("struct mlsdm_entry *"))


def namespace_free(block: Block, row: int = 1, generation: int = 1) -> int:
    """Free the row of a namespace."""
    return lib.mlsdm_namespace_free(block.map, NOW_NS, row, generation, ffi.new("struct mlsdm_entry *"))


def namespaces_read(block: Block) -> int:
    """Copy two rows of the table of namespaces."""
    terms, cells = ffi.new("struct mlsdm_terms[]", 2), ffi.new("struct mlsdm_cell[]", 2)
    return lib.mlsdm_namespaces_read(block.map, 0, 2, terms, cells)


def namespaces_check(block: Block) -> int:
    """Check two rows of the table of namespaces."""
    return lib.mlsdm_namespaces_check(block.map, 0, 2, ffi.new("uint32_t *"))


def row_claim(block: Block, pid: int = 0) -> int:
    """Claim the last row."""
    return lib.mlsdm_row_claim(block.map, LAYOUT.rows - 1, pid, 0, 7, 7)


def slot_repair(block: Block) -> int:
    """Repair a slot."""
    return lib.mlsdm_slot_repair(block.map, 1)


def links_check(block: Block) -> int:
    """Hold the links of all slots against the slots."""
    return lib.mlsdm_links_check(block.map, 0, LAYOUT.slots, ffi.new("uint32_t *"))


def chain_repair(block: Block) -> int:
    """Repair a chain."""
    return lib.mlsdm_chain_repair(block.map, 1)


# In an order in which each call is valid after the ones before it.
CALLS: Final[dict[str, Call]] = {
    call.__name__: call
    for call in (
        vectors_check, state_read, tallies_read, entries_read, memory_read, written_read, recall, slot_repair,
        links_check, chain_repair, namespaces_read, namespaces_check, row_claim, admit, admit_event, admit_batch,
        update, tick, vitals_write, vitals_write_unlocked, command_withdraw, command_post, command_apply, lose,
        supersede, forget, namespace_create, namespace_change, namespace_reset, namespace_close, namespace_free, apply,
        epoch_begin,
    )
}  # fmt: skip
UNLOCKED: Final = {"vectors_check", "vitals_write_unlocked", "entries_read", "written_read"}
READS: Final = {"state_read", "tallies_read", "entries_read", "memory_read", "written_read", "namespaces_read"}
STEPS: Final = {"namespace_reset", "namespace_close", "namespace_free"}  # of a namespace that is there


def status_of(call: Callable[..., int], *arguments: object, **keywords: object) -> str:
    """Return the name of the status of a call."""
    return STATUSES[call(*arguments, **keywords)]


def statuses(block: Block, names: set[str] | None = None) -> dict[str, str]:
    """Make the calls with these names, all if None, and return the name of the status of each."""
    return {name: status_of(call, block) for name, call in CALLS.items() if names is None or name in names}


def expected(everything: str, **others: str) -> dict[str, str]:
    """Return one status for all calls, with exceptions."""
    return {name: others.get(name, everything) for name in CALLS}


@pytest.fixture
def used(form: Form) -> Formed:
    """A block with a memory and a pending command; this process owns row 0 and is the controller of EPOCH."""
    formed = form(LAYOUT)
    assert (formed.accept(), formed.store.post_command("reset")) == (1, 1)
    return formed


@pytest.fixture
def unformed(form: Form) -> Formed:
    """A block without a state."""
    formed = form(LAYOUT)
    formed.block.region("commit").sealed = 0  # the first state is in buffer 1; buffer 0 was never written
    lib.mlsdm_slots_create(formed.block.map)
    return formed


class TestTable:
    def test_every_status_function_is_called(self) -> None:
        """`CALLS` has every native function that returns a status."""
        others = {
            "lock_create", "slots_create", "checksum", "settings_checksum", "header_checksum", "command_pending",
            "position", "epoch", "levels_norms", "slot_check", "chains_check", "tokens_spend", "tokens_refund",
        }  # fmt: skip
        functions = {name.removeprefix("mlsdm_") for name in dir(lib) if name.startswith("mlsdm_")}

        assert functions == {*CALLS, *others}


class TestConditions:
    def test_formed(self, used: Formed) -> None:
        """Every call succeeds on a sound block; the posted command was withdrawn before the next one is posted."""
        assert statuses(used.block) == expected("ok")

    def test_unformed(self, unformed: Formed) -> None:
        """What needs a state returns UNFORMED, or CORRUPT where it compares the state itself."""
        names = set(CALLS) - {"epoch_begin"}

        assert statuses(unformed.block, names) == {
            **dict.fromkeys(names, "unformed"),
            **dict.fromkeys(("vectors_check", "tallies_read", "entries_read", "row_claim"), "ok"),
            "apply": "ok",  # of a start, which forms the state
            "written_read": "gone",
            **dict.fromkeys(("command_apply", "vitals_write_unlocked"), "ok"),
            **dict.fromkeys(("chain_repair", "namespaces_check", "vitals_write"), "corrupt"),
            **dict.fromkeys(("command_post", "command_withdraw"), "corrupt"),
        }  # fmt: skip
        assert status_of(epoch_begin, unformed.block) == "ok"

    def test_commit_word_damaged(self, used: Formed) -> None:
        """No call uses the state; the ones that do not need it succeed."""
        used.block.region("commit").sealed ^= 1
        assert statuses(used.block) == expected(
            "corrupt", vectors_check="ok", row_claim="ok", vitals_write_unlocked="ok", written_read="ok"
        )

    def test_state_damaged(self, used: Formed) -> None:
        """A state that does not match its checksum is not used."""
        used.block.region("states", used.block.position & 1).scalars.theta += 0.1
        assert statuses(used.block) == expected(
            "corrupt", vectors_check="ok", row_claim="ok", vitals_write_unlocked="ok", tallies_read="ok",
            entries_read="ok", written_read="ok", namespaces_read="ok",
            apply="ok",  # of a position that has happened
        )  # fmt: skip

    def test_lock_held(self, used: Formed) -> None:
        """A call that takes the lock returns BUSY after wait_ms; a read needs no lock while nobody writes."""

        def hold() -> None:
            take_mutex(used.block)
            wait_until(lambda: False)

        pid = begin(hold)
        wait_until(lambda: used.block.mutex_owner() == pid)
        used.block.bind(os.getpid(), 0, 1, NORM_MAX)
        free = dict.fromkeys(UNLOCKED | READS, "ok")
        try:
            assert statuses(used.block) == expected("busy", **free)
            used.block.bind(os.getpid(), 0, 0, NORM_MAX)
            assert statuses(used.block) == expected("busy", **free)
        finally:
            end(pid)

    def test_lock_lost(self, used: Formed) -> None:
        """A call that takes the lock returns LOST; reads and recall do without it."""
        make_mutex_irrecoverable(used.block)
        free = dict.fromkeys(UNLOCKED | READS, "ok")

        assert statuses(used.block) == expected("lost", **free, recall="ok")
        assert used.block.region("lock").lost == LOST

    def test_older_epoch(self, used: Formed) -> None:
        """A controller that was superseded is refused, and writes nothing."""
        assert status_of(epoch_begin, used.block) == "ok"
        before = bytes_of(used.block.region("vitals")), used.block.position

        assert statuses(used.block, {"tick", "command_apply", "vitals_write"}) == {
            "tick": "stale", "vitals_write": "stale", "command_apply": "stale",
        }  # fmt: skip
        assert (bytes_of(used.block.region("vitals")), used.block.position) == before

    @pytest.mark.parametrize("name", sorted(set(CALLS) - UNLOCKED - READS - STEPS))
    def test_dead_holder(self, used: Formed, name: str) -> None:
        """A call that takes the lock succeeds after its holder has died inside."""
        if name == "command_post":
            used.store.withdraw_command(1)
        assert exit_of(begin(partial(take_mutex, used.block))) == 0

        assert status_of(CALLS[name], used.block) == "ok"
        assert used.block.region("lock").deaths == 1

    def test_read_only_mapping(self, used: Formed) -> None:
        """What does not write the block works with a mapping that cannot be written."""
        observer = Block.open(os.dup(used.block.fd), writable=False)
        observer.bind(os.getpid(), NO_ROW, 0, NORM_MAX)
        words = ffi.new("uint64_t *")

        assert statuses(observer, READS | {"vectors_check"}) == dict.fromkeys(READS | {"vectors_check"}, "ok")
        assert lib.mlsdm_position(observer.map) == used.block.position
        assert (lib.mlsdm_command_pending(observer.map), lib.mlsdm_slot_check(observer.map, 1, words)) == (1, 1)
        assert lib.mlsdm_chains_check(observer.map, 0, LAYOUT.receipt_capacity) == LAYOUT.receipt_capacity
        observer.close()


class TestAdmission:
    @pytest.mark.parametrize(("value", "status"), [(np.nan, "not_finite"), (np.inf, "not_finite"), (1e30, "too_long")])
    def test_bad_vector(self, used: Formed, value: float, status: str) -> None:
        """It is refused before the lock is taken, so also while another process holds it."""
        acquisitions = used.block.region("lock").acquisitions
        bad = np.full(16, value, np.float32)

        assert [status_of(call, used.block, vector=bad) for call in (admit, recall)] == [status] * 2
        assert used.block.region("lock").acquisitions == acquisitions

    def test_hash_with_another_body(self, used: Formed) -> None:
        """REUSED takes precedence over a stop; a receipt with the same body is found while admissions are stopped."""
        assert status_of(admit, used.block, new_idempotency_hash((1, 2), 3)) == "ok"
        used.store.withdraw_command(1)
        used.apply("stop")

        assert status_of(admit, used.block) == "stopped"
        assert status_of(admit, used.block, new_idempotency_hash((1, 2), 4)) == "reused"
        assert status_of(admit, used.block, new_idempotency_hash((1, 2), 3)) == "ok"

    @pytest.mark.parametrize(
        ("emergency", "status"),
        [
            (EMERGENCY_CORRUPT, "corrupt"),
            (EMERGENCY_LOST, "lost"),
            (EMERGENCY_MEMORY, "exhausted"),
            (EMERGENCY_MEMORY | EMERGENCY_LOST | EMERGENCY_CORRUPT, "corrupt"),
        ],
    )
    def test_emergency(self, used: Formed, emergency: int, status: str) -> None:
        """An emergency that the vitals declare refuses events, and nothing else."""
        used.block.region("vitals").emergency = emergency

        assert statuses(used.block, {"admit", "admit_event", "admit_batch", "recall", "tick"}) == {
            "admit": status, "admit_event": status, "admit_batch": status, "recall": "ok", "tick": "ok",
        }  # fmt: skip

    def test_batch_sets_done_whatever_happens(self, used: Formed) -> None:
        """`done` is the number of decisions; the events before the one that is refused stay decided."""
        vectors = np.ones((3, 16), np.float32)
        vectors[2, 5] = np.nan
        before = used.block.position
        decisions, status = used.store.admit_batch(NOW_NS, np.full(3, 0.95), vectors, None)

        assert (len(decisions), STATUSES[status], used.block.position) == (2, "not_finite", before + 2)


class TestNamespaces:
    def test_steps_in_order(self, used: Formed) -> None:
        """A name and a row exist once; what is closed cannot be changed, what is free is unknown."""
        block = used.block
        assert [status_of(namespace_create, block, name) for name in (b"ann", b"ann", b"default")] == [
            "ok", "exists", "exists",
        ]  # fmt: skip
        assert status_of(admit_event, block, namespace=1) == "ok"
        assert status_of(namespace_free, block) == "invalid"
        assert [status_of(namespace_close, block, row) for row in (0, 1, 1, 2, 1 << 20)] == [
            "invalid", "ok", "closing", "unknown", "unknown",
        ]  # fmt: skip
        assert status_of(admit_event, block, namespace=1) == "closing"
        assert status_of(namespace_change, block, row=1) == "closing"
        assert status_of(namespace_create, block) == "exists"
        assert status_of(namespace_free, block) == "not_empty"
        assert [status_of(forget, block, 2), status_of(namespace_free, block)] == ["ok", "ok"]
        assert status_of(admit_event, block, namespace=1) == "unknown"

    def test_terms(self, used: Formed) -> None:
        """A share fits its limit and the capacity, and all shares together do."""
        block = used.block
        assert status_of(namespace_create, block, b"a", limit=3, reserved=4) == "invalid"
        assert status_of(namespace_create, block, b"a", reserved=LAYOUT.capacity + 1) == "invalid"
        assert status_of(namespace_create, block, b"a", ttl_ns=-1) == "invalid"
        assert status_of(namespace_create, block, b"a", reserved=30) == "ok"
        assert status_of(namespace_change, block, reserved=21) == "promised"
        assert status_of(namespace_change, block, reserved=20) == "ok"
        assert status_of(namespace_create, block, b"b", reserved=1) == "promised"
        assert status_of(namespace_close, block) == "ok"
        assert status_of(namespace_create, block, b"b", reserved=30) == "ok"

    def test_reset_of_a_shared_governor(self, used: Formed) -> None:
        """Only a namespace's own governor can be reset."""
        assert status_of(namespace_reset, used.block, row=0) == "invalid"

    @pytest.mark.parametrize(
        "fields",
        [
            {"flags": 8, "expires_ns": NOW_NS},
            {"flags": 16, "ttl_ns": 0},
            {"flags": 8 | 16, "expires_ns": NOW_NS * 2, "ttl_ns": 1},
        ],
    )
    def test_expiry(self, used: Formed, fields: dict[str, int]) -> None:
        """An instant that has passed, a lifetime that is none, and both kinds are INVALID."""
        assert status_of(admit_event, used.block, **fields) == "invalid"


class TestIds:
    @pytest.mark.parametrize("call", [forget, lose, update, supersede, memory_read], ids=lambda call: call.__name__)
    def test_unknown_and_gone(self, used: Formed, call: Callable[[Block, int], int]) -> None:
        """An id that was never given is UNKNOWN; one that was overwritten or deleted is GONE."""
        for number in range(LAYOUT.capacity):
            used.accept(number)
        assert status_of(forget, used.block, 5) == "ok"
        given = LAYOUT.capacity + 1

        assert {memory_id: status_of(call, used.block, memory_id) for memory_id in (0, 1, 5, given + 1)} == {
            0: "unknown", 1: "gone", 5: "gone", given + 1: "unknown",
        }  # fmt: skip

    def test_positions(self, used: Formed) -> None:
        """One past the newest position is an empty page, the next one UNKNOWN; 0 and overwritten ones are GONE."""
        for number in range(LAYOUT.log_capacity):
            used.accept(number)
        newest = used.block.position

        assert [status_of(entries_read, used.block, first) for first in (0, 1, newest + 1, newest + 2)] == [
            "gone", "gone", "ok", "unknown",
        ]  # fmt: skip


class TestOwners:
    def test_row_of_another(self, used: Formed) -> None:
        """A row that no longer belongs to the process that the caller has read is TAKEN."""
        assert [status_of(row_claim, used.block) for _ in range(2)] == ["ok", "taken"]
        assert status_of(row_claim, used.block, pid=8) == "taken"

    def test_command_slot(self, used: Formed) -> None:
        """The slot holds one command; a ticket that is not the pending one cannot be withdrawn."""
        assert status_of(command_post, used.block) == "taken"
        assert status_of(command_withdraw, used.block, 2) == "taken"
        assert status_of(command_apply, used.block) == "ok"
        assert status_of(command_withdraw, used.block, 1) == "taken"
        assert status_of(command_post, used.block, after=0) == "taken"
        assert status_of(command_post, used.block, after=1) == "ok"

    def test_vitals_without_the_lock(self, used: Formed) -> None:
        """The signer may write again, and so may its successor; another process is STALE."""
        block = used.block

        assert status_of(vitals_write_unlocked, block, pid=7, predecessor=0) == "ok"
        assert status_of(vitals_write_unlocked, block, pid=7, predecessor=0) == "ok"
        assert status_of(vitals_write_unlocked, block, pid=8, predecessor=0) == "stale"
        assert status_of(vitals_write_unlocked, block, pid=8, predecessor=7) == "ok"


class TestTokens:
    def test_need_no_state_and_no_lock(self, unformed: Formed) -> None:
        """Tokens are spent and refunded before the first state, and while another process holds the lock."""
        account = ffi.new("struct mlsdm_account *", (9, 1_000, 5, 0))

        def hold() -> None:
            take_mutex(unformed.block)
            wait_until(lambda: False)

        pid = begin(hold)
        wait_until(lambda: unformed.block.mutex_owner() == pid)
        try:
            assert lib.mlsdm_tokens_spend(unformed.block.map, account, NOW_NS, 5) == 5_000
            assert lib.mlsdm_tokens_spend(unformed.block.map, account, NOW_NS, 1) == -1_000
            lib.mlsdm_tokens_refund(unformed.block.map, account, 5)
            assert lib.mlsdm_tokens_spend(unformed.block.map, account, NOW_NS, 2) == 2_000
        finally:
            end(pid)

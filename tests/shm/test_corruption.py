"""Corruption: bytes of a block change without a writer; nothing is derived from them, and the caller gets an error."""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.reference.checksum import checksum
from shm._native import ffi
from shm.block import Block, BlockError, BlockIdentity
from shm.errors import Corrupt, Gone, Stale
from shm.layout import EXCLUDED, KINDS, RECORDS, Layout, free_since, live_since, offsets, seal
from shm.recall import Recall
from shm.records import bytes_of, decided_of, new_idempotency_hash, new_vitals
from shm.store import Decision
from testing.block_fixture import SMALL, Formed, begin, decision_of, exit_of
from tests.shm.conftest import Form

SIZES = {record.name: record.size for record in RECORDS}
MARK: Final = next(member.offset for name, member in ffi.typeof("struct mlsdm_slot").fields if name == "mark")


def place_of(record: str, field: str) -> tuple[int, int]:
    """Return (offset in the block, size) of a field of 8 bytes in a region that has the name of its record."""
    region = next(region for region in SMALL.regions() if region.name == record)
    fields = next(offsets(found) for found in RECORDS if found.name == record)
    return region.offset + next(offset for member, offset in fields if member.name == field), 8


@pytest.fixture
def used(formed: Formed) -> Formed:
    """A store that has decided, deleted and ticked."""
    for number in range(70):
        formed.accept(number)
        formed.admit(1)
    formed.store.forget(formed.now(), 60)
    formed.store.tick(formed.now(), formed.epoch)
    return formed


def flipped(formed: Formed, offset: int, size: int) -> Iterator[int]:
    """Flip one bit of each byte in turn; yields while it is flipped."""
    memory = formed.block.memory
    for byte in range(size):
        before = memory[offset + byte]
        memory[offset + byte] ^= 1 << random.randrange(8)
        yield byte
        memory[offset + byte] = before


def flipped_bits(formed: Formed, offset: int, size: int) -> Iterator[int]:
    """Flip each bit in turn; yields while it is flipped."""
    memory = formed.block.memory
    for bit in range(8 * size):
        before = memory[offset + bit // 8]
        memory[offset + bit // 8] ^= 1 << bit % 8
        yield bit
        memory[offset + bit // 8] = before


def recalled(formed: Formed, vector: bytes) -> list[int]:
    """Return the ids that a recall finds near a vector."""
    answer = Recall(formed.block).nearest(vector, 50, (3, 3), payloads=False, vectors=False)
    return [match.id for match in answer.matches]


def unsound(formed: Formed) -> list[tuple[bool, int]]:
    """Return what the scrub finds."""
    return [one for one in map(formed.store.check_slot, range(51)) if not one[0]]


class TestState:
    def test_any_changed_byte_stops_everything(self, used: Formed) -> None:
        """With any byte of the committed state changed, no event is admitted, no memory deleted, no step taken, no
        command carried out, and no state returned. With the byte restored, everything works again.
        """
        position = int(used.store.state().position)
        used.store.post_command("reset")
        offset = used.region_bytes("states")[0] + (position & 1) * SIZES["state"]
        calls: tuple[Callable[[], object], ...] = (
            used.store.state,
            used.store.levels,
            used.accept,
            lambda: used.admit(1),
            lambda: used.store.begin_epoch(used.now(), used.regime.to_record()),
            lambda: used.store.tick(used.now(), used.epoch),
        )
        for _ in flipped(used, offset, SIZES["state"]):
            for call in calls:
                with pytest.raises(Corrupt):
                    call()

        assert position == used.store.state().position
        assert used.accept() == 71

    @pytest.mark.parametrize("name", ["memory", "forget"])
    def test_live_memory_is_not_called_unknown_or_gone(self, used: Formed, name: str) -> None:
        """A live memory is not Unknown or Gone because the counters in the state are damaged."""
        position = int(used.store.state().position)
        offset = used.region_bytes("states")[0] + (position & 1) * SIZES["state"]
        scalars = next(member.offset for field, member in ffi.typeof("struct mlsdm_state").fields if field == "scalars")
        newest_id = next(
            member.offset for field, member in ffi.typeof("struct mlsdm_scalars").fields if field == "newest_id"
        )
        for _ in flipped(used, offset + scalars + newest_id, 8):
            with pytest.raises(Corrupt):
                used.store.memory(50) if name == "memory" else used.store.forget(used.now(), 50)

    def test_other_buffer_does_not_matter(self, used: Formed) -> None:
        """The buffer that is not committed may hold anything."""
        position = int(used.store.state().position)
        offset = used.region_bytes("states")[0] + ((position + 1) & 1) * SIZES["state"]
        for _ in flipped(used, offset, SIZES["state"]):
            assert position == used.store.state().position
        assert used.accept() == 71

    @pytest.mark.parametrize("sealed", [True, False])
    def test_wrong_commit_word(self, used: Formed, sealed: bool) -> None:
        """A position that published nothing is refused, whether or not its seal is right."""
        commit = used.block.region("commit")
        before = used.block.position
        for wrong in (before - 2, before + 1, before + 2, 2**47, 7):
            commit.sealed = seal(wrong) if sealed else wrong
            with pytest.raises(Corrupt):
                used.store.state()
            with pytest.raises(Corrupt):
                used.accept()
        commit.sealed = seal(before)

        assert used.accept() == 71

    def test_any_changed_bit_of_the_commit_word(self, used: Formed) -> None:
        """With any bit changed nothing is decided, deleted or read, although the state before it is sound."""
        position = used.block.position
        calls: tuple[Callable[[], object], ...] = (
            used.store.state,
            used.store.levels,
            used.store.tallies,
            lambda: used.block.position,
            lambda: used.store.memory(50),
            lambda: used.store.entries(10, 5),
            lambda: used.store.forget(used.now(), 50),
            lambda: used.store.lose(used.now(), 50),
            used.accept,
            lambda: used.store.begin_epoch(used.now(), used.regime.to_record()),
            lambda: used.store.tick(used.now(), used.epoch),
            lambda: used.store.post_command("reset"),
            lambda: used.store.write_vitals(used.epoch, new_vitals()),
            lambda: Recall(used.block).nearest(np.ones(16, np.float32), 1, (3, 3), payloads=False, vectors=False),
        )
        offset, _ = used.region_bytes("commit")
        for _ in flipped_bits(used, offset, 8):
            for call in calls:
                with pytest.raises(Corrupt):
                    call()

        assert position == used.block.position
        assert used.accept() == 71

    def test_no_rollback_while_the_commit_word_is_damaged(self, used: Formed) -> None:
        """What a dead writer left is undone once the committed position is known again, and not before."""
        position, lock, slot = used.block.position, used.block.region("lock"), used.block.region("slots", 50)
        memory = used.store.memory(50)
        lock.intent_slot, lock.intent_mark = (0, 51), (0, slot.mark)
        lock.intent_position, lock.intent_row, lock.intent_erase = position + 1, 0, 51
        slot.mark = free_since(position + 1)
        offset, _ = used.region_bytes("commit")
        for _ in flipped_bits(used, offset, 8):
            with pytest.raises(Corrupt):
                used.accept()
            assert (free_since(position + 1), 51) == (slot.mark, lock.intent_erase)

        assert used.accept() == 71
        assert (slot.mark, lock.intent_erase) == (live_since(memory.position), 0)
        assert memory == used.store.memory(50)


class TestSeal:
    @given(position=st.integers(0, 2**48 - 1))
    def test_any_changed_bit_is_noticed(self, position: int) -> None:
        """The native core reads a sealed position as itself, and as damaged if any one bit of the word is changed."""
        block = Block.create(Layout(2, 1, 0, 4, 1, 1), BlockIdentity.new(), 0, 0)
        commit = block.region("commit")
        try:
            commit.sealed = seal(position)
            assert position == block.position
            for bit in range(64):
                commit.sealed = seal(position) ^ 1 << bit
                with pytest.raises(Corrupt):
                    _ = block.position
        finally:
            block.close()


MARKS: Final = ("slots", "codes", "both")


def damaged_marks(formed: Formed, slot: int, which: str) -> Iterator[int]:
    """Flip each bit in turn of one mark of a slot or of both; yields while it is flipped. What is repaired stays so."""
    records: list[Any] = [
        formed.block.region(region, slot) for region in (("slots", "codes") if which == "both" else (which,))
    ]
    for bit in range(64):
        for record in records:
            record.mark ^= 1 << bit
        yield bit


class TestMark:
    @pytest.mark.parametrize("marks", MARKS)
    @pytest.mark.parametrize("payload", [b"", b"z" * 64])
    @pytest.mark.parametrize("number", [0, 3])  # number 3 is a vector of zeros
    def test_damaged_mark_of_a_live_memory(self, used: Formed, number: int, payload: bytes, marks: str) -> None:
        """With any bit of a mark changed, a memory is not Gone; recall finds it, and the scrub repairs the marks. It is
        Corrupt only if both are damaged.
        """
        memory_id = used.accept(number, payload)
        memory, live = used.store.memory(memory_id), int(used.store.state().scalars.live)
        for _ in damaged_marks(used, memory_id % 51, marks):
            if marks == "both":
                with pytest.raises(Corrupt):
                    used.store.memory(memory_id)
            else:
                assert memory == used.store.memory(memory_id)
            assert memory_id in recalled(used, memory.vector)
            assert unsound(used) == [(False, memory_id)]
            assert used.store.repair_slot(memory_id % 51)
            assert (memory, []) == (used.store.memory(memory_id), unsound(used))
            assert live == used.store.state().scalars.live

    @pytest.mark.parametrize("marks", MARKS)
    @pytest.mark.parametrize("payload", [b"", b"z" * 64])
    @pytest.mark.parametrize("number", [0, 3])
    def test_damaged_mark_of_a_deleted_memory(self, used: Formed, number: int, payload: bytes, marks: str) -> None:
        """With any bit of a mark changed, a deleted memory does not return, and the scrub repairs the marks."""
        memory_id = used.accept(number, payload)
        vector, live = used.store.memory(memory_id).vector, int(used.store.state().scalars.live)
        used.store.forget(used.now(), memory_id)
        for _ in damaged_marks(used, memory_id % 51, marks):
            with pytest.raises(Gone):
                used.store.memory(memory_id)
            with pytest.raises(Gone):
                used.store.forget(used.now(), memory_id)
            assert memory_id not in recalled(used, vector)
            assert unsound(used) == [(False, 0)]
            assert used.store.repair_slot(memory_id % 51)
            assert unsound(used) == []
            with pytest.raises(Gone):
                used.store.memory(memory_id)
            assert live - 1 == used.store.state().scalars.live

    @pytest.mark.parametrize("marks", MARKS)
    @pytest.mark.parametrize("deleted", [False, True])
    def test_damaged_mark_of_an_overwritten_memory(self, used: Formed, deleted: bool, marks: str) -> None:
        """The number of live memories is right when a memory with damaged marks is overwritten."""
        oldest = used.live_ids()[0]
        if deleted:
            used.store.forget(used.now(), oldest)
        for region in ("slots", "codes") if marks == "both" else (marks,):
            record: Any = used.block.region(region, oldest % 51)
            record.mark ^= 1 << random.randrange(64)
        for _ in range(5):
            used.accept()

        assert oldest not in used.live_ids()
        assert len(used.live_ids()) == used.store.state().scalars.live == 50

    @pytest.mark.parametrize("deleted", [False, True])
    def test_slot_record_that_is_damaged_as_a_whole(self, used: Formed, deleted: bool) -> None:
        """A live memory is corrupt and is not counted as deleted; a deleted one stays deleted."""
        live = int(used.store.state().scalars.live)
        if deleted:
            used.store.forget(used.now(), 50)
        for _ in range(20):
            ffi.buffer(used.block.region("slots", 50))[:] = os.urandom(SIZES["slot"])
            used.block.region("slots", 50).mark = seal(50) ^ 1  # of random ones, one in 65,536 fits its seal
            assert unsound(used) == [(False, 0 if deleted else 50)]
            assert used.store.repair_slot(50) is deleted
        if not deleted:
            used.store.forget(used.now(), 50)

        assert unsound(used) == []
        assert live - 1 == used.store.state().scalars.live == len(used.live_ids())

    def test_sound_memory_that_is_excluded(self, used: Formed) -> None:
        """A memory that the scan leaves out is found by the scrub and repaired, not deleted."""
        memory = used.store.memory(50)
        used.block.region("codes", 50).excluded = EXCLUDED
        assert 50 not in recalled(used, memory.vector)
        assert unsound(used) == [(False, 50)]
        assert used.store.repair_slot(50)

        assert 50 in recalled(used, memory.vector)
        assert unsound(used) == []

    def test_no_bit_excludes_a_memory(self, used: Formed) -> None:
        """With any bit of `excluded` changed, recall finds the memory; the scrub finds the damage and repairs it."""
        memory, code = used.store.memory(50), used.block.region("codes", 50)
        for bit in range(32):
            code.excluded ^= 1 << bit
            assert 50 in recalled(used, memory.vector)
            assert unsound(used) == [(False, 50)]
            assert used.store.repair_slot(50)
            assert unsound(used) == []

    def test_nothing_else_is_repaired(self, used: Formed) -> None:
        """A memory whose bytes are damaged is not repaired."""
        used.block.region("slots", 50).moral += 1

        assert not used.store.repair_slot(50)
        assert unsound(used) == [(False, 50)]


class TestEpoch:
    def test_any_changed_bit_of_the_epoch(self, used: Formed) -> None:
        """While any bit is changed no controller writes, and events are decided."""
        used.store.post_command("reset")
        vitals, position = bytes_of(used.block.region("vitals")), used.block.position
        given = range(used.epoch + 2)
        unnoticed = []
        for bit in flipped_bits(used, *place_of("lock", "epoch")):
            for epoch in given:
                calls: tuple[Callable[[], object], ...] = (
                    lambda epoch=epoch: used.store.tick(used.now(), epoch),  # type: ignore[misc]  # mypy infers no default
                    lambda epoch=epoch: used.store.apply_command(used.now(), epoch),  # type: ignore[misc]
                    lambda epoch=epoch: used.store.write_vitals(epoch, new_vitals()),  # type: ignore[misc]
                )
                for call in calls:
                    with pytest.raises(Stale):
                        call()
            if not used.block.is_epoch_damaged:
                unnoticed.append(bit)

        assert unnoticed == []
        assert (vitals, position) == (bytes_of(used.block.region("vitals")), used.block.position)
        assert not used.block.is_epoch_damaged
        assert used.store.apply_command(used.now(), used.epoch)

    def test_next_controller_counts_on_from_the_vitals(self, used: Formed) -> None:
        """No epoch is given twice, and the word is whole afterwards; a damaged copy in the vitals does not matter."""
        given = [used.epoch]
        for _ in flipped_bits(used, *place_of("lock", "epoch")):
            given.append(used.store.begin_epoch(used.now(), used.regime.to_record()))
            assert not used.block.is_epoch_damaged
            used.store.write_vitals(given[-1], new_vitals())
            for _ in flipped_bits(used, *place_of("vitals", "epoch")):
                assert used.block.epoch == given[-1]
            used.block.region("lock").epoch = seal(given[-1])
        assert given == list(range(used.epoch, used.epoch + 65))

    def test_both_words_damaged(self, used: Formed) -> None:
        """No controller begins, because it could be given the epoch of another one; events are decided."""
        used.block.region("lock").epoch ^= 1
        used.block.region("vitals").epoch ^= 2

        with pytest.raises(Corrupt):
            used.store.begin_epoch(used.now(), used.regime.to_record())
        with pytest.raises(Corrupt):
            _ = used.block.epoch
        assert used.accept() == 71

    def test_vitals_written_without_the_lock_keep_the_epoch(self, used: Formed) -> None:
        """A controller that has no epoch writes what it inherited, which may be older by then."""
        vitals = new_vitals()
        vitals.epoch, vitals.controller_pid, vitals.service_bytes = seal(7), os.getpid(), 9
        used.store.write_vitals_unlocked(0, vitals)
        found = used.block.region("vitals")

        assert (found.epoch, found.service_bytes) == (seal(used.epoch), 9)


class TestLevels:
    def test_any_changed_byte_of_the_levels(self, used: Formed) -> None:
        """With any byte of the committed levels changed, an event that would run the cascade is not admitted, and the
        levels are not returned. What does not need them works.
        """
        state = used.store.state()
        position, stride = int(state.position), 3 * 64
        offset = used.region_bytes("levels")[0] + int(state.levels) * stride
        for _ in flipped(used, offset, stride):
            with pytest.raises(Corrupt):
                used.store.levels()
            with pytest.raises(Corrupt):
                used.accept()
        assert position == used.store.state().position

        used.block.memory[offset] ^= 1
        assert position + 1 == used.admit(1).position
        assert position + 2 == used.apply("reset").position  # which makes new levels
        assert used.store.levels()[1] == (0.0, 0.0, 0.0)
        assert used.accept() == 71


class TestLog:
    def test_changed_entry_is_not_returned(self, used: Formed) -> None:
        """An entry with any byte changed is not returned."""
        offset = used.region_bytes("log")[0] + 20 * SIZES["entry"]
        for _ in flipped(used, offset, SIZES["entry"]):
            with pytest.raises(Corrupt):
                used.store.entries(15, 10)
        assert len(used.store.entries(15, 10)[0]) == 10


class TestMemory:
    @pytest.mark.parametrize("part", ["slots", "codes", "shadow", "vectors", "payloads"])
    def test_changed_memory_is_not_returned(self, used: Formed, part: str) -> None:
        """A memory with a changed byte in its slot, code, shadow, vector or payload is Corrupt."""
        memory_id = used.accept(0, b"z" * 64)
        stride = {"slots": 120, "codes": 12, "shadow": 16, "vectors": 64, "payloads": 64}[part]
        whole = {"slots": 128, "codes": 24}.get(part, stride)
        offset = used.region_bytes(part)[0] + memory_id % 51 * whole
        for byte in flipped(used, offset, min(stride, MARK) if part == "slots" else stride):
            with pytest.raises(Corrupt):
                used.store.memory(memory_id)
            assert byte < stride
        assert used.store.memory(memory_id).payload == b"z" * 64


WORD: Final = 2**64


class TestLost:
    def test_lost_memory_keeps_id_and_checksum(self, used: Formed) -> None:
        """The entry has what restores the memory from elsewhere: its id and the checksum of the vector as admitted."""
        admitted = {
            decided.memory_id: decided.vector_checksum
            for entry in used.store.entries(1, 1000)[0]
            if (decided := decided_of(entry)) and KINDS[entry.kind] == "decision"
        }
        vectors, live = used.region_bytes("vectors")[0], int(used.store.state().scalars.live)
        used.block.memory[vectors + 55 % 51 * 64 + 8] ^= 4
        entry = used.store.lose(used.now(), 55)

        assert entry
        lost = decided_of(entry)
        assert (KINDS[entry.kind], lost.memory_id, lost.vector_checksum) == ("lost", 55, admitted[55])
        assert entry.after.live == live - 1
        with pytest.raises(Gone):
            used.store.memory(55)
        assert not any(used.block.memory[vectors + 55 % 51 * 64 :][:64])
        with pytest.raises(Gone):
            used.store.lose(used.now(), 55)

    def test_sound_memory_is_not_lost(self, used: Formed) -> None:
        """A controller that was stopped after its check and continues may be wrong about what it has found."""
        position, memory = used.block.position, used.store.memory(55)

        assert used.store.lose(used.now(), 55) is None
        assert (position, memory) == (used.block.position, used.store.memory(55))

    def test_any_changed_bit_of_the_line(self, used: Formed) -> None:
        """A memory is lost and not deleted, whichever field of its line is damaged."""
        image = used.block.memory[:]
        offset, _ = used.region_bytes("slots")
        kinds = Counter[str]()
        for bit in range(8 * MARK):
            used.block.memory[:] = image
            used.block.memory[offset + 55 % 51 * SIZES["slot"] + bit // 8] ^= 1 << bit % 8
            entry = used.store.lose(used.now(), 55)
            assert entry
            kinds[KINDS[entry.kind]] += decided_of(entry).memory_id == 55

        assert kinds == {"lost": 8 * MARK}

    def test_old_memory_is_lost_without_its_checksum(self, form: Form) -> None:
        """The log has overwritten its admission."""
        formed = form(SMALL._replace(log_capacity=16))
        formed.accept()
        for _ in range(16):
            formed.store.tick(formed.now(), formed.epoch)
        formed.block.memory[formed.region_bytes("vectors")[0] + 1 * 64] ^= 1
        entry = formed.store.lose(formed.now(), 1)

        assert entry
        assert (decided_of(entry).memory_id, decided_of(entry).vector_checksum) == (1, 0)


class TestReceipts:
    """Receipts of chains that have several members each; both rings have wrapped."""

    CAPACITY: Final = 8
    CHAINS: Final = 3
    NEWEST: Final = 40

    @pytest.fixture
    def given(self, form: Form) -> Formed:
        """A block with receipts 33 … 40 in reach, two or three in each of the first three chains."""
        formed = form(Layout(2, 5, 0, 256, 2, self.CAPACITY))
        for ordinal in range(1, self.NEWEST + 1):
            formed.decide(ordinal * 25_000, key=self.key(ordinal))
        return formed

    def key(self, ordinal: int) -> Any:
        """Return the key that receipt `ordinal` was given for."""
        return new_idempotency_hash((0, self.CAPACITY * ordinal + ordinal % self.CHAINS), 0)

    def promised(self) -> range:
        """Return the ordinals that are in reach."""
        return range(self.NEWEST - self.CAPACITY + 1, self.NEWEST + 1)

    def first(self, formed: Formed, ordinal: int) -> Decision:
        """Return what the log says of the event that got receipt `ordinal`, as a repeat."""
        return decision_of(formed.entry(ordinal + 1))._replace(repeated=1)

    def answers(self, formed: Formed, image: bytes, key: Any) -> Decision | None:
        """Ask with a key, None when the answer is Corrupt; a new decision is undone."""
        position = formed.block.position
        try:
            decision = formed.decide(999_999, key=key)
        except Corrupt:
            assert position == formed.block.position
            return None
        if not decision.repeated:
            formed.block.memory[:] = image
        return decision

    def receipt(self, formed: Formed, ordinal: int) -> Any:
        """Return the place of a receipt."""
        places = ffi.cast("struct mlsdm_receipt *", formed.block.map.base + formed.region_bytes("receipts")[0])
        return ffi.addressof(places, ordinal % (self.CAPACITY + 1))

    def heads(self, formed: Formed) -> Any:
        """Return the heads of the chains."""
        return ffi.cast("uint64_t *", formed.block.map.base + formed.region_bytes("chains")[0])

    def test_any_changed_byte_of_a_receipt(self, given: Formed) -> None:
        """With any byte of any receipt changed, a kept event gets its first decision or Corrupt, and is never decided
        again. A new event is decided, or Corrupt if its chain meets the damage.
        """
        offset, size = given.region_bytes("receipts")
        firsts = {ordinal: self.first(given, ordinal) for ordinal in self.promised()}
        seen: Counter[str] = Counter()
        for byte in flipped(given, offset, size):
            image = given.block.memory[:]
            touched = next(
                o for o in range(self.NEWEST - self.CAPACITY, self.NEWEST + 1) if o % 9 == byte // SIZES["receipt"]
            )
            for ordinal, first in firsts.items():
                answer = self.answers(given, image, self.key(ordinal))
                assert answer in (first, None)
                assert answer or (touched % self.CHAINS, touched >= ordinal) == (ordinal % self.CHAINS, True)
                seen["answered" if answer else "corrupt"] += 1
            fresh = self.answers(given, image, self.key(self.NEWEST + 1))
            assert fresh is None or not fresh.repeated
            seen["decided" if fresh else "fresh, corrupt"] += 1
        print(dict(seen))
        assert len(seen) == 4
        assert firsts == {ordinal: given.decide(0, key=self.key(ordinal)) for ordinal in firsts}

    def test_any_changed_bit_of_a_head(self, given: Formed) -> None:
        """With any bit of a head changed, the keys of its chain are Corrupt and none is decided again, even if the
        changed head would lead to nothing or to a receipt out of reach. Other chains are unaffected.
        """
        firsts = {ordinal: self.first(given, ordinal) for ordinal in self.promised()}
        heads = self.heads(given)
        for chain in range(self.CAPACITY):
            for _ in flipped_bits(given, given.region_bytes("chains")[0] + 8 * chain, 8):
                image = given.block.memory[:]
                for ordinal, first in firsts.items():
                    expected = None if ordinal % self.CHAINS == chain else first
                    assert self.answers(given, image, self.key(ordinal)) == expected
        assert {int(heads[chain]) for chain in range(self.CAPACITY)} == {seal(38), seal(39), seal(40), 0}

    def test_damaged_head_is_repaired(self, given: Formed) -> None:
        """The scrub repairs each head, even of a chain whose receipts are all overwritten, and of one without any.
        Then every kept key has its first decision again.
        """
        heads, store = self.heads(given), given.store
        firsts = {self.key(ordinal): self.first(given, ordinal) for ordinal in self.promised()}
        heads[5] = seal(self.NEWEST - self.CAPACITY)  # as if that one had been of chain 5
        for chain in range(self.CAPACITY):
            for bit in range(64):
                heads[chain] ^= 1 << bit
                assert chain == store.find_damaged_chain(0, self.CAPACITY)
                assert chain == store.find_damaged_chain(chain, 1)
                assert None is store.find_damaged_chain(chain + 1, self.CAPACITY - chain - 1)
                assert store.repair_chain(chain)
                assert None is store.find_damaged_chain(0, self.CAPACITY)
                assert firsts == {key: given.decide(0, key=key) for key in firsts}
                assert [seal(39), seal(40), seal(38)] == [heads[0], heads[1], heads[2]]
                assert chain < self.CHAINS or heads[chain] == 0

    def test_damaged_head_with_a_damaged_receipt(self, given: Formed) -> None:
        """A head that may have named a damaged receipt stays damaged until that receipt has left the ring; a head with
        a newer sound receipt is repaired.
        """
        heads, store = self.heads(given), given.store
        self.receipt(given, 39).body ^= 1
        for chain in (0, 2, 5):
            heads[chain] ^= 1 << 20
        heads[1] ^= 1 << 20

        assert [store.repair_chain(chain) for chain in (0, 1, 2, 5)] == [False, True, False, False]
        for ordinal in range(self.NEWEST + 1, self.NEWEST + self.CAPACITY - 1):  # all of chain 1
            given.decide(0, key=new_idempotency_hash((0, self.CAPACITY * ordinal + 1), 0))
        assert [store.repair_chain(chain) for chain in (0, 2, 5)] == [False, False, False]
        given.decide(0, key=new_idempotency_hash((0, self.CAPACITY * 100 + 1), 0))
        assert [store.repair_chain(chain) for chain in (0, 2, 5)] == [True, True, True]
        assert [heads[chain] for chain in (0, 2, 5)] == [0, 0, 0]

    def test_damaged_head_with_a_damaged_state(self, given: Formed) -> None:
        """Without a sound state the number of receipts is unknown, so a head is not repaired."""
        self.heads(given)[0] ^= 1
        for _ in flipped(given, given.region_bytes("states")[0] + (given.block.position & 1) * SIZES["state"], 8):
            assert not given.store.repair_chain(0)

    def forge(self, formed: Formed, previous: int) -> bytes:
        """Let receipt 37, of the chain of 40, 37 and 34, name another older one; returns the block with it."""
        forged = self.receipt(formed, 37)
        forged.previous = previous
        forged.checksum = checksum(bytes(ffi.buffer(forged))[:-8], 6)
        return formed.block.memory[:]

    def test_chain_that_does_not_descend(self, given: Formed) -> None:
        """A receipt with a right checksum that names itself, a newer one, one of another chain or an impossible one as
        the next older ends the search: Corrupt, no cycle, and nothing is decided.
        """
        expected = [self.first(given, 40), self.first(given, 37), None, None]

        def ask() -> None:
            for previous in (37, 38, 40, 41, 36, 10**6, WORD // 2, WORD - 8, WORD - 1):
                image = self.forge(given, previous)
                assert [self.answers(given, image, self.key(ordinal)) for ordinal in (40, 37, 34, 43)] == expected

        assert exit_of(begin(ask)) == 0  # apart, so that to run in circles is a failure and not a hang

    def test_receipt_out_of_reach_is_not_read(self, given: Formed) -> None:
        """A receipt out of reach is never read, whatever is in its place."""
        ffi.buffer(self.receipt(given, 32))[:] = os.urandom(SIZES["receipt"])  # the place that the next one goes to
        first = self.first(given, 37)
        for previous in (0, 1, 31, 32):
            image = self.forge(given, previous)
            assert first == self.answers(given, image, self.key(37))
            answer = self.answers(given, image, self.key(34))
            assert answer is not None
            assert answer.repeated == 0

    def test_head_of_a_receipt_never_given(self, given: Formed) -> None:
        """A chain that begins with a receipt that was never given is Corrupt."""
        heads, other = self.heads(given), self.first(given, 39)
        for head in (seal(41), seal(42), seal(10**9), seal(2**48 - 1), 40, WORD // 2, WORD - 8, WORD - 1):
            heads[1] = head
            image = given.block.memory[:]
            assert [self.answers(given, image, self.key(ordinal)) for ordinal in (40, 37, 39)] == [None, None, other]

    def test_damaged_count_of_receipts(self, given: Formed) -> None:
        """With any byte of the state changed, no event with a key is answered."""
        offset = given.region_bytes("states")[0] + (given.block.position & 1) * SIZES["state"]
        for _ in flipped(given, offset, SIZES["state"]):
            with pytest.raises(Corrupt):
                given.decide(0, key=self.key(40))


class TestCommand:
    """The slot of the last command, which lies there until the next one is posted."""

    @pytest.mark.parametrize("end", ["carried out", "taken back"])
    def test_damaged_old_command_stays_done(self, used: Formed, end: str) -> None:
        """With any bit of it changed, no command is carried out; the next one that is posted is."""
        ticket = used.store.post_command("reset")
        if end == "carried out":
            used.store.apply_command(used.now(), used.epoch)
        else:
            assert used.store.withdraw_command(ticket)
        used.accept()
        position, (offset, size) = used.block.position, used.region_bytes("command")
        for _ in flipped_bits(used, offset, size):
            assert used.store.apply_command(used.now(), used.epoch) is None
        assert position == used.block.position

        image = used.block.memory[:]
        for bit in flipped_bits(used, offset, size):
            used.store.post_command("stop")
            assert used.store.apply_command(used.now(), used.epoch), bit
            used.block.memory[:] = image

    def test_damaged_pending_command_is_withdrawn(self, used: Formed) -> None:
        """With any bit of it changed, it is not carried out, and its sender learns that it never will be."""
        image = used.block.memory[:]
        offset, size = used.region_bytes("command")
        for bit in range(8 * size):
            ticket = used.store.post_command("configure", used.regime.to_record())
            used.block.memory[offset + bit // 8] ^= 1 << bit % 8
            assert used.store.apply_command(used.now(), used.epoch) is None
            assert used.store.withdraw_command(ticket)
            assert used.store.apply_command(used.now(), used.epoch) is None
            assert ticket < used.store.post_command("stop")
            assert used.store.apply_command(used.now(), used.epoch)
            used.block.memory[:] = image


class TestHeader:
    def test_changed_header_is_not_opened(self, form: Form) -> None:
        """A block with any byte of its header changed is not opened."""
        formed = form()
        fields = {name: member.offset for name, member in ffi.typeof("struct mlsdm_header").fields}
        for _ in flipped(formed, 0, fields["reserved"]):
            with pytest.raises(BlockError):
                Block.open(formed.block.fd, writable=True)
        fd = os.dup(formed.block.fd)
        block = Block.open(fd, writable=True)

        assert formed.block.boot_id == block.boot_id
        block.close()

    def test_header_is_repaired_from_the_copy(self, form: Form) -> None:
        """A process that has opened the block has a copy of the header, and can write it again."""
        formed = form()
        known = (formed.block.boot_id, formed.block.secret, formed.block.header)
        assert not formed.block.repair_header()
        for _ in flipped(formed, 0, SIZES["header"]):
            assert known == (formed.block.boot_id, formed.block.secret, formed.block.header)
            assert formed.block.repair_header()
            assert formed.block.memory[: SIZES["header"]] == formed.block.header
        Block.open(os.dup(formed.block.fd), writable=True).close()

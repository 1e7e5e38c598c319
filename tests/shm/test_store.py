"""The store on a quiet block: what is returned, gone or unknown; the log, the rows, the commands."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shm import process
from shm._native import ffi
from shm.errors import Busy, Gone, Stale, Taken, Unformed, Unknown
from shm.layout import KINDS, NO_ROW, Layout
from shm.process import NOBODY, Identity
from shm.records import decided_of
from shm.store import Decision, Store
from testing.block_fixture import NORM_MAX, REGIME, Formed, Witness, begin, copied, exit_of, take_mutex
from tests.shm.conftest import Form

STRIDES = {"slots": 128, "codes": 24, "shadow": 16, "vectors": 64, "payloads": 64}  # of the small layout


class TestMemory:
    @pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 64])
    def test_a_memory_is_returned_as_it_was_sent(self, formed: Formed, size: int) -> None:
        """A memory is returned as it was sent: vector, payload of any size up to the limit, moral value, phase,
        position.
        """
        payload = os.urandom(size)
        memory_id = formed.accept(17, payload)
        memory = formed.store.memory(memory_id)
        moral, vector = formed.pool.event(950_017)

        assert (1, 2, 0, moral) == (memory.id, memory.position, memory.phase, memory.moral)
        assert (payload, vector.tobytes()) == (memory.payload, memory.vector)
        assert memory.norm == pytest.approx(1.0, abs=1e-6)

    def test_shorter_payload_replaces_the_longer(self, formed: Formed) -> None:
        """A slot that held 64 bytes returns 3 if 3 were sent."""
        for number in range(51):
            formed.accept(number, b"x" * 64)
        memory_id = formed.accept(0, b"abc")

        assert formed.slot_of(memory_id) == 52 % 51
        assert formed.store.memory(memory_id).payload == b"abc"

    @pytest.mark.parametrize("payload_size_max", [0, 1, 8, 100])
    def test_payload_limits_of_the_layout(self, form: Form, payload_size_max: int) -> None:
        """Layouts with no room for payloads, or an odd one, keep what fits."""
        formed = form(Layout(4, 10, payload_size_max, 64, 2, 16))
        payload = os.urandom(payload_size_max)
        ids = [formed.accept(number, payload) for number in range(25)]

        assert payload == formed.store.memory(ids[-1]).payload
        Witness(formed).check()

    def test_unknown_and_gone(self, formed: Formed) -> None:
        """An id never given is Unknown; one that was overwritten is Gone, from exactly the capacity on."""
        for number in range(50):
            formed.accept(number)
        assert formed.store.memory(1).id == 1
        for memory_id in (0, 51, 2**63):
            with pytest.raises(Unknown):
                formed.store.memory(memory_id)

        formed.accept()
        with pytest.raises(Gone):
            formed.store.memory(1)
        assert formed.live_ids() == list(range(2, 52))

    def test_ids_are_never_reused(self, formed: Formed) -> None:
        """Over many rounds of the store, with deletions, each accepted event gets the next id."""
        given = []
        for number in range(333):
            given.append(formed.accept(number))
            if number % 3 == 0:
                formed.store.forget(formed.now(), given[-1])

        assert given == list(range(1, 334))
        assert formed.live_ids() == [memory_id for memory_id in range(334) if memory_id % 3 != 1][-50:]

    def test_rejected_events_take_no_id(self, formed: Formed) -> None:
        """The id is the accepted ordinal, the sequence counts both."""
        formed.admit(1)
        entry = formed.admit(999_999)

        assert (entry.after.accepted, entry.after.rejected) == (1, 1)
        assert formed.store.memory(1).moral == 999_999 / 1e6

    def test_unformed_before_the_first_epoch(self, formed: Formed) -> None:
        """There is no state, no memory and no decision."""
        formed.block.region("commit").sealed = 0
        for call in self.calls(formed):
            with pytest.raises(Unformed):
                call()

    @staticmethod
    def calls(formed: Formed) -> list[Callable[[], Any]]:
        """Everything that needs a state."""
        return [
            formed.store.state,
            formed.store.levels,
            lambda: formed.store.memory(1),
            formed.accept,
            lambda: formed.store.tick(formed.now(), 1),
        ]


class TestForget:
    def test_deleted_memory_is_gone(self, formed: Formed) -> None:
        """A deleted memory is Gone, cannot be deleted again, and leaves room for another one."""
        ids = [formed.accept(number) for number in range(50)]
        entry = copied(formed.store.forget(formed.now(), 7))
        decided = decided_of(entry)

        assert (KINDS[entry.kind], decided.memory_id, entry.after.live) == ("delete", 7, 49)
        for call in (formed.store.memory, lambda one: formed.store.forget(formed.now(), one)):
            with pytest.raises(Gone):
                call(7)
        assert [one for one in ids if one != 7] == formed.live_ids()
        for number in range(7):
            formed.accept(number)
        assert formed.store.state().scalars.live == 50

    def test_unknown_and_gone(self, formed: Formed) -> None:
        """An id that was never given is Unknown, an overwritten one Gone; neither writes to the log."""
        for number in range(60):
            formed.accept(number)
        position = int(formed.store.state().position)
        for memory_id, error in ((0, Unknown), (61, Unknown), (10, Gone)):
            with pytest.raises(error):
                formed.store.forget(formed.now(), memory_id)

        assert position == formed.store.state().position

    def test_erases_the_bytes(self, formed: Formed) -> None:
        """No part of vector, shadow or payload is left anywhere in the block."""
        marker = os.urandom(48)
        vector = np.frombuffer(os.urandom(16), np.uint8).astype(np.float32)
        memory_id = formed.store.admit(formed.now(), 1.0, vector, marker).memory_id
        shadow, _ = formed.region_bytes("shadow")
        at = slice(shadow + memory_id * 16, shadow + memory_id * 16 + 16)
        codes = formed.block.memory[at]
        assert codes.strip(b"\0")
        formed.store.forget(formed.now(), memory_id)

        assert formed.block.memory.find(marker) == -1
        assert formed.block.memory.find(vector.tobytes(), formed.region_bytes("slots")[0]) == -1
        assert formed.block.memory[at] == bytes(16)


class TestScrub:
    @pytest.mark.parametrize("part", STRIDES)
    def test_finds_every_flipped_byte(self, formed: Formed, part: str) -> None:
        """A flip of any byte of a live memory is found and its id is named, in its marks, too."""
        for number in range(60):
            formed.accept(number, b"y" * 64)
        stride, (offset, _) = STRIDES[part], formed.region_bytes(part)
        for byte in range(stride):
            memory_id = random.randrange(11, 61)
            at = offset + memory_id % 51 * stride + byte
            before = formed.block.memory[at]
            formed.block.memory[at] ^= 1 << random.randrange(8)
            found = [formed.store.check_slot(slot) for slot in range(51)]
            assert [one for one in found if not one[0]] == [(False, memory_id)], f"byte {byte}"
            formed.block.memory[at] = before

    def test_finds_every_flipped_bit_in_the_marks_of_free_slots(self, formed: Formed) -> None:
        """Of slots never used, deleted and evicted, the marks are checked, too."""
        for number in range(5):
            formed.accept(number)
        formed.store.forget(formed.now(), 3)
        for slot in (0, 3, 6):
            for region, index in (("slots", 14), ("codes", 2)):
                word = ffi.cast("uint64_t *", formed.block.region(region, slot)) + index
                for bit in range(64):
                    word[0] ^= 1 << bit
                    assert [at for at in range(51) if not formed.store.check_slot(at)[0]] == [slot]
                    assert formed.store.repair_slot(slot)
                    assert all(formed.store.check_slot(at)[0] for at in range(51))

    def test_invisible_slots_are_sound(self, formed: Formed) -> None:
        """But for its marks, a free slot may hold anything."""
        for number in range(5):
            formed.accept(number)
        formed.store.forget(formed.now(), 3)
        for slot in (0, 3, 6, 50):
            formed.block.region("slots", slot).moral = 99.0

        assert [formed.store.check_slot(slot) for slot in range(51)] == [(True, 0)] * 51


class TestEntries:
    def test_pages_of_the_log_have_no_gap(self, formed: Formed) -> None:
        """Pages follow each other without gap; past the newest there is an empty page, beyond it Unknown."""
        for number in range(9):
            formed.accept(number)
        pages = [[entry.position for entry in formed.store.entries(first, 4)[0]] for first in (1, 5, 9, 11)]

        assert pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], []]
        with pytest.raises(Unknown):
            formed.store.entries(12, 4)

    def test_gone_when_overtaken(self, form: Form) -> None:
        """The log keeps its capacity less the entry that may be being written; what came before is Gone."""
        formed = form(Layout(4, 10, 8, 32, 2, 16))
        for number in range(99):
            formed.accept(number)
        entries, oldest = formed.store.entries(100 - 30, 1000)

        assert (oldest, [entry.position for entry in entries]) == (70, list(range(70, 101)))
        for first in (0, 1, 69):
            with pytest.raises(Gone):
                formed.store.entries(first, 10)

    def test_oldest_is_1_until_the_ring_is_full(self, form: Form) -> None:
        """The oldest position is 1 as long as nothing has been overwritten."""
        formed = form(Layout(4, 10, 8, 32, 2, 16))
        for number in range(30):
            formed.accept(number)

        assert (len(formed.store.entries(1, 100)[0]), formed.store.entries(1, 100)[1]) == (31, 1)

    def test_time_never_runs_backwards(self, formed: Formed) -> None:
        """A caller whose clock is behind gets the time of the transition before."""
        _, vector = formed.pool.event(1)
        decisions = [formed.store.admit(now, 1.0, vector, b"") for now in (formed.now() + 10**9, formed.now())]
        earlier, later = (formed.entry(decision.position).time_ns for decision in decisions)

        assert earlier == later


class TestBatch:
    def test_batch_is_decided_in_order(self, formed: Formed) -> None:
        """Each event of a batch has its own decision and its own payload, in order."""
        events = [formed.pool.event(950_000 + number) for number in range(10)]
        payloads = [bytes([number]) * number for number in range(10)]
        decisions, status = formed.store.admit_batch(
            formed.now(), np.array([moral for moral, _ in events]), np.stack([vector for _, vector in events]), payloads
        )

        assert (len(decisions), status) == (10, 0)
        assert [Decision._make(decision).position for decision in decisions] == list(range(2, 12))
        memories = [formed.store.memory(memory_id) for memory_id in range(1, 11)]
        assert payloads == [memory.payload for memory in memories]
        assert [vector.tobytes() for _, vector in events] == [memory.vector for memory in memories]
        Witness(formed).check()

    def test_check_finds_the_first_bad_vector(self, formed: Formed) -> None:
        """Validation names the first vector that cannot be admitted, and touches nothing."""
        vectors = np.ones((5, 16), np.float32)
        assert formed.store.check_vectors(vectors, 5) == (0, 5)
        vectors[3, 15] = np.nan
        status, index = formed.store.check_vectors(vectors, 5)

        assert (index, status != 0) == (3, True)
        assert formed.store.state().position == 1


class TestRows:
    def test_free_rows_first(self, formed: Formed) -> None:
        """Live owners get the free rows in order, and nobody gets one more than there are."""
        me = process.identify_self()
        assert [formed.store.claim_row(me) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(Taken):
            formed.store.claim_row(me)

    def test_row_of_a_dead_owner_is_claimed(self, formed: Formed) -> None:
        """The row of a process that has ended is claimed again, and its counters continue."""

        def work() -> None:
            row = formed.store.claim_row(process.identify_self())
            formed.be(row)
            formed.block.region("rows", row).requests += 5
            formed.accept()

        assert exit_of(begin(work)) == 0
        assert formed.store.tallies()[:2] == (1, 0)
        formed.be(NO_ROW)
        row = formed.store.claim_row(process.identify_self())
        formed.be(row)
        formed.accept()

        assert row == 0
        assert (5, os.getpid()) == (formed.block.region("rows", 0).requests, formed.block.region("rows", 0).pid)
        assert formed.store.tallies()[:2] == (2, 0)

    def test_a_reused_pid_is_not_its_predecessor(self, formed: Formed) -> None:
        """A row whose owner has our pid but another start time belongs to nobody alive."""
        me = process.identify_self()
        formed.store.claim_row(Identity(me.pid, me.started - 1))

        assert formed.store.claim_row(me) == 0

    def test_released_row_is_claimed_next(self, formed: Formed) -> None:
        """A released row is the next one to be claimed; only its owner can release it."""
        me = process.identify_self()
        first = formed.store.claim_row(me)
        formed.store.claim_row(me)
        with pytest.raises(Taken):
            formed.store.release_row(first, Identity(me.pid, me.started + 1))
        formed.store.release_row(first, me)

        assert (
            Identity(int(formed.block.region("rows", first).pid), int(formed.block.region("rows", first).started))
            == NOBODY
        )
        assert first == formed.store.claim_row(me)


class TestCommands:
    def test_one_command_at_a_time(self, formed: Formed) -> None:
        """While a command is pending, another is refused; once it was carried out, the next gets the next ticket."""
        first = formed.store.post_command("stop")
        with pytest.raises(Taken):
            formed.store.post_command("resume")
        entry = formed.store.apply_command(formed.now(), formed.epoch)

        assert entry is not None
        assert KINDS[entry.kind] == "stop"

        assert first == formed.store.state().ticket
        assert first + 1 == formed.store.post_command("resume")

    def test_command_is_carried_out_once(self, formed: Formed) -> None:
        """Nothing is left to do afterwards, for this controller or for the next."""
        formed.store.post_command("reset")
        assert formed.store.apply_command(formed.now(), formed.epoch)
        assert formed.store.apply_command(formed.now(), formed.epoch) is None
        epoch = formed.store.begin_epoch(formed.now(), REGIME.to_record())

        assert formed.store.apply_command(formed.now(), epoch) is None

    def test_withdrawn_command_is_not_carried_out(self, formed: Formed) -> None:
        """A withdrawn command is never carried out, and the slot is free."""
        ticket = formed.store.post_command("stop")

        assert formed.store.withdraw_command(ticket)
        assert formed.store.apply_command(formed.now(), formed.epoch) is None
        assert not formed.store.withdraw_command(ticket)
        assert ticket + 1 == formed.store.post_command("reset")
        assert not formed.store.withdraw_command(ticket)
        assert formed.store.command_pending()

    def test_command_carried_out_cannot_be_withdrawn(self, formed: Formed) -> None:
        """A command that was carried out cannot be withdrawn."""
        ticket = formed.store.post_command("stop")
        formed.store.apply_command(formed.now(), formed.epoch)

        assert not formed.store.withdraw_command(ticket)

    def test_superseded_controller_writes_nothing(self, formed: Formed) -> None:
        """After a newer controller has taken over: no tick, no command, no vitals."""
        old = formed.epoch
        formed.store.post_command("stop")
        formed.store.begin_epoch(formed.now(), REGIME.to_record())
        position = int(formed.store.state().position)
        vitals = ffi.new("struct mlsdm_vitals *")
        calls: tuple[Callable[[], object], ...] = (
            lambda: formed.store.tick(formed.now(), old),
            lambda: formed.store.apply_command(formed.now(), old),
            lambda: formed.store.write_vitals(old, vitals),
        )
        for call in calls:
            with pytest.raises(Stale):
                call()

        assert position == formed.store.state().position

    def test_a_later_epoch_keeps_the_state(self, formed: Formed) -> None:
        """Only the first controller forms the state; the next one's settings are not taken."""
        formed.accept()
        before = formed.store.state()
        threshold, accepted = before.scalars.theta, before.scalars.accepted
        other = REGIME._replace(governor=REGIME.governor._replace(initial_threshold=0.7))
        formed.store.begin_epoch(formed.now(), other.to_record())
        after = formed.store.state()

        assert (threshold, accepted, 0.5, 2) == (
            after.scalars.theta, after.scalars.accepted, after.settings.initial_threshold, formed.block.epoch,
        )  # fmt: skip
        assert after.position == 2


class TestReadOnly:
    def test_observer_reads_without_the_lock(self, formed: Formed) -> None:
        """Everything that can be read is read without the lock."""
        for number in range(70):
            formed.accept(number)
        store = Store(formed.block)
        formed.block.bind(os.getpid(), NO_ROW, 0, NORM_MAX)

        assert store.state().position == 71
        assert store.memory(70).id == 70
        assert len(store.entries(1, 100)[0]) == 71
        assert store.tallies() == (70, 0, 71)

    def test_busy_with_a_wait_of_0_ms(self, formed: Formed) -> None:
        """A wait of 0 ms for a lock that another process holds raises Busy."""
        ready, go = os.pipe()
        done, end = os.pipe()

        def hold() -> None:
            take_mutex(formed.block)
            os.write(go, b".")
            os.read(done, 1)

        pid = begin(hold)
        os.read(ready, 1)
        formed.wait_ms = 0
        formed.be(0)
        with pytest.raises(Busy):
            formed.accept()
        os.write(end, b".")
        assert exit_of(pid) == 0
        for fd in (ready, go, done, end):
            os.close(fd)

"""SIGKILL at any instruction: no deadlock, no corruption, nothing half done, nothing committed is lost.

There are three kinds of deaths. Random: many, in hot loops. Staged: a child takes the mutex, overwrites everything
that a transition may change before its commit, and dies. Stepped: one death at each instruction of each kind of
section, which is the proof; by default every 64th instruction from a random first one, with `STRIDE=1` all.

A client whose answer was lost retries with the same idempotency key. So the proof continues: a retry gets the
committed answer or is decided now, exactly one of the two, and all earlier answers stand.
"""

import bisect
import contextlib
import os
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from core.namespaces import NamespaceId, Policy, Terms
from shm._native import ffi, lib
from shm.errors import Gone
from shm.event import Event
from shm.layout import NO_ROW, Layout, free_since, live_since, seal
from shm.recall import Recall
from shm.records import NO_IDEMPOTENCY_HASH, IdempotencyHash, new_idempotency_hash
from shm.store import Decision, Store
from testing.block_fixture import REGIME, Formed, Witness, begin, copied, end, exit_of, take_mutex, wait_until
from tests import tracee
from tests.shm.conftest import Form

SEED = int(os.environ.get("SEED") or random.randrange(2**32))
KILLS = int(os.environ.get("KILLS", "30"))
STRIDE = int(os.environ.get("STRIDE", "64"))  # 1 for the whole proof: 20,000 deaths, some minutes
ASLEEP = REGIME._replace(rhythm=REGIME.rhythm._replace(wake_duration=1, sleep_duration=50))


def rollbacks(formed: Formed) -> int:
    """Return how many transitions were undone."""
    return int(formed.block.region("lock").rollbacks)


class TestRandom:
    def test_kills_at_random_moments(self, form: Form) -> None:
        """Writers that admit, delete, update, supersede and tick as fast as they can are killed one after the other;
        after each death the next event is admitted, and the block equals a replay of its log.
        """
        print(f"rerun with SEED={SEED} KILLS={KILLS} pytest {__file__}")
        rng = random.Random(SEED)
        formed = form(Layout(64, 30, 64, 262_144, 4, 16))
        witness = Witness(formed)
        lock = formed.block.region("lock")

        def write() -> None:
            formed.be(1)
            while True:
                events = [formed.pool.event(rng.randrange(300_000, 1_000_001)) for _ in range(40)]
                morals, vectors = np.array([moral for moral, _ in events]), np.stack([vector for _, vector in events])
                payloads = [b"x" * (number % 65) for number in range(40)]
                for number in range(20):
                    key = new_idempotency_hash((rng.getrandbits(64), 0), 0) if number % 2 else NO_IDEMPOTENCY_HASH
                    formed.store.admit_batch(formed.now(), morals, vectors, payloads, key)
                    formed.store.tick(formed.now(), formed.epoch)
                    newest = int(formed.store.state().scalars.newest_id)
                    for back in (3, 7, 20):
                        with contextlib.suppress(Gone):
                            formed.store.forget(formed.now(), max(1, newest - back))
                        with contextlib.suppress(Gone):
                            formed.store.update(formed.now(), max(1, newest - back - 1), b"version")
                        with contextlib.suppress(Gone):
                            formed.store.supersede(
                                formed.now(), max(1, newest - back - 2), morals[0], vectors[0], payloads[number]
                            )

        for _ in range(KILLS):
            before = int(lock.acquisitions)
            writer = begin(write)
            wait_until(lambda before=before: lock.acquisitions > before + 50)  # type: ignore[misc]  # early binding
            time.sleep(rng.random() * 0.002)
            end(writer)
            formed.accept(rng.randrange(50_000))
            witness.check()
        print(f"{KILLS} kills, {lock.deaths} of them inside the section, {lock.rollbacks} transitions undone")


class TestStaged:
    """A child dies inside the section with garbage everywhere that a transition may touch before it is published."""

    @pytest.fixture
    def used(self, form: Form) -> Formed:
        """A store that has wrapped, with holes, after decisions of two rows; its receipts have wrapped, too."""
        formed = form()
        for number in range(120):
            formed.be(number % 2)
            formed.decide(950_000 + number, key=key(number))
            formed.admit(100_000)
        formed.store.forget(formed.now(), 100)
        return formed

    @staticmethod
    def die(formed: Formed, garble: Callable[[int], object]) -> None:
        """Fork a child that takes the mutex, runs `garble(commit)` and dies without releasing it."""

        def work() -> None:
            take_mutex(formed.block)
            garble(formed.block.position)
            os.kill(os.getpid(), 9)

        assert exit_of(begin(work)) == -9

    @staticmethod
    def fill(formed: Formed, name: str, index: int, stride: int) -> None:
        """Write garbage over one element of a region."""
        offset, _ = formed.region_bytes(name)
        formed.block.memory[offset + index * stride : offset + (index + 1) * stride] = random.randbytes(stride)

    def test_garbage_where_no_reader_looks(self, used: Formed) -> None:
        """The other state buffer, the other levels, the next log entry, the spare slot but for its marks and the spare
        place of a receipt may hold anything: no reader looks there, and the next transition overwrites it.
        """
        witness = Witness(used)
        witness.check()
        layout = used.block.layout
        before = copied(used.store.entries(int(used.store.state().position), 1)[0][0])
        state = used.store.state()
        levels, spare = int(state.levels) ^ 1, int(state.spare)
        receipt = (int(state.receipts) + 1) % (layout.receipt_capacity + 1)
        strides = {region.name: region.stride for region in layout.regions()}

        def garble(commit: int) -> None:
            self.fill(used, "receipts", receipt, strides["receipts"])
            self.fill(used, "states", (commit + 1) & 1, strides["states"])
            self.fill(used, "levels", levels, strides["levels"])
            self.fill(used, "log", (commit + 1) % layout.log_capacity, strides["log"])
            marked = [marked_record(used, name, spare) for name in ("slots", "codes")]
            marks = [record.mark for record in marked]
            for name in ("slots", "codes", "shadow", "vectors", "payloads"):
                self.fill(used, name, spare, strides[name])
            for record, mark in zip(marked, marks, strict=True):
                record.mark = mark

        self.die(used, garble)
        used.be(NO_ROW)
        used.block.map.wait_ms = 0  # look only
        assert before.position == used.store.state().position
        assert bytes(used.store.entries(before.position, 1)[0][0].checksum.to_bytes(8, "little")) == bytes(
            before.checksum.to_bytes(8, "little")
        )
        witness.check()
        used.be(0)
        used.decide(950_000, key=key(1000))
        witness.check()
        assert used.block.region("lock").deaths == 1

    @pytest.mark.parametrize("head", [0, seal(121), 2**64 - 1])
    def test_unpublished_head_is_restored(self, used: Formed, head: int) -> None:
        """A head that points at a receipt of an unpublished transition gets its former value."""
        layout, undone = used.block.layout, rollbacks(used)
        heads = ffi.cast("uint64_t *", used.block.map.base + used.region_bytes("chains")[0])
        newest = seal(120)  # receipt
        chain = next(chain for chain in range(layout.receipt_capacity) if heads[chain] == newest)

        def garble(commit: int) -> None:
            self.fill(used, "receipts", 121 % (layout.receipt_capacity + 1), ffi.sizeof("struct mlsdm_receipt"))
            lock = used.block.region("lock")
            lock.intent_row, lock.intent_chain, lock.intent_head = 1, chain + 1, heads[chain]
            lock.intent_position, lock.intent_erase, lock.intent_slot = commit + 1, 0, (0, 0)
            heads[chain] = head

        witness = Witness(used)
        self.die(used, garble)
        witness.check()  # the first retry repairs
        assert (newest, undone + 1) == (heads[chain], rollbacks(used))
        assert used.decide(950_000, key=key(1000)).repeated == 0
        witness.check()

    def test_unpublished_tally_is_void(self, used: Formed) -> None:
        """The cell that was changed for an unpublished decision does not count, and is used again."""

        def garble(commit: int) -> None:
            lock, cells = used.block.region("lock"), used.block.region("rows", 1).tally
            lock.intent_row, lock.intent_position, lock.intent_erase, lock.intent_slot = 1, commit + 1, 0, (0, 0)
            older = 0 if cells[0].position < cells[1].position else 1
            cells[older].position, cells[older].accepted, cells[older].rejected = commit + 1, 12345, 67890

        witness, undone = Witness(used), rollbacks(used)
        self.die(used, garble)
        assert used.store.tallies()[:2] == (120, 120)
        used.accept()
        witness.check()
        assert undone + 1 == rollbacks(used)

    def test_first_tally_of_a_row(self, used: Formed) -> None:
        """A row whose first decision was unpublished counts from zero."""

        def garble(commit: int) -> None:
            lock, cell = used.block.region("lock"), used.block.region("rows", 3).tally[1]
            lock.intent_row, lock.intent_position, lock.intent_erase, lock.intent_slot = 3, commit + 1, 0, (0, 0)
            cell.position, cell.accepted, cell.rejected = commit + 1, 12345, 67890

        self.die(used, garble)
        used.be(3)
        used.accept()
        witness = Witness(used)
        witness.check()

    @pytest.mark.parametrize("marked", [(), ("slots",), ("slots", "codes")])
    def test_unpublished_deletion_is_undone(self, used: Formed, marked: tuple[str, ...]) -> None:
        """With the intent written and none, one or both marks, the memory lives: before the repair and after it."""

        def garble(commit: int) -> None:
            lock, slot = used.block.region("lock"), 110 % 51
            lock.intent_slot, lock.intent_mark = (0, slot + 1), (0, used.block.region("slots", slot).mark)
            lock.intent_row, lock.intent_position, lock.intent_erase = 1, commit + 1, slot + 1
            for region in marked:
                marked_record(used, region, slot).mark = free_since(commit + 1)

        witness = Witness(used)
        memory = used.store.memory(110)
        self.die(used, garble)
        assert memory == used.store.memory(110)
        assert 110 in [match.id for match in self.recalled(used, memory.vector)]
        used.accept()
        assert memory == used.store.memory(110)
        witness.check()

    @pytest.mark.parametrize("marks", range(5))
    def test_unpublished_memory_is_undone(self, used: Formed, marks: int) -> None:
        """However many marks of the written and of the evicted slot are set, nothing has changed: before the repair and
        after it.
        """
        newest = int(used.store.state().scalars.newest_id)
        written, evicted = (newest + 1) % 51, (newest - 49) % 51
        before = [int(used.block.region("slots", slot).mark) for slot in (written, evicted)]

        def garble(commit: int) -> None:
            lock = used.block.region("lock")
            lock.intent_slot, lock.intent_mark = (written + 1, evicted + 1), before
            lock.intent_row, lock.intent_position, lock.intent_erase = 1, commit + 1, 0
            for name in ("vectors", "payloads", "shadow"):
                self.fill(used, name, written, 64 if name != "shadow" else 16)
            for region, slot, mark in (
                ("slots", written, live_since(commit + 1)),
                ("codes", written, live_since(commit + 1)),
                ("slots", evicted, free_since(commit + 1)),
                ("codes", evicted, free_since(commit + 1)),
            )[:marks]:
                marked_record(used, region, slot).mark = mark

        witness, oldest = Witness(used), used.store.memory(newest - 49)
        self.die(used, garble)
        used.be(NO_ROW)
        used.block.map.wait_ms = 0  # look only
        witness.check()
        assert oldest == used.store.memory(newest - 49)
        assert oldest.id in [match.id for match in self.recalled(used, oldest.vector)]
        used.be(0)
        used.store.tick(used.now(), used.epoch)  # takes the position
        witness.check()
        assert oldest == used.store.memory(newest - 49)
        assert before == [marked_record(used, "codes", slot).mark for slot in (written, evicted)]

    def test_published_deletion_is_erased(self, used: Formed) -> None:
        """The memory is gone at once, and the next process to enter erases its bytes."""

        used.accept(0, b"secret")
        vector = used.store.memory(110).vector
        strides = {region.name: region.stride for region in used.block.layout.regions()}
        offset = used.region_bytes("vectors")[0] + 110 % 51 * strides["vectors"]
        used.store.forget(used.now(), 110)
        used.block.memory[offset : offset + len(vector)] = vector

        def half(_commit: int) -> None:
            used.block.region("lock").intent_erase = 110 % 51 + 1

        self.die(used, half)
        with pytest.raises(Gone):
            used.store.memory(110)
        used.accept()
        assert bytes(len(vector)) == used.block.memory[offset : offset + len(vector)]
        assert used.block.region("lock").intent_erase == 0
        Witness(used).check()

    def test_death_before_the_first_store(self, used: Formed) -> None:
        """A process that dies with the mutex and has written nothing leaves nothing to repair."""
        undone = rollbacks(used)
        self.die(used, lambda _commit: None)
        used.accept()
        Witness(used).check()

        assert (undone, 1) == (rollbacks(used), used.block.region("lock").deaths)

    def test_many_deaths_in_a_row(self, used: Formed) -> None:
        """The mutex survives any number of owners that die."""
        for _ in range(10):
            self.die(used, lambda _commit: None)
        used.accept()

        assert 1 <= used.block.region("lock").deaths <= 10
        Witness(used).check()

    @staticmethod
    def recalled(formed: Formed, vector: bytes) -> list[Any]:
        """Return what recall finds for a vector."""
        return Recall(formed.block).nearest(vector, 100, (3, 3), payloads=False, vectors=False).matches


def marked_record(formed: Formed, region: str, slot: int) -> Any:
    """Return the line or the code line of a slot: both have a mark."""
    return formed.block.region(region, slot)


def key(number: int) -> IdempotencyHash:
    """Return the hash of an event of these tests. Their chains are few, so that each has receipts in the window."""
    return new_idempotency_hash((0, 8 * number + number % 3), 0)


def accept(formed: Formed) -> object:
    """Admit an event that is accepted, overwrites a memory, and runs the whole cascade."""
    return formed.decide(950_007, b"payload")


def reject(formed: Formed) -> object:
    """Admit an event that is rejected."""
    return formed.decide(1)


def accept_keyed(formed: Formed) -> Any:
    """The same with a key; its chain has receipts, and its own receipt overwrites one."""
    return formed.decide(950_007, b"payload", key(1000))


def reject_keyed(formed: Formed) -> Any:
    """Admit an event with a key that is rejected."""
    return formed.decide(1, key=key(1000))


def repeat(formed: Formed) -> Any:
    """Admit an event that was decided before."""
    return formed.decide(1, key=key(36))


def batch(formed: Formed) -> Any:
    """Admit two events under one key. Returns the second decision."""
    moral, vector = formed.pool.event(950_007)
    decisions, status = formed.store.admit_batch(
        formed.now(), np.array([moral, moral]), np.stack([vector, vector]), None, key(1000)
    )
    assert (len(decisions), status) == (2, 0)
    return Decision._make(decisions[1])


def reuse(formed: Formed) -> object:
    """Admit an event that is accepted into a store with room; `Death.of` has deleted a memory."""
    return formed.decide(950_007, b"payload")


def rebuild(formed: Formed) -> object:
    """Reject an event, after index and lists were made again; `Death.of` has said that they were being changed."""
    return formed.decide(1)


def update(formed: Formed) -> object:
    """Write a new version of a memory."""
    return formed.store.update(formed.now(), 15, b"other")


def supersede(formed: Formed) -> object:
    """Admit an event that is accepted and takes the place of a memory."""
    moral, vector = formed.pool.event(950_007)
    return formed.store.supersede(formed.now(), 15, moral, vector, b"other")


def forget(formed: Formed) -> object:
    """Delete a memory."""
    return formed.store.forget(formed.now(), 15)


def lose(formed: Formed) -> object:
    """Lose the same memory: a bit of its vector has flipped."""
    formed.block.memory[lost_byte(formed)] ^= 1
    return formed.store.lose(formed.now(), 15)


def lost_byte(formed: Formed) -> int:
    """Return the offset of the byte that `lose` finds damaged."""
    return formed.region_bytes("vectors")[0] + 15 % 9 * 64


def tick(formed: Formed) -> object:
    """Take a step of the rhythm, with a consolidation."""
    return formed.store.tick(formed.now(), formed.epoch)


def epoch(formed: Formed) -> object:
    """Become the controller; nothing is committed by it."""
    return formed.store.begin_epoch(formed.now(), REGIME.to_record())


def command(formed: Formed) -> object:
    """Carry out the pending command, a reset."""
    return formed.store.apply_command(formed.now(), formed.epoch)


def post(formed: Formed) -> object:
    """Post a command; nothing is committed by it."""
    return formed.store.post_command("stop")


def claim(formed: Formed) -> object:
    """Claim a worker row; nothing is committed by it."""
    return lib.mlsdm_row_claim(formed.block.map, 2, 0, 0, os.getpid(), 1)


ANN, BOB = NamespaceId(1, 1), NamespaceId(2, 1)
OWN = Terms(policy=Policy(REGIME.governor))


def admit_own(formed: Formed) -> object:
    """Admit an event of a namespace with its own governor; it evicts a memory of the default one."""
    moral, vector = formed.pool.event(950_007)
    return formed.store.admit_event(formed.now(), Event(moral, vector, namespace=ANN))


def create(formed: Formed) -> object:
    """Create a namespace with its own governor."""
    return formed.store.create_namespace(formed.now(), OWN.to_record("eve"))


def change(formed: Formed) -> object:
    """Give a namespace other terms; its own governor ends."""
    return formed.store.change_namespace(formed.now(), ANN, Terms(reserved=2).to_record())


def close(formed: Formed) -> object:
    """Close a namespace."""
    return formed.store.close_namespace(formed.now(), ANN)


def free(formed: Formed) -> object:
    """Free the row of a namespace that is closed."""
    return formed.store.free_namespace(formed.now(), BOB)


def reset_own(formed: Formed) -> object:
    """Reset the own governor of a namespace."""
    return formed.store.reset_namespace(formed.now(), ANN)


OPERATIONS = (
    accept, reject, accept_keyed, reject_keyed, repeat, batch, reuse, rebuild, update, supersede, forget, lose, tick,
    epoch, command, post, claim, admit_own, create, change, close, free, reset_own,
)  # fmt: skip
KEYED = (accept_keyed, reject_keyed, repeat, batch)
NOTHING_COMMITTED = (repeat, epoch, post, claim)
ERASES = (forget, lose, update, supersede)
SECOND = tracee.SECTION._replace(passes=1)


class Death(NamedTuple):
    """An operation that is going to be interrupted: what stood before it, and along which path it goes.

    `position` is that before its own section, `section` the stretch in which it dies.
    """

    operation: Callable[[Formed], Any]
    witness: Witness
    position: int
    section: tracee.Stretch
    path: list[int]
    image: bytes

    @classmethod
    def of(cls, formed: Formed, operation: Callable[[Formed], Any]) -> "Death":
        """Prove the block, then record the path; the block is left as it was."""
        if operation is command:
            formed.store.post_command("reset")
        if operation is reuse:
            formed.store.forget(formed.now(), 17)
        witness = Witness(formed)
        witness.check()
        if operation is rebuild:
            formed.block.region("lock").caches += 1
        image, section = formed.block.memory[:], SECOND if operation is batch else tracee.SECTION
        position = int(formed.store.state().position) + (operation is batch)
        path = tracee.path_of(lambda: operation(formed), section)
        formed.block.memory[:] = image
        return cls(operation, witness, position, section, path, image)

    def at(self, formed: Formed, number: int) -> None:
        """Die before one instruction; `formed` shows the block as it is left."""
        formed.block.memory[:] = self.image
        tracee.kill_at(self.path, lambda: self.operation(formed), number, self.section)
        if self.operation is lose and formed.block.position == self.position:  # the proof is for sound memories
            formed.block.memory[lost_byte(formed)] = self.image[lost_byte(formed)]

    def prove(self, formed: Formed, where: str, erases: bool) -> bool:
        """Prove the block after the death. Returns whether the operation was committed.

        `erases`: if it was, the bytes of memory 15 must be erased by the next process that enters.
        """
        try:
            witness = self.witness.copy()
            committed = looked_at(formed) > self.position
            if erases and committed:
                formed.store.repair_links(0, 1)  # enters the section, and has nothing else to do
                assert not formed.block.vectors[15 % 9].any()
            formed.accept(3)
            witness.check()
            assert formed.store.repair_namespaces(0, formed.block.layout.namespaces) == 0
            if self.operation in (forget, lose, supersede) and committed:
                with pytest.raises(Gone):
                    formed.store.memory(15)
            if self.operation in KEYED:
                self._retry(formed, witness, committed)
        except Exception as error:
            raise AssertionError(f"after death at {where}") from error
        return committed

    def _retry(self, formed: Formed, witness: Witness, committed: bool) -> None:
        """Send the event again: if it was committed, it gets that decision; otherwise it is decided now, once."""
        position = int(formed.store.state().position)
        first = self.operation(formed)
        decided_earlier = committed or self.operation is repeat
        assert decided_earlier == bool(first.repeated)
        if committed:
            assert self.position + 1 == first.position
        elif not decided_earlier:
            assert position + 1 == first.position
        assert position + (not decided_earlier) == formed.store.state().position
        assert first._replace(repeated=1) == self.operation(formed)
        witness.check()


def looked_at(formed: Formed) -> int:
    """Read everything without the lock, as an observer does before the repair. Returns the position."""
    store = Store(formed.block)
    wait_ms, formed.block.map.wait_ms = formed.block.map.wait_ms, 0
    state, _ = store.levels()
    scalars = state.scalars
    assert store.tallies()[:2] == (scalars.accepted, scalars.rejected)
    assert len(formed.live_ids()) == state.scalars.live
    formed.block.map.wait_ms = wait_ms
    return int(state.position)


@pytest.mark.skipif(not tracee.possible(), reason="needs ptrace on x86-64")
class TestStepped:
    """Death before each instruction of a section. The block is put back after each, so that every child takes the same
    path; `STRIDE` is the distance between the instructions that are tried.
    """

    @pytest.fixture
    def small(self, form: Form) -> Formed:
        """A store whose rings have wrapped, asleep, with work for both gates; two floats keep the loops short."""
        formed = form(Layout(2, 8, 16, 64, 3, 8, namespaces=4), ASLEEP)
        formed.pool.vectors[:] *= np.float32(5)
        formed.store.tick(formed.now(), formed.epoch)
        for number in range(20):
            formed.be(number % 2)
            formed.decide(950_000 + number, b"x" * 9, key(2 * number))
            formed.decide(1, key=key(2 * number + 1))
        formed.be(1)
        formed.store.create_namespace(formed.now(), OWN.to_record("ann"))
        formed.store.create_namespace(formed.now(), Terms().to_record("bob"))
        formed.store.close_namespace(formed.now(), BOB)
        return formed

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_death_at_instructions(self, small: Formed, operation: Callable[[Formed], Any]) -> None:
        """Nothing is half done: the operation has happened or it has not, and the next event is admitted."""
        death = Death.of(small, operation)
        committed = []
        for number in range(random.Random(SEED).randrange(STRIDE), len(death.path), STRIDE):
            death.at(small, number)
            committed.append(death.prove(small, f"instruction {number} of {len(death.path)}", operation in ERASES))
        print(
            f"{operation.__name__}: {len(committed)} deaths along {len(death.path)} instructions, "
            f"{committed.count(False)} before and {committed.count(True)} after the commit; SEED={SEED}"
        )
        assert committed == sorted(committed), "once it is committed, it stays committed"
        if operation not in NOTHING_COMMITTED:
            assert not committed[0]
            assert committed[-1] or STRIDE > 70  # the instructions behind the commit are about so many

    @pytest.mark.parametrize("operation", [accept, reuse, rebuild, update, supersede, forget, admit_own, change])
    def test_death_of_the_successor(self, small: Formed, operation: Callable[[Formed], Any]) -> None:
        """A process dies inside, and the next one to enter dies during the repair."""
        death = Death.of(small, operation)
        eighth = len(death.path) // 8
        deaths = sum(
            self.die_again(small, death, number, 0.5, 10 * STRIDE)
            for number in range(eighth - 1, len(death.path), eighth)
        )
        print(f"{operation.__name__}: {deaths} deaths of successors")

    @pytest.mark.parametrize("operation", [accept_keyed, reject_keyed])
    def test_death_while_a_head_is_restored(self, small: Formed, operation: Callable[[Formed], Any]) -> None:
        """A process dies between the change of a head and the commit, at either end of that stretch; the next one dies
        while it restores the head.
        """
        death = Death.of(small, operation)
        chains, size = small.region_bytes("chains")

        def moved(number: int) -> bool:
            death.at(small, number)
            return small.block.memory[chains : chains + size] != death.image[chains : chains + size]

        def published(number: int) -> bool:
            death.at(small, number)
            return small.block.position > death.position

        numbers = range(len(death.path))
        first, last = (bisect.bisect_left(numbers, True, key=test) for test in (moved, published))
        assert first < last
        deaths = sum(self.die_again(small, death, number, 0.1, max(STRIDE // 4, 1)) for number in (first, last - 1))
        print(f"{operation.__name__}: head moved at {first}, published at {last}, {deaths} deaths of successors")

    @staticmethod
    def die_again(formed: Formed, death: Death, number: int, share: float, stride: int) -> int:
        """Die at one instruction, then kill successors along the first `share` of their path; returns how many."""
        death.at(formed, number)
        left = formed.block.memory[:]
        path = tracee.path_of(lambda: accept(formed))
        numbers = range(0, int(len(path) * share), stride)
        for successor in numbers:
            formed.block.memory[:] = left
            tracee.kill_at(path, lambda: accept(formed), successor)
            where = f"instruction {number}, and of the successor at {successor} of {len(path)}"
            death.prove(formed, where, death.operation is forget)  # others erase the slot that the successor writes
        return len(numbers)

"""Allocation: slots, lists and index equal the reference; flipped bits are noticed; a rebuild needs only the slots."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.namespaces import NamespaceId
from core.reference.allocation import Allocation, Freed, Victim
from core.reference.memory import Content, Memory
from core.reference.namespace import DEFAULT, Namespace
from shm.errors import Gone, Unknown
from shm.layout import CAUSES, Layout
from shm.recall import Recall
from shm.records import EntryPointer, decided_of
from testing.block_fixture import Formed, Witness, copied
from tests.shm.conftest import Form

NAMESPACE = Namespace(NamespaceId(0, 1), DEFAULT)
NAMESPACES = {NAMESPACE.id: NAMESPACE}
REGIONS = ("links", "lists", "index")


def memory_of(memory_id: int, version: int, admitted_at: int, queued_at: int) -> Memory:
    """Return a memory of which only the place matters."""
    return Memory(
        memory_id, version, admitted_at, queued_at, NAMESPACE.id, None, 0, 0, 0, 0.0, False, 0, 0, Content(b"")
    )


class Twin:
    """A block and the reference's allocation, driven by the same operations."""

    def __init__(self, capacity: int, slack: int) -> None:
        self.formed = Formed(Layout(2, capacity, 8, 4096, 2, 4, slack))
        self.reference = Allocation(capacity, slack)
        self.newest = 0

    def live(self) -> list[int]:
        """Return the ids of the memories by the reference."""
        return [memory.memory_id for _, memory in self.reference.memories()]

    def accept(self) -> None:
        """Store an event; the entry names the slot and the victim."""
        self.newest += 1
        victim = self.reference.victim_of_newcomer(NAMESPACE, NAMESPACES, 0)
        entry = self.formed.admit(950_000 + self.newest % 50_000)
        position = int(entry.position)
        self.written(entry, memory_of(self.newest, position, position, position), victim)

    def supersede(self, memory_id: int) -> None:
        """Store an event in the place of a memory, if that lives."""
        found = self.reference.find(memory_id)
        number = 950_000 + self.newest % 50_000
        moral, vector = self.formed.pool.event(number)
        if found is None:
            with pytest.raises(Gone if 0 < memory_id <= self.newest else Unknown):
                self.formed.store.supersede(self.formed.now(), memory_id, moral, vector, b"")
            return
        self.newest += 1
        before = self.formed.store.memory(memory_id)
        decision = self.formed.store.supersede(self.formed.now(), memory_id, moral, vector, b"")
        assert self.newest == decision.memory_id
        position = decision.position
        memory = memory_of(self.newest, position, position, position)
        self.written(self.formed.entry(position), memory, Victim("superseded", found[0], memory_id))
        assert before.time_ns == self.formed.store.memory(self.newest).time_ns

    def update(self, memory_id: int) -> None:
        """Write a new version of a memory, if it lives."""
        found = self.reference.find(memory_id)
        if found is None:
            with pytest.raises(Gone if 0 < memory_id <= self.newest else Unknown):
                self.formed.store.update(self.formed.now(), memory_id, b"new")
            return
        before = self.formed.store.memory(memory_id)
        payload = None if memory_id % 2 else b"v%d" % self.formed.block.position
        entry = copied(self.formed.store.update(self.formed.now(), memory_id, payload))
        memory = found[1]._replace(version=int(entry.position))
        self.written(entry, memory, Victim("updated", found[0], memory_id))
        expected = before._replace(position=memory.version, payload=before.payload if payload is None else payload)
        assert expected == self.formed.store.memory(memory_id)

    def written(self, entry: EntryPointer, memory: Memory, victim: Victim | None) -> None:
        """Let the reference write a memory; the entry must name its slot and its victim."""
        slot = self.reference.write(memory, victim, int(entry.position))
        decided = decided_of(entry)
        cause, freed, victim_id = victim or Victim("capacity", -1, 0)
        assert (memory.memory_id, slot + 1) == (decided.memory_id, decided.slot)
        assert (victim_id, freed + 1) == (decided.victim_id, decided.victim_slot)
        assert CAUSES[decided.cause] == (cause if victim else "none")

    def reject(self) -> None:
        """Reject an event, which takes a position and no slot."""
        assert decided_of(self.formed.admit(1)).slot == 0

    def forget(self, memory_id: int) -> None:
        """Delete a memory, if it lives."""
        found = self.reference.find(memory_id)
        if found is None:
            with pytest.raises(Gone if 0 < memory_id <= self.newest else Unknown):
                self.formed.store.forget(self.formed.now(), memory_id)
            return
        decided = decided_of(entry := self.formed.store.forget(self.formed.now(), memory_id))
        self.reference.free([Victim("deleted", found[0], memory_id)], int(entry.position))
        assert (memory_id, found[0] + 1) == (decided.victim_id, decided.victim_slot)
        assert (decided.slot, CAUSES[decided.cause]) == (0, "deleted")

    def check(self) -> None:
        """Compare every slot, every list and every id."""
        formed, slots = self.formed, self.formed.block.layout.slots
        for slot, content in enumerate(self.reference.slots):
            said = int(formed.block.region("slots", slot).mark) % 2**48
            if isinstance(content, Freed):
                assert 2 * content.position + 1 == said
            else:
                assert (2 * content.version, content.memory_id) == (said, formed.block.region("slots", slot).id)
        assert self.reference.spare == formed.store.state().spare
        assert not formed.store.repair_links(0, slots)
        free = [(freed, slot) for slot, freed in enumerate(self.reference.slots) if isinstance(freed, Freed)]
        assert [slot for _, slot in sorted(free)] == walked(formed, 0)
        memories = sorted((memory.queued_at, slot) for slot, memory in self.reference.memories())
        assert [slot for _, slot in memories] == walked(formed, 1)
        assert sorted(self.live()) == formed.live_ids()


def walked(formed: Formed, which: int) -> list[int]:
    """Return the slots of a list, oldest first."""
    found, reference = [], int(formed.block.region("lists", which).oldest)
    while reference:
        found.append(reference % 2**20 - 1)
        reference = int(formed.block.region("links", found[-1]).newer)
    return found


@settings(max_examples=60)
@given(
    capacity=st.integers(1, 6),
    slack=st.integers(0, 2),
    operations=st.lists(
        st.tuples(st.sampled_from(["accept", "accept", "reject", "forget", "update", "supersede"]), st.integers(-1, 8)),
        max_size=60,
    ),
)
def test_equals_the_reference(capacity: int, slack: int, operations: list[tuple[str, int]]) -> None:
    """Whatever happens to the memories: slots, victims, lists and index are the reference's."""
    twin = Twin(capacity, slack)
    try:
        for operation, back in operations:
            if operation in ("accept", "reject"):
                getattr(twin, operation)()
            else:
                getattr(twin, operation)(max(0, twin.newest - back))
            twin.check()
        Witness(twin.formed).check()
    finally:
        twin.formed.close()


@pytest.mark.parametrize("capacity", [1, 2, 7, 50])
def test_is_a_ring_without_deletions(form: Form, capacity: int) -> None:
    """Memory n is in slot n modulo C + 1, and the newest C memories live."""
    formed = form(Layout(2, capacity, 0, 4096, 2, 4))
    for number in range(1, 3 * capacity + 4):
        entry = decided_of(formed.admit(950_000 + number))
        assert (number, number % (capacity + 1) + 1) == (entry.memory_id, entry.slot)
        assert max(0, number - capacity) == entry.victim_id
        formed.admit(1)
    assert list(range(2 * capacity + 4, 3 * capacity + 4)) == formed.live_ids()


def test_a_deletion_makes_room_before_anything_is_evicted(form: Form) -> None:
    """As many memories as were deleted can be accepted, and no other one goes."""
    formed = form()
    for number in range(60):
        formed.accept(number)
    for memory_id in (20, 40, 30):
        formed.store.forget(formed.now(), memory_id)
    for number in range(3):
        assert decided_of(formed.admit(950_100 + number)).victim_id == 0
    assert decided_of(formed.admit(950_200)).victim_id == 11
    Witness(formed).check()


class TestFlips:
    """Every bit of links, lists and index."""

    @pytest.fixture
    def holey(self, form: Form) -> Formed:
        """A store that has wrapped, with free slots and chains of several members."""
        formed = form(Layout(2, 6, 8, 256, 2, 4))
        for number in range(15):
            formed.accept(number)
        formed.store.forget(formed.now(), 12)
        formed.store.forget(formed.now(), 10)
        return formed

    LIVE = (11, 13, 14, 15)

    def flipped(self, formed: Formed) -> Iterator[tuple[str, int]]:
        """Flip each bit in turn; the block is put back as it was."""
        image = formed.block.memory[:]
        for region in REGIONS:
            offset, size = formed.region_bytes(region)
            for bit in range(8 * size):
                formed.block.memory[offset + bit // 8] ^= 1 << bit % 8
                yield region, bit
                formed.block.memory[:] = image

    def test_the_scrub_notices_and_makes_them_again(self, holey: Formed) -> None:
        """After the repair everything is as it was, but for the order within chains."""
        slots = holey.block.layout.slots
        lists = [walked(holey, which) for which in (0, 1)]
        for where in self.flipped(holey):
            assert holey.store.repair_links(0, slots), where
            assert not holey.store.repair_links(0, slots), where
            assert lists == [walked(holey, which) for which in (0, 1)]

    @pytest.mark.parametrize("locked", [True, False])
    def test_no_memory_is_missed(self, holey: Formed, locked: bool) -> None:
        """What lives is read and what is gone is Gone, with the lock and for an observer."""
        memories = {memory_id: holey.store.memory(memory_id) for memory_id in self.LIVE}
        for where in self.flipped(holey):
            holey.block.map.wait_ms = holey.wait_ms if locked else 0
            for memory_id in range(1, 16):
                try:
                    assert memories.get(memory_id) == holey.store.memory(memory_id), where
                except Gone:
                    assert memory_id not in memories, where

    @pytest.mark.parametrize("what", ["accept", "forget"])
    def test_transitions_do_what_they_would_have_done(self, holey: Formed, what: str) -> None:
        """An event goes to the same slot, and any memory can be deleted."""
        spare = int(holey.store.state().spare)
        for where in self.flipped(holey):
            if what == "accept":
                decided = decided_of(holey.admit(950_000))
                assert (spare + 1, 0) == (decided.slot, decided.victim_id), where
                assert [*self.LIVE, 16] == holey.live_ids()
            else:
                for memory_id in self.LIVE:
                    holey.store.forget(holey.now(), memory_id)
                assert holey.live_ids() == [], where
            holey.store.repair_links(0, holey.block.layout.slots)
            assert not holey.store.repair_links(0, holey.block.layout.slots)


class TestRebuild:
    @pytest.fixture
    def used(self, form: Form) -> Formed:
        """A store with a long history of deletions."""
        formed = form()
        rng = random.Random(5)
        for number in range(300):
            formed.accept(number)
            if rng.random() < 0.3:
                formed.store.forget(formed.now(), rng.choice(formed.live_ids()))
        return formed

    def test_from_the_slots_alone(self, used: Formed) -> None:
        """Lists and index that are overwritten while `caches` is odd come back in the same order; the rebuild is
        counted.
        """
        lists, rng = [walked(used, which) for which in (0, 1)], random.Random(7)
        lock = used.block.region("lock")
        for _ in range(5):
            for region in REGIONS:
                offset, size = used.region_bytes(region)
                used.block.memory[offset : offset + size] = rng.randbytes(size)
            lock.caches += 1
            before = int(lock.rebuilds)
            used.store.tick(used.now(), used.epoch)
            assert (before + 1, 0) == (lock.rebuilds, lock.caches % 2)
            assert lists == [walked(used, which) for which in (0, 1)]
        Witness(used).check()

    @pytest.mark.parametrize(
        "act",
        [
            pytest.param(lambda formed: formed.accept(), id="accept"),
            pytest.param(lambda formed: formed.admit(1), id="reject"),
            pytest.param(lambda formed: formed.store.post_command("stop"), id="post"),
        ],
    )
    def test_whoever_enters(self, used: Formed, act: Callable[[Formed], object]) -> None:
        """Any section begins with it."""
        lock = used.block.region("lock")
        lock.caches += 1
        before = int(lock.rebuilds)
        act(used)
        assert (before + 1, 0) == (lock.rebuilds, lock.caches % 2)

    def test_readers_without_the_lock_look_into_the_slots(self, used: Formed) -> None:
        """While index and lists are being changed, an observer finds what lives and misses what is gone."""
        used.block.region("lock").caches += 1
        used.block.map.wait_ms = 0
        live = used.live_ids()
        for memory_id in range(200, 301):
            if memory_id in live:
                assert used.store.memory(memory_id).id == memory_id
            else:
                with pytest.raises(Gone):
                    used.store.memory(memory_id)

    @pytest.mark.parametrize("locked", [True, False])
    def test_a_miss_does_not_count_while_they_change(self, used: Formed, locked: bool) -> None:
        """A reader that comes while the index is empty, because it is being changed, finds every memory."""
        live = used.live_ids()
        offset, size = used.region_bytes("index")
        for memory_id in live:
            used.block.memory[offset : offset + size] = bytes(size)
            used.block.region("lock").caches |= 1
            used.block.map.wait_ms = used.wait_ms if locked else 0
            assert used.store.memory(memory_id).id == memory_id

    def test_recall_needs_neither(self, used: Formed) -> None:
        """A recall finds all memories, whatever index and lists say."""
        query = np.ones(16, np.float32)
        recall = Recall(used.block)
        expected = recall.nearest(query, 50, (3, 3), payloads=False, vectors=False).matches
        for region in REGIONS:
            offset, size = used.region_bytes(region)
            used.block.memory[offset : offset + size] = bytes(size)
        assert expected == recall.nearest(query, 50, (3, 3), payloads=False, vectors=False).matches

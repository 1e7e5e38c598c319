"""Recall with filters and expiry equals the reference, whatever strings, hashes, damage and other writers do."""

import contextlib
import os
import random
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.namespaces import NamespaceId
from core.reference.filter_words import Condition, Filter, check_filter
from core.reference.filter_words import InvalidFilter as ReferenceInvalid
from core.reference.memory import Content, Memory
from core.reference.recall import Match as Expected
from core.reference.recall import nearest
from core.reference.vector import Vector
from shm.errors import Gone, Unknown
from shm.event import Event
from shm.filters import CONDITIONS_MAX, OPERANDS_MAX, CompiledFilter, InvalidFilter
from shm.layout import KINDS, Layout
from shm.metadata import Hash, Metadata, MetadataEncoder, decode, hash_of
from shm.recall import Recall, RecallResult
from shm.records import decided_of
from testing.block_fixture import Formed, begin, end, exit_of, wait_until
from tests.core.reference.test_brute_force import OPEN
from tests.core.reference.test_filter_words import NAMES, conditions, metadata_of_all_kinds, scalars

SEED = int(os.environ.get("SEED") or random.randrange(2**32))
LAYOUT: Final = Layout(8, 40, 512, 4096, 3, 16)
DIMENSION: Final = LAYOUT.dimension


@pytest.fixture(autouse=True)
def seed() -> int:
    """Print what repeats this run."""
    print(f"rerun with SEED={SEED} pytest {__file__}")
    return SEED


def weak(octets: bytes) -> int:
    """Return a hash that tells names apart, and of other strings only those of even from those of odd length."""
    text = octets.decode()
    return (1 + NAMES.index(text)) << 58 if text in NAMES else len(octets) % 2


class Collection:
    """A block whose memories have metadata, and the same memories as the reference sees them."""

    def __init__(self, layout: Layout = LAYOUT, hashed: Hash | None = None) -> None:
        self.formed = Formed(layout, OPEN)
        self.hashed = hashed or hash_of(self.formed.block.secret)
        self.encoder = MetadataEncoder(self.hashed)
        self.recall = Recall(self.formed.block)

    def remember(self, vector: Vector, metadata: Metadata, own_id: str = "", **event: Any) -> int:
        """Admit an event. Returns its memory id."""
        made = Event(
            event.pop("moral", 0.5), vector, metadata=self.encoder.encode(metadata), own_id=own_id.encode(),
            own_id_hash=(self.own_id_word(own_id), 1) if own_id else (0, 0), **event,
        )  # fmt: skip
        return self.formed.store.admit_event(self.formed.now(), made).memory_id

    def own_id_word(self, own_id: str) -> int:
        """Return the first word of the hash of an own id."""
        return self.hashed(b"default\0" + own_id.encode()) | 1

    def compiled(self, condition: Filter) -> CompiledFilter:
        """Return a filter for this block."""
        return CompiledFilter(condition, self.hashed, lambda own_id: [self.own_id_word(own_id)])

    def memories(self) -> list[Memory]:
        """Return the live memories, expired or not, from what their slots say."""
        return [self.memory_in(self.formed.slot_of(memory_id)) for memory_id in self.formed.live_ids()]

    def memory_in(self, slot: int) -> Memory:
        """Return the memory in a slot."""
        block = self.formed.block
        line = block.region("slots", slot)
        start, _ = self.formed.region_bytes("payloads")
        at = start + slot * block.map.payload_stride
        octets = block.memory[at : at + block.map.payload_stride]
        metadata_end = line.payload_size + line.metadata_size
        own_id = octets[metadata_end : metadata_end + line.own_id_size].decode()
        return Memory(
            int(line.id), int(line.position), int(line.admitted), int(line.queued),
            NamespaceId(line.namespace, line.generation), own_id or None, int(line.time_ns), int(line.updated_ns),
            int(line.expires_ns), float(line.moral), False, 0, int(line.phase),
            Content(block.vectors[slot].tobytes(), b"", decode(octets[line.payload_size : metadata_end])),
        )  # fmt: skip

    def hold(self, query: Vector, k: int, condition: Filter, clock_ns: int = 1) -> RecallResult:
        """Ask, and hold the answer against the reference; returns it."""
        answer = self.recall.nearest(
            query, k, (3, 3), payloads=True, vectors=True, condition=self.compiled(condition), clock_ns=clock_ns
        )
        instant_ns = max(clock_ns, int(self.formed.store.state().time_ns))
        visible = [memory for memory in self.memories() if not memory.has_expired(instant_ns)]
        assert nearest(query, k, visible, condition) == found(answer)
        by_id = {memory.memory_id: memory for memory in visible}
        for match in answer.matches:
            memory = by_id[match.id]
            assert match.metadata is not None
            assert (memory.content.metadata, memory.expires_at) == (decode(match.metadata), match.expires_ns)
            assert (memory.version, memory.updated_at) == (match.version, match.updated_ns)
            assert (memory.own_id or "").encode() == match.own_id
        return answer

    def close(self) -> None:
        """Close the block."""
        del self.recall
        self.formed.close()


def found(answer: RecallResult) -> list[Expected]:
    """Return an answer as ids and scores."""
    return [Expected(match.id, match.score) for match in answer.matches]


def vectors(count: int, seed: int) -> list[Vector]:
    """Return random vectors, some of them equal."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((count, DIMENSION)).astype(np.float32)
    made[::5] = made[0]
    return list(made)


fields = st.one_of(
    conditions,
    st.builds(
        lambda field, operator, operand: Condition(field, ((operator, operand),)),
        st.sampled_from(["moral_value", "memory_id"]),
        st.sampled_from(["eq", "gt", "gte", "lt", "lte"]),
        st.integers(-1, 50) | st.floats(-1, 50) | st.sampled_from([2**63, -(10**400), 10**400, 0.5, 1e300]),
    ),
    st.builds(
        lambda field, values: Condition(field, (("in", tuple(values)),)),
        st.sampled_from(["moral_value", "memory_id", "phase", "id", "created_at"]),
        st.lists(scalars | st.sampled_from(["wake", "sleep", "one", "two", 1, 2, 3.0, 4.5]), max_size=4),
    ),
    st.builds(
        lambda field, exists: Condition(field, (("exists", exists),)),
        st.sampled_from(["id", "phase", "created_at", "moral_value"]),
        st.booleans(),
    ),
)
filters = st.builds(Filter, *(st.lists(fields, max_size=2).map(tuple) for _ in range(3)))


class TestQuiet:
    @settings(max_examples=150, deadline=None)
    @given(
        members=st.lists(metadata_of_all_kinds, min_size=1, max_size=25),
        asked=st.lists(filters, min_size=1, max_size=6),
        strong=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_equals_the_reference(self, members: list[Metadata], asked: list[Filter], strong: bool, seed: int) -> None:
        """For any metadata and any filter, with hashes that tell strings apart and with hashes that do not."""
        rng = random.Random(seed)
        collection = Collection(hashed=None if strong else weak)
        made = vectors(len(members), seed)
        for vector, metadata in zip(made, members, strict=True):
            collection.remember(
                vector, metadata, rng.choice(["", "", f"{rng.random()}", "one"]), moral=rng.choice([0.0, 0.5, 1.0]),
                created_ns=rng.choice([None, rng.randrange(50)]),
            )  # fmt: skip
        for memory_id in rng.sample(range(1, len(members) + 1), len(members) // 4):
            collection.formed.store.forget(collection.formed.now(), memory_id)
        for condition in asked:
            collection.hold(rng.choice(made), rng.choice([1, 5, 100]), condition)
        collection.close()

    @pytest.mark.parametrize("offset", [-1, -0.5, 0, 0.5, 1])
    @pytest.mark.parametrize("operator", ["eq", "gt", "gte", "lt", "lte"])
    @pytest.mark.parametrize("field", ["created_at", "updated_at", "memory_id"])
    def test_times_and_ids_are_compared_exactly(self, field: str, operator: Any, offset: float) -> None:
        """To the nanosecond: a double cannot tell today's from its neighbours."""
        collection = Collection()
        today = 1_764_547_200_000_000_001
        collection.formed._time_ns = today
        for number, vector in enumerate(vectors(6, 1)):
            collection.remember(vector, {}, created_ns=today + number)
        some = collection.memories()[3]
        value = {"created_at": some.created_at, "updated_at": some.updated_at, "memory_id": some.memory_id}[field]
        operand = value + offset if isinstance(offset, int) else float(value) + offset
        answer = collection.hold(vectors(1, 2)[0], 10, Filter(all=(Condition(field, ((operator, operand),)),)))
        if offset == 0:
            assert {"eq": 1, "gt": 2, "gte": 3, "lt": 3, "lte": 4}[operator] == len(answer.matches)
        collection.close()

    @pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16])
    def test_every_member_is_found(self, count: int) -> None:
        """Whatever its place is among the members."""
        collection = Collection()
        metadata = {f"member {number}": number for number in range(count)}
        collection.remember(vectors(1, 3)[0], metadata)
        collection.remember(vectors(1, 3)[0], {})
        for name, value in metadata.items():
            holds = Filter(all=(Condition(f"metadata.{name}", (("eq", value),)),))
            assert [1] == [match.id for match in collection.hold(vectors(1, 4)[0], 5, holds).matches]
            differs = Filter(all=(Condition(f"metadata.{name}", (("eq", value + 1),)),))
            assert [] == collection.hold(vectors(1, 4)[0], 5, differs).matches
        absent = Filter(none=(Condition("metadata.member", (("exists", True),)),))
        assert len(collection.hold(vectors(1, 4)[0], 5, absent).matches) == 2
        collection.close()

    def test_equal_hashes_of_different_strings_cost_one_more_attempt(self) -> None:
        """The first attempt trusts the hashes; when the bytes of a winner differ, the second compares bytes."""
        collection = Collection(hashed=weak)
        for number, vector in enumerate(vectors(30, 5)):
            collection.remember(vector, {"a": "even" if number % 3 else "ev"})
        condition = Filter(all=(Condition("metadata.a", (("eq", "ev"),)),))
        answer = collection.hold(vectors(1, 6)[0], 10, condition)
        assert (2, 10, 10) == (answer.attempts, len(answer.matches), answer.scanned)
        only = Filter(all=(Condition("metadata.a", (("in", ("even", "ev")),)),))
        assert collection.hold(vectors(1, 6)[0], 10, only).attempts == 1
        collection.close()

    def test_only_rows_that_the_words_select_are_scanned(self) -> None:
        """`scanned` counts them."""
        collection = Collection()
        for number, vector in enumerate(vectors(30, 7)):
            collection.remember(vector, {"a": number})
        condition = Filter(all=(Condition("metadata.a", (("lt", 4),)),))
        assert collection.hold(vectors(1, 8)[0], 10, condition).scanned == 4
        collection.close()

    def test_a_memory_without_metadata_touches_nothing_of_the_members(self) -> None:
        """Even in a slot whose memory before had some."""
        collection = Collection(LAYOUT._replace(capacity=1))
        for vector in vectors(2, 9):
            collection.remember(vector, {"a": 1})
        start, size = collection.formed.region_bytes("members")
        before = collection.formed.block.memory[start : start + size]
        for vector in vectors(2, 10):
            collection.remember(vector, {})
        assert before == collection.formed.block.memory[start : start + size]
        exists = Filter(all=(Condition("metadata.a", (("exists", True),)),))
        assert collection.hold(vectors(1, 11)[0], 5, exists).matches == []
        collection.close()

    def test_words_are_erased_with_their_memory(self) -> None:
        """Nothing of the metadata of a deleted memory stays."""
        collection = Collection()
        memory_id = collection.remember(vectors(1, 12)[0], {str(i): i for i in range(15)} | {"b": "secret"})
        collection.formed.store.forget(collection.formed.now(), memory_id)
        for region in ("kinds", "members", "payloads"):
            start, size = collection.formed.region_bytes(region)
            assert bytes(size) == collection.formed.block.memory[start : start + size]
        collection.close()

    def test_an_update_keeps_the_metadata(self) -> None:
        """And everything else that the update does not name."""
        collection = Collection()
        memory_id = collection.remember(vectors(1, 13)[0], {"a": 1, "b": "x"}, "mine")
        collection.formed.store.update(collection.formed.now(), memory_id, b"new")
        condition = Filter(all=(Condition("metadata.b", (("eq", "x"),)), Condition("id", (("eq", "mine"),))))
        assert [memory_id] == [match.id for match in collection.hold(vectors(1, 13)[0], 1, condition).matches]
        collection.close()


class TestExpiry:
    def test_what_has_expired_is_left_out(self) -> None:
        """From the instant on, at the clock of the read or at the time of the position, whichever is later."""
        collection = Collection()
        query = vectors(1, 14)[0]
        until = collection.formed.now() + 10_000_000
        collection.remember(query, {}, expires_ns=until)
        collection.remember(query, {}, expires_ns=0)
        both, one = [2, 1], [2]
        for clock_ns, ids in ((1, both), (until - 1, both), (until, one), (until + 1, one)):
            assert ids == [match.id for match in collection.hold(query, 5, Filter(), clock_ns).matches]
        collection.formed._time_ns = until
        collection.remember(query, {})
        assert [3, 2] == [match.id for match in collection.hold(query, 5, Filter(), 1).matches]
        collection.close()

    def test_without_an_instant_the_clock_is_read(self) -> None:
        """The boot clock, as log time."""
        collection = Collection()
        query = vectors(1, 15)[0]
        soon = collection.formed.now() + 10**15
        hour = 3600 * 10**9
        collection.remember(query, {}, expires_ns=soon)
        for ahead, ids in ((-hour, [1]), (hour, [])):
            collection.formed.block.map.log_offset_ns = soon + ahead - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            answer = collection.recall.nearest(query, 5, (3, 3), payloads=False, vectors=False)
            assert ids == [match.id for match in answer.matches]
        collection.close()

    def test_few_that_have_not_expired_are_found(self) -> None:
        """Though all that are nearer have expired."""
        collection = Collection(LAYOUT._replace(capacity=400))
        query = vectors(1, 16)[0]
        until = collection.formed.now() + 10**12
        for number, vector in enumerate(vectors(400, 17)):
            near = query + np.float32(1e-3) * vector if number % 100 else -query
            collection.remember(near, {}, expires_ns=until if number % 100 else 0)
        assert len(collection.hold(query, 10, Filter(), until).matches) == 4
        collection.close()


class TestRefusal:
    @pytest.mark.parametrize(
        "condition",
        [
            Condition("metadata.a", (("gt", "5"),)),
            Condition("metadata.a", (("lte", True),)),
            Condition("metadata.a", (("exists", 1),)),
            Condition("metadata.a", (("in", "abc"),)),
            Condition("metadata.a", (("in", (None,)),)),
            Condition("metadata.a", (("eq", None),)),
            Condition("metadata.a", (("eq", 2**53 + 1),)),
            Condition("metadata.a", (("lt", float("inf")),)),
            Condition("created_at", (("gt", "5"),)),
        ],
    )
    def test_what_the_reference_refuses_is_refused(self, condition: Condition) -> None:
        """With a message that names field and operator."""
        with pytest.raises(ReferenceInvalid):
            check_filter(Filter(any=(condition,)))
        with pytest.raises(InvalidFilter, match=rf"^{condition.field}.*{condition.tests[0][0]}"):
            CompiledFilter(Filter(any=(condition,)), weak, lambda _: [])

    @pytest.mark.parametrize(
        ("condition", "message"),
        [
            (Filter(all=(Condition("moral", ()),)), "moral is no field of a memory, expected metadata.* or one of"),
            (Filter(all=(Condition("id", (("like", "a"),)),)), "id: like is no operator, expected one of eq, in, "),  # type: ignore[arg-type]  # what is refused
            (Filter(all=(Condition("id", (("eq", "\ud800"),)),)), "id: eq has a lone surrogate"),
            (
                Filter(all=(Condition("id", ()),) * 33),
                f"filter has 33 conditions, at most {CONDITIONS_MAX} are allowed",
            ),
            (
                Filter(all=(Condition("metadata.a", (("in", tuple(range(1025))),)),)),
                f"filter has 1025 values to compare with, at most {OPERANDS_MAX} are allowed",
            ),
        ],
    )
    def test_filters_that_cannot_be_compiled_are_refused(self, condition: Filter, message: str) -> None:
        """The message says what was wrong and what was expected."""
        with pytest.raises(InvalidFilter) as raised:
            CompiledFilter(condition, weak, lambda _: [])
        assert str(raised.value).startswith(message)


class TestDamage:
    def test_every_flipped_bit_is_noticed(self) -> None:
        """Of words, kinds, tag and bytes of the metadata; and recall leaves the memory out or names it."""
        collection = Collection(Layout(2, 3, 64, 256, 3, 4))
        formed = collection.formed
        vector = np.ones(2, np.float32)
        memory_id = collection.remember(vector, {"a": "x", "b": 1.5}, "mine")
        slot = formed.slot_of(memory_id)
        condition = Filter(all=(Condition("metadata.a", (("eq", "x"),)), Condition("metadata.b", (("gt", 1),))))
        compiled = collection.compiled(condition)
        used = {"kinds": (16, 0, 16), "members": (64, 0, 32), "payloads": (64, 0, 32), "codes": (24, 8, 12)}
        for region, (stride, first, last) in used.items():
            start = formed.region_bytes(region)[0] + slot * stride
            for bit in range(8 * first, 8 * last):
                formed.block.memory[start + bit // 8] ^= 1 << bit % 8
                assert (False, memory_id) == formed.store.check_slot(slot), f"{region}, bit {bit}"
                answer = collection.recall.nearest(
                    vector, 1, (3, 3), payloads=False, vectors=False, condition=compiled, clock_ns=1
                )
                assert answer.matches == []
                assert answer.corrupt_id in (0, memory_id)
                formed.block.memory[start + bit // 8] ^= 1 << bit % 8
                formed.block.region("codes", slot).excluded = 0
                assert (True, 0) == formed.store.check_slot(slot)
        assert [memory_id] == [match.id for match in collection.hold(vector, 1, condition).matches]
        collection.close()

    @pytest.mark.parametrize("hashed", [weak, None])
    def test_any_damage_leaves_the_reference_over_the_sound(self, hashed: Hash | None) -> None:
        """However many bytes changed, recall reads nothing out of bounds and answers from the sound memories."""
        rng = random.Random(SEED)
        strides = {"slots": 128, "codes": 24, "shadow": 16, "kinds": 16, "members": 256, "payloads": 512}
        for _ in range(30):
            collection = Collection(hashed=hashed)
            formed = collection.formed
            for vector in vectors(LAYOUT.capacity, SEED):
                metadata: Metadata = {"a": rng.choice(("x", "xyz", "xy", "1")), "b": rng.randrange(3)}
                collection.remember(
                    vector, metadata, rng.choice(["", "one"]), expires_ns=rng.choice([0, 9 * 10**18]),
                )  # fmt: skip
            memories = {memory.memory_id: memory for memory in collection.memories()}
            slots = {memory_id: formed.slot_of(memory_id) for memory_id in memories}
            size = formed.region_bytes("slots")[1] // LAYOUT.slots
            for _ in range(rng.randrange(1, 60)):
                part = rng.choice(list(strides))
                stride = size if part == "slots" else strides[part]
                byte = rng.randrange(LAYOUT.slots * stride)
                marks = {"slots": range(size - 16, size - 8), "codes": range(12, 24)}.get(part, range(0))
                if byte % stride not in marks:  # they are no part of the checksum
                    formed.block.memory[formed.region_bytes(part)[0] + byte] = rng.randrange(256)
            sound = [memory for memory_id, memory in memories.items() if formed.store.check_slot(slots[memory_id])[0]]
            for condition in (
                Filter(all=(Condition("metadata.a", (("in", ("x", "xy")),)),)),
                Filter(none=(Condition("metadata.a", (("eq", "xyz"),)),), any=(Condition("metadata.b", (("lt", 2),)),)),
                Filter(any=(Condition("id", (("eq", "one"),)), Condition("moral_value", (("gt", 1),)))),
            ):
                best = nearest(vectors(1, 3)[0], 10, sound, condition)

                def ask(
                    collection: Collection = collection, condition: Filter = condition, best: list[Expected] = best
                ) -> None:
                    collection.formed.be(1)
                    answer = collection.recall.nearest(
                        vectors(1, 3)[0], 10, (3, 3), payloads=True, vectors=False, clock_ns=1,
                        condition=collection.compiled(condition),
                    )  # fmt: skip
                    assert best == found(answer)

                assert exit_of(begin(ask)) == 0
            collection.close()


class TestUnderWriters:
    CAPACITY = 200
    RECALLS = 300

    @pytest.mark.parametrize("hashed", [weak, None])
    def test_answers_hold_at_their_position(self, hashed: Hash | None) -> None:
        """While two processes admit, delete and update as fast as they can, each answer equals the reference over the
        memories that lived immediately after `as_of`, and had not expired at its instant.
        """
        collection = Collection(Layout(DIMENSION, self.CAPACITY, 64, 1_000_000, 3, 16), hashed)
        formed = collection.formed
        writers = [begin(lambda row=row: self._write(collection, row)) for row in (1, 2)]  # type: ignore[misc]
        wait_until(lambda: formed.store.tallies()[0] > self.CAPACITY)
        rng = random.Random(SEED)
        asked = []
        for _ in range(self.RECALLS):
            index, k = rng.randrange(512), rng.choice([1, 10, 100])
            condition = rng.choice(CONDITIONS)
            clock_ns = int(formed.store.state().time_ns) + rng.choice([0, 1, 10**6, 10**9])
            answer = collection.recall.nearest(
                formed.pool.vectors[index], k, (3, 3), payloads=False, vectors=False, clock_ns=clock_ns,
                condition=collection.compiled(condition),
            )  # fmt: skip
            asked.append((answer, index, k, condition, clock_ns))
        for writer in writers:
            end(writer)
        collection.remember(formed.pool.vectors[0], {})
        self._hold(collection, asked)
        collection.close()

    @staticmethod
    def _write(collection: Collection, row: int) -> None:
        formed = collection.formed
        formed.be(row)
        rng = random.Random(SEED + row)
        newest = 1
        while formed.store.state().position < 900_000:
            choice, memory_id = rng.random(), max(1, newest - rng.randrange(TestUnderWriters.CAPACITY))
            with contextlib.suppress(Gone, Unknown):
                if choice < 0.85:
                    moral, vector = formed.pool.event(950_000 + rng.randrange(50_000))
                    life = rng.choice([None, 10**3, 10**6, 10**9])
                    newest = collection.remember(
                        vector, metadata_of(formed.pool.index_of(moral)), moral=moral, ttl_ns=life
                    )
                elif choice < 0.93:
                    formed.store.forget(formed.now(), memory_id)
                else:
                    formed.store.update(formed.now(), memory_id, b"version")

    def _hold(self, collection: Collection, asked: Sequence[tuple[RecallResult, int, int, Filter, int]]) -> None:
        formed = collection.formed
        live: dict[int, Memory] = {}
        position = now_ns = 0
        for answer, index, k, condition, clock_ns in asked:
            while position < answer.as_of:
                page, _ = formed.store.entries(position + 1, min(1000, answer.as_of - position))
                for entry in page:
                    decided = decided_of(entry)
                    if KINDS[entry.kind] == "decision":
                        live[decided.memory_id] = memory_of(formed, decided)
                        live.pop(decided.victim_id, None)
                    elif KINDS[entry.kind] == "delete":
                        del live[decided.memory_id]
                    now_ns = int(entry.time_ns)
                position += len(page)
            instant_ns = max(clock_ns, now_ns)
            visible = [memory for memory in live.values() if not memory.has_expired(instant_ns)]
            assert nearest(formed.pool.vectors[index], k, visible, condition) == found(answer)


def metadata_of(index: int) -> Metadata:
    """Return the metadata of events with vector `index` of the pool."""
    return {"a": "xyz"[index % 3] * (1 + index % 4), "b": index % 7, "c": index % 2 == 0} if index % 5 else {}


def memory_of(formed: Formed, decided: Any) -> Memory:
    """Return the memory that an entry names, as the reference sees it; the pool knows its content."""
    index = formed.pool.index_of(decided.moral)
    vector = formed.pool.vectors[index].tobytes()
    return Memory(
        int(decided.memory_id), 0, 0, 0, NamespaceId(0, 1), None, int(decided.created_ns), int(decided.updated_ns),
        int(decided.expires_ns), float(decided.moral), False, 0, 0, Content(vector, b"", metadata_of(index)),
    )  # fmt: skip


CONDITIONS: Final = (
    Filter(),
    Filter(all=(Condition("metadata.a", (("eq", "x"),)),)),
    Filter(none=(Condition("metadata.a", (("in", ("x", "yyyy", "zz")),)),)),
    Filter(any=(Condition("metadata.b", (("gte", 2), ("lt", 4))), Condition("metadata.c", (("eq", True),)))),
    Filter(all=(Condition("metadata.b", (("exists", False),)),)),
    Filter(all=(Condition("metadata.b", (("eq", 3),)), Condition("metadata.a", (("exists", True),)))),
    Filter(all=(Condition("moral_value", (("gt", 0.99),)),)),
)

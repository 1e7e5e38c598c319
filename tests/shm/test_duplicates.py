"""Duplicates: what the block finds and does is what the reference does, in random histories and under writers."""

import os
import random
from typing import Any, Final, get_args

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from core.namespaces import NamespaceId
from core.reference.entry import Entry
from core.reference.memory import Content
from core.reference.recall import nearest
from core.reference.settings import Settings, Sizes
from core.reference.store import Dedupe, Store
from core.reference.store import Event as ReferenceEvent
from core.reference.vector import Vector
from core.regime import RhythmSettings
from shm._native import lib
from shm.event import POLICIES, DuplicatePolicy, Event
from shm.layout import KINDS, Layout
from shm.records import decided_of
from testing.block_fixture import Formed, begin, copied, end, wait_until
from tests.core.reference.test_brute_force import OPEN
from tests.shm.test_recall_filters import memory_of

SEED = int(os.environ.get("SEED") or random.randrange(2**32))
DEFAULT: Final = NamespaceId(0, 1)
REGIME: Final = OPEN._replace(
    governor=OPEN.governor._replace(min_threshold=0.3, initial_threshold=0.5, max_threshold=0.9),
    rhythm=RhythmSettings(3, 2, True, True),
)
VECTORS: Final = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 0]], np.float32)
NOWHERE: Final = 10**30


@pytest.fixture(autouse=True)
def seed() -> int:
    """Print what repeats this run."""
    print(f"rerun with SEED={SEED} pytest {__file__}")
    return SEED


class Twin:
    """A block and the reference store, driven by the same events."""

    def __init__(self, capacity: int) -> None:
        self.formed = Formed(Layout(3, capacity, 8, 4096, 2, 4), REGIME)
        self.reference = Store(Sizes(3, capacity, 0, 4096, 4, 0))
        self.reference.start(int(self.formed.store.state().time_ns), Settings(REGIME))

    def decide(self, vector: Vector, moral: float, dedupe: Dedupe | None, ttl_ns: int | None, wait_ns: int) -> None:
        """Decide an event on both sides; the entries are equal."""
        self.formed._time_ns += wait_ns
        now_ns = self.formed.now()
        event = Event(moral, vector, ttl_ns=ttl_ns, dedupe=(dedupe.policy, dedupe.threshold) if dedupe else None)
        decision = self.formed.store.admit_event(now_ns, event)
        entry = self.formed.entry(decision.position)
        reference = ReferenceEvent(DEFAULT, Content(vector.tobytes()), moral, ttl_ns=ttl_ns, dedupe=dedupe)
        compare(self.reference.decide(now_ns, reference), entry)
        assert decision.memory_id == decided_of(entry).memory_id

    def delete(self, memory_id: int) -> None:
        """Delete a memory, if it lives and has not expired: others are freed by the reference only."""
        found = self.reference.allocation.find(memory_id)
        if found is None or found[1].has_expired(self.reference.time_ns + NOWHERE):
            return
        now_ns = self.formed.now()
        self.formed.store.forget(now_ns, memory_id)
        self.reference.delete(now_ns, memory_id)


def compare(expected: Entry, entry: Any) -> None:
    """Compare the entries of a decision."""
    decided = decided_of(entry)
    duplicate = expected.duplicate
    flags = sum(flag for flag in POLICIES.values() if decided.flags & flag)
    assert (POLICIES[duplicate.policy] if duplicate else 0) == flags
    assert (duplicate.memory_id if duplicate else 0) == decided.duplicate_of
    assert (duplicate.score if duplicate else 0.0) == decided.duplicate_score
    assert expected.stored == bool(decided.flags & lib.MLSDM_DECIDED_STORED)
    assert expected.verdict == bool(decided.flags & lib.MLSDM_DECIDED_VERDICT)
    assert (expected.position, expected.time_ns) == (entry.position, entry.time_ns)
    assert expected.memory_id == decided.memory_id
    assert (-1 if expected.slot is None else expected.slot) == decided.slot - 1
    assert (expected.victims[0].memory_id if expected.victims else 0) == decided.victim_id
    after, before = expected.after, expected.before
    for scalars, record in ((before, entry.before), (after, entry.after)):
        found = (record.theta, record.ema, record.phase, record.counter, record.newest_id, record.accepted)
        assert found == (
            scalars.theta, scalars.ema, scalars.phase, scalars.counter, scalars.newest_id, scalars.accepted
        )  # fmt: skip
        assert (scalars.rejected, scalars.step, scalars.live) == (record.rejected, record.step, record.live)


dedupes = st.none() | st.builds(
    Dedupe, st.sampled_from([-1.0, 0.0, 0.5, 0.99, 1.0]), st.sampled_from(["skip", "supersede", "keep"])
)
operations = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 5), st.sampled_from([0.1, 0.5, 0.95]), dedupes, st.sampled_from([None, 1, 5000])),
        st.integers(1, 12),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(capacity=st.integers(4, 6), asked=operations, lives=st.booleans())
def test_equals_the_reference(capacity: int, asked: list[Any], lives: bool) -> None:
    """In random histories: the same duplicate with the same score, the same verdict, the same victim."""
    twin = Twin(40 if lives else capacity)  # with expiry, the store does not fill: freeing is not the subject
    for one in asked:
        if isinstance(one, int):
            if not lives:
                twin.delete(one)
            continue
        index, moral, dedupe, ttl_ns = one
        twin.decide(VECTORS[index], moral, dedupe, ttl_ns if lives else None, 700 * (index + 1))
    levels = b"".join(level.tobytes() for level in twin.reference.levels)
    twin.formed.store.levels()
    padded = twin.formed.block.map.padded
    found = twin.formed.store.level_bytes()
    assert levels == b"".join(found[4 * padded * level :][:12] for level in range(3))
    twin.formed.close()


def test_an_event_without_dedupe_has_none() -> None:
    """However near the nearest memory is."""
    twin = Twin(5)
    for _ in range(3):
        twin.decide(VECTORS[0], 0.95, None, None, 0)
    assert decided_of(twin.formed.entry(twin.formed.block.position)).duplicate_of == 0
    twin.formed.close()


def test_what_is_found_is_what_lived_before_the_entry() -> None:
    """While another process admits as fast as it can, each duplicate is the nearest memory at the position before."""
    formed = Formed(Layout(8, 100, 8, 1_000_000, 3, 16), OPEN)

    def write() -> None:
        formed.be(1)
        rng = random.Random(SEED)
        while formed.store.state().position < 900_000:
            formed.accept(rng.randrange(50_000))

    writer = begin(write)
    wait_until(lambda: formed.store.tallies()[0] > 100)
    rng, made = random.Random(SEED + 1), []
    for _ in range(150):
        moral, vector = formed.pool.event(950_000 + rng.randrange(50_000))
        policy = rng.choice(tuple(get_args(DuplicatePolicy)))
        decision = formed.store.admit_event(formed.now(), Event(moral, vector, dedupe=(policy, -1.0)))
        made.append(decision.position)
    end(writer)
    live: dict[int, Any] = {}
    position = 0
    for at in made:
        while position < at:
            page, _ = formed.store.entries(position + 1, min(1000, at - position))
            for entry in page:
                decided = decided_of(copied(entry))
                if entry.position == at:
                    query = formed.pool.vectors[formed.pool.index_of(decided.moral)]
                    best = nearest(query, 1, live.values())[0]
                    assert (best.memory_id, best.score) == (decided.duplicate_of, decided.duplicate_score)
                if KINDS[entry.kind] == "decision":
                    live.pop(decided.victim_id, None)
                    if decided.memory_id:
                        live[decided.memory_id] = memory_of(formed, decided)
            position += len(page)
    formed.close()

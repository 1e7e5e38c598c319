"""Namespaces: random histories equal the reference bit by bit; damaged rows are noticed and repaired."""

from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core.namespaces import Namespace, NamespaceId, Namespaces, Policy, Terms, name_of
from core.reference import namespace as reference_namespace
from core.reference.entry import Entry as ReferenceEntry
from core.reference.governor import Governor
from core.reference.memory import Content
from core.reference.refusal import Reason, Refused
from core.reference.settings import Settings, Sizes
from core.reference.store import Event as ReferenceEvent
from core.reference.store import Store as ReferenceStore
from core.regime import MODES, Regime
from core.settings.config import Config
from shm._native import ffi
from shm.errors import Closing, Corrupt, Exists, Invalid, NamespacesFull, NotEmpty, Promised, StoreError, Unknown
from shm.event import DEFAULT_NAMESPACE, Event
from shm.layout import (
    DECIDED_JUDGED,
    DECIDED_STORED,
    DECIDED_VERDICT,
    KINDS,
    STEPS,
    Layout,
)
from shm.records import EntryPointer, changed_of, decided_of
from testing.block_fixture import Formed, Witness, copied
from tests.shm.conftest import Form

SMALL: Final = Layout(2, 100, 16, 16, 2, 4, namespaces=5)
ROOMY: Final = SMALL._replace(log_capacity=4096)
OPEN: Final = Regime.of(Config())
STRICT: Final = OPEN.governor._replace(min_threshold=0.6, initial_threshold=0.7)
REASONS: Final[dict[type[StoreError], str]] = {
    Unknown: "unknown",
    Closing: "closing",
    Exists: "exists",
    Invalid: "invalid",
    Promised: "promised",
    NamespacesFull: "namespaces_full",
    NotEmpty: "not_empty",
}

governors = st.sampled_from([OPEN.governor, STRICT])
policies = st.builds(Policy, governors, st.sampled_from(MODES))
# No limit is reached and the store never fills: what is evicted then is another test's.
terms = st.builds(
    Terms,
    st.sampled_from([None, None, 95]),
    st.sampled_from([0, 0, 0, 40, 96]),
    st.sampled_from([0, 0, 10**15, -1]),
    st.none() | policies,
)


def outcome_of(made: Callable[[int], ReferenceEntry], now_ns: int) -> ReferenceEntry | Reason:
    """Return the entry of a transition, or the reason for which the reference refuses it."""
    try:
        return made(now_ns)
    except Refused as refused:
        return refused.reason


class Pair:
    """A block and the reference store, driven by the same operations."""

    def __init__(self, layout: Layout, regime: Regime = OPEN) -> None:
        self.formed = Formed(layout, regime)
        sizes = Sizes(layout.dimension, layout.capacity, layout.slack, layout.log_capacity, layout.namespaces, 2**32)
        self.reference = ReferenceStore(sizes)
        self.reference.start(int(self.formed.entry(1).time_ns), Settings(regime))
        self.store = self.formed.store
        self.witness = Witness(self.formed)

    def run(
        self, made: Callable[[int], ReferenceEntry], happened: Callable[[int], EntryPointer]
    ) -> ReferenceEntry | None:
        """Make a transition twice and compare both, also the reason if it is refused."""
        now_ns = self.formed.now()
        expected = outcome_of(made, now_ns)
        if isinstance(expected, str):
            with pytest.raises(tuple(REASONS)) as raised:
                happened(now_ns)
            assert expected == REASONS[raised.type]
            return None
        self.compare(expected, copied(happened(now_ns)))
        if expected.position % 8 == 0:
            self.witness.check()  # before the entries leave the log
        return expected

    def compare(self, expected: ReferenceEntry, entry: EntryPointer) -> None:
        """Compare an entry of the block with that of the reference."""
        assert (expected.position, expected.kind, expected.time_ns) == (
            entry.position, KINDS[entry.kind], entry.time_ns,
        )  # fmt: skip
        for one, other in ((expected.before, entry.before), (expected.after, entry.after)):
            for field in ("theta", "ema", "phase", "counter", "newest_id", "accepted", "rejected", "step", "live"):
                assert getattr(one, field) == getattr(other, field), field
        if expected.namespace is None:
            return
        own = [expected.own_before or Governor(0.0, 0.0), expected.own_after or Governor(0.0, 0.0)]
        if expected.kind == "namespace":
            changed = changed_of(entry)
            assert (expected.namespace, expected.step) == (
                (changed.namespace, changed.terms.generation), STEPS[changed.step],
            )  # fmt: skip
            assert (expected.name, expected.terms) == (name_of(changed.terms), Terms.of_record(changed.terms))
            assert own == [Governor(*pair) for pair in zip(changed.own_theta, changed.own_ema, strict=True)]
            return
        decided = decided_of(entry)
        assert expected.namespace == (decided.namespace, decided.generation)
        assert own == [Governor(*pair) for pair in zip(decided.own_theta, decided.own_ema, strict=True)]
        if expected.kind != "decision":
            return
        flags = DECIDED_JUDGED * (expected.verdict is not None) | DECIDED_VERDICT * (expected.verdict is True)
        assert flags | DECIDED_STORED * expected.stored == decided.flags & 7
        assert (expected.memory_id, expected.moral, expected.scorer) == (
            decided.memory_id, decided.moral, decided.scorer,
        )  # fmt: skip
        assert (expected.created_at, expected.updated_at, expected.expires_at) == (
            decided.created_ns, decided.updated_ns, decided.expires_ns,
        )  # fmt: skip

    def decide(self, namespace: NamespaceId, number: int) -> ReferenceEntry | None:
        """Decide event `number` of the pool in a namespace."""
        moral, vector = self.formed.pool.event(number)
        content = Content(vector.tobytes())

        def happened(now_ns: int) -> EntryPointer:
            decision = self.store.admit_event(now_ns, Event(moral, vector, namespace=namespace, scorer=number))
            return self.formed.entry(decision.position)

        event = ReferenceEvent(namespace, content, moral, scorer=number)
        return self.run(lambda now_ns: self.reference.decide(now_ns, event), happened)

    def check(self) -> None:
        """Compare every row."""
        assert [self.row(number) for number in range(self.formed.block.layout.namespaces)] == self.reference.rows
        live = {
            namespace: len(self.reference.allocation.memories_of(namespace)) for namespace in self.reference.namespaces
        }
        assert live == {one.id: one.memories for one in Namespaces(self.formed.block, self.store).all()}
        self.witness.check()

    def row(self, number: int) -> reference_namespace.Namespace | reference_namespace.FreeRow:
        """Return a row of the block as the reference has it."""
        terms, cell = list(self.store.namespaces())[number]
        found = Namespace.of_records(number, terms, cell)
        if found is None:
            return reference_namespace.FreeRow(terms.generation, terms.freed)
        governor = Governor(found.theta, found.ema) if found.theta is not None and found.ema is not None else None
        return reference_namespace.Namespace(
            found.id, found.name, found.terms, governor, found.closing, found.accepted, found.rejected, found.evicted
        )


class Histories(RuleBasedStateMachine):
    """Decisions, deletions and all steps of namespaces, in any order."""

    pair: Pair | None = None

    @initialize(mode=st.sampled_from(MODES), log_capacity=st.sampled_from([16, 24]))
    def begin(self, mode: str, log_capacity: int) -> None:
        """Begin with an empty store; the log is short, so that rows are given again."""
        assert mode in MODES
        self.pair = Pair(SMALL._replace(log_capacity=log_capacity), OPEN._replace(mode=mode))
        self.ids: list[NamespaceId] = [DEFAULT_NAMESPACE, NamespaceId(1, 7), NamespaceId(9, 1)]

    def one(self, index: int) -> NamespaceId:
        """Return a namespace that is or has been; also some that never were."""
        return self.ids[index % len(self.ids)]

    @property
    def both(self) -> Pair:
        """The pair, after `begin`."""
        assert self.pair
        return self.pair

    @rule(index=st.integers(0, 50), number=st.integers(0, 10**6))
    def decide(self, index: int, number: int) -> None:
        """Decide an event."""
        if self.both.reference.scalars.live < 90:
            self.both.decide(self.one(index), number)

    @rule(name=st.sampled_from(["ann", "bob", "eve", "dan", "joe", "default"]), given=terms)
    def create(self, name: str, given: Terms) -> None:
        """Create a namespace."""
        both = self.both
        entry = both.run(
            lambda now_ns: both.reference.create_namespace(now_ns, name, given),
            lambda now_ns: both.store.create_namespace(now_ns, given.to_record(name)),
        )
        if entry:
            assert entry.namespace
            self.ids.append(entry.namespace)

    @rule(index=st.integers(0, 50), given=terms)
    def change(self, index: int, given: Terms) -> None:
        """Set other terms."""
        both, namespace = self.both, self.one(index)
        both.run(
            lambda now_ns: both.reference.change_namespace(now_ns, namespace, given),
            lambda now_ns: both.store.change_namespace(now_ns, namespace, given.to_record()),
        )

    @rule(index=st.integers(0, 50), step=st.sampled_from(["close", "free", "reset", "delete", "end"]))
    def step(self, index: int, step: str) -> None:
        """Close, free or reset a namespace, delete its memories, or all of it."""
        both, namespace = self.both, self.one(index)
        reference, store = both.reference, both.store
        if step in ("close", "end"):
            both.run(
                lambda now_ns: reference.close_namespace(now_ns, namespace),
                lambda now_ns: store.close_namespace(now_ns, namespace),
            )
        if step in ("delete", "end"):
            for _, memory in reference.allocation.memories_of(namespace)[: 2 if step == "delete" else None]:
                both.run(
                    lambda now_ns, memory_id=memory.memory_id: reference.delete(now_ns, memory_id),  # type: ignore[misc]
                    lambda now_ns, memory_id=memory.memory_id: store.forget(now_ns, memory_id),  # type: ignore[misc]
                )
        if step in ("free", "end"):
            both.run(
                lambda now_ns: reference.free_namespace(now_ns, namespace),
                lambda now_ns: store.free_namespace(now_ns, namespace),
            )
        if step == "reset":
            both.run(
                lambda now_ns: reference.reset(now_ns, namespace),
                lambda now_ns: store.reset_namespace(now_ns, namespace),
            )

    @rule(count=st.integers(1, 12))
    def ticks(self, count: int) -> None:
        """Steps of the rhythm, which let entries leave the log."""
        both = self.both
        for _ in range(count):
            both.run(both.reference.tick, lambda now_ns: both.store.tick(now_ns, both.formed.epoch))

    @invariant()
    def rows_are_equal(self) -> None:
        """Every row of the table is the reference's."""
        if self.pair:
            self.pair.check()

    def teardown(self) -> None:
        """Close the block."""
        if self.pair:
            self.pair.formed.close()
        self.pair = None


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestDamage:
    @pytest.fixture
    def used(self, form: Form) -> Formed:
        """Three namespaces with events, one of them with its own governor, and two rows that were never used."""
        formed = form(ROOMY)
        for name, policy in (("ann", Policy(OPEN.governor)), ("bob", None)):
            formed.store.create_namespace(formed.now(), Terms(policy=policy).to_record(name))
        for number in range(30):
            self.admit(formed, NamespaceId(number % 3, 1), 900_000 + number)
        return formed

    @staticmethod
    def admit(formed: Formed, namespace: NamespaceId, number: int) -> None:
        """Decide event `number` of the pool."""
        moral, vector = formed.pool.event(number)
        formed.store.admit_event(formed.now(), Event(moral, vector, namespace=namespace))

    def flipped(self, formed: Formed) -> Iterator[int]:
        """Flip each bit of the copies in turn; the block is put back as it was."""
        image = formed.block.memory[:]
        offset, _ = formed.region_bytes("namespaces")
        copies = 2 * (ffi.sizeof("struct mlsdm_cell") + ffi.sizeof("struct mlsdm_terms"))
        stride = ffi.sizeof("struct mlsdm_namespace")
        for row in range(formed.block.layout.namespaces):
            for bit in range(8 * copies):
                formed.block.memory[offset + row * stride + bit // 8] ^= 1 << bit % 8
                yield row
                formed.block.memory[:] = image

    def test_each_flipped_bit_is_noticed_and_repaired(self, used: Formed) -> None:
        """The scrub finds it once; reads and events go on as if nothing had happened."""
        offset, size = used.region_bytes("namespaces")
        whole, table = used.block.memory[offset : offset + size], Namespaces(used.block, used.store).all()
        for number, _ in enumerate(self.flipped(used)):
            if number % 16 == 0:
                assert table == Namespaces(used.block, used.store).all()
            assert used.store.repair_namespaces(0, 5) == 1
            assert whole == used.block.memory[offset : offset + size]

    def test_events_are_counted_whatever_copy_is_damaged(self, used: Formed) -> None:
        """An event writes both copies again."""
        before = Namespaces(used.block, used.store).all()
        for number, row in enumerate(self.flipped(used)):
            if row < 3 and number % 61 == 0:
                self.admit(used, NamespaceId(row, 1), 950_000)
                after = Namespaces(used.block, used.store).all()
                assert before[row].accepted + 1 == after[row].accepted
                used.store.repair_namespaces(0, 5)

    def test_both_copies(self, used: Formed) -> None:
        """Then events of this namespace are refused, and no others."""
        cells = used.block.region("namespaces", 1).cells
        cells[0].accepted += 1
        cells[1].accepted += 1
        with pytest.raises(Corrupt):
            self.admit(used, NamespaceId(1, 1), 950_000)
        with pytest.raises(Corrupt):
            used.store.repair_namespaces(0, 5)
        for row in (0, 2):
            self.admit(used, NamespaceId(row, 1), 950_000)


def test_a_row_is_given_again_when_the_log_has_forgotten_it(form: Form) -> None:
    """It has the next generation then; not the lowest free row counts, but the lowest that can be given."""
    formed = form(SMALL)
    store = formed.store

    def create(name: str) -> NamespaceId:
        changed = changed_of(store.create_namespace(formed.now(), Terms().to_record(name)))
        return NamespaceId(changed.namespace, changed.terms.generation)

    assert [create(name) for name in "abcd"] == [NamespaceId(row, 1) for row in range(1, 5)]
    with pytest.raises(NamespacesFull):
        create("e")
    for row in (3, 2):
        store.close_namespace(formed.now(), NamespaceId(row, 1))
        store.free_namespace(formed.now(), NamespaceId(row, 1))
    for _ in range(12):
        store.tick(formed.now(), formed.epoch)
    for name, given in (("e", NamespaceId(3, 2)), ("f", NamespaceId(2, 2))):
        with pytest.raises(NamespacesFull):
            create(name)
        store.tick(formed.now(), formed.epoch)
        assert create(name) == given


def test_the_table_of_names_is_read_again_when_it_has_changed(formed: Formed) -> None:
    """A process finds what another one has created."""
    seen = Namespaces(formed.block, formed.store)
    assert (seen.find("default"), seen.find("ann")) == (DEFAULT_NAMESPACE, None)
    formed.store.create_namespace(formed.now(), Terms().to_record("ann"))
    assert seen.find("ann") == NamespaceId(1, 1)
    formed.store.close_namespace(formed.now(), NamespaceId(1, 1))
    formed.store.free_namespace(formed.now(), NamespaceId(1, 1))
    assert seen.find("ann") is None


@pytest.mark.parametrize(
    ("terms", "name", "message"),
    [
        (Terms(limit=0), "a", "^limit is 0, it must be at least 1$"),
        (Terms(reserved=-1), "a", "^reserved is -1, it must be between 0 and the limit$"),
        (Terms(), "ä" * 33, "^name is '.*', expected at most 64 bytes of UTF-8 without zeros$"),
        (Terms(), "a\0b", "^name is '.*', expected at most 64 bytes of UTF-8 without zeros$"),
    ],
)
def test_terms_that_fit_no_record(terms: Terms, name: str, message: str) -> None:
    """The error names the field, what was wrong and what was expected."""
    with pytest.raises(ValueError, match=message):
        terms.to_record(name)

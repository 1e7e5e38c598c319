"""Random histories of all operations hold the store's invariants, and their log replays to the same state."""

from collections.abc import Callable
from typing import Any, Final

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core.namespaces import NEVER, NamespaceId, Policy, Terms
from core.reference.entry import EXPIRED_PER_ENTRY, Entry
from core.reference.entry_replay import EntryDivergenceError, replay
from core.reference.governor import Governor
from core.reference.memory import Content, Memory
from core.reference.namespace import Namespace
from core.reference.recall import Match
from core.reference.refusal import Reason, Refused
from core.reference.settings import Settings, Sizes
from core.reference.store import Change, Dedupe, Event, Restored, Store
from core.reference.vector import cosine
from core.regime import Regime
from core.settings.config import Config
from tests.core.reference.store_ledger import Ledger

REGIME: Final = Regime.of(Config())
NAMES: Final = ("default", "ann", "bob")
VECTORS: Final = tuple(np.array(v, np.float32).tobytes() for v in ((1, 0), (0, 1), (1, 1), (-1, 0.5), (0, 0)))

modes = st.sampled_from(["enforce", "enforce", "shadow", "off"])
policies = st.builds(
    Policy,
    st.sampled_from([REGIME.governor, REGIME.governor._replace(min_threshold=0.6, initial_threshold=0.7)]),
    modes,
)
terms = st.builds(
    Terms,
    st.sampled_from([None, None, 1, 2, 3]),
    st.integers(0, 3),
    st.sampled_from([NEVER, NEVER, 3]),
    st.none() | policies,
)
server_settings = st.builds(
    lambda regime, mode: Settings(regime._replace(mode=mode)),
    st.sampled_from([REGIME, REGIME._replace(rhythm=REGIME.rhythm._replace(by_events=True, wake_duration=2))]),
    modes,
)
contents = st.builds(Content, st.sampled_from(VECTORS), st.sampled_from([b"", b"x"]), st.just({}) | st.just({"a": 1}))
own_ids = st.none() | st.sampled_from(["one", "two"])
morals = st.sampled_from([0.0, 0.4, 0.6, 1.0, 1.0, 1.0])
dedupes = st.none() | st.builds(Dedupe, st.sampled_from([0.7, 1.0]), st.sampled_from(["skip", "supersede", "keep"]))
lifetimes = st.none() | st.integers(0, 4)
pins = st.sampled_from([False, False, True])


class History(RuleBasedStateMachine):
    """One store, the lists that follow its entries, and everything that a replay may use."""

    @initialize(
        capacity=st.integers(1, 6),
        slack=st.integers(0, 2),
        log_capacity=st.integers(1, 5),
        pins_max=st.integers(0, 6),
        began=server_settings,
    )
    def start(self, capacity: int, slack: int, log_capacity: int, pins_max: int, began: Settings) -> None:
        self.sizes = Sizes(2, capacity, slack, log_capacity, 3, min(pins_max, capacity))
        self.store = Store(self.sizes)
        self.ledger = Ledger(capacity, slack)
        self.now = 100
        self.refused: Reason | None = None
        self.entries: list[Entry] = []
        self.contents: dict[int, Content] = {}
        self.gone: dict[NamespaceId, tuple[int, int]] = {}
        self.accept(self.store.start(self.now, began))

    # -- operations --

    @rule(step=st.integers(-2, 3))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule(
        number=st.integers(0, 2), content=contents, moral=morals, own_id=own_ids, pinned=pins, ttl_ns=lifetimes,
        create_only=pins, dedupe=dedupes,
    )  # fmt: skip
    def decide(self, number: int, content: Content, moral: float, **options: Any) -> None:
        event = Event(self.namespace(number), content, moral, **options)
        predicted = self.prediction(event.namespace)
        entry = self.attempt(lambda: self.store.decide(self.now, event), content)
        if self.refused in ("no_room", "namespace_full"):
            assert predicted is None
        if self.refused == "no_room":
            assert self.ledger.count(event.namespace) >= self.ledger.terms[event.namespace].reserved
        if entry is not None:
            assert entry.stored == bool(entry.memory_id)
            self.check_victim(entry, predicted)
            self.check_counters(entry)

    @rule(
        pick=st.integers(0, 9), payload=st.none() | st.just(b"y"), metadata=st.none() | st.just({"b": True}),
        pinned=st.none() | st.booleans(), ttl_ns=lifetimes, stale=pins,
    )  # fmt: skip
    def update(self, pick: int, stale: bool, **options: Any) -> None:
        memory_id = self.memory_id(pick)
        found = self.store.allocation.find(memory_id)
        version = found[1].version - stale if found else None
        entry = self.attempt(lambda: self.store.update(self.now, memory_id, Change(version=version, **options)))
        if entry is not None:
            assert found is not None
            assert not stale
            after = self.store.allocation.slots[entry.slot or 0]
            assert isinstance(after, Memory)
            self.contents[entry.position] = after.content
            self.check_update(entry, found[1], after)

    @rule(
        number=st.integers(0, 2), content=contents, memory_id=st.none() | st.integers(0, 12), own_id=own_ids,
        pinned=pins, replace_oldest=st.booleans(), lifetime=st.sampled_from([NEVER, NEVER, -1, 2]),
    )  # fmt: skip
    def restore(self, number: int, content: Content, lifetime: int, **options: Any) -> None:
        expires_at = self.now + lifetime if lifetime else NEVER
        restored = Restored(self.namespace(number), content, 0.5, 7, 8, phase=1, expires_at=expires_at, **options)
        predicted = self.prediction(restored.namespace)
        entry = self.attempt(lambda: self.store.restore(self.now, restored), content)
        if entry is not None:
            self.check_victim(entry, predicted)
            assert restored.replace_oldest or all(victim.cause == "expired" for victim in entry.victims)

    @rule(pick=st.integers(0, 9))
    def delete(self, pick: int) -> None:
        memory_id = self.memory_id(pick)
        self.attempt(lambda: self.store.delete(self.now, memory_id))

    @rule(slot=st.integers(0, 6))
    def lost(self, slot: int) -> None:
        slot %= len(self.store.allocation.slots)
        self.attempt(lambda: self.store.lost(self.now, slot))

    @rule()
    def expire(self) -> None:
        ended = self.ledger.expired(max(self.now, self.store.time_ns))
        entry = self.attempt(lambda: self.store.expire(self.now))

        assert (entry is not None) == bool(ended)
        if entry is not None:
            assert ended[:EXPIRED_PER_ENTRY] == [victim.memory_id for victim in entry.victims]

    @rule()
    def tick(self) -> None:
        self.attempt(lambda: self.store.tick(self.now))

    @rule(stopped=st.booleans())
    def stop_or_resume(self, stopped: bool) -> None:
        self.attempt(lambda: self.store.stop(self.now) if stopped else self.store.resume(self.now))

    @rule(after=server_settings)
    def configure(self, after: Settings) -> None:
        self.attempt(lambda: self.store.configure(self.now, after))

    @rule(number=st.none() | st.integers(0, 2))
    def reset(self, number: int | None) -> None:
        namespace = None if number is None else self.namespace(number)
        self.attempt(lambda: self.store.reset(self.now, namespace))

    @rule(name=st.sampled_from(NAMES), asked=terms)
    def create_namespace(self, name: str, asked: Terms) -> None:
        entry = self.attempt(lambda: self.store.create_namespace(self.now, name, asked))
        if entry is not None:
            in_reach = self.entries[-self.sizes.log_capacity :]
            assert entry.namespace is not None
            assert entry.namespace.number not in {e.namespace.number for e in in_reach[:-1] if e.namespace}

    @rule(number=st.integers(0, 2), asked=terms)
    def change_namespace(self, number: int, asked: Terms) -> None:
        self.attempt(lambda: self.store.change_namespace(self.now, self.namespace(number), asked))

    @rule(number=st.integers(1, 2))
    def close_namespace(self, number: int) -> None:
        self.attempt(lambda: self.store.close_namespace(self.now, self.namespace(number)))

    @rule(number=st.integers(1, 2))
    def free_namespace(self, number: int) -> None:
        namespace_id = self.namespace(number)
        row = self.store.namespaces.get(namespace_id)
        if self.attempt(lambda: self.store.free_namespace(self.now, namespace_id)) is not None:
            assert row is not None
            self.gone[namespace_id] = row.accepted, row.rejected

    # -- what an operation may have done --

    def namespace(self, number: int) -> NamespaceId:
        """Return the namespace in a row, or one that is not there."""
        row = self.store.rows[number]
        return row.id if isinstance(row, Namespace) else NamespaceId(number, row.generation)

    def memory_id(self, pick: int) -> int:
        """Return the id of a memory, most often of one that is in a slot."""
        ids = sorted(self.ledger.kept)
        return ids[pick % len(ids)] if ids and pick < 8 else pick

    def prediction(self, namespace: NamespaceId) -> Callable[[], tuple[Any, int] | None] | None:
        """Return what the lists say about the victim of a newcomer, now; to be asked if it is stored."""
        if namespace not in self.ledger.terms:
            return None
        time_ns = max(self.now, self.store.time_ns)
        try:
            predicted = self.ledger.victim_of_newcomer(namespace, time_ns)
        except (IndexError, ValueError, AssertionError):  # nothing can be evicted, which the model must refuse
            return None
        return lambda: predicted

    def attempt(self, transition: Callable[[], Entry], content: Content | None = None) -> Entry | None:
        """Make a transition; a refused one changes nothing."""
        before = self.store.state()
        self.refused = None
        try:
            entry = transition()
        except Refused as refused:
            assert before == self.store.state()
            self.refused = refused.reason
            return None
        if content is not None:
            self.contents[entry.position] = content
        self.accept(entry)
        return entry

    def accept(self, entry: Entry) -> None:
        """Check what holds for every entry, and follow it."""
        assert entry.position == len(self.entries) + 1
        if self.entries:
            assert self.entries[-1].after == entry.before
            assert self.entries[-1].time_ns <= entry.time_ns
        assert entry.after == self.store.scalars
        assert len(entry.victims) <= (EXPIRED_PER_ENTRY if entry.kind == "expire" else 1)
        for victim in entry.victims:
            kept = self.ledger.kept[victim.memory_id]
            assert not (kept.pinned and victim.cause in ("limit", "capacity"))
            assert victim.cause == "lost" or kept.has_expired(entry.time_ns) == (victim.cause == "expired")
            if victim.cause == "capacity":
                newcomer = kept.namespace == entry.namespace
                assert self.ledger.count(kept.namespace) - 1 + newcomer >= self.ledger.terms[kept.namespace].reserved
        self.ledger.follow(entry)
        self.entries.append(entry)

    def check_victim(self, entry: Entry, predicted: Callable[[], tuple[Any, int] | None] | None) -> None:
        """The victim of a memory that takes no other one's place is the one that the lists say."""
        victim = entry.victims[0] if entry.victims else None
        if not entry.memory_id or (victim and victim.cause == "superseded"):
            return
        assert predicted is not None
        assert predicted() == ((victim.cause, victim.memory_id) if victim else None)

    def check_counters(self, entry: Entry) -> None:
        """Each event is let through or not; the modes say when, and whether the governor moves."""
        assert entry.namespace is not None
        row = self.store.namespaces[entry.namespace]
        mode = (row.terms.policy or self.store.settings.policy).mode
        let_through = entry.after.accepted - entry.before.accepted
        skipped = entry.duplicate is not None and entry.duplicate.policy == "skip"

        assert let_through + entry.after.rejected - entry.before.rejected == 1
        assert let_through == (mode != "enforce" or entry.verdict)
        assert (entry.verdict is None) == (mode == "off")
        assert entry.stored == (let_through and not skipped)
        before, after = self.governors(entry, own=entry.own_before is not None)
        policy = row.terms.policy or self.store.settings.policy
        moved = before if mode == "off" else before.decide(entry.moral, policy.settings)[1]
        assert moved == after
        others = self.governors(entry, own=entry.own_before is None)
        assert others[0] == others[1]

    def governors(self, entry: Entry, own: bool) -> tuple[Governor, Governor]:
        """Return the namespace's own governor or the server's, before and after an entry."""
        if own:
            unused = Governor(0.0)
            return entry.own_before or unused, entry.own_after or unused
        return Governor(*entry.before[:2]), Governor(*entry.after[:2])

    def check_update(self, entry: Entry, before: Memory, after: Memory) -> None:
        """A version keeps identity, admission and vector, and moves neither governor nor counters nor levels."""
        kept = ("memory_id", "admitted_at", "namespace", "own_id", "created_at", "moral", "phase")
        assert all(getattr(before, field) == getattr(after, field) for field in kept)
        assert before.content.vector == after.content.vector
        assert after.version == entry.position
        assert entry.before == entry.after
        if not before.pinned and not after.pinned:
            assert before.queued_at == after.queued_at

    # -- what holds at every position --

    @invariant()
    def counts_agree(self) -> None:
        """State, namespaces, slots and lists count the same; free slots are the others."""
        store, ledger = self.store, self.ledger
        slots = {slot: memory for slot, memory in enumerate(store.allocation.slots) if isinstance(memory, Memory)}

        assert store.scalars.live == len(slots) == sum(ledger.count(namespace) for namespace in ledger.terms)
        assert {memory.memory_id: slot for slot, memory in slots.items()} == {
            memory_id: kept.slot for memory_id, kept in ledger.kept.items()
        }
        assert len(slots) <= self.sizes.capacity
        assert len(ledger.free) == len(store.allocation.slots) - len(slots)
        assert store.allocation.spare == ledger.free[0]
        assert set(ledger.terms) == set(store.namespaces)
        assert ledger.terms == {row.id: row.terms for row in store.namespaces.values()}

    @invariant()
    def sums_are_kept(self) -> None:
        """Reserved shares, pins and what is promised stay within the capacity."""
        ledger = self.ledger
        pinned = {namespace: ledger.pinned(namespace) for namespace in ledger.terms}
        reserved = {namespace: row.reserved for namespace, row in ledger.terms.items()}

        assert sum(pinned.values()) <= self.sizes.pins_max
        assert sum(reserved.values()) <= self.sizes.capacity
        assert sum(max(pinned[one], reserved[one]) for one in pinned) <= self.sizes.capacity

    @invariant()
    def decisions_are_counted(self) -> None:
        """The server's counters are the sums over its namespaces, those that are gone included."""
        rows = [(row.accepted, row.rejected) for row in self.store.namespaces.values()] + list(self.gone.values())
        decisions = sum(entry.kind == "decision" for entry in self.entries)

        assert (self.store.accepted, self.store.rejected) == tuple(map(sum, zip(*rows, strict=True)))
        assert self.store.accepted + self.store.rejected == decisions

    @invariant()
    def identities_are_unique(self) -> None:
        """No id is given twice, and no two memories that live share an own id in a namespace."""
        memories = [memory for _, memory in self.store.allocation.memories()]
        lasting = [m for m in memories if m.own_id is not None and not m.has_expired(self.store.time_ns)]
        given = [entry.memory_id for entry in self.entries if entry.kind == "decision" and entry.stored]

        assert len({memory.memory_id for memory in memories}) == len(memories)
        assert len({(memory.namespace, memory.own_id) for memory in lasting}) == len(lasting)
        assert given == sorted(set(given))
        assert all(memory.memory_id <= self.store.newest_id for memory in memories)

    @invariant()
    def reads_see_what_lives(self) -> None:
        """A read sees neither an expired memory nor one of a closing namespace; recall ranks what it sees."""
        for clock_ns in (0, self.store.time_ns, self.store.time_ns + 2):
            instant = max(clock_ns, self.store.time_ns)
            expected = {
                memory_id
                for memory_id, kept in self.ledger.kept.items()
                if not kept.has_expired(instant) and not self.store.namespaces[kept.namespace].closing
            }
            seen = list(self.store.visible(clock_ns))
            assert expected == {memory.memory_id for memory in seen}

            query = np.array([1, 0.5], np.float32)
            ranked = [Match(memory.memory_id, cosine(query, memory.content.values())) for memory in seen]
            ranked.sort(key=lambda match: match.memory_id, reverse=True)
            ranked.sort(key=lambda match: match.score, reverse=True)  # stable: equal scores stay newest first
            assert ranked[:3] == self.store.recall(clock_ns, query, 3, set(self.store.namespaces))

    def teardown(self) -> None:
        """The log and what was written replay to the live state."""
        if hasattr(self, "store"):
            replayed = replay(self.entries, self.contents.__getitem__, self.sizes)
            assert self.store.state() == replayed.state()


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_an_entry_that_does_not_follow_is_named() -> None:
    """A replay compares every field, and names position, field and both values."""
    store = Store(Sizes(2, 2, 0, 4, 1, 0))
    content = Content(VECTORS[0])
    entries = [store.start(0, Settings(REGIME)), store.decide(1, Event(NamespaceId(0, 1), content, 1.0))]
    for wrong, message in (
        (entries[1]._replace(slot=0), "position 2: slot is 0, the reference model has 1"),
        (
            entries[1]._replace(namespace=NamespaceId(0, 2)),
            "position 2: the reference model refuses it: there is no namespace",
        ),
    ):
        with pytest.raises(EntryDivergenceError, match=message):
            replay([entries[0], wrong], lambda _: content, store.sizes)

"""The store of the reference model, rule by rule; docs/design/allocation.md has the same rules in words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.namespaces import NEVER, NamespaceId, Policy, Terms
from core.reference.entry import Duplicate, Entry
from core.reference.governor import Governor
from core.reference.memory import Content, Memory
from core.reference.refusal import Refused
from core.reference.settings import Settings, Sizes
from core.reference.store import Change, Dedupe, Event, Restored, Store
from core.reference.synapse import Synapse
from core.regime import Mode, Regime
from core.settings.config import Config

REGIME = Regime.of(Config())
SETTINGS = Settings(REGIME)
DEFAULT = NamespaceId(0, 1)


def content(x: float = 1, y: float = 0) -> Content:
    """Return a content with a vector of two dimensions."""
    return Content(np.array([x, y], np.float32).tobytes())


class Made(Store):
    """A store of a few memories at time 0, and short forms of operations; events are accepted unless they say so."""

    def __init__(self, capacity: int = 4, slack: int = 0, pins_max: int = 4, settings: Settings = SETTINGS) -> None:
        super().__init__(Sizes(2, capacity, slack, 3, 3, pins_max))
        self.now = 0
        self.start(0, settings)

    def add(
        self, namespace: NamespaceId = DEFAULT, stored: Content | None = None, moral: float = 1, **more: Any
    ) -> Entry:
        """Decide an event."""
        return self.decide(self.now, Event(namespace, stored or content(), moral, **more))

    def namespace(self, name: str, **terms: Any) -> NamespaceId:
        """Create a namespace and return its identity."""
        created = self.create_namespace(self.now, name, Terms(**terms)).namespace
        assert created is not None
        return created

    def memory(self, memory_id: int) -> Memory:
        """Return a memory that is in a slot."""
        found = self.allocation.find(memory_id)
        assert found is not None
        return found[1]

    def ids(self) -> set[int]:
        """Return the ids of the memories that a read sees now."""
        return {memory.memory_id for memory in self.visible(self.now)}

    def refusal(self, transition: Callable[[], Entry]) -> str:
        """Return the reason of a refusal, which must change nothing."""
        before = self.state()
        with pytest.raises(Refused) as refused:
            transition()
        assert before == self.state()
        return refused.value.reason


def removed(entry: Entry) -> list[tuple[str, int]]:
    """Return cause and id of the victims of an entry."""
    return [(victim.cause, victim.memory_id) for victim in entry.victims]


class TestRing:
    @given(st.integers(1, 5), st.lists(st.floats(0, 1), max_size=40))
    def test_without_limits_pins_deletions_and_expiry_the_slots_are_a_ring(
        self, capacity: int, morals: list[float]
    ) -> None:
        """Memory n lies in slot n mod (C + 1), the C newest live; governor and levels are those of their models."""
        store = Made(capacity)
        governor, levels, accepted = Governor.initial(REGIME.governor), Synapse.initial(2), 0
        for moral in morals:
            entry = store.add(moral=moral, stored=content(moral, 1))
            verdict, governor = governor.decide(moral, REGIME.governor)
            if verdict:
                accepted += 1
                levels = levels.after_run(content(moral, 1).values(), REGIME.synapse)

            window = range(max(1, accepted - capacity + 1), accepted + 1)
            assert {n % (capacity + 1): n for n in window} == {s: m.memory_id for s, m in store.allocation.memories()}
            assert entry.memory_id == (accepted if verdict else 0)
            assert (store.governor, store.accepted, store.newest_id) == (governor, accepted, accepted)
            assert [level.tobytes() for level in levels] == [level.tobytes() for level in store.levels]


class TestVictim:
    def test_the_superseded_memory_goes_first(self) -> None:
        """Even at the limit and in a full store nothing else has to go."""
        store = Made()
        ann = store.namespace("ann", limit=2)
        for own_id in ("a", "b"):
            store.add(ann, own_id=own_id)
        store.add(), store.add()

        assert removed(store.add(ann, own_id="b")) == [("superseded", 2)]
        assert store.ids() == {1, 3, 4, 5}

    def test_at_its_limit_a_namespace_loses_its_own_oldest(self) -> None:
        """Though slots are free, and other namespaces have older memories."""
        store = Made()
        ann = store.namespace("ann", limit=2)
        store.add()
        store.add(ann), store.add(ann)

        assert removed(store.add(ann)) == [("limit", 2)]
        assert (store.namespaces[ann].evicted, store.namespaces[DEFAULT].evicted) == (1, 0)

    def test_while_a_slot_is_free_nothing_goes(self) -> None:
        """The slot freed longest ago is written."""
        store = Made()
        for _ in range(4):
            store.add()  # slots 1 to 4; slot 0 is the spare
        store.delete(0, 3), store.delete(0, 1)

        entries = [store.add() for _ in range(3)]
        assert [entry.slot for entry in entries] == [0, 3, 1]
        assert [removed(entry) for entry in entries] == [[], [], [("capacity", 2)]]

    def test_slack_delays_the_reuse_of_a_slot(self) -> None:
        """With a slack of 2, what a victim held stays as it is for two more transitions."""
        store = Made(capacity=2, slack=2)
        assert [store.add().slot for _ in range(7)] == [1, 2, 3, 4, 0, 1, 2]

    def test_an_expired_memory_goes_before_a_live_one(self) -> None:
        """The first that expired; of those that expired at once, the older one. No eviction is counted."""
        store = Made()
        store.add()
        store.add(ttl_ns=5), store.add(ttl_ns=3), store.add(ttl_ns=3)
        store.now = 9

        assert removed(store.add()) == [("expired", 3)]
        assert removed(store.add()) == [("expired", 4)]
        assert removed(store.add()) == [("expired", 2)]
        assert removed(store.add()) == [("capacity", 1)]
        assert store.namespaces[DEFAULT].evicted == 1

    def test_a_free_slot_comes_before_an_expired_memory(self) -> None:
        """Nothing has to go while a slot is free."""
        store = Made()
        store.add(ttl_ns=1)
        store.now = 9
        assert removed(store.add()) == []

    def test_an_expired_memory_does_not_count_for_the_limit(self) -> None:
        """It makes room for the newcomer, and only one of the same namespace does."""
        store = Made(6)
        ann = store.namespace("ann", limit=2)
        store.add(ttl_ns=1)
        store.add(ann), store.add(ann, ttl_ns=2)
        store.now = 9

        assert removed(store.add(ann)) == [("expired", 3)]
        assert removed(store.add(ann)) == [("limit", 2)]

    def test_the_namespace_furthest_over_its_reserved_share_loses_its_oldest(self) -> None:
        """Its share counts, not its size alone."""
        store = Made(6)
        ann, bob = store.namespace("ann", reserved=3), store.namespace("bob")
        for namespace in (ann, ann, ann, ann, bob, bob):  # 1 over, 2 over
            store.add(namespace)

        assert removed(store.add(DEFAULT)) == [("capacity", 5)]
        assert (store.namespaces[bob].evicted, store.namespaces[DEFAULT].evicted) == (1, 0)

    def test_the_newcomer_counts(self) -> None:
        """So a namespace within its share never loses a memory to another one."""
        store = Made(4)
        ann, bob = store.namespace("ann", reserved=2), store.namespace("bob", reserved=2)
        for namespace in (ann, ann, bob, bob):
            store.add(namespace)

        assert removed(store.add(bob)) == [("capacity", 3)]
        assert store.refusal(lambda: store.add(DEFAULT)) == "no_room"

    def test_of_equals_the_one_with_the_oldest_memory_loses(self) -> None:
        """The age of a memory is when it joined its eviction list."""
        store = Made(4)
        ann, bob = store.namespace("ann"), store.namespace("bob")
        for namespace in (bob, ann, ann, bob):
            store.add(namespace)

        assert removed(store.add(DEFAULT)) == [("capacity", 1)]

    def test_a_lower_limit_deletes_nothing(self) -> None:
        """From there on each event of the namespace evicts one, so it does not grow."""
        store = Made()
        ann = store.namespace("ann")
        for _ in range(3):
            store.add(ann)

        assert removed(store.change_namespace(0, ann, Terms(limit=1))) == []
        assert removed(store.add(ann)) == [("limit", 1)]
        assert store.ids() == {2, 3, 4}


class TestPins:
    def test_a_pinned_memory_is_not_evicted(self) -> None:
        """The next oldest one goes."""
        store = Made(2)
        store.add(pinned=True), store.add()

        assert removed(store.add()) == [("capacity", 2)]
        assert store.ids() == {1, 3}

    def test_a_memory_that_is_unpinned_joins_as_the_newest(self) -> None:
        """It goes after those that joined before."""
        store = Made(2)
        store.add(pinned=True), store.add()
        store.update(0, 1, Change(pinned=False))

        assert removed(store.add()) == [("capacity", 2)]
        assert removed(store.add()) == [("capacity", 1)]

    def test_an_update_keeps_the_place_in_the_list(self) -> None:
        """A change of the payload does not make a memory younger."""
        store = Made(2)
        store.add(), store.add()
        store.update(0, 1, Change(payload=b"new"))
        assert removed(store.add()) == [("capacity", 1)]

    def test_a_full_namespace_of_pinned_memories_refuses(self) -> None:
        """Before the governor judges, so that refusals do not move the threshold."""
        store = Made()
        ann = store.namespace("ann", limit=1)
        store.add(ann, pinned=True)
        assert store.refusal(lambda: store.add(ann)) == "namespace_full"
        assert store.refusal(lambda: store.add(ann, moral=0)) == "namespace_full"

    def test_a_full_store_of_pinned_memories_refuses(self) -> None:
        """Nothing is evicted and nothing is judged."""
        store = Made(2)
        store.add(pinned=True), store.add(pinned=True)
        assert store.refusal(store.add) == "no_room"

    def test_pins_have_a_share(self) -> None:
        """One more is refused, by an event, an update and a restore; superseding a pinned memory needs no other pin."""
        store = Made(pins_max=1)
        store.add(pinned=True, own_id="a"), store.add()
        assert store.refusal(lambda: store.add(pinned=True)) == "pins_full"
        assert store.refusal(lambda: store.update(0, 2, Change(pinned=True))) == "pins_full"
        assert (
            store.refusal(lambda: store.restore(0, Restored(DEFAULT, content(), 1, 0, 0, pinned=True))) == "pins_full"
        )
        assert removed(store.add(pinned=True, own_id="a")) == [("superseded", 1)]

    def test_pins_do_not_take_what_is_reserved(self) -> None:
        """Pins within a reserved share are part of it; others are refused when the rest is reserved."""
        store = Made(4)
        ann = store.namespace("ann", reserved=3)
        store.add(pinned=True)
        assert store.refusal(lambda: store.add(pinned=True)) == "pins_full"
        for _ in range(3):
            store.add(ann, pinned=True)
        assert store.refusal(lambda: store.create_namespace(0, "bob", Terms(reserved=1))) == "promised"

    def test_a_pin_stays_with_a_superseded_id(self) -> None:
        """Only an update takes it away."""
        store = Made()
        store.add(pinned=True, own_id="a"), store.add(own_id="a")
        assert store.memory(2).pinned

    def test_a_pinned_memory_expires(self) -> None:
        """A pin protects from eviction only."""
        store = Made(2)
        store.add(pinned=True, ttl_ns=1), store.add()
        store.now = 1
        assert removed(store.add()) == [("expired", 1)]


class TestVersions:
    def test_an_update_writes_a_whole_new_slot(self) -> None:
        """Same id and admission, new version; governor, counters and levels stay."""
        store = Made()
        store.add(own_id="a")
        levels, before = store.levels, store.memory(1)
        store.now = 5
        entry = store.update(5, 1, Change(payload=b"new", metadata={"n": 1}, ttl_ns=3))

        expected = before._replace(
            version=3, updated_at=5, expires_at=8, content=before.content._replace(payload=b"new", metadata={"n": 1})
        )
        assert expected == store.memory(1)
        assert (removed(entry), entry.slot) == ([("updated", 1)], 2)
        assert entry.before == entry.after
        assert levels is store.levels

    def test_superseding_keeps_the_first_created_at(self) -> None:
        """It gets a new id, and runs the cascade."""
        store = Made()
        store.add(own_id="a", created_at=-7)
        levels = store.levels
        store.now = 5
        store.add(own_id="a", created_at=2)

        memory = store.memory(2)
        assert (memory.created_at, memory.updated_at, memory.version, memory.admitted_at) == (-7, 5, 3, 3)
        assert levels is not store.levels

    def test_a_rejected_event_supersedes_nothing(self) -> None:
        """The memory stays as it is."""
        store = Made()
        store.add(own_id="a")
        entry = store.add(own_id="a", moral=0)
        assert (entry.victims, entry.memory_id, entry.own_id) == ((), 0, "a")
        assert store.ids() == {1}

    def test_own_ids_belong_to_a_namespace(self) -> None:
        """Two namespaces may use the same."""
        store = Made()
        ann = store.namespace("ann")
        store.add(own_id="a")
        assert removed(store.add(ann, own_id="a")) == []

    def test_an_event_may_only_create(self) -> None:
        """It is refused while a memory that is not expired has its own id."""
        store = Made()
        store.add(own_id="a", ttl_ns=3)
        assert store.refusal(lambda: store.add(own_id="a", create_only=True)) == "exists"
        store.now = 3
        assert store.add(own_id="a", create_only=True).stored

    def test_a_stale_version_is_refused(self) -> None:
        """By updates and by deletions."""
        store = Made()
        store.add()
        store.update(0, 1, Change(payload=b"new"))
        assert store.refusal(lambda: store.update(0, 1, Change(version=2))) == "changed"
        assert store.refusal(lambda: store.delete(0, 1, version=2)) == "changed"
        store.delete(0, 1, version=3)
        assert store.refusal(lambda: store.update(0, 1, Change())) == "gone"
        assert store.refusal(lambda: store.delete(0, 2)) == "unknown"

    def test_restoring_keeps_what_a_memory_was(self) -> None:
        """Ids above the newest raise it; governor, counters and levels stay."""
        store = Made()
        store.add()
        levels = store.levels
        entry = store.restore(9, Restored(DEFAULT, content(), 0.1, 3, 4, phase=1, memory_id=7))
        assert entry.before._replace(newest_id=7, live=2) == entry.after
        memory = store.memory(7)
        assert (memory.created_at, memory.updated_at, memory.phase, memory.moral) == (3, 4, 1, 0.1)
        assert levels is store.levels
        assert store.add().memory_id == 8
        assert store.refusal(lambda: store.restore(9, Restored(DEFAULT, content(), 1, 3, 4, memory_id=7))) == "exists"

    def test_a_lost_memory_can_be_healed_with_its_id(self) -> None:
        """The newest id stays."""
        store = Made()
        store.add(), store.add()
        assert removed(store.lost(0, 1)) == [("lost", 1)]
        assert store.restore(0, Restored(DEFAULT, content(), 1, 0, 0, memory_id=1)).after.newest_id == 2

    def test_restoring_evicts_only_when_it_may(self) -> None:
        """Expired memories are no obstacle."""
        store = Made(2)
        store.add(ttl_ns=1), store.add()
        new = Restored(DEFAULT, content(), 1, 0, 0)
        assert store.refusal(lambda: store.restore(0, new)) == "no_room"
        assert removed(store.restore(1, new)) == [("expired", 1)]
        assert removed(store.restore(1, new._replace(replace_oldest=True))) == [("capacity", 2)]


class TestExpiry:
    def test_a_memory_is_gone_from_its_instant_on(self) -> None:
        """For reads, own ids, updates and deletions; before anything frees it."""
        store = Made()
        store.add(own_id="a", ttl_ns=5, created_at=-1)
        assert {memory.memory_id for memory in store.visible(4)} == {1}
        assert list(store.visible(5)) == []
        store.now = 5
        assert store.refusal(lambda: store.update(5, 1, Change())) == "gone"
        assert store.refusal(lambda: store.delete(5, 1)) == "gone"
        assert removed(store.add(own_id="a")) == []
        assert (store.memory(2).created_at, store.scalars.live) == (5, 2)

    def test_reads_judge_by_the_later_of_clock_and_log_time(self) -> None:
        """A clock behind the log does not bring a memory back."""
        store = Made()
        store.add(ttl_ns=5)
        store.tick(7)
        assert list(store.visible(2)) == []

    def test_log_time_never_goes_back(self) -> None:
        """Lifetimes begin at the time of the entry."""
        store = Made()
        store.tick(10)
        assert (store.add(ttl_ns=2).time_ns, store.memory(1).expires_at) == (10, 12)

    def test_the_lifetime_of_a_namespace_is_for_events_that_name_none(self) -> None:
        """An event may live for ever, and a restored memory keeps its own."""
        store = Made()
        ann = store.namespace("ann", ttl_ns=4)
        store.add(ann), store.add(ann, expires_at=NEVER), store.add(ann, expires_at=9)
        store.restore(0, Restored(ann, content(), 1, 0, 0))
        assert [4, NEVER, 9, NEVER] == [store.memory(n).expires_at for n in (1, 2, 3, 4)]

    @pytest.mark.parametrize(
        "options", [{"ttl_ns": 0}, {"ttl_ns": -1}, {"expires_at": 3}, {"ttl_ns": 1, "expires_at": 9}]
    )
    def test_a_lifetime_that_has_ended_is_refused(self, options: dict[str, Any]) -> None:
        """So are both forms at once."""
        store = Made()
        store.add()
        store.now = 3
        assert store.refusal(lambda: store.add(**options)) == "invalid"
        assert store.refusal(lambda: store.update(3, 1, Change(**options))) == "invalid"

    def test_one_entry_frees_up_to_eight(self) -> None:
        """In the order of their instants, then of their ids; a round frees up to 512."""
        store = Made(20)
        for ttl_ns in range(20, 0, -1):
            store.add(ttl_ns=ttl_ns // 2 or 1)
        assert store.refusal(lambda: store.expire(0)) == "nothing"
        entries = store.expire_round(9)

        freed = [victim.memory_id for entry in entries for victim in entry.victims]
        assert [len(entry.victims) for entry in entries] == [8, 8, 3]
        assert freed[:7] == [18, 19, 20, 16, 17, 14, 15]
        assert [memory.memory_id for _, memory in store.allocation.memories()] == [1]
        assert [store.add().slot for _ in range(5)] == [0, 18, 19, 20, 16]

    def test_a_round_is_bounded(self) -> None:
        """What is left expires in the next one."""
        store = Made(520)
        for _ in range(520):
            store.add(ttl_ns=1)
        assert [len(store.expire_round(1)) for _ in range(2)] == [64, 1]


class TestModes:
    @pytest.mark.parametrize(
        ("mode", "moral", "verdict", "stored"),
        [
            ("enforce", 1, True, True),
            ("enforce", 0, False, False),
            ("shadow", 1, True, True),
            ("shadow", 0, False, True),
            ("off", 1, None, True),
            ("off", 0, None, True),
        ],
    )
    @pytest.mark.parametrize("own", [False, True])
    def test_what_is_judged_stored_and_adapted(
        self, mode: Mode, moral: float, verdict: bool | None, stored: bool, own: bool
    ) -> None:
        """`accepted` counts what is let through; a namespace with its own governor leaves the server's alone."""
        policy = Policy(REGIME.governor, mode)
        store = Made(settings=SETTINGS if own else Settings(REGIME._replace(mode=mode)))
        namespace = store.namespace("ann", policy=policy) if own else DEFAULT
        entry = store.add(namespace, moral=moral)

        assert (verdict, stored, stored) == (entry.verdict, entry.stored, bool(entry.memory_id))
        assert (stored, not stored) == (entry.after.accepted == 1, entry.after.rejected == 1)
        expected = Governor(0.5).decide(moral, REGIME.governor)[1] if mode != "off" else Governor(0.5)
        server = Governor(entry.after.theta, entry.after.ema)
        assert (server, entry.own_after) == ((Governor(0.5), expected) if own else (expected, None))

    def test_an_own_governor_begins_and_ends_with_its_policy(self) -> None:
        """New settings clamp its threshold; a reset of the server does not touch it."""
        store = Made()
        strict = Policy(REGIME.governor._replace(min_threshold=0.7, initial_threshold=0.8))
        ann = store.namespace("ann", policy=Policy(REGIME.governor))
        store.add(ann)
        moved = store.namespaces[ann].governor
        assert moved is not None
        assert moved != Governor(0.5)
        store.reset(0)
        assert moved == store.namespaces[ann].governor
        store.change_namespace(0, ann, Terms(policy=strict))
        assert moved._replace(theta=0.7) == store.namespaces[ann].governor
        store.reset(0, ann)
        assert Governor(0.8) == store.namespaces[ann].governor
        store.change_namespace(0, ann, Terms())
        assert store.namespaces[ann].governor is None
        assert store.refusal(lambda: store.reset(0, ann)) == "invalid"

    def test_a_stopped_store_decides_nothing(self) -> None:
        """Everything else goes on."""
        store = Made()
        store.add()
        store.stop(0)
        assert store.refusal(store.add) == "stopped"
        store.delete(0, 1)
        store.resume(0)
        assert store.add().stored


class TestDuplicates:
    @pytest.mark.parametrize("policy", ["skip", "supersede", "keep"])
    def test_a_duplicate(self, policy: Any) -> None:
        """The governor decides first and adapts; skip stores nothing and runs no cascade, and is let through."""
        store = Made()
        store.add(own_id="a", pinned=True, created_at=-7), store.add(stored=content(0, 1))
        levels = store.levels
        entry = store.add(stored=content(2, 0), dedupe=Dedupe(1.0, policy))

        assert Duplicate(policy, 1, 1.0) == entry.duplicate
        assert (entry.after.accepted, entry.verdict) == (3, True)
        assert entry.before.ema != entry.after.ema
        if policy == "skip":
            assert (entry.victims, entry.memory_id, entry.slot) == ((), 0, None)
            assert levels is store.levels
        elif policy == "keep":
            assert (removed(entry), store.memory(3).own_id) == ([], None)
        else:
            memory = store.memory(3)
            assert removed(entry) == [("superseded", 1)]
            assert (memory.own_id, memory.created_at, memory.pinned) == ("a", -7, True)

    def test_a_rejected_duplicate_changes_nothing(self) -> None:
        """The entry names the duplicate all the same."""
        store = Made()
        store.add()
        entry = store.add(moral=0, dedupe=Dedupe(0.9, "supersede"))
        assert (Duplicate("supersede", 1, 1.0), 1) == (entry.duplicate, entry.after.rejected)
        assert store.ids() == {1}

    def test_what_is_no_duplicate(self) -> None:
        """What scores less than the threshold, lies in another namespace, or is expired."""
        store = Made()
        ann = store.namespace("ann")
        store.add(stored=content(0, 1)), store.add(ann), store.add(ttl_ns=3)
        store.now = 3
        assert store.add(dedupe=Dedupe(0.1, "skip")).duplicate is None

    def test_of_equally_near_ones_the_newer_is_the_duplicate(self) -> None:
        """As recall orders them."""
        store = Made()
        store.add(), store.add(stored=content(3, 0))
        assert store.add(dedupe=Dedupe(1.0, "keep")).duplicate == Duplicate("keep", 2, 1.0)

    def test_a_known_id_supersedes_its_memory_whatever_is_near(self) -> None:
        """An upsert with the same vector is no duplicate of itself."""
        store = Made()
        store.add(own_id="a"), store.add()
        entry = store.add(own_id="a", dedupe=Dedupe(0.9, "skip"))
        assert (removed(entry), entry.duplicate) == ([("superseded", 1)], None)

    def test_a_skipped_duplicate_needs_no_room(self) -> None:
        """It is let through where nothing can be evicted."""
        store = Made(1)
        store.add(pinned=True)
        assert store.refusal(store.add) == "no_room"
        assert store.add(dedupe=Dedupe(0.9, "skip")).after.accepted == 2


class TestNamespaces:
    def test_a_row_is_given_again_when_no_entry_in_reach_names_it(self) -> None:
        """The log holds three entries here."""
        store = Made()
        ann, bob = store.namespace("ann"), store.namespace("bob")
        store.close_namespace(0, ann), store.free_namespace(0, ann)
        for _ in range(2):
            assert store.refusal(lambda: store.create_namespace(0, "eve", Terms())) == "namespaces_full"
            store.tick(0)
        assert NamespaceId(1, 2) == store.namespace("eve")
        assert store.refusal(lambda: store.add(ann)) == "unknown"
        assert bob in store.namespaces

    def test_a_closing_namespace_is_empty_for_all_but_deletions(self) -> None:
        """Its memories can be deleted, and then its row is freed; its reserved share ends at once."""
        store = Made()
        ann = store.namespace("ann", reserved=4)
        store.add(ann)
        assert store.refusal(lambda: store.free_namespace(0, ann)) == "invalid"
        store.close_namespace(0, ann)
        assert set() == store.ids()
        assert store.recall(0, content().values(), 5, {ann}) == []
        assert store.refusal(lambda: store.add(ann)) == "closing"
        assert store.refusal(lambda: store.update(0, 1, Change())) == "closing"
        assert store.refusal(lambda: store.change_namespace(0, ann, Terms())) == "closing"
        assert store.refusal(lambda: store.restore(0, Restored(ann, content(), 1, 0, 0))) == "closing"
        assert store.refusal(lambda: store.free_namespace(0, ann)) == "not_empty"
        store.namespace("bob", reserved=4)
        store.delete(0, 1), store.free_namespace(0, ann)
        assert store.find_namespace("ann") is None

    @pytest.mark.parametrize(
        ("terms", "reason"),
        [
            (Terms(limit=0), "invalid"),
            (Terms(reserved=-1), "invalid"),
            (Terms(limit=1, reserved=2), "invalid"),
            (Terms(reserved=5), "invalid"),
            (Terms(ttl_ns=-1), "invalid"),
            (Terms(reserved=3), "promised"),
        ],
    )
    def test_terms_that_cannot_be_kept_are_refused(self, terms: Terms, reason: str) -> None:
        """The reserved shares of all namespaces fit into the capacity."""
        store = Made()
        store.namespace("ann", reserved=2)
        bob = store.namespace("bob")
        assert reason == store.refusal(lambda: store.change_namespace(0, bob, terms))
        assert store.refusal(lambda: store.create_namespace(0, "bob", Terms())) == "exists"
        assert store.refusal(lambda: store.close_namespace(0, DEFAULT)) == "invalid"

    def test_a_namespace_within_its_share_finds_room(self) -> None:
        """Whatever others have pinned before."""
        store = Made(4)
        ann = store.namespace("ann", reserved=2)
        store.add(pinned=True), store.add(pinned=True), store.add(ann), store.add(ann)
        assert store.refusal(store.add) == "no_room"
        store.delete(0, 3), store.add(ann)
        assert removed(store.add(ann)) == [("capacity", 4)]

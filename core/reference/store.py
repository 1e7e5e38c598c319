"""The store, reference version: every transition from one committed state to the next, and what reads see of it.

Each method that takes `now_ns` is one transition: it makes one log entry at the next position, or raises Refused and
changes nothing. The time of an entry is `now_ns`, or the log time before it if that is later.

Invariants: deterministic, so that an implementation can be compared with it bit for bit. One victim per transition at
most, but up to EXPIRED_PER_ENTRY for `expire`. The order of the checks of each transition is part of the specification,
because it decides which refusal a caller gets. docs/design/allocation.md has the semantics in words, and what of them
the block has.
Rejected: counters and lists kept up to date. All counts are counted from the slots, so they cannot disagree with them.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from core.namespaces import NamespaceId, Policy, Terms
from core.reference.allocation import Allocation, Freed, Victim, expired
from core.reference.entry import (
    EXPIRED_PER_ENTRY,
    EXPIRED_PER_ROUND,
    Duplicate,
    DuplicatePolicy,
    Entry,
    Kind,
    Origin,
    Scalars,
    Step,
)
from core.reference.expiry import end_of, read_instant
from core.reference.filter_words import Filter
from core.reference.governor import Governor
from core.reference.memory import Content, Memory
from core.reference.namespace import DEFAULT, FreeRow, Namespace, governor_after
from core.reference.recall import Match, nearest
from core.reference.refusal import Refused
from core.reference.rhythm import Rhythm
from core.reference.settings import Settings, Sizes
from core.reference.synapse import Synapse
from core.reference.vector import Vector


class Dedupe(NamedTuple):
    """What to do with an event whose nearest memory scores `threshold` or more."""

    threshold: float
    policy: DuplicatePolicy


class Event(NamedTuple):
    """An event. `content` is stored when the event is let through.

    `expires_at` and `ttl_ns` as in expiry.end_of. `created_at` is the time that the client names, None for that of the
    entry; the store does not judge it. With `create_only` the event is refused if a memory has its own id.
    """

    namespace: NamespaceId
    content: Content
    moral: float
    moral_defaulted: bool = False
    scorer: int = 0
    own_id: str | None = None
    pinned: bool = False
    ttl_ns: int | None = None
    expires_at: int | None = None
    created_at: int | None = None
    create_only: bool = False
    dedupe: Dedupe | None = None
    origin: Origin = Origin()


class Change(NamedTuple):
    """What an update changes; None leaves it. With `version` the update is refused if the memory has another one."""

    payload: bytes | None = None
    metadata: Mapping[str, bool | int | float | str] | None = None
    pinned: bool | None = None
    ttl_ns: int | None = None
    expires_at: int | None = None
    version: int | None = None


class Restored(NamedTuple):
    """A memory that comes from elsewhere. With `memory_id` it keeps that id, else it gets a new one.

    With `replace_oldest` it may evict a live memory as an event does.
    """

    namespace: NamespaceId
    content: Content
    moral: float
    created_at: int
    updated_at: int
    moral_defaulted: bool = False
    scorer: int = 0
    phase: int = 0
    memory_id: int | None = None
    own_id: str | None = None
    pinned: bool = False
    expires_at: int = 0
    replace_oldest: bool = False


class Plan(NamedTuple):
    """How an event is stored if it is let through: with which expiry and pin, instead of which memory."""

    namespace: Namespace
    expires_at: int
    pinned: bool = False
    replaced: Memory | None = None
    victim: Victim | None = None
    skipped: bool = False


class State(NamedTuple):
    """Everything that a store holds at a position, in a form that can be compared."""

    position: int
    time_ns: int
    scalars: Scalars
    settings: Settings
    levels: tuple[bytes, bytes, bytes]
    slots: tuple[Memory | Freed, ...]
    rows: tuple[Namespace | FreeRow, ...]


class Store:
    """The store. It has no state before `start`."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.allocation = Allocation(sizes.capacity, sizes.slack)
        self.rows: list[Namespace | FreeRow] = [FreeRow() for _ in range(sizes.namespaces)]
        self.position = 0
        self.time_ns = 0
        self.newest_id = 0
        self.accepted = 0
        self.rejected = 0
        self.stopped = False
        self.settings: Settings
        self.governor: Governor
        self.rhythm: Rhythm
        self.levels = Synapse.initial(sizes.dimension)

    # -- the server --

    def start(self, now_ns: int, settings: Settings) -> Entry:
        """Form the state: position 1, and the namespace `default` in row 0."""
        assert self.position == 0, "the state is formed once"
        self.settings = settings
        self.governor = Governor.initial(settings.regime.governor)
        self.rhythm = Rhythm.initial(settings.regime.rhythm)
        self.rows[0] = Namespace(NamespaceId(0, 1), DEFAULT)
        entry = self._begin("start", now_ns)
        return self._publish(entry._replace(settings=settings))

    def tick(self, now_ns: int) -> Entry:
        """Take one step of the rhythm."""
        entry = self._begin("tick", now_ns)
        self._step()
        return self._publish(entry)

    def configure(self, now_ns: int, settings: Settings) -> Entry:
        """Put other settings in force. Modes leave threshold and mean as they are."""
        entry = self._begin("configure", now_ns)
        self.settings = settings
        self.governor = self.governor.with_settings(settings.regime.governor)
        self.rhythm = self.rhythm.with_settings(settings.regime.rhythm)
        return self._publish(entry._replace(settings=settings))

    def reset(self, now_ns: int, namespace_id: NamespaceId | None = None) -> Entry:
        """Reset the server's governor, rhythm and levels; or, of a namespace, its own governor and nothing else."""
        if namespace_id is None:
            entry = self._begin("reset", now_ns)
            self.governor = Governor.initial(self.settings.regime.governor)
            self.rhythm = self.rhythm.reset(self.settings.regime.rhythm)
            self.levels = Synapse.initial(self.sizes.dimension)
            return self._publish(entry)
        namespace = self._namespace(namespace_id)
        if namespace.terms.policy is None:
            raise Refused("invalid", f"namespace {namespace.name} shares the server's governor; it has none to reset")
        entry = self._begin("reset", now_ns, namespace)
        self._put(namespace._replace(governor=Governor.initial(namespace.terms.policy.settings)))
        return self._publish(entry)

    def stop(self, now_ns: int) -> Entry:
        """Refuse events from here on."""
        entry = self._begin("stop", now_ns)
        self.stopped = True
        return self._publish(entry)

    def resume(self, now_ns: int) -> Entry:
        """Decide events again."""
        entry = self._begin("resume", now_ns)
        self.stopped = False
        return self._publish(entry)

    # -- memories --

    def decide(self, now_ns: int, event: Event) -> Entry:
        """Judge an event, and store it if it is let through and no duplicate that is to be skipped."""
        time_ns = self._time(now_ns)
        return self.decide_known(time_ns, event, self._duplicate(time_ns, event))

    def decide_known(self, now_ns: int, event: Event, duplicate: Duplicate | None) -> Entry:
        """Decide an event whose duplicate is known. What could not be stored is refused before it is judged."""
        time_ns = self._time(now_ns)
        plan = self._plan(time_ns, event, duplicate)
        entry = self._begin("decision", time_ns, plan.namespace)
        verdict = self._judge(plan.namespace, event.moral)
        let_through = verdict is not False or self._policy(plan.namespace).mode == "shadow"
        stored = let_through and not plan.skipped
        self._count(plan.namespace.id, let_through)
        entry = entry._replace(
            verdict=verdict,
            stored=stored,
            moral=event.moral,
            moral_defaulted=event.moral_defaulted,
            scorer=event.scorer,
            phase=self.rhythm.phase,
            pinned=event.pinned,
            own_id=event.own_id,
            duplicate=duplicate,
            content=event.content.checksum(),
            origin=event.origin,
        )
        if stored:
            self.newest_id += 1
            entry = self._write(entry, self._memory_of(entry, event, plan), plan.victim)
            self.levels = self.levels.after_run(event.content.values(), self.settings.regime.synapse)
        if self.settings.regime.rhythm.by_events:
            self._step()
        return self._publish(entry)

    def _plan(self, time_ns: int, event: Event, duplicate: Duplicate | None) -> Plan:
        """Return how an event is stored if it is let through. Raises Refused, whatever the governor would say."""
        if self.stopped:
            raise Refused("stopped", "an operator has stopped admissions")
        namespace = self._open(event.namespace)
        expires_at = end_of(event.expires_at, event.ttl_ns, namespace.terms.ttl_ns, time_ns)
        replaced = self._known(namespace.id, event.own_id, time_ns)
        if replaced and event.create_only:
            raise Refused("exists", f"memory {replaced[1].memory_id} has the id {event.own_id}")
        if duplicate and duplicate.policy == "skip":
            return Plan(namespace, expires_at, skipped=True)
        if duplicate and duplicate.policy == "supersede":
            replaced = self.allocation.find(duplicate.memory_id)
        if replaced:
            slot, memory = replaced
            pinned = event.pinned or memory.pinned
            self._check_pins(namespace, pinned, memory)
            return Plan(namespace, expires_at, pinned, memory, Victim("superseded", slot, memory.memory_id))
        self._check_pins(namespace, event.pinned, None)
        victim = self.allocation.victim_of_newcomer(namespace, self.namespaces, time_ns)
        return Plan(namespace, expires_at, event.pinned, None, victim)

    def _memory_of(self, entry: Entry, event: Event, plan: Plan) -> Memory:
        """Return the memory of an event. It inherits own id and first `created_at` of a memory that it replaces."""
        own_id, created_at = event.own_id, event.created_at
        if plan.replaced:
            own_id = plan.replaced.own_id if own_id is None else own_id
            created_at = plan.replaced.created_at
        return Memory(
            memory_id=self.newest_id,
            version=entry.position,
            admitted_at=entry.position,
            queued_at=0 if plan.pinned else entry.position,
            namespace=plan.namespace.id,
            own_id=own_id,
            created_at=entry.time_ns if created_at is None else created_at,
            updated_at=entry.time_ns,
            expires_at=plan.expires_at,
            moral=event.moral,
            moral_defaulted=event.moral_defaulted,
            scorer=event.scorer,
            phase=entry.phase,
            content=event.content,
        )

    def update(self, now_ns: int, memory_id: int, change: Change) -> Entry:
        """Write a new version of a memory. It keeps its id, its vector and its place in the eviction list.

        A memory that is unpinned joins the list as the newest. Governor, counters and levels stay as they are.
        """
        time_ns = self._time(now_ns)
        slot, memory = self._live(memory_id, change.version, time_ns)
        namespace = self._open(memory.namespace)
        expires_at = memory.expires_at
        if change.expires_at is not None or change.ttl_ns is not None:
            expires_at = end_of(change.expires_at, change.ttl_ns, 0, time_ns)
        pinned = memory.pinned if change.pinned is None else change.pinned
        self._check_pins(namespace, pinned, memory)

        entry = self._begin("update", time_ns, namespace)
        content = memory.content
        if change.payload is not None:
            content = content._replace(payload=change.payload)
        if change.metadata is not None:
            content = content._replace(metadata=change.metadata)
        queued_at = 0 if pinned else entry.position if memory.pinned else memory.queued_at
        after = memory._replace(
            version=entry.position, queued_at=queued_at, updated_at=time_ns, expires_at=expires_at, content=content
        )
        return self._publish(self._write(entry, after, Victim("updated", slot, memory_id)))

    def restore(self, now_ns: int, restored: Restored) -> Entry:
        """Store a memory that comes from elsewhere. Governor, counters of decisions and levels stay as they are."""
        time_ns = self._time(now_ns)
        namespace = self._open(restored.namespace)
        expires_at = end_of(restored.expires_at, None, 0, time_ns)
        memory_id = self.newest_id + 1 if restored.memory_id is None else restored.memory_id
        if memory_id < 1:
            raise Refused("invalid", f"memory_id is {memory_id}, the first one is 1")
        if self.allocation.find(memory_id):
            raise Refused("exists", f"memory {memory_id} is in the store")
        known = self._known(namespace.id, restored.own_id, time_ns)
        if known:
            raise Refused("exists", f"memory {known[1].memory_id} has the id {restored.own_id}")
        self._check_pins(namespace, restored.pinned, None)
        victim = self.allocation.victim_of_newcomer(namespace, self.namespaces, time_ns)
        if victim and victim.cause != "expired" and not restored.replace_oldest:
            raise Refused("no_room", f"restoring would evict memory {victim.memory_id}")

        entry = self._begin("restore", time_ns, namespace)
        self.newest_id = max(self.newest_id, memory_id)
        memory = Memory(
            memory_id=memory_id,
            version=entry.position,
            admitted_at=entry.position,
            queued_at=0 if restored.pinned else entry.position,
            namespace=namespace.id,
            own_id=restored.own_id,
            created_at=restored.created_at,
            updated_at=restored.updated_at,
            expires_at=expires_at,
            moral=restored.moral,
            moral_defaulted=restored.moral_defaulted,
            scorer=restored.scorer,
            phase=restored.phase,
            content=restored.content,
        )
        return self._publish(self._write(entry, memory, victim))

    def delete(self, now_ns: int, memory_id: int, version: int | None = None) -> Entry:
        """Delete a memory. Its namespace may be closing."""
        time_ns = self._time(now_ns)
        slot, memory = self._live(memory_id, version, time_ns)
        return self._remove("delete", time_ns, memory, Victim("deleted", slot, memory_id))

    def lost(self, now_ns: int, slot: int) -> Entry:
        """Forget the memory in a slot that the scrub has found corrupt; expired or not."""
        memory = self.allocation.slots[slot]
        if not isinstance(memory, Memory):
            raise Refused("gone", f"slot {slot} holds no memory")
        return self._remove("lost", self._time(now_ns), memory, Victim("lost", slot, memory.memory_id))

    def expire(self, now_ns: int) -> Entry:
        """Free the memories that expired first, at most EXPIRED_PER_ENTRY."""
        time_ns = self._time(now_ns)
        victims = tuple(expired(self.allocation.memories(), time_ns)[:EXPIRED_PER_ENTRY])
        if not victims:
            raise Refused("nothing", "no memory is expired")
        entry = self._begin("expire", time_ns)
        self.allocation.free(victims, entry.position)
        return self._publish(entry._replace(victims=victims))

    def expire_round(self, now_ns: int) -> list[Entry]:
        """Free what is expired, as the controller does in one of its rounds: at most EXPIRED_PER_ROUND memories."""
        count = len(expired(self.allocation.memories(), self._time(now_ns)))
        return [self.expire(now_ns) for _ in range(0, min(count, EXPIRED_PER_ROUND), EXPIRED_PER_ENTRY)]

    # -- namespaces --

    def create_namespace(self, now_ns: int, name: str, terms: Terms) -> Entry:
        """Give the lowest row that can be given."""
        if self.find_namespace(name):
            raise Refused("exists", f"namespace {name} exists")
        position = self.position + 1
        for number, row in enumerate(self.rows):
            if isinstance(row, FreeRow) and row.can_be_given(position, self.sizes.log_capacity):
                governor = governor_after(None, Terms(), terms)
                namespace = Namespace(NamespaceId(number, row.generation + 1), name, terms, governor)
                self._check_terms(namespace)
                entry = self._begin("namespace", now_ns, namespace)
                return self._publish_namespace(entry, "create", namespace)
        raise Refused("namespaces_full", f"all {len(self.rows)} namespaces are in use or were in use a short time ago")

    def change_namespace(self, now_ns: int, namespace_id: NamespaceId, terms: Terms) -> Entry:
        """Set other terms. A lower limit deletes nothing: an event at or above the limit evicts one memory."""
        before = self._open(namespace_id)
        after = before._replace(terms=terms, governor=governor_after(before.governor, before.terms, terms))
        self._check_terms(after)
        return self._publish_namespace(self._begin("namespace", now_ns, before), "change", after)

    def close_namespace(self, now_ns: int, namespace_id: NamespaceId) -> Entry:
        """Close a namespace: reads find nothing, events are refused, and it has no reserved share any more."""
        before = self._open(namespace_id)
        if namespace_id.number == 0:
            raise Refused("invalid", f"namespace {DEFAULT} cannot be deleted")
        after = before._replace(closing=True, terms=before.terms._replace(reserved=0))
        return self._publish_namespace(self._begin("namespace", now_ns, before), "close", after)

    def free_namespace(self, now_ns: int, namespace_id: NamespaceId) -> Entry:
        """Free the row of a closing namespace that has no memories any more."""
        before = self._namespace(namespace_id)
        if not before.closing:
            raise Refused("invalid", f"namespace {before.name} is not closing")
        if self.allocation.memories_of(namespace_id):
            raise Refused("not_empty", f"namespace {before.name} has memories")
        entry = self._begin("namespace", now_ns, before)
        self.rows[namespace_id.number] = FreeRow(namespace_id.generation, entry.position)
        return self._publish(entry._replace(step="free", name=before.name, terms=before.terms))

    # -- reads --

    @property
    def namespaces(self) -> dict[NamespaceId, Namespace]:
        """The namespaces in use, the closing ones included."""
        return {row.id: row for row in self.rows if isinstance(row, Namespace)}

    def find_namespace(self, name: str) -> Namespace | None:
        """Return the namespace of a name; one that is closing, too."""
        return next((row for row in self.namespaces.values() if row.name == name), None)

    @property
    def scalars(self) -> Scalars:
        """The scalar state."""
        return Scalars(
            self.governor.theta,
            self.governor.ema,
            self.rhythm.phase,
            self.stopped,
            self.rhythm.counter,
            self.newest_id,
            self.accepted,
            self.rejected,
            self.rhythm.step,
            sum(1 for _ in self.allocation.memories()),
        )

    def state(self) -> State:
        """Return everything, to be compared."""
        l1, l2, l3 = (level.tobytes() for level in self.levels)
        slots = tuple(self.allocation.slots)
        return State(self.position, self.time_ns, self.scalars, self.settings, (l1, l2, l3), slots, tuple(self.rows))

    def visible(self, clock_ns: int) -> Iterator[Memory]:
        """Yield the memories that a read sees: not expired at its instant, in no namespace that is closing."""
        instant_ns = read_instant(clock_ns, self.time_ns)
        for _, memory in self.allocation.memories():
            if not memory.has_expired(instant_ns) and not self._row(memory.namespace).closing:
                yield memory

    def recall(
        self, clock_ns: int, query: Vector, k: int, namespaces: set[NamespaceId], condition: Filter | None = None
    ) -> list[Match]:
        """Return the k nearest visible memories of these namespaces that a filter selects."""
        memories = (memory for memory in self.visible(clock_ns) if memory.namespace in namespaces)
        return nearest(query, k, memories, condition)

    # -- parts of a transition --

    def _time(self, now_ns: int) -> int:
        """Return the time of the next entry: log time never goes back."""
        return max(now_ns, self.time_ns)

    def _begin(self, kind: Kind, now_ns: int, namespace: Namespace | None = None) -> Entry:
        """Return the entry of the next position, with the state before it. From here on nothing is refused."""
        return Entry(
            self.position + 1,
            kind,
            self._time(now_ns),
            self.scalars,
            self.scalars,
            namespace=namespace.id if namespace else None,
            own_before=namespace.governor if namespace else None,
        )

    def _publish(self, entry: Entry) -> Entry:
        """Commit the transition, and return its entry with the state after it."""
        self.position = entry.position
        self.time_ns = entry.time_ns
        namespace = self.namespaces.get(entry.namespace) if entry.namespace else None
        return entry._replace(after=self.scalars, own_after=namespace.governor if namespace else None)

    def _publish_namespace(self, entry: Entry, step: Step, namespace: Namespace) -> Entry:
        self._put(namespace)
        return self._publish(entry._replace(step=step, name=namespace.name, terms=namespace.terms))

    def _write(self, entry: Entry, memory: Memory, victim: Victim | None) -> Entry:
        """Write a memory; count an eviction for the namespace that lost a memory to its limit or to the capacity."""
        if victim and victim.cause in ("limit", "capacity"):
            evicted = self.allocation.slots[victim.slot]
            assert isinstance(evicted, Memory)
            loser = self._row(evicted.namespace)
            self._put(loser._replace(evicted=loser.evicted + 1))
        slot = self.allocation.write(memory, victim, entry.position)
        return entry._replace(
            memory_id=memory.memory_id,
            slot=slot,
            victims=(victim,) if victim else (),
            moral=memory.moral,
            moral_defaulted=memory.moral_defaulted,
            scorer=memory.scorer,
            phase=memory.phase,
            pinned=memory.pinned,
            created_at=memory.created_at,
            updated_at=memory.updated_at,
            expires_at=memory.expires_at,
            own_id=memory.own_id,
            content=memory.content.checksum(),
        )

    def _remove(self, kind: Kind, time_ns: int, memory: Memory, victim: Victim) -> Entry:
        entry = self._begin(kind, time_ns, self._row(memory.namespace))
        self.allocation.free((victim,), entry.position)
        return self._publish(entry._replace(memory_id=memory.memory_id, victims=(victim,)))

    def _step(self) -> None:
        """Take one step of the rhythm; asleep, it runs the cascade."""
        if self.rhythm.runs_cascade(self.settings.regime.rhythm):
            self.levels = self.levels.after_run(None, self.settings.regime.synapse)
        self.rhythm = self.rhythm.after_step(self.settings.regime.rhythm)

    def _policy(self, namespace: Namespace) -> Policy:
        return namespace.terms.policy or self.settings.policy

    def _judge(self, namespace: Namespace, moral: float) -> bool | None:
        """Return the verdict of the namespace's governor, which adapts; None and no change if it is off."""
        policy = self._policy(namespace)
        if policy.mode == "off":
            return None
        verdict, governor = (namespace.governor or self.governor).decide(moral, policy.settings)
        if namespace.governor is None:
            self.governor = governor
        else:
            self._put(namespace._replace(governor=governor))
        return verdict

    def _count(self, namespace_id: NamespaceId, let_through: bool) -> None:
        """Count a decision, for the server and for the namespace."""
        self.accepted += let_through
        self.rejected += not let_through
        row = self._row(namespace_id)
        self._put(row._replace(accepted=row.accepted + let_through, rejected=row.rejected + (not let_through)))

    def _duplicate(self, time_ns: int, event: Event) -> Duplicate | None:
        """Return the nearest memory of the event's namespace if it is a duplicate.

        An event whose own id is known supersedes that memory, whatever is near.
        """
        if event.dedupe is None or self._known(event.namespace, event.own_id, time_ns):
            return None
        found = self.recall(time_ns, event.content.values(), 1, {event.namespace})
        if not found or found[0].score < event.dedupe.threshold:
            return None
        return Duplicate(event.dedupe.policy, found[0].memory_id, found[0].score)

    def _known(self, namespace: NamespaceId, own_id: str | None, time_ns: int) -> tuple[int, Memory] | None:
        """Return the memory that has an own id and is not expired, with its slot."""
        if own_id is None:
            return None
        for slot, memory in self.allocation.memories_of(namespace):
            if memory.own_id == own_id and not memory.has_expired(time_ns):
                return slot, memory
        return None

    def _live(self, memory_id: int, version: int | None, time_ns: int) -> tuple[int, Memory]:
        """Return a memory that is not expired, with its slot. Raises Refused."""
        found = self.allocation.find(memory_id)
        if not 1 <= memory_id <= self.newest_id:
            raise Refused("unknown", f"memory {memory_id} was never given")
        if found is None or found[1].has_expired(time_ns):
            raise Refused("gone", f"memory {memory_id} is gone")
        if version is not None and version != found[1].version:
            raise Refused("changed", f"memory {memory_id} has version {found[1].version}, not {version}")
        return found

    def _row(self, namespace_id: NamespaceId) -> Namespace:
        row = self.rows[namespace_id.number]
        assert isinstance(row, Namespace)
        assert row.id == namespace_id
        return row

    def _put(self, namespace: Namespace) -> None:
        self.rows[namespace.id.number] = namespace

    def _namespace(self, namespace_id: NamespaceId) -> Namespace:
        """Return a namespace in use. Raises Refused."""
        namespace = self.namespaces.get(namespace_id)
        if namespace is None:
            raise Refused(
                "unknown", f"there is no namespace {namespace_id.number} of generation {namespace_id.generation}"
            )
        return namespace

    def _open(self, namespace_id: NamespaceId) -> Namespace:
        """Return a namespace that is not closing. Raises Refused."""
        namespace = self._namespace(namespace_id)
        if namespace.closing:
            raise Refused("closing", f"namespace {namespace.name} is being deleted")
        return namespace

    def _pinned(self, namespace_id: NamespaceId) -> int:
        return sum(memory.pinned for _, memory in self.allocation.memories_of(namespace_id))

    def _promised(self, changed: Namespace, pins: int) -> int:
        """Return the memories that no other namespace can evict, of all namespaces: reserved or pinned.

        `changed` counts with its terms, whatever the table holds, and with `pins` more pinned memories than it has.
        """
        table = self.namespaces | {changed.id: changed}
        return sum(
            max(row.terms.reserved, self._pinned(row.id) + (pins if row.id == changed.id else 0))
            for row in table.values()
        )

    def _check_pins(self, namespace: Namespace, pinned: bool, replaced: Memory | None) -> None:
        """Raise Refused if a memory that takes the place of `replaced` would be one pin too many."""
        if not pinned or (replaced is not None and replaced.pinned):
            return
        if sum(memory.pinned for _, memory in self.allocation.memories()) >= self.sizes.pins_max:
            raise Refused("pins_full", f"{self.sizes.pins_max} memories are pinned, which is the maximum")
        if self._promised(namespace, 1) > self.sizes.capacity:
            raise Refused("pins_full", "all memories are pinned or reserved; one more pin would take a reserved one")

    def _check_terms(self, namespace: Namespace) -> None:
        """Raise Refused unless a namespace may have these terms."""
        limit, reserved, ttl_ns, _ = namespace.terms
        if limit is not None and limit < 1:
            raise Refused("invalid", f"limit is {limit}, it must be at least 1")
        if not 0 <= reserved <= (self.sizes.capacity if limit is None else limit):
            raise Refused("invalid", f"reserved is {reserved}, it must be between 0 and the limit")
        if ttl_ns < 0:
            raise Refused("invalid", f"ttl_ns is {ttl_ns}, it must not be negative")
        if self._promised(namespace, 0) > self.sizes.capacity:
            raise Refused("promised", "the reserved shares and pins of all namespaces would exceed the capacity")

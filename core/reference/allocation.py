"""Allocation, reference version: which slot a memory is written into, and which memory makes room for it.

There are capacity + 1 + slack slots; at most `capacity` of them hold a memory. A transition that writes a memory
writes it into the spare: the free slot that was freed longest ago. Its victim, if it has one, then frees its slot.
So at least 1 + slack slots are free before and after, and a reader finds what a slot held for as long as possible.

Invariants: everything follows from what the slots say. A free slot says when it was freed, a memory says when it joined
the eviction list. The native core's lists and indexes are caches of these scans.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from core.namespaces import NamespaceId
from core.reference.memory import Memory
from core.reference.namespace import Namespace
from core.reference.refusal import Refused

# Why a memory has gone: expired · its own id or a duplicate took its place · it has a new version · its namespace is at
# the limit · the store is full · a client deleted it · the scrub found it corrupt.
Cause = Literal["expired", "superseded", "updated", "limit", "capacity", "deleted", "lost"]


class Freed(NamedTuple):
    """A free slot: the position of the entry that freed it, and its place among the slots that this entry freed."""

    position: int
    place: int = 0


class Victim(NamedTuple):
    """A memory that a transition removes, and why."""

    cause: Cause
    slot: int
    memory_id: int


class Allocation:
    """The slots. A slot that was never used counts as freed at position 0, slot 1 first and slot 0 last."""

    def __init__(self, capacity: int, slack: int) -> None:
        count = capacity + 1 + slack
        self.capacity = capacity
        self.slots: list[Memory | Freed] = [Freed(0, (slot - 1) % count) for slot in range(count)]

    def memories(self) -> Iterator[tuple[int, Memory]]:
        """Yield slot and memory of all that are not freed, the expired ones included."""
        for slot, memory in enumerate(self.slots):
            if isinstance(memory, Memory):
                yield slot, memory

    def memories_of(self, namespace: NamespaceId) -> list[tuple[int, Memory]]:
        """Return slot and memory of all of one namespace that are not freed."""
        return [(slot, memory) for slot, memory in self.memories() if memory.namespace == namespace]

    def find(self, memory_id: int) -> tuple[int, Memory] | None:
        """Return the slot of a memory and the memory."""
        return next((found for found in self.memories() if found[1].memory_id == memory_id), None)

    @property
    def spare(self) -> int:
        """The slot that the next memory is written into: the one freed longest ago."""
        free = [(freed, slot) for slot, freed in enumerate(self.slots) if isinstance(freed, Freed)]
        return min(free)[1]

    def victim_of_newcomer(
        self, namespace: Namespace, namespaces: Mapping[NamespaceId, Namespace], now_ns: int
    ) -> Victim | None:
        """Return the memory that has to go so that `namespace` can have one more, None if there is room.

        This is for a memory that takes the place of no other one. Raises Refused.
        """
        own = self.memories_of(namespace.id)
        limit = namespace.terms.limit
        if limit is not None and len(own) >= limit:
            victims = expired(own, now_ns) or _unpinned(own, "limit")
            if not victims:
                raise Refused(
                    "namespace_full", f"namespace {namespace.name} is at its limit {limit}, and all are pinned"
                )
            return victims[0]
        live = list(self.memories())
        if len(live) < self.capacity:
            return None
        victims = expired(live, now_ns)
        return victims[0] if victims else self._victim_of_the_full_store(namespace, namespaces)

    def _victim_of_the_full_store(self, newcomer: Namespace, namespaces: Mapping[NamespaceId, Namespace]) -> Victim:
        """Return the oldest unpinned memory of the namespace that is furthest over its reserved share.

        The newcomer counts. Only a namespace that is over its share gives a memory. Of namespaces that are equally far
        over, the one whose oldest unpinned memory is the oldest gives it.
        """
        candidates = []
        for namespace in namespaces.values():
            own = self.memories_of(namespace.id)
            over = len(own) + (namespace.id == newcomer.id) - namespace.terms.reserved
            victims = _unpinned(own, "capacity")
            if victims and over >= 1:
                queued_at = min(memory.queued_at for _, memory in own if not memory.pinned)
                candidates.append((-over, queued_at, victims[0]))
        if not candidates:
            raise Refused("no_room", "the store is full, and every memory is pinned or within a reserved share")
        return min(candidates)[2]

    def write(self, memory: Memory, victim: Victim | None, position: int) -> int:
        """Write a memory into the spare, free the victim's slot, and return the slot that was written."""
        slot = self.spare
        self.slots[slot] = memory
        if victim is not None:
            self.slots[victim.slot] = Freed(position)
        return slot

    def free(self, victims: Iterable[Victim], position: int) -> None:
        """Free the slots of memories that nothing takes the place of."""
        for place, victim in enumerate(victims):
            self.slots[victim.slot] = Freed(position, place)


def _unpinned(memories: Iterable[tuple[int, Memory]], cause: Cause) -> list[Victim]:
    """Return an eviction list: the unpinned memories in the order in which they joined it."""
    found = [(memory.queued_at, slot, memory.memory_id) for slot, memory in memories if not memory.pinned]
    return [Victim(cause, slot, memory_id) for _, slot, memory_id in sorted(found)]


def expired(memories: Iterable[tuple[int, Memory]], now_ns: int) -> list[Victim]:
    """Return the memories that are expired, in the order in which they are freed: first expired first, then by id."""
    found = [(memory.expires_at, memory.memory_id, slot) for slot, memory in memories if memory.has_expired(now_ns)]
    return [Victim("expired", slot, memory_id) for _, memory_id, slot in sorted(found)]

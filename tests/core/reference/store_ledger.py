"""The lists that a native core would keep, followed entry by entry, to hold the reference model's scans against.

The model finds the spare, the victim and every count by looking at all slots. A `Ledger` keeps a queue of free slots
and an eviction list per namespace, and changes them only by what entries say.
"""

from collections import deque

from core.namespaces import NEVER, NamespaceId, Terms
from core.reference.allocation import Cause
from core.reference.entry import Entry


class Kept:
    """What the ledger knows of one memory."""

    def __init__(self, entry: Entry) -> None:
        assert entry.slot is not None
        assert entry.namespace is not None
        self.slot = entry.slot
        self.namespace = entry.namespace
        self.pinned = entry.pinned
        self.expires_at = entry.expires_at

    def has_expired(self, time_ns: int) -> bool:
        """Return whether its instant has come."""
        return self.expires_at != NEVER and self.expires_at <= time_ns


class Ledger:
    """Lists and counters of one store."""

    def __init__(self, capacity: int, slack: int) -> None:
        self.capacity = capacity
        self.free = deque([*range(1, capacity + 1 + slack), 0])
        self.kept: dict[int, Kept] = {}
        self.lists: dict[NamespaceId, list[int]] = {}
        self.joined: dict[int, int] = {}
        self.terms: dict[NamespaceId, Terms] = {}

    def count(self, namespace: NamespaceId) -> int:
        """Return the memories of a namespace that are not freed."""
        return sum(kept.namespace == namespace for kept in self.kept.values())

    def pinned(self, namespace: NamespaceId) -> int:
        """Return the pinned memories of a namespace that are not freed."""
        return sum(kept.namespace == namespace and kept.pinned for kept in self.kept.values())

    def expired(self, time_ns: int, namespace: NamespaceId | None = None) -> list[int]:
        """Return the ids of what is expired and not freed, in the order of its freeing."""
        found = [
            (kept.expires_at, memory_id)
            for memory_id, kept in self.kept.items()
            if kept.has_expired(time_ns) and namespace in (None, kept.namespace)
        ]
        return [memory_id for _, memory_id in sorted(found)]

    def victim_of_newcomer(self, namespace: NamespaceId, time_ns: int) -> tuple[Cause, int] | None:
        """Return cause and id of the memory that makes room for a newcomer, None if a slot is free for it."""
        limit = self.terms[namespace].limit
        if limit is not None and self.count(namespace) >= limit:
            ended = self.expired(time_ns, namespace)
            return ("expired", ended[0]) if ended else ("limit", self.lists[namespace][0])
        if len(self.kept) < self.capacity:
            return None
        ended = self.expired(time_ns)
        if ended:
            return "expired", ended[0]
        over = {
            one: self.count(one) + (one == namespace) - terms.reserved
            for one, terms in self.terms.items()
            if self.lists[one]
        }
        furthest = max(over.values())
        assert furthest > 0
        heads = [self.lists[one][0] for one in over if over[one] == furthest]
        return "capacity", min(heads, key=self.joined.__getitem__)

    def follow(self, entry: Entry) -> None:
        """Change the lists by one entry, which must write the slot that was freed longest ago."""
        if entry.kind == "start":
            self._add_namespace(NamespaceId(0, 1), Terms())
        elif entry.kind == "namespace":
            self._follow_namespace(entry)
        joins_at_end = True
        if entry.kind == "update":
            joins_at_end = self.kept[entry.memory_id].pinned
            self.kept[entry.memory_id].pinned = entry.pinned
        for victim in entry.victims:
            if victim.cause != "updated":
                kept = self.kept.pop(victim.memory_id)
                assert kept.slot == victim.slot
                if victim.memory_id in self.lists[kept.namespace]:
                    self.lists[kept.namespace].remove(victim.memory_id)
            else:
                assert self.kept[victim.memory_id].slot == victim.slot
        if entry.slot is not None:
            assert self.free.popleft() == entry.slot
            self.kept[entry.memory_id] = kept = Kept(entry)
            eviction_list = self.lists[kept.namespace]
            if entry.pinned:
                if entry.memory_id in eviction_list:
                    eviction_list.remove(entry.memory_id)
            elif joins_at_end:
                eviction_list.append(entry.memory_id)
                self.joined[entry.memory_id] = entry.position
        self.free.extend(victim.slot for victim in entry.victims)

    def _follow_namespace(self, entry: Entry) -> None:
        assert entry.namespace is not None
        assert entry.terms is not None
        if entry.step == "create":
            self._add_namespace(entry.namespace, entry.terms)
        elif entry.step == "free":
            del self.terms[entry.namespace], self.lists[entry.namespace]
        else:
            self.terms[entry.namespace] = entry.terms

    def _add_namespace(self, namespace: NamespaceId, terms: Terms) -> None:
        assert namespace not in self.terms
        self.terms[namespace] = terms
        self.lists[namespace] = []

"""Namespaces, as a process uses them: their terms, and a table of names that is read again when it has changed.

A namespace owns memories, has limits of its own, and may have a governor of its own. Its identity is the number of its
row together with the row's generation: a number is given again, the pair is not.
Threading: a `Namespaces` belongs to one thread of one process, as its `Store` does.
"""

from typing import Final, NamedTuple

from core.regime import MODES, GovernorSettings, Mode
from shm import records
from shm.block import Block
from shm.event import NamespaceId
from shm.layout import NAMESPACE_CLOSING, NAMESPACE_OWN, NAMESPACE_USED
from shm.records import Cell, TermsPointer, new_terms
from shm.store import Store

__all__ = ("NAME_SIZE", "NEVER", "Namespace", "NamespaceId", "Namespaces", "Policy", "Terms", "name_of")

NAME_SIZE: Final = 64  # bytes of a name in UTF-8
NEVER: Final = 0


class Policy(NamedTuple):
    """The settings of one governor: the server's, or a namespace's own."""

    settings: GovernorSettings
    mode: Mode = "enforce"


class Terms(NamedTuple):
    """What an operator sets of a namespace.

    `limit`: its memories at most, None for no limit. `reserved`: memories that no other namespace can evict. The block
    keeps both, and holds the sum of the shares against the capacity; choosing a victim does not look at them
    (docs/design/allocation.md).
    `ttl_ns`: lifetime of a memory whose event names none, 0 for ever. `policy`: that of its own governor, None if it
    shares the server's.
    """

    limit: int | None = None
    reserved: int = 0
    ttl_ns: int = NEVER
    policy: Policy | None = None

    def to_record(self, name: str = "") -> TermsPointer:
        """Return the record of the native core. Raises ValueError if a value does not fit it."""
        octets = name.encode()
        if len(octets) > NAME_SIZE or b"\0" in octets:
            raise ValueError(f"name is {name!r}, expected at most {NAME_SIZE} bytes of UTF-8 without zeros")
        if self.limit is not None and not 1 <= self.limit < 2**32:
            raise ValueError(f"limit is {self.limit}, it must be at least 1")
        if not 0 <= self.reserved < 2**32:
            raise ValueError(f"reserved is {self.reserved}, it must be between 0 and the limit")
        record = new_terms(octets)
        record.limit, record.reserved, record.ttl_ns = self.limit or 0, self.reserved, self.ttl_ns
        if self.policy is not None:
            record.flags = NAMESPACE_OWN
            record.mode = MODES.index(self.policy.mode)
            for field, value in self.policy.settings._asdict().items():
                setattr(record.governor, field, value)
        return record

    @classmethod
    def of_record(cls, record: records.Terms) -> "Terms":
        """Return the terms in a record."""
        policy = None
        if record.flags & NAMESPACE_OWN:
            constants = GovernorSettings(*(getattr(record.governor, name) for name in GovernorSettings._fields))
            policy = Policy(constants, MODES[record.mode])
        return cls(record.limit or None, record.reserved, record.ttl_ns, policy)


class Namespace(NamedTuple):
    """A namespace in use. `theta` and `ema` are the state of its own governor, None if it shares the server's.

    `accepted` and `rejected` count its events, `evicted` the memories that it lost to its limit or to the capacity,
    `memories` those that are not freed, `pinned` of these the pinned ones.
    """

    id: NamespaceId
    name: str
    terms: Terms
    closing: bool
    theta: float | None
    ema: float | None
    accepted: int
    rejected: int
    evicted: int
    memories: int
    pinned: int

    @classmethod
    def of_records(cls, number: int, terms: records.Terms, cell: Cell) -> "Namespace | None":
        """Return the namespace in a row of the table, None if the row is free."""
        if not terms.flags & NAMESPACE_USED:
            return None
        own = bool(terms.flags & NAMESPACE_OWN)
        return cls(
            NamespaceId(number, terms.generation),
            name_of(terms),
            Terms.of_record(terms),
            bool(terms.flags & NAMESPACE_CLOSING),
            cell.theta if own else None,
            cell.ema if own else None,
            cell.accepted,
            cell.rejected,
            cell.evicted,
            cell.live,
            cell.pinned,
        )


def name_of(terms: records.Terms) -> str:
    """Return the name in a record of terms."""
    return bytes(terms.name).rstrip(b"\0").decode()


class Namespaces:
    """The namespaces by their names."""

    def __init__(self, block: Block, store: Store) -> None:
        self._lock = block.region("lock")
        self._store = store
        self._seen = -1
        self._ids: dict[str, NamespaceId] = {}

    def find(self, name: str) -> NamespaceId | None:
        """Return the identity of a namespace, None if there is none. One that is closing counts.

        Perf: reads one word of the block while no namespace has changed. Raises as `Store.namespaces` does.
        """
        seen = int(self._lock.terms)  # before the rows: what changes meanwhile is read the next time
        if seen != self._seen:
            self._ids = {namespace.name: namespace.id for namespace in self.all()}
            self._seen = seen
        return self._ids.get(name)

    def all(self) -> list[Namespace]:
        """Return all namespaces in the order of their rows. Raises as `Store.namespaces` does."""
        rows = enumerate(self._store.namespaces())
        found = (Namespace.of_records(number, terms, cell) for number, (terms, cell) in rows)
        return [namespace for namespace in found if namespace is not None]

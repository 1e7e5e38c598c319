"""A log entry of the store, reference version: what one transition did, and everything it was decided from.

With the content that was written at its position, an entry is enough to make the same transition again
(core.reference.entry_replay). Entries of a controller's or a worker's term do not exist: they are no transitions.

The block packs these fields. Where an entry here holds a value (own id, content, terms), the block may hold a checksum
or a keyed hash of it. Not part of the model: the row of the worker, receipts, checksums of the entry itself.
"""

from typing import Final, Literal, NamedTuple

from core.namespaces import NEVER, NamespaceId, Terms
from core.reference.allocation import Victim
from core.reference.governor import Governor
from core.reference.settings import Settings

Kind = Literal[
    "decision", "tick", "configure", "reset", "delete", "stop", "resume", "start", "restore", "update", "expire",
    "lost", "namespace",
]  # fmt: skip
Step = Literal["create", "change", "close", "free"]  # what a namespace entry does
DuplicatePolicy = Literal["skip", "supersede", "keep"]
EXPIRED_PER_ENTRY: Final = 8
EXPIRED_PER_ROUND: Final = 512


class Scalars(NamedTuple):
    """The scalar state of the server, before and after each transition.

    `newest_id` is the newest memory id that was given. `accepted` counts the events that were let through, `rejected`
    the others. `live` counts the memories that are not freed, the expired ones included.
    """

    theta: float
    ema: float
    phase: int
    stopped: bool
    counter: int
    newest_id: int
    accepted: int
    rejected: int
    step: int
    live: int


class Origin(NamedTuple):
    """Where an event came from. The store copies it into the entry and never looks at it.

    `key` are the two words of the idempotency key's hash and `body` that of the request, 0 without one; `key_id` is the
    number of the API key.
    """

    key: tuple[int, int] = (0, 0)
    body: int = 0
    key_id: int = 0


class Duplicate(NamedTuple):
    """The nearest memory of the namespace, if it is as near as the threshold: what was to be done, and its score."""

    policy: DuplicatePolicy
    memory_id: int
    score: float


class Entry(NamedTuple):
    """One transition. Fields that the kind does not use have their default.

    `namespace` is the one that the transition is about. `own_before` and `own_after` are the state of its own governor,
    None if it shares the server's. `memory_id` is the memory that was written or, for delete and lost, removed; 0 if
    nothing was. `slot` is the slot that was written. `victims` are the memories that were removed: at most one, but up
    to EXPIRED_PER_ENTRY for expire. `verdict` is what the governor said, None if it was off; `stored` says whether a
    memory was written for the event. `content` is the checksum of what was written. `pinned`, `own_id` and `content` of
    an event that was not stored are the event's.
    `terms`, `name` and `step` belong to namespace entries, `settings` to start and configure: those in force after it.
    """

    position: int
    kind: Kind
    time_ns: int
    before: Scalars
    after: Scalars
    namespace: NamespaceId | None = None
    own_before: Governor | None = None
    own_after: Governor | None = None
    memory_id: int = 0
    slot: int | None = None
    victims: tuple[Victim, ...] = ()
    verdict: bool | None = None
    stored: bool = False
    moral: float = 0.0
    moral_defaulted: bool = False
    scorer: int = 0
    phase: int = 0
    pinned: bool = False
    created_at: int = 0
    updated_at: int = 0
    expires_at: int = NEVER
    own_id: str | None = None
    duplicate: Duplicate | None = None
    content: int = 0
    origin: Origin = Origin()
    step: Step | None = None
    name: str | None = None
    terms: Terms | None = None
    settings: Settings | None = None

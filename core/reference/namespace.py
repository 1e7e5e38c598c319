"""Namespaces, reference version: who owns which memories, how many, and which governor judges their events.

The table has a fixed number of rows. Row 0 is `default`; it shares the server's governor at the start and is never
closed. The number of a row is given again only when no slot and no log entry in reach names it.
"""

from typing import Final, NamedTuple

from core.namespaces import NamespaceId, Terms
from core.reference.governor import Governor

DEFAULT: Final = "default"


class Namespace(NamedTuple):
    """One row in use. `governor` is the state of its own governor, None if it shares the server's.

    `accepted` and `rejected` count decisions as the server's counters do; `evicted` counts the memories that it lost to
    its limit or to the capacity.
    """

    id: NamespaceId
    name: str
    terms: Terms = Terms()
    governor: Governor | None = None
    closing: bool = False
    accepted: int = 0
    rejected: int = 0
    evicted: int = 0


class FreeRow(NamedTuple):
    """One row that is free: the generation that it had last, and the position that freed it; 0 and 0 if never used."""

    generation: int = 0
    freed_at: int = 0

    def can_be_given(self, position: int, log_capacity: int) -> bool:
        """Return whether the entry at `position` may give the row: no entry that names it is in reach any more.

        That entry takes the place of the one at position − log_capacity in the ring.
        """
        return self.freed_at <= position - log_capacity or self.generation == 0


def governor_after(governor: Governor | None, before: Terms, after: Terms) -> Governor | None:
    """Return the state of a namespace's own governor under new terms.

    It begins at its initial threshold when the namespace gets one, and ends when the namespace shares the server's
    again. Under new settings its threshold is clamped to the new bounds, as the server's is.
    """
    if after.policy is None:
        return None
    if governor is None or before.policy is None:
        return Governor.initial(after.policy.settings)
    return governor.with_settings(after.policy.settings)

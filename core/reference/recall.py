"""Recall over the store, reference version: the nearest memories at one position, by brute force.

Every memory that is visible and that the filter selects is scored in full, in the order of core.reference.vector.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from core.phases import PHASE_NAMES
from core.reference.filter_words import Filter, matches
from core.reference.memory import Memory
from core.reference.vector import Vector, cosine


class Match(NamedTuple):
    """A memory id with its score, a cosine."""

    memory_id: int
    score: float


def nearest(query: Vector, k: int, memories: Iterable[Memory], condition: Filter | None = None) -> list[Match]:
    """Return the k best of the memories that the filter selects: descending, ties to the higher memory id."""
    found = [
        Match(memory.memory_id, cosine(query, memory.content.values()))
        for memory in memories
        if condition is None or matches(condition, fields_of(memory))
    ]
    return sorted(found, key=lambda match: (-match.score, -match.memory_id))[:k]


def fields_of(memory: Memory) -> Mapping[str, object]:
    """Return what a filter can ask of a memory, by field. Times are nanoseconds UTC; `id` is the own id."""
    fields: dict[str, object] = {f"metadata.{name}": value for name, value in memory.content.metadata.items()}
    fields |= {
        "memory_id": memory.memory_id,
        "moral_value": memory.moral,
        "phase": PHASE_NAMES[memory.phase],
        "created_at": memory.created_at,
        "updated_at": memory.updated_at,
    }
    if memory.own_id is not None:
        fields["id"] = memory.own_id
    return fields

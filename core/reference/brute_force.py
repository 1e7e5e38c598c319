"""Brute force: the definition of recall, which the native core's answer must equal id for id and bit for bit.

Every live memory is scored in full, in the order of `core.reference.vector`, without any optimization.
"""

from collections.abc import Iterable
from typing import NamedTuple

from core.reference.vector import Vector, cosine
from shm.store import Memory


class Scored(NamedTuple):
    """A memory id with its score."""

    id: int
    score: float


def brute_force(query: Vector, k: int, mask: int, memories: Iterable[tuple[Memory, Vector]]) -> list[Scored]:
    """Return the k best of all live memories by cosine, best first, ties newer first: the definition of recall."""
    scored = [Scored(memory.id, cosine(query, vector)) for memory, vector in memories if mask >> memory.phase & 1]
    return sorted(scored, key=lambda match: (-match.score, -match.id))[:k]

"""Recall by phase, as a client asks for it: a window of the rhythm becomes masks of tags for the native core.

The work itself is done in three steps that shm/native/recall.c explains and proves; core/reference/brute_force.py
defines the right answer.
"""

from typing import Final, Literal

from core.reference.rhythm import SLEEP, WAKE, tags_within

PhaseWindow = Literal["any", "wake", "sleep", "current"]
_EVERY: Final = (1 << WAKE) | (1 << SLEEP)


def masks(window: PhaseWindow, tolerance: float) -> tuple[int, int]:
    """Return, for each phase the rhythm may be in, the mask of tags that a window lets through: bit t for tag t."""
    if window == "any":
        return _EVERY, _EVERY
    if window == "current":
        return tags_within(WAKE, tolerance), tags_within(SLEEP, tolerance)
    mask = tags_within(WAKE if window == "wake" else SLEEP, tolerance)
    return mask, mask

"""The two phases of the rhythm: codes, names, the values that tag memories, and the phase filters of recall.

A filter becomes masks of tags for shm/native/recall.c. `core/reference/brute_force.py` defines the right answer.
"""

from typing import Final, Literal

WAKE: Final = 0
SLEEP: Final = 1
PHASE_NAMES: Final = ("wake", "sleep")
PHASE_VALUES: Final = (0.1, 0.9)  # tags of memories; phase_tolerance bounds the distance between two of them

PhaseWindow = Literal["any", "wake", "sleep", "current"]
_EVERY: Final = (1 << WAKE) | (1 << SLEEP)


def phase_masks(window: PhaseWindow, tolerance: float) -> tuple[int, int]:
    """Return the mask of tags that a filter accepts, for each phase that the rhythm may be in: bit t for tag t."""
    if window == "any":
        return _EVERY, _EVERY
    if window == "current":
        return tags_within(WAKE, tolerance), tags_within(SLEEP, tolerance)
    mask = tags_within(WAKE if window == "wake" else SLEEP, tolerance)
    return mask, mask


def tags_within(phase: int, tolerance: float) -> int:
    """Return the mask of phases whose tag is within `tolerance`, inclusive, of that of `phase`: bit p is phase p."""
    return sum(1 << tag for tag in (WAKE, SLEEP) if abs(PHASE_VALUES[tag] - PHASE_VALUES[phase]) <= tolerance)

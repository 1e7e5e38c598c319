"""The phases: their values, and the masks of tags that a phase filter accepts."""

import pytest

from core.phases import PHASE_VALUES, SLEEP, WAKE, PhaseWindow, phase_masks, tags_within

BOTH = 1 << WAKE | 1 << SLEEP


def test_tags_within_a_tolerance() -> None:
    """0.1 and 0.9 are 0.8 apart, and the tolerance is inclusive."""
    assert PHASE_VALUES == (0.1, 0.9)
    assert [tags_within(WAKE, tolerance) for tolerance in (0.0, 0.79, 0.8, 1.0)] == [1 << WAKE, 1 << WAKE, BOTH, BOTH]
    assert [tags_within(SLEEP, tolerance) for tolerance in (0.0, 0.79, 0.8, 1.0)] == [
        1 << SLEEP,
        1 << SLEEP,
        BOTH,
        BOTH,
    ]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ("any", (BOTH, BOTH)),
        ("wake", (1 << WAKE, 1 << WAKE)),
        ("sleep", (1 << SLEEP, 1 << SLEEP)),
        ("current", (1 << WAKE, 1 << SLEEP)),
    ],
)
def test_masks_of_each_filter(window: PhaseWindow, expected: tuple[int, int]) -> None:
    """Only `current` depends on the phase that the rhythm is in."""
    assert phase_masks(window, 0.15) == expected

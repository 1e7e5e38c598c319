"""The count of a child's silence, with a clock that the test moves. With real children: test_supervisor.py."""

import random
from collections.abc import Callable
from functools import partial

import pytest

from app.processes.silence import CHECK_SECONDS_MAX, Silence

LIMITS = [0.5, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 120.0]
LATE_SECONDS = 0.001  # a turn of the arbiter's loop begins a little later than asked for


def check_seconds(limit: float) -> float:
    """Return how far apart checks are."""
    return min(limit / 10, CHECK_SECONDS_MAX)


def beats_until(last: float, ran: float) -> int:
    """Return the number of the latest beat of a child that beats all the time, up to the second `last`."""
    return int(min(ran, last) * 1e6)


def beats_every(period: float, ran: float) -> int:
    """Return the number of the latest beat of a child that beats once in a period."""
    return int(ran / period)


def first_check_over(
    limit: float, beats_at: Callable[[float], int], seconds: float, frozen: tuple[float, float] = (0.0, 0.0)
) -> float | None:
    """Check a child for some seconds; return when it was over its limit, None when it never was.

    `beats_at(ran)` is the number of its latest beat after it has run for so long. Arbiter and child are frozen together
    for `frozen[1]` seconds from `frozen[0]` on.
    """
    began = random.uniform(0, 1e6)
    silence = Silence()
    silence.restart(began, beats_at(0.0))
    now = 0.0
    while now < seconds:
        now = silence.next_check(limit) - began + LATE_SECONDS
        freeze, duration = frozen
        if freeze < now < freeze + duration:
            now = freeze + duration
        ran = now if now < freeze + duration else now - duration
        if silence.is_over(limit, began + now, beats_at(ran)):
            return now
    return None


@pytest.mark.parametrize("limit", LIMITS)
def test_a_silent_child_is_over_its_limit_after_what_was_declared(limit: float) -> None:
    """Never before, and at most a tenth and one check later, wherever between two checks its last beat was."""
    for _ in range(200):
        last = random.uniform(0, 3 * limit)
        over = first_check_over(limit, partial(beats_until, last), 20 * limit)

        assert over is not None
        late = 20 * LATE_SECONDS + 0.01
        assert limit <= over - last <= 1.1 * limit + check_seconds(limit) + late, f"last beat at {last}"


@pytest.mark.parametrize("limit", LIMITS)
def test_a_freeze_is_no_silence(limit: float) -> None:
    """A child that beats as rarely as it may is never over its limit, however long and whenever all were frozen."""
    for _ in range(200):
        freeze = (random.uniform(0, 3 * limit), random.choice([0.1, 0.5, 1.0, 10.0, 1e6]) * limit)
        over = first_check_over(limit, partial(beats_every, limit - LATE_SECONDS), freeze[1] + 6 * limit, freeze)

        assert over is None, f"frozen at {freeze[0]} for {freeze[1]}"


def test_early_checks_count_what_has_passed() -> None:
    """Signals of other children wake the arbiter: a thousand checks within a second are a second."""
    silence = Silence()
    silence.restart(0.0, 1)

    over = [now for now in range(3000) if silence.is_over(1.0, now / 1000, 1)]

    assert over[0] == pytest.approx(1100, abs=1)

"""The wake/sleep rhythm, as the specification states it."""

from hypothesis import given
from hypothesis import strategies as st

from core.phases import SLEEP, WAKE
from core.reference.rhythm import Rhythm
from core.regime import Regime, RhythmSettings
from core.settings.config import Config

DEFAULT = Regime.of(Config()).rhythm


def phases(settings: RhythmSettings, steps: int) -> list[int]:
    """Return the phases before each of so many steps."""
    rhythm, seen = Rhythm.initial(settings), []
    for _ in range(steps):
        seen.append(rhythm.phase)
        rhythm = rhythm.stepped(settings)
    return seen


class TestStepped:
    def test_eight_awake_and_three_asleep(self) -> None:
        """It starts awake, and its period is 11."""
        assert phases(DEFAULT, 33) == ([WAKE] * 8 + [SLEEP] * 3) * 3

    @given(st.integers(1, 20), st.integers(1, 20))
    def test_any_durations(self, wake: int, sleep: int) -> None:
        """Each phase lasts as long as it was told, for ever."""
        assert ([WAKE] * wake + [SLEEP] * sleep) * 3 == phases(
            DEFAULT._replace(wake_duration=wake, sleep_duration=sleep), 3 * (wake + sleep)
        )

    def test_counts_every_step(self) -> None:
        """Steps are counted in all, and a reset does not set them back."""
        rhythm = Rhythm.initial(DEFAULT)
        for _ in range(10):
            rhythm = rhythm.stepped(DEFAULT)

        assert rhythm == (SLEEP, 1, 10)
        assert rhythm.reset(DEFAULT) == (WAKE, 8, 10)

    def test_a_shorter_phase_takes_effect_at_once(self) -> None:
        """No longer in this phase than the new duration allows; never longer than was left."""
        assert Rhythm.initial(DEFAULT).reconfigured(DEFAULT._replace(wake_duration=3)) == (WAKE, 3, 0)
        assert Rhythm.initial(DEFAULT).reconfigured(DEFAULT._replace(wake_duration=80)) == (WAKE, 8, 0)

    def test_consolidates_asleep_only(self) -> None:
        """And only when it is configured to."""
        asleep = Rhythm(SLEEP, 3)

        assert asleep.consolidates(DEFAULT)
        assert not asleep.consolidates(DEFAULT._replace(consolidation=False))
        assert not Rhythm.initial(DEFAULT).consolidates(DEFAULT)

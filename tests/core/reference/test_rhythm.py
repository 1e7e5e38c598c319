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
        rhythm = rhythm.after_step(settings)
    return seen


class TestAfterStep:
    def test_eight_awake_and_three_asleep(self) -> None:
        """It starts awake, and its period is 11."""
        assert phases(DEFAULT, 33) == ([WAKE] * 8 + [SLEEP] * 3) * 3

    @given(st.integers(1, 20), st.integers(1, 20))
    def test_any_durations(self, wake: int, sleep: int) -> None:
        """Each phase has its configured length in every period."""
        assert ([WAKE] * wake + [SLEEP] * sleep) * 3 == phases(
            DEFAULT._replace(wake_duration=wake, sleep_duration=sleep), 3 * (wake + sleep)
        )

    def test_counts_every_step(self) -> None:
        """A reset does not change the total of steps."""
        rhythm = Rhythm.initial(DEFAULT)
        for _ in range(10):
            rhythm = rhythm.after_step(DEFAULT)

        assert rhythm == (SLEEP, 1, 10)
        assert rhythm.reset(DEFAULT) == (WAKE, 8, 10)

    def test_a_shorter_phase_takes_effect_at_once(self) -> None:
        """The steps left are at most the new duration, and never more than before."""
        assert Rhythm.initial(DEFAULT).with_settings(DEFAULT._replace(wake_duration=3)) == (WAKE, 3, 0)
        assert Rhythm.initial(DEFAULT).with_settings(DEFAULT._replace(wake_duration=80)) == (WAKE, 8, 0)

    def test_the_cascade_runs_asleep_only(self) -> None:
        """It runs asleep, and only when consolidation is on."""
        asleep = Rhythm(SLEEP, 3)

        assert asleep.runs_cascade(DEFAULT)
        assert not asleep.runs_cascade(DEFAULT._replace(consolidation=False))
        assert not Rhythm.initial(DEFAULT).runs_cascade(DEFAULT)

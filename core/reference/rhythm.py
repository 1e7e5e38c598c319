"""The wake/sleep rhythm, reference version: a counter that alternates between two phases.

It starts awake with the counter at the wake duration. Each step decrements the counter; at zero the phase flips and the
counter is set to the duration of the new phase. The default period is 8 + 3 = 11 steps. Steps come from a clock (the
controller takes one per cycle) or from events (one per decision). Events are accepted in both phases and tagged with
the phase at their decision.

Invariants: equal to rhythm_step in shm/native/governor.c.
"""

from typing import NamedTuple, Self

from core.phases import SLEEP, WAKE
from core.regime import RhythmSettings


class Rhythm(NamedTuple):
    """The state: phase, steps left in it, and total steps."""

    phase: int
    counter: int
    step: int = 0

    @classmethod
    def initial(cls, settings: RhythmSettings) -> Self:
        """Return the state after a start."""
        return cls(WAKE, settings.wake_duration)

    def after_step(self, settings: RhythmSettings) -> Self:
        """Return the state after one step."""
        if self.counter > 1:
            return self._replace(counter=self.counter - 1, step=self.step + 1)
        phase = 1 - self.phase
        return self._replace(phase=phase, counter=self._duration(phase, settings), step=self.step + 1)

    def runs_cascade(self, settings: RhythmSettings) -> bool:
        """Return whether a step from this state runs the cascade: asleep, and consolidation is on."""
        return self.phase == SLEEP and settings.consolidation

    def reset(self, settings: RhythmSettings) -> Self:
        """Return the state after a reset: awake with a full counter; the total of steps continues."""
        return self._replace(phase=WAKE, counter=settings.wake_duration)

    def with_settings(self, settings: RhythmSettings) -> Self:
        """Return the state under new settings: the steps left are at most the new duration of the phase."""
        return self._replace(counter=min(self.counter, self._duration(self.phase, settings)))

    @staticmethod
    def _duration(phase: int, settings: RhythmSettings) -> int:
        return settings.sleep_duration if phase == SLEEP else settings.wake_duration

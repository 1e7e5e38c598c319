"""The moral governor, reference version: accepts or rejects an event and adapts its threshold.

It keeps an exponential mean of its verdicts and steers it towards one half: too many acceptances raise the threshold,
too many rejections lower it, within fixed bounds. So about half of a steady stream is rejected by design. A value below
`min_threshold` is always rejected, and one from `max_threshold` on always accepted.

Invariants: equal to governor_decide in shm/native/governor.c to the last bit; a property test compares them. Hence the
arithmetic: IEEE doubles, strict comparisons with the dead band, and the threshold rounded to twelve decimals
(half to even) after each step, because 0.5 + 0.05 + 0.05 would otherwise drift from 0.6.
"""

from typing import NamedTuple, Self

from core.regime import GovernorSettings


class Governor(NamedTuple):
    """The state: the threshold θ, and the exponential mean of accept = 1 and reject = 0."""

    theta: float
    ema: float = 0.5

    @classmethod
    def initial(cls, settings: GovernorSettings) -> Self:
        """Return the state after a start or a reset."""
        return cls(settings.initial_threshold)

    def decide(self, moral: float, settings: GovernorSettings) -> tuple[bool, Self]:
        """Return whether a moral value in [0, 1] is accepted, and the next state."""
        accepted = moral >= settings.max_threshold or (moral >= settings.min_threshold and moral >= self.theta)
        ema = settings.ema_alpha * accepted + (1.0 - settings.ema_alpha) * self.ema
        if ema - 0.5 > settings.dead_band:
            theta = self._step(settings.adaptation_rate, settings)
        elif ema - 0.5 < -settings.dead_band:
            theta = self._step(-settings.adaptation_rate, settings)
        else:
            theta = self.theta
        return accepted, self._replace(theta=theta, ema=ema)

    def _step(self, step: float, settings: GovernorSettings) -> float:
        if step == 0.0:
            return self.theta
        return self._clamp(round((self.theta + step) * 1e12) / 1e12, settings)  # a bound may have more decimals

    @staticmethod
    def _clamp(theta: float, settings: GovernorSettings) -> float:
        return min(max(theta, settings.min_threshold), settings.max_threshold)

    def with_settings(self, settings: GovernorSettings) -> Self:
        """Return the state under new settings: the threshold is clamped to the new bounds."""
        return self._replace(theta=self._clamp(self.theta, settings))

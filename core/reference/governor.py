"""The moral governor: accepts or rejects each event, and lets its threshold follow what it has seen.

A homeostat. It keeps an exponential mean of its own verdicts and aims at accepting half of what it is asked: accepting
too much raises the threshold, rejecting too much lowers it, inside hard bounds. So a steady stream is rejected about
half of the time by design, and what is below `min_threshold` or from `max_threshold` on is decided by the bounds alone.

This is the reference: the specification as a program, pure and immutable. The one that runs under the lock is
governor_decide in shm/native/governor.c; a property test holds both equal to the last bit. Hence the arithmetic is
spelled exactly so: IEEE doubles, strict comparisons against the dead band, and the threshold rounded to twelve decimals
with round-half-even after each step, because 0.5 + 0.05 + 0.05 would otherwise drift away from 0.6.
"""

from typing import NamedTuple, Self

from core.regime import GovernorSettings


class Governor(NamedTuple):
    """The state of the governor: the threshold θ, and the exponential mean of accept = 1, reject = 0."""

    theta: float
    ema: float = 0.5

    @classmethod
    def initial(cls, settings: GovernorSettings) -> Self:
        """Return the state after a start or a reset."""
        return cls(settings.initial_threshold)

    def decide(self, moral: float, settings: GovernorSettings) -> tuple[bool, Self]:
        """Judge one moral value in [0, 1] and adapt; returns whether it is accepted and the next state."""
        accepted = moral >= settings.max_threshold or (moral >= settings.min_threshold and moral >= self.theta)
        ema = settings.ema_alpha * accepted + (1.0 - settings.ema_alpha) * self.ema
        if ema - 0.5 > settings.dead_band:
            theta = self._stepped(settings.adaptation_rate, settings)
        elif ema - 0.5 < -settings.dead_band:
            theta = self._stepped(-settings.adaptation_rate, settings)
        else:
            theta = self.theta
        return accepted, self._replace(theta=theta, ema=ema)

    def _stepped(self, step: float, settings: GovernorSettings) -> float:
        if step == 0.0:
            return self.theta
        return round(self._clamped(self.theta + step, settings) * 1e12) / 1e12

    @staticmethod
    def _clamped(theta: float, settings: GovernorSettings) -> float:
        return min(max(theta, settings.min_threshold), settings.max_threshold)

    def reconfigured(self, settings: GovernorSettings) -> Self:
        """Return the state under new settings: the threshold is brought inside the new bounds."""
        return self._replace(theta=self._clamped(self.theta, settings))

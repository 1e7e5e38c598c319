"""How long a process has sent no heartbeat: counted by the arbiter's checks, not by comparing clocks.

After a freeze of all processes (a paused container, a suspended machine) the clock has moved on, although none of them
could run. So the interval between two checks counts as at most a tenth of the limit, and a process is over its limit
when eleven tenths are counted. Checks are due a tenth of the limit apart, at most a second.

Invariants, for a limit of L seconds:
- A process that beats within L of its own running time is never over the limit because of a freeze: a freeze lies in
  one interval, and counts as at most L / 10.
- A process that does not beat is over the limit after L at the earliest. While the arbiter is on time, that is noticed
  after 1.1 L at the latest, and one check more: the last beat is counted from the check that notices it.
"""

from typing import Final

CHECK_SECONDS_MAX: Final = 1.0  # between two checks; the arbiter's loop turns once a second anyway
_TENTHS: Final = 10
_TENTHS_OVER: Final = 11  # one more than the limit has, because a freeze may have counted as one tenth


class Silence:
    """The silence of one process. Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._beats = 0
        self._tenths = 0.0  # of the limit, counted since the last beat
        self._checked_at = 0.0

    def restart(self, now: float, beats: int) -> None:
        """Count from now on; `beats` is the number of the latest beat."""
        self._beats, self._tenths, self._checked_at = beats, 0.0, now

    def is_over(self, limit: float, now: float, beats: int) -> bool:
        """Check once: return whether the number of the latest beat has not changed for longer than `limit` seconds."""
        if beats != self._beats:
            self.restart(now, beats)
            return False
        self._tenths += min((now - self._checked_at) / limit * _TENTHS, 1.0)
        self._checked_at = now
        return self._tenths >= _TENTHS_OVER

    def next_check(self, limit: float) -> float:
        """Return when the next check is due."""
        left = min(_TENTHS_OVER - self._tenths, 1.0)
        return self._checked_at + min(left * limit / _TENTHS, CHECK_SECONDS_MAX)

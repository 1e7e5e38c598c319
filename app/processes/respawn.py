"""The delay before a process that has died is started again: one policy each for the controller, for other children and
for workers.
"""

from collections import deque
from typing import Final, Protocol

BURST: Final = 5  # starts without a delay within BURST_SECONDS; a process that dies at once must not use a whole core
BURST_SECONDS: Final = 1.0
DELAY_SECONDS_MIN: Final = 0.1
DELAY_SECONDS_MAX: Final = 30.0
STABLE_SECONDS: Final = 60.0  # after a life of this length, earlier deaths of the child no longer count
# Clients wait for workers, so the longest delay is short. PERF: a boot takes 0.2 s of CPU; two workers that
# die at once would fill a core, and with the delay take a fifth of it.
WORKER_DELAY_SECONDS_MAX: Final = 2.0
WORKER_CALM_SECONDS: Final = 10.0  # without a death; then earlier deaths no longer count


class Respawn(Protocol):
    """The policy for one child. Times are seconds of the monotonic clock."""

    def started(self, now: float) -> None:
        """Note that the child is being started."""

    def next_start(self, now: float) -> float:
        """Return when a child that has just died may be started again."""


class BurstLimit:
    """No delay, but at most BURST starts within BURST_SECONDS. For the controller: without it no command is carried out
    and the rhythm stands still.
    """

    def __init__(self) -> None:
        self._started_at: deque[float] = deque(maxlen=BURST)

    def started(self, now: float) -> None:
        """Note that the child is being started."""
        self._started_at.append(now)

    def next_start(self, now: float) -> float:
        """Return when a child that has just died may be started again."""
        if len(self._started_at) < BURST:
            return now
        return max(now, self._started_at[0] + BURST_SECONDS)


class Backoff:
    """No delay after the first death; then DELAY_SECONDS_MIN, doubled after each death up to DELAY_SECONDS_MAX. A life
    of STABLE_SECONDS resets it.
    """

    def __init__(self) -> None:
        self._started_at = 0.0
        self._deaths = 0

    def started(self, now: float) -> None:
        """Note that the child is being started."""
        self._started_at = now

    def next_start(self, now: float) -> float:
        """Return when a child that has just died may be started again."""
        if now - self._started_at >= STABLE_SECONDS:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return now
        doublings = min(self._deaths - 2, 16)  # beyond, the maximum has long been reached
        return now + min(DELAY_SECONDS_MIN * (1 << doublings), DELAY_SECONDS_MAX)


class WorkerBackoff:
    """For all workers together: no delay after the first BURST deaths; then DELAY_SECONDS_MIN, doubled after each death
    up to WORKER_DELAY_SECONDS_MAX. WORKER_CALM_SECONDS without a death reset it.
    """

    def __init__(self) -> None:
        self.due = 0.0  # when a worker may be started in place of one that has died
        self._died_at = 0.0
        self._deaths = 0

    def died(self, now: float) -> None:
        """Note that a worker has ended abnormally."""
        if now - self._died_at >= WORKER_CALM_SECONDS:
            self._deaths = 0
        self._deaths += 1
        self._died_at = now
        if self._deaths > BURST:
            doublings = min(self._deaths - BURST - 1, 16)  # beyond, the maximum has long been reached
            self.due = now + min(DELAY_SECONDS_MIN * (1 << doublings), WORKER_DELAY_SECONDS_MAX)

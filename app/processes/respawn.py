"""When a child or a worker that has died is started again."""

from collections import deque
from typing import Final, Protocol

BURST: Final = 5  # starts at once, within BURST_SECONDS: a controller that cannot live must not fill a processor
BURST_SECONDS: Final = 1.0
DELAY_SECONDS_MIN: Final = 0.1
DELAY_SECONDS_MAX: Final = 30.0
STABLE_SECONDS: Final = 60.0  # the deaths of a child that has lived this long are forgotten
# Clients wait for workers, so the longest delay is short. PERF: a boot takes 0.2 s of CPU; two workers that
# die at once would fill a core, and with the delay take a fifth of it.
WORKER_DELAY_SECONDS_MAX: Final = 2.0
WORKER_CALM_SECONDS: Final = 10.0  # without a death: those before are forgotten


class Respawn(Protocol):
    """A policy; times are seconds of the monotonic clock."""

    def started(self, now: float) -> None:
        """Note that the child is being started."""

    def next_start(self, now: float) -> float:
        """Return when a child that has just died may be started again."""


class BurstLimit:
    """At once, BURST times within BURST_SECONDS: for the controller, without which no command is carried out."""

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
    """At once after the first death; then after DELAY_SECONDS_MIN, doubled each time up to DELAY_SECONDS_MAX."""

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
    """For all workers together: at once after BURST deaths, then after DELAY_SECONDS_MIN, doubled each time up to
    WORKER_DELAY_SECONDS_MAX; from the beginning after WORKER_CALM_SECONDS without a death.
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

"""Rejection counts: the number of rejected events by the tier of their client, for one worker.

Invariants: the counts are incremented in place, in files of prometheus_client's multiprocess mode. Only the worker's
loop counts, so nothing is locked.
"""

from prometheus_client import Counter

from app.telemetry.latency_histogram import mapped_cell
from core.settings.tiers import TIERS


class RejectionCounts:
    """Counts rejected events by tier for one worker. `counter` has the label `tier`."""

    def __init__(self, counter: Counter) -> None:
        self._cells = {tier: mapped_cell(counter.labels(tier)._value) for tier in TIERS}

    def add(self, tier: str, count: int) -> None:
        """Count rejected events of one request. Those of a tier that is none of TIERS are not counted.

        Only an authenticator of a module can name such a tier, and its client must get the answer nevertheless.
        """
        if cells := self._cells.get(tier):
            numbers, index = cells
            numbers[index] += count

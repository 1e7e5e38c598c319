"""The product without its latency histograms, to measure their cost. For measurements only.

    gunicorn -c gunicorn.conf.py loadtests.bench.unmetered:app

The product has no switch for its metrics, and a benchmark does not justify one.
"""

from typing import Final

from app import main


class NullLatency:
    """A latency histogram that records nothing."""

    def __init__(self, _histogram: object) -> None:
        """Ignore the histogram."""
        self.total_cell = [0.0], 0

    def count(self, _environ: object) -> None:
        """Do nothing."""

    @staticmethod
    def mean_seconds() -> float:
        """Return 0."""
        return 0.0


assert hasattr(main, "LatencyHistogram")  # the replaced name must exist
main.LatencyHistogram = NullLatency
app: Final = main.app

"""The product without its latency histograms, to measure their cost. For measurements only.

    gunicorn -c gunicorn.conf.py loadtests.bench.unmetered:app

The product has no switch for its metrics, and a benchmark does not justify one.
"""

from typing import Final

from app import main


class NullLatency:
    """A histogram that hears nothing."""

    def __init__(self, _histogram: object) -> None:
        """Keep it not."""
        self.told = [0.0], 0

    def count(self, _environ: object) -> None:
        """Forget it."""

    @staticmethod
    def mean_seconds() -> float:
        """Return that of nothing."""
        return 0.0


assert hasattr(main, "Latency")  # what is replaced is what would be used
main.Latency = NullLatency
app: Final = main.app

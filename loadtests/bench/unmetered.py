"""The product without the histogram of its events: to see what that costs. For measurements only.

    gunicorn -c gunicorn.conf.py loadtests.bench.unmetered:app

The product has no switch for its metrics, and a benchmark is no reason to give it one. What the workers keep in their
rows of the block, which is part of the same count, stays: it is two additions.
"""

from typing import Final

from app import main


class Deaf:
    """A histogram that hears nothing."""

    def observe(self, _seconds: float) -> None:
        """Forget it."""


assert hasattr(main, "latency_histogram")  # what is replaced is what would be used
main.latency_histogram = lambda _row: Deaf()
app: Final = main.app

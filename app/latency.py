"""Latency: how long requests take, from the complete request to its answer written, in a histogram for Prometheus.

Written means handed to the transport, which gives it to the kernel when the loop has done what it is at.

The histogram lives in a file of prometheus_client's multiprocess mode, made by its own class, so that the scrape adds
up what all workers measured. `observe` of that class looks through the buckets one by one and packs two numbers behind
two locks: 1.5 µs of every event. Here the same two numbers are added to in place, through a view of the mapped file: a
worker's files have one writer, its event loop, and a number is one aligned word.
"""

import time
from bisect import bisect_left
from typing import Any, Final
from wsgiref.types import WSGIEnvironment

from prometheus_client import Histogram, multiprocess

_WORD: Final = 8


class Latency:
    """Counts the requests of one kind of one worker, in a `histogram` without labels."""

    def __init__(self, histogram: Histogram) -> None:
        inner: Any = histogram  # its values are no part of what the library declares; a test reads back what is written
        self._name: str = inner._name
        self._bounds: list[float] = inner._upper_bounds
        self._numbers, self._sum = place_of(inner._sum)
        self._buckets = [place_of(value)[1] for value in inner._buckets]

    def count(self, environ: WSGIEnvironment) -> None:
        """Count a request, from the moment at which it was complete until now."""
        seconds = (time.monotonic_ns() - environ["mlsdm.received_ns"]) * 1e-9
        numbers = self._numbers
        numbers[self._sum] += seconds
        numbers[self._buckets[bisect_left(self._bounds, seconds)]] += 1.0  # the first bound that is not below it

    def mean_seconds(self) -> float:
        """Return the mean over the requests of all workers that there were; 0 before the first or without files."""
        try:
            families = list(multiprocess.MultiProcessCollector(None).collect())  # type: ignore[no-untyped-call] # theirs
        except (OSError, ValueError):  # a cleaner of /tmp has taken the directory away, or does so now
            return 0.0
        sums = {
            sample.name: sample.value for family in families if family.name == self._name for sample in family.samples
        }
        count = sums.get(f"{self._name}_count", 0.0)
        return float(sums[f"{self._name}_sum"] / count) if count else 0.0


def place_of(value: Any) -> tuple[Any, int]:
    """Return the mapped file of a multiprocess value as float64[…], and its index there. The view stays good when the
    file grows: the library maps it anew, and both maps share its pages.
    """
    return memoryview(value._file._m).cast("d"), value._file._positions[value._key] // _WORD

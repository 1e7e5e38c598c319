"""Latency: how long requests take, from the complete request to its answer written, in a histogram for Prometheus.

Written means that the kernel has it, or as much of it as the peer takes: the transport writes at once. So the time can
be counted only when the client may have its answer already, and may ask how many there were, or kill the worker. Two
steps keep the count exact all the same: before the write, one is added to `told`, the last bucket alone; `count`, after
it, finds the bucket that the request belongs to. The word of the last bucket (+Inf) therefore holds the count of all
and not, as the library has it, of those beyond the other buckets; `fix_histogram_totals` puts that right in what the
library adds up. Each series of the scrape only ever grows, and a worker that is killed between the two leaves a request
without a time, and none uncounted.

The histogram lives in a file of prometheus_client's multiprocess mode, made by its own class, so that the scrape adds
up what all workers measured. `observe` of that class looks through the buckets one by one and packs two numbers behind
two locks: 1.5 µs of every event. Here the same two numbers are added to in place, through a view of the mapped file: a
worker's files have one writer, its event loop, and a number is one aligned word.
"""

import math
import time
from bisect import bisect_left
from typing import Any, Final
from wsgiref.types import WSGIEnvironment

from prometheus_client import Histogram, multiprocess
from prometheus_client.core import Metric, Sample

from app.httpd.request import RECEIVED_NS

_WORD: Final = 8


class LatencyHistogram:
    """Counts the requests of one kind of one worker, in a `histogram` without labels."""

    def __init__(self, histogram: Histogram) -> None:
        inner: Any = histogram  # its values are no part of what the library declares; a test reads back what is written
        self._name: str = inner._name
        *bounds, _ = inner._upper_bounds
        *buckets, last = inner._buckets
        #: Whoever is about to write an answer adds one here, to the number at this index; `count` is to follow.
        self.told: Final[tuple[Any, int]] = mapped_cell(last)
        self._bounds: list[float] = bounds
        self._longest: float = bounds[-1]
        self._numbers, self._sum = mapped_cell(inner._sum)
        self._buckets = [mapped_cell(value)[1] for value in buckets]

    def count(self, environ: WSGIEnvironment) -> None:
        """Count its time, from the moment at which it was complete until now."""
        seconds = (time.monotonic_ns() - environ[RECEIVED_NS]) * 1e-9
        numbers = self._numbers
        numbers[self._sum] += seconds
        if seconds <= self._longest:  # beyond it there is the last bucket alone, which has it
            numbers[self._buckets[bisect_left(self._bounds, seconds)]] += 1.0  # of the first bound that is not below it

    def mean_seconds(self) -> float:
        """Return the mean over the requests of all workers that there were; 0 before the first or without files."""
        try:
            families = list(multiprocess.MultiProcessCollector(None).collect())  # type: ignore[no-untyped-call] # theirs
        except (OSError, ValueError):  # a cleaner of /tmp has taken the directory away, or does so now
            return 0.0
        sums = {
            sample.name: sample.value
            for family in families
            if family.name == self._name
            for sample in fix_histogram_totals(family).samples
        }
        count = sums.get(f"{self._name}_count", 0.0)
        return float(sums[f"{self._name}_sum"] / count) if count else 0.0


def fix_histogram_totals(family: Metric) -> Metric:
    """Put right what prometheus_client has added up of a histogram's files: it has added the buckets below to the last
    one, which holds them already. Anything else stays as it is.
    """
    if family.type == "histogram":
        buckets = {float(sample.labels["le"]): sample.value for sample in family.samples if "le" in sample.labels}
        below = max((value for edge, value in buckets.items() if edge < math.inf), default=0.0)  # they are cumulative
        family.samples = [
            sample._replace(value=sample.value - below) if _counts_all(sample) else sample for sample in family.samples
        ]
    return family


def _counts_all(sample: Sample) -> bool:
    return sample.labels.get("le") == "+Inf" or sample.name.endswith("_count")


def mapped_cell(value: Any) -> tuple[Any, int]:
    """Return the mapped file of a multiprocess value as float64[…], and its index there. The view stays good when the
    file grows: the library maps it anew, and both maps share its pages.
    """
    return memoryview(value._file._m).cast("d"), value._file._positions[value._key] // _WORD

"""Latency histogram: seconds from the complete request to its written answer.

Written means that the kernel has accepted the answer, or as much of it as the peer reads: the transport writes at
once.

Invariants: the count is exact, although the time is known only when the client may already have its answer and the
worker may be killed. So counting has two steps. Before the write, one is added to the cell `total_cell`, the last
bucket. After it, `count` adds the time, and one to the bucket of the request. In these files the last bucket (+Inf)
therefore counts all requests; in the library's own files it counts those above the other buckets.
`fix_histogram_totals` corrects the sums of the library. Each series only ever grows. A worker that is killed between
the two steps leaves a request without a time, and none uncounted.

Perf: `observe` of prometheus_client searches the buckets one by one and packs two numbers behind two locks: 1.5 µs of
every event. Here the same two numbers of the mapped file are added to in place: its only writer is the event loop of
its worker, and a number is one aligned word.
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
    """Counts the requests of one kind in one worker, in a `histogram` without labels."""

    def __init__(self, histogram: Histogram) -> None:
        inner: Any = histogram  # its values are not public; a test reads back what is written
        self._name: str = inner._name
        *bounds, _ = inner._upper_bounds
        *buckets, last = inner._buckets
        #: Add one to the number at this index before the write of an answer, and call `count` after it.
        self.total_cell: Final[tuple[Any, int]] = mapped_cell(last)
        self._bounds: list[float] = bounds
        self._longest: float = bounds[-1]
        self._numbers, self._sum = mapped_cell(inner._sum)
        self._buckets = [mapped_cell(value)[1] for value in buckets]

    def count(self, environ: WSGIEnvironment) -> None:
        """Count the time of a request, from its completion until now."""
        seconds = (time.monotonic_ns() - environ[RECEIVED_NS]) * 1e-9
        numbers = self._numbers
        numbers[self._sum] += seconds
        if seconds <= self._longest:  # else only the last bucket counts it, before the write
            bucket = bisect_left(self._bounds, seconds)  # the first whose bound is not below the time
            numbers[self._buckets[bucket]] += 1.0

    def mean_seconds(self) -> float:
        """Return the mean over all requests of all workers so far; 0 without any, or without files."""
        try:
            families = list(multiprocess.MultiProcessCollector(None).collect())  # type: ignore[no-untyped-call] # untyped
        except (OSError, ValueError):  # the temporary directory was removed, or is being removed
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
    """Correct a histogram that prometheus_client has summed from files; return any other family as it is.

    The library adds the lower buckets to the last one, which holds them already.
    """
    if family.type == "histogram":
        buckets = {float(sample.labels["le"]): sample.value for sample in family.samples if "le" in sample.labels}
        below = max((value for edge, value in buckets.items() if edge < math.inf), default=0.0)  # cumulative
        family.samples = [
            sample._replace(value=sample.value - below) if _counts_all(sample) else sample for sample in family.samples
        ]
    return family


def _counts_all(sample: Sample) -> bool:
    return sample.labels.get("le") == "+Inf" or sample.name.endswith("_count")


def mapped_cell(value: Any) -> tuple[Any, int]:
    """Return the mapped file of a multiprocess value as float64[n], and the index of the value.

    The view stays valid when the file grows: the library maps it again, and both mappings share its pages.
    """
    return memoryview(value._file._m).cast("d"), value._file._positions[value._key] // _WORD

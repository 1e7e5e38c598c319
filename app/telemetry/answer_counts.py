"""Answer counts: the number of answers by route and status, and the time that events and recalls took.

A worker has one AnswerCounts; its connections call `count` for each answer that they are about to write.

Invariants: each request is counted once, whatever answers it (a route, the framework, or the connection). It is counted
before the write, so that no answer that a client has seen is missing, even if the worker is killed or the client
immediately asks another worker for the number. The function that `count` returns counts the time after the write
(app/telemetry/latency_histogram.py). Requests without a path, and paths without a route, count as the route `other`:
the text of a path never becomes a label. The counts are incremented in place, in files of prometheus_client's
multiprocess mode, so none is lost when a worker is killed.

Perf: 0.20 µs before the write of an event's answer. With one table keyed by path and status, whose key must be made and
hashed for each answer, and a call for the latency, it was 0.39 µs (warm, Python 3.11).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final
from wsgiref.types import WSGIEnvironment

from prometheus_client import Counter

from app.telemetry.latency_histogram import LatencyHistogram, mapped_cell

OnWritten = Callable[[WSGIEnvironment], None]
# Where one kind of answer is counted: a file of numbers and the index of the count; the same for the last bucket of its
# latency histogram; and the function that counts its time.
Cells = tuple[Any, int, Any, int, OnWritten | None]

OTHER: Final = "other"
_OK: Final = "200 OK"
#: Statuses whose series exist from a worker's start, for the routes with a latency: rate() ignores the first value of a
#: series. Few, because each series of each worker makes a scrape longer.
EXPECTED: Final = (_OK, "429 Too Many Requests", "500 Internal Server Error", "503 Service Unavailable")
_UNTIMED: Final = (None, 0, None)
_DISCARDED: Final[Cells] = ([0.0], 0, *_UNTIMED)  # for an answer that cannot be counted

log = logging.getLogger("mlsdm.worker")


class AnswerCounts:
    """Counts answers by route and status for one worker."""

    def __init__(
        self, counter: Counter, latencies: Mapping[str, LatencyHistogram], route_of: Callable[[str], str | None]
    ) -> None:
        """`counter` has the labels `route` and `status`; `latencies` are by path.

        `route_of` returns the template of the route that a path has, None if it has none.
        """
        self._counter = counter
        self._latencies = latencies
        self._route_of = route_of
        self._cells: dict[str, dict[str, Cells]] = {}  # by status, then by route
        self._has_failed = False  # an answer could not be counted, which was logged
        for route in latencies:
            for status in EXPECTED:
                self._make_cells(route, status)

    def __len__(self) -> int:
        """Return the number of kinds of answers so far: of pairs of route and status."""
        return sum(len(of_status) for of_status in self._cells.values())

    def count(self, environ: WSGIEnvironment, status: str) -> OnWritten | None:
        """Count an answer that is about to be written.

        `status` has its phrase, as in PEP 3333. Return what to call after the write, None if no time is to be counted.
        Never raises.
        """
        try:
            cells = self._cells[status].get(environ["PATH_INFO"])
        except KeyError:  # the first answer with its status, or a request without a path
            cells = None
        numbers, index, bucket_numbers, last_bucket, on_written = cells or self._find(
            environ.get("PATH_INFO", ""), status
        )
        numbers[index] += 1.0
        if on_written is not None:
            bucket_numbers[last_bucket] += 1.0
        return on_written

    def _find(self, path: str, status: str) -> Cells:
        """Return the cells of an answer that is the first of its kind, or whose path differs from the template of its
        route.

        If they cannot be made, because descriptors or memory have run out, the answer is sent without being counted.
        """
        try:
            route = (self._route_of(path) if path else None) or OTHER  # "" would match the route `/`
            cells = self._cells.get(status, {}).get(route) or self._make_cells(route, status)
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                log.exception("an answer could not be counted, and others may not be; this is said once")
            return _DISCARDED
        return cells if path == route or cells[-1] is None else (*cells[:2], *_UNTIMED)

    def _make_cells(self, route: str, status: str) -> Cells:
        """Make the series of a kind of answer, and return its cells."""
        child: Any = self._counter.labels(route, status[:3])  # the series exists from now on, with 0
        latency = self._latencies.get(route) if status == _OK else None
        timed = _UNTIMED if latency is None else (*latency.total_cell, latency.count)
        cells = self._cells.setdefault(status, {})[route] = (*mapped_cell(child._value), *timed)
        return cells

"""Answer counts: how many were given, of which route and with which status, and how long events and recalls took.

A worker has one, and its connections call `count` for each answer that they are about to write. So a request is counted
once, whoever answered it: a route, the framework, or the connection itself. Before the write, because a client that has
its answer may ask at once, of another worker, how many there were, and the worker may be killed at once: none that a
client knows of may be missing. The time is counted after it, by what `count` returns
(app/telemetry/latency_histogram.py). What was refused before it had a path, and paths without a route, have the route
`other`: what a client writes into a path never becomes a label.

The counts lie in files of prometheus_client's multiprocess mode and are added to in place, as
app/telemetry/latency_histogram.py explains. A worker that is killed has lost none of them.

PERF: 0.20 µs before the write of an event's answer, 0.39 with one table by path and status, whose key has to be made
and hashed for each answer, and a call for the latency (warm, Python 3.11). All that an answer adds to is found at once,
by two strings that know their hashes.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final
from wsgiref.types import WSGIEnvironment

from prometheus_client import Counter

from app.telemetry.latency_histogram import LatencyHistogram, mapped_cell

OnWritten = Callable[[WSGIEnvironment], None]
# Numbers and the index of the count among them; those of a latency's last bucket, and what counts the time.
Place = tuple[Any, int, Any, int, OnWritten | None]

OTHER: Final = "other"
_OK: Final = "200 OK"
#: What the routes with a latency, which carry the load, are counted under from a worker's start: rate() sees nothing of
#: what a series begins with. Few, because a scrape takes longer with each series of each worker.
EXPECTED: Final = (_OK, "429 Too Many Requests", "500 Internal Server Error", "503 Service Unavailable")
_UNTIMED: Final = (None, 0, None)
_NOWHERE: Final[Place] = ([0.0], 0, *_UNTIMED)  # for what cannot be counted

log = logging.getLogger("mlsdm.worker")


class AnswerCounts:
    """Of one worker. `counter` has the labels `route` and `status`, `latencies` are by path; `route_of` returns the
    template of a path's route, None where there is none.
    """

    def __init__(
        self, counter: Counter, latencies: Mapping[str, LatencyHistogram], route_of: Callable[[str], str | None]
    ) -> None:
        self._counter = counter
        self._latencies = latencies
        self._route_of = route_of
        self._places: dict[str, dict[str, Place]] = {}  # by status, then by route, or path that is one
        self._fails = False  # an answer could not be counted, and the log has said so
        for route in latencies:
            for status in EXPECTED:
                self._place(route, status)

    def count(self, environ: WSGIEnvironment, status: str) -> OnWritten | None:
        """Count an answer that is about to be written; returns what to call when it was, if there is a time to count.
        `status` with its phrase, as in PEP 3333. Never raises.
        """
        try:
            place = self._places[status].get(environ["PATH_INFO"])
        except KeyError:  # the first with its status, or refused before it had a path
            place = None
        numbers, at, told, last, on_written = place or self._find(environ.get("PATH_INFO", ""), status)
        numbers[at] += 1.0
        if on_written is not None:
            told[last] += 1.0
        return on_written

    def _find(self, path: str, status: str) -> Place:
        """Return the place of the first answer of its kind, or of a path that is not itself a route's template. Where
        none is to be had, because descriptors or memory have run out, the client gets its answer all the same.
        """
        try:
            route = self._route_of(path) or OTHER
            place = self._places.get(status, {}).get(route) or self._place(route, status)
        except Exception:
            if not self._fails:
                self._fails = True
                log.exception("an answer could not be counted, and others may not be; this is said once")
            return _NOWHERE
        return place if path == route or place[-1] is None else (*place[:2], *_UNTIMED)

    def _place(self, route: str, status: str) -> Place:
        child: Any = self._counter.labels(route, status[:3])  # the series is there from now on, at 0
        latency = self._latencies.get(route) if status == _OK else None
        timed = _UNTIMED if latency is None else (*latency.told, latency.count)
        place = self._places.setdefault(status, {})[route] = (*mapped_cell(child._value), *timed)
        return place

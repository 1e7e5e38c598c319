"""Answers: how many were given, of which route and with which status, and how long events and recalls took.

A worker has one, and its connections call `count` for each answer that they are about to write. So a request is counted
once, whoever answered it: a route, the framework, or the connection itself. Before the write, because a client that has
its answer may ask at once, of another worker, how many there were, and the worker may be killed at once: none that a
client knows of may be missing. The time is counted after it, by what `count` returns (app/latency.py). What was refused
before it had a path, and paths without a route, have the route `other`: what a client writes into a path never becomes
a label.

The counts lie in files of prometheus_client's multiprocess mode and are added to in place, as app/latency.py explains.
A worker that is killed has lost none of them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from wsgiref.types import WSGIEnvironment

from prometheus_client import Counter

from app.latency import Latency, place_of

OnWritten = Callable[[WSGIEnvironment], None]

OTHER: Final = "other"
_OK: Final = "200 OK"


class Answers:
    """Of one worker. `counter` has the labels `route` and `status`, `latencies` are by path; `route_of` returns the
    template of a path's route, None where there is none.
    """

    def __init__(
        self, counter: Counter, latencies: Mapping[str, Latency], route_of: Callable[[str], str | None]
    ) -> None:
        self._counter = counter
        self._latencies = latencies
        self._route_of = route_of
        self._places: dict[tuple[str, str], tuple[Any, int]] = {}  # of a route or a path that is one, and a status

    def count(self, environ: WSGIEnvironment, status: str) -> OnWritten | None:
        """Count an answer that is about to be written; returns what to call when it was, if there is a time to count.
        `status` with its phrase, as in PEP 3333.
        """
        path = environ.get("PATH_INFO", "")
        numbers, at = self._places.get((path, status)) or self._place(path, status)
        numbers[at] += 1.0
        if status == _OK and path in self._latencies:
            latency = self._latencies[path]
            latency.tell()
            return latency.count
        return None

    def _place(self, path: str, status: str) -> tuple[Any, int]:
        route = self._route_of(path) or OTHER
        place = self._places.get((route, status))
        if place is None:
            child: Any = self._counter.labels(route, status[:3])
            place = self._places[route, status] = place_of(child._value)
        return place

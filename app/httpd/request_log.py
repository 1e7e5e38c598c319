"""The log line of a request, at level DEBUG.

Its members are the same for every request: method, `route` (the template, to count lines by; absent without a route),
path, status, bytes, `duration_ms` from the complete request to its finished answer, and the names of the request
(`app.httpd.request_names.log_fields`). Never a header field, a query or a body: these may contain credentials and other
people's text.

A busy server would write more of these lines than a person can read, so the lines of successful requests are sampled
(`observability.logging.sample_ratio`). Requests that failed (status 400 and above) are always logged. Other log lines
are never sampled.

Rejected: sampling every n-th request. If a client alternates between two routes, only one of them would be logged.

Perf: at other levels nothing here is called. The caller tests `WorkerState.logs_requests`, which is computed once.
"""

import random
from collections.abc import Callable
from logging import Logger
from time import monotonic_ns
from typing import Any, Final
from urllib.parse import quote
from wsgiref.types import WSGIEnvironment

from app.httpd.request import RECEIVED_NS
from app.httpd.request_names import log_fields

FAILED_STATUS_MIN: Final = 400  # requests with this status or a higher one are always logged


class RequestLog:
    """Writes the request lines of one worker. May be used from any thread."""

    def __init__(
        self,
        log: Logger,
        ratio: float = 1.0,
        route_of: Callable[[str], str | None] = lambda _path: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`ratio` is the share of successful requests that are logged, from 0 to 1. `route_of(path)` returns the
        template of a path's route, or None. `chance` returns random numbers in [0, 1).
        """
        self._log = log
        self._ratio = ratio
        self._route_of = route_of
        self._chance = chance

    def write(self, environ: WSGIEnvironment, status: int, size: int) -> None:
        """Write the line of a request, unless sampling leaves it out. `size` is the whole answer's, in bytes."""
        if status < FAILED_STATUS_MIN and self._chance() >= self._ratio:
            return
        route = self._route_of(environ["PATH_INFO"])
        members: dict[str, Any] = {
            "method": environ["REQUEST_METHOD"], **({"route": route} if route else {}), "path": quote_path(environ),
            "status": status, "bytes": size,
            "duration_ms": round((monotonic_ns() - environ[RECEIVED_NS]) / 1e6, 3),
        }  # fmt: skip
        self._log.debug("Request", extra=members | log_fields(environ))


def quote_path(environ: WSGIEnvironment) -> str:
    """Return the path, percent-encoded again, so that it contains no control characters."""
    return quote(environ["PATH_INFO"], safe="/!$&'()*+,;=:@~", encoding="latin-1")

"""The line that the log has of a request, at level DEBUG: who asked for what, and what became of it.

Its members are the same for every request: method, `route` (the template, so that lines can be counted by it; absent
where there is none), path, status, bytes, `duration_ms` from the complete request to its finished answer, and the names
that every line about a request has (`app.httpd.request_names.log_fields`). Never a field, a query or a body, which may
hold credentials and other people's text.

A server that is busy writes more of these lines than anybody reads; so of the requests that went well only a share may
have one (`observability.logging.sample_ratio`). What failed (a status from 400 on) has its line always: that is what
somebody who switches DEBUG on is looking for. Chosen is by chance and not every n-th: of a client that alternates
between two routes, every second request is always the same one. Other lines are not this file's, and none of them is
sampled.

PERF: at any other level nothing here is called; the exchange asks one attribute that was computed when the worker began
(`Service.verbose`), as it did before there was anything to sample.
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

FAILED: Final = 400  # the lowest status that has its line always


class RequestLog:
    """Writes the request lines of one worker; from any thread."""

    def __init__(
        self,
        log: Logger,
        ratio: float = 1.0,
        route_of: Callable[[str], str | None] = lambda _path: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`ratio` of the requests that go well have a line; `route_of(path)` returns the template of a path's route;
        `chance` returns numbers in [0, 1).
        """
        self._log = log
        self._ratio = ratio
        self._route_of = route_of
        self._chance = chance

    def write(self, environ: WSGIEnvironment, status: int, size: int) -> None:
        """Write the line of a request that was answered with `status` and `size` bytes, head included, or leave it."""
        if status < FAILED and self._chance() >= self._ratio:
            return
        route = self._route_of(environ["PATH_INFO"])
        members: dict[str, Any] = {
            "method": environ["REQUEST_METHOD"], **({"route": route} if route else {}), "path": quote_path(environ),
            "status": status, "bytes": size,
            "duration_ms": round((monotonic_ns() - environ[RECEIVED_NS]) / 1e6, 3),
        }  # fmt: skip
        self._log.debug("Request", extra=members | log_fields(environ))


def quote_path(environ: WSGIEnvironment) -> str:
    """Return the path for a log line: percent-encoded again, so that it holds no control character."""
    return quote(environ["PATH_INFO"], safe="/!$&'()*+,;=:@~", encoding="latin-1")

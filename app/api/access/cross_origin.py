"""Cross-origin requests: which pages of other origins a browser lets read the answers (Fetch standard, §3.2 CORS).

Owns: the header lines of the origins in `server.cors_origins`. Without such origins this file has no part in a request.

Invariants: every answer to a named origin has them, refusals and errors too; otherwise a page would see a network error
in place of the reason. A preflight is answered before the gate, because a browser sends it without credentials. Its
answer is the same for every path, so it says nothing about the routes. Credentials of the browser (cookies) are never
allowed: a page must be given a key. Other origins get no such line, and their preflights go to the gate.

Perf: a request without the field Origin costs one lookup in a dictionary, and no line when no origin is named.
"""

from collections.abc import Collection
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIEnvironment

_METHODS: Final = "GET, HEAD, POST, PATCH, DELETE"
_REQUEST_FIELDS: Final = (
    "Authorization, X-API-Key, Content-Type, Content-Encoding, Idempotency-Key, Moral-Value, X-Request-ID, "
    "traceparent, tracestate"
)
_ANSWER_FIELDS: Final = (
    "X-Request-ID, RateLimit, RateLimit-Policy, Retry-After, Idempotency-Replayed, WWW-Authenticate, Allow"
)
_MAX_AGE_SECONDS: Final = "7200"  # for which a browser may keep a preflight's answer; Chromium keeps none for longer

Headers = list[tuple[str, str]]


class CrossOrigin:
    """A WSGI application that adds the header lines of named origins to the answers of `application`."""

    def __init__(self, application: Any, origins: Collection[str]) -> None:
        self._application = application
        self._origins = frozenset(origins)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        """Serve one request."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or origin not in self._origins:
            return self._application(environ, start_response)
        if environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
            start_response("204 No Content", _preflight_headers(origin))
            return []

        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            return start_response(status, [*headers, *answer_headers(origin)], exc_info)

        return self._application(environ, start)

    def lines(self, environ: WSGIEnvironment) -> str:
        """Return the header lines, each with its CRLF, for an answer that the server makes itself."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or origin not in self._origins:
            return ""
        return "".join(f"{name}: {value}\r\n" for name, value in answer_headers(origin))


def answer_headers(origin: str) -> Headers:
    """Return the headers of an answer to a named origin."""
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Vary", "Origin"),  # RFC 9110 §12.5.5: the answer depends on it
        ("Access-Control-Expose-Headers", _ANSWER_FIELDS),
    ]


def _preflight_headers(origin: str) -> Headers:
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Vary", "Origin"),
        ("Access-Control-Allow-Methods", _METHODS),
        ("Access-Control-Allow-Headers", _REQUEST_FIELDS),
        ("Access-Control-Max-Age", _MAX_AGE_SECONDS),
    ]

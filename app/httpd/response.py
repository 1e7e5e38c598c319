"""The bytes of an answer: status line, header lines, default headers, problem documents (RFC 9457).

Invariants: a header value or status with a line break raises ValueError, because the text behind the break would be
read as another header, or as a second answer (RFC 9110 §5.5). The fields in `_SERVER_FIELDS` come from this package
alone.

The default headers tell a browser that an answer is data: do not guess another type, store, frame or load anything, and
send no referrer. On TLS they also ask for TLS next time. There is no Server field: it would help only an attacker.

Perf: status lines and header lines are cached, because an application uses few different ones; a cached line has
been checked. The default headers are one finished string, made when the worker starts.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Protocol

from app.httpd.problem_document import problem_document
from app.httpd.refusal import Refusal

# What an answer says about the connection (RFC 9112 §9.3), as its header line.
PERSIST: Final = ""  # HTTP/1.1 stays open by default
KEEP_ALIVE: Final = "Connection: keep-alive\r\n"  # an HTTP/1.0 client asked for it
CLOSE: Final = "Connection: close\r\n"

# RFC 9110 §8.6 and §6.4.1: answers with these statuses have neither a length nor content.
BODILESS: Final = ("204", "304")

# The phrases of RFC 9110 §15 where Python's table, which depends on its version, has those of older standards. The
# title of a problem document is the phrase, so a status has one title, whoever refuses.
_PHRASES: Final = {413: "Content Too Large", 414: "URI Too Long"}

UNEXPECTED: Final = Refusal(500, "internal_error", "The server met an error it did not expect; its log says more.")
# Memory may run out after an event was decided, while its answer is made. So the outcome is unknown.
OUT_OF_MEMORY: Final = Refusal(
    503, "out_of_memory",
    "The worker had no memory left for this request. Whether it was carried out is not known: only with an "
    "Idempotency-Key is an event safe to send again.",
    retry_after=1,
)  # fmt: skip

DEFAULT_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),  # RFC 9111 §5.2.2.5: no cache may keep memories and decisions
    ("X-Frame-Options", "DENY"),  # for browsers older than frame-ancestors
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
# A year. RFC 6797 §7.2: never over plain HTTP. Without includeSubDomains, which is the operator's decision.
TLS_HEADERS: Final = (("Strict-Transport-Security", "max-age=31536000"),)

# Fields that an application cannot set: framing, persistence, and what names the request.
_SERVER_FIELDS: Final = frozenset(
    {
        "connection", "content-length", "date", "keep-alive", "server", "traceparent", "transfer-encoding", "upgrade",
        "x-request-id",
    }
)  # fmt: skip
_BREAK = re.compile(r"[\r\n\0]")


class DefaultHeaders:
    """The header lines that every answer of one worker carries."""

    __slots__ = ("lines", "text")

    def __init__(self, own: Iterable[tuple[str, str]] = (), *, secure: bool) -> None:
        """`own` are the application's, which replace defaults of the same name; `secure` means TLS.

        Raises ValueError when a field of `own` holds a line break.
        """
        #: line by name in lower case
        self.lines: dict[str, str] = {}
        for name, value in (*DEFAULT_HEADERS, *(TLS_HEADERS if secure else ()), *own):
            line, key = header_line(name, value)
            self.lines[key] = line
        #: all lines
        self.text = "".join(self.lines.values())

    def without(self, keys: Iterable[str]) -> str:
        """Return all lines but those with the names `keys`, which are in lower case.

        An answer that sets such a field itself must not carry the default too: of two Content-Security-Policy fields
        both hold, of two X-Frame-Options neither.
        """
        left_out = frozenset(keys)
        return "".join(line for key, line in self.lines.items() if key not in left_out)


class CommonLines(Protocol):
    """The lines that all answers of a worker share (`app.httpd.worker_state.WorkerState`)."""

    date: str
    default_headers: DefaultHeaders


@lru_cache(maxsize=64)
def status_line(status: str) -> str:
    """Return the first line of an answer. Raises ValueError when `status` is not a final status (200 and above) or
    holds a line break.
    """
    if not (status[:3].isdigit() and status[:3] >= "200" and status[3:4] in {" ", ""}) or _BREAK.search(status):
        raise ValueError(f"the application answered with the status {status!r}")
    return f"HTTP/1.1 {status}\r\n"


@lru_cache(maxsize=512)
def header_line(name: str, value: str) -> tuple[str, str]:
    """Return a header line and its name in lower case; the line is empty for a field that only the server sets.

    Raises ValueError when `name` or `value` holds a line break or NUL.
    """
    if _BREAK.search(name) or _BREAK.search(value):
        raise ValueError(f"the header {name!r} of the answer holds a line break or NUL")
    key = name.lower()
    return "" if key in _SERVER_FIELDS else f"{name}: {value}\r\n", key


def problem_answer(refusal: Refusal, common: CommonLines, persistence: str, names: str, *, head: bool = False) -> bytes:
    """Return a whole answer that carries the problem document of `refusal`.

    `names` are the lines that name the request; `head` leaves the body out, as HEAD asks.
    """
    status = status_of(refusal)
    body = problem_document(status, refusal.code, refusal.detail)
    retry = f"Retry-After: {refusal.retry_after}\r\n" if refusal.retry_after else ""
    lines = (
        f"HTTP/1.1 {status}\r\n{common.date}{persistence}{names}{retry}{refusal.lines}"
        f"Content-Type: application/problem+json\r\n{common.default_headers.text}Content-Length: {len(body)}\r\n\r\n"
    )
    return lines.encode("latin-1") + (b"" if head else body)


def status_of(refusal: Refusal) -> str:
    """Return the status of a refusal with its phrase."""
    return f"{refusal.status} {_PHRASES.get(refusal.status) or HTTPStatus(refusal.status).phrase}"


def refusal_of(error: BaseException) -> Refusal:
    """Return the refusal that answers a request whose handling raised `error`."""
    return OUT_OF_MEMORY if isinstance(error, MemoryError) else UNEXPECTED

"""The exchange: one call of the application, and the bytes of its answer.

`Exchange.answer` is given a finished environ and returns everything that goes out on the wire as one bytes object. It
never raises: what the application raises is logged with its traceback and answered with a 500 problem document (RFC
9457) that tells the client nothing about it. It knows no socket and no parser, so the same call runs inline on the
loop or on a pool thread.

Invariants. Framing is ours alone: Content-Length, Transfer-Encoding, Connection, Keep-Alive, Upgrade and Date from
the application are dropped and written here, so an application cannot desynchronise a connection. (PEP 3333 forbids
it the hop-by-hop ones anyway; to HEAD its Content-Length is passed on, because there is no body to measure.) A header
value with a line break is refused, whoever made it. No Server field: the version of a server helps nobody but an
attacker.

One Exchange belongs to one connection and serves its requests one after another: its start_response is a bound
method, which saves the closure that other servers make for each request. Streaming was rejected: every answer of this
service is bounded (the largest is one page of the log), and one write per answer is half the system calls.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from wsgiref.types import WSGIEnvironment

from app.framing import Refusal

if TYPE_CHECKING:
    from app.service import Service

# The three ways to speak of persistence (RFC 9112 §9.3), as the line that says it.
PERSIST: Final = ""  # HTTP/1.1 stays open without a word
KEEP_ALIVE: Final = "Connection: keep-alive\r\n"  # HTTP/1.0 asked for it
CLOSE: Final = "Connection: close\r\n"

UNEXPECTED: Final = Refusal(500, "internal_error", "The server met an error it did not expect; its log says more.")

_OURS: Final = frozenset({"connection", "content-length", "date", "keep-alive", "transfer-encoding", "upgrade"})

# RFC 9110 §8.6 and §6.4.1: neither a length nor content.
_BODILESS: Final = ("204", "304")

_BREAK = re.compile(r"[\r\n\0]")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class Exchange:
    """The application's side of one connection."""

    __slots__ = ("_headers", "_status", "_written", "persistence")

    def __init__(self) -> None:
        self.persistence = PERSIST  # what the latest answer said; CLOSE means that it is the last one
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._written: list[bytes] = []

    def answer(self, service: "Service", environ: WSGIEnvironment, persistence: str) -> bytes:
        """Call the application and return its answer as bytes; never raises.

        `persistence` is what the request asked for: PERSIST, KEEP_ALIVE or CLOSE. A service that drains meanwhile
        makes it CLOSE.
        """
        self._status = ""
        try:
            chunks = service.application(environ, self._start_response)
            body = (chunks[0] if len(chunks) == 1 else b"".join(chunks)) if type(chunks) is list else _gather(chunks)
            if self._written:
                body = b"".join(self._written) + body
                self._written.clear()
            self.persistence = CLOSE if service.draining else persistence
            return self._serialise(environ["REQUEST_METHOD"], body, service.date)
        except (Exception, SystemExit):  # whatever an application raises, its client gets an answer
            self._written.clear()
            self.persistence = CLOSE if service.draining else persistence
            method = environ["REQUEST_METHOD"]
            service.log.exception("Error handling request %s %s", method, environ["PATH_INFO"])
            return problem(UNEXPECTED, service.date, self.persistence, head=method == "HEAD")

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None) -> Any:
        """PEP 3333: remember status and headers. Nothing is on the wire yet, so a second call (with exc_info) may
        replace them.
        """
        if self._status and exc_info is None:
            raise AssertionError("start_response was called twice without exc_info (PEP 3333).")
        self._status = status
        self._headers = headers
        return self._written.append

    def _serialise(self, method: str, body: bytes, date: str) -> bytes:
        head = f"{_status_line(self._status)}{date}{self.persistence}"
        for name, value in self._headers:
            head += _header_line(name, value)
        if self._status.startswith(_BODILESS):
            return (head + "\r\n").encode("latin-1")
        if method == "HEAD":
            return f"{head}Content-Length: {self._announced(len(body))}\r\n\r\n".encode("latin-1")
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body

    def _announced(self, size: int) -> int:
        """Return the length that GET would have had, if the application says it; `size` otherwise."""
        return next((int(value) for name, value in self._headers if name.lower() == "content-length"), size)


# PERF: both are cached because a service answers with few different lines; with the checks inside, the second answer
# pays for none.


@lru_cache(maxsize=64)
def _status_line(status: str) -> str:
    """Return the first line of an answer. Raises ValueError when `status` is not final or would break the line."""
    if not (status[:3].isdigit() and status[:3] >= "200" and status[3:4] in {" ", ""}) or _BREAK.search(status):
        raise ValueError(f"the application answered with the status {status!r}")
    return f"HTTP/1.1 {status}\r\n"


@lru_cache(maxsize=512)
def _header_line(name: str, value: str) -> str:
    """Return one line of the head, or nothing for a header that is ours. Raises ValueError when it would be more than
    one line.

    A line break inside would start a header, or a second answer, of somebody else's choice (RFC 9110 §5.5).
    """
    if _BREAK.search(name) or _BREAK.search(value):
        raise ValueError(f"the header {name!r} of the answer holds a line break or NUL")
    return "" if name.lower() in _OURS else f"{name}: {value}\r\n"


def _gather(chunks: Iterable[bytes]) -> bytes:
    """Drain any other iterable and close it, as PEP 3333 asks, whatever happens in between."""
    try:
        return b"".join(chunks)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


def problem(refusal: Refusal, date: str, persistence: str, *, head: bool = False) -> bytes:
    """Return a whole answer that carries a problem document (RFC 9457); `head` leaves the body out, as HEAD asks."""
    status, title = refusal.status, HTTPStatus(refusal.status).phrase
    document = {"type": "about:blank", "title": title, "status": status, "code": refusal.code, "detail": refusal.detail}
    body = json.dumps(document, ensure_ascii=False).encode()
    retry = f"Retry-After: {refusal.retry_after}\r\n" if refusal.retry_after else ""
    lines = (
        f"HTTP/1.1 {status} {title}\r\n{date}{persistence}{retry}"
        f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return lines.encode("latin-1") + (b"" if head else body)

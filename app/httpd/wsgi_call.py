"""The exchange: one call of the application, and the bytes of its answer.

`WsgiCall.answer` is given a finished environ and returns everything that goes out on the wire as one bytes object. It
never raises: what the application raises is logged with its traceback and answered with a 500 problem document (RFC
9457) that tells the client nothing about it, or with a 503 when memory had run out, which may pass. It knows no socket
and no parser, so the same call runs inline on the loop or on a pool thread.

Invariants. Framing is ours alone: Content-Length, Transfer-Encoding, Connection, Keep-Alive, Upgrade and Date from
the application are dropped and written here, so an application cannot desynchronise a connection. (PEP 3333 forbids
it the hop-by-hop ones anyway; to HEAD its Content-Length is passed on, because there is no body to measure.) So are the
names of the request (`app.httpd.request_names`), and Server, which this service does not say. A header value with a
line break is refused, whoever made it. No name stands twice where a standing header (`app.httpd.response`) and the
application's own meet. Lines that the application itself has made of numbers and constants it may put into the environ
(`app.httpd.request.HEADER_LINES`).

What is logged about a request that failed is its method, path and names: never a field, a query or a body. At level
DEBUG it has its line (`app.httpd.request_log`); nothing is computed for that otherwise.

One WsgiCall belongs to one connection and serves its requests one after another: its start_response is a bound
method, which saves the closure that other servers make for each request. Streaming was rejected: every answer of this
service is bounded (the largest is one page of the log), and one write per answer is half the system calls. What takes
long to make is made in pieces all the same, a turn of the loop for each (`begin`, `proceed`), and sent when it is
whole: a page of the log is 4.5 ms of Python, during which nobody else would be served.
"""

import re
from collections.abc import Generator, Iterable
from functools import lru_cache
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from wsgiref.types import WSGIEnvironment

from app.httpd.framing import Refusal
from app.httpd.problem_document import problem_document
from app.httpd.request import HEADER_LINES
from app.httpd.request_log import quote_path
from app.httpd.request_names import log_fields

if TYPE_CHECKING:
    from app.httpd.worker_state import WorkerState

# The three ways to speak of persistence (RFC 9112 §9.3), as the line that says it.
PERSIST: Final = ""  # HTTP/1.1 stays open without a word
KEEP_ALIVE: Final = "Connection: keep-alive\r\n"  # HTTP/1.0 asked for it
CLOSE: Final = "Connection: close\r\n"

UNEXPECTED: Final = Refusal(500, "internal_error", "The server met an error it did not expect; its log says more.")
# Memory may have run out after an event was decided, when only its answer was to be made: nobody knows.
OUT_OF_MEMORY: Final = Refusal(
    503, "out_of_memory",
    "The worker had no memory left for this request. Whether it was carried out is not known: only with an "
    "Idempotency-Key is an event safe to send again.",
    retry_after=1,
)  # fmt: skip

_OURS: Final = frozenset(
    {
        "connection", "content-length", "date", "keep-alive", "server", "traceparent", "transfer-encoding", "upgrade",
        "x-request-id",
    }
)  # fmt: skip

# RFC 9110 §8.6 and §6.4.1: neither a length nor content.
_BODILESS: Final = ("204", "304")

_BREAK = re.compile(r"[\r\n\0]")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class WsgiCall:
    """The application's side of one connection."""

    __slots__ = ("_asked", "_headers", "_pieces", "_written", "followed", "persistence", "status")

    def __init__(self) -> None:
        self.persistence = PERSIST  # what the latest answer said; CLOSE means that it is the last one
        self.followed = False  # a request that was received too waits behind this one; its connection says so
        self.status = ""  # of the latest answer, with its phrase
        self._headers: list[tuple[str, str]] = []
        self._written: list[bytes] = []  # through write() of PEP 3333, and the pieces made so far
        self._pieces: Generator[bytes, None, None] | None = None
        self._asked: tuple[WorkerState, WSGIEnvironment, str]  # whose pieces these are

    def answer(self, service: "WorkerState", environ: WSGIEnvironment, persistence: str) -> bytes:
        """Call the application and return its answer as bytes; never raises.

        `persistence` is what the request asked for: PERSIST, KEEP_ALIVE or CLOSE. A service that drains meanwhile
        makes it CLOSE, unless the request is `followed` by another: that one is to be answered too.
        """
        answer = self.begin(service, environ, persistence)
        while answer is None:
            answer = self.proceed()
        return answer

    def begin(self, service: "WorkerState", environ: WSGIEnvironment, persistence: str) -> bytes | None:
        """Like `answer`, but None when the application makes its answer in pieces: then `proceed` makes the next."""
        self.status = ""
        try:
            chunks = service.application(environ, self._start_response)
            if type(chunks) is list:
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            elif isinstance(chunks, Generator):
                self._pieces, self._asked = chunks, (service, environ, persistence)
                return None
            else:
                body = _gather(chunks)
            return self._complete(service, environ, persistence, body)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises, its client gets an answer
            return self._failed(service, environ, persistence, error)

    def proceed(self) -> bytes | None:
        """Have one more piece made; returns the answer when that was the last."""
        assert self._pieces is not None
        try:
            self._written.append(next(self._pieces))
            return None
        except StopIteration:
            answer = self._finished()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as in `begin`
            answer = self._failed(*self._asked, error)
        self._pieces = None
        del self._asked
        return answer

    def _finished(self) -> bytes:
        """Return the answer that all pieces make."""
        try:
            return self._complete(*self._asked, b"")
        except Exception as error:  # noqa: BLE001 - it cannot be sent as it is
            return self._failed(*self._asked, error)

    def _complete(self, service: "WorkerState", environ: WSGIEnvironment, persistence: str, body: bytes) -> bytes:
        if self._written:
            body = b"".join(self._written) + body
            self._written.clear()
        self.persistence = CLOSE if service.draining and not self.followed else persistence
        answer = self._serialise(service, environ, body)
        if service.verbose:
            service.request_log.write(environ, int(self.status[:3]), len(answer))
        return answer

    def _failed(
        self, service: "WorkerState", environ: WSGIEnvironment, persistence: str, error: BaseException
    ) -> bytes:
        """Log what was raised, and return the 500, or the 503 where memory had run out."""
        self._written.clear()
        self.persistence = CLOSE if service.draining and not self.followed else persistence
        method = environ["REQUEST_METHOD"]
        service.log.exception("Error handling request %s %s", method, quote_path(environ), extra=log_fields(environ))
        error.__traceback__ = None  # frames that it passed have names for it: a circle around the request with its body
        said = answer_to(error)
        service.refused(said.code, environ, said.detail, said.status)
        self.status = status_of(said)
        echo = service.request_names.response_lines(environ)
        answer = problem(said, service, self.persistence, echo, head=method == "HEAD")
        if service.verbose:
            service.request_log.write(environ, said.status, len(answer))
        return answer

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None) -> Any:
        """PEP 3333: remember status and headers. Nothing is on the wire yet, so a second call (with exc_info) may
        replace them.
        """
        if self.status and exc_info is None:
            raise AssertionError("start_response was called twice without exc_info (PEP 3333).")
        self.status = status
        self._headers = headers
        return self._written.append

    def _serialise(self, service: "WorkerState", environ: WSGIEnvironment, body: bytes) -> bytes:
        standing = service.standing
        names = service.request_names.response_lines(environ)
        head = f"{_status_line(self.status)}{service.date}{self.persistence}{names}"
        replaced = []
        for name, value in self._headers:
            line, key = header_line(name, value)
            head += line
            if key in standing.lines:
                replaced.append(key)
        head += standing.without(replaced) if replaced else standing.text
        lines: str = environ.get(HEADER_LINES, "")
        head += lines
        if self.status.startswith(_BODILESS):
            return (head + "\r\n").encode("latin-1")
        if environ["REQUEST_METHOD"] == "HEAD":
            return f"{head}{self._announced(len(body))}\r\n".encode("latin-1")
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body

    def _announced(self, size: int) -> str:
        """Return the line with the length that GET would have had, if the application says it, or made `size` bytes of
        content all the same. Else there is none: RFC 9110 §8.6 allows to leave it out, and no other number.
        """
        said = next((int(value) for name, value in self._headers if name.lower() == "content-length"), size or None)
        return "" if said is None else f"Content-Length: {said}\r\n"


def answer_to(error: BaseException) -> Refusal:
    """Return what a client is told of an error that nobody expected."""
    return OUT_OF_MEMORY if isinstance(error, MemoryError) else UNEXPECTED


# PERF: both are cached because a service answers with few different lines; with the checks inside, the second answer
# pays for none.


@lru_cache(maxsize=64)
def _status_line(status: str) -> str:
    """Return the first line of an answer. Raises ValueError when `status` is not final or would break the line."""
    if not (status[:3].isdigit() and status[:3] >= "200" and status[3:4] in {" ", ""}) or _BREAK.search(status):
        raise ValueError(f"the application answered with the status {status!r}")
    return f"HTTP/1.1 {status}\r\n"


@lru_cache(maxsize=512)
def header_line(name: str, value: str) -> tuple[str, str]:
    """Return one line of the head, or nothing for a header that is ours, and its name in lower case. Raises ValueError
    when it would be more than one line.

    A line break inside would start a header, or a second answer, of somebody else's choice (RFC 9110 §5.5).
    """
    if _BREAK.search(name) or _BREAK.search(value):
        raise ValueError(f"the header {name!r} of the answer holds a line break or NUL")
    key = name.lower()
    return "" if key in _OURS else f"{name}: {value}\r\n", key


def _gather(chunks: Iterable[bytes]) -> bytes:
    """Drain any other iterable and close it, as PEP 3333 asks, whatever happens in between."""
    try:
        return b"".join(chunks)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


def problem(refusal: Refusal, service: "WorkerState", persistence: str, echo: str, *, head: bool = False) -> bytes:
    """Return a whole answer that carries a problem document (RFC 9457).

    `echo` are the lines that name the request; `head` leaves the body out, as HEAD asks.
    """
    status, title = refusal.status, HTTPStatus(refusal.status).phrase
    body = problem_document(f"{status} {title}", refusal.code, refusal.detail)
    retry = f"Retry-After: {refusal.retry_after}\r\n" if refusal.retry_after else ""
    lines = (
        f"HTTP/1.1 {status} {title}\r\n{service.date}{persistence}{echo}{retry}"
        f"Content-Type: application/problem+json\r\n{service.standing.text}Content-Length: {len(body)}\r\n\r\n"
    )
    return lines.encode("latin-1") + (b"" if head else body)


def status_of(refusal: Refusal) -> str:
    """Return the status of a refusal with its phrase."""
    return f"{refusal.status} {HTTPStatus(refusal.status).phrase}"

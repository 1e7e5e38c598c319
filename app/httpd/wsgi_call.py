"""One call of the application, from a complete environ to the bytes of its answer.

Invariants:
- An exception of the application never leaves `WsgiCall`. It is logged with its traceback, and the client gets a
  problem document with the status 500 (503 when memory ran out) that says nothing about the error.
- Only the server frames answers: header fields for framing that the application sets are dropped
  (`app.httpd.response`), so it cannot desynchronise a connection. The Content-Length of a HEAD is kept: there is no
  body to measure.
- The log lines of a request hold its method, path and names; never a header field, a query or a body.

Threading: uses no socket and no parser, so the same call runs on the loop or on a thread of the pool.

Rejected: streaming. Every answer is bounded, and one write per answer is half the system calls.

Perf: start_response is a bound method of the connection's `WsgiCall`; other servers make a closure for each request.
"""

from asyncio import CancelledError, Future
from collections.abc import Callable, Container, Generator, Sized
from logging import Logger
from types import TracebackType
from typing import Protocol
from wsgiref.types import WSGIEnvironment

from app.httpd.answer_compression import (
    COMPRESSED_SIZE_MAX,
    COMPRESSED_SIZE_MIN,
    ENCODED,
    VARY,
    WAITING_COUNT_MAX,
    accepts_gzip,
    compress,
)
from app.httpd.application import Chunks, WsgiApplication
from app.httpd.request import HEADER_LINES, REFUSAL_LINES
from app.httpd.request_log import RequestLog, quote_path
from app.httpd.request_names import RequestNames, log_fields
from app.httpd.response import (
    BODILESS,
    CLOSE,
    PERSIST,
    CommonLines,
    header_line,
    problem_answer,
    refusal_of,
    status_line,
    status_of,
)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class CallingWorker(CommonLines, Protocol):
    """What a call needs of its worker (`app.httpd.worker_state.WorkerState`)."""

    application: WsgiApplication
    draining: bool
    log: Logger
    logs_requests: bool
    request_log: RequestLog
    request_names: RequestNames

    @property
    def compressed(self) -> Container[str]:
        """The paths whose large answers may be compressed."""

    @property
    def long_answers(self) -> Sized:
        """The connections whose answers are made in pieces."""

    def report_refusal(self, code: str, environ: WSGIEnvironment, detail: str, status: int = 0) -> None:
        """Log a refusal and tell the application about it."""


class WsgiCall:
    """The calls of one connection, one at a time."""

    __slots__ = (
        "_chunks", "_headers", "_pieces", "_request", "deferred", "is_compressing", "is_followed", "persistence",
        "status",
    )  # fmt: skip

    def __init__(self) -> None:
        self.persistence = PERSIST  # what the latest answer said; CLOSE means that it is the last one
        self.is_followed = False  # another request of the connection waits; set by the connection
        self.status = ""  # of the latest answer, with its phrase
        self._headers: list[tuple[str, str]] = []
        self._chunks: list[bytes] = []  # from write() of PEP 3333, and the pieces made so far
        self._pieces: Generator[bytes, None, None] | None = None
        self.is_compressing = False  # the answer is complete, and the pieces are those of its compressed form
        self.deferred: Future[Chunks] | None = None  # the answer comes later: see `finish_deferred`
        self._request: tuple[CallingWorker, WSGIEnvironment, str]  # the request that is answered in pieces or deferred

    def answer(self, worker: CallingWorker, environ: WSGIEnvironment, persistence: str) -> bytes:
        """Call the application and return its answer; never raises.

        `persistence` is what the request asked for: PERSIST, KEEP_ALIVE or CLOSE. While the worker drains, the answer
        says CLOSE, unless the request is followed by another, which is to be answered too.
        """
        answer = self.begin(worker, environ, persistence)
        if self.deferred is not None:
            self.deferred.cancel()
            self.deferred = None
            error = TypeError("the application has deferred its answer in a call that was not made on the loop")
            return self._fail(worker, environ, persistence, error)
        while answer is None:
            answer = self.make_piece()
        return answer

    def begin(self, worker: CallingWorker, environ: WSGIEnvironment, persistence: str) -> bytes | None:
        """Like `answer`, but return None when the answer is not complete.

        Then it is made in pieces (see `make_piece`), by the application or because it is compressed; or it is
        `deferred`.
        """
        self.status = ""
        try:
            chunks = worker.application(environ, self._start_response)
            if type(chunks) is list:
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            elif isinstance(chunks, Generator):
                self._pieces, self._request = chunks, (worker, environ, persistence)
                return None
            elif isinstance(chunks, Future):
                self.deferred, self._request = chunks, (worker, environ, persistence)
                self.status = ""
                return None
            else:
                body = _join(chunks)
            return self._complete(worker, environ, persistence, body)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the client gets an answer, whatever is raised
            return self._fail(worker, environ, persistence, error)

    def make_piece(self) -> bytes | None:
        """Take one more piece from the application. Returns the whole answer when that piece was the last."""
        assert self._pieces is not None
        request = self._request
        try:
            self._chunks.append(next(self._pieces))
            return None
        except StopIteration:
            self._pieces = None
            del self._request
            return self._complete_pieces(*request)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as in `begin`
            self._pieces = None
            del self._request
            return self._fail(*request, error)

    def finish_deferred(self, *, is_wanted: bool) -> bytes | None:
        """Return the answer of a deferred call whose future is done; empty unless it `is_wanted`.

        None when the answer is now compressed, in pieces.
        """
        assert self.deferred is not None
        deferred, self.deferred = self.deferred, None
        request = self._request
        del self._request
        try:
            chunks = deferred.result()
            if is_wanted:
                body = chunks[0] if type(chunks) is list and len(chunks) == 1 else _join(chunks)
                return self._complete(*request, body)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - as in `begin`
            if is_wanted or not deferred.cancelled():
                return self._fail(*request, error)
        return b""

    def _complete_pieces(self, worker: CallingWorker, environ: WSGIEnvironment, persistence: str) -> bytes | None:
        was_compressed = self.is_compressing
        if was_compressed:
            environ[HEADER_LINES] = environ.get(HEADER_LINES, "") + ENCODED
        try:
            answer = self._complete(worker, environ, persistence, b"")
            if was_compressed:
                self.is_compressing = False
            return answer
        except Exception as error:  # noqa: BLE001 - an invalid status or header cannot be sent
            return self._fail(worker, environ, persistence, error)

    def _complete(self, worker: CallingWorker, environ: WSGIEnvironment, persistence: str, body: bytes) -> bytes | None:
        if self._chunks:
            body = b"".join(self._chunks) + body
            self._chunks.clear()
        if len(body) >= COMPRESSED_SIZE_MIN and not self.is_compressing and environ["PATH_INFO"] in worker.compressed:
            if self._must_compress(worker, environ, body):
                self.is_compressing = True
                self._pieces, self._request = compress(body), (worker, environ, persistence)
                return None
            if environ["REQUEST_METHOD"] != "HEAD":  # its lines: `_lines_of_head`
                environ[HEADER_LINES] = environ.get(HEADER_LINES, "") + VARY
        self.persistence = CLOSE if worker.draining and not self.is_followed else persistence
        answer = self._serialise(worker, environ, body)
        if worker.logs_requests:
            worker.request_log.write(environ, int(self.status[:3]), len(answer))
        return answer

    def _must_compress(self, worker: CallingWorker, environ: WSGIEnvironment, body: bytes) -> bool:
        """Return whether to compress a large answer of a path where that is allowed."""
        return (
            len(body) <= COMPRESSED_SIZE_MAX
            and len(worker.long_answers) < WAITING_COUNT_MAX
            and environ["REQUEST_METHOD"] != "HEAD"
            and self._is_compressible(environ)
        )

    def _is_compressible(self, environ: WSGIEnvironment) -> bool:
        """Return whether the client accepts gzip, and the application has set no coding of its own."""
        if not accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING", "")) or self.status.startswith(BODILESS):
            return False
        return all(name.lower() != "content-encoding" for name, _ in self._headers)

    def _fail(self, worker: CallingWorker, environ: WSGIEnvironment, persistence: str, error: BaseException) -> bytes:
        """Log `error`, and return the answer 500, or 503 when memory ran out."""
        self._chunks.clear()
        self.is_compressing = False
        self.persistence = CLOSE if worker.draining and not self.is_followed else persistence
        method = environ["REQUEST_METHOD"]
        worker.log.error(
            "Error handling request %s %s", method, quote_path(environ), exc_info=error, extra=log_fields(environ)
        )
        # The frames of a traceback hold the error in their variables. This reference cycle would keep the request and
        # its body in memory until the garbage collector runs.
        error.__traceback__ = None
        refusal = refusal_of(error)
        worker.report_refusal(refusal.code, environ, refusal.detail, refusal.status)
        self.status = status_of(refusal)
        names = worker.request_names.response_lines(environ) + environ.get(REFUSAL_LINES, "")
        answer = problem_answer(refusal, worker, self.persistence, names, head=method == "HEAD")
        if worker.logs_requests:
            worker.request_log.write(environ, refusal.status, len(answer))
        return answer

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """PEP 3333: remember status and headers. Nothing is on the wire yet, so a second call (with exc_info) may
        replace them.
        """
        if self.status and exc_info is None:
            raise AssertionError("start_response was called twice without exc_info (PEP 3333).")
        self.status = status
        self._headers = headers
        return self._chunks.append

    def _serialise(self, worker: CallingWorker, environ: WSGIEnvironment, body: bytes) -> bytes:
        defaults = worker.default_headers
        names = worker.request_names.response_lines(environ)
        head = f"{status_line(self.status)}{worker.date}{self.persistence}{names}"
        replaced = []
        for name, value in self._headers:
            line, key = header_line(name, value)
            head += line
            if key in defaults.lines:
                replaced.append(key)
        head += defaults.without(replaced) if replaced else defaults.text
        lines: str = environ.get(HEADER_LINES, "")
        head += lines
        if self.status.startswith(BODILESS):
            return (head + "\r\n").encode("latin-1")
        if environ["REQUEST_METHOD"] == "HEAD":
            return (head + self._lines_of_head(worker, environ, len(body)) + "\r\n").encode("latin-1")
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body

    def _lines_of_head(self, worker: CallingWorker, environ: WSGIEnvironment, size: int) -> str:
        """Return the lines on coding and length of an answer to HEAD; GET would have had `size` bytes, if not 0."""
        if environ["PATH_INFO"] not in worker.compressed:
            return self._length_line(size)
        if size >= COMPRESSED_SIZE_MIN and self._is_compressible(environ):
            return ENCODED  # the length would be known only after compressing
        return VARY + self._length_line(size)

    def _length_line(self, size: int) -> str:
        """Return the line with the length that the answer to GET would have had; empty when that is unknown.

        It is known when the application sets it, or has made `size` bytes of content although HEAD needs none. RFC
        9110 §8.6 allows an answer without the field, but no other number in it.
        """
        given = next((int(value) for name, value in self._headers if name.lower() == "content-length"), size or None)
        return "" if given is None else f"Content-Length: {given}\r\n"


def _join(chunks: Chunks) -> bytes:
    """Join the chunks of any iterable, then close it, even after an exception (PEP 3333)."""
    try:
        return b"".join(chunks)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()

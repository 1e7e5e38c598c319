"""One call of an application and the bytes of its answer."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from app.httpd.request import RECEIVED_NS, REQUEST_ID, TRACE
from app.httpd.request_names import TraceContext
from app.httpd.response import CLOSE, KEEP_ALIVE, PERSIST
from app.httpd.worker_state import WorkerState
from app.httpd.wsgi_call import WsgiCall

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


NAMES = {REQUEST_ID: "r-1", "REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "7"}


def worker_of(application: Any, scheme: str = "http") -> WorkerState:
    loop = asyncio.new_event_loop()
    worker = WorkerState(application, loop, logging.getLogger("test.wsgi_call"), scheme=scheme)
    loop.close()
    return worker


def whole(worker: WorkerState, persistence: str = PERSIST, **environ: Any) -> bytes:
    """Return an answer as it goes out."""
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", RECEIVED_NS: time.monotonic_ns(), **NAMES, **environ}
    return WsgiCall().answer(worker, request, persistence)


def answer(
    application: Application, method: str = "GET", persistence: str = PERSIST, *, draining: bool = False
) -> bytes:
    """Return the answer of `application` without the lines that every answer carries."""
    worker = worker_of(application)
    worker.draining = draining
    got = whole(worker, persistence, REQUEST_METHOD=method)
    for line in (worker.date, worker.default_headers.text, "X-Request-ID: r-1\r\n"):
        assert got.count(line.encode()) == 1
        got = got.replace(line.encode(), b"")
    return got


def fixed(status: str, headers: list[tuple[str, str]], body: Any) -> Application:
    """Return an application that always answers the same."""

    def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response(status, headers)
        return body

    return application


def test_answer_has_a_counted_length() -> None:
    """An answer is a status line, the application's headers in their order, and a length that is counted, not
    believed.
    """
    application = fixed("200 OK", [("X-A", "1"), ("Content-Length", "99"), ("x-b", "2")], [b"a", b"bc"])

    assert answer(application) == b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-b: 2\r\nContent-Length: 3\r\n\r\nabc"


def test_framing_headers_are_dropped() -> None:
    """Headers of the application that could desynchronise a connection, or that name the request, are dropped."""
    names = [
        "Transfer-Encoding",
        "connection",
        "Keep-Alive",
        "Upgrade",
        "Date",
        "Server",
        "x-request-id",
        "TraceParent",
    ]

    assert (
        answer(fixed("200 OK", [(name, "x") for name in names], [])) == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    )


@pytest.mark.parametrize("persistence", [KEEP_ALIVE, CLOSE])
def test_persistence_is_announced(persistence: str) -> None:
    """The answer to a keep-alive of HTTP/1.0, or the last answer, carries a Connection field."""
    assert persistence.encode() in answer(fixed("200 OK", [], [b"x"]), persistence=persistence)


def test_draining_closes_the_connection() -> None:
    """Every answer of a draining worker says close, errors included."""
    assert CLOSE.encode() in answer(fixed("200 OK", [], [b"x"]), draining=True)
    assert CLOSE.encode() in answer(fixed("200 OK", [], ["text"]), draining=True)


def test_head_has_the_length_of_get() -> None:
    """HEAD gets the length that the application announced or that its content has, and no content; else no length."""
    assert answer(fixed("200 OK", [("Content-Length", "42")], []), "HEAD").endswith(b"Content-Length: 42\r\n\r\n")
    assert answer(fixed("200 OK", [("Content-Length", "0")], []), "HEAD").endswith(b"Content-Length: 0\r\n\r\n")
    assert b"content-length" not in answer(fixed("200 OK", [], []), "HEAD").lower()
    assert answer(fixed("200 OK", [], [b"abc"]), "HEAD").endswith(b"Content-Length: 3\r\n\r\n")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_204_and_304_have_no_content(status: str) -> None:
    """204 and 304 carry neither length nor content (RFC 9110 §8.6)."""
    assert f"HTTP/1.1 {status}\r\n\r\n".encode() == answer(fixed(status, [("Content-Length", "1")], [b"x"]))


def test_iterables_are_closed() -> None:
    """Any iterable is accepted, and its close() is called even when it raises."""
    closed = []

    class Chunks:
        def __init__(self, *chunks: Any) -> None:
            self.chunks = chunks

        def __iter__(self) -> Iterator[Any]:
            return iter(self.chunks)

        def close(self) -> None:
            closed.append(self)

    assert answer(fixed("200 OK", [], Chunks(b"a", b"b"))).endswith(b"\r\n\r\nab")
    assert answer(fixed("200 OK", [], Chunks(b"a", 7))).startswith(b"HTTP/1.1 500 ")
    assert len(closed) == 2


def test_written_bytes_come_first() -> None:
    """Bytes sent through the write callable of PEP 3333 precede the iterable."""

    def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])(b"first ")
        return [b"second"]

    assert answer(application).endswith(b"first second")


def test_status_may_be_replaced_after_an_error() -> None:
    """start_response may be called again with exc_info, and only so."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        start_response(
            "503 WorkerState Unavailable", [], (None, None, None) if environ["REQUEST_METHOD"] == "GET" else None
        )
        return []

    assert answer(application).startswith(b"HTTP/1.1 503 ")
    assert answer(application, "PUT").startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        ("200 OK\r\nX: y", [], []),
        ("200 OK", [("X", "a\r\nY: b")], []),
        ("200 OK", [("X", "a\nb")], []),
        ("200 OK", [("X", "a\0b")], []),
        ("200 OK", [("X\r\nY", "b")], []),
        ("200 OK", [("X", "\u2028")], []),
        ("100 Continue", [], []),
        ("OK", [], []),
        ("2000 OK", [], []),
        ("200 OK", [], ["text"]),
        ("200 OK", [], None),
    ],
)
def test_invalid_answers_are_500(status: str, headers: list[tuple[str, str]], body: Any) -> None:
    """An answer that cannot be sent safely becomes a 500, even when it is repeated; no part of it is sent."""
    for _ in range(2):
        got = answer(fixed(status, headers, body))

        assert got.startswith(b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/problem+json\r\n")
        assert got.endswith(b'"}')


def test_application_that_never_answers() -> None:
    """An application that does not call start_response is answered 500."""
    exchange_error = answer(lambda _environ, _start_response: [b"x"])

    assert exchange_error.startswith(b"HTTP/1.1 500 ")


# -- what every answer carries ---------------------------------------------------------------------------------------


def fields(raw: bytes) -> list[tuple[str, str]]:
    """Return the fields of an answer, names in lower case."""
    lines = raw.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]


def test_default_headers_forbid_sniffing_caching_and_framing() -> None:
    """Every answer forbids sniffing, caching, framing and scripts; over plain HTTP it says nothing about TLS."""
    got = dict(fields(whole(worker_of(fixed("200 OK", [], [])))))

    assert {
        "x-content-type-options": "nosniff", "cache-control": "no-store", "x-frame-options": "DENY",
        "referrer-policy": "no-referrer", "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    }.items() <= got.items()  # fmt: skip
    assert "strict-transport-security" not in got
    assert "server" not in got


@pytest.mark.parametrize("body", [[b"x"], ["an error"]], ids=["answer", "error"])
def test_default_headers_on_tls(body: Any) -> None:
    """On TLS every answer carries Strict-Transport-Security (RFC 6797 §7.2), errors included."""
    got = dict(fields(whole(worker_of(fixed("200 OK", [], body), "https"))))

    assert got["strict-transport-security"] == "max-age=31536000"


def test_answer_may_replace_a_default_header() -> None:
    """A field of one answer replaces the default of its name in that answer only."""
    own = ("content-security-policy", "default-src 'self'")
    worker = worker_of(fixed("200 OK", [own, ("X-A", "1")], []))
    first, second = (fields(whole(worker)) for _ in range(2))

    assert first == second
    assert [field for field in first if field[0] == own[0]] == [own]
    assert [name for name, _ in first].count("cache-control") == 1
    worker.application = fixed("200 OK", [], [])
    assert dict(fields(whole(worker)))[own[0]] == "default-src 'none'; frame-ancestors 'none'"


def test_application_adds_default_headers() -> None:
    """Default headers of the application replace those of the same name and join the others."""

    class Page:
        default_headers = (("Content-security-policy", "default-src 'self'"), ("X-Own", "1"))
        __call__ = staticmethod(fixed("200 OK", [], []))

    got = fields(whole(worker_of(Page())))

    assert [value for name, value in got if name == "content-security-policy"] == ["default-src 'self'"]
    assert ("x-own", "1") in got
    assert ("cache-control", "no-store") in got


def test_default_header_must_be_one_line() -> None:
    """An application whose default headers contain a line break is not served."""

    class Broken:
        default_headers = (("X", "a\r\nY: b"),)

    with pytest.raises(ValueError, match="line break"):
        worker_of(Broken())


def test_trace_is_passed_on() -> None:
    """An answer carries the request's trace id and flags, and a new span id each time."""
    worker = worker_of(fixed("200 OK", [], []))
    trace = TraceContext("a" * 32, "b" * 16, "01")
    traced: dict[str, Any] = {TRACE: trace}
    values = [dict(fields(whole(worker, **traced)))["traceparent"].split("-") for _ in range(2)]

    assert [[version, trace_id, flags] for version, trace_id, _, flags in values] == [["00", "a" * 32, "01"]] * 2
    assert len({"b" * 16} | {span for _, _, span, _ in values}) == 3
    assert "traceparent" not in dict(fields(whole(worker)))


# -- the log ---------------------------------------------------------------------------------------------------------


def test_error_is_logged_with_the_names_of_its_request(caplog: pytest.LogCaptureFixture) -> None:
    """The log line of a 500 carries request id, trace id and client, and of the request only method and path."""
    worker = worker_of(fixed("200 OK", [], ["text"]))
    secrets = {"QUERY_STRING": "q=hidden", "HTTP_AUTHORIZATION": "hidden"}
    traced: dict[str, Any] = {TRACE: TraceContext("a" * 32, "b" * 16, "00")}
    whole(worker, PATH_INFO="/a\nb\x1b", **traced, **secrets)
    (record,) = caplog.records

    assert record.getMessage() == "Error handling request GET /a%0Ab%1B"
    assert {
        "request_id": "r-1", "client_id": "192.0.2.1", "address": "192.0.2.1", "trace_id": "a" * 32,
    }.items() <= vars(record).items()  # fmt: skip
    assert "hidden" not in json.dumps(vars(record), default=str)


def test_request_line_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG each request has one line with method, path, status, bytes, duration, client and id."""
    caplog.set_level(logging.DEBUG, "test.wsgi_call")
    got = whole(worker_of(fixed("201 Created", [], [b"abc"])), PATH_INFO="/p\xe9 q", QUERY_STRING="hidden")
    (record,) = caplog.records

    assert {
        "method": "GET", "path": "/p%E9%20q", "status": 201, "bytes": len(got), "request_id": "r-1",
        "client_id": "192.0.2.1", "address": "192.0.2.1",
    }.items() <= vars(record).items()  # fmt: skip
    assert 0 <= vars(record)["duration_ms"] < 60_000
    assert "trace_id" not in vars(record)


def test_no_request_line_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    """Above DEBUG a successful request is not logged."""
    caplog.set_level(logging.INFO, "test.wsgi_call")
    whole(worker_of(fixed("200 OK", [], [])))

    assert caplog.records == []

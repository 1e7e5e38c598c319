"""What a connection refuses, over real sockets, and the names that its refusals carry.

Every guard is tried in one piece and byte by byte (so that a read ends at every position of the request), both alone
and pipelined behind a good request, whose answer must come first and whole.
"""

import gzip
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from app.httpd.connection import Connection
from app.httpd.request import REQUEST_ID
from core.limits import (
    BODY_SIZE,
    HEADER_COUNT,
    HEADERS_SIZE,
    KEEPALIVE_SECONDS,
    REQUEST_LINE_SIZE,
)
from testing.eventually import eventually
from tests.app.httpd.serving import (
    CHUNKED,
    GOOD,
    HOST,
    LAST_CHUNK,
    AnswerReader,
    ByteByByteConnection,
    EchoApplication,
    RunningServer,
    connect,
    fetch,
    get,
    post,
    server_sides,
    serving,
)

GZIP = gzip.compress(b"hello", mtime=0)
GUARDS: dict[str, tuple[bytes, int, str]] = {
    # RFC 9112 §3.2: Host
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "host_missing"),
    "no host, absolute target": (b"GET http://a/ HTTP/1.1\r\n\r\n", 400, "host_missing"),
    "two hosts": (get(b"/", b"Host: b\r\n"), 400, "duplicate_field"),
    "same host twice": (get(b"/", b"host: a\r\n"), 400, "duplicate_field"),
    "empty host": (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", 400, "host_invalid"),
    "host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "host_invalid"),
    "host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "host_invalid"),
    "host with a bad port": (b"GET / HTTP/1.1\r\nHost: a:x\r\n\r\n", 400, "host_invalid"),
    "invalid host on 1.0": (b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400, "host_invalid"),
    # RFC 9112 §2.3 and RFC 9110 §15.6.6: version
    "version 2.0": (get(b"/", version=b"2.0"), 505, "http_version_unsupported"),
    "version 0.9": (get(b"/", version=b"0.9"), 505, "http_version_unsupported"),
    "no version": (b"GET /\r\n\r\n", 505, "http_version_unsupported"),
    "version 1.2": (get(b"/", version=b"1.2"), 400, "malformed_request"),
    "version 1.10": (get(b"/", version=b"1.10"), 400, "malformed_request"),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request"),
    # RFC 9112 §6.1 and §6.3: Transfer-Encoding
    "transfer encoding on 1.0": (post(CHUNKED, LAST_CHUNK, b"1.0"), 400, "transfer_encoding_on_http_1_0"),
    "length, then coding": (post(b"Content-Length: 5\r\n" + CHUNKED, LAST_CHUNK), 400, "malformed_request"),
    "coding, then length": (post(CHUNKED + b"Content-Length: 5\r\n", LAST_CHUNK), 400, "malformed_request"),
    "coding twice": (post(CHUNKED + CHUNKED, LAST_CHUNK), 400, "malformed_request"),
    "chunked not last": (post(b"Transfer-Encoding: chunked, gzip\r\n", LAST_CHUNK), 400, "malformed_request"),
    "identity": (post(b"Transfer-Encoding: identity\r\n", b"x"), 400, "transfer_encoding_invalid"),
    "almost chunked": (post(b"Transfer-Encoding: xchunked\r\n", LAST_CHUNK), 400, "transfer_encoding_invalid"),
    "gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", LAST_CHUNK), 501, "transfer_coding_unknown"),
    "chunked in disguise": (post(b"Transfer-Encoding: \x0bchunked\r\n", LAST_CHUNK), 400, "malformed_request"),
    # RFC 9110 §8.6: Content-Length
    "length twice": (post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400, "malformed_request"),
    "length list": (post(b"Content-Length: 5, 5\r\n", b"hello"), 400, "malformed_request"),
    "signed length": (post(b"Content-Length: +5\r\n", b"hello"), 400, "malformed_request"),
    "empty length": (post(b"Content-Length:\r\n", b"hello"), 400, "malformed_request"),
    "length modulo 2^64": (post(b"Content-Length: 18446744073709551621\r\n", b"hello"), 400, "malformed_request"),
    "length of 11 digits": (post(b"Content-Length: 00000000005\r\n", b"hello"), 400, "content_length_invalid"),
    "length over the limit": (post(b"Content-Length: %d\r\n" % (BODY_SIZE.value + 1)), 413, "body_too_large"),
    # RFC 9112 §7.1: chunks
    "chunk size 0x": (post(CHUNKED, b"0x5\r\nhello\r\n" + LAST_CHUNK), 400, "malformed_request"),
    "negative chunk": (post(CHUNKED, b"-5\r\nhello\r\n" + LAST_CHUNK), 400, "malformed_request"),
    "chunk overflow": (post(CHUNKED, b"FFFFFFFFFFFFFFFFF\r\nhello"), 400, "malformed_request"),
    "chunk without its end": (post(CHUNKED, b"5\r\nhelloXX" + LAST_CHUNK), 400, "malformed_request"),
    "bare LF after chunk size": (post(CHUNKED, b"5\nhello\r\n" + LAST_CHUNK), 400, "malformed_request"),
    "bare LF in chunk extension": (post(CHUNKED, b"5;a\nb\r\nhello\r\n" + LAST_CHUNK), 400, "malformed_request"),
    # RFC 9112 §2.2 and §5: lines and fields
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400, "malformed_request"),
    "bare LF after a field": (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400, "malformed_request"),
    "bare CR in a value": (get(b"/", b"X: a\rb\r\n"), 400, "malformed_request"),
    "folded line": (get(b"/", b"X: a\r\n b\r\n"), 400, "malformed_request"),
    "space before colon": (get(b"/", b"X : a\r\n"), 400, "malformed_request"),
    "space before the first field": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "malformed_request"),
    "NUL in a value": (get(b"/", b"X: a\x00b\r\n"), 400, "malformed_request"),
    "no field name": (get(b"/", b": x\r\n"), 400, "malformed_request"),
    "bad field name": (get(b"/", b"a(b: x\r\n"), 400, "malformed_request"),
    "no colon": (get(b"/", b"foo\r\n"), 400, "malformed_request"),
    # RFC 9112 §3: request line and target
    "unknown method": (b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "malformed_request"),
    "lower-case method": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "malformed_request"),
    "TLS on a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_request"),
    "tunnel": (b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n", 501, "method_not_implemented"),
    "space in the target": (get(b"/a b"), 400, "malformed_request"),
    "control in the target": (get(b"/\x01"), 400, "malformed_request"),
    "non-ASCII in the target": (get(b"/\xff"), 400, "malformed_request"),
    "fragment": (get(b"/a#b"), 400, "target_invalid"),
    "relative target": (get(b"foo"), 400, "malformed_request"),
    "asterisk": (get(b"*"), 400, "target_invalid"),
    "foreign scheme": (get(b"ftp://a/"), 400, "target_invalid"),
    "absolute target without host": (get(b"http:///x"), 400, "target_invalid"),
    "absolute target with a user": (get(b"http://u@a/x"), 400, "target_invalid"),
    # limits
    "request line": (get(b"/" + b"a" * REQUEST_LINE_SIZE.value), 414, "request_line_too_long"),
    "request line by one": (get(b"/" + b"a" * (REQUEST_LINE_SIZE.value - 13)), 414, "request_line_too_long"),
    "fields": (get(b"/", b"a: b\r\n" * HEADER_COUNT.value), 431, "too_many_headers"),
    "dropped fields count": (get(b"/", b"a_b: c\r\n" * HEADER_COUNT.value), 431, "too_many_headers"),
    "head": (get(b"/", b"a: " + b"b" * (HEADERS_SIZE.value - 13) + b"\r\n"), 431, "headers_too_large"),
    "endless value": (get(b"/", b"a: " + b"b" * 65_536)[:-4], 431, "headers_too_large"),
    "endless name": (get(b"/", b"a" * 65_536)[:-4], 431, "headers_too_large"),
    "endless target": (b"GET /" + b"a" * 65_536, 414, "request_line_too_long"),
    "endless trailer": (post(CHUNKED, b"0\r\na: " + b"b" * 65_536), 431, "headers_too_large"),
    "endless chunk extension": (post(CHUNKED, b"5;" + b"a" * 65_536), 431, "headers_too_large"),
    # RFC 9110 §8.4 and §14.5: what the bytes of a body are
    "unknown content coding": (
        post(b"Content-Encoding: br\r\nContent-Length: 5\r\n", b"hello"), 415, "content_encoding_unsupported",
    ),
    "two content codings": (
        post(b"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: 40\r\n", bytes(40)), 415,
        "content_encoding_unsupported",
    ),
    "plain body as gzip": (
        post(b"Content-Encoding: gzip\r\nContent-Length: 5\r\n", b"hello"), 400, "content_encoding_invalid",
    ),
    "truncated gzip": (
        post(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(GZIP[:-1]), GZIP[:-1]), 400,
        "content_encoding_invalid",
    ),
    "gzip with a wrong checksum": (
        post(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(GZIP), GZIP[:-8] + bytes(4) + GZIP[-4:]), 400,
        "content_encoding_invalid",
    ),
    "bytes after gzip": (
        post(b"Content-Encoding: gzip\r\n" + CHUNKED, b"%x\r\n%s!\r\n" % (len(GZIP) + 1, GZIP) + LAST_CHUNK), 400,
        "content_encoding_invalid",
    ),
    "part of a body": (
        post(b"Content-Range: bytes 0-4/10\r\nContent-Length: 5\r\n", b"hello"), 400, "content_range_unsupported",
    ),
    # duplicates and expectations
    "two authorizations": (get(b"/", b"Authorization: a\r\nAuthorization: a\r\n"), 400, "duplicate_field"),
    "two content types": (post(b"Content-Type: a/b\r\ncontent-type: a/b\r\n"), 400, "duplicate_field"),
    "unknown expectation": (post(b"Expect: 200-ok\r\nContent-Length: 5\r\n"), 417, "expectation_failed"),
    "two expectations": (post(b"Expect: 100-continue, x\r\nContent-Length: 5\r\n"), 417, "expectation_failed"),
    "too large to continue": (
        post(b"Expect: 100-continue\r\nContent-Length: %d\r\n" % (BODY_SIZE.value + 1)), 413, "body_too_large",
    ),
}  # fmt: skip


STANDING = {
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
}


@pytest.fixture(scope="module", params=["whole", "byte by byte"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with serving(protocol=ByteByByteConnection if request.param == "byte by byte" else Connection) as server:
        yield server


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "pipelined"])
@pytest.mark.parametrize("name", GUARDS)
def test_guard(server: RunningServer, name: str, behind: bool) -> None:
    """A request that breaks a rule gets one problem document; the connection closes, and nothing after it is read."""
    request, status, code = GUARDS[name]
    calls = len(server.app.calls)
    with connect(server) as client:
        client.sendall((GOOD if behind else b"") + request + GOOD)
        reader = AnswerReader(client)
        if behind:
            assert reader.read_answer().status == 200
        answer = reader.read_answer()
        assert status == answer.status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["connection"] == "close"
        assert STANDING <= answer.headers.items()
        assert answer.headers["x-request-id"]
        assert set(answer.json) == {"type", "title", "status", "code", "detail"}
        assert tuple(answer.json[key] for key in ("type", "status", "code")) == ("about:blank", status, code)
        reader.expect_end()
    assert calls + behind == len(server.app.calls)


class SingleReadConnection(Connection):
    """A connection that receives everything in one read, however the kernel split it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(GOOD):
            super().data_received(self.received)


@pytest.mark.parametrize("name", [name for name in GUARDS if name.startswith("endless")])
def test_bytes_inside_the_parser_are_bounded_in_one_read(name: str) -> None:
    """A read that is larger than all limits together is refused as if it came in pieces."""
    request, status, code = GUARDS[name]
    with serving(protocol=SingleReadConnection) as server, connect(server) as client:
        client.sendall(request + GOOD)
        answer = AnswerReader(client).read_answer()

        assert (status, code) == (answer.status, answer.json["code"])
        assert server.app.calls == []


def test_refusals_are_counted() -> None:
    """Each refusal is counted under its code."""
    with serving() as server:
        for _ in range(3):
            fetch(server, b"GET / HTTP/1.1\r\n\r\n")

        assert dict(server.app.refusals) == {"host_missing": 3}


class RefusalRecorder(EchoApplication):
    """An echo that records each call of `on_refusal`: code, environ, status."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[str, dict[str, Any], int]] = []

    def on_refusal(self, code: str, environ: dict[str, Any], status: int) -> None:
        self.reports.append((code, environ, status))


def test_refusals_are_reported_to_the_application() -> None:
    """`on_refusal` gets code, environ (as far as the request was read) and status; the id is empty and the status 0
    when a connection is closed without an answer.
    """
    with serving(RefusalRecorder()) as server:
        fetch(server, b"GET / HTTP/1.1\r\nX-Request-ID: r-1\r\n\r\n")
        fetch(server, b"GET /%zz HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.9\r\nExpect: much\r\n\r\n")
        with connect(server) as silent:
            server_sides(server, silent)
            server.advance(KEEPALIVE_SECONDS.value + 1)
            AnswerReader(silent).expect_end()
        eventually(lambda: len(server.app.reports) == 3)
        told = [(code, status) for code, _, status in server.app.reports]
        environs = [environ for _, environ, _ in server.app.reports]

    assert told == [("host_missing", 400), ("expectation_failed", 417), ("keepalive_timeout", 0)]
    assert [(environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) for environ in environs] == [("127.0.0.1", "4242")] * 3
    assert [environs[i][REQUEST_ID] for i in (0, 2)] == ["r-1", ""]
    assert environs[1]["HTTP_X_FORWARDED_FOR"] == "10.0.0.9"


FORWARDED = b"X-Forwarded-For: 10.0.0.9\r\nx-forwarded-for: 10.0.0.8 \r\n"


@pytest.mark.parametrize("protocol", [Connection, ByteByByteConnection])
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (b"Host: b\r\n" + FORWARDED, "duplicate_field"),
        (b"A_b: c\r\n" * (HEADER_COUNT.value - 2) + FORWARDED, "too_many_headers"),
        (b"A: " + b"b" * (HEADERS_SIZE.value - 20) + b"\r\n" + FORWARDED, "headers_too_large"),
    ],
)
def test_refusals_of_fields_report_all_hops(fields: bytes, code: str, protocol: type[Connection]) -> None:
    """`on_refusal` gets all hops of X-Forwarded-For, even those behind the field that is refused."""
    with serving(RefusalRecorder(), protocol=protocol) as server:
        fetch(server, get(b"/", fields))
        (told,) = server.app.reports

    assert (code, "10.0.0.9,10.0.0.8") == (told[0], told[1]["HTTP_X_FORWARDED_FOR"].replace(" ", ""))


def test_incomplete_head_reports_no_hops() -> None:
    """No hops are reported for a head that is cut short: those of the proxy may be the missing ones."""
    with serving(RefusalRecorder()) as server:
        fetch(server, get(b"/", FORWARDED + b"a:b\r\n" * 1_000)[:-2])
        (told,) = server.app.reports

    assert told[0] == "too_many_headers"
    assert "HTTP_X_FORWARDED_FOR" not in told[1]


def test_errors_are_reported_to_the_application() -> None:
    """An error of the application is reported like a refusal, with its request, from the thread where it happened."""

    class Failing(RefusalRecorder):
        def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Iterable[bytes]:
            raise ValueError("a mistake of ours")

    with serving(Failing()) as server:
        fetch(server, get(b"/here") + get(b"/slow"), 2)
        told = [(code, environ["PATH_INFO"], status) for code, environ, status in server.app.reports]

    assert told == [("internal_error", "/here", 500), ("internal_error", "/slow", 500)]


def test_failing_on_refusal_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """When `on_refusal` raises, that is logged, and the client gets its refusal."""

    class Deaf(EchoApplication):
        def on_refusal(self, *_said: Any) -> None:
            raise ValueError("not listening")

    with serving(Deaf()) as server:
        assert [answer.status for answer in fetch(server, b"GET / HTTP/1.1\r\n\r\n")] == [400]

    assert "not listening" in caplog.text


def test_refusal_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """The line carries code, status, client and trace, and nothing of what the client sent."""
    caplog.set_level(logging.DEBUG, "test")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = b"traceparent: 00-%s-00f067aa0ba902b7-01\r\n" % trace.encode()
    with serving() as server:
        fetch(server, post(b"X-Request-ID: r-1\r\n" + parent + b"Expect: a secret\r\nContent-Length: 5\r\n"))
    (record,) = (record for record in caplog.records if record.getMessage().startswith("Refused"))

    assert {
        "request_id": "r-1", "trace_id": trace, "client_id": "127.0.0.1", "address": "127.0.0.1",
        "code": "expectation_failed", "status": 417,
    }.items() <= vars(record).items()  # fmt: skip
    assert "secret" not in str(vars(record))


# -- names -------------------------------------------------------------------------------------------------------------

ID = b"X-Request-ID: r-1\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        get(b"/", ID),
        get(b"/", ID + b"Host: b\r\n"),
        get(b"/", b"Host: b\r\n" + ID),
        b"GET / HTTP/1.1\r\n" + ID + b"\r\n",
        get(b"/", ID, b"2.0"),
        post(ID + b"Expect: x\r\nContent-Length: 1\r\n"),
        post(ID + b"Content-Length: 99999999\r\n"),
        post(ID + CHUNKED, b"x"),
        post(ID + CHUNKED + b"Connection: upgrade\r\nUpgrade: x\r\n", b"x"),
    ],
)
def test_request_id_is_echoed(server: RunningServer, request_: bytes) -> None:
    """Once the head was read, every answer carries the client's request id."""
    (answer,) = fetch(server, request_)

    assert answer.headers["x-request-id"] == "r-1"


@pytest.mark.parametrize(
    "request_",
    [b"\x16\x03\x01", b"GET /\x01", ID + get(b"/"), get(b"/", ID + b"X : a\r\n"), get(b"/", b"X-Request-ID: a b\r\n")],
)
def test_request_id_is_generated(server: RunningServer, request_: bytes) -> None:
    """Without a safe id in a head that was read, each answer carries a new one."""
    made = [fetch(server, request_)[0].headers["x-request-id"] for _ in range(2)]

    assert len(set(made)) == 2
    assert {len(name) for name in made} == {24}


def test_requests_do_not_share_names(server: RunningServer) -> None:
    """Neither a request without names nor a refusal inherits the names of the request before it."""
    parent = b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
    first, second, third = fetch(server, get(b"/", ID + parent) + GOOD + b"nonsense", 3)

    assert first.headers["x-request-id"] == "r-1"
    assert "traceparent" in first.headers
    assert len({answer.headers["x-request-id"] for answer in (first, second, third)}) == 3
    assert not [answer for answer in (second, third) if "traceparent" in answer.headers]


def test_refusal_of_a_late_body_carries_the_request_id() -> None:
    """A body that does not arrive in time is refused under the id of its head."""
    with serving(clock_step=0.2) as server:
        (answer,) = fetch(server, post(ID + b"Content-Length: 5\r\n", b"hel"))

        assert (answer.status, answer.headers["x-request-id"]) == (408, "r-1")


def test_refusal_of_head_has_no_body() -> None:
    """A refused HEAD gets the header fields of the problem document alone (RFC 9110 §9.3.2)."""
    with serving() as server, connect(server) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
        reader = AnswerReader(client)

        assert reader.read_answer(head=True).status == 400
        reader.expect_end()


def test_refusal_of_head_that_offers_an_upgrade_has_no_body() -> None:
    """A HEAD that offers an upgrade and is refused for its body gets no content either."""
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    with serving() as server, connect(server) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n" + HOST + offer + CHUNKED + b"\r\nx")
        reader = AnswerReader(client)

        assert reader.read_answer(head=True).status == 400
        reader.expect_end()


def test_chunked_body_over_the_limit() -> None:
    """A chunked body is refused when it exceeds the limit; the client can read the answer after its upload."""
    chunk = b"100000\r\n" + b"x" * 1_048_576 + b"\r\n"
    with serving() as server, connect(server) as client:
        client.sendall(post(CHUNKED))
        for _ in range(17):
            client.sendall(chunk)

        assert AnswerReader(client).read_answer().json["code"] == "body_too_large"


def test_too_many_fields_are_refused_before_the_head_is_complete() -> None:
    """Too many fields are refused before the head is complete."""
    with serving() as server:
        (answer,) = fetch(server, get(b"/", b"a:b\r\n" * 1_000)[:-2])

        assert (answer.status, answer.json["code"]) == (431, "too_many_headers")


@pytest.mark.parametrize("protocol", [Connection, ByteByByteConnection])
def test_limits_are_inclusive(protocol: type[Connection]) -> None:
    """A request that is exactly at a limit is accepted."""
    line = get(b"/" + b"a" * (REQUEST_LINE_SIZE.value - 14))
    count = get(b"/", b"a: b\r\n" * (HEADER_COUNT.value - 1))
    size = get(b"/", b"a: " + b"b" * (HEADERS_SIZE.value - 14) + b"\r\n")
    with serving(protocol=protocol) as server:
        assert [answer.status for answer in fetch(server, line + count + size, 3)] == [200] * 3
        assert len(line.split(b"\r\n")[0]) == REQUEST_LINE_SIZE.value
        assert len(size) - len(b"GET / HTTP/1.1\r\n\r\n") == HEADERS_SIZE.value

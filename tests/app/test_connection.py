"""The HTTP/1.1 connection, over real sockets and a real loop.

Every guard is tried three times: as one piece, byte by byte (the protocol is handed single bytes, so that every
boundary inside a request is crossed), and pipelined behind a good request, whose answer must come first and whole.
"""

import asyncio
import json
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from app.connection import Connection
from app.framing import Refusal
from app.service import IN_PIECES, TURN_COUNT, Service
from core.limits import (
    ANSWERS_SIZE,
    BODIES_SIZE,
    BODY_SIZE,
    HEADER_COUNT,
    HEADERS_SIZE,
    PIPELINE_DEPTH,
    PIPELINES_SIZE,
    REQUEST_LINE_SIZE,
    WRITE_BUFFER_SIZE,
)

PATIENCE = 20.0  # seconds a test waits for what must happen; nothing is asserted about how soon it does


# -- a server in a thread --------------------------------------------------------------------------------------------


class Echo:
    """Answers with what the environ said, as JSON; /slow… waits on the pool until `gate` opens, /big answers 256 kB."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.calls: list[str] = []
        self.threads: set[str] = set()

    def may_block(self, method: str, path: str) -> int:
        return path.startswith("/slow")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.calls.append(path)
        self.threads.add(threading.current_thread().name)
        if path.startswith("/slow"):
            assert self.gate.wait(PATIENCE)
        if path == "/big":
            start_response("200 OK", [])
            return [b"x" * 262_144]
        body = environ["wsgi.input"].read()
        seen = {k: v for k, v in environ.items() if isinstance(v, str | int)}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"environ": seen, "body": body.decode("latin-1")}).encode()]


class Dribble(Connection):
    """A connection that sees each byte alone."""

    def data_received(self, data: bytes) -> None:
        for i in range(len(data)):
            super().data_received(data[i : i + 1])


@dataclass
class Server:
    """A running service: its address, and the parts a test may look at."""

    address: tuple[str, int]
    service: Service
    loop: asyncio.AbstractEventLoop
    app: Any
    lost: list[float] = field(default_factory=list)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the loop's thread and return its result."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)


@contextmanager
def serving(
    app: Any = None,
    *,
    protocol: type[Connection] = Connection,
    pace: float = 0.0,
    sndbuf: int = 0,
    refusal: Refusal | None = None,
) -> Iterator[Server]:
    """Serve `app` (Echo by default). With a `pace`, the service's clock runs that many seconds per 10 ms instead of
    real time.
    """
    app = app or Echo()
    loop = uvloop.new_event_loop()
    listener = socket.socket()
    if sndbuf:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    listener.bind(("127.0.0.1", 0))
    started = threading.Event()
    holder: list[Server] = []

    async def main() -> None:
        moment = [1e6]
        clock = (lambda: moment[0]) if pace else time.monotonic
        service = Service(app, loop, logging.getLogger("test"), clock=clock)
        await loop.create_server(lambda: protocol(service, ("127.0.0.1", 4242), refusal), sock=listener)

        def beat() -> None:
            moment[0] += pace
            service.tick()
            service.sweep()
            loop.call_later(0.01, beat)

        beat()
        holder.append(Server(listener.getsockname(), service, loop, app))
        service.lost = lambda: holder[0].lost.append(loop.time())
        started.set()

    def run() -> None:
        loop.run_until_complete(main())
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_default_executor())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(PATIENCE)
    try:
        yield holder[0]
    finally:
        if isinstance(app, Echo):
            app.gate.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        holder[0].service.close()
        loop.close()


def dial(server: Server, *, rcvbuf: int = 0) -> socket.socket:
    client = socket.socket()
    if rcvbuf:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    client.settimeout(PATIENCE)
    client.connect(server.address)
    return client


@dataclass
class Answer:
    """One parsed answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def environ(self) -> dict[str, Any]:
        environ = self.json["environ"]
        assert isinstance(environ, dict)
        return environ


class Reader:
    """Reads answers off a socket, strictly: anything left over or missing fails the test."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.buffer = b""

    def answer(self, *, head: bool = False) -> Answer:
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        raw, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        status_line, *lines = raw.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = 0 if head else int(headers.get("content-length", "0"))
        while len(self.buffer) < size:
            self._more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return Answer(int(status_line.split(" ")[1]), headers, body)

    def end(self) -> None:
        """Assert that the server closes and sends nothing more."""
        assert b"" == self.buffer
        assert b"" == self.client.recv(65_536)

    def _more(self) -> None:
        piece = self.client.recv(65_536)
        assert piece, f"the connection ended after {self.buffer!r}"
        self.buffer += piece


def ask(server: Server, request: bytes, count: int = 1) -> list[Answer]:
    """Send `request` on a connection of its own and return `count` answers."""
    with dial(server) as client:
        client.sendall(request)
        reader = Reader(client)
        return [reader.answer() for _ in range(count)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


HOST = b"Host: a\r\n"
GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"


# -- guards ----------------------------------------------------------------------------------------------------------


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n" + body


def get(target: bytes, fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"0\r\n\r\n"

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
    "transfer encoding on 1.0": (post(CHUNKED, LAST, b"1.0"), 400, "transfer_encoding_on_http_1_0"),
    "length, then coding": (post(b"Content-Length: 5\r\n" + CHUNKED, LAST), 400, "malformed_request"),
    "coding, then length": (post(CHUNKED + b"Content-Length: 5\r\n", LAST), 400, "malformed_request"),
    "coding twice": (post(CHUNKED + CHUNKED, LAST), 400, "malformed_request"),
    "chunked not last": (post(b"Transfer-Encoding: chunked, gzip\r\n", LAST), 400, "malformed_request"),
    "identity": (post(b"Transfer-Encoding: identity\r\n", b"x"), 400, "transfer_encoding_invalid"),
    "almost chunked": (post(b"Transfer-Encoding: xchunked\r\n", LAST), 400, "transfer_encoding_invalid"),
    "gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", LAST), 501, "transfer_coding_unknown"),
    "chunked in disguise": (post(b"Transfer-Encoding: \x0bchunked\r\n", LAST), 400, "malformed_request"),
    # RFC 9110 §8.6: Content-Length
    "length twice": (post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400, "malformed_request"),
    "length list": (post(b"Content-Length: 5, 5\r\n", b"hello"), 400, "malformed_request"),
    "signed length": (post(b"Content-Length: +5\r\n", b"hello"), 400, "malformed_request"),
    "empty length": (post(b"Content-Length:\r\n", b"hello"), 400, "malformed_request"),
    "length modulo 2^64": (post(b"Content-Length: 18446744073709551621\r\n", b"hello"), 400, "malformed_request"),
    "length of 11 digits": (post(b"Content-Length: 00000000005\r\n", b"hello"), 400, "content_length_invalid"),
    "length over the limit": (post(b"Content-Length: %d\r\n" % (BODY_SIZE.value + 1)), 413, "body_too_large"),
    # RFC 9112 §7.1: chunks
    "chunk size 0x": (post(CHUNKED, b"0x5\r\nhello\r\n" + LAST), 400, "malformed_request"),
    "negative chunk": (post(CHUNKED, b"-5\r\nhello\r\n" + LAST), 400, "malformed_request"),
    "chunk overflow": (post(CHUNKED, b"FFFFFFFFFFFFFFFFF\r\nhello"), 400, "malformed_request"),
    "chunk without its end": (post(CHUNKED, b"5\r\nhelloXX" + LAST), 400, "malformed_request"),
    "bare LF after chunk size": (post(CHUNKED, b"5\nhello\r\n" + LAST), 400, "malformed_request"),
    "bare LF in chunk extension": (post(CHUNKED, b"5;a\nb\r\nhello\r\n" + LAST), 400, "malformed_request"),
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
def guarded(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(protocol=Dribble if request.param == "byte by byte" else Connection) as server:
        yield server


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "pipelined"])
@pytest.mark.parametrize("name", GUARDS)
def test_guard(guarded: Server, name: str, behind: bool) -> None:
    """A request that breaks a rule gets one problem document, the connection closes, and nothing after it is
    believed.
    """
    request, status, code = GUARDS[name]
    calls = len(guarded.app.calls)
    with dial(guarded) as client:
        client.sendall((GOOD if behind else b"") + request + GOOD)
        reader = Reader(client)
        if behind:
            assert 200 == reader.answer().status
        answer = reader.answer()
        assert status == answer.status
        assert "application/problem+json" == answer.headers["content-type"]
        assert "close" == answer.headers["connection"]
        assert STANDING <= answer.headers.items()
        assert answer.headers["x-request-id"]
        assert {"type", "title", "status", "code", "detail"} == set(answer.json)
        assert ("about:blank", status, code) == tuple(answer.json[key] for key in ("type", "status", "code"))
        reader.end()
    assert calls + behind == len(guarded.app.calls)


class Hoard(Connection):
    """A connection that sees everything in one read, however the kernel cut it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hoard = b""

    def data_received(self, data: bytes) -> None:
        self.hoard += data
        if self.hoard.endswith(GOOD):
            super().data_received(self.hoard)


@pytest.mark.parametrize("name", [name for name in GUARDS if name.startswith("endless")])
def test_what_hides_in_the_parser_is_bounded_in_one_read_too(name: str) -> None:
    """A read may be larger than all limits together; it is refused as if it came in pieces."""
    request, status, code = GUARDS[name]
    with serving(protocol=Hoard) as server, dial(server) as client:
        client.sendall(request + GOOD)
        answer = Reader(client).answer()

        assert (status, code) == (answer.status, answer.json["code"])
        assert [] == server.app.calls


def test_refusals_are_counted() -> None:
    """Each refusal is counted under its code."""
    with serving() as server:
        for _ in range(3):
            ask(server, b"GET / HTTP/1.1\r\n\r\n")

        assert {"host_missing": 3} == dict(server.service.refusals)


class Told(Echo):
    """An echo that remembers what it is told of refusals."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals: list[tuple[Any, ...]] = []

    def on_refusal(self, *said: Any) -> None:
        self.refusals.append(said)


def test_application_is_told_of_refusals() -> None:
    """Code, client, request id, a sentence and the status; 0 and no id where a connection ends without a word."""
    with serving(Told(), pace=0.5) as server:
        (answer,) = ask(server, b"GET / HTTP/1.1\r\nX-Request-ID: r-1\r\n\r\n")
        with dial(server) as silent:
            Reader(silent).end()
        until(lambda: len(server.app.refusals) == 2)
        (first, second) = server.app.refusals

    assert ("host_missing", ("127.0.0.1", 4242), "r-1", answer.json["detail"], 400) == first
    assert ("keepalive_timeout", ("127.0.0.1", 4242), "", 0) == (*second[:3], second[4])
    assert second[3].endswith("(limit: 75 seconds).")


def test_application_that_fails_to_listen_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """An on_refusal that raises is logged, and the client gets its refusal."""

    class Deaf(Echo):
        def on_refusal(self, *_said: Any) -> None:
            raise ValueError("not listening")

    with serving(Deaf()) as server:
        assert [400] == [answer.status for answer in ask(server, b"GET / HTTP/1.1\r\n\r\n")]

    assert "not listening" in caplog.text


def test_refusal_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """The line says why, for whom and in which trace; nothing of what was sent."""
    caplog.set_level(logging.DEBUG, "test")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = b"traceparent: 00-%s-00f067aa0ba902b7-01\r\n" % trace.encode()
    with serving() as server:
        ask(server, post(b"X-Request-ID: r-1\r\n" + parent + b"Expect: a secret\r\nContent-Length: 5\r\n"))
    (record,) = (record for record in caplog.records if record.getMessage().startswith("Refused"))

    assert {
        "request_id": "r-1", "trace_id": trace, "client": "127.0.0.1:4242", "code": "expectation_failed", "status": 417,
    }.items() <= vars(record).items()  # fmt: skip
    assert "secret" not in str(vars(record))


# -- names -----------------------------------------------------------------------------------------------------------

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
def test_request_id_is_echoed(server: Server, request_: bytes) -> None:
    """Whatever becomes of a request whose head was read, its answer carries the id that it came with."""
    (answer,) = ask(server, request_)

    assert "r-1" == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "request_",
    [b"\x16\x03\x01", b"GET /\x01", ID + get(b"/"), get(b"/", ID + b"X : a\r\n"), get(b"/", b"X-Request-ID: a b\r\n")],
)
def test_request_id_is_made(server: Server, request_: bytes) -> None:
    """Without a sane one in a head that was read, each answer has one of its own."""
    made = [ask(server, request_)[0].headers["x-request-id"] for _ in range(2)]

    assert 2 == len(set(made))
    assert {24} == {len(name) for name in made}


def test_requests_do_not_share_names(server: Server) -> None:
    """A request without names does not inherit those of the one before it, nor does a refusal behind it."""
    parent = b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
    first, second, third = ask(server, get(b"/", ID + parent) + GOOD + b"nonsense", 3)

    assert "r-1" == first.headers["x-request-id"]
    assert "traceparent" in first.headers
    assert 3 == len({answer.headers["x-request-id"] for answer in (first, second, third)})
    assert not [answer for answer in (second, third) if "traceparent" in answer.headers]


def test_late_refusals_carry_the_names_of_their_request() -> None:
    """A body that does not come in time is refused under the id that its head brought."""
    with serving(pace=0.2) as server:
        (answer,) = ask(server, post(ID + b"Content-Length: 5\r\n", b"hel"))

        assert (408, "r-1") == (answer.status, answer.headers["x-request-id"])


def test_refusal_of_head_has_no_body() -> None:
    """A refused HEAD gets the header fields of the problem document alone (RFC 9110 §9.3.2)."""
    with serving() as server, dial(server) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
        reader = Reader(client)

        assert 400 == reader.answer(head=True).status
        reader.end()


def test_refusal_of_head_that_offers_an_upgrade_has_no_body() -> None:
    """Nor when it is refused for its body, which another parser reads."""
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    with serving() as server, dial(server) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n" + HOST + offer + CHUNKED + b"\r\nx")
        reader = Reader(client)

        assert 400 == reader.answer(head=True).status
        reader.end()


def test_chunked_body_over_the_limit() -> None:
    """A chunked body is refused when it passes the limit, although no length announced it; the answer survives the
    upload.
    """
    chunk = b"100000\r\n" + b"x" * 1_048_576 + b"\r\n"
    with serving() as server, dial(server) as client:
        client.sendall(post(CHUNKED))
        for _ in range(17):
            client.sendall(chunk)

        assert "body_too_large" == Reader(client).answer().json["code"]


def test_too_many_fields_are_refused_before_the_head_is_complete() -> None:
    """What is too much already need not be waited for, nor kept."""
    with serving() as server:
        (answer,) = ask(server, get(b"/", b"a:b\r\n" * 1_000)[:-2])

        assert (431, "too_many_headers") == (answer.status, answer.json["code"])


@pytest.mark.parametrize("protocol", [Connection, Dribble])
def test_limits_are_inclusive(protocol: type[Connection]) -> None:
    """Exactly at its limit a request passes."""
    line = get(b"/" + b"a" * (REQUEST_LINE_SIZE.value - 14))
    count = get(b"/", b"a: b\r\n" * (HEADER_COUNT.value - 1))
    size = get(b"/", b"a: " + b"b" * (HEADERS_SIZE.value - 14) + b"\r\n")
    with serving(protocol=protocol) as server:
        assert [200] * 3 == [answer.status for answer in ask(server, line + count + size, 3)]
        assert REQUEST_LINE_SIZE.value == len(line.split(b"\r\n")[0])
        assert HEADERS_SIZE.value == len(size) - len(b"GET / HTTP/1.1\r\n\r\n")


# -- what is accepted ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["whole", "byte by byte"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(protocol=Dribble if request.param == "byte by byte" else Connection) as server:
        yield server


def test_environ(server: Server) -> None:
    """The environ is what PEP 3333 asks for, plus the moment at which the request was complete."""
    before = time.monotonic_ns()
    line = b"POST /a%2Fb%C3%A9?x=%20&y HTTP/1.1\r\n"
    fields = b"Host: h:8\r\nX-Thing:  a \t\r\nX-Thing: b\r\nX_Thing: no\r\nContent-Type: t/u\r\nContent-Length: 2\r\n"
    (answer,) = ask(server, line + fields + b"\r\nhi")
    environ = answer.environ

    assert before <= environ.pop("mlsdm.received_ns") <= time.monotonic_ns()
    assert answer.headers["x-request-id"] == environ.pop("mlsdm.request_id")
    assert {
        "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/a/b\u00c3\u00a9", "QUERY_STRING": "x=%20&y",
        "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": str(server.address[1]),
        "REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "4242", "CONTENT_TYPE": "t/u", "CONTENT_LENGTH": "2",
        "HTTP_HOST": "h:8", "HTTP_X_THING": "a,b", "wsgi.url_scheme": "http", "wsgi.multithread": True,
        "wsgi.multiprocess": True, "wsgi.run_once": False, "wsgi.input_terminated": True,
    } == environ  # fmt: skip
    assert "hi" == answer.json["body"]


def test_answer_headers(server: Server) -> None:
    """An answer carries Date, Content-Length, the standing headers and its name, no Server, and says nothing about a
    connection that stays open.
    """
    (answer,) = ask(server, GOOD)

    assert {
        "date", "content-type", "content-length", "x-request-id", "x-content-type-options", "cache-control",
        "x-frame-options", "referrer-policy", "content-security-policy",
    } == set(answer.headers)  # fmt: skip
    assert answer.headers["date"].endswith(" GMT")


def test_keep_alive_and_close(server: Server) -> None:
    """HTTP/1.1 persists until one side says close (RFC 9112 §9.3)."""
    with dial(server) as client:
        reader = Reader(client)
        for _ in range(3):
            client.sendall(GOOD)
            assert "connection" not in reader.answer().headers
        client.sendall(get(b"/", b"Connection: close\r\n") + GOOD)

        assert "close" == reader.answer().headers["connection"]
        reader.end()


def test_http_1_0(server: Server) -> None:
    """HTTP/1.0 closes unless it asks to stay, needs no Host, and an expectation in it is ignored (RFC 9110 §10.1.1)."""
    with dial(server) as client:
        reader = Reader(client)
        client.sendall(
            b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
        )
        answer = reader.answer()
        assert ("HTTP/1.0", 200) == (answer.environ["SERVER_PROTOCOL"], answer.status)
        assert "keep-alive" == answer.headers["connection"]
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")

        assert "close" == reader.answer().headers["connection"]
        reader.end()


def test_head(server: Server) -> None:
    """HEAD gets the header fields that GET would get, and no body (RFC 9110 §9.3.2)."""
    with dial(server) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + GOOD)
        reader = Reader(client)

        assert int(reader.answer(head=True).headers["content-length"]) > 0
        assert "/good" == reader.answer().environ["PATH_INFO"]


def test_chunked_body(server: Server) -> None:
    """A chunked body reaches the application whole, with its length; extensions and trailers are dropped."""
    body = b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nHost: evil\r\nX-Trailer: t\r\n\r\n"
    answer, after = ask(server, post(b"Transfer-Encoding: Chunked\r\n", body) + GOOD, 2)

    assert "hello world" == answer.json["body"]
    assert ("11", "a") == (answer.environ["CONTENT_LENGTH"], answer.environ["HTTP_HOST"])
    assert not {"HTTP_X_TRAILER", "HTTP_TRANSFER_ENCODING"} & set(answer.environ)
    assert "/good" == after.environ["PATH_INFO"]


def test_pipelining_keeps_order(server: Server) -> None:
    """Requests sent together are answered one by one, in their order (RFC 9112 §9.3.2), empty lines between them
    ignored.
    """
    requests = [get(b"/%d" % i) if i % 3 else post(b"Content-Length: 3\r\n", b"%03d" % i) + b"\r\n" for i in range(60)]
    answers = ask(server, b"".join(requests), 60)

    assert [f"/{i}" if i % 3 else "/" for i in range(60)] == [answer.environ["PATH_INFO"] for answer in answers]
    assert [f"{i:03d}" for i in range(0, 60, 3)] == [answer.json["body"] for answer in answers[::3]]


@pytest.mark.parametrize(
    ("request_", "path", "host"),
    [
        (get(b"http://b:80/p?q"), "/p", "b:80"),
        (get(b"HTTPS://b"), "/", "b"),
        (get(b"http://b?q"), "/", "b"),
        (get(b"http://[::1]:8/p"), "/p", "[::1]:8"),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", "*", "a"),
        (b"OPTIONS http://b HTTP/1.1\r\n" + HOST + b"\r\n", "*", "b"),
        (get(b"//c/d"), "//c/d", "a"),
    ],
)
def test_forms_of_target(server: Server, request_: bytes, path: str, host: str) -> None:
    """Absolute and asterisk forms are understood; the authority of the target replaces Host (RFC 9112 §3.2)."""
    (answer,) = ask(server, request_)

    assert (path, host) == (answer.environ["PATH_INFO"], answer.environ["HTTP_HOST"])


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", CHUNKED, b""])
def test_upgrade_is_ignored(server: Server, framing: bytes) -> None:
    """A request that offers h2c is served as HTTP/1.1, body and successor included (RFC 9110 §7.8)."""
    body = {b"Content-Length: 5\r\n": b"hello", CHUNKED: b"5\r\nhello\r\n" + LAST, b"": b""}[framing]
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    answer, after = ask(server, post(offer + framing, body) + GOOD, 2)

    assert (200, "hello" if body else "") == (answer.status, answer.json["body"])
    assert "/good" == after.environ["PATH_INFO"]


def test_many_upgrades_in_one_read(server: Server) -> None:
    """Ignoring an upgrade does not recurse: hundreds of them fit into one read."""
    offer = get(b"/", b"Connection: upgrade\r\nUpgrade: x\r\n")
    answers = ask(server, offer * 600 + GOOD, 601)

    assert {200} == {answer.status for answer in answers}


def test_continue(server: Server) -> None:
    """100 Continue comes when the head has passed the checks and no byte of the body has arrived (RFC 9110 §10.1.1)."""
    with dial(server) as client:
        reader = Reader(client)
        for _ in range(2):
            client.sendall(post(b"Expect: 100-Continue\r\nContent-Length: 5\r\n"))
            assert 100 == reader.answer().status
            client.sendall(b"hello")

            assert "hello" == reader.answer().json["body"]


def test_no_continue_when_the_body_is_there() -> None:
    """A client that did not wait is not told to go on."""
    with serving() as server:
        (answer,) = ask(server, post(b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello"))

        assert (200, "hello") == (answer.status, answer.json["body"])


class Choosy(Echo):
    """Wants no body for /no, fails to say for /maybe, and answers 401 to whoever sends none."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, bool]] = []

    def wants_body(self, environ: dict[str, Any]) -> bool:
        self.asked.append((environ["PATH_INFO"], "wsgi.input" in environ))
        if environ["PATH_INFO"] == "/maybe":
            raise ValueError("cannot say")
        return not environ["PATH_INFO"].endswith("/no")


def expecting(path: bytes, framing: bytes = b"Content-Length: 5\r\n") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n" + framing + b"\r\n"


@pytest.mark.parametrize("protocol", [Connection, Dribble])
@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", CHUNKED])
@pytest.mark.parametrize("path", [b"/no", b"/slow/no"], ids=["inline", "pool"])
def test_unwanted_body_is_not_asked_for(path: bytes, framing: bytes, protocol: type[Connection]) -> None:
    """When the application does not want the body it answers at once, to an empty one; no 100 is sent, and what the
    client sends all the same is never read as a request.
    """
    with serving(Choosy(), protocol=protocol) as server, dial(server) as client:
        server.app.gate.set()
        client.sendall(GOOD + expecting(path, framing))
        reader = Reader(client)
        assert "/good" == reader.answer().environ["PATH_INFO"]
        answer = reader.answer()

        assert (200, "close", "") == (answer.status, answer.headers["connection"], answer.json["body"])
        assert "0" == answer.environ["CONTENT_LENGTH"]
        assert "HTTP_TRANSFER_ENCODING" not in answer.environ
        client.sendall(GOOD)
        reader.end()
        assert ["/good", path.decode()] == server.app.calls
        assert [(path.decode(), False)] == server.app.asked


def test_wanted_body_is_asked_for_once() -> None:
    """The application is asked only about bodies that are held back, after the checks of size, and then 100 is sent."""
    with serving(Choosy()) as server, dial(server) as client:
        reader = Reader(client)
        client.sendall(post(b"Content-Length: 5\r\n", b"hello"))
        assert 200 == reader.answer().status
        client.sendall(expecting(b"/no") + b"hello")
        assert 200 == reader.answer().status
        client.sendall(expecting(b"/yes"))
        assert 100 == reader.answer().status
        client.sendall(b"hello")
        assert "hello" == reader.answer().json["body"]
        client.sendall(expecting(b"/yes", b"Content-Length: 99999999\r\n"))

        assert 413 == reader.answer().status
        assert [("/yes", False)] == server.app.asked


@pytest.mark.parametrize("before", [b"", get(b"/slow")], ids=["first", "behind"])
def test_failure_to_say_whether_a_body_is_wanted(before: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is a 500 and the end of the connection, also when the request had to wait for its turn."""
    with serving(Choosy()) as server, dial(server) as client:
        client.sendall(before + expecting(b"/maybe"))
        if before:
            until(lambda: "/slow" in server.app.calls)
        server.app.gate.set()
        reader = Reader(client)
        if before:
            assert 200 == reader.answer().status

        assert 500 == reader.answer().status
        reader.end()
        assert "cannot say" in caplog.text


def test_unwanted_body_behind_a_request_that_runs() -> None:
    """Its answer keeps its turn."""
    with serving(Choosy()) as server, dial(server) as client:
        client.sendall(get(b"/slow") + expecting(b"/no"))
        until(lambda: "/slow" in server.app.calls)
        time.sleep(0.05)
        assert [] == server.app.asked
        server.app.gate.set()
        reader = Reader(client)

        assert ["/slow", "/no"] == [reader.answer().environ["PATH_INFO"] for _ in range(2)]
        reader.end()


def test_large_body(server: Server) -> None:
    """A body of many reads arrives whole, and its reservation is returned."""
    body = b"0123456789abcdef" * 20_000
    (answer,) = ask(server, post(b"Content-Length: %d\r\n" % len(body), body))

    assert body.decode() == answer.json["body"]
    assert 0 == server.call(lambda: server.service.bodies_size)


# -- the application -------------------------------------------------------------------------------------------------


def test_application_error(caplog: pytest.LogCaptureFixture) -> None:
    """An exception is a 500 that tells the client nothing; the traceback is in the log, and the connection stays
    usable.
    """

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/exit":
            raise SystemExit(3)
        if environ["PATH_INFO"] == "/bad":
            raise ValueError("secret detail")
        start_response("204 No Content", [])
        return []

    with serving(app) as server:
        bad, leave, good = ask(server, get(b"/bad") + get(b"/exit") + GOOD, 3)

    assert (500, "internal_error", 500, 204) == (bad.status, bad.json["code"], leave.status, good.status)
    assert b"secret" not in bad.body
    assert "secret detail" in caplog.text
    assert "content-length" not in good.headers


def test_blocking_routes_run_on_the_pool_in_order() -> None:
    """A route that may block leaves the loop free for other connections, and the requests behind it wait for their
    turn.
    """
    with serving() as server, dial(server) as client:
        client.sendall(get(b"/slow/1") + GOOD + get(b"/slow/2") + b"GET / HTTP/1.1\r\n\r\n" + GOOD)
        until(lambda: "/slow/1" in server.app.calls)

        assert 200 == ask(server, get(b"/other"))[0].status
        assert ["/slow/1", "/other"] == server.app.calls
        server.app.gate.set()
        reader = Reader(client)
        assert ["/slow/1", "/good", "/slow/2"] == [reader.answer().environ["PATH_INFO"] for _ in range(3)]
        assert "host_missing" == reader.answer().json["code"]
        reader.end()
        assert any(name.startswith("route") for name in server.app.threads)


class Long(Echo):
    """Answers /long… in a hundred pieces; `size` and `seconds` say how large and how slow. One of /long/bad fails."""

    size = 1
    seconds = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def may_block(self, method: str, path: str) -> int:
        return IN_PIECES if path.startswith("/long") else super().may_block(method, path)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not path.startswith("/long"):
            return super().__call__(environ, start_response)
        self.calls.append(path)
        start_response("200 OK", [])
        return self.made(path)

    def made(self, path: str) -> Iterator[bytes]:
        for number in range(100):
            self.pieces.append(path)
            time.sleep(self.seconds)
            if number == 50 and path == "/long/bad":
                raise ValueError("no more of this")
            yield b"x" * self.size


def test_long_answers_are_made_in_pieces() -> None:
    """Between the pieces of a long answer others are served; it arrives whole and in its turn, and so does what is
    behind it. Of several, the first is finished first.
    """
    with serving(Long()) as server, dial(server) as first, dial(server) as second:
        server.app.seconds = 0.002
        first.sendall(get(b"/long/1") + GOOD + get(b"/long/2") + GOOD)
        until(lambda: "/long/1" in server.app.calls)
        second.sendall(get(b"/long/3") + GOOD)
        others = 0
        while len(server.app.pieces) < 300:
            assert 200 == ask(server, get(b"/other"))[0].status
            others += 1
        reader, other_reader = Reader(first), Reader(second)

        assert [b"x" * 100, None, b"x" * 100, None] == [
            None if answer.body.startswith(b"{") else answer.body for answer in (reader.answer() for _ in range(4))
        ]
        assert b"x" * 100 == other_reader.answer().body
        assert "/good" == other_reader.answer().environ["PATH_INFO"]
        assert others > 1
        assert [] == server.call(lambda: list(server.service._making))
        assert ["/long/1"] * 100 == server.app.pieces[:100]
        assert {100} == {server.app.pieces.count(path) for path in ("/long/1", "/long/2", "/long/3")}


def test_long_answer_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of it was sent, so its client gets a plain 500, and the next request is served."""
    with serving(Long()) as server:
        bad, good = ask(server, get(b"/long/bad") + GOOD, 2)

    assert (500, "internal_error", 200) == (bad.status, bad.json["code"], good.status)
    assert "no more of this" in caplog.text


def test_long_answer_that_nobody_waits_for() -> None:
    """When its peer has gone, no more of it is made, and the next one has its turn."""
    with serving(Long()) as server:
        server.app.size = 1_000
        with dial(server) as client:
            server.call(lambda: setattr(server.service, "untaken_size", 2 * ANSWERS_SIZE.value))  # holds it up
            client.sendall(get(b"/long/1"))
            until(lambda: bool(server.call(lambda: list(server.service._making))))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: bool(server.lost))
        server.call(lambda: server.service.untaken(-2 * ANSWERS_SIZE.value, ("", 0)))

        assert 100_000 == len(ask(server, get(b"/long/2"))[0].body)
        assert {"/long/2"} == set(server.app.pieces)


def test_untaken_answers_hold_up_long_ones_alone() -> None:
    """While slow readers leave too much untaken, no long answer is made, and everything else is answered; when they are
    cut off, the long ones go on.
    """
    count = ANSWERS_SIZE.value // 4_000_000 + 1
    with serving(Long(), sndbuf=8_192) as server:
        server.app.size = 40_000
        readers = [dial(server, rcvbuf=8_192) for _ in range(count)]
        for reader in readers:
            reader.sendall(get(b"/long/slow"))
        until(lambda: server.call(lambda: server.service.untaken_size) > ANSWERS_SIZE.value)
        with dial(server) as waiting:
            waiting.sendall(get(b"/long/last"))
            until(lambda: bool(server.call(lambda: list(server.service._making))))
            for _ in range(20):
                assert 200 == ask(server, GOOD)[0].status
            assert "/long/last" not in server.app.calls
            for reader in readers:
                reader.close()

            assert 4_000_000 == len(Reader(waiting).answer().body)
        assert 1 == server.service.refusals["answers_full"]
        until(lambda: server.call(lambda: server.service.untaken_size) == 0)


def test_idle_connections_hold_nothing_of_their_last_request() -> None:
    """A body, however large, is let go of with its answer."""
    with serving() as server, dial(server) as client:
        client.sendall(post(b"Content-Length: 60000\r\n", b"x" * 60_000))
        Reader(client).answer()
        (connection,) = server.service.connections
        message = connection._message

        assert "wsgi.input" not in server.call(lambda: message._environ)
        assert ([], []) == (message._fields, message._body)


def test_continue_waits_for_its_turn() -> None:
    """An interim answer never overtakes the answer of an earlier request."""
    with serving() as server, dial(server) as client:
        client.sendall(get(b"/slow") + post(b"Expect: 100-continue\r\nContent-Length: 5\r\n"))
        until(lambda: "/slow" in server.app.calls)
        time.sleep(0.05)
        server.app.gate.set()
        reader = Reader(client)

        assert [200, 100] == [reader.answer().status, reader.answer().status]
        client.sendall(b"hello")
        assert "hello" == reader.answer().json["body"]


def test_peer_that_half_closes_gets_its_answers() -> None:
    """A client that shuts its side after the request still gets what is being computed."""
    with serving() as server, dial(server) as client:
        client.sendall(get(b"/slow") + GOOD)
        client.shutdown(socket.SHUT_WR)
        until(lambda: "/slow" in server.app.calls)
        server.app.gate.set()
        reader = Reader(client)

        assert ["/slow", "/good"] == [reader.answer().environ["PATH_INFO"] for _ in range(2)]
        reader.end()


def test_peer_that_vanishes_while_its_request_runs() -> None:
    """The answer of a request whose client is gone is dropped, and the server serves on."""
    with serving() as server:
        with dial(server) as client:
            client.sendall(get(b"/slow"))
            until(lambda: "/slow" in server.app.calls)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: bool(server.lost))
        server.app.gate.set()

        assert 200 == ask(server, GOOD)[0].status


# -- flow and bounds -------------------------------------------------------------------------------------------------


def test_pipeline_behind_a_blocking_route_is_bounded() -> None:
    """Reading pauses while the queue is full, so that what one connection can queue does not grow; nothing is lost."""
    count = 20_000
    with serving() as server, dial(server) as client:
        sender = threading.Thread(target=lambda: client.sendall(get(b"/slow") + GOOD * count))
        sender.start()
        until(lambda: "/slow" in server.app.calls)
        time.sleep(0.2)
        (connection,) = server.service.connections
        waiting = server.call(lambda: len(connection._waiting))
        assert PIPELINE_DEPTH.value <= waiting <= PIPELINE_DEPTH.value + 2_048 // len(GOOD) + 1
        server.app.gate.set()
        reader = Reader(client)

        assert "/slow" == reader.answer().environ["PATH_INFO"]
        assert {"/good"} == {reader.answer().environ["PATH_INFO"] for _ in range(count)}
        sender.join(PATIENCE)


def connections(server: Server, *clients: socket.socket) -> list[Connection]:
    """Return the server's side of each client."""
    until(lambda: server.call(lambda: len(server.service.connections)) == len(clients))
    made = {c._transport.get_extra_info("peername"): c for c in server.call(lambda: list(server.service.connections))}
    return [made[client.getsockname()] for client in clients]


def test_a_pipeline_holds_nobody_up() -> None:
    """However much one connection sends ahead, a request of another that comes in the same turn of the loop is answered
    after the first of it, and one that comes in the next turn after a turn's worth; nothing of the pipeline is lost.
    """
    count = 2_000
    before: list[list[str]] = []
    with serving() as server, dial(server) as greedy, dial(server) as honest:
        first, second = connections(server, greedy, honest)

        def read() -> None:
            first.data_received(GOOD * count)
            second.data_received(get(b"/honest/1"))
            before.append(server.app.calls.copy())
            server.loop.call_soon(read_next)

        def read_next() -> None:
            second.data_received(get(b"/honest/2"))
            before.append(server.app.calls.copy())

        server.call(read)
        until(lambda: len(before) == 2)
        reader, honest_reader = Reader(greedy), Reader(honest)

        assert ["/good", "/honest/1"] == before[0]
        assert len(before[1]) <= 2 + TURN_COUNT + 1
        assert ["/honest/1", "/honest/2"] == [honest_reader.answer().environ["PATH_INFO"] for _ in range(2)]
        assert {"/good"} == {reader.answer().environ["PATH_INFO"] for _ in range(count)}
        assert 0 == server.call(lambda: server.service.pipelines_size)


def test_pipelines_take_turns() -> None:
    """Of two connections that both send ahead, each gets one answer after the other."""
    count = 40
    with serving() as server, dial(server) as one, dial(server) as two:
        first, second = connections(server, one, two)

        def read() -> None:
            first.data_received(get(b"/1") * count)
            second.data_received(get(b"/2") * count)

        server.call(read)
        readers = Reader(one), Reader(two)
        for reader in readers:
            assert {200} == {reader.answer().status for _ in range(count)}

        assert ["/1", "/2"] * count == server.app.calls


def test_a_body_does_not_hide_a_pipeline() -> None:
    """Requests that come in one read with the end of a body take their turns too."""
    with serving() as server, dial(server) as client:
        (connection,) = connections(server, client)
        calls: list[str] = []

        def read() -> None:
            connection.data_received(post(b"Content-Length: 40000\r\n", b"x" * 10_000))
            connection.data_received(b"x" * 30_000 + GOOD * 300)
            calls.extend(server.app.calls)

        server.call(read)
        reader = Reader(client)

        assert {200} == {reader.answer().status for _ in range(301)}
        assert ["/"] == calls


@pytest.mark.parametrize("busy", [False, True])
def test_pipelines_share_a_budget(busy: bool) -> None:
    """What is sent ahead beyond what the worker may hold is refused with 503 in its turn; single requests are
    answered, and what was held is given back.
    """
    with serving() as server, dial(server) as client, dial(server) as honest:
        connections(server, client, honest)
        server.call(lambda: server.service.keep(PIPELINES_SIZE.value - 5_000))
        client.sendall((get(b"/slow") if busy else b"") + GOOD * 50)
        if busy:
            until(lambda: server.call(lambda: server.service.refusals["pipelines_full"]) == 1)
        honest.sendall(GOOD)
        assert 200 == Reader(honest).answer().status
        server.app.gate.set()
        reader = Reader(client)
        answers = [reader.answer()]
        while answers[-1].status == 200:
            answers.append(reader.answer())
        reader.end()

        assert (503, "pipelines_full", "1") == (
            answers[-1].status, answers[-1].json["code"], answers[-1].headers["retry-after"],
        )  # fmt: skip
        assert 4 == len(answers)
        assert PIPELINES_SIZE.value - 5_000 == server.call(lambda: server.service.pipelines_size)


def test_what_is_not_parsed_is_in_the_budget() -> None:
    """So are bytes that wait to be parsed, until they are, or their connection ends."""
    with serving() as server, dial(server) as client:
        (connection,) = connections(server, client)
        data = get(b"/slow") + GOOD * 20_000  # what is parsed of it is less, whatever a request is counted for
        server.call(lambda: connection.data_received(data))
        kept = server.call(lambda: server.service.pipelines_size)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server.app.gate.set()
        until(lambda: bool(server.lost))

        assert len(data) - 4_096 <= kept
        assert 0 == server.call(lambda: server.service.pipelines_size)


def test_reader_too_slow_is_not_buffered_for() -> None:
    """While a peer does not take its answers the application is called no more; when it reads, all of them come."""
    count = 200
    with serving(sndbuf=8_192) as server, dial(server, rcvbuf=8_192) as client:
        client.sendall(get(b"/big") * count)
        until(lambda: server.call(lambda: len(server.app.calls)) > 0)
        time.sleep(0.2)
        assert len(server.app.calls) <= WRITE_BUFFER_SIZE.value // 262_144 + 2
        reader = Reader(client)

        assert {262_144} == {len(reader.answer().body) for _ in range(count)}


def test_large_bodies_share_a_budget() -> None:
    """A large body beyond what the worker may hold is refused with 503 and Retry-After; others' bodies are unharmed."""
    size = BODIES_SIZE.value // 2
    with serving() as server, dial(server) as first, dial(server) as second:
        for client in (first, second):
            client.sendall(post(b"Content-Length: %d\r\n" % size, b"x"))
        until(lambda: server.call(lambda: server.service.bodies_size) == 2 * size)
        (refused,) = ask(server, post(b"Content-Length: 65537\r\n"))
        (small,) = ask(server, post(b"Content-Length: 1\r\n", b"x"))

        assert (503, "bodies_full", "1") == (refused.status, refused.json["code"], refused.headers["retry-after"])
        assert 200 == small.status
        first.close()
        until(lambda: server.call(lambda: server.service.bodies_size) == size)


@pytest.mark.parametrize("before", [b"", get(b"/slow")], ids=["first", "behind"])
@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        (b"Content-Length: 16000000\r\n", b"x"),
        (CHUNKED, b"10001\r\n" + b"x" * 65_537),
    ],
    ids=["announced", "chunked"],
)
def test_unwanted_large_body_takes_no_memory(before: bytes, framing: bytes, sent: bytes) -> None:
    """A stranger who announces megabytes is answered at once and has reserved nothing of what others need."""
    with serving(Choosy()) as server, dial(server) as client:
        server.app.gate.set()
        client.sendall(before + b"POST /no HTTP/1.1\r\n" + HOST + framing + b"\r\n" + sent)
        reader = Reader(client)
        if before:
            assert "/slow" == reader.answer().environ["PATH_INFO"]
        answer = reader.answer()

        assert ("close", "0") == (answer.headers["connection"], answer.environ["CONTENT_LENGTH"])
        assert 0 == server.call(lambda: server.service.bodies_size)
        client.sendall(GOOD)
        reader.end()
        assert "/good" not in server.app.calls


def test_turned_away() -> None:
    """A connection that was made to be refused says so at once and closes."""
    with (
        serving(refusal=Refusal(503, "too_many_connections", "Full.", retry_after=1)) as server,
        dial(server) as client,
    ):
        reader = Reader(client)
        answer = reader.answer()

        assert (503, "1", "close") == (answer.status, answer.headers["retry-after"], answer.headers["connection"])
        reader.end()


# -- deadlines -------------------------------------------------------------------------------------------------------


def test_head_deadline_is_absolute() -> None:
    """A head that arrives byte by byte does not get more time than one that stops."""
    with serving(pace=0.05) as server, dial(server) as client:
        for byte in get(b"/", b"X: " + b"a" * 8_000 + b"\r\n"):
            client.sendall(bytes([byte]))
            if select.select([client], [], [], 0.005)[0]:
                break
        answer = Reader(client).answer()

        assert (408, "headers_timeout") == (answer.status, answer.json["code"])


def test_first_byte_starts_the_head_deadline() -> None:
    """One byte and then silence is a head that takes too long."""
    with serving(pace=0.2) as server, dial(server) as client:
        client.sendall(b"G")

        assert "headers_timeout" == Reader(client).answer().json["code"]


def test_body_deadline() -> None:
    """A body that does not come is answered with 408."""
    with serving(pace=0.2) as server, dial(server) as client:
        client.sendall(post(b"Content-Length: 5\r\n", b"hel"))
        answer = Reader(client).answer()

        assert (408, "body_timeout", "close") == (answer.status, answer.json["code"], answer.headers["connection"])


def test_silence_ends_quietly() -> None:
    """A connection without requests is closed without an answer."""
    with serving(pace=0.5) as server, dial(server) as client:
        client.sendall(GOOD)
        reader = Reader(client)
        assert 200 == reader.answer().status

        reader.end()
        until(lambda: bool(server.lost))
        assert {"keepalive_timeout": 1} == dict(server.service.refusals)


def test_write_deadline() -> None:
    """A peer that does not read its answer is cut off."""
    with serving(pace=0.5, sndbuf=8_192) as server, dial(server, rcvbuf=8_192) as client:
        client.sendall(get(b"/big"))
        until(lambda: bool(server.lost))

        assert {"reader_too_slow": 1, "write_timeout": 1} == dict(server.service.refusals)
        assert 0 == server.service.untaken_size


def test_no_deadline_while_the_application_works() -> None:
    """The time that a request spends on the pool is not the client's."""
    with serving(pace=0.5) as server, dial(server) as client:
        client.sendall(get(b"/slow") + b"GE")
        until(lambda: "/slow" in server.app.calls)
        now = server.service.now
        until(lambda: server.service.now > now + 200)
        server.app.gate.set()
        client.sendall(GOOD[2:])
        reader = Reader(client)

        assert ["/slow", "/good"] == [reader.answer().environ["PATH_INFO"] for _ in range(2)]


def test_lingering_ends() -> None:
    """A peer that was answered for the last time and neither reads on nor closes is cut off."""
    with serving(pace=0.1) as server, dial(server) as client:
        client.sendall(b"nonsense\r\n")
        until(lambda: bool(server.lost))

        assert 400 == Reader(client).answer().status


def test_clock_is_patient() -> None:
    """Time during which the loop stood still is not held against the clients."""
    moment = [100.0]
    loop = asyncio.new_event_loop()
    service = Service(Echo(), loop, logging.getLogger("test"), clock=lambda: moment[0])
    start = service.now
    moment[0] += 60.0
    service.tick()
    loop.close()

    assert 0.5 == service.now - start


# -- draining --------------------------------------------------------------------------------------------------------


def test_drain_answers_with_close() -> None:
    """While draining, a request is still served, its answer says close, and silent connections end."""
    with serving(pace=0.02) as server, dial(server) as busy, dial(server) as silent:
        for client in (busy, silent):
            client.sendall(GOOD)
            assert 200 == Reader(client).answer().status
        server.call(lambda: setattr(server.service, "draining", True))
        busy.sendall(GOOD)
        reader = Reader(busy)

        assert "close" == reader.answer().headers["connection"]
        reader.end()
        Reader(silent).end()


@pytest.mark.parametrize("count", [20, 200], ids=["parsed", "unparsed"])
@pytest.mark.parametrize("first", [get(b"/slow"), GOOD], ids=["pool", "inline"])
def test_drain_answers_what_was_received(first: bytes, count: int) -> None:
    """Requests that wait when the drain begins, parsed or not, are answered in order; only the last says close."""
    with serving() as server, dial(server) as client:
        (connection,) = connections(server, client)

        def read() -> None:
            connection.data_received(first + b"".join(get(b"/%d" % i) for i in range(count)))
            server.service.draining = True

        server.call(read)
        server.app.gate.set()
        reader = Reader(client)
        answers = [reader.answer() for _ in range(count + 1)]
        reader.end()

        assert [f"/{i}" for i in range(count)] == [answer.environ["PATH_INFO"] for answer in answers[1:]]
        assert [None] * count + ["close"] == [answer.headers.get("connection") for answer in answers]


def test_drain_answers_a_whole_read() -> None:
    """Requests that come in one read while draining are answered too."""
    with serving() as server, dial(server) as client:
        server.call(lambda: setattr(server.service, "draining", True))
        client.sendall(GOOD * 3)
        reader = Reader(client)
        answers = [reader.answer() for _ in range(3)]
        reader.end()

        assert [None, None, "close"] == [answer.headers.get("connection") for answer in answers]

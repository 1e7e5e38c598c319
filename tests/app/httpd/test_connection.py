"""What a connection accepts, over real sockets, and how it calls the application."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from app.httpd.application import IN_PIECES
from app.httpd.connection import Connection
from app.httpd.request import RECEIVED_NS, REQUEST_ID
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
    SelectiveApplication,
    connect,
    fetch,
    get,
    post,
    reset,
    server_sides,
    serving,
)


@pytest.fixture(scope="module", params=["whole", "byte by byte"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with serving(protocol=ByteByByteConnection if request.param == "byte by byte" else Connection) as server:
        yield server


def test_environ_follows_pep_3333(server: RunningServer) -> None:
    """The environ is that of PEP 3333, plus the time at which the request was complete."""
    before = time.monotonic_ns()
    line = b"POST /a%2Fb%C3%A9?x=%20&y HTTP/1.1\r\n"
    fields = b"Host: h:8\r\nX-Thing:  a \t\r\nX-Thing: b\r\nX_Thing: no\r\nContent-Type: t/u\r\nContent-Length: 2\r\n"
    (answer,) = fetch(server, line + fields + b"\r\nhi")
    environ = answer.environ

    assert before <= environ.pop(RECEIVED_NS) <= time.monotonic_ns()
    assert answer.headers["x-request-id"] == environ.pop(REQUEST_ID)
    assert environ == {
        "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/a/b\u00c3\u00a9", "QUERY_STRING": "x=%20&y",
        "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": str(server.address[1]),
        "REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "4242", "CONTENT_TYPE": "t/u", "CONTENT_LENGTH": "2",
        "HTTP_HOST": "h:8", "HTTP_X_THING": "a,b", "wsgi.url_scheme": "http", "wsgi.multithread": True,
        "wsgi.multiprocess": True, "wsgi.run_once": False, "wsgi.input_terminated": True,
    }  # fmt: skip
    assert answer.json["body"] == "hi"


def test_answers_carry_the_server_fields(server: RunningServer) -> None:
    """An answer carries Date, Content-Length, the default headers and its request id; no Server, and no Connection
    while the connection stays open.
    """
    (answer,) = fetch(server, GOOD)

    assert set(answer.headers) == {
        "date", "content-type", "content-length", "x-request-id", "x-content-type-options", "cache-control",
        "x-frame-options", "referrer-policy", "content-security-policy",
    }  # fmt: skip
    assert answer.headers["date"].endswith(" GMT")


def test_http_1_1_persists_until_one_side_says_close(server: RunningServer) -> None:
    """HTTP/1.1 persists until one side says close (RFC 9112 §9.3)."""
    with connect(server) as client:
        reader = AnswerReader(client)
        for _ in range(3):
            client.sendall(GOOD)
            assert "connection" not in reader.read_answer().headers
        client.sendall(get(b"/", b"Connection: close\r\n") + GOOD)

        assert reader.read_answer().headers["connection"] == "close"
        reader.expect_end()


def test_http_1_0_closes_unless_it_asks_for_keep_alive(server: RunningServer) -> None:
    """HTTP/1.0 closes unless it asks for keep-alive, needs no Host, and its Expect is ignored (RFC 9110 §10.1.1)."""
    with connect(server) as client:
        reader = AnswerReader(client)
        client.sendall(
            b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
        )
        answer = reader.read_answer()
        assert (answer.environ["SERVER_PROTOCOL"], answer.status) == ("HTTP/1.0", 200)
        assert answer.headers["connection"] == "keep-alive"
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")

        assert reader.read_answer().headers["connection"] == "close"
        reader.expect_end()


def test_head_has_the_fields_of_get_and_no_body(server: RunningServer) -> None:
    """HEAD gets the header fields that GET would get, and no body (RFC 9110 §9.3.2)."""
    with connect(server) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + GOOD)
        reader = AnswerReader(client)

        assert int(reader.read_answer(head=True).headers["content-length"]) > 0
        assert reader.read_answer().environ["PATH_INFO"] == "/good"


def test_chunked_body_arrives_whole(server: RunningServer) -> None:
    """A chunked body reaches the application whole, with its length; extensions and trailers are dropped."""
    body = b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nHost: evil\r\nX-Trailer: t\r\n\r\n"
    answer, after = fetch(server, post(b"Transfer-Encoding: Chunked\r\n", body) + GOOD, 2)

    assert answer.json["body"] == "hello world"
    assert (answer.environ["CONTENT_LENGTH"], answer.environ["HTTP_HOST"]) == ("11", "a")
    assert not {"HTTP_X_TRAILER", "HTTP_TRANSFER_ENCODING"} & set(answer.environ)
    assert after.environ["PATH_INFO"] == "/good"


def test_pipelining_keeps_order(server: RunningServer) -> None:
    """Pipelined requests are answered in their order (RFC 9112 §9.3.2); empty lines between them are ignored."""
    requests = [get(b"/%d" % i) if i % 3 else post(b"Content-Length: 3\r\n", b"%03d" % i) + b"\r\n" for i in range(60)]
    answers = fetch(server, b"".join(requests), 60)

    assert [answer.environ["PATH_INFO"] for answer in answers] == [f"/{i}" if i % 3 else "/" for i in range(60)]
    assert [answer.json["body"] for answer in answers[::3]] == [f"{i:03d}" for i in range(0, 60, 3)]


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
def test_authority_of_the_target_replaces_host(server: RunningServer, request_: bytes, path: str, host: str) -> None:
    """Absolute and asterisk forms are accepted; the authority of the target replaces Host (RFC 9112 §3.2)."""
    (answer,) = fetch(server, request_)

    assert (path, host) == (answer.environ["PATH_INFO"], answer.environ["HTTP_HOST"])


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", CHUNKED, b""])
def test_upgrade_is_ignored(server: RunningServer, framing: bytes) -> None:
    """A request that offers h2c is served as HTTP/1.1, and so are its body and the next request (RFC 9110 §7.8)."""
    body = {b"Content-Length: 5\r\n": b"hello", CHUNKED: b"5\r\nhello\r\n" + LAST_CHUNK, b"": b""}[framing]
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    answer, after = fetch(server, post(offer + framing, body) + GOOD, 2)

    assert (200, "hello" if body else "") == (answer.status, answer.json["body"])
    assert after.environ["PATH_INFO"] == "/good"


def test_many_upgrades_in_one_read(server: RunningServer) -> None:
    """Ignoring an upgrade does not recurse: one read may contain hundreds."""
    offer = get(b"/", b"Connection: upgrade\r\nUpgrade: x\r\n")
    answers = fetch(server, offer * 600 + GOOD, 601)

    assert {answer.status for answer in answers} == {200}


def test_continue_follows_the_checks_of_the_head(server: RunningServer) -> None:
    """100 Continue comes when the head has passed the checks and no byte of the body has arrived (RFC 9110 §10.1.1)."""
    with connect(server) as client:
        reader = AnswerReader(client)
        for _ in range(2):
            client.sendall(post(b"Expect: 100-Continue\r\nContent-Length: 5\r\n"))
            assert reader.read_answer().status == 100
            client.sendall(b"hello")

            assert reader.read_answer().json["body"] == "hello"


def test_no_continue_when_the_body_comes_with_the_head() -> None:
    """No 100 Continue is sent when the body arrives with the head."""
    with serving() as server:
        (answer,) = fetch(server, post(b"Expect: 100-continue\r\nContent-Length: 5\r\n", b"hello"))

        assert (answer.status, answer.json["body"]) == (200, "hello")


def expecting(path: bytes, framing: bytes = b"Content-Length: 5\r\n") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n" + framing + b"\r\n"


@pytest.mark.parametrize("protocol", [Connection, ByteByByteConnection])
@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", CHUNKED])
@pytest.mark.parametrize("path", [b"/no", b"/slow/no"], ids=["inline", "pool"])
def test_unwanted_body_is_not_asked_for(path: bytes, framing: bytes, protocol: type[Connection]) -> None:
    """When the application does not want the body, it is called with an empty one; no 100 is sent, and what the client
    sends nevertheless is not read as a request.
    """
    with serving(SelectiveApplication(), protocol=protocol) as server, connect(server) as client:
        server.app.gate.set()
        client.sendall(GOOD + expecting(path, framing))
        reader = AnswerReader(client)
        assert reader.read_answer().environ["PATH_INFO"] == "/good"
        answer = reader.read_answer()

        assert (answer.status, answer.headers["connection"], answer.json["body"]) == (200, "close", "")
        assert answer.environ["CONTENT_LENGTH"] == "0"
        assert "HTTP_TRANSFER_ENCODING" not in answer.environ
        client.sendall(GOOD)
        reader.expect_end()
        assert server.app.calls == ["/good", path.decode()]
        assert server.app.asked == [(path.decode(), False)]


def test_wanted_body_is_asked_for_once() -> None:
    """The application is asked only about bodies that are held back, after the checks of size; then 100 is sent."""
    with serving(SelectiveApplication()) as server, connect(server) as client:
        reader = AnswerReader(client)
        client.sendall(post(b"Content-Length: 5\r\n", b"hello"))
        assert reader.read_answer().status == 200
        client.sendall(expecting(b"/no") + b"hello")
        assert reader.read_answer().status == 200
        client.sendall(expecting(b"/yes"))
        assert reader.read_answer().status == 100
        client.sendall(b"hello")
        assert reader.read_answer().json["body"] == "hello"
        client.sendall(expecting(b"/yes", b"Content-Length: 99999999\r\n"))

        assert reader.read_answer().status == 413
        assert server.app.asked == [("/yes", False)]


@pytest.mark.parametrize("before", [b"", get(b"/slow")], ids=["first", "behind"])
def test_failing_wants_body_is_500(before: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """When `wants_body` raises, the client gets 500 and the connection ends, even for a request that waited."""
    with serving(SelectiveApplication()) as server, connect(server) as client:
        client.sendall(before + expecting(b"/maybe"))
        if before:
            eventually(lambda: "/slow" in server.app.calls)
        server.app.gate.set()
        reader = AnswerReader(client)
        if before:
            assert reader.read_answer().status == 200

        assert reader.read_answer().status == 500
        reader.expect_end()
        assert "cannot say" in caplog.text


def test_unwanted_body_behind_a_running_request() -> None:
    """The answer to an unwanted body comes after the answer of the request before it."""
    with serving(SelectiveApplication()) as server, connect(server) as client:
        client.sendall(get(b"/slow") + expecting(b"/no"))
        eventually(lambda: "/slow" in server.app.calls)
        assert server.run_on_loop(lambda: server.app.asked) == []
        server.app.gate.set()
        reader = AnswerReader(client)

        assert [reader.read_answer().environ["PATH_INFO"] for _ in range(2)] == ["/slow", "/no"]
        reader.expect_end()


def test_large_body_arrives_whole_and_is_released(server: RunningServer) -> None:
    """A body of many reads arrives whole, and its reservation is released."""
    body = b"0123456789abcdef" * 20_000
    (answer,) = fetch(server, post(b"Content-Length: %d\r\n" % len(body), body))

    assert body.decode() == answer.json["body"]
    assert server.run_on_loop(lambda: server.worker_state.bodies.size) == 0


# -- the application ---------------------------------------------------------------------------------------------------


def test_exception_of_the_application_is_500(caplog: pytest.LogCaptureFixture) -> None:
    """An exception is answered 500 without its text; the traceback is logged, and the connection stays usable."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/exit":
            raise SystemExit(3)
        if environ["PATH_INFO"] == "/bad":
            raise ValueError("secret detail")
        start_response("204 No Content", [])
        return []

    with serving(app) as server:
        bad, leave, good = fetch(server, get(b"/bad") + get(b"/exit") + GOOD, 3)

    assert (bad.status, bad.json["code"], leave.status, good.status) == (500, "internal_error", 500, 204)
    assert b"secret" not in bad.body
    assert "secret detail" in caplog.text
    assert "content-length" not in good.headers


def test_blocking_routes_run_on_the_pool_in_order() -> None:
    """While a blocking route runs on the pool, other connections are served; requests behind it wait for it."""
    with serving() as server, connect(server) as client:
        client.sendall(get(b"/slow/1") + GOOD + get(b"/slow/2") + b"GET / HTTP/1.1\r\n\r\n" + GOOD)
        eventually(lambda: "/slow/1" in server.app.calls)

        assert fetch(server, get(b"/other"))[0].status == 200
        assert server.app.calls == ["/slow/1", "/other"]
        server.app.gate.set()
        reader = AnswerReader(client)
        assert [reader.read_answer().environ["PATH_INFO"] for _ in range(3)] == ["/slow/1", "/good", "/slow/2"]
        assert reader.read_answer().json["code"] == "host_missing"
        reader.expect_end()
        assert any(name.startswith("route") for name in server.app.threads)


class LongAnswerApplication(EchoApplication):
    """An echo that answers /long… in a hundred pieces of `size` bytes. The 51st piece of /long/bad raises;
    /long/endless has more pieces until `enough` is set; /long/no is refused.
    """

    size = 1
    enough = False

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def way_of(self, method: str, path: str) -> int:
        return IN_PIECES if path.startswith("/long") else super().way_of(method, path)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not path.startswith("/long"):
            return super().__call__(environ, start_response)
        self.calls.append(path)
        if path == "/long/no":
            start_response("401 Unauthorized", [])
            return [b"no"]
        start_response("200 OK", [])
        return self.pieces_of(path)

    def pieces_of(self, path: str) -> Iterator[bytes]:
        number = 0
        while number < 100 or (path == "/long/endless" and not self.enough):
            self.pieces.append(path)
            if number == 50 and path == "/long/bad":
                raise ValueError("a piece that fails")
            yield b"x" * self.size
            number += 1


def test_long_answers_are_generated_in_pieces() -> None:
    """Between the pieces of a long answer other requests are served. It arrives whole and in order, as do the requests
    behind it; of several long answers, the first is finished first.
    """
    with serving(LongAnswerApplication()) as server, connect(server) as first, connect(server) as second:
        first.sendall(get(b"/long/endless") + GOOD + get(b"/long/2") + GOOD)
        eventually(lambda: "/long/endless" in server.app.calls)
        second.sendall(get(b"/long/3") + GOOD)
        for _ in range(3):
            made = len(server.app.pieces)
            assert fetch(server, get(b"/other"))[0].status == 200
            eventually(lambda made=made: len(server.app.pieces) > made)  # type: ignore[misc]  # early binding
        assert "/long/3" not in server.app.pieces
        server.app.enough = True
        reader, other_reader = AnswerReader(first), AnswerReader(second)
        endless = reader.read_answer().body

        assert [
            None if answer.body.startswith(b"{") else answer.body for answer in (reader.read_answer() for _ in range(3))
        ] == [None, b"x" * 100, None]
        assert other_reader.read_answer().body == b"x" * 100
        assert other_reader.read_answer().environ["PATH_INFO"] == "/good"
        assert server.run_on_loop(lambda: len(server.worker_state.long_answers)) == 0
        assert len(endless) >= 100
        assert server.app.pieces[: len(endless)] == ["/long/endless"] * len(endless)
        assert {server.app.pieces.count(path) for path in ("/long/2", "/long/3")} == {100}


def test_long_turns_generate_more_pieces() -> None:
    """When other work makes the turns of the loop long, more than one piece is generated in each."""
    turns = [0]
    with serving(LongAnswerApplication()) as server:

        def busy() -> None:
            turns[0] += 1
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass
            if "/long/1" not in server.app.calls or len(server.app.pieces) < 100:
                server.loop.call_soon(busy)

        server.run_on_loop(lambda: server.loop.call_soon(busy))

        assert fetch(server, get(b"/long/1"))[0].body == b"x" * 100
        assert turns[0] < 50


def test_long_answer_that_raises_is_500(caplog: pytest.LogCaptureFixture) -> None:
    """When a piece raises, nothing was sent yet: the client gets 500, and the next request is served."""
    with serving(LongAnswerApplication()) as server:
        bad, good = fetch(server, get(b"/long/bad") + GOOD, 2)

    assert (bad.status, bad.json["code"], good.status) == (500, "internal_error", 200)
    assert "a piece that fails" in caplog.text


def test_long_answer_whose_peer_has_gone() -> None:
    """When the peer has disconnected, no further piece is generated, and the next long answer is."""
    with serving(LongAnswerApplication()) as server:
        with connect(server) as client:
            client.sendall(get(b"/long/endless"))
            eventually(lambda: bool(server.app.pieces))
            reset(client)
        eventually(lambda: bool(server.lost))
        made = server.run_on_loop(lambda: server.app.pieces.count("/long/endless"))

        assert len(fetch(server, get(b"/long/2"))[0].body) == 100
        assert made == server.app.pieces.count("/long/endless")
        assert server.run_on_loop(lambda: len(server.worker_state.long_answers)) == 0


@pytest.mark.parametrize("count", [1, 5])
def test_refused_long_answers_are_not_queued(count: int) -> None:
    """Refusals of long answers are sent at once, without waiting in the queue of long answers."""
    with serving(LongAnswerApplication()) as server, connect(server) as client:
        client.sendall(get(b"/long/endless") + GOOD)
        eventually(lambda: bool(server.app.pieces))
        refused = fetch(server, get(b"/long/no") * count, count)

        assert {(answer.status, answer.body) for answer in refused} == {(401, b"no")}
        assert server.run_on_loop(lambda: len(server.worker_state.long_answers)) == 1
        server.app.enough = True
        reader = AnswerReader(client)
        assert len(reader.read_answer().body) >= 100
        assert reader.read_answer().environ["PATH_INFO"] == "/good"


def test_idle_connections_hold_nothing_of_their_last_request() -> None:
    """An idle connection keeps nothing of its last request, however large the body was."""
    with serving() as server, connect(server) as client:
        client.sendall(post(b"Content-Length: 60000\r\n", b"x" * 60_000))
        AnswerReader(client).read_answer()
        (connection,) = server_sides(server, client)
        parser = connection.parser

        assert "wsgi.input" not in server.run_on_loop(lambda: parser._environ)
        assert (parser._fields, parser._body) == ([], [])


def test_continue_waits_for_its_turn() -> None:
    """An interim answer never overtakes the answer of an earlier request."""
    with serving() as server, connect(server) as client:
        client.sendall(get(b"/slow") + post(b"Expect: 100-continue\r\nContent-Length: 5\r\n"))
        eventually(lambda: "/slow" in server.app.calls)
        server.run_on_loop(lambda: None)  # the loop has gone round: what could overtake has done so
        server.app.gate.set()
        reader = AnswerReader(client)

        assert [reader.read_answer().status, reader.read_answer().status] == [200, 100]
        client.sendall(b"hello")
        assert reader.read_answer().json["body"] == "hello"


def test_peer_that_half_closes_gets_its_answers() -> None:
    """A client that shuts its side after its requests still gets the answers."""
    with serving() as server, connect(server) as client:
        client.sendall(get(b"/slow") + GOOD)
        client.shutdown(socket.SHUT_WR)
        eventually(lambda: "/slow" in server.app.calls)
        server.app.gate.set()
        reader = AnswerReader(client)

        assert [reader.read_answer().environ["PATH_INFO"] for _ in range(2)] == ["/slow", "/good"]
        reader.expect_end()


def test_peer_that_disconnects_while_its_request_runs() -> None:
    """The answer of a request whose client has disconnected is dropped, and the server keeps serving."""
    with serving() as server:
        with connect(server) as client:
            client.sendall(get(b"/slow"))
            eventually(lambda: "/slow" in server.app.calls)
            reset(client)
        eventually(lambda: bool(server.lost))
        server.app.gate.set()

        assert fetch(server, GOOD)[0].status == 200

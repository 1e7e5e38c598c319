"""Connections above the cap: probes are answered, everything else gets 503, and nobody waits for long."""

from typing import Any

import pytest

from app.httpd.connection import Connection
from app.httpd.surplus_connection import SurplusConnection
from core.limits import BODY_SIZE, IDLE_SECONDS, PROBE_SECONDS
from testing.eventually import eventually
from tests.app.httpd.serving import (
    CHUNKED,
    GOOD,
    LAST_CHUNK,
    AnswerReader,
    EchoApplication,
    connect,
    fetch,
    get,
    post,
    server_sides,
    serving,
)


class ProbedApplication(EchoApplication):
    """An echo whose probes are /probe and /slow/probe, which waits on the pool until `gate` opens."""

    probes = frozenset({"/probe", "/slow/probe"})


class AboveCap(SurplusConnection):
    """A connection above a cap of 7."""

    def __init__(self, worker: Any, client: tuple[str, int]) -> None:
        super().__init__(worker, client, 7, lambda _connection: None)


PROTOCOL: type[Connection] = AboveCap


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("path", [b"/probe", b"/probe?full=1"])
def test_a_probe_is_answered_and_closed(path: bytes, tls: bool) -> None:
    with serving(ProbedApplication(), protocol=PROTOCOL, tls=tls) as server, connect(server) as client:
        client.sendall(get(path) + GOOD)
        reader = AnswerReader(client)
        answer = reader.read_answer()

        assert (answer.status, answer.headers["connection"]) == (200, "close")
        reader.expect_end()
        assert server.app.calls == ["/probe"]


def test_a_probe_that_takes_time_is_answered() -> None:
    """The deadline is for the request, not for its answer."""
    with serving(ProbedApplication(), protocol=PROTOCOL) as server, connect(server) as client:
        client.sendall(get(b"/slow/probe"))
        eventually(lambda: "/slow/probe" in server.app.calls)
        server.advance(PROBE_SECONDS.value + 2)
        server.app.gate.set()

        assert AnswerReader(client).read_answer().status == 200


REFUSED = {
    "other path": GOOD,
    "path like a probe": get(b"//probe"),
    "small body": post(b"Content-Length: 5\r\n", b"hello"),
    "large body": post(b"Content-Length: %d\r\n" % BODY_SIZE.value),
    "chunked body": post(CHUNKED, b"5\r\nhello\r\n" + LAST_CHUNK),
    "body that waits": post(b"Expect: 100-continue\r\nContent-Length: 5\r\n"),
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused(request_: bytes) -> None:
    """At once, before a large body is sent or one that waits is asked for."""
    with serving(ProbedApplication(), protocol=PROTOCOL) as server, connect(server) as client:
        client.sendall(request_)
        reader = AnswerReader(client)
        answer = reader.read_answer()

        assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
        assert answer.json["code"] == "too_many_connections"
        assert "maximum of 7 connections" in answer.json["detail"]
        assert server.app.calls == []
        reader.expect_end()


@pytest.mark.parametrize("sent", [b"", b"GET /pro", get(b"/probe")[:-2], post(b"Content-Length: 5\r\n", b"hel")])
def test_an_incomplete_request_is_refused_in_time(sent: bytes) -> None:
    """Beginning a head gives no more time; and silence gets an answer, too."""
    with serving(ProbedApplication(), protocol=PROTOCOL) as server, connect(server) as client:
        client.sendall(sent)
        (connection,) = server_sides(server, client)
        eventually(lambda: server.run_on_loop(lambda: bool(connection.snapshot().phase)) == bool(sent))
        server.advance(PROBE_SECONDS.value + 0.5)

        answer = AnswerReader(client).read_answer()
        assert (answer.status, answer.json["code"]) == (503, "too_many_connections")


def test_it_is_never_idle() -> None:
    """It makes no room for a connection below the cap, because it does not count there."""
    with serving(ProbedApplication(), protocol=PROTOCOL) as server, connect(server) as client:
        server_sides(server, client)
        server.worker_state.now += IDLE_SECONDS.value - 0.25
        server.advance(0)

        assert not server.run_on_loop(server.worker_state.deadline_sweep.close_longest_idle)


def test_malformed_requests_are_refused_as_below_the_cap() -> None:
    with serving(ProbedApplication(), protocol=PROTOCOL) as server:
        assert fetch(server, b"GET / HTTP/1.1\r\n\r\n")[0].json["code"] == "host_missing"

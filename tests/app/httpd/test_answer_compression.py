"""Answers in gzip: who gets them, of which sizes, and what other clients notice of it."""

import asyncio
import gzip
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.httpd.answer_compression import (
    COMPRESSED_SIZE_MAX,
    COMPRESSED_SIZE_MIN,
    WAITING_COUNT_MAX,
    accepts_gzip,
    compress,
)
from app.httpd.application import IN_PIECES, POOL
from testing.eventually import eventually
from tests.app.httpd.serving import GOOD, AnswerReader, EchoApplication, connect, fetch, get, reset, serving

ACCEPTS = b"Accept-Encoding: gzip\r\n"
LARGE = bytes(random.Random(7).choices(b"0123456789", k=4 * COMPRESSED_SIZE_MIN))


class LargeApplication(EchoApplication):
    """An echo that answers `body` for each path of `compressed`, in the way that the path names."""

    compressed = frozenset({"/inline", "/pool", "/pieces", "/deferred", "/own"})

    def __init__(self, body: bytes = LARGE) -> None:
        super().__init__()
        self.body = body

    def way_of(self, method: str, path: str) -> int:
        return {"/pool": POOL, "/pieces": IN_PIECES}.get(path, super().way_of(method, path))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Any:
        path = environ["PATH_INFO"]
        if path not in self.compressed and path != "/other":
            return super().__call__(environ, start_response)
        self.calls.append(path)
        if path == "/deferred":
            return self._defer(start_response)
        start_response("200 OK", [("Content-Encoding", "br")] if path == "/own" else [])
        return self._pieces() if path == "/pieces" else [self.body]

    def _defer(self, start_response: Callable[..., Any]) -> Any:
        deferred = asyncio.get_running_loop().create_future()

        def answer() -> None:
            start_response("200 OK", [])
            deferred.set_result([self.body])

        deferred.get_loop().call_soon(answer)
        return deferred

    def _pieces(self) -> Iterator[bytes]:
        yield self.body[:1_000]
        yield self.body[1_000:]


@pytest.mark.parametrize("path", [b"/inline", b"/pool", b"/pieces", b"/deferred"])
def test_large_answers_are_compressed(path: bytes) -> None:
    """However the route makes them. The next request on the connection is answered after it."""
    with serving(LargeApplication()) as server:
        packed, good = fetch(server, get(path, ACCEPTS) + GOOD, 2)

    assert gzip.decompress(packed.body) == LARGE
    assert len(packed.body) < 0.6 * len(LARGE)
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert good.environ["PATH_INFO"] == "/good"
    assert "vary" not in good.headers


@pytest.mark.parametrize("fields", [b"", b"Accept-Encoding: gzip;q=0\r\n", b"Accept-Encoding: br\r\n"])
def test_other_clients_get_the_plain_answer(fields: bytes) -> None:
    """It says Vary, because another client would have got another answer."""
    with serving(LargeApplication()) as server:
        (answer,) = fetch(server, get(b"/inline", fields))

    assert (answer.body, answer.headers["vary"]) == (LARGE, "Accept-Encoding")
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "vary"),
    [
        pytest.param(b"/inline", b"x" * (COMPRESSED_SIZE_MIN - 1), None, id="small"),
        pytest.param(b"/inline", bytes(COMPRESSED_SIZE_MAX + 1), "Accept-Encoding", id="huge"),
        pytest.param(b"/other", LARGE, None, id="path that is not named"),
        pytest.param(b"/own", LARGE, "Accept-Encoding", id="coded by the application"),
    ],
)
def test_answers_that_are_sent_as_they_are(path: bytes, body: bytes, vary: str | None) -> None:
    with serving(LargeApplication(body)) as server:
        (answer,) = fetch(server, get(path, ACCEPTS))

    assert answer.body == body
    assert answer.headers.get("vary") == vary


@pytest.mark.parametrize("fields", [b"", ACCEPTS])
def test_head_has_the_fields_of_get(fields: bytes) -> None:
    """Without the length of a compressed answer, which is known only after compressing (RFC 9110 §9.3.2)."""
    with serving(LargeApplication()) as server, connect(server) as client:
        client.sendall(get(b"/inline", fields) + get(b"/inline", fields).replace(b"GET", b"HEAD", 1))
        reader = AnswerReader(client)
        of_get, of_head = reader.read_answer().headers, reader.read_answer(head=True).headers

    assert set(of_get) - set(of_head) == ({"content-length"} if fields else set())
    assert of_head.get("content-encoding") == of_get.get("content-encoding")


def test_other_requests_are_served_meanwhile() -> None:
    """A large answer is compressed in pieces, between which the loop serves others."""
    with serving(LargeApplication(LARGE * 64)) as server, connect(server) as first, connect(server) as second:
        began = []

        def ask_when_it_has_begun() -> None:
            """Called on the loop as long as nothing is compressed."""
            if len(server.worker_state.long_answers):
                second.sendall(GOOD)
                began.append(len(server.app.calls))
            else:
                server.loop.call_soon(ask_when_it_has_begun)

        server.run_on_loop(ask_when_it_has_begun)
        first.sendall(get(b"/inline", ACCEPTS))
        eventually(lambda: bool(began))
        assert AnswerReader(second).read_answer().status == 200
        still = server.run_on_loop(lambda: len(server.worker_state.long_answers))

        assert still == 1
        assert gzip.decompress(AnswerReader(first).read_answer().body) == LARGE * 64


def test_none_is_compressed_while_several_wait() -> None:
    """Compression never lengthens the queue of long answers beyond WAITING_COUNT_MAX."""
    with serving(LargeApplication(LARGE * 64)) as server, connect(server) as client:
        count = WAITING_COUNT_MAX + 3
        clients = [connect(server) for _ in range(count)]

        def send_all() -> None:
            for each in clients:
                each.sendall(get(b"/inline", ACCEPTS))

        server.run_on_loop(send_all)  # all arrive in one turn of the loop
        codings = [AnswerReader(each).read_answer().headers.get("content-encoding") for each in clients]
        for each in clients:
            each.close()

        assert set(codings) == {"gzip", None}
        client.sendall(GOOD)
        assert AnswerReader(client).read_answer().status == 200


def test_a_client_that_leaves_ends_the_compression() -> None:
    with serving(LargeApplication(LARGE * 64)) as server:
        client = connect(server)
        client.sendall(get(b"/inline", ACCEPTS))
        eventually(lambda: "/inline" in server.app.calls)
        reset(client)
        eventually(lambda: bool(server.lost))

        assert server.run_on_loop(lambda: len(server.worker_state.long_answers)) == 0
        assert fetch(server, GOOD)[0].status == 200


@pytest.mark.parametrize(
    ("field", "accepted"),
    [
        ("gzip", True), ("GZIP", True), ("x-gzip", True), ("gzip, deflate, br", True), ("br;q=1.0, gzip;q=0.8", True),
        ("*", True), ("gzip;q=0.001", True), ("identity;q=0.5, gzip", True), ("deflate, *;q=0.3", True),
        ("gzip ; q=0.5", True), ("identity, gzip", True), ("", False), ("identity", False), ("br", False),
        ("gzip;q=0", False), ("gzip;q=0.000", False), ("*;q=0", False), ("gzip;q=0, *", False),
        ("identity, gzip;q=0.5", False), ("gzip;q=x", False), ("gzip;q=", False), ("gzip;level=1", False),
        ("gzip;q=1e9", False), ("gzip;q=-1", False), ("gzipped", False), ("gzip;Q=0.5", True),
        ("gzip;q=\xb2", False), ("gzip;q=0.\xb9", False), ("gzip;q=1;q=1", False), ("gzip;q=.5", False),
        ("gzip;q=0.1234", False), (";" * 8_000, False), ("," * 8_000, False),
    ],
)  # fmt: skip
def test_accepts_gzip(field: str, accepted: bool) -> None:
    """Weights and wildcards of RFC 9110 §12.5.3; identity with a higher weight is preferred."""
    assert accepts_gzip(field) is accepted


def test_pieces_are_one_gzip_member() -> None:
    for body in (b"", b"x", LARGE):
        assert gzip.decompress(b"".join(compress(body))) == body

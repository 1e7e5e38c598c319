"""Heads that were read before: they say the same again, and nobody else's is taken for one of them."""

import tracemalloc
from typing import Any

import pytest

from app.httpd import head_cache
from app.httpd.head_cache import HEAD_SIZE_MAX, HeadCache
from app.httpd.request import RECEIVED_NS, REQUEST_ID, TRACE
from app.httpd.request_names import RequestNames
from app.httpd.request_parser import LARGE_BODY_SIZE, RequestParser
from app.httpd.wsgi_environ import base_environ

PLAIN = b"GET /state?a=%20b HTTP/1.1\r\nHost: a\r\nX-Api-Key: secret\r\n\r\n"
POSTED = b"POST /event HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


class Reader:
    """One connection's message, the environs that it delivers, and how often its parser is asked."""

    def __init__(self, known: HeadCache, address: str = "127.0.0.1") -> None:
        self.environs: list[dict[str, Any]] = []
        environ = base_environ("http", ("127.0.0.1", 80), (address, 4242))
        self.message = RequestParser(environ, RequestNames(bytes), known, self._deliver, lambda _size, _environ: None)

    def _deliver(self, environ: dict[str, Any], persistence: str) -> bool:
        self.environs.append({**environ, "body": environ["wsgi.input"].read(), "persistence": persistence})
        return True

    def feed(self, data: bytes) -> dict[str, Any]:
        """Feed one whole request; returns what of its environ does not differ from request to request."""
        before = len(self.environs)
        self.message.feed(data)
        assert len(self.environs) == before + 1
        ours = {REQUEST_ID, RECEIVED_NS, "wsgi.input"}
        return {key: value for key, value in self.environs[-1].items() if key not in ours}


@pytest.mark.parametrize("request_", [PLAIN, POSTED])
def test_a_familiar_head_says_the_same(request_: bytes) -> None:
    """From the third time on, on other connections from the first; each has its own address and its own name."""
    known = HeadCache()
    reader, other = Reader(known), Reader(known, "10.0.0.1")

    first = [reader.feed(request_) for _ in range(4)]

    assert first == [first[0]] * 4
    assert len(known) == 1
    assert first[0] | {"REMOTE_ADDR": "10.0.0.1"} == other.feed(request_)
    assert len({environ[REQUEST_ID] for environ in reader.environs}) == 4


def test_the_content_is_the_request_s_own() -> None:
    """Only the head is known, and only requests that are whole: the rest is the parser's."""
    known = HeadCache()
    reader = Reader(known)
    for body in (b"abc", b"def", b"ghi", b"jkl"):
        assert body == reader.feed(POSTED[:-3] + body)["body"]

    reader.message.feed(POSTED[:-1])
    assert len(reader.environs) == 4
    assert reader.feed(POSTED[-1:])["body"] == b"abc"
    reader.message.feed(POSTED + PLAIN)
    assert [environ["body"] for environ in reader.environs[-2:]] == [b"abc", b""]


def test_what_is_new_in_each_head_is_not_learned() -> None:
    """And drives nobody out who is: a client that names each of its requests beside one that does not."""
    known = HeadCache()
    reader = Reader(known)
    for number in range(1_000):
        named = PLAIN.replace(b"\r\n\r\n", b"\r\nX-Request-ID: n%d\r\n\r\n" % number)
        assert reader.feed(named)["HTTP_X_REQUEST_ID"] == f"n{number}"
        assert reader.environs[-1][REQUEST_ID] == f"n{number}"

    assert len(known) == 0


def test_a_name_that_stays_is_taken_over_each_time() -> None:
    """The members of a request's own are made anew, from what the head says."""
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request_ = PLAIN.replace(b"\r\n\r\n", b"\r\nX-Request-ID: mine\r\nTraceparent: %s\r\n\r\n" % trace)
    known = HeadCache()
    reader = Reader(known)
    for _ in range(4):
        reader.feed(request_)

    assert len(known) == 1
    assert [environ[REQUEST_ID] for environ in reader.environs] == ["mine"] * 4
    assert len({environ[TRACE].trace_id for environ in reader.environs}) == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n" + PLAIN,
        b"\r\n\r\n" + PLAIN,
        PLAIN.replace(b"Host: a", b"Host:a"),
        PLAIN.replace(b"Host: a", b"Host:  a"),
        PLAIN.replace(b"GET /", b"GET  /"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        PLAIN.replace(b"Host: a", b"Host: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c"),
        PLAIN.replace(b"Host: a", b"Host: a\r\nConnection: close"),
        POSTED.replace(b"Host: a", b"Host: a\r\nExpect: 100-continue"),
        POSTED.replace(b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        POSTED.replace(b"3\r\n\r\nabc", b"%d\r\n\r\n" % (LARGE_BODY_SIZE + 1)) + b"x" * (LARGE_BODY_SIZE + 1),
        PLAIN.replace(b"Host: a", b"Host: a\r\nX: " + b"x" * HEAD_SIZE_MAX),
    ],
)
def test_what_is_not_plain_is_the_parser_s(request_: bytes) -> None:
    """Heads in a form that is not the canonical one, or that ask for more than an answer."""
    known = HeadCache()
    for _ in range(3):
        reader = Reader(known)
        reader.message._uncached_hash = hash(request_[: request_.find(b"\r\n\r\n") + 4])  # as if it had come before
        reader.message.feed(request_)

    assert len(known) == 0


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was learned first makes room."""
    monkeypatch.setattr(head_cache, "HEADS_COUNT_MAX", 3)
    monkeypatch.setattr(head_cache, "REPLACE_INTERVAL", 1)
    known = HeadCache()
    reader = Reader(known)
    for number in (1, 2, 3, 4):
        for _ in range(2):
            reader.feed(PLAIN.replace(b"Host: a", b"Host: a%d" % number))

    assert [head.members["HTTP_HOST"] for head in known.snapshot().values()] == ["a2", "a3", "a4"]


def test_more_of_them_than_places_do_not_drive_each_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in so many takes another's place: five clients in turn, and three places."""
    monkeypatch.setattr(head_cache, "HEADS_COUNT_MAX", 3)
    known = HeadCache()
    readers = [Reader(known) for _ in range(5)]
    requests = [PLAIN.replace(b"Host: a", b"Host: a%d" % number) for number in range(5)]
    for reader, request_ in zip(readers * 4, requests * 4, strict=True):
        reader.feed(request_)

    assert [head.members["HTTP_HOST"] for head in known.snapshot().values()] == ["a0", "a1", "a2"]
    for reader, request_ in zip(
        readers * head_cache.REPLACE_INTERVAL, requests * head_cache.REPLACE_INTERVAL, strict=True
    ):
        reader.feed(request_)
    assert [head.members["HTTP_HOST"] for head in known.snapshot().values()] != ["a0", "a1", "a2"]


@pytest.mark.parametrize("fields", [1, 5, 18, 19, 98])
def test_each_takes_little(fields: int) -> None:
    """Whatever a head of that size is made of: a few long fields, or many short ones with names of their own."""
    known = HeadCache()
    reader = Reader(known)
    size = (HEAD_SIZE_MAX - 60) // fields - 10
    tracemalloc.start()
    try:
        for number in range(100):
            lines = b"".join(b"x%x-%x: %s\r\n" % (number, field, b"v" * size) for field in range(fields))
            for _ in range(2):
                reader.message.feed(b"GET / HTTP/1.1\r\nHost: a\r\n%s\r\n" % lines)
            reader.environs.clear()
        taken = sum(trace.size for trace in tracemalloc.take_snapshot().traces)
    finally:
        tracemalloc.stop()

    assert (100 if fields <= 18 else 0) == len(known)
    assert taken < 100 * 6_000 + 200_000  # and what else there is, which does not grow with them


def test_the_method_of_an_earlier_request_is_nobody_s() -> None:
    """A head that has no method yet is no HEAD: who is refused for it gets content."""
    reader = Reader(HeadCache())
    reader.feed(PLAIN.replace(b"GET", b"HEAD"))
    reader.message.feed(b"G")

    assert not reader.message.is_head

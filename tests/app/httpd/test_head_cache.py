"""The cache of request heads: a cached head gives the same environ, and no other head is mistaken for it."""

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
    """A parser of one connection and the environs that it delivered."""

    def __init__(self, known: HeadCache, address: str = "127.0.0.1") -> None:
        self.environs: list[dict[str, Any]] = []
        environ = base_environ("http", ("127.0.0.1", 80), (address, 4242))
        self.message = RequestParser(environ, RequestNames(bytes), known, self._deliver, lambda _size, _environ: None)

    def _deliver(self, environ: dict[str, Any], persistence: str) -> bool:
        self.environs.append({**environ, "body": environ["wsgi.input"].read(), "persistence": persistence})
        return True

    def feed(self, data: bytes) -> dict[str, Any]:
        """Feed one whole request and return its environ without the members that differ between equal requests."""
        before = len(self.environs)
        self.message.feed(data)
        assert len(self.environs) == before + 1
        ours = {REQUEST_ID, RECEIVED_NS, "wsgi.input"}
        return {key: value for key, value in self.environs[-1].items() if key not in ours}


@pytest.mark.parametrize("request_", [PLAIN, POSTED])
def test_cached_head_gives_the_same_environ(request_: bytes) -> None:
    """A head is cached on its second request, for all connections; each request keeps its own address and id."""
    known = HeadCache()
    reader, other = Reader(known), Reader(known, "10.0.0.1")

    first = [reader.feed(request_) for _ in range(4)]

    assert first == [first[0]] * 4
    assert len(known) == 1
    assert first[0] | {"REMOTE_ADDR": "10.0.0.1"} == other.feed(request_)
    assert len({environ[REQUEST_ID] for environ in reader.environs}) == 4


def test_each_request_has_its_own_body() -> None:
    """Behind a cached head each request has its own body; a request that is not whole goes through the parser."""
    known = HeadCache()
    reader = Reader(known)
    for body in (b"abc", b"def", b"ghi", b"jkl"):
        assert body == reader.feed(POSTED[:-3] + body)["body"]

    reader.message.feed(POSTED[:-1])
    assert len(reader.environs) == 4
    assert reader.feed(POSTED[-1:])["body"] == b"abc"
    reader.message.feed(POSTED + PLAIN)
    assert [environ["body"] for environ in reader.environs[-2:]] == [b"abc", b""]


def test_heads_that_always_differ_are_not_cached() -> None:
    """Heads that contain something new each time, such as a request id, are not cached."""
    known = HeadCache()
    reader = Reader(known)
    for number in range(1_000):
        named = PLAIN.replace(b"\r\n\r\n", b"\r\nX-Request-ID: n%d\r\n\r\n" % number)
        assert reader.feed(named)["HTTP_X_REQUEST_ID"] == f"n{number}"
        assert reader.environs[-1][REQUEST_ID] == f"n{number}"

    assert len(known) == 0


def test_constant_names_are_used_each_time() -> None:
    """A client's constant request id and trace are used for each request with the cached head."""
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
def test_unusual_heads_are_not_cached(request_: bytes) -> None:
    """Heads that are not in canonical form, or that ask for more than an answer, are not cached."""
    known = HeadCache()
    for _ in range(3):
        reader = Reader(known)
        reader.message._uncached_hash = hash(request_[: request_.find(b"\r\n\r\n") + 4])  # as if it had come before
        reader.message.feed(request_)

    assert len(known) == 0


def test_full_cache_replaces_the_oldest_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a full cache the oldest head is replaced."""
    monkeypatch.setattr(head_cache, "HEADS_COUNT_MAX", 3)
    monkeypatch.setattr(head_cache, "REPLACE_INTERVAL", 1)
    known = HeadCache()
    reader = Reader(known)
    for number in (1, 2, 3, 4):
        for _ in range(2):
            reader.feed(PLAIN.replace(b"Host: a", b"Host: a%d" % number))

    assert [head.members["HTTP_HOST"] for head in known.snapshot().values()] == ["a2", "a3", "a4"]


def test_full_cache_replaces_few_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a full cache one new head in REPLACE_INTERVAL replaces the oldest; here with five clients and three places."""
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
def test_cached_head_takes_little_memory(fields: int) -> None:
    """A cached head takes less than 6 kB, whether it has a few long fields or many short ones."""
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
    assert taken < 100 * 6_000 + 200_000  # 200 kB for what does not grow with the heads


def test_method_of_an_earlier_request_is_not_reused() -> None:
    """A request whose method is not known yet does not count as HEAD, even after a HEAD: its refusal has content."""
    reader = Reader(HeadCache())
    reader.feed(PLAIN.replace(b"GET", b"HEAD"))
    reader.message.feed(b"G")

    assert not reader.message.is_head

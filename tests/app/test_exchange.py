"""The call of an application and the bytes of its answer."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from app.exchange import CLOSE, KEEP_ALIVE, PERSIST, Exchange
from app.service import Service

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def answer(
    application: Application, method: str = "GET", persistence: str = PERSIST, *, draining: bool = False
) -> bytes:
    """Return the answer of `application` without its Date line."""
    loop = asyncio.new_event_loop()
    service = Service(application, loop, logging.getLogger("test"))
    loop.close()
    service.draining = draining
    environ = {"REQUEST_METHOD": method, "PATH_INFO": "/"}
    return Exchange().answer(service, environ, persistence).replace(service.date.encode(), b"")


def fixed(status: str, headers: list[tuple[str, str]], body: Any) -> Application:
    """Return an application that always answers the same."""

    def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response(status, headers)
        return body

    return application


def test_answer() -> None:
    """An answer is a status line, the application's headers in their order, and a length that is counted, not
    believed.
    """
    application = fixed("200 OK", [("X-A", "1"), ("Content-Length", "99"), ("x-b", "2")], [b"a", b"bc"])

    assert b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-b: 2\r\nContent-Length: 3\r\n\r\nabc" == answer(application)


def test_framing_is_ours() -> None:
    """Headers by which an application could desynchronise a connection are dropped."""
    names = ["Transfer-Encoding", "connection", "Keep-Alive", "Upgrade", "Date"]

    assert b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" == answer(
        fixed("200 OK", [(name, "x") for name in names], [])
    )


@pytest.mark.parametrize("persistence", [KEEP_ALIVE, CLOSE])
def test_persistence_is_said(persistence: str) -> None:
    """What HTTP/1.0 asked for, or an end, stands in the answer."""
    assert persistence.encode() in answer(fixed("200 OK", [], [b"x"]), persistence=persistence)


def test_draining_is_an_end() -> None:
    """A service that drains says close, whatever the request asked for, errors included."""
    assert CLOSE.encode() in answer(fixed("200 OK", [], [b"x"]), draining=True)
    assert CLOSE.encode() in answer(fixed("200 OK", [], ["text"]), draining=True)


def test_head_has_the_length_of_get() -> None:
    """HEAD gets the announced length, or the length of what would have been sent, and no content."""
    assert answer(fixed("200 OK", [("Content-Length", "42")], []), "HEAD").endswith(b"Content-Length: 42\r\n\r\n")
    assert answer(fixed("200 OK", [], [b"abc"]), "HEAD").endswith(b"Content-Length: 3\r\n\r\n")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_bodiless(status: str) -> None:
    """204 and 304 carry neither length nor content (RFC 9110 §8.6)."""
    assert f"HTTP/1.1 {status}\r\n\r\n".encode() == answer(fixed(status, [("Content-Length", "1")], [b"x"]))


def test_iterables_are_closed() -> None:
    """Any iterable will do, and its close() is called although it raised."""
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
    assert 2 == len(closed)


def test_write_comes_first() -> None:
    """What is sent through the write callable of PEP 3333 precedes the iterable."""

    def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])(b"first ")
        return [b"second"]

    assert answer(application).endswith(b"first second")


def test_status_may_be_replaced_after_an_error() -> None:
    """start_response may be called again with exc_info, and only so."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        start_response(
            "503 Service Unavailable", [], (None, None, None) if environ["REQUEST_METHOD"] == "GET" else None
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
def test_wrong_answers_are_errors(status: str, headers: list[tuple[str, str]], body: Any) -> None:
    """What cannot be sent safely is a 500; nothing of it reaches the wire, the second time as the first."""
    for _ in range(2):
        got = answer(fixed(status, headers, body))

        assert got.startswith(b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/problem+json\r\n")
        assert got.endswith(b'"}')


def test_application_that_never_answers() -> None:
    """An application that does not call start_response is an error, even after an exchange that did."""
    exchange_error = answer(lambda _environ, _start_response: [b"x"])

    assert exchange_error.startswith(b"HTTP/1.1 500 ")

"""Body sizes: an event fits in every form that it may have, and a larger body is not read."""

import contextlib
import gzip
import json
import random
import socket
from typing import Any, Final

import msgspec
import pytest

from app.api.codec.body_sizes import event_size_max, item_count_min, query_size_max
from app.api.operation import Operation
from core.limits import BATCH_COUNT
from testing.bodies import EXAMPLE, JSON, Body, of_json, post, problem
from testing.eventually import HANG_SECONDS
from testing.live_server import LiveServer

EVENT: Final = event_size_max(8, 1024)  # of `still_server`
QUERY: Final = query_size_max(8)
LONGEST: Final = -2.2250738585072024e-308  # its shortest decimal form is 24 characters, the most there are


@pytest.mark.parametrize("dimension", [1, 2, 384, 4096])
@pytest.mark.parametrize("payload_size", [0, 1024, 65_536])
def test_every_way_to_write_an_event_fits(dimension: int, payload_size: int) -> None:
    """Numbers of full length, printed to be read; the largest payload, as JSON and as the longest msgpack of it."""
    size_max = event_size_max(dimension, payload_size)
    event: dict[str, Any] = {
        "event_vector": [LONGEST] * dimension,
        "moral_value": LONGEST,
        "payload": "x" * payload_size,
    }
    assert len(repr(LONGEST)) == 24
    packed = b"\xcf" + bytes(8)  # a 0 as 64-bit integer
    count = payload_size // 2  # "0," each
    widest = b"\xdd" + count.to_bytes(4) + packed * count

    assert len(json.dumps(event, indent=8)) <= size_max
    assert len(msgspec.msgpack.encode({**event, "payload": None})) + len(widest) <= size_max
    assert len(
        json.dumps({"vector": event["event_vector"], "top_k": 100, "include": ["payload", "vector"]}, indent=8)
    ) <= (query_size_max(dimension))


@pytest.mark.parametrize(("size", "items"), [(0, 1), (1, 1), (10, 1), (11, 2), (20, 2), (9_991, 1_000)])
def test_the_minimum_number_of_items_follows_from_the_size_of_a_batch(size: int, items: int) -> None:
    """By its size alone; none is charged as one."""
    assert items == item_count_min(size, Operation("", None, None, item_size_max=10))


def padded(document: Any, size: int) -> Body:
    """Return a body of exactly so many bytes, most of it white space."""
    body = of_json(document)
    return Body(body.content.rjust(size), body.headers)


def test_a_body_is_accepted_up_to_its_maximum_size(still_server: LiveServer) -> None:
    """White space counts; a batch may have what its events may have together."""
    event = {"event_vector": EXAMPLE, "moral_value": 0.0}
    cases: list[tuple[str, Any, int]] = [
        ("/event", event, EVENT), ("/recall", {"vector": EXAMPLE}, QUERY), ("/events", [event], EVENT),
        ("/events", [event] * 3, 3 * EVENT), ("/events", [event] * BATCH_COUNT.value, BATCH_COUNT.value * EVENT),
    ]  # fmt: skip

    for path, document, size in cases:
        assert post(still_server, path, padded(document, size)).status == 200
        before = still_server.state()
        found = problem(post(still_server, path, padded(document, size + 1)))
        assert (found["status"], found["code"], found["field"]) == (413, "body_too_large", "body")
        assert found["expected"] == f"at most {size} bytes"
        assert still_server.state() == before


@pytest.mark.parametrize("expects", ["", "Expect: 100-continue\r\n"])
@pytest.mark.parametrize("path", ["/event", "/recall"])
def test_a_body_above_its_maximum_size_is_not_read(still_server: LiveServer, expects: str, path: str) -> None:
    """What is announced is enough: not one byte of it has been sent."""
    with socket.create_connection(("127.0.0.1", still_server.port), timeout=HANG_SECONDS) as peer:
        peer.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000000\r\n{expects}\r\n".encode())
        answer = b""
        while piece := peer.recv(65_536):
            answer += piece

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"].startswith("body: 16000000 bytes; expected at most ")


def test_the_size_of_a_chunked_body_is_limited(still_server: LiveServer) -> None:
    """Nobody has announced how many bytes there are; they are refused before they are decoded."""
    connection = still_server.connect()
    pieces = iter([b" " * 1000] * 200)
    connection.request("POST", "/event", pieces, {"Content-Type": JSON}, encode_chunked=True)

    answer = connection.getresponse()

    assert (answer.status, json.loads(answer.read())["code"]) == (413, "body_too_large")
    connection.close()


def test_the_size_of_a_body_in_gzip_is_that_of_what_it_holds(still_server: LiveServer) -> None:
    """Accepted up to the maximum size of the operation, refused above it; what is refused moves nothing."""
    event = {"event_vector": EXAMPLE, "moral_value": 0.0}
    cases: list[tuple[str, Any, int]] = [
        ("/event", event, EVENT), ("/events", [event], EVENT), ("/recall", {"vector": EXAMPLE}, QUERY),
    ]  # fmt: skip
    for path, document, size in cases:
        fits, above = padded(document, size), padded(document, size + 1)
        before = still_server.state()["total_events_processed"]

        assert post(still_server, path, in_gzip(fits)).status == 200
        found = problem(post(still_server, path, in_gzip(above)))
        assert (found["status"], found["code"], found["field"]) == (413, "body_too_large", "body")
        assert still_server.state()["total_events_processed"] - before == (path != "/recall")


def test_a_body_in_gzip_that_expands_beyond_its_operation_is_not_read(still_server: LiveServer) -> None:
    """A megabyte of digits is refused when it has grown above what an event may have, not when it is complete."""
    digits = bytes(random.Random(7).choices(b"0123456789", k=1_000_000))

    packed = gzip.compress(digits)
    pieces = iter([packed[i : i + 1_000] for i in range(0, len(packed), 1_000)])
    connection = still_server.connect()
    with contextlib.suppress(OSError):  # the server closes as soon as it has refused
        headers = {"Content-Type": JSON, "Content-Encoding": "gzip"}
        connection.request("POST", "/event", pieces, headers, encode_chunked=True)

    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()

    assert (answer.status, found["code"]) == (413, "body_too_large")
    assert int(found["detail"].split()[1]) < 250_000


def in_gzip(body: Body) -> Body:
    """Return a body with the content coding gzip."""
    return Body(gzip.compress(body.content), {**body.headers, "Content-Encoding": "gzip"})

"""Traffic: whole requests as bytes, built before the measurement and sent in a cycle.

Every event has the moral value 1.0 and is accepted, because a rejected event is cheaper. JSON numbers have seven
decimals (4 kB for 384 of them); base64 and raw bytes are float32. The key is part of every request, even for servers
that ignore it, so that a route and its floor get the same bytes.
"""

import base64
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec
import numpy as np

from loadtests.bench.vectors import Floats

EVENTS: Final = 2_000  # different events; the client cycles through them
BATCHES: Final = 100  # different batches
BATCH: Final = 100
TOP_K: Final = 10
FAST: Final = 32  # connections for requests of microseconds
SLOW: Final = 8  # for requests of a millisecond: few are under way when the client stops, and none waits long

JSON: Final = {"Content-Type": "application/json"}
MSGPACK: Final = {"Content-Type": "application/msgpack"}
RAW: Final = {"Content-Type": "application/octet-stream"}


class Traffic(NamedTuple):
    """Requests to cycle through. `items`: vectors per request; `events`: whether they are decided.

    Where a request holds NUMBER, the client writes the request's number instead, for servers that want new names.
    """

    requests: tuple[bytes, ...]
    connections: int
    items: int = 1
    events: bool = False


NUMBER: Final = "NUMBER#########"  # as long as its replacement


def product_traffic(memories: Floats, queries: Floats, token: str) -> dict[str, Traffic]:
    """Return the traffic of every path of the product, by name."""
    key = {"Authorization": f"Bearer {token}"}

    def posts(path: str, kind: Mapping[str, str], bodies: Iterable[bytes]) -> tuple[bytes, ...]:
        return tuple(request("POST", path, {**key, **kind}, body) for body in bodies)

    events = memories[:EVENTS]
    batches = [np.take(memories, range(n * BATCH, (n + 1) * BATCH), axis=0, mode="wrap") for n in range(BATCHES)]
    raw_event = {**RAW, "Moral-Value": "1.0"}
    return {
        "event raw": Traffic(posts("/event", raw_event, _raw(events)), FAST, events=True),
        "event base64": Traffic(posts("/event", JSON, _base64(events)), FAST, events=True),
        "event JSON": Traffic(posts("/event", JSON, _json(events)), FAST, events=True),
        "event msgpack": Traffic(posts("/event", MSGPACK, _msgpack(events)), FAST, events=True),
        "batch": Traffic(posts("/events", RAW, _batches(batches)), SLOW, BATCH, events=True),
        "recall": Traffic(posts(f"/recall?top_k={TOP_K}", RAW, _raw(queries)), SLOW),
        "recall JSON": Traffic(posts("/recall", JSON, _queries(queries)), SLOW),
        "state": Traffic((request("GET", "/state", key),), FAST),
        "livez": Traffic((request("GET", "/livez", key),), FAST),
    }


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def encode_requests(traffic: Traffic) -> bytes:
    """Encode the requests for the client's script: each after its length, 32 bits, little-endian."""
    return b"".join(struct.pack("<I", len(whole)) + whole for whole in traffic.requests)


# -- bodies ------------------------------------------------------------------------------------------------------------
def numbers(vector: Floats) -> str:
    """Return a vector as a JSON array with seven decimals."""
    return "[" + ", ".join(f"{number:.7f}" for number in vector.tolist()) + "]"


def _raw(vectors: Floats) -> Iterator[bytes]:
    return (vector.astype("<f4").tobytes() for vector in vectors)


def _base64(vectors: Floats) -> Iterator[bytes]:
    for body in _raw(vectors):
        yield json.dumps({"event_vector": base64.b64encode(body).decode(), "moral_value": 1.0}).encode()


def _json(vectors: Floats) -> Iterator[bytes]:
    return (f'{{"event_vector": {numbers(vector)}, "moral_value": 1.0}}'.encode() for vector in vectors)


def _queries(vectors: Floats) -> Iterator[bytes]:
    return (f'{{"vector": {numbers(vector)}, "top_k": {TOP_K}}}'.encode() for vector in vectors)


def _msgpack(vectors: Floats) -> Iterator[bytes]:
    return (msgspec.msgpack.encode({"event_vector": body, "moral_value": 1.0}) for body in _raw(vectors))


def _batches(batches: Iterable[Floats]) -> Iterator[bytes]:
    return (np.ones(len(batch), "<f8").tobytes() + batch.astype("<f4").tobytes() for batch in batches)

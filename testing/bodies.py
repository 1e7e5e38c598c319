"""Request bodies and expected refusals for tests of the HTTP API: vectors in every form."""

import base64
import json
from typing import Any, Final, NamedTuple

import falcon
import msgspec
import numpy as np

from testing.eventually import eventually
from testing.live_server import Answer, LiveServer, is_lock_held

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
RAW: Final = "application/octet-stream"
DIMENSION: Final = 8
EXAMPLE: Final = [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8]

pack = msgspec.msgpack.encode


class Body(NamedTuple):
    """A request body and the headers that go with it."""

    content: bytes
    headers: dict[str, str]


def of_json(document: Any) -> Body:
    """Return a JSON body; `document` may also be the finished text."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Body(content, {"Content-Type": JSON})


def of_msgpack(document: Any) -> Body:
    """Return a msgpack body; `document` may also be the finished bytes."""
    return Body(document if isinstance(document, bytes) else pack(document), {"Content-Type": MSGPACK})


def of_raw(content: bytes, **headers: str) -> Body:
    """Return a body of plain bytes."""
    return Body(content, {"Content-Type": RAW, **headers})


def floats(vector: Any) -> bytes:
    """Return numbers as little-endian float32."""
    return np.asarray(vector, "<f4").tobytes()


def text(vector: Any) -> str:
    """Return numbers as base64 of little-endian float32."""
    return base64.b64encode(floats(vector)).decode()


def as_stored(vector: Any) -> list[float]:
    """Return numbers as the store keeps them."""
    return [float(number) for number in np.asarray(vector, np.float32)]


# An event in every form that the API takes.
EVENT_FORMS: Final = {
    "json numbers": lambda vector, moral: of_json({"event_vector": list(vector), "moral_value": moral}),
    "json base64": lambda vector, moral: of_json({"event_vector": text(vector), "moral_value": moral}),
    "msgpack numbers": lambda vector, moral: of_msgpack({"event_vector": list(vector), "moral_value": moral}),
    "msgpack bin": lambda vector, moral: of_msgpack({"event_vector": floats(vector), "moral_value": moral}),
    "msgpack base64": lambda vector, moral: of_msgpack({"event_vector": text(vector), "moral_value": moral}),
    "raw": lambda vector, moral: of_raw(floats(vector), **{"Moral-Value": repr(moral)}),
}
# The same for batches: [(vector, moral value)].
BATCH_FORMS: Final = {
    "json numbers": lambda events: of_json([{"event_vector": list(v), "moral_value": m} for v, m in events]),
    "json base64": lambda events: of_json([{"event_vector": text(v), "moral_value": m} for v, m in events]),
    "msgpack numbers": lambda events: of_msgpack([{"event_vector": list(v), "moral_value": m} for v, m in events]),
    "msgpack bin": lambda events: of_msgpack([{"event_vector": floats(v), "moral_value": m} for v, m in events]),
    "msgpack base64": lambda events: of_msgpack([{"event_vector": text(v), "moral_value": m} for v, m in events]),
    "raw": lambda events: of_raw(
        np.asarray([m for _, m in events], "<f8").tobytes() + b"".join(floats(v) for v, _ in events)
    ),
}


def post(server: LiveServer, path: str, body: Body) -> Answer:
    """Send a body."""
    return server.request("POST", path, body.content, body.headers)


def sent(server: LiveServer, path: str, body: Body) -> Any:
    """Send a body that must be accepted; return the document of the answer.

    A request that found the lock held too long is sent again: a busy machine may take the processor from a holder.
    """

    def send() -> Answer | None:
        answer = post(server, path, body)
        return None if is_lock_held(answer) else answer

    answer = eventually(send)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == JSON
    return answer.json


def accepted(server: LiveServer, payload: Any = None, vector: Any = EXAMPLE) -> dict[str, Any]:
    """Send an event that every threshold accepts; return its decision."""
    decision: dict[str, Any] = sent(
        server, "/event", of_json({"event_vector": list(vector), "moral_value": 1.0, "payload": payload})
    )
    assert decision["accepted"]
    return decision


def problem(answer: Answer) -> dict[str, Any]:
    """Return the problem document of an answer, which must have the form that RFC 9457 and this API give it."""
    document: dict[str, Any] = answer.json
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["type"] == "about:blank"
    assert document["status"] == answer.status
    assert document["title"] == falcon.code_to_http_status(answer.status).partition(" ")[2]
    assert document["code"].replace("_", "").isalpha()
    assert document["detail"]
    return document


def refused(server: LiveServer, path: str, body: Body) -> dict[str, Any]:
    """Send a body that must be refused and change nothing; return the problem document."""
    before = server.state()
    answer = post(server, path, body)
    assert server.state() == before
    document = problem(answer)
    if answer.status == 422:
        assert document["detail"].startswith(f"{document['field']}: ")
        assert document["detail"].endswith(f"; expected {document['expected']}")
    return document

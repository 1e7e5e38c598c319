"""Media types: what a Content-Type says about the bytes of a body is read, or refused."""

import json

import pytest

from testing.bodies import EXAMPLE, Body, post, problem
from testing.live_server import LiveServer

EVENT = json.dumps({"event_vector": EXAMPLE, "moral_value": 0.0}).encode()


@pytest.mark.parametrize("parameters", ["", "; charset=utf-8", ';charset="UTF-8"', "; charset=us-ascii", "; a=b"])
def test_json_in_utf_8_is_accepted(still_server: LiveServer, parameters: str) -> None:
    """RFC 8259 §8.1: JSON is UTF-8; clients may say so."""
    body = Body(EVENT, {"Content-Type": "application/json" + parameters})

    assert post(still_server, "/event", body).status == 200


@pytest.mark.parametrize("path", ["/event", "/events", "/recall"])
@pytest.mark.parametrize(
    "parameters",
    [
        "; charset=iso-8859-1",
        ';a=b; CHARSET="UTF-16"',
        "; charset=",
        "; charset=cp1252;a=b",
        "; charset=utf-8; charset=utf-16",
    ],
)
def test_another_charset_is_refused(still_server: LiveServer, path: str, parameters: str) -> None:
    """Bytes in another encoding may be valid UTF-8, and would be stored as another text."""
    before = still_server.state()
    found = problem(post(still_server, path, Body(EVENT, {"Content-Type": "application/json" + parameters})))

    assert (found["status"], found["code"], found["field"]) == (415, "unsupported_media_type", "Content-Type")
    assert found["expected"] == "utf-8"
    assert still_server.state() == before

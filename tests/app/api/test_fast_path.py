"""Fast path: it gives the responses of the framework (status, headers, body), and a refusal is counted once."""

import re

from testing import keys
from testing.bodies import EXAMPLE, Body, of_json, of_raw
from testing.live_server import Answer
from tests.conftest import Serve

GOOD = of_json({"event_vector": EXAMPLE, "moral_value": 0.95})
VARYING = {"date", "x-request-id"}


def told(answer: Answer) -> tuple[int, dict[str, str], str]:
    """Return an answer without what differs from one to the next: names, numbers and what is left of a quota."""
    headers = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in VARYING}
    headers["ratelimit"] = re.sub(r"[0-9]+", "n", headers.get("ratelimit", ""))
    body = re.sub(r"[0-9.]+", "n", answer.body.decode())
    if answer.status == 200:
        headers["content-length"] = "n"
    return answer.status, headers, body


def test_the_fast_path_and_the_framework_answer_alike(serve: Serve) -> None:
    """A path with one slash more is Falcon's, and finds the same route."""
    server = serve(
        MLSDM_DIMENSION="8",
        WORKERS="1",
        API_KEY=keys.API_KEY,
        MLSDM_SECURITY__RATE_LIMITING__ENABLED="true",
        MLSDM_SECURITY__RATE_LIMITING__BURST_CAPACITY="1000",
    )
    keyed = {"Authorization": f"Bearer {keys.API_KEY}"}
    events: list[tuple[str, str, Body]] = [
        ("POST", "/event", GOOD),
        ("POST", "/event", of_raw(b"\0" * 32, **{"Moral-Value": "0.1"})),
        ("POST", "/event", of_raw(b"\0" * 31, **{"Moral-Value": "0.1"})),
        ("POST", "/event", of_json({"moral_value": 2})),
        ("POST", "/event", Body(b"x", {"Content-Type": "text/plain"})),
        ("POST", "/events", of_json([{"event_vector": EXAMPLE, "moral_value": 0.95}] * 3)),
        ("POST", "/events", of_json([])),
        ("GET", "/state", Body(b"", {})),
        ("DELETE", "/state", Body(b"", {})),
    ]
    for method, path, (content, headers) in events:
        for credentials in (keyed, {}, {"X-API-Key": "wrong"}):
            short, long = (
                server.request(method, way, content or None, headers | credentials) for way in (path, "/" + path)
            )
            assert told(long) == told(short), (method, path, content, credentials)
    for way in ("/event", "//event"):  # a key belongs to its path
        again = GOOD.headers | keyed | {"Idempotency-Key": way}
        first, retry = (server.request("POST", way, GOOD.content, again) for _ in range(2))
        assert first.body == retry.body
        assert (first.headers.get("idempotency-replayed"), retry.headers.get("idempotency-replayed")) == (None, "true")


def test_a_failure_on_the_fast_path_is_counted_and_audited_once(serve: Serve) -> None:
    """It is one refusal, although it passes the fast path and the framework."""
    server = serve(MLSDM_DIMENSION="8", WORKERS="1", API_KEY=keys.API_KEY)
    assert server.request("POST", "/event", *GOOD).status == 401
    scrape = server.get("/metrics").body.decode()

    assert 'mlsdm_refusals_total{code="unauthorised"} 1.0' in scrape
    assert server.log.count('"auth_failure"') == 1

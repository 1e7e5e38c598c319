"""A deferred operation on a whole server: router, gate, quotas, errors, metrics and limits are those of every route."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.bodies import problem
from testing.eventually import eventually
from testing.live_server import Answer, LiveServer
from tests.app.httpd.serving import reset
from tests.conftest import SMALL

APPLICATION = "testing.deferred_app:app"
WAITING_MAX = 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with one worker, on which few may wait."""
    environ = {**SMALL, "WORKERS": "1", "MLSDM_SERVER__DEFERRED_MAX": str(WAITING_MAX)}
    server = LiveServer(tmp_path_factory.mktemp("deferred"), environ, application=APPLICATION)
    yield server.start()
    server.stop()


def ask(server: LiveServer, path: str, method: str = "POST", body: bytes = b"{}") -> http.client.HTTPConnection:
    """Send a request whose answer is deferred."""
    client = server.connect()
    client.request(method, path, body, {"Content-Type": "application/json"})
    return client


def read(client: http.client.HTTPConnection) -> Answer:
    """Read the answer of a request that was sent before, and end."""
    response = client.getresponse()
    answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    client.close()
    return answer


def state(server: LiveServer) -> Any:
    """Return who waits, and who was cancelled."""
    return server.request("POST", "/later/state", b"{}", {"Content-Type": "application/json"}).json


def release(server: LiveServer) -> None:
    """Let all that wait be answered."""
    assert server.request("POST", "/later/release", b"{}", {"Content-Type": "application/json"}).status == 200


def answered(server: LiveServer, path: str, method: str = "POST", body: bytes = b"{}") -> Answer:
    """Return a deferred answer that has waited."""
    with contextlib.closing(ask(server, path, method, body)) as client:
        eventually(lambda: state(server)["waiting"])
        release(server)
        return read(client)


def test_a_template_with_a_body_is_answered_in_json(server: LiveServer) -> None:
    """The responder gets its path parameter and a large body; its value is sent as JSON."""
    answer = answered(server, "/later/one", body=b"x" * 100_000)

    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == {"name": "one", "size": 100_000}


def test_the_coroutine_may_fill_the_response_or_return_bytes(server: LiveServer) -> None:
    """None keeps what it has put into the response: status, fields, body."""
    filled, plain = answered(server, "/later/two?fill=1"), answered(server, "/later/three?bytes=1")

    assert (filled.status, filled.headers["x-own"], filled.body) == (202, "two", b"filled")
    assert filled.headers["content-type"] == "text/plain"
    assert (plain.status, plain.body) == (200, b"bytes")


def test_head_and_options(server: LiveServer) -> None:
    """HEAD waits and has the length that GET has; OPTIONS is answered at once."""
    got, head = answered(server, "/later/four", "GET"), answered(server, "/later/four", "HEAD")
    options = server.request("OPTIONS", "/later/four")

    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(got.body)))
    assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")
    assert server.request("DELETE", "/later/four").status == 405


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("raise=problem", 422, "field_invalid"),
        ("raise=store", 503, "stopped"),
        ("raise=bug", 500, "internal_error"),
        ("raise=interrupt", 500, "internal_error"),
        ("raise=other", 500, "internal_error"),
    ],
)
def test_what_the_coroutine_raises_is_a_problem(server: LiveServer, query: str, status: int, code: str) -> None:
    """Problem and StoreError are their documents, anything else is a 500 with a line in the log."""
    answer = answered(server, f"/later/five?{query}")

    assert (answer.status, problem(answer)["code"]) == (status, code)
    assert (code == "internal_error") == ("a bug in the coroutine" in server.log)


def test_what_is_raised_before_it_waits(server: LiveServer) -> None:
    """A responder may refuse at once."""
    assert problem(read(ask(server, "/later/six?early=1")))["code"] == "field_invalid"


def test_one_more_than_may_wait_is_refused(server: LiveServer) -> None:
    """It is told when to come back, and those that wait are not disturbed; then there is room again."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(ask(server, f"/later/{n}"))) for n in range(WAITING_MAX)]
        refused = eventually(
            lambda: found if (found := read(ask(server, "/later/more", "GET"))).status == 503 else None
        )
        assert (problem(refused)["code"], refused.headers["retry-after"]) == ("too_many_deferred", "1")
        # One leaves, and so the one that releases all others has its place.
        assert clients[0].sock is not None
        reset(clients[0].sock)
        eventually(lambda: read(ask(server, "/later/release")).status == 200)

        assert [read(client).json["name"] for client in clients[1:]] == [str(n) for n in range(1, WAITING_MAX)]


def test_a_client_that_leaves_cancels_its_request(server: LiveServer) -> None:
    """The coroutine is cancelled, and its place is free."""
    before = state(server)["cancelled"].count("seven")
    for leave in (socket.socket.close, reset):
        client = ask(server, "/later/seven")
        eventually(lambda: "seven" in state(server)["waiting"])
        assert client.sock is not None
        leave(client.sock)
        client.close()
        eventually(lambda: state(server)["waiting"] == [])

    assert state(server)["cancelled"].count("seven") == before + 2


def test_answers_are_counted(server: LiveServer) -> None:
    """The route is a label of the metrics like any other, and refusals are counted by their code."""
    answered(server, "/later/eight?raise=problem")
    metrics = server.get("/metrics").body.decode()

    assert 'mlsdm_requests_total{route="/later/{name}",status="422"}' in metrics
    assert 'mlsdm_refusals_total{code="field_invalid"}' in metrics


def test_the_document_has_the_codes_of_deferred_answers(server: LiveServer) -> None:
    """OpenAPI lists both for such an operation, and for no other."""
    document = eventually(lambda: found if (found := server.get("/openapi.json")).status == 200 else None).json
    responses = document["components"]["responses"]
    with_codes = {name for name, response in responses.items() if "too_many_deferred" in json.dumps(response)}
    described = [
        path
        for path, methods in document["paths"].items()
        if any(f'/{name}"' in json.dumps(methods) for name in with_codes)
    ]

    assert described == ["/later/{name}"]
    assert all("deferred_timeout" in json.dumps(responses[name]) for name in with_codes)


def test_late_answers_are_503(tmp_path: Path) -> None:
    """After its seconds the coroutine is cancelled; the outcome is unknown, and the connection goes on."""
    environ = {**SMALL, "WORKERS": "1", "TIMEOUT_SECONDS": "0.5"}
    server = LiveServer(tmp_path, environ, application=APPLICATION).start()
    try:
        client = ask(server, "/later/nine")
        answer = client.getresponse()
        document = json.loads(answer.read())
        client.request("GET", "/livez")

        assert (answer.status, document["code"]) == (503, "deferred_timeout")
        assert "unknown" in document["detail"]
        assert client.getresponse().status == 200
        client.close()
        assert state(server) == {"waiting": [], "cancelled": ["nine"]}
    finally:
        server.stop()


def test_an_operation_that_defies_its_cancellation_keeps_its_place(tmp_path: Path) -> None:
    """Its client is answered all the same. Such operations are logged and counted, and bounded like all others."""
    environ = {**SMALL, "WORKERS": "1", "TIMEOUT_SECONDS": "0.5", "MLSDM_SERVER__DEFERRED_MAX": "2"}
    server = LiveServer(tmp_path, environ, application=APPLICATION).start()
    try:
        late = [read(ask(server, "/later/ten?defy=1")) for _ in range(2)]
        eventually(lambda: "mlsdm_deferred_abandoned_total 2.0" in server.get("/metrics").body.decode())
        refused = read(ask(server, "/later/eleven"))
    finally:
        server.stop()

    assert [(answer.status, problem(answer)["code"]) for answer in late] == [(503, "deferred_timeout")] * 2
    assert problem(refused)["code"] == "too_many_deferred"
    assert "does not end when it is cancelled, and keeps its place: /later/{name}" in server.log


def test_term_answers_those_that_wait(tmp_path: Path) -> None:
    """The whole server stops as with any other request: it finishes what it has."""
    environ = {**SMALL, "WORKERS": "1", "TIMEOUT_SECONDS": "2"}
    server = LiveServer(tmp_path, environ, application=APPLICATION).start()
    clients = [ask(server, f"/later/{number}") for number in range(20)]
    eventually(lambda: len(state(server)["waiting"]) == 20)
    server.stop()

    answers = [read(client) for client in clients]
    assert {(answer.status, answer.headers["connection"]) for answer in answers} == {(503, "close")}

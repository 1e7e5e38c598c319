"""Problem documents (RFC 9457): refusals that do not depend on the values of one route."""

import socket
from types import SimpleNamespace
from typing import Any

import falcon
import falcon.testing
import msgspec
import pytest

from app.api.decision_view import DecisionView
from app.api.problem import (
    Problem,
    ProblemDocument,
    above_limit,
    invalid,
    problem_of_store_error,
    write_problem,
)
from app.api.problem_codes import CODES, CONNECTION
from app.httpd.problem_document import problem_document
from app.httpd.refusal import Refusal
from app.httpd.response import DefaultHeaders, problem_answer, status_of
from core.limits import BATCH_COUNT, BODY_SIZE
from shm import errors
from testing.bodies import JSON, Body, of_json, post, problem
from testing.eventually import HANG_SECONDS
from testing.live_server import LiveServer
from tests.app.api.problem_serialiser import serialise

ROUTES = {
    "/event": {"POST"},
    "/events": {"POST"},
    "/recall": {"POST"},
    "/memories/1": {"GET", "HEAD", "DELETE"},
    "/decisions": {"GET", "HEAD"},
    "/state": {"GET", "HEAD"},
    "/governor": {"GET", "HEAD", "PATCH"},
    "/governor/reset": {"POST"},
    "/governor/stop": {"POST"},
    "/governor/resume": {"POST"},
    "/health/liveness": {"GET", "HEAD"},
    "/health/readiness": {"GET", "HEAD"},
    "/health/detailed": {"GET", "HEAD"},
    "/health/metrics": {"GET", "HEAD"},
    "/livez": {"GET", "HEAD"},
    "/readyz": {"GET", "HEAD"},
    "/metrics": {"GET", "HEAD"},
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE")


@pytest.mark.parametrize("path", ROUTES)
def test_other_methods_are_405_with_allow(still_server: LiveServer, path: str) -> None:
    """RFC 9110 §15.5.6: a 405 lists the methods in Allow; nothing moves."""
    before = still_server.state()

    for method in set(METHODS) - ROUTES[path]:
        answer = still_server.request(method, path)
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == ROUTES[path] | {"OPTIONS"}
        if method != "HEAD":
            assert problem(answer)["code"] == "method_not_allowed"
    assert still_server.state() == before


@pytest.mark.parametrize(
    "path", [path for path, methods in ROUTES.items() if "HEAD" in methods and path != "/memories/1"]
)
def test_every_get_has_a_head(still_server: LiveServer, path: str) -> None:
    """RFC 9110 §9.1 asks every server for GET and HEAD; the head is that of GET, without the body."""
    got, head = still_server.get(path), still_server.request("HEAD", path)

    assert (head.status, head.headers["content-type"], head.body) == (got.status, got.headers["content-type"], b"")
    # RFC 9110 §9.3.2: what only making the content would tell may be left out, and a page of the log is long to make.
    assert path == "/decisions" or int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/event/",
        "/events/1",
        "/state/",
        "/memories",
        "/memories/1/2",
        "/health",
        "/health/x",
        "/%ff",
        "/State",
        "/health/../state",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_routes_are_404(still_server: LiveServer, method: str, path: str) -> None:
    """Routes are taken literally: no case is folded, no dot resolved, no slash forgiven."""

    assert problem(still_server.request(method, path))["code"] == "no_such_route"


@pytest.mark.parametrize("path", ["/event", "/events", "/recall"])
@pytest.mark.parametrize(
    "media",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "json",
        "application/jsonx",
        ",",
        "x" * 5000,
    ],
)
def test_other_media_types_are_415(still_server: LiveServer, path: str, media: str) -> None:
    """The document says which are taken."""
    before = still_server.state()

    document = problem(post(still_server, path, Body(b"{}", {"Content-Type": media})))

    assert (document["status"], document["code"], document["field"]) == (415, "unsupported_media_type", "Content-Type")
    assert document["expected"] == "application/json, application/msgpack or application/octet-stream"
    assert len(document["detail"]) < 300
    assert still_server.state() == before


def test_a_body_over_the_limit_is_413_before_it_is_read(still_server: LiveServer) -> None:
    """The announced length is enough: not one byte of 16 MB has been sent."""
    with socket.create_connection(("127.0.0.1", still_server.port), timeout=HANG_SECONDS) as peer:
        head = (
            f"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {BODY_SIZE.value + 1}\r\n\r\n"
        )
        peer.sendall(head.encode())
        answer = b""
        while piece := peer.recv(65536):
            answer += piece

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    assert b'"code":"body_too_large"' in answer


def test_text_of_clients_is_escaped_as_json(still_server: LiveServer) -> None:
    """Quotation marks and control characters in a field name stay inside the string."""

    document = problem(post(still_server, "/event", of_json({'a"\n\u2028<b>': 1})))

    assert document["field"] == 'a"\n\u2028<b>'


def test_a_problem_names_field_fault_and_expectation() -> None:
    """The sentence is the same three parts as the members."""
    refusal = invalid("x", "x_wrong", "is 7", "a smaller one")

    assert (refusal.status_code, refusal.problem_code, refusal.field, refusal.expected, refusal.description) == (
        422, "x_wrong", "x", "a smaller one", "x: is 7; expected a smaller one",
    )  # fmt: skip
    assert above_limit(BATCH_COUNT, "body", 1001).description == "body: 1001 events; expected at most 1000 events"


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (errors.Busy, "store_busy", "1"),
        (errors.Unformed, "store_starting", "1"),
        (errors.Taken, "controller_busy", "1"),
        (errors.Stopped, "stopped", "60"),
        (errors.Corrupt, "store_corrupt", "60"),
        (errors.Lost, "store_lost", "60"),
    ],
)
def test_a_store_that_cannot_serve_is_503_with_retry_after(
    error: type[errors.StoreError], code: str, retry_after: str
) -> None:
    """RFC 9110 §10.2.3: whole seconds."""
    refusal = problem_of_store_error(error(error.__doc__))

    assert (refusal.status_code, refusal.problem_code) == (503, code)
    assert dict(refusal.headers or {})["Retry-After"] == retry_after


DECISION = DecisionView(True, "accepted", 1, 0.5, 0.5, 0.5, 0.5, "wake", 2, "boot", "log", "", 1)


class FailingResource:
    """A resource whose GET raises what it was made with."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def on_get(self, _request: falcon.Request, _response: falcon.Response) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (falcon.HTTPNotFound(), (404, "no_such_route")),
        (falcon.HTTPBadRequest(), (400, "bad_request")),
        (falcon.HTTPUnsupportedMediaType(), (415, "unsupported_media_type")),
        (falcon.HTTPContentTooLarge(), (413, "body_too_large")),
        (falcon.HTTPInternalServerError(), (500, "internal_error")),
        (falcon.HTTPGone(), (410, "http_error")),
        (Problem(503, "batch_interrupted", "Some.", results=[DECISION]), (503, "batch_interrupted")),
    ],
)
def test_every_error_of_the_framework_becomes_a_problem_document(error: Exception, expected: tuple[int, str]) -> None:
    """Whatever is raised in a handler leaves in the one form."""
    api = falcon.App()
    api.set_error_serializer(serialise)
    api.add_route("/", FailingResource(error))

    answer = falcon.testing.TestClient(api).simulate_get("/")

    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json["status"], answer.json["code"]) == expected
    assert answer.json["detail"]
    assert answer.json.get("results") == msgspec.to_builtins(getattr(error, "results", None))


@pytest.mark.parametrize(
    ("detail", "members"),
    [
        ("body: is empty", {}),
        ('a"\\/\n\r\t\b\f\0\x1f\x7f\u2028é😀', {}),
        ("body: is 7", {"field": 'b"\n', "expected": "fewer"}),
        ("Some.", {"results": [DECISION]}),
        ("All.", {"field": "body", "expected": "more", "results": [DECISION, DECISION]}),
    ],
    ids=["plain", "escapes", "field", "results", "everything"],
)
def test_a_problem_document_is_the_json_of_its_members(detail: str, members: dict[str, Any]) -> None:
    """In the order of ProblemDocument, escaped as any other answer, without the members that are missing."""
    error, response = Problem(422, "field_invalid", detail, **members), falcon.Response()

    assert write_problem(response, error, problem_document) == ("field_invalid", members.get("field"))

    expected = ProblemDocument("about:blank", "Unprocessable Entity", 422, "field_invalid", detail, **members)
    assert response.data == msgspec.json.encode(expected)


@pytest.mark.parametrize("status", sorted({CODES[code].status for code in CONNECTION}))
def test_a_status_has_one_title(status: int) -> None:
    """The connection and the routes take their phrases from different tables."""

    assert status_of(Refusal(status, "code", "detail")) == falcon.code_to_http_status(status)


def test_the_connection_and_the_routes_answer_the_same_document() -> None:
    """One renderer: the same code and detail are the same bytes, whoever refuses the request."""
    code, detail = "store_busy", 'a"\n\u2028'
    service: Any = SimpleNamespace(date="", default_headers=DefaultHeaders(secure=False))
    of_connection = problem_answer(Refusal(503, code, detail), service, "", "").partition(b"\r\n\r\n")[2]

    response = falcon.Response()
    write_problem(response, Problem(503, code, detail), problem_document)

    assert response.data == of_connection

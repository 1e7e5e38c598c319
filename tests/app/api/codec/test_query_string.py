"""Query string: what an operation does not declare is refused by its name, on every route that needs a role."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest

from app.api.codec.query_string import check_query
from app.api.operation import Operation, Parameter
from app.api.problem import Problem
from core.access.keys import Role
from testing import keys
from testing.bodies import EXAMPLE, JSON, accepted, floats, of_json, of_raw, problem
from testing.live_server import Answer, LiveServer

OPERATION: Final = Operation(
    "", Role.READ, None, parameters=(
        Parameter("a", "query", str, ""), Parameter("b", "query", str, ""), Parameter("c", "header", str, ""),
        Parameter("d", "path", str, ""),
    ),
)  # fmt: skip
NONE: Final = "no query parameters"


@pytest.mark.parametrize("query", ["", "a=1", "a", "a=", "b=1&a=2", "a=1,2", "%61=1", "&", "&&a=1&"])
def test_declared_parameters_are_accepted(query: str) -> None:
    """In any order, with or without a value. A query without a name says nothing."""
    check_query(query, OPERATION)


@pytest.mark.parametrize(
    ("query", "code", "sentence"),
    [
        ("x=1", "field_unknown", "x: is unknown; expected one of a, b"),
        ("x", "field_unknown", "x: is unknown; expected one of a, b"),
        ("a=1&x=1", "field_unknown", "x: is unknown; expected one of a, b"),
        ("A=1", "field_unknown", "A: is unknown; expected one of a, b"),
        ("c=1", "field_unknown", "c: is unknown; expected one of a, b"),
        ("d=1", "field_unknown", "d: is unknown; expected one of a, b"),
        ("a=1&a=1", "field_repeated", "a: is given 2 times; expected one value"),
        ("a&b&a&%61=3", "field_repeated", "a: is given 3 times; expected one value"),
        ("=1", "field_unknown", "query: is unknown; expected one of a, b"),
        ("x" * 100, "field_unknown", f"{'x' * 40}: is unknown; expected one of a, b"),
    ],
)
def test_other_parameters_are_refused_by_their_names(query: str, code: str, sentence: str) -> None:
    """Headers and parts of the path do not count as parameters of the query."""
    with pytest.raises(Problem) as refusal:
        check_query(query, OPERATION)

    found = refusal.value
    assert (found.status_code, found.problem_code, found.description) == (422, code, sentence)


# -- on a server -------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """An operation of the server's own document, as a request that is valid without a query."""

    method: str
    path: str
    is_open: bool
    parameters: list[str]  # of its query


def calls(server: LiveServer) -> Iterator[Call]:
    """Yield every operation; HEAD does what GET does."""
    document = server.get("/openapi.json", **keys.bearer("admin")).json
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            queried = [found["name"] for found in operation.get("parameters", ()) if found.get("in") == "query"]
            for spelled in (method.upper(), "HEAD") if method == "get" else (method.upper(),):
                yield Call(spelled, path.replace("{memory_id}", "1"), operation["security"] == [], queried)


def ask(server: LiveServer, call: Call, query: str) -> Answer:
    """Send a request that would be answered without its query."""
    body: Any = None
    if call.path in {"/event", "/recall"}:
        body = of_raw(floats(EXAMPLE), **{"Moral-Value": "1"})
    elif call.path == "/events":
        body = of_json([{"event_vector": EXAMPLE, "moral_value": 1}])
    elif call.method == "PATCH":
        body = of_json({"moral_filter": {"dead_band": 0.1}})
    headers = (body.headers if body else {}) | keys.bearer("admin")
    return server.request(call.method, f"{call.path}?{query}", body.content if body else None, headers)


def test_every_operation_refuses_a_parameter_that_it_does_not_declare(keyed_server: LiveServer) -> None:
    """Nothing is reset, stopped, deleted, decided or read; probes and scrapes ignore what balancers add."""
    admin = keys.bearer("admin")
    before = keyed_server.get("/state", **admin).json["position"], keyed_server.get("/governor", **admin).json
    seen = set()

    for call in calls(keyed_server):
        seen.add((call.method, call.path))
        answer = ask(keyed_server, call, "dry_run=true")
        if call.is_open:
            assert answer.status == 200, call
            continue
        assert answer.status == 422, call
        if call.method != "HEAD":
            document = problem(answer)
            expected = "one of " + ", ".join(call.parameters) if call.parameters else NONE
            assert (document["code"], document["field"], document["expected"]) == ("field_unknown", "dry_run", expected)
        for name in call.parameters:
            twice = ask(keyed_server, call, f"{name}=1&{name}=1")
            assert twice.status == 422
            assert call.method == "HEAD" or problem(twice)["code"] == "field_repeated"

    assert {("POST", "/governor/reset"), ("DELETE", "/memories/1"), ("GET", "/state"), ("GET", "/docs")} <= seen
    after = keyed_server.get("/governor", **admin).json
    assert after["moral_filter"] == before[1]["moral_filter"]
    kinds = keyed_server.get(f"/decisions?after={before[0]}&limit=1000", **admin).json["entries"]
    assert {entry["kind"] for entry in kinds} <= {"tick"}


def test_a_stranger_is_not_told_which_parameters_exist(keyed_server: LiveServer) -> None:
    """The credential comes first, then the role."""
    assert keyed_server.get("/decisions?x=1").status == 401
    refused = keyed_server.request("POST", "/governor/reset?x=1", headers=keys.bearer("reader"))
    assert refused.status == 403


@pytest.mark.parametrize("body", [b'{"dry_run":true}', b"[]", b"null", b"dry_run=true", b"\x80"])
@pytest.mark.parametrize("path", ["/governor/reset", "/governor/stop", "/governor/resume", "/memories/{}"])
def test_a_body_that_would_be_ignored_is_refused(still_server: LiveServer, path: str, body: bytes) -> None:
    """The body asks for something that the operation would not do."""
    target = path.format(accepted(still_server)["memory_id"])
    method = "DELETE" if "memories" in path else "POST"
    before = still_server.state()

    document = problem(still_server.request(method, target, body, {"Content-Type": JSON}))

    assert (document["code"], document["field"]) == ("field_unknown", "body")
    assert document["detail"] == f"body: has {len(body)} bytes; expected no body, or an empty object"
    assert still_server.state() == before


@pytest.mark.parametrize("body", [b"", b"{}", b" {}\n"])
def test_an_empty_body_is_no_body(still_server: LiveServer, body: bytes) -> None:
    """Some clients send an empty object with every POST."""
    assert still_server.request("POST", "/governor/resume", body, {"Content-Type": JSON}).status == 200


@pytest.mark.parametrize("query", ["", "?"])
def test_an_empty_query_is_no_query(still_server: LiveServer, query: str) -> None:
    """A question mark alone says nothing."""
    assert still_server.get("/state" + query).status == 200

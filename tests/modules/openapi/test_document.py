"""GET /openapi.json: the document is OpenAPI 3.1, complete, exact, and its examples work."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest

from app.api import problem
from app.api.problem_codes import CODES, COMMAND, CONNECTION, DEFERRED, GATE
from core import limits
from core.limits import Limit
from modules.openapi.schema import Schemas
from testing.bodies import JSON, MSGPACK, RAW, of_json, of_msgpack, of_raw, post
from testing.live_server import ROOT, LiveServer
from tests.conftest import SMALL

# Codes of Falcon's own errors that nothing here raises; they stand in app/api/problem.py for the day when something
# does.
FALCONS: Final = {"bad_request", "http_error"}
ROUTER: Final = {"no_such_route", "method_not_allowed"}  # of what is no operation


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of its own, which the examples may change: 8 dimensions, no key."""
    server = LiveServer(tmp_path_factory.mktemp("openapi"), dict(SMALL))
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def document(server: LiveServer) -> dict[str, Any]:
    """The document that the server serves."""
    answer = server.get("/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    found: dict[str, Any] = answer.json
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (path, method, operation)."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a tree."""
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(value)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Return a validator for a schema of the document."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def codes_of(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, int]:
    """Return the codes with which an operation may refuse, and their statuses."""
    codes: dict[str, int] = {}
    for status, response in operation["responses"].items():
        named = response.get("$ref", "").rpartition("/")[2]
        content = (document["components"]["responses"][named] if named else response)["content"]
        if described := content.get(problem.PROBLEM_JSON):
            of_status = described["x-codes"]
            codes |= dict.fromkeys(of_status, int(status))
    return codes


def test_every_route_and_method_is_there(server: LiveServer, document: dict[str, Any]) -> None:
    """What OPTIONS says of a path is what the document says of it, and there are no others."""
    for path, methods in document["paths"].items():
        allowed = server.request("OPTIONS", path.replace("{memory_id}", "1")).headers["allow"].split(", ")

        assert {method.upper() for method in methods} == set(allowed) - {"HEAD", "OPTIONS"}
    assert {"/event", "/events", "/recall", "/governor", "/health/detailed", "/docs"} < set(document["paths"])


def test_every_reference_resolves_and_every_schema_is_one(document: dict[str, Any]) -> None:
    """Nothing points into nothing, no component is left over, and the meta-schema holds."""
    targets = {node["$ref"] for node in nodes(document) if "$ref" in node}
    known = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses", "headers")
        for name in document["components"][kind]
    }

    assert known == targets
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_operation_ids_are_names_and_unique(document: dict[str, Any]) -> None:
    """Generators of clients make functions of them."""
    ids = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(set(ids)) == len(ids)
    assert all(name.isidentifier() for name in ids)


def test_every_path_parameter_is_described(document: dict[str, Any]) -> None:
    """A template variable has its parameter, and it is required."""
    for path, _, operation in operations(document):
        described = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path" and p["required"]}

        assert set(re.findall(r"\{(\w+)\}", path)) == described


def test_examples_are_what_their_schemas_say(document: dict[str, Any]) -> None:
    """Of bodies, of answers, and of single members."""
    checked = 0
    for node in nodes(document):
        if "schema" in node and "example" in node:
            validator(document, node["schema"]).validate(node["example"])
            checked += 1
        if isinstance(node.get("examples"), list):
            for example in node["examples"]:
                validator(document, node).validate(example)
                checked += 1

    assert checked > 100


def test_the_examples_of_bodies_work(server: LiveServer, document: dict[str, Any]) -> None:
    """In every media type that has one, each is answered with 200."""
    for path, method, operation in operations(document):
        for media, body in operation.get("requestBody", {}).get("content", {}).items():
            if media == RAW:
                extra = {"Moral-Value": "0.8"} if path == "/event" else {}
                sent = of_raw(bytes(body["schema"]["minLength"]), **extra)
            else:
                sent = (of_msgpack if media == MSGPACK else of_json)(body["example"])

            answer = server.request(method.upper(), path, sent.content, {**sent.headers, "Content-Type": media})
            assert answer.status == 200, (path, media, answer.body)


def test_the_vector_is_as_long_as_the_servers(document: dict[str, Any]) -> None:
    """The document is that of this server, whose dimension is configuration."""
    numbers, text = document["components"]["schemas"]["Vector"]["oneOf"]

    assert (numbers["minItems"], numbers["maxItems"]) == (8, 8)
    assert text["pattern"] == "^[A-Za-z0-9+/]{43}=$"
    assert document["paths"]["/recall"]["post"]["requestBody"]["content"][RAW]["schema"]["maxLength"] == 32


@pytest.mark.parametrize(("dimension", "pattern"), [(2, "{11}="), (3, "{16}"), (4, "{22}=="), (384, "{2048}")])
def test_base64_has_its_exact_length(dimension: int, pattern: str) -> None:
    """4 × dimension bytes, with the padding that belongs to them."""
    vector = Schemas(dimension).components["Vector"]["oneOf"][1]

    assert vector["pattern"] == f"^[A-Za-z0-9+/]{pattern.partition('=')[0]}{'=' * pattern.count('=')}$"


def test_open_operations_need_no_key_and_all_others_name_their_role(document: dict[str, Any]) -> None:
    """OpenAPI 3.1 §4.8.30: roles stand in the requirement of a scheme; either scheme will do."""
    for path, _, operation in operations(document):
        if path.startswith("/health/") or path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert operation["security"] == []
            assert not {"401", "403"} & set(operation["responses"])
            continue
        (role,) = {role for scheme in operation["security"] for roles in scheme.values() for role in roles}
        assert [name for scheme in operation["security"] for name in scheme] == ["bearer", "key"]
        gate = set(codes_of(document, operation)) & {"unauthorised", "other_origin", "forbidden"}
        assert {"unauthorised", "other_origin"} | ({"forbidden"} if role in ("write", "admin") else set()) == gate


def test_statuses_have_the_codes_that_can_come_with_them(document: dict[str, Any]) -> None:
    """Each code is under its own status; codes that any request may get are in every operation."""
    for _, _, operation in operations(document):
        codes = codes_of(document, operation)

        assert {code: CODES[code].status for code in codes} == codes
        assert set(CONNECTION) <= set(codes)
    stop = codes_of(document, document["paths"]["/governor/stop"]["post"])
    assert set(stop) == {*CONNECTION, *GATE, "forbidden", *COMMAND}


def test_every_code_that_is_raised_is_in_the_table_and_every_other_one_is_not(document: dict[str, Any]) -> None:
    """The sources are read: what they raise, with which status. And each code belongs to some operation."""
    raised = set(_raised())
    table = {(code, about.status) for code, about in CODES.items()}

    assert table == {pair for pair in raised if pair[0] not in FALCONS}
    told = {code for _, _, operation in operations(document) for code in codes_of(document, operation)}
    assert set(CODES) - told == ROUTER | set(DEFERRED)  # no operation of the core defers its answer
    described = document["components"]["schemas"]["Code"]["x-codes"]
    assert {(code["code"], code["status"]) for code in described} == table


def _raised() -> Iterator[tuple[str, int]]:
    """Yield (code, status) of everything that app/ can refuse with."""
    for limit in vars(limits).values():
        if isinstance(limit, Limit) and limit.status:
            yield limit.code, limit.status
    for code in problem.STORE_CODES.values():
        yield code, CODES[code].status
    for status, code in problem.FALCON_CODES.items():
        yield code, status
    for path in Path(ROOT, "app").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "of_code":
                yield from (
                    (str(a.value), CODES[str(a.value)].status) for a in node.args if isinstance(a, ast.Constant)
                )
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1):
                continue
            first, second = node.args[:2]
            named: Any = second.value if isinstance(second, ast.Constant) else names.get(getattr(second, "id", ""))
            if node.func.id == "invalid" and isinstance(named, str):
                yield named, 422
            elif node.func.id in ("Problem", "Refusal") and isinstance(first, ast.Constant) and isinstance(named, str):
                assert isinstance(first.value, int)
                yield named, first.value


def test_members_of_answers_are_never_null(document: dict[str, Any]) -> None:
    """What has no value is left out, so no schema needs a null."""

    assert [node for node in nodes(document) if node.get("type") == "null"] == []


def test_the_document_is_closed_for_what_is_sent_and_open_for_what_is_answered(
    server: LiveServer, document: dict[str, Any]
) -> None:
    """An unknown member of a request is refused; answers may grow."""
    schemas = document["components"]["schemas"]

    closed = {name for name, schema in schemas.items() if schema.get("additionalProperties") is False}
    assert closed == {"Event", "Query", "GovernorChange", "MoralFilterChange", "CognitiveRhythmChange"}
    unknown = of_json({"event_vector": [1] * 8, "moral_value": 1, "more": 1})
    assert not validator(document, schemas["Event"]).is_valid({"event_vector": [1] * 8, "moral_value": 1, "more": 1})
    assert post(server, "/event", unknown).status == 422


def test_the_document_is_kept(server: LiveServer) -> None:
    """From one connection, and so from one worker: the same bytes; HEAD says their length."""
    connection = server.connect()
    first, again = (server.request("GET", "/openapi.json", connection=connection).body for _ in range(2))
    head = server.request("HEAD", "/openapi.json", connection=connection)
    connection.close()

    assert first == again
    assert str(len(first)) == head.headers["content-length"]
    assert head.body == b""

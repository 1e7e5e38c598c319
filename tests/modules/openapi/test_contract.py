"""The contract: a live server conforms to its own OpenAPI document for generated requests.

For every operation, Schemathesis sends its examples, the boundaries of each range and type, and random requests that
the document allows and forbids. Every answer is compared with the document: status, media type, headers, body, and the
code of a refusal. No answer may be an undocumented 5xx.

Runs are derandomised, except for the boot_id from answers. MLSDM_CONTRACT_EXAMPLES (default 100) is the number of
random requests per operation and kind; the boundaries do not depend on it.
"""

import base64
import copy
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode, engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events

from testing import keys
from testing.bodies import JSON, MSGPACK, RAW
from testing.keys import bearer
from testing.live_server import LiveServer
from tests.conftest import SMALL

EXAMPLES: Final = int(os.environ.get("MLSDM_CONTRACT_EXAMPLES", "100"))
DIMENSION: Final = int(SMALL["MLSDM_DIMENSION"])
# What a request may be refused for although the document allows it: what no schema can say.
BEYOND_SCHEMAS: Final = {
    "norm_too_large", "not_finite", "payload_too_large",  # of all elements together, of decoded bytes, of encoded ones
    "payload_invalid",  # a whole number beyond 64 bits
    "settings_contradict", "change_empty", "idempotency_key_reused",
    "memory_unknown", "memory_gone", "other_boot", "position_unknown", "position_gone",
    "store_busy", "controller_busy",  # a machine that is busy with other tests
}  # fmt: skip
WHOLE: Final = {"top_k", "wake_duration", "sleep_duration"}  # members that are whole numbers
# Of plain bytes, whose length only is documented, and of headers and queries that belong to them alone.
BEYOND_OCTETS: Final = {"dimension_mismatch", "batch_empty", "moral_value_out_of_range", "field_missing"}

vectors = st.lists(st.floats(width=32), min_size=DIMENSION, max_size=DIMENSION)
schemathesis.openapi.media_type(
    RAW,
    st.one_of(
        vectors.map(lambda vector: np.asarray(vector, "<f4").tobytes()),
        st.tuples(st.floats(0, 1), vectors).map(
            lambda pair: np.float64(pair[0]).tobytes() + np.asarray(pair[1], "<f4").tobytes()
        ),
        st.binary(max_size=100),
    ),
)  # fmt: skip

NO_MSGPACK: Final = b"\xc1"  # the one byte that msgpack never uses


@schemathesis.serializer(MSGPACK)
def to_msgpack(_context: Any, value: Any) -> bytes:
    """Write a generated value as msgpack; base64 of a vector now and then as bin."""
    try:
        if isinstance(value, dict) and isinstance(vector := value.get("event_vector"), str) and len(vector) % 8:
            value = {**value, "event_vector": base64.b64decode(vector)}
        return msgspec.msgpack.encode(value)
    except (OverflowError, ValueError):  # integers beyond 64 bits, no base64
        return NO_MSGPACK


CONFORMANCE: Final = [
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.response_headers_conformance,
]


class Survey(NamedTuple):
    """What a run has done: requests by phase, answers by status, answered operations, findings as sentences."""

    requests: Counter[str]
    statuses: Counter[int]
    operations: set[str]
    findings: list[str]


def document_of(server: LiveServer, **headers: str) -> dict[str, Any]:
    """Return the server's document with every type closed, and every status with its codes: a member or a code that it
    does not mention is a finding.
    """
    document: dict[str, Any] = copy.deepcopy(server.get("/openapi.json", **headers).json)
    for status, response in _responses(document):
        if problem := response["content"].get("application/problem+json"):
            exactly = {"status": {"const": int(status)}, "code": {"enum": problem["x-codes"]}}
            problem["schema"] = {"allOf": [problem["schema"], {"properties": exactly}]}
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return document


def _responses(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (status, response) of every response, those that operations share once."""
    yield from ((name[:3], response) for name, response in document["components"]["responses"].items())
    for methods in document["paths"].values():
        for operation in methods.values():
            yield from ((s, response) for s, response in operation["responses"].items() if "content" in response)


def labels_of(document: Mapping[str, Any]) -> set[str]:
    """Return METHOD and path of every operation."""
    return {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}


def survey(
    server: LiveServer, *, examples: int = EXAMPLES, coverage: bool = True, headers: Mapping[str, str] = {}
) -> Survey:
    """Send what the document brings forth, and hold the answers against it."""
    configuration = {
        "seed": 1,
        "base-url": f"http://127.0.0.1:{server.port}",
        "headers": dict(headers),
        "continue-on-failure": True,
        "generation": {
            "max-examples": examples,
            "deterministic": True,
            "database": "none",
            "with-security-parameters": False,
        },
        "phases": {"coverage": {"enabled": coverage}, "stateful": {"enabled": False}},
        "checks": {
            # 404, 410 and 413 are refusals, too: of ids that are none, of another boot, of what is too long.
            "negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 405, 410, 413, 415, 422]},
            "positive_data_acceptance": {"enabled": False},  # `unjustified` knows what the document cannot foresee
            "ignored_auth": {"enabled": bool(headers)},
            "not_a_server_error": {
                "enabled": True,
                "expected-statuses": ["2xx", "4xx", 503],
            },  # 503 is held to its codes
            # For APIs in which POST makes what GET reads under a path that it names:
            "use_after_free": {"enabled": False},
            "ensure_resource_availability": {"enabled": False},
        },
    }
    document = document_of(server, **headers)
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict(configuration))

    @schema.hook
    def after_call(_context: Any, case: Any, _response: Any) -> None:
        """What comes after a stop should not all be 503."""
        if case.path == "/governor/stop":
            assert server.request("POST", "/governor/resume", headers=headers).status == 200

    done = Survey(Counter(), Counter(), set(), [])
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            done.requests[event.phase.name] += len(event.recorder.interactions)
            for found in _found(event.recorder, done):
                done.findings.append(f"{event.label}: {found}")
        elif isinstance(event, events.NonFatalError):
            done.findings.append(f"{event.label}: {event.value}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    return done


def _found(recorder: Any, done: Survey) -> Iterator[str]:
    for identity, interaction in recorder.interactions.items():
        case, response = recorder.cases[identity].value, interaction.response
        if response is None:
            yield "no answer"
            continue
        done.statuses[response.status_code] += 1
        done.operations.add(case.operation.label)
        if reason := unjustified(case, response):
            yield f"{reason}\n{case.as_curl_command()}"
        for check in recorder.checks.get(identity, ()):
            if check.failure_info and not ignored(case, message := check.failure_info.failure.message):
                yield f"{check.name}: {message}\n{case.as_curl_command()}"


def ignored(case: Any, message: str) -> bool:
    """Return whether a forbidden request is rightly taken: what is wrong is a field of the head that nobody reads."""
    _, _, wrong = message.partition("Invalid component: ")
    return "in header" in wrong and (
        "unexpected properties" in wrong  # RFC 9110 §5.1
        or ("`Moral-Value`" in wrong and case.media_type != RAW)  # as the document says
    )


def unjustified(case: Any, response: Any) -> str:
    """Return why a refusal is wrong, "" when it is not: what the document allows is taken, or refused for a documented
    reason that no schema can express.
    """
    if "application/problem+json" not in response.headers.get("content-type", ()):
        return ""
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return ""
    if case.method.upper() != case.operation.method.upper():  # a method that the route does not have
        return ""
    if response.status_code == 401 and bearer("admin")["Authorization"] != response.request.headers.get(
        "Authorization"
    ):
        return ""  # `ignored_auth` asks without the right key, and judges that itself
    if response.request.body == NO_MSGPACK:
        return ""
    document, octets = response.json(), case.media_type == RAW
    if document["code"] in BEYOND_SCHEMAS or (octets and document["code"] in BEYOND_OCTETS):
        return ""
    if document["code"] == "field_unknown" and case.path == "/recall" and case.query and not octets:
        return ""  # the query belongs to plain bytes
    if any(type(member) is float for member in members_of(case.body, WHOLE)):
        return ""  # 1.0 is an integer to JSON Schema (2020-12 §6.1.1) and none to this API, as the document says
    return f"the document allows a request that is refused: {document}"


def members_of(body: Any, names: Collection[str]) -> Iterator[Any]:
    """Yield the values of members with these names, wherever they stand."""
    if isinstance(body, dict):
        for name, value in body.items():
            if name in names:
                yield value
            yield from members_of(value, names)


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of its own, whose governor may be changed at will: no keys, no limits."""
    server = LiveServer(tmp_path_factory.mktemp("contract"), dict(SMALL))
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with keys of every role, and limits."""
    directory = tmp_path_factory.mktemp("keyed")
    environ = {
        "MLSDM_SECURITY__KEYS_PATH": str(keys.write(directory / "keys.yaml")),
        "MLSDM_SECURITY__RATE_LIMITING__ENABLED": "true",
        "MLSDM_SECURITY__RATE_LIMITING__REQUESTS_PER_SECOND": "0.01",  # an empty bucket of tier standard stays empty
    }
    server = LiveServer(directory, {**SMALL, **environ})
    yield server.start()
    server.stop()


@pytest.mark.slow
def test_an_open_server_keeps_its_contract(open_server: LiveServer) -> None:
    """Examples, boundaries and random requests, allowed and forbidden, for every operation: no finding."""
    done = survey(open_server)
    print(f"{sum(done.requests.values())} requests: {dict(done.requests)}, {dict(sorted(done.statuses.items()))}")

    assert "\n\n".join(done.findings) == ""
    assert labels_of(document_of(open_server)) == done.operations
    assert open_server.get("/livez").status == 200


def test_a_server_with_keys_keeps_its_contract(keyed_server: LiveServer) -> None:
    """With the right key as above; without one, and with a wrong one, every operation that is not open refuses."""
    done = survey(keyed_server, examples=3, coverage=False, headers=bearer("admin"))
    print(f"{sum(done.requests.values())} requests: {dict(done.requests)}, {dict(sorted(done.statuses.items()))}")

    assert "\n\n".join(done.findings) == ""
    assert labels_of(document_of(keyed_server, **bearer("admin"))) == done.operations
    assert done.statuses[401] > 0


def sent(server: LiveServer, method: str, path: str, headers: Mapping[str, str], **parts: Any) -> Any:
    """Send one request, hold its answer against the document whatever its status, and return it."""
    schema = schemathesis.openapi.from_dict(document_of(server, **bearer("admin")))
    case = schema[path][method].Case(headers=dict(headers), **parts)
    response = case.call(base_url=f"http://127.0.0.1:{server.port}")
    case.validate_response(response, checks=CONFORMANCE)
    return response


def test_rare_requests_keep_the_contract(keyed_server: LiveServer) -> None:
    """An exhausted bucket, a retry, a role that is too low, a stopped server, another boot."""
    event = {"body": {"event_vector": [0.5] * DIMENSION, "moral_value": 1.0}, "media_type": JSON}
    key = {"Idempotency-Key": "a-word-of-mine"}

    slow = [sent(keyed_server, "POST", "/event", bearer("slow"), **event)]
    while slow[-1].status_code == 200 and len(slow) < 100:
        slow.append(sent(keyed_server, "POST", "/event", bearer("slow"), **event))
    first, again = (sent(keyed_server, "POST", "/event", bearer("writer") | key, **event) for _ in range(2))
    low = sent(keyed_server, "POST", "/event", bearer("reader"), **event)
    sent(keyed_server, "POST", "/governor/stop", bearer("admin"))
    stopped = [
        sent(keyed_server, "POST", "/event", bearer("writer"), **event),
        sent(keyed_server, "GET", "/health/readiness", {}),
        sent(keyed_server, "GET", "/health/detailed", {}),
    ]
    sent(keyed_server, "POST", "/governor/resume", bearer("admin"))
    boot = sent(keyed_server, "GET", "/decisions", bearer("reader"), query={"boot_id": "another"})

    assert slow[0].status_code == 200
    assert slow[-1].status_code == 429
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == ["true"]
    assert low.status_code == 403
    assert [answer.status_code for answer in stopped] == [503, 503, 200]
    assert boot.status_code == 410

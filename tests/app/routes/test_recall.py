"""POST /recall: every form of a query, every option, and matches equal to brute force, bit for bit."""

import concurrent.futures
import math
from typing import Any

import numpy as np
import pytest

from core.reference.vector import cosine
from testing.bodies import (
    EXAMPLE,
    Body,
    accepted,
    floats,
    of_json,
    of_msgpack,
    of_raw,
    pack,
    post,
    problem,
    refused,
    sent,
    text,
)
from testing.live_server import LiveServer
from tests.conftest import Serve

FORMS = {
    "json numbers": lambda vector, **asked: of_json({"vector": list(vector), **asked}),
    "json base64": lambda vector, **asked: of_json({"vector": text(vector), **asked}),
    "msgpack numbers": lambda vector, **asked: of_msgpack({"vector": list(vector), **asked}),
    "msgpack bin": lambda vector, **asked: of_msgpack({"vector": floats(vector), **asked}),
    "msgpack base64": lambda vector, **asked: of_msgpack({"vector": text(vector), **asked}),
}
NAN = float("nan")


def recall(server: LiveServer, vector: Any = EXAMPLE, **asked: Any) -> dict[str, Any]:
    """Ask in JSON; return the answer."""
    answer: dict[str, Any] = sent(server, "/recall", FORMS["json numbers"](vector, **asked))
    return answer


def fill(server: LiveServer, count: int = 110, seed: int = 7) -> None:
    """Send more memories than there are slots, with ties among them."""
    vectors = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    vectors[1::5] = vectors[::5][: len(vectors[1::5])]
    vectors[2] = vectors[-1] = 0
    body = of_raw(np.ones(count).tobytes() + vectors.tobytes())
    assert sent(server, "/events", body)["accepted"] == count


def everything(server: LiveServer) -> dict[int, tuple[np.ndarray[Any, np.dtype[np.float32]], str]]:
    """Return every live memory by id: (vector, phase), read one by one."""
    newest = server.state()["accepted_events_count"]
    memories = {}
    for memory_id in range(max(1, newest - 99), newest + 1):
        answer = server.get(f"/memories/{memory_id}?include=vector")
        if answer.status == 200:
            memories[memory_id] = (np.array(answer.json["vector"], np.float32), answer.json["phase"])
    return memories


@pytest.mark.parametrize("top_k", [1, 10, 100])
@pytest.mark.parametrize("phase", ["any", "wake", "sleep", "current"])
def test_the_answer_equals_brute_force_bit_by_bit(still_server: LiveServer, phase: str, top_k: int) -> None:
    """Ids, order, ties (newer first), scores and phases are those of scoring every memory in full."""
    fill(still_server)
    memories, now = everything(still_server), still_server.state()["current_phase"]
    wanted = {"any": ("wake", "sleep"), "current": (now,)}.get(phase, (phase,))

    answer = recall(still_server, phase=phase, top_k=top_k)

    query = np.array(EXAMPLE, np.float32)
    scored = [(cosine(query, v), i, p) for i, (v, p) in memories.items() if p in wanted]
    expected = sorted(scored, key=lambda match: (-match[0], -match[1]))[:top_k]
    assert [(m["score"], m["memory_id"], m["phase"]) for m in answer["matches"]] == expected
    assert (answer["scanned"], answer["exact"]) == (len(scored), True)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_query_finds_the_same(still_server: LiveServer, form: str) -> None:
    """Numbers, base64 and bin are float32 in the end."""
    accepted(still_server, "nearest")
    asked = {"top_k": 3, "phase": "any", "include": ["payload", "vector"]}

    answer = sent(still_server, "/recall", FORMS[form](EXAMPLE, **asked))

    expected = recall(still_server, **asked)
    assert [without_age(match) for match in answer["matches"]] == [without_age(match) for match in expected["matches"]]
    assert answer["matches"][0]["payload"] == "nearest"


def without_age(match: dict[str, Any]) -> dict[str, Any]:
    """Return a match without the one member that changes by itself."""
    return {name: value for name, value in match.items() if name != "age_seconds"}


@pytest.mark.parametrize(
    ("parameters", "asked"),
    [
        ("", {}),
        ("?top_k=3", {"top_k": 3}),
        ("?top_k=100&phase=sleep", {"top_k": 100, "phase": "sleep"}),
        ("?include=payload,vector", {"include": ["payload", "vector"]}),
        ("?include=payload,vector&phase=current", {"include": ["payload", "vector"], "phase": "current"}),
        ("?include=vector%2Cpayload", {"include": ["payload", "vector"]}),
    ],
)
def test_a_raw_query_takes_its_parameters_from_the_query_string(
    still_server: LiveServer, parameters: str, asked: dict[str, Any]
) -> None:
    """The body is the vector alone."""
    accepted(still_server, {"a": 1})

    answer = sent(still_server, "/recall" + parameters, of_raw(floats(EXAMPLE)))

    expected = recall(still_server, **asked)
    assert [without_age(match) for match in answer["matches"]] == [without_age(match) for match in expected["matches"]]


def test_an_answer_has_the_documented_members(still_server: LiveServer) -> None:
    """`as_of` is the log position at which the answer holds; here it is the newest."""
    decision = accepted(still_server, "payload")

    answer = recall(still_server)

    state = still_server.state()
    assert set(answer) == {"matches", "scanned", "as_of", "exact", "boot_id", "log_id"}
    assert answer["as_of"] == state["position"] == decision["position"]
    assert (answer["boot_id"], answer["log_id"]) == (state["boot_id"], state["log_id"])
    assert answer["scanned"] == state["memory_used"]
    assert answer["exact"] is True
    assert len(answer["matches"]) == 10
    assert {frozenset(match) for match in answer["matches"]} == {
        frozenset({"memory_id", "score", "phase", "moral_value", "age_seconds", "created_at"})
    }


@pytest.mark.parametrize(
    ("include", "members"),
    [([], set()), (["payload"], {"payload"}), (["vector"], {"vector"}), (["vector", "payload"], {"payload", "vector"})],
)
def test_include_adds_members(still_server: LiveServer, include: list[str], members: set[str]) -> None:
    """Payload and vector are as large as everything else, so they are left out by default."""
    memory_id = accepted(still_server, {"note": "here"})["memory_id"]

    match = recall(still_server, top_k=1, include=include)["matches"][0]

    assert match["memory_id"] == memory_id
    assert members == set(match) & {"payload", "vector"}
    assert match.get("payload", {"note": "here"}) == {"note": "here"}
    assert floats(match.get("vector", EXAMPLE)) == floats(EXAMPLE)


def test_every_worker_finds_what_another_acknowledged(still_server: LiveServer) -> None:
    """A decision that has been answered is in every later recall, whichever worker takes it."""
    connections = [still_server.connect() for _ in range(6)]

    for number in range(30):
        decision = still_server.event(EXAMPLE, 1.0, connections[number % 6])
        body = FORMS["json base64"](EXAMPLE, top_k=1)
        answer = still_server.request("POST", "/recall", body.content, body.headers, connections[(number + 1) % 6]).json
        assert answer["matches"][0]["memory_id"] == decision["memory_id"]
        assert answer["as_of"] >= decision["position"]
    for connection in connections:
        connection.close()


def test_a_zero_query_scores_zero_and_finds_the_newest(still_server: LiveServer) -> None:
    """Without a direction everything is equally far, and ties go to the newer memory."""
    newest = accepted(still_server)["memory_id"]

    matches = recall(still_server, [0.0] * 8, top_k=5)["matches"]

    assert [(match["memory_id"], match["score"]) for match in matches] == [(newest - i, 0.0) for i in range(5)]


@pytest.mark.parametrize("form", [*FORMS, "raw"])
def test_a_score_lies_between_minus_one_and_one(still_server: LiveServer, form: str) -> None:
    """A client may take the arc cosine of it: of a vector with itself, and with its opposite."""
    vectors = np.random.default_rng(3).standard_normal((50, 8)).astype("<f4")
    sent(still_server, "/events", of_raw(np.ones(100).tobytes() + vectors.tobytes() + (-vectors).tobytes()))

    scores = []
    for vector in vectors:
        body = of_raw(vector.tobytes()) if form == "raw" else FORMS[form](vector.tolist(), top_k=100)
        matches = sent(still_server, "/recall" + "?top_k=100" * (form == "raw"), body)["matches"]
        scores += [match["score"] for match in matches]

    assert (min(scores), max(scores)) == (-1.0, 1.0)
    assert all(math.isfinite(math.acos(score)) for score in scores)


def test_ages_count_from_admission(still_server: LiveServer) -> None:
    """A newer memory is younger, and age is never negative."""
    accepted(still_server)

    matches = recall(still_server, top_k=100)["matches"]

    ages = [match["age_seconds"] for match in sorted(matches, key=lambda match: -int(match["memory_id"]))]
    assert ages == sorted(ages)
    assert ages[0] >= 0.0


def test_an_empty_store_answers_with_no_match(serve: Any) -> None:
    """Nothing is nearest to anything before the first memory; position 1 is the controller's first entry."""
    answer = recall(serve(MLSDM_COGNITIVE_RHYTHM__CLOCK="events"))

    assert (answer["matches"], answer["scanned"], answer["as_of"], answer["exact"]) == ([], 0, 1, True)


INVALID: dict[str, tuple[Body, str, str]] = {
    "no vector": (of_json({}), "field_missing", "vector"),
    "not an object": (of_json([]), "field_invalid", "body"),
    "an unknown member": (of_json({"vector": EXAMPLE, "top_kk": 1}), "field_unknown", "top_kk"),
    "a member twice, msgpack": (
        of_msgpack(b"\x83" + pack({"vector": EXAMPLE, "top_k": 1})[1:] + pack("top_k") + b"\x02"),
        "field_repeated",
        "top_k",
    ),
    "a member twice": (of_json(f'{{"vector":{EXAMPLE},"top_k":1,"top_k":2}}'.encode()), "field_repeated", "top_k"),
    "too few": (of_json({"vector": EXAMPLE[1:]}), "dimension_mismatch", "vector"),
    "too many": (of_msgpack({"vector": [*EXAMPLE, 1.0]}), "dimension_mismatch", "vector"),
    "short raw": (of_raw(floats(EXAMPLE[1:])), "dimension_mismatch", "body"),
    "float32 overflow": (of_json({"vector": [1e39, *EXAMPLE[1:]]}), "not_finite", "vector[0]"),
    "1e999": (of_json(b'{"vector":[1e999]}'), "vector_invalid", "vector[0]"),
    "NaN": (of_msgpack({"vector": [*EXAMPLE[1:], NAN]}), "not_finite", "vector[7]"),
    "raw NaN": (of_raw(floats([NAN] * 8)), "not_finite", "vector[0]"),
    "norm": (of_json({"vector": [1e6] * 8}), "norm_too_large", "vector"),
    "top_k 0": (of_json({"vector": EXAMPLE, "top_k": 0}), "top_k_out_of_range", "top_k"),
    "top_k 101": (of_msgpack({"vector": EXAMPLE, "top_k": 101}), "top_k_out_of_range", "top_k"),
    "top_k 1.5": (of_json({"vector": EXAMPLE, "top_k": 1.5}), "top_k_out_of_range", "top_k"),
    "top_k text": (of_json({"vector": EXAMPLE, "top_k": "1"}), "top_k_out_of_range", "top_k"),
    "top_k null": (of_json({"vector": EXAMPLE, "top_k": None}), "top_k_out_of_range", "top_k"),
    "phase": (of_json({"vector": EXAMPLE, "phase": "nap"}), "field_invalid", "phase"),
    "include": (of_json({"vector": EXAMPLE, "include": ["payload", "x"]}), "field_invalid", "include[1]"),
    "include text": (of_json({"vector": EXAMPLE, "include": "payload"}), "field_invalid", "include"),
}


@pytest.mark.parametrize("case", INVALID)
def test_a_wrong_query_is_422_and_names_its_field(still_server: LiveServer, case: str) -> None:
    """The same rules as for events."""
    body, code, field = INVALID[case]

    document = refused(still_server, "/recall", body)

    assert (document["status"], document["code"], document["field"]) == (422, code, field)


@pytest.mark.parametrize(
    ("parameters", "code", "field"),
    [
        ("top_k=0", "top_k_out_of_range", "top_k"),
        ("top_k=101", "top_k_out_of_range", "top_k"),
        ("top_k=x", "top_k_out_of_range", "top_k"),
        ("top_k=", "top_k_out_of_range", "top_k"),
        ("top_k=1&top_k=2", "field_repeated", "top_k"),
        ("include=payload&include=vector", "field_repeated", "include"),
        ("phase=nap", "field_invalid", "phase"),
        ("include=payload,x", "field_invalid", "include[1]"),
        ("top_kk=1", "field_unknown", "top_kk"),
    ],
)
def test_a_wrong_parameter_of_a_raw_query_is_422(
    still_server: LiveServer, parameters: str, code: str, field: str
) -> None:
    """Parameters are checked as strictly as members."""

    document = refused(still_server, "/recall?" + parameters, of_raw(floats(EXAMPLE)))

    assert (document["status"], document["code"], document["field"]) == (422, code, field)


def test_parameters_beside_a_document_are_refused(still_server: LiveServer) -> None:
    """With JSON or msgpack a query string would be ignored, so it is refused."""

    for body in (FORMS["json numbers"](EXAMPLE), FORMS["msgpack bin"](EXAMPLE)):
        document = problem(post(still_server, "/recall?top_k=1", body))
        assert (document["status"], document["code"], document["field"]) == (422, "field_unknown", "top_k")


def test_large_stores_are_recalled_on_the_pool_without_mixing_answers(serve: Serve) -> None:
    """Above 32 MB of shadow two recalls may run at a time; each is exact."""
    dimension = 4096
    server = serve(
        WORKERS="1",
        MLSDM_DIMENSION=str(dimension),
        MLSDM_CAPACITY="8000",
        MLSDM_PAYLOAD_SIZE_MAX="0",
        MLSDM_LOG_CAPACITY="1024",
    )
    vectors = np.random.default_rng(4).standard_normal((400, dimension)).astype("<f4")
    raw = {"Content-Type": "application/octet-stream"}
    for part in np.split(vectors, 4):
        body = np.full(len(part), 0.95).astype("<f8").tobytes() + part.tobytes()
        assert server.request("POST", "/events", body, raw).status == 200
    unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)

    def nearest(number: int) -> tuple[list[int], list[int]]:
        query = vectors[number] + vectors[(number + 7) % 400]
        answer = server.request("POST", "/recall?top_k=5", query.astype("<f4").tobytes(), raw)
        expected = np.argsort(-(unit @ query.astype(np.float64)), kind="stable")[:5] + 1
        return [match["memory_id"] for match in answer.json["matches"]], expected.tolist()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(nearest, range(200)))

    assert [seen for seen, _ in answers] == [expected for _, expected in answers]

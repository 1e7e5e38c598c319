"""GET and DELETE /memories/{id}: one memory, and the difference between never given, overwritten and deleted."""

from typing import Any

import pytest

from testing.bodies import EXAMPLE, accepted, as_stored, of_json, of_raw, problem, sent
from testing.live_server import Answer, LiveServer


def refusal(server: LiveServer, method: str, path: str) -> dict[str, Any]:
    """Send a request that must be refused and must not move anything; return the problem."""
    before = server.state()
    answer = server.request(method, path)
    assert server.state() == before
    return problem(answer)


def delete(server: LiveServer, memory_id: int) -> Answer:
    """Delete a memory."""
    return server.request("DELETE", f"/memories/{memory_id}")


def test_a_memory_has_the_documented_members(still_server: LiveServer) -> None:
    """It agrees with the decision that made it."""
    decision = accepted(still_server, {"note": "x"})

    memory = still_server.get(f"/memories/{decision['memory_id']}").json

    assert set(memory) == {
        "memory_id", "moral_value", "phase", "age_seconds", "created_at", "position", "boot_id", "log_id", "payload",
    }  # fmt: skip
    assert memory["memory_id"] == decision["memory_id"]
    assert memory["moral_value"] == decision["moral_value"]
    assert memory["phase"] == decision["current_phase"]
    assert memory["position"] == decision["position"]
    assert memory["boot_id"] == decision["boot_id"]
    assert memory["age_seconds"] >= 0
    assert memory["created_at"] == decision["created_at"]
    assert memory["payload"] == {"note": "x"}


def test_include_adds_the_vector(still_server: LiveServer) -> None:
    """As decimal numbers that read back as the same float32."""
    memory_id = accepted(still_server)["memory_id"]

    assert still_server.get(f"/memories/{memory_id}?include=vector").json["vector"] == as_stored(EXAMPLE)


def test_a_deleted_memory_is_gone_for_good(still_server: LiveServer) -> None:
    """Deletion is one log entry; afterwards the memory is neither read, nor recalled, nor deleted again."""
    memory_id = accepted(still_server)["memory_id"]
    before = still_server.state()

    answer = delete(still_server, memory_id)

    after = still_server.state()
    assert (answer.status, set(answer.json)) == (200, {"memory_id", "position", "boot_id", "log_id"})
    assert answer.json["memory_id"] == memory_id
    assert answer.json["position"] == after["position"] == before["position"] + 1
    assert after["memory_used"] == before["memory_used"] - 1
    assert after["accepted_events_count"] == before["accepted_events_count"]
    for method in ("GET", "DELETE"):
        document = refusal(still_server, method, f"/memories/{memory_id}")
        assert (document["status"], document["code"], document["field"]) == (410, "memory_gone", "memory_id")
    found = sent(still_server, "/recall", of_json({"vector": EXAMPLE, "top_k": 100}))
    assert memory_id not in [match["memory_id"] for match in found["matches"]]
    assert found["scanned"] == after["memory_used"]


def test_an_overwritten_memory_is_gone(still_server: LiveServer) -> None:
    """100 newer memories take all the slots; the 99th leaves the oldest readable."""
    memory_id = accepted(still_server)["memory_id"]
    event = {"event_vector": EXAMPLE, "moral_value": 1.0}

    sent(still_server, "/events", of_json([event] * 99))
    assert still_server.get(f"/memories/{memory_id}").status == 200
    accepted(still_server)

    for method in ("GET", "DELETE"):
        document = refusal(still_server, method, f"/memories/{memory_id}")
        assert (document["status"], document["code"]) == (410, "memory_gone")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_id_that_was_never_given_is_404(still_server: LiveServer, method: str) -> None:
    """The next id, one far ahead, zero, and more than 64 bits can hold."""
    following = still_server.state()["accepted_events_count"] + 1

    for memory_id in (following, 10**12, 0, 10**19 - 1):
        document = refusal(still_server, method, f"/memories/{memory_id}")
        assert (document["status"], document["code"], document["field"]) == (404, "memory_unknown", "memory_id")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("memory_id", ["x", "-1", "1.0", "+1", "0x1", "%201", "1e3", "%EF%BC%91", "9" * 20])
def test_an_invalid_id_is_422(still_server: LiveServer, method: str, memory_id: str) -> None:
    """Ids are digits."""

    document = refusal(still_server, method, f"/memories/{memory_id}")

    assert (document["status"], document["code"], document["field"]) == (422, "field_invalid", "memory_id")


@pytest.mark.parametrize("name", ["boot_id", "log_id"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_id_of_another_store_is_410(still_server: LiveServer, method: str, name: str) -> None:
    """A client that names the boot or the log its id came with never reaches another memory by accident."""
    decision = accepted(still_server)
    path = f"/memories/{decision['memory_id']}?{name}="

    document = refusal(still_server, method, path + "0" * 32)

    assert (document["status"], document["code"], document["field"]) == (410, "other_boot", name)
    assert document["expected"] == decision[name]
    assert still_server.request(method, path + decision[name]).status == 200


@pytest.mark.parametrize(
    ("method", "parameters", "code", "field"),
    [
        ("GET", "include=payload", "field_invalid", "include"),
        ("GET", "include=", "field_invalid", "include"),
        ("GET", "includes=vector", "field_unknown", "includes"),
        ("DELETE", "bootid=x", "field_unknown", "bootid"),
        ("DELETE", "include=vector", "field_unknown", "include"),
        ("GET", "include=x&include=vector", "field_repeated", "include"),
        ("DELETE", "boot_id=x&boot_id={boot_id}", "field_repeated", "boot_id"),
        ("DELETE", "boot_id={boot_id}&boot_id={boot_id}", "field_repeated", "boot_id"),
    ],
)
def test_unknown_and_repeated_parameters_are_422(
    still_server: LiveServer, method: str, parameters: str, code: str, field: str
) -> None:
    """A misspelt or repeated `boot_id` must not be ignored."""
    decision = accepted(still_server)
    query = parameters.format(boot_id=decision["boot_id"])

    document = refusal(still_server, method, f"/memories/{decision['memory_id']}?{query}")

    assert (document["status"], document["code"], document["field"]) == (422, code, field)


def test_a_deleted_memory_makes_room_for_another(still_server: LiveServer) -> None:
    """In a full store the next accepted event takes the room, and nothing is evicted for it."""
    sent(still_server, "/events", of_json([{"event_vector": EXAMPLE, "moral_value": 1.0}] * 100))
    memory_id = accepted(still_server)["memory_id"]
    assert delete(still_server, memory_id).status == 200

    oldest = memory_id - 99
    assert still_server.state()["memory_used"] == 99

    for answer, used in ((200, 100), (410, 100)):
        still_server.event(EXAMPLE, 1.0)
        assert still_server.state()["memory_used"] == used
        assert still_server.request("GET", f"/memories/{oldest}").status == answer


def test_a_body_is_ignored(still_server: LiveServer) -> None:
    """RFC 9110 §9.3.1: content in a GET has no meaning."""
    memory_id = accepted(still_server)["memory_id"]
    body = of_raw(b"anything")

    assert still_server.request("GET", f"/memories/{memory_id}", body.content, body.headers).status == 200

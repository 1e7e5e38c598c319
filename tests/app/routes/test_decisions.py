"""GET /decisions: the whole log in order, page by page, while it grows; and a cursor that was overwritten."""

import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import falcon
import falcon.testing
import numpy as np
import pytest

from app.api.problem import Problem
from app.routes.decisions import DecisionsResource
from core.limits import DECISIONS_PAGE
from core.settings.config import Config
from testing.block_fixture import SMALL, Formed
from testing.bodies import EXAMPLE, accepted, of_json, of_raw, problem, sent
from testing.eventually import HANG_SECONDS
from testing.live_server import LiveServer

LOG_CAPACITY = 1024
SCALARS = {
    "moral_filter_threshold", "ema", "phase", "counter", "step", "accepted_events_count", "rejected_events_count",
    "memory_used", "stopped",
}  # fmt: skip
COMMON = {"position", "kind", "age_seconds", "created_at", "epoch", "before", "after"}


def page(server: LiveServer, **parameters: Any) -> dict[str, Any]:
    """Return one page."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    answer = server.get("/decisions?" + query)
    assert answer.status == 200, answer.body
    document: dict[str, Any] = answer.json
    assert set(document) == {"entries", "next", "oldest", "newest", "boot_id", "log_id", "cursor"}
    return document


def newest(server: LiveServer, count: int) -> list[dict[str, Any]]:
    """Return the newest entries."""
    entries: list[dict[str, Any]] = page(server, after=server.state()["position"] - count)["entries"]
    return entries


def reject(server: LiveServer, count: int) -> None:
    """Fill the log with `count` rejected events."""
    while count > 0:
        batch = min(count, 1000)
        sent(server, "/events", of_raw(np.zeros(batch).tobytes() + bytes(batch * 32)))
        count -= batch


def test_every_kind_of_entry_has_its_members(still_server: LiveServer) -> None:
    """Decisions carry what was decided, deletions which memory; both, the state before and after."""
    accept = accepted(still_server)
    refuse = sent(still_server, "/event", of_json({"event_vector": EXAMPLE, "moral_value": 0.125}))
    forgotten = still_server.request("DELETE", f"/memories/{accept['memory_id']}").json

    entries = newest(still_server, 3)

    assert [set(entry) - {"worker"} for entry in entries] == [
        COMMON | {"sequence", "accepted", "moral_value", "memory_id"},
        COMMON | {"sequence", "accepted", "moral_value"},
        COMMON | {"moral_value", "memory_id"},
    ]
    assert [set(entry["before"]) for entry in entries] == [set(entry["after"]) for entry in entries] == [SCALARS] * 3
    assert [entry["kind"] for entry in entries] == ["decision", "decision", "delete"]
    assert [entry["position"] for entry in entries] == [
        accept["position"], refuse["position"], forgotten["position"],
    ]  # fmt: skip
    for entry, decision in zip(entries, (accept, refuse), strict=False):
        assert entry["accepted"] == decision["accepted"]
        assert entry["sequence"] == decision["sequence"]
        assert entry["moral_value"] == decision["moral_value"]
        assert entry.get("memory_id") == decision.get("memory_id")
        assert entry["before"]["moral_filter_threshold"] == decision["threshold_before"]
        assert entry["before"]["phase"] == decision["current_phase"]
        assert entry["after"]["moral_filter_threshold"] == decision["moral_filter_threshold"]
        assert entry["after"]["ema"] == decision["ema"]
    assert entries[2]["memory_id"] == accept["memory_id"]
    assert {entry["worker"] for entry in entries} <= {0, 1, 2, 3, 4, 5, 6, 7}
    assert entries[0]["after"] == entries[1]["before"]


def test_the_last_entry_ends_in_the_live_state(still_server: LiveServer) -> None:
    """Each entry begins with the state in which the one before it ended; the newest ends with the live state."""
    reject(still_server, 50)
    accepted(still_server)

    entries, state = newest(still_server, 50), still_server.state()

    assert [entry["before"] for entry in entries[1:]] == [entry["after"] for entry in entries[:-1]]
    after = entries[-1]["after"]
    assert after["moral_filter_threshold"] == state["moral_filter_threshold"]
    assert after["ema"] == state["ema"]
    assert after["step"] == state["step"]
    assert after["phase"] == state["current_phase"]
    assert after["memory_used"] == state["memory_used"]
    assert after["accepted_events_count"] == state["accepted_events_count"]
    assert after["rejected_events_count"] == state["latent_events_count"]


def test_a_young_log_is_read_from_its_first_entry_in_one_page(serve: Callable[..., LiveServer]) -> None:
    """Without a cursor the oldest entry in reach comes first: after a start, the one that forms the first state."""
    server = serve(MLSDM_COGNITIVE_RHYTHM__CLOCK="events", MLSDM_LOG_CAPACITY="1024")
    reject(server, 99)

    whole = page(server, limit=1000)

    assert [entry["position"] for entry in whole["entries"]] == list(range(1, 101))
    assert whole["entries"][0]["kind"] == "start"
    assert "worker" not in whole["entries"][0]
    assert (whole["next"], whole["oldest"], whole["newest"]) == (100, 1, 100)


@pytest.mark.parametrize("limit", [1, 100, 1000])
def test_a_full_log_begins_with_its_oldest_entry(still_server: LiveServer, limit: int) -> None:
    """One place of the ring belongs to the next entry, so 1,023 are readable."""
    reject(still_server, LOG_CAPACITY + 100)

    first = page(still_server, limit=limit)

    assert first["oldest"] == first["newest"] - LOG_CAPACITY + 2
    assert [entry["position"] for entry in first["entries"]] == list(range(first["oldest"], first["oldest"] + limit))
    assert first["next"] == first["entries"][-1]["position"]


def test_pages_join_without_gap_or_repeat(still_server: LiveServer) -> None:
    """`next` of one page is `after` of the following; at the end a page is empty and the cursor stays."""
    reject(still_server, 50)
    end = still_server.state()["position"]
    cursor, positions = end - 50, []

    while (following := page(still_server, after=cursor, limit=7))["entries"]:
        positions += [entry["position"] for entry in following["entries"]]
        cursor = following["next"]

    assert positions == list(range(end - 49, end + 1))
    assert (cursor, following["newest"], following["next"]) == (end, end, end)


def test_pages_stay_contiguous_while_events_flow(still_server: LiveServer) -> None:
    """A reader that keeps up sees every decision once, although the ring comes round several times meanwhile."""
    start = cursor = still_server.state()["position"]
    count = 80 * 40
    read = threading.Semaphore(500)  # how many entries the writer may be ahead; the ring holds twice as many

    def write() -> None:
        for _ in range(count // 40):
            for _ in range(40):
                assert read.acquire(timeout=HANG_SECONDS)
            reject(still_server, 40)

    writer = threading.Thread(target=write)
    positions: list[int] = []
    sequences: list[int] = []

    writer.start()
    while cursor < start + count:
        following = page(still_server, after=cursor, limit=1000)
        positions += [entry["position"] for entry in following["entries"]]
        sequences += [entry["sequence"] for entry in following["entries"]]
        assert following["newest"] >= following["next"]
        cursor = following["next"]
        for _ in following["entries"]:
            read.release()
    writer.join()

    assert positions == list(range(start + 1, start + count + 1))
    assert sequences == list(range(sequences[0], sequences[0] + count))


def test_an_overwritten_cursor_is_410(still_server: LiveServer) -> None:
    """A page from there would silently miss entries; the oldest readable entry can still be asked for."""
    cursor = still_server.state()["position"]
    assert page(still_server, after=cursor)["entries"] == []

    reject(still_server, LOG_CAPACITY - 1)
    assert page(still_server, after=cursor, limit=1)["entries"][0]["position"] == cursor + 1
    reject(still_server, 1)

    for limit in (1, 1000):
        document = problem(still_server.get(f"/decisions?after={cursor}&limit={limit}"))
        assert (document["status"], document["code"], document["field"]) == (410, "position_gone", "after")
    assert page(still_server, after=cursor + 1, limit=1)["entries"][0]["position"] == cursor + 2


def test_a_cursor_of_another_boot_is_410(still_server: LiveServer) -> None:
    """Positions mean nothing in another store; the store's own boot id is accepted."""
    boot_id = still_server.state()["boot_id"]

    document = problem(still_server.get("/decisions?after=1&boot_id=" + "0" * 32))

    assert (document["status"], document["code"], document["field"]) == (410, "other_boot", "boot_id")
    assert page(still_server, boot_id=boot_id, limit=1)["boot_id"] == boot_id


def test_a_cursor_names_its_history(still_server: LiveServer) -> None:
    """`cursor` leads to the same page as `next`, which stays valid; that of another history is refused."""
    reject(still_server, 3)
    log_id = still_server.state()["log_id"]

    first = page(still_server, limit=1)

    assert first["cursor"] == f"{log_id}:{first['next']}"
    following = [page(still_server, after=after, limit=2) for after in (first["cursor"], first["next"])]
    assert positions_of(following[0]) == positions_of(following[1]) == [first["next"] + 1, first["next"] + 2]
    for query, field in ((f"after={'0' * 32}:1", "after"), ("after=:1", "after"), ("log_id=x", "log_id")):
        document = problem(still_server.get(f"/decisions?{query}"))
        assert (document["status"], document["code"], document["field"]) == (410, "other_boot", field)
    assert document["expected"] == log_id


@pytest.mark.parametrize(
    ("parameters", "code", "field"),
    [
        ("limit=0", "limit_out_of_range", "limit"),
        (f"limit={DECISIONS_PAGE.value + 1}", "limit_out_of_range", "limit"),
        ("limit=x", "limit_out_of_range", "limit"),
        ("limit=", "limit_out_of_range", "limit"),
        ("limit=1.0", "limit_out_of_range", "limit"),
        ("after=-1", "field_invalid", "after"),
        ("after=x", "field_invalid", "after"),
        ("after=%D9%A1", "field_invalid", "after"),
        ("after=9223372036854775808", "field_invalid", "after"),
        ("after={log_id}:", "field_invalid", "after"),
        ("after={log_id}:x", "field_invalid", "after"),
        ("after={log_id}:9223372036854775808", "field_invalid", "after"),
        ("after={log_id}:9223372036854775807", "position_unknown", "after"),
        ("after=9223372036854775807", "position_unknown", "after"),
        ("since=1", "field_unknown", "since"),
        ("limit=1000000&limit=1", "field_repeated", "limit"),
        ("after=0&%61fter=0", "field_repeated", "after"),
    ],
)
def test_wrong_parameters_are_422(still_server: LiveServer, parameters: str, code: str, field: str) -> None:
    """Including a position that has not happened yet."""

    query = parameters.format(log_id=still_server.state()["log_id"])
    document = problem(still_server.get("/decisions?" + query))

    assert (document["status"], document["code"], document["field"]) == (422, code, field)


def test_a_page_has_100_entries_by_default(still_server: LiveServer) -> None:
    """And at most 1,000, of at most 500 bytes each."""
    reject(still_server, LOG_CAPACITY)

    assert len(page(still_server)["entries"]) == 100
    assert len(still_server.get("/decisions?limit=1000").body) < 1000 * 600


def test_head_encodes_no_piece_of_a_page(still_server: LiveServer) -> None:
    """It checks the request as GET does, and reads no more of the log than that takes."""
    reject(still_server, 10)

    answer = still_server.request("HEAD", "/decisions?limit=1000")
    assert (answer.status, "content-length" in answer.headers) == (200, False)
    assert still_server.request("HEAD", "/decisions?limit=0").status == 422
    assert still_server.request("HEAD", "/decisions?after=9223372036854775807").status == 422


def positions_of(document: dict[str, Any]) -> list[int]:
    """Return the positions of the entries of a page."""
    return [entry["position"] for entry in document["entries"]]


def test_the_newest_entries_come_first_on_request(still_server: LiveServer) -> None:
    """The last decision is one request away, however long the log is."""
    reject(still_server, LOG_CAPACITY + 5)
    last = sent(still_server, "/event", of_json({"event_vector": EXAMPLE, "moral_value": 0.125}))["position"]

    first = page(still_server, order="newest", limit=3)

    assert positions_of(first) == [last, last - 1, last - 2]
    assert (first["next"], first["newest"]) == (last - 2, last)
    assert positions_of(page(still_server, order="newest", limit=3, after=first["next"])) == [
        last - 3,
        last - 4,
        last - 5,
    ]
    assert positions_of(page(still_server, after=last - 3, order="oldest")) == [last - 2, last - 1, last]


@pytest.mark.parametrize("limit", [7, 50, 1000])
@pytest.mark.parametrize("order", ["oldest", "newest"])
@pytest.mark.parametrize("kind", ["", "decision", "delete", "stop,resume", "delete,stop,resume,decision", "reset"])
def test_pages_join_in_both_orders_and_of_any_kind(still_server: LiveServer, limit: int, order: str, kind: str) -> None:
    """The pages from the start to the end of the log are the whole log, filtered."""
    for _ in range(3):
        memory_id = accepted(still_server)["memory_id"]
        reject(still_server, 60)
        still_server.request("DELETE", f"/memories/{memory_id}")
        for command in ("stop", "resume"):
            assert still_server.request("POST", f"/governor/{command}").status == 200
    whole = (
        page(still_server, limit=1000)["entries"]
        + page(still_server, after=still_server.state()["position"] - 23)["entries"]
    )
    kinds = set(kind.split(",")) if kind else {entry["kind"] for entry in whole}
    expected = [entry["position"] for entry in {e["position"]: e for e in whole}.values() if entry["kind"] in kinds]
    found: list[int] = []
    parameters: dict[str, Any] = {"order": order, "limit": limit} | ({"kind": kind} if kind else {})

    following = page(still_server, **parameters)
    while True:
        assert len(following["entries"]) <= limit
        assert {entry["kind"] for entry in following["entries"]} <= kinds
        found += positions_of(following)
        if following["next"] == following["newest"] if order == "oldest" else following["next"] <= following["oldest"]:
            break
        following = page(still_server, **parameters, after=following["next"])

    assert found == (expected if order == "oldest" else expected[::-1])


@pytest.mark.parametrize(
    ("parameters", "field", "expected"),
    [
        ("order=up", "order", "oldest or newest"),
        ("order=", "order", "oldest or newest"),
        ("order=Newest", "order", "oldest or newest"),
        ("kind=", "kind", "one of decision, tick, "),
        ("kind=none", "kind", "one of decision, tick, "),
        ("kind=decision,", "kind", "one of decision, tick, "),
        ("kind=decision,ticks", "kind", "one of decision, tick, "),
        ("kind=" + "x" * 3000, "kind", "one of decision, tick, "),
    ],
)
def test_an_unknown_order_or_kind_is_named(
    still_server: LiveServer, parameters: str, field: str, expected: str
) -> None:
    """It is refused, not ignored; the detail quotes a part of it."""
    document = problem(still_server.get("/decisions?" + parameters))

    assert (document["status"], document["code"], document["field"]) == (422, "field_invalid", field)
    assert document["expected"].startswith(expected)
    assert len(document["detail"]) < 300


def test_a_position_that_has_not_happened_is_unknown_in_both_orders(still_server: LiveServer) -> None:
    """The newest itself is known: before it there are entries, behind it there are none yet."""
    newest_position = still_server.state()["position"]

    for order in ("oldest", "newest"):
        document = problem(still_server.get(f"/decisions?order={order}&after={newest_position + 1}"))
        assert (document["code"], document["field"]) == ("position_unknown", "after")
    assert positions_of(page(still_server, order="newest", after=newest_position, limit=1)) == [newest_position - 1]
    assert page(still_server, order="newest", after=0)["entries"] == []
    assert page(still_server, order="newest", after=1)["entries"] == []


@pytest.fixture
def formed() -> Iterator[Formed]:
    """A block with 4,096 places in its log, used by this test alone."""
    block = Formed()
    yield block
    block.close()


def pieces(formed: Formed, query: str) -> Iterator[bytes]:
    """Return the pieces of a page."""
    config = Config(log_capacity=formed.block.layout.log_capacity)
    context: Any = SimpleNamespace(store=formed.store, boot_id="b", log_id="l", log_time=formed.now, config=config)
    request = falcon.Request(falcon.testing.create_environ("/decisions", query_string=query))
    response = falcon.Response()
    DecisionsResource(context).on_get(request, response)
    made: Any = response.stream
    return iter(made)


def test_a_page_ends_where_the_ring_has_overwritten_it(formed: Formed) -> None:
    """The page has no gap, and the request that continues from `next` gets the error."""
    for number in range(1_000):
        formed.decide(number)
    made = pieces(formed, "after=0&limit=1000")
    begun = [next(made), next(made), next(made)]

    for number in range(formed.block.layout.log_capacity):
        formed.decide(number)
    document = json.loads(b"".join([*begun, *made]))

    positions = [entry["position"] for entry in document["entries"]]
    assert positions == list(range(1, document["next"] + 1))
    assert 1 < len(positions) < 1_000
    with pytest.raises(Problem) as caught:
        pieces(formed, f"after={document['next']}")
    assert caught.value.problem_code == "position_gone"


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 99, 100, 101, 149])
@pytest.mark.parametrize("limit", [1, 50, 51, 100])
def test_a_page_has_at_most_limit_entries(formed: Formed, count: int, limit: int) -> None:
    """Wherever the last piece ends."""
    start = int(formed.store.state().position)
    for number in range(count):
        formed.decide(number)

    document = json.loads(b"".join(pieces(formed, f"after={start}&limit={limit}")))

    held = min(count, limit)
    assert [entry["position"] for entry in document["entries"]] == list(range(start + 1, start + held + 1))
    assert (document["next"], document["oldest"], document["newest"]) == (start + held, 1, start + count)


def test_a_page_newest_first_ends_where_the_ring_has_overwritten_it(formed: Formed) -> None:
    """Its entries are without a gap, and the cursor is at the end of the log: nothing older is left."""
    for number in range(1_000):
        formed.decide(number)
    newest_position = int(formed.store.state().position)
    made = pieces(formed, "order=newest&limit=1000")
    begun = [next(made), next(made), next(made)]

    for number in range(formed.block.layout.log_capacity):
        formed.decide(number)
    document = json.loads(b"".join([*begun, *made]))

    positions = positions_of(document)
    assert positions == list(range(newest_position, document["next"] - 1, -1))
    assert 1 < len(positions) < 1_000
    assert document["next"] <= document["oldest"]
    again = json.loads(b"".join(pieces(formed, f"order=newest&after={document['next']}")))
    assert (again["entries"], again["next"]) == ([], document["next"])


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_a_rare_kind_costs_a_bounded_page(order: str) -> None:
    """A page looks at a bounded number of entries, and the next one goes on from there; a piece is no longer."""
    formed = Formed(SMALL._replace(log_capacity=32_768))
    for number in range(25_000):
        formed.decide(number % 1_000)
    formed.accept()
    newest_position, pages, parts = int(formed.store.state().position), [], []
    query, after = f"order={order}&kind=start", ""

    while True:
        made = list(pieces(formed, query + after))
        pages.append(json.loads(b"".join(made)))
        parts.append(len(made))
        if pages[-1]["next"] in ({newest_position} if order == "oldest" else {1}):
            break
        after = f"&after={pages[-1]['next']}"
    formed.close()

    assert [position for document in pages for position in positions_of(document)] == [1]
    assert len(pages) == 3
    assert max(parts) <= 10_000 / 50 + 2

"""Idempotency keys over HTTP: a repeated request is decided once and answered alike, whichever process died."""

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any, Final

import psutil
import pytest

from shm.block import Block
from shm.layout import KINDS
from shm.store import Store
from testing import keys
from testing.bodies import (
    BATCH_FORMS,
    EVENT_FORMS,
    EXAMPLE,
    JSON,
    RAW,
    Body,
    floats,
    of_json,
    of_msgpack,
    problem,
    text,
)
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import Answer, LiveServer
from tests.conftest import Serve

CAPACITY: Final = 1024  # receipts of `keyed_server`
VECTOR: Final = [0.5, -0.5] * 4
_numbers = count(1)


def new_key() -> str:
    """Return a key that no test has used."""
    return f"test-{os.getpid()}-{next(_numbers)}"


def send(
    server: LiveServer,
    path: str,
    body: Body,
    key: str,
    who: str = "writer",
    *,
    connection: http.client.HTTPConnection | None = None,
) -> Answer:
    """Send a body with an idempotency key, as a key of `ring`."""
    headers = body.headers | keys.bearer(who) | {"Idempotency-Key": key}
    return server.request("POST", path, body.content, headers, connection)


def is_replayed(answer: Answer) -> bool:
    """Return whether an answer says that it was given before."""
    return answer.headers.get("idempotency-replayed") == "true"


def decided(server: LiveServer) -> int:
    """Return how many events were decided."""
    total: int = server.request("GET", "/state", headers=keys.bearer("reader")).json["total_events_processed"]
    return total


@pytest.fixture
def workers(keyed_server: LiveServer) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPConnection]]:
    """A connection to each of the two workers."""
    connections = keyed_server.connect_to_both_workers()
    yield connections
    for connection in connections:
        connection.close()


# -- the same answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moral", [0.95, 0.1])
@pytest.mark.parametrize("form", EVENT_FORMS)
def test_an_event_sent_again_gets_its_first_answer(
    keyed_server: LiveServer, workers: tuple[Any, Any], form: str, moral: float
) -> None:
    """Byte for byte, from either worker, accepted or rejected; only a header tells, and nothing is decided."""
    body, key = EVENT_FORMS[form](VECTOR, moral), new_key()

    first = send(keyed_server, "/event", body, key, connection=workers[0])
    total = decided(keyed_server)
    again = [send(keyed_server, "/event", body, key, connection=worker) for worker in (*workers, workers[0])]

    assert (first.status, is_replayed(first)) == (200, False)
    assert [(answer.status, answer.body, is_replayed(answer)) for answer in again] == [(200, first.body, True)] * 3
    assert decided(keyed_server) == total


@pytest.mark.parametrize("form", BATCH_FORMS)
def test_a_batch_sent_again_gets_its_first_answers(
    keyed_server: LiveServer, workers: tuple[Any, Any], form: str
) -> None:
    """Each of its events has a receipt of its own."""
    body, key = BATCH_FORMS[form]([(VECTOR, moral) for moral in (0.95, 0.1, 0.95, 0.5)]), new_key()

    first = send(keyed_server, "/events", body, key, connection=workers[0])
    total = decided(keyed_server)
    again = send(keyed_server, "/events", body, key, connection=workers[1])

    assert (first.status, is_replayed(first), len(first.json["results"])) == (200, False, 4)
    assert (again.status, again.body, is_replayed(again)) == (200, first.body, True)
    assert decided(keyed_server) == total


def test_the_same_request_at_the_same_time_is_decided_once(keyed_server: LiveServer) -> None:
    """Eight senders with one key: one of them decides, all are answered alike."""
    body, answers = of_json({"event_vector": VECTOR, "moral_value": 0.95}), []
    total, rounds = decided(keyed_server), 10
    barrier = threading.Barrier(8)
    keys = [new_key() for _ in range(rounds)]

    def client() -> None:
        connection = keyed_server.connect()
        for key in keys:
            barrier.wait()
            answers.append((key, send(keyed_server, "/event", body, key, connection=connection)))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert decided(keyed_server) == total + rounds
    for key in keys:
        of_key = [answer for name, answer in answers if name == key]
        assert len({answer.body for answer in of_key}) == 1
        assert [is_replayed(answer) for answer in of_key].count(False) == 1


# -- what is another request -----------------------------------------------------------------------------------------


def test_a_key_belongs_to_one_request(keyed_server: LiveServer) -> None:
    """Another vector, moral value, payload, number of events or route is refused, and decides nothing."""
    event = {"event_vector": VECTOR, "moral_value": 0.95, "payload": {"a": 1}}
    nearly = [*VECTOR[:-1], -0.50000006]  # the next float32
    json_key, raw_key, batch_key = new_key(), new_key(), new_key()
    for path, body, key in (
        ("/event", of_json(event), json_key),
        ("/event", EVENT_FORMS["raw"](VECTOR, 0.95), raw_key),
        ("/events", of_json([event, event]), batch_key),
    ):
        assert send(keyed_server, path, body, key).status == 200
    total = decided(keyed_server)
    others = [
        ("/event", of_json({**event, "moral_value": 0.94}), json_key),
        ("/event", of_json({**event, "event_vector": nearly}), json_key),
        ("/event", of_json({**event, "payload": {"a": 2}}), json_key),
        ("/event", of_json({**event, "payload": None}), json_key),
        ("/events", of_json([event]), json_key),
        ("/event", EVENT_FORMS["raw"](VECTOR, 0.1), raw_key),
        ("/event", of_json(event), raw_key),
        ("/event", of_json(event), batch_key),
        ("/events", of_json([event] * 3), batch_key),
        ("/events", of_json([event, {**event, "payload": None}]), batch_key),
        ("/events", of_json([{**event, "payload": '{"a":1}7:{"a":1}'}, {**event, "payload": None}]), batch_key),
    ]

    for path, body, key in others:
        document = problem(send(keyed_server, path, body, key))
        assert (document["status"], document["code"]) == (422, "idempotency_key_reused")
    assert decided(keyed_server) == total


def spellings(event: dict[str, Any]) -> list[tuple[str, Body]]:
    """Return requests that say the same, each as a path and a body."""
    plain = json.dumps(event).encode()
    return [
        *[
            ("/event", Body(plain, {"Content-Type": media}))
            for media in (JSON, f"{JSON}; charset=utf-8", f"{JSON};charset=UTF-8", "Application/JSON")
        ],
        ("/event", Body(plain, {})),
        ("//event", of_json(plain)),
        ("/event", of_json(json.dumps(dict(reversed(event.items())), indent=2).encode())),
        ("/event", of_json({**event, "event_vector": text(event["event_vector"])})),
        ("/event", of_msgpack(event)),
    ]


@pytest.mark.parametrize("number", range(9))
def test_the_spelling_of_a_request_is_no_part_of_it(keyed_server: LiveServer, number: int) -> None:
    """Media type parameters and case, white space, the order of members, the form: an event is its values."""
    event, key = {"event_vector": VECTOR, "moral_value": 0.95, "payload": {"é": ["漢", 1.5]}}, new_key()
    plain = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    first = send(keyed_server, "/event", of_json(plain), key)
    total = decided(keyed_server)

    again = send(keyed_server, *spellings(event)[number], key)

    assert (again.status, again.body, is_replayed(again)) == (200, first.body, True)
    assert decided(keyed_server) == total


@pytest.mark.parametrize("moral", ["0.95", "0.950", "+.95", "95e-2"])
@pytest.mark.parametrize("media", [RAW, f"{RAW}; charset=binary"])
def test_the_spelling_of_a_raw_request_is_no_part_of_it(keyed_server: LiveServer, moral: str, media: str) -> None:
    """Its moral value counts as a number, and a JSON event with the same numbers is the same event."""
    key = new_key()
    first = send(keyed_server, "/event", of_json({"event_vector": VECTOR, "moral_value": 0.95}), key)

    again = send(keyed_server, "/event", Body(floats(VECTOR), {"Content-Type": media, "Moral-Value": moral}), key)

    assert (again.status, again.body, is_replayed(again)) == (200, first.body, True)


def test_the_form_of_a_batch_is_no_part_of_it(keyed_server: LiveServer) -> None:
    """Every form of the same events gets the first answer; events without a payload and with null are the same."""
    events, key = [(VECTOR, 0.95), (VECTOR, 0.1)], new_key()
    first = send(keyed_server, "/events", BATCH_FORMS["raw"](events), key)
    nulls = of_json([{"event_vector": vector, "moral_value": moral, "payload": None} for vector, moral in events])

    answers = [
        send(keyed_server, "/events", body, key)
        for body in (*[BATCH_FORMS[form](events) for form in BATCH_FORMS], nulls)
    ]

    assert [(answer.status, answer.body, is_replayed(answer)) for answer in answers] == [(200, first.body, True)] * 7


def test_a_key_belongs_to_one_client(keyed_server: LiveServer) -> None:
    """Two API keys that choose the same idempotency key do not meet, nor see each other's answers."""
    key = new_key()

    answers = [
        send(keyed_server, "/event", of_json({"event_vector": VECTOR, "moral_value": moral}), key, who)
        for who, moral in (("writer", 0.95), ("second", 0.96), ("admin", 0.97), ("writer", 0.95))
    ]

    assert [answer.status for answer in answers] == [200] * 4
    assert [is_replayed(answer) for answer in answers] == [False, False, False, True]
    assert len({answer.body for answer in answers}) == 3


@pytest.mark.parametrize(
    "key", ["", '"', '""', "a b", "x" * 256, '"' + "x" * 256 + '"', 'a"b', "a\\b", '"a', 'a"', "a\tb", "\xe9", '"a" x']
)
def test_an_invalid_idempotency_key_is_400(keyed_server: LiveServer, key: str) -> None:
    """The event could not be recognised again, so it is not decided."""
    total = decided(keyed_server)

    answer = send(keyed_server, "/event", of_json({"event_vector": VECTOR, "moral_value": 0.95}), key)

    document = problem(answer)
    assert (document["status"], document["code"]) == (400, "idempotency_key_invalid")
    assert document["field"] == "Idempotency-Key"
    assert decided(keyed_server) == total


def test_a_key_may_be_quoted(keyed_server: LiveServer) -> None:
    """A string of RFC 9651 is the same key as the bare one; the longest is taken."""
    body, longest = of_json({"event_vector": VECTOR, "moral_value": 0.95}), new_key().ljust(255, "~")

    first = send(keyed_server, "/event", body, longest)
    again = send(keyed_server, "/event", body, f'"{longest}"')

    assert (first.status, again.body, is_replayed(again)) == (200, first.body, True)


# -- what leaves no receipt, and for how long it holds -----------------------------------------------------------------


def test_a_refused_request_leaves_no_receipt(keyed_server: LiveServer) -> None:
    """Corrected, or sent again after the stop, it is decided as if for the first time."""
    good, key = of_json({"event_vector": VECTOR, "moral_value": 0.95}), new_key()
    bad = [
        of_json({"event_vector": VECTOR, "moral_value": 1.5}), of_json({"event_vector": [1e9] * 8, "moral_value": 0.5}),
        of_json(b"{"), Body(good.content, {"Content-Type": "text/plain"}),
        of_json({"event_vector": VECTOR, "moral_value": 0.5, "payload": "x" * 5000}),
    ]  # fmt: skip
    admin = keys.bearer("admin")

    statuses = [send(keyed_server, "/event", body, key).status for body in bad]
    keyed_server.request("POST", "/governor/stop", headers=admin)
    stopped = send(keyed_server, "/event", good, key)
    keyed_server.request("POST", "/governor/resume", headers=admin)
    first = send(keyed_server, "/event", good, key)

    assert statuses == [422, 422, 400, 415, 413]
    assert (stopped.status, stopped.json["code"]) == (503, "stopped")
    assert (first.status, is_replayed(first)) == (200, False)


def test_while_stopped_a_retry_gets_its_first_decision(keyed_server: LiveServer) -> None:
    """An event that was decided before the stop gets its decision; a batch without any decision is refused."""
    body, key, admin = of_json({"event_vector": VECTOR, "moral_value": 0.95}), new_key(), keys.bearer("admin")
    batch, batch_key = of_json([{"event_vector": VECTOR, "moral_value": 0.95}] * 3), new_key()
    first, firsts = send(keyed_server, "/event", body, key), send(keyed_server, "/events", batch, batch_key)

    keyed_server.request("POST", "/governor/stop", headers=admin)
    again, agains = send(keyed_server, "/event", body, key), send(keyed_server, "/events", batch, batch_key)
    fresh = send(keyed_server, "/events", batch, new_key())
    keyed_server.request("POST", "/governor/resume", headers=admin)

    assert [(answer.status, answer.body) for answer in (again, agains)] == [(200, first.body), (200, firsts.body)]
    assert (fresh.status, fresh.json["code"], fresh.headers["retry-after"]) == (503, "stopped", "60")


def test_the_newest_receipts_are_kept_and_the_oldest_is_forgotten(keyed_server: LiveServer) -> None:
    """`idempotency_capacity` of them, exactly; a key that is forgotten is a new one."""
    body, key = of_json({"event_vector": VECTOR, "moral_value": 0.95}), new_key()
    fill = of_json([{"event_vector": VECTOR, "moral_value": 0.1}] * (CAPACITY - 24))
    first = send(keyed_server, "/event", body, key)
    send(keyed_server, "/events", fill, new_key())
    for _ in range(23):
        send(keyed_server, "/event", body, new_key())

    kept = send(keyed_server, "/event", body, key)
    send(keyed_server, "/event", body, new_key())
    forgotten = send(keyed_server, "/event", body, key)

    assert (kept.body, is_replayed(kept)) == (first.body, True)
    assert (forgotten.status, is_replayed(forgotten)) == (200, False)
    assert forgotten.json["sequence"] > first.json["sequence"]


# -- over deaths -----------------------------------------------------------------------------------------------------


def logged(server: LiveServer) -> list[tuple[int, int]]:
    """Return sequence and position of every decision in the log."""
    store = server.store()
    newest = int(store.state().position)
    entries: list[Any] = []
    while len(entries) < newest:
        entries += store.entries(len(entries) + 1, 1000)[0]
    return [
        (entry.after.accepted + entry.after.rejected, entry.position)
        for entry in entries
        if entry.kind == KINDS.index("decision")
    ]


def worker_of(connection: http.client.HTTPConnection, workers: list[int]) -> int:
    """Return the pid of the worker that holds the other end of a connection."""
    port = connection.sock.getsockname()[1]
    for pid in workers:
        if any(end.raddr and end.raddr.port == port for end in psutil.Process(pid).net_connections("tcp")):
            return pid
    raise AssertionError("no worker holds that connection")


def wait_for_successor(server: LiveServer, block: Block, victim: int) -> None:
    """Wait until two workers serve and the victim is none of them."""
    eventually(lambda: victim not in (now := server.workers(block)) and len(now) == 2)


def kill_after(store: Store, victim: int, count: int) -> None:
    """SIGKILL a worker as soon as `count` decisions are in the log."""
    deadline = time.monotonic() + HANG_SECONDS
    while (scalars := store.state().scalars).accepted + scalars.rejected < count and time.monotonic() < deadline:
        pass
    os.kill(victim, signal.SIGKILL)


def test_workers_that_die_under_load_decide_no_event_twice(serve: Serve) -> None:
    """Clients that retry until they are answered: each event is in the log once, under the number it was told."""
    server = serve()
    answers: dict[str, Answer] = {}
    refusals: set[tuple[int, str]] = set()
    over = threading.Event()

    def client(number: int) -> None:
        body, turn = of_json({"event_vector": EXAMPLE, "moral_value": number / 4}), 0
        connection = server.connect()
        while not over.is_set():
            key, turn = f"{number}-{turn}", turn + 1
            while key not in answers:
                try:
                    answer = server.request(
                        "POST", "/event", body.content, body.headers | {"Idempotency-Key": key}, connection
                    )
                except (OSError, http.client.HTTPException):
                    connection.close()  # and sent again, on another connection
                    time.sleep(0.001)
                    continue
                if answer.status == 200:
                    answers[key] = answer
                else:  # the lock was held for too long by a process that had no processor
                    refusals.add((answer.status, answer.json["code"]))
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    block = server.block()
    for number in range(8):
        victim = server.workers(block)[number % 2]
        os.kill(victim, signal.SIGKILL)
        wait_for_successor(server, block, victim)
        goal = len(answers) + 20
        eventually(lambda goal=goal: len(answers) >= goal)  # type: ignore[misc]  # early binding
    over.set()
    for thread in threads:
        thread.join()

    told = sorted((answer.json["sequence"], answer.json["position"]) for answer in answers.values())
    assert told == logged(server)
    assert refusals <= {(503, "store_busy")}


def test_a_batch_whose_worker_died_is_finished_by_its_retry(serve: Serve) -> None:
    """The worker is killed as soon as its first event is in the log: the rest is decided by the retry, once.

    Vectors are long, so that a batch lasts some milliseconds; whoever kills it looks at the log a hundred times in one.
    On a busy machine it may come too late many times: the log has room for a thousand batches.
    """
    server = serve(MLSDM_COGNITIVE_RHYTHM__CLOCK="events", MLSDM_DIMENSION="1024", MLSDM_LOG_CAPACITY=str(1 << 20))
    block = server.block()
    body = BATCH_FORMS["raw"]([([0.25] * 1024, number / 1000) for number in range(1000)])
    total = 0

    def interrupted() -> bool:
        """Kill the worker of one batch and send the batch again; returns whether a part of it had been decided."""
        nonlocal total
        headers = body.headers | {"Idempotency-Key": f"batch-{total}"}
        connection = server.connect()
        server.request("GET", "/livez", connection=connection)
        victim = worker_of(connection, server.workers(block))
        killer = threading.Thread(target=kill_after, args=(server.store(), victim, total + 1))
        killer.start()
        with suppress(OSError, http.client.HTTPException):
            server.request("POST", "/events", body.content, headers, connection)
        killer.join()
        connection.close()
        wait_for_successor(server, block, victim)
        decided = len(logged(server)) - total
        answer = server.request("POST", "/events", body.content, headers)
        assert answer.status == 200
        assert is_replayed(answer) == (decided > 0)
        results = answer.json["results"]
        assert list(range(total + 1, total + 1001)) == [result["sequence"] for result in results]
        again = server.request("POST", "/events", body.content, headers)
        assert (again.body, is_replayed(again)) == (answer.body, True)
        total += 1000
        return 0 < decided < 1000

    eventually(interrupted)

    assert list(range(1, total + 1)) == [sequence for sequence, _ in logged(server)]


def test_two_idempotency_keys_are_refused(keyed_server: LiveServer) -> None:
    """With two fields, it is unknown which one the client would send again."""
    connection = keyed_server.connect()
    connection.putrequest("POST", "/event")
    for name, value in (*keys.bearer("writer").items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")):
        connection.putheader(name, value)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    response = connection.getresponse()

    assert (response.status, b"duplicate_field" in response.read()) == (400, True)
    connection.close()


def test_an_ignored_moral_value_does_not_change_the_request(keyed_server: LiveServer) -> None:
    """The header counts for raw bodies alone; with JSON it may differ between retries."""
    body = of_json({"event_vector": EXAMPLE, "moral_value": 0.9})
    headers = body.headers | keys.bearer("writer") | {"Idempotency-Key": new_key()}

    answers = [
        keyed_server.request("POST", "/event", body.content, headers | {"Moral-Value": moral}) for moral in ("0.1", "x")
    ]

    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body == answers[1].body

"""Quotas: what each request costs, what costs nothing, and that all workers together enforce one limit."""

import http.client
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import falcon
import falcon.testing
import numpy as np
import pytest

from app.api.access.client import Client
from app.api.access.gate import Gate
from app.api.access.quotas import Quotas, refund
from app.api.codec.body_sizes import event_size_max
from app.api.fast_path import FastPath, ReraiseMiddleware
from app.api.operation import Operation
from app.api.problem import Problem
from app.httpd.request import CLIENT, HEADER_LINES
from app.main import _reraise
from core.access.keys import Role
from core.settings.tiers import Tier
from shm.bucket import PEERS, Bucket
from testing import keys
from testing.block_fixture import Formed
from testing.bodies import BATCH_FORMS, EXAMPLE, JSON, Body, of_json, of_raw, post, problem
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import Answer, LiveServer
from tests.conftest import SMALL, Serve

EVENT: Final = of_json({"event_vector": EXAMPLE, "moral_value": 0.95})
BURST: Final = 60  # of tier standard on `limited`, which refills too slowly for a test to see: 100 s for one token
MANY: Final = 1_000_000  # the same of tier high
RATE: Final = 100  # tokens a second, and the burst, of tier bulk


def batch(size: int) -> Body:
    """Return a batch of events."""
    return of_json([{"event_vector": EXAMPLE, "moral_value": 0.95}] * size)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two workers, the keys of `ring`, and a tier of each kind: standard and high hardly refill, bulk does."""
    directory = tmp_path_factory.mktemp("limited")
    config = directory / "mlsdm.yaml"
    config.write_text(
        f"""
        security:
          keys_path: {keys.write(directory / "keys.yaml")}
          rate_limiting:
            enabled: true
            requests_per_second: 0.01
            burst_capacity: {BURST}
            tiers:
              high: {{requests_per_second: 0.001, burst_capacity: {MANY}}}
              bulk: {{requests_per_second: {RATE}, burst_capacity: {RATE}}}
        """
    )
    environ = {**SMALL, "CONFIG_PATH": str(config), "MLSDM_COGNITIVE_RHYTHM__CLOCK": "events"}
    server = LiveServer(directory, environ).start()
    yield server
    server.stop()
    assert keys.leaked(server) == []


Send = Callable[..., Answer]


def sender(server: LiveServer, name: str) -> Send:
    """Return how to send a body as a key of `ring`."""

    def send(path: str, body: Body = EVENT, connection: http.client.HTTPConnection | None = None) -> Answer:
        return server.request("POST", path, body.content, body.headers | keys.bearer(name), connection)

    return send


def left(answer: Answer) -> int:
    """Return how many tokens an answer says are left."""
    found = re.fullmatch(r'"(standard|high|bulk)";r=(\d+);t=\d+', answer.headers["ratelimit"])
    assert found, answer.headers
    return int(found[2])


# -- what costs -------------------------------------------------------------------------------------------------------


def test_events_and_recalls_cost_one_and_batches_what_they_hold(limited: LiveServer) -> None:
    """All out of one bucket, whichever worker answers; each answer says what is left."""
    send, connections = sender(limited, "quick"), limited.connect_to_both_workers()
    start = left(send("/event"))
    costs = [
        ("/event", EVENT, 1), ("/recall", of_json({"vector": EXAMPLE}), 1), ("/events", batch(1), 1),
        ("/events", batch(7), 7), ("/events", batch(1000), 1000), ("/event", EVENT, 1),
    ]  # fmt: skip

    for number, (path, body, cost) in enumerate(costs):
        answer = send(path, body, connections[number % 2])
        assert answer.status == 200
        assert left(answer) == start - cost
        assert answer.headers["ratelimit-policy"] == f'"high";q={MANY};w={MANY * 1000}'
        start -= cost


def test_refused_requests_and_other_operations_cost_nothing(limited: LiveServer) -> None:
    """Whatever the reason: the next event finds the bucket unchanged, and no refusal states a stale count."""
    send, headers = sender(limited, "slow"), keys.bearer("slow")
    start = left(send("/event"))
    known = {"Idempotency-Key": "known"}
    memory_id = send("/event", Body(EVENT.content, EVENT.headers | known)).json["memory_id"]
    start -= 1
    huge = of_json({"event_vector": EXAMPLE, "moral_value": 0.5, "payload": "x" * 2000})
    other = of_json({"event_vector": EXAMPLE, "moral_value": 0.5})
    refused = [
        ("/event", of_json({}), 422), ("/event", of_json(b"{"), 400), ("/event", of_json(b""), 400),
        ("/event", of_json({"event_vector": [0.5], "moral_value": 0.5}), 422), ("/event", of_raw(b"abc"), 422),
        ("/event", Body(b"x", {"Content-Type": "text/plain"}), 415), ("/event", huge, 413),
        ("/event", of_json({"event_vector": [1e9] * 8, "moral_value": 0.5}), 422),
        ("/event", of_json({"event_vector": EXAMPLE, "moral_value": 2}), 422),
        ("/event", Body(EVENT.content, EVENT.headers | {"Idempotency-Key": "a b"}), 400),
        ("/event", Body(other.content, other.headers | known), 422),
        ("/events", of_json([]), 422), ("/events", of_json([{}] * 50), 422), ("/events", batch(1001), 422),
        ("/events", batch(BURST + 1), 422), ("/recall", of_json({}), 422), ("/governor/stop", of_json({}), 403),
        ("/recall", of_json({"vector": [1e9] * 8}), 422), ("/state", EVENT, 405), ("/nope", EVENT, 404),
    ]  # fmt: skip

    for path, body, status in refused:
        answer = send(path, body)
        assert (answer.status, "ratelimit" in answer.headers) == (status, False), (path, answer)
    assert limited.request("POST", "/event", EVENT.content, EVENT.headers).status == 401
    for path in (
        "/state",
        "/decisions",
        f"/memories/{memory_id}",
        "/governor",
        "/health/detailed",
        "/livez",
        "/metrics",
    ):
        answer = limited.request("GET", path, headers=headers)
        assert (answer.status, "ratelimit" in answer.headers) == (200, False)
    assert limited.request("DELETE", f"/memories/{memory_id}", headers=headers).status == 200
    assert limited.request("OPTIONS", "/event", headers=headers).status == 204

    assert left(send("/event")) == start - 1


def test_a_batch_above_the_burst_is_422(limited: LiveServer) -> None:
    """It can never fit, so a 429 would make the client wait for ever; a batch of the size of the burst fits."""
    document = problem(sender(limited, "slow")("/events", batch(BURST + 1)))

    assert (document["status"], document["code"]) == (422, "batch_above_burst")
    assert document["expected"] == f"at most {BURST} events"
    assert "the burst of tier standard" in document["detail"]


def announced(server: LiveServer, name: str, size: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Announce a batch of so many bytes as a key of `ring`, send none; return fields and document of the answer."""
    connection = server.connect()
    connection.putrequest("POST", "/events")
    headers = keys.bearer(name) | {"Content-Type": JSON, "Content-Length": str(size), "Expect": "100-continue"}
    for field in headers.items():
        connection.putheader(*field)
    connection.endheaders()
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    assert (answer.status, answer.headers["Connection"]) == (document["status"], "close")
    return {field.lower(): value for field, value in answer.headers.items()}, document


def test_a_batch_whose_size_exceeds_the_burst_is_not_decoded(limited: LiveServer) -> None:
    """Its size exceeds the maximum size of that many events."""
    size = event_size_max(8, 1024)
    start = left(sender(limited, "slow")("/event"))

    _, document = announced(limited, "slow", BURST * size + 1)

    assert (document["status"], document["code"], document["expected"]) == (
        422, "batch_above_burst", f"at most {BURST} events",
    )  # fmt: skip
    assert document["detail"].startswith(f"body: at least {BURST + 1} events; expected at most {BURST}, the burst of ")
    assert left(sender(limited, "slow")("/event")) == start - 1


def test_a_batch_without_enough_tokens_is_told_its_whole_price(limited: LiveServer) -> None:
    """Its size says only what it must cost at least: it is read and counted, whatever the form of its vectors."""
    send, size = sender(limited, "thrifty"), event_size_max(8, 1024)
    assert left(send("/events", batch(BURST - 3))) == 3

    for form, make in BATCH_FORMS.items():
        body: Body = make([(EXAMPLE, 0.95)] * 5)  # type: ignore[no-untyped-call] # lambdas in a table
        answer = send("/events", body)
        assert (answer.status, left(answer)) == (429, 3), form
        assert answer.headers["retry-after"] == str((5 - 3) * 100), form  # 100 s for a token
        assert problem(answer)["detail"] == (
            f"The request costs 5 tokens; the bucket has 3. Tier standard allows bursts of {BURST} and refills 0.01 "
            "per second. Send it again in 200 seconds. Nothing was applied."
        )
    body = batch(3)
    assert left(send("/events", Body(body.content.ljust(3 * size), body.headers))) == 0


LONG: Final = 384  # elements: ten events of them as numbers are more than the 64 kB that are read without asking


@pytest.mark.parametrize("announces", [False, True])
def test_a_batch_is_told_a_wait_after_which_it_is_served(serve: Serve, announces: bool) -> None:
    """A batch as large as the burst, on an empty bucket, of a body that the gate judges before it is read, too."""
    server = serve(
        MLSDM_DIMENSION=str(LONG), WORKERS="1", MLSDM_SECURITY__RATE_LIMITING__ENABLED="1",
        MLSDM_SECURITY__RATE_LIMITING__REQUESTS_PER_SECOND="5", MLSDM_SECURITY__RATE_LIMITING__BURST_CAPACITY="10",
    )  # fmt: skip

    def send(count: int) -> Answer:
        body = of_json([{"event_vector": [1 / 3] * LONG, "moral_value": 0.95}] * count)
        connection = server.connect()
        connection.putrequest("POST", "/events")
        for field in {**body.headers, "Content-Length": str(len(body.content))}.items():
            connection.putheader(*field)
        if announces:
            connection.putheader("Expect", "100-continue")
        connection.endheaders()
        connection.send(body.content)
        answer = connection.getresponse()
        found = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def empty_and_send(count: int) -> Answer | None:
        """Return the answer to a batch on an empty bucket; None if the bucket has refilled, on a busy machine."""
        filled = send(10)
        answer = send(count)
        if filled.status == 200 and left(answer) == 0:
            return answer
        time.sleep(2)
        return None

    refused = eventually(lambda: empty_and_send(10))
    assert (refused.status, int(refused.headers["retry-after"])) == (429, 2)
    time.sleep(2)
    assert send(10).status == 200
    for count in (11, 12, 30, 200):
        assert problem(send(count))["code"] == "batch_above_burst"  # at once, although the bucket is empty


def test_while_stopped_no_tokens_are_charged(limited: LiveServer) -> None:
    """An emergency stop costs clients no tokens."""
    send, admin = sender(limited, "quick"), keys.bearer("admin")
    start = left(send("/event"))

    limited.request("POST", "/governor/stop", headers=admin)
    answers = [send("/event"), send("/events", batch(30))]
    limited.request("POST", "/governor/resume", headers=admin)

    assert [(answer.status, answer.json["code"]) for answer in answers] == [(503, "stopped")] * 2
    assert left(send("/event")) == start - 1


def test_an_interrupted_batch_pays_for_its_decided_events(serve: Serve) -> None:
    """Stops fall between or into batches that follow each other, until one is cut; it cost as much as it holds
    results. The vectors are long, so that most of the time goes into deciding.
    """
    dimension = 2048
    server = serve(
        MLSDM_DIMENSION=str(dimension),
        MLSDM_CAPACITY="100",
        MLSDM_SECURITY__RATE_LIMITING__ENABLED="1",
        MLSDM_SECURITY__RATE_LIMITING__REQUESTS_PER_SECOND="0.001",
        MLSDM_SECURITY__RATE_LIMITING__BURST_CAPACITY=str(MANY),
    )
    body = np.full(1000, 0.95).tobytes() + np.ones((1000, dimension), "<f4").tobytes()
    octets = {"Content-Type": "application/octet-stream", "Moral-Value": "0.95"}
    connection = server.connect()

    def send(path: str, body: bytes) -> Answer:
        return server.request("POST", path, body, octets, connection)

    def cut() -> int:
        """Stop while batches run; returns how many events of the last one were decided."""
        began = time.monotonic()
        start = left(send("/events", body))
        delay = random.random() * 2 * (time.monotonic() - began)  # anywhere in the next batches
        stopping = threading.Timer(delay, lambda: server.request("POST", "/governor/stop"))
        stopping.start()
        while (answer := send("/events", body)).status == 200:
            start = left(answer)
        stopping.join()
        server.request("POST", "/governor/resume")
        spent = len(answer.json["results"]) if answer.json["code"] == "batch_interrupted" else 0
        assert (answer.status, "ratelimit" in answer.headers) == (503, False)
        assert left(send("/event", body[-4 * dimension :])) == start - spent - 1
        return spent

    spent = eventually(cut)
    connection.close()

    assert 0 < spent < 1000


# -- how fast ---------------------------------------------------------------------------------------------------------


def empty(send: Send, answer: Answer) -> None:
    """Spend at once what an answer says is left: one by one, tokens may come as fast as a busy machine spends them."""
    if tokens := left(answer):
        send("/events", batch(tokens))


def test_two_workers_share_one_bucket(limited: LiveServer) -> None:
    """In T seconds burst + rate × T events get through two workers together: not one more, and at most one fewer."""
    send, connections = sender(limited, "writer"), limited.connect_to_both_workers()
    clock, accepted, refused = time.monotonic_ns, 0, 0
    began = clock()

    while clock() - began < 1_200_000_000 or refused < 2:
        asked = clock()
        answer = send("/event", connection=connections[(accepted + refused) % 2])
        accepted, refused = accepted + (answer.status == 200), refused + (answer.status == 429)
        if answer.status == 429 and refused == 1:
            at_first, emptied = accepted, clock()  # full, it gains nothing while a busy machine lets the client wait
    ended = clock()
    while answer.status == 200:  # what bounds from below is a refusal
        asked = clock()
        answer = send("/event", connection=connections[0])
        accepted, ended = accepted + (answer.status == 200), clock()

    interval = 1_000_000_000 / RATE
    assert accepted <= RATE + (ended - began) / interval
    assert accepted - at_first >= (asked - emptied) / interval - 1


def test_a_client_that_waits_retry_after_is_served(limited: LiveServer) -> None:
    """Retry-After is sufficient for the refused request: one event, or a whole burst at once."""
    send = sender(limited, "second")
    for body, path in ((batch(RATE), "/events"), (EVENT, "/event")):
        while (answer := send(path, body)).status == 200:
            empty(send, answer)
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        time.sleep(int(answer.headers["retry-after"]))
        assert send(path, body).status == 200


def test_a_request_above_the_limit_is_429_and_changes_nothing(limited: LiveServer) -> None:
    """It says how long to wait and what the policy is; neither the log nor a counter moves, from either worker."""
    send, connections = sender(limited, "meek"), limited.connect_to_both_workers()
    assert left(send("/events", batch(BURST - 1))) == 1
    assert problem(send("/events", batch(2)))["code"] == "rate_limit_exceeded"
    assert left(send("/event")) == 0
    before = limited.request("GET", "/state", headers=keys.bearer("meek")).json
    recall = of_json({"vector": EXAMPLE})

    answers = [
        send(path, body, connection)
        for connection in connections
        for path, body in (("/event", EVENT), ("/events", batch(1)), ("/recall", recall))
    ]

    for answer in answers:
        document = problem(answer)
        assert (document["status"], document["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answer.headers["retry-after"]) <= 100
        assert left(answer) == 0
        assert answer.headers["ratelimit-policy"] == f'"standard";q={BURST};w=6000'
        assert "Nothing was applied" in document["detail"]
    assert limited.request("GET", "/state", headers=keys.bearer("meek")).json == before
    assert sender(limited, "slow")("/event").status == 200  # another key of the same tier has a bucket of its own


def test_a_429_leaves_no_receipt(limited: LiveServer) -> None:
    """Sent again with its idempotency key, after the wait, it is decided for the first time."""
    send, keyed = sender(limited, "writer"), Body(EVENT.content, EVENT.headers | {"Idempotency-Key": "too-early"})
    while (answer := send("/event", keyed)).status == 200:  # there was a token: as if nothing had been sent
        keyed = Body(EVENT.content, EVENT.headers | {"Idempotency-Key": str(random.random())})
        empty(send, answer)

    time.sleep(int(answer.headers["retry-after"]))
    first, again = send("/event", keyed), send("/event", keyed)

    assert (answer.status, first.status, again.status) == (429, 200, 200)
    assert ["idempotency-replayed" in answer.headers for answer in (first, again)] == [False, True]
    assert again.body == first.body


def test_without_keys_every_peer_has_a_bucket(serve: Serve) -> None:
    """Peers by their address, and those behind a listed proxy by what it says; an IPv6 client has all of its /64."""
    server = serve(
        MLSDM_SECURITY__RATE_LIMITING__ENABLED="true",
        MLSDM_SECURITY__RATE_LIMITING__REQUESTS_PER_SECOND="0.01",
        MLSDM_SECURITY__RATE_LIMITING__BURST_CAPACITY="3",
        MLSDM_SERVER__TRUSTED_PROXIES="127.0.0.1, 10.0.0.0/8",
    )

    def statuses(source: str, *forwarded: str) -> list[int]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", server.port, timeout=HANG_SECONDS, source_address=(source, 0)
        )
        fields = [{"X-Forwarded-For": text} if text else {} for text in forwarded]
        found = [
            server.request("POST", "/event", EVENT.content, EVENT.headers | headers, connection).status
            for headers in fields
        ]
        connection.close()
        return found

    assert statuses("127.0.0.2", "", "", "", "", "") == [200, 200, 200, 429, 429]
    assert statuses("127.0.0.3", "") == [200]
    assert statuses("127.0.0.2", "198.51.100.1", "127.0.0.3", "::1") == [429] * 3  # no proxy: not believed
    assert statuses("127.0.0.1", *["198.51.100.1"] * 3) == [200] * 3
    spoofed = ["1.1.1.1, 198.51.100.1", "198.51.100.1:99", "9.9.9.9,198.51.100.1, 10.1.1.1", "::ffff:198.51.100.1"]
    assert statuses("127.0.0.1", *spoofed) == [429] * 4
    assert statuses("127.0.0.1", *(f"2001:db8:0:1:{i}::{i}" for i in range(1, 5))) == [200, 200, 200, 429]
    assert statuses("127.0.0.1", "2001:db8:0:2::1") == [200]
    garbage = ["unknown", ",,,", "x" * 7000, "300.1.1.1"]  # all of them are the proxy itself
    assert statuses("127.0.0.1", *garbage) == [200, 200, 200, 429]


def test_production_limits_and_a_reload_changes_a_tier(serve: Serve, tmp_path: Path) -> None:
    """API_KEY has the rate of a database unless told otherwise; HUP puts another rate or tier in force without a
    restart.
    """
    path = tmp_path / "mlsdm.yaml"
    path.write_text("resources: {drain_period: 0}\nsecurity: {api_key_tier: standard}\n")
    server = serve(MLSDM_ENV="production", API_KEY=keys.API_KEY, WORKERS="1", CONFIG_PATH=str(path))

    def send() -> Answer:
        return server.request("POST", "/event", EVENT.content, EVENT.headers | {"X-API-Key": keys.API_KEY})

    began = time.monotonic()
    answers = [send() for _ in range(30)]
    accepted = sum(answer.status == 200 for answer in answers)
    assert 10 <= accepted <= 10 + 5 * (time.monotonic() - began)
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"standard";q=10;w=2'}

    path.write_text(
        "resources: {drain_period: 0}\n"
        "security: {api_key_tier: standard, rate_limiting: {requests_per_second: 1000, burst_capacity: 2000}}\n"
    )
    server.reload()
    assert send().headers["ratelimit-policy"] == '"standard";q=2000;w=2'
    assert [send().status for _ in range(30)] == [200] * 30
    path.write_text("resources: {drain_period: 0}\n")
    server.reload()
    assert send().headers["ratelimit-policy"] == '"bulk";q=20000;w=2'
    largest = batch(1000)
    assert post(server, "/events", Body(largest.content, largest.headers | {"X-API-Key": keys.API_KEY})).status == 200


def test_limits_can_be_switched_off(serve: Serve) -> None:
    """DISABLE_RATE_LIMIT=1, in production as well: no tokens are charged, and no answer mentions limits."""
    server = serve(
        MLSDM_ENV="production",
        API_KEY=keys.API_KEY,
        DISABLE_RATE_LIMIT="1",
        MLSDM_RESOURCES__DRAIN_PERIOD="0",
        WORKERS="1",
    )
    headers = {"X-API-Key": keys.API_KEY}

    answers = [server.request("POST", "/event", EVENT.content, EVENT.headers | headers) for _ in range(30)]

    assert [answer.status for answer in answers] == [200] * 30
    assert not [answer for answer in answers if "ratelimit" in answer.headers]
    assert post(server, "/events", Body(batch(1000).content, {"Content-Type": JSON} | headers)).status == 200


# -- buckets, with a clock of the test's own --------------------------------------------------------------------------


@pytest.fixture
def formed() -> Iterator[Formed]:
    """A block, nobody's but this test's."""
    block = Formed()
    yield block
    block.close()


class QuotaClients:
    """Clients that are charged by the quotas of a block, at a time that the test sets."""

    def __init__(self, formed: Formed, rate: float, burst: int) -> None:
        self.now = formed.now()
        tiers = {"standard": Tier(rate, burst), "high": Tier(rate, 10 * burst)}
        self.quotas = Quotas(formed.block, tiers, lambda: self.now)

    def ask(self, name: str, tokens: int = 1, key: str = "", tier: str = "standard") -> dict[str, Any]:
        """Take tokens as a client; return the environ of its request. Raises Problem."""
        environ: dict[str, Any] = {CLIENT: Client(key or name, Role.WRITE, tier, is_address=not key)}
        self.quotas.charge(environ, tokens)
        return environ

    def wait_of(self, name: str, tokens: int = 1) -> int:
        """Return the seconds that a client is told to wait, 0 when it got its tokens."""
        try:
            self.ask(name, tokens)
        except Problem as refused:
            return int(dict(refused.headers or {})["Retry-After"])
        return 0


def test_what_can_never_fit_is_refused_first(formed: Formed) -> None:
    """Whatever is in the bucket: by the count of events, or by the least number that a size must hold."""
    clients = QuotaClients(formed, 0.001, 10)

    for _ in range(2):  # with a full bucket, and with an empty one
        with pytest.raises(Problem) as refused:
            clients.ask("10.0.0.1", 11)
        assert (refused.value.problem_code, refused.value.field) == ("batch_above_burst", "body")
        assert (refused.value.description or "").startswith("body: 11 events; expected at most 10,")
        environ: dict[str, Any] = {CLIENT: Client("10.0.0.1", Role.WRITE, "standard", is_address=True)}
        clients.quotas.check_burst(environ, 10)
        with pytest.raises(Problem) as refused:
            clients.quotas.check_burst(environ, 11)
        assert (refused.value.description or "").startswith("body: at least 11 events; expected at most 10,")
        clients.wait_of("10.0.0.1", 10)
    assert clients.wait_of("10.0.0.1") > 0


class FailingResource:
    """A route that costs a token and fails."""

    operations: ClassVar = {"POST": Operation("", Role.WRITE, None, cost=1)}

    def __init__(self) -> None:
        self.fast_responders = {"POST": self.fail}

    def fail(self, _environ: dict[str, Any]) -> bytes:
        """Fail with an unexpected error."""
        raise ZeroDivisionError

    def on_post(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Fail in the same way inside the framework."""
        self.fail(request.env)


@pytest.mark.parametrize("path", ["/fails", "//fails"])
def test_an_unexpected_error_keeps_the_token(formed: Formed, path: str) -> None:
    """Its effect is unknown, so it does not count as a refusal; the token was charged once."""
    clients = QuotaClients(formed, 0.001, 10)
    gate = Gate((), quotas=clients.quotas)
    api: Any = falcon.App(middleware=[ReraiseMiddleware(), gate])  # type: ignore[arg-type] # as the application does
    api.add_error_handler(Exception, _reraise)
    api.add_route("/fails", FailingResource())
    asked = falcon.testing.create_environ(path, method="POST", remote_addr="10.0.0.1")

    with pytest.raises(ZeroDivisionError):
        FastPath({"/fails": FailingResource()}, gate, api)(asked, lambda *_: lambda _: None)

    assert clients.ask("10.0.0.1")[HEADER_LINES].startswith('RateLimit: "standard";r=8;')


def test_retry_after_is_the_smallest_sufficient_wait(formed: Formed) -> None:
    """For any rate and burst it is rounded up, so that no client retries too early, by less than a second."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for trial in range(300):
        burst = chance.randrange(1, 50)
        clients = QuotaClients(formed, chance.choice([0.001, 0.3, 5.0, 999.0, 1e6]) * chance.uniform(1, 2), burst)
        name = f"10.0.0.{trial}"
        assert clients.wait_of(name, burst) == 0
        tokens = chance.randrange(1, burst + 1)
        waited = clients.wait_of(name, tokens)
        if waited > 1:
            clients.now += (waited - 1) * 1_000_000_000
            assert clients.wait_of(name, tokens) == 1, f"seed {seed}"
            clients.now += 1_000_000_000
        else:
            clients.now += waited * 1_000_000_000
        assert clients.wait_of(name, tokens) == 0, f"seed {seed}"


def test_clients_have_separate_buckets(formed: Formed) -> None:
    """By key, or by address: IPv4 whole, IPv6 by its first 64 bits, IPv4 within IPv6 as IPv4."""
    clients = QuotaClients(formed, 0.001, 1)
    same = [("1.2.3.4", "::ffff:1.2.3.4"), ("2001:db8::1", "2001:db8::ffff:2"), ("fe80::1%eth0", "fe80::2%lo")]
    other = ["1.2.3.5", "2001:db8:0:1::1", "::1", "unix"]

    for first, second in same:
        assert (clients.wait_of(first), clients.wait_of(second) > 0) == (0, True)
    assert [0] * len(other) == [clients.wait_of(name) for name in other]
    clients.ask("key", key="key")
    clients.ask("other", key="other")
    with pytest.raises(Problem):
        clients.ask("key", key="key")
    clients.ask("key-high", 10, key="key-high", tier="high")


def test_clients_of_every_authenticator_have_buckets_of_their_own(formed: Formed) -> None:
    """A user pays like a key: by its id and tier; an id that looks like an address is none."""
    clients = QuotaClients(formed, 0.001, 1)
    ann, bob = "user:ann", "2001:db8::1"

    clients.ask("", key=ann)
    with pytest.raises(Problem) as refused:
        clients.ask("", key=ann)
    assert refused.value.problem_code == "rate_limit_exceeded"
    clients.ask("", 10, key=ann, tier="high")
    clients.ask("", key=bob)
    assert clients.wait_of(bob) == 0


def test_refunded_tokens_can_be_spent_once(formed: Formed) -> None:
    """All of them, or all but the spent ones; a second refund gives nothing."""
    clients = QuotaClients(formed, 0.001, 10)
    environ = clients.ask("client", 10)

    refund(environ, spent=4)
    refund(environ)

    assert clients.wait_of("client", 6) == 0
    assert clients.wait_of("client", 1) > 0


def test_a_million_invented_clients_harm_no_key(formed: Formed) -> None:
    """The table is of fixed size: a flood makes it more lenient to peers, never stricter, and does not reach keys."""
    clients = QuotaClients(formed, 0.001, 10)
    for name, key in (("owner", "owner"), ("192.0.2.1", "")):
        clients.ask(name, 7, key=key)
    now = clients.now

    for number in range(1, 1_000_001):
        Bucket(formed.block, PEERS, number * 0x9E3779B97F4A7C15 % 2**64, 10**12, 10).spend(now, 10)

    for seven in range(7):
        clients.ask(f"198.51.100.{seven}")  # newcomers find a place
    clients.ask("192.0.2.1", 3)  # it had three left, and has at least those
    clients.ask("owner", 3, key="owner")
    with pytest.raises(Problem):
        clients.ask("owner", 1, key="owner")  # exactly three
    for number in range(10_000):
        clients.ask(f"10.9.{number // 256}.{number % 256}")
    assert clients.quotas._account_of.cache_info().currsize <= 4096

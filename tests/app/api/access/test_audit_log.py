"""Audit log: a JSON line for every refusal that matters and for every change of the governor, in bounded number."""

import io
import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from app.api.access.audit_log import CLIENTS_COUNT, LINES_PER_SECOND, AuditLog
from app.api.problem import Problem
from app.httpd.request import REQUEST_ID
from app.routes.governor import CommandResource, GovernorResource
from app.telemetry.logging_setup import JsonFormatter
from core.settings.config import Config
from shm import errors
from shm.store import Store
from testing import keys
from testing.block_fixture import Formed
from testing.bodies import EXAMPLE, Body, of_json
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import LiveServer
from tests.conftest import Serve

EVENT: Final = of_json({"event_vector": EXAMPLE, "moral_value": 0.95})
TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"


class LineRecorder(logging.Handler):
    """Keeps what the audit log writes, as the lines that it would be."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = JsonFormatter().format(record)
        assert text.isprintable()
        self.lines.append(json.loads(text))


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What is written to the audit log in this process."""
    handler = LineRecorder()
    logger = logging.getLogger("mlsdm.audit")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def environ(**members: Any) -> dict[str, Any]:
    """Return the environ of a request that somebody at 192.0.2.1 has sent."""
    return {
        "REMOTE_ADDR": "192.0.2.1", "REQUEST_METHOD": "POST", "PATH_INFO": "/event", REQUEST_ID: "an-id",
        **members,
    }  # fmt: skip


# -- alone -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "event"),
    [
        (400, "invalid_input"), (401, "auth_failure"), (403, "access_denied"), (404, None), (405, None),
        (408, "invalid_input"),
        (410, None), (413, "invalid_input"), (415, "invalid_input"), (422, "invalid_input"),
        (429, "rate_limit_exceeded"), (431, "invalid_input"), (0, None), (200, None), (500, None), (501, None),
        (503, None),
    ],
)  # fmt: skip
def test_refusals_have_names(lines: list[dict[str, Any]], status: int, event: str | None) -> None:
    """Refusals that are harmless, or nobody's fault, are not audited."""
    AuditLog().record_refusal(environ(), status, "some_code")

    assert ([event] if event else []) == [line["event"] for line in lines]


def test_a_line_names_client_request_and_address(lines: list[dict[str, Any]]) -> None:
    """The id of the key or the address, the ids of the request, and the reason."""
    AuditLog().record_refusal(environ(), 422, "field_missing", "moral_value")

    [line] = lines
    assert {name: line[name] for name in line if name not in ("timestamp", "pid")} == {
        "level": "WARNING", "logger": "mlsdm.audit", "event": "invalid_input", "client_id": "192.0.2.1",
        "address": "192.0.2.1", "request_id": "an-id", "method": "POST", "path": "/event", "status": 422,
        "code": "field_missing", "field": "moral_value",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["\x00\r\n\x1b[2J", "\x7f\x85\x9b2J", '"},{"event": "forged', "\u2028\u202e", "é" * 5000]
)
def test_a_client_cannot_forge_a_line(lines: list[dict[str, Any]], text: str) -> None:
    """Control characters are escaped, quotation marks stay inside the string, and long text is cut."""
    AuditLog().record_refusal(environ(PATH_INFO="/" + text), 401, "unauthorised", None)

    assert [line["path"] for line in lines] == [("/" + text)[:200]]
    assert len(json.dumps(lines[0])) < 2000


def test_a_flood_is_counted_and_not_written(lines: list[dict[str, Any]]) -> None:
    """Each event gets twenty lines a second; then one line per client counts the rest, even if none follows."""
    now = 1000.5
    audit = AuditLog(lambda: now)

    for _ in range(120):
        audit.record_refusal(environ(), 401, "unauthorised")
    audit.record_refusal(environ(), 422, "field_missing")
    audit.flush()
    assert [line for line in lines if "suppressed" in line] == []
    now = 1001.0
    audit.flush()
    audit.flush()
    audit.record_refusal(environ(), 401, "unauthorised")

    assert Counter(line["event"] for line in lines) == {"auth_failure": LINES_PER_SECOND + 2, "invalid_input": 1}
    assert [(line["client_id"], line["address"], line["suppressed"]) for line in lines if "suppressed" in line] == [
        ("192.0.2.1", "192.0.2.1", 100)
    ]


def test_the_lines_of_a_client_add_up_to_its_refusals(lines: list[dict[str, Any]]) -> None:
    """Nothing is sampled: whoever exceeds its limit is named with the exact number, however loud the others are."""
    now = 7.0
    audit = AuditLog(lambda: now)

    for turn in range(300):
        audit.record_refusal(environ(REMOTE_ADDR="192.0.2.1"), 429, "rate_limit_exceeded")
        if turn % 3 == 0:
            audit.record_refusal(environ(REMOTE_ADDR="192.0.2.2"), 429, "rate_limit_exceeded")
    audit.record_refusal(environ(REMOTE_ADDR="192.0.2.3"), 429, "rate_limit_exceeded")
    now = 8.0
    audit.flush()

    refusals: Counter[str] = Counter()
    for line in lines:
        refusals[line["client_id"]] += line.get("suppressed", 1)
    assert refusals == {"192.0.2.1": 300, "192.0.2.2": 100, "192.0.2.3": 1}


def test_many_strangers_share_a_bounded_number_of_lines(lines: list[dict[str, Any]]) -> None:
    """CLIENTS_COUNT of them are named in a second; the rest share one line, and none is missing from the sum."""
    now = 7.0
    audit = AuditLog(lambda: now)
    for number in range(LINES_PER_SECOND + CLIENTS_COUNT + 500):
        audit.record_refusal(environ(REMOTE_ADDR=f"2001:db8::{number:x}"), 401, "unauthorised")
    now = 8.0
    audit.flush()

    assert len(lines) == LINES_PER_SECOND + CLIENTS_COUNT + 1
    assert [line["suppressed"] for line in lines if "client_id" not in line] == [500]


def test_threads_of_the_pool_share_the_bound_of_lines(lines: list[dict[str, Any]]) -> None:
    """Commands run and are refused there: no line exceeds the bound, and every refusal is counted."""
    now = 7.0
    audit = AuditLog(lambda: now)

    def guess() -> None:
        for _ in range(500):
            audit.record_refusal(environ(), 403, "forbidden")

    threads = [threading.Thread(target=guess) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = 8.0
    audit.flush()

    assert len(lines) == LINES_PER_SECOND + 1
    assert lines[-1]["suppressed"] == 8 * 500 - LINES_PER_SECOND


def test_suppressed_counts_are_written_at_the_end(lines: list[dict[str, Any]]) -> None:
    """A worker that ends within the second writes once how many lines were suppressed."""
    audit = AuditLog(lambda: 7.0)

    for _ in range(LINES_PER_SECOND + 3):
        audit.record_refusal(environ(), 401, "unauthorised")
    audit.close()
    audit.close()

    assert [line["suppressed"] for line in lines if "suppressed" in line] == [3]


class StuckStore(Store):
    """A store that fails in one way or another once a command was posted."""

    error: type[errors.StoreError] = errors.Busy
    is_posted = False

    def post_command(self, *arguments: Any, **keywords: Any) -> int:
        """Post, and be stuck."""
        ticket = super().post_command(*arguments, **keywords)
        self.is_posted = True
        return ticket

    def state(self) -> Any:
        """Return the state before, fail after."""
        if self.is_posted:
            raise self.error(self.error.__doc__)
        return super().state()


@pytest.mark.parametrize("error", [errors.Busy, errors.Corrupt, errors.Lost])
def test_a_command_with_unknown_outcome_is_audited(
    lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: type[errors.StoreError]
) -> None:
    """It may still be carried out: the answer does not deny that, and the log says who asked for it."""
    monkeypatch.setattr("core.commands._WAIT_SECONDS", 0.02)
    monkeypatch.setattr("app.routes.governor.Store", StuckStore)
    monkeypatch.setattr(StuckStore, "error", error)
    formed = Formed()
    context: Any = SimpleNamespace(store=formed.store, boot_id="", log_id="", config=Config())
    change = b'{"moral_filter": {"ema_alpha": 0.2}}'
    asked: Any = SimpleNamespace(env=environ(**{"wsgi.input": io.BytesIO(change)}))
    told: Any = SimpleNamespace()

    with pytest.raises(Problem) as stopped:
        CommandResource(context, AuditLog(), "stop").on_post(asked, told)
    formed.store.withdraw_command(int(formed.store.state().ticket) + 1)
    with pytest.raises(Problem) as changed:
        GovernorResource(context, AuditLog()).on_patch(asked, told)

    assert [(caught.value.status_code, caught.value.problem_code) for caught in (stopped, changed)] == [
        (503, "outcome_unknown")
    ] * 2
    assert [(line["event"], line["outcome"], line["request_id"]) for line in lines] == [
        ("governor_stop", "unknown", "an-id"),
        ("governor_changed", "unknown", "an-id"),
    ]
    assert lines[1]["after"] == {"moral_filter": {"ema_alpha": 0.2}}
    assert all("position" not in line for line in lines)
    formed.close()


# -- in a server -------------------------------------------------------------------------------------------------------


def audited(server: LiveServer) -> list[dict[str, Any]]:
    """Return the lines of the audit log."""
    found = [json.loads(line) for line in server.log.splitlines() if '"logger": "mlsdm.audit"' in line]
    assert all(line["level"] == "WARNING" and line["timestamp"] and line["pid"] for line in found)
    return found


def told(server: LiveServer, request_id: str) -> dict[str, Any]:
    """Return the one line about a request."""
    [line] = eventually(lambda: [line for line in audited(server) if line["request_id"] == request_id])
    return {name: value for name, value in line.items() if name not in ("timestamp", "pid", "level", "logger")}


@pytest.fixture(params=["text", "json"])
def strict(serve: Serve, tmp_path: Path, request: pytest.FixtureRequest) -> LiveServer:
    """A server with keys and limits behind a proxy, in either format; its other loggers write nothing."""
    config = tmp_path / "mlsdm.yaml"
    text = f"""
        server: {{trusted_proxies: 127.0.0.1}}
        security:
          keys_path: {keys.write(tmp_path / "keys.yaml")}
          rate_limiting: {{enabled: true, requests_per_second: 0.01, burst_capacity: 3}}
        observability: {{logging: {{format: {request.param}, level: LEVEL}}}}
        """
    config.write_text(text.replace("LEVEL", "INFO"))
    server = serve(CONFIG_PATH=str(config), WORKERS="1")
    config.write_text(text.replace("LEVEL", "CRITICAL"))
    server.reload()
    return server


def test_every_event_is_one_line_in_either_format_and_at_any_level(strict: LiveServer) -> None:
    """Refusals of every kind and commands: each line has client, address, request id and trace id."""
    names = iter(range(100))

    def ask(method: str, path: str, body: Body, who: str | None, *addresses: str) -> tuple[int, dict[str, Any]]:
        headers = {
            **body.headers, **(keys.bearer(who) if who else {}), "X-Request-ID": f"ask-{next(names)}",
            "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Forwarded-For": ", ".join(addresses) or "198.51.100.7",
        }  # fmt: skip
        status = strict.request(method, path, body.content, headers).status
        line = told(strict, headers["X-Request-ID"])
        assert line.pop("address") == "198.51.100.7"
        assert line.pop("trace_id") == TRACE
        assert (line.pop("method"), line.pop("path"), line.pop("request_id")) == (method, path, headers["X-Request-ID"])
        return status, line

    bad = of_json({"event_vector": EXAMPLE, "moral_value": 7})
    nothing = Body(b"", {})
    for _ in range(3):
        assert strict.request("POST", "/event", EVENT.content, EVENT.headers | keys.bearer("slow")).status == 200

    assert ask("POST", "/event", EVENT, None) == (
        401, {"event": "auth_failure", "client_id": "198.51.100.7", "status": 401, "code": "unauthorised"},
    )  # fmt: skip
    assert ask("GET", "/state", nothing, "expired", "1.1.1.1", "198.51.100.7") == (
        401, {"event": "auth_failure", "client_id": "198.51.100.7", "status": 401, "code": "unauthorised"},
    )  # fmt: skip
    assert ask("POST", "/event", EVENT, "reader") == (
        403, {"event": "access_denied", "client_id": "reader", "status": 403, "code": "forbidden"},
    )  # fmt: skip
    assert ask("POST", "/event", bad, "writer") == (
        422,
        {"event": "invalid_input", "client_id": "writer", "status": 422, "code": "moral_value_out_of_range",
         "field": "moral_value"},
    )  # fmt: skip
    assert ask("POST", "/event", EVENT, "slow") == (
        429, {"event": "rate_limit_exceeded", "client_id": "slow", "status": 429, "code": "rate_limit_exceeded"},
    )  # fmt: skip
    change = of_json({"moral_filter": {"ema_alpha": 0.2}, "cognitive_rhythm": {"wake_duration": 5}})
    status, line = ask("PATCH", "/governor", change, "admin")
    assert (status, line.pop("position") > 0) == (200, True)
    assert line == {
        "event": "governor_changed", "client_id": "admin",
        "before": {"moral_filter": {"ema_alpha": 0.1}, "cognitive_rhythm": {"wake_duration": 8}},
        "after": {"moral_filter": {"ema_alpha": 0.2}, "cognitive_rhythm": {"wake_duration": 5}},
    }  # fmt: skip
    for command in ("stop", "resume", "reset"):
        status, line = ask("POST", f"/governor/{command}", nothing, "admin")
        assert (status, line.pop("position") > 0) == (200, True)
        assert line == {"event": f"governor_{command}", "client_id": "admin"}
    status, line = ask("PATCH", "/governor", of_json({}), "admin")
    assert (status, line["event"], line["code"]) == (422, "invalid_input", "change_empty")
    for path in ("/nope", "/memories/999"):
        assert strict.request("GET", path, headers=keys.bearer("reader")).status == 404
    assert strict.request("PUT", "/state", headers=keys.bearer("reader")).status == 405
    assert not [line for line in audited(strict) if line.get("status") in (404, 405)]
    assert keys.leaked(strict) == []
    since = strict.log[strict.log.index('"logger": "mlsdm.audit"') :].splitlines()[1:]
    others = [line for line in since if "mlsdm.audit" not in line and "mlsdm.controller" not in line]
    assert others == []  # CRITICAL silences all else, but for the controller, which a reload does not replace


def test_a_refusal_before_any_request_is_audited(serve: Serve) -> None:
    """Framing, Host, sizes: refused by the connection, from the peer's address; strange paths cannot break a line."""
    server = serve(WORKERS="1", API_KEY=keys.API_KEY)
    bad = {
        "host_invalid": b"GET / HTTP/1.1\r\nHost: a b\r\nX-Request-ID: strange-1\r\n\r\n",
        "malformed_request": b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        "body_too_large": b"POST /event HTTP/1.1\r\nHost: x\r\nX-Request-ID: strange-2\r\n"
        b"Content-Length: 999999999\r\n\r\n",
        "headers_too_large": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"x" * 9000 + b"\r\n\r\n",
        "unauthorised": b"GET /%0a%0d%00%1b[2J%7f%c2%9b%e2%80%a8%22},{" + b"a" * 3900 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    }
    for request in bad.values():
        with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_SECONDS) as peer:
            peer.sendall(request)
            assert peer.recv(12).startswith(b"HTTP/1.1 4")

    found = eventually(lambda: (now := audited(server)) and len(now) >= len(bad) and now)

    assert list(bad) == [line["code"] for line in found]
    assert {line["event"] for line in found} == {"invalid_input", "auth_failure"}
    assert {(line["client_id"], line["address"]) for line in found} == {("127.0.0.1", "127.0.0.1")}
    assert {"strange-1", "strange-2"} < {line["request_id"] for line in found}
    assert found[-1]["path"].startswith('/\n\r\x00\x1b[2J\x7f\xc2\x9b\xe2\x80\xa8"},{a')
    assert len(found[-1]["path"]) == 200
    log = server.log
    assert not [character for character in log if not character.isprintable() and character != "\n"]


def test_a_connection_refused_behind_a_proxy_is_audited_under_its_client(serve: Serve) -> None:
    """If the head was read, the client that a listed proxy names is audited; otherwise the peer is."""
    server = serve(WORKERS="1", API_KEY=keys.API_KEY, MLSDM_SERVER__TRUSTED_PROXIES="127.0.0.0/8")
    for request in (
        b"GET / HTTP/1.1\r\nHost: a b\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n",
        b"GET / HTTP/1.1\nX-Forwarded-For: 192.0.2.7\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_SECONDS) as peer:
            peer.sendall(request)
            assert peer.recv(12).startswith(b"HTTP/1.1 4")

    found = eventually(lambda: (now := audited(server)) and len(now) == 2 and now)

    assert [(line["code"], line["address"]) for line in found] == [
        ("host_invalid", "192.0.2.7"),
        ("malformed_request", "127.0.0.1"),
    ]


def test_a_flood_of_refusals_writes_a_bounded_number_of_lines(serve: Serve) -> None:
    """A thousand guesses: at most twenty lines a second, and every one of them is counted in the metrics."""
    server = serve(WORKERS="1", API_KEY=keys.API_KEY)
    connection, began = server.connect(), time.monotonic()

    for _ in range(1000):
        assert server.request("GET", "/state", headers={"X-API-Key": "guess"}, connection=connection).status == 401
    elapsed = time.monotonic() - began
    connection.close()

    def accounted() -> int:
        return sum(line.get("suppressed", 1) for line in audited(server))

    eventually(lambda: accounted() == 1000)
    assert LINES_PER_SECOND <= len(audited(server)) <= (LINES_PER_SECOND + 1) * (elapsed + 2)
    assert b'\nmlsdm_refusals_total{code="unauthorised"} 1000.0\n' in server.get("/metrics").body


def test_a_worker_writes_its_suppressed_counts_when_it_ends(serve: Serve) -> None:
    """A flood right before the end is accounted for like any other."""
    server = serve(WORKERS="1", API_KEY=keys.API_KEY)
    for _ in range(60):
        assert server.get("/state").status == 401

    server.stop()

    assert sum(line.get("suppressed", 1) for line in audited(server)) == 60


def test_credentials_in_odd_places_are_not_written(keyed_server: LiveServer) -> None:
    """A token in a query, a wrong scheme, a cookie or a body is nowhere in the log."""
    secret = "odd-place-secret-0123456789"
    for path, headers in (
        (f"/state?api_key={secret}", {}),
        ("/state", {"Authorization": f"Basic {secret}"}),
        ("/state", {"Cookie": f"key={secret}"}),
        ("/state", {"X-API-Key": secret, "Idempotency-Key": secret}),
        (f"/state?{secret}", keys.bearer("reader")),
        (f"/decisions?{secret}=1", keys.bearer("reader")),
    ):
        keyed_server.request("GET", path, headers=headers)
    for document in (
        {secret: 1},
        {"event_vector": secret, "moral_value": 1},
        {"event_vector": EXAMPLE, "moral_value": secret},
        {"event_vector": {secret: float("nan")}, "moral_value": 1},
        {"event_vector": EXAMPLE, "moral_value": 1, "payload": {secret: 2**64}},
        {"event_vector": EXAMPLE, "moral_value": 1, "payload": {secret: float("nan")}},
    ):
        body = of_json(document)
        keyed_server.request(
            "POST", "/event", body.content, body.headers | keys.bearer("writer") | {"Moral-Value": secret}
        )

    assert secret not in keyed_server.log

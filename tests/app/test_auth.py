"""The API key: which routes need it, the two ways to show it, and production, which does not start without one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.live import ROOT, LiveServer, free_port
from tests.app.wire import EXAMPLE, Body, of_json, post, problem, sent
from tests.conftest import SMALL

KEY = "a-Key~with+signs/42="
CLOSED = [
    ("POST", "/event"), ("POST", "/events"), ("POST", "/recall"), ("GET", "/memories/1"), ("DELETE", "/memories/1"),
    ("GET", "/decisions"), ("GET", "/state"), ("GET", "/nope"), ("OPTIONS", "/event"), ("PUT", "/state"),
    ("GET", "/healthy"), ("GET", "//health/liveness"), ("GET", "/"),
]  # fmt: skip
OPEN = ["/health/liveness", "/health/readiness", "/health/detailed", "/health/metrics", "/livez", "/readyz", "/metrics"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A production server with a key."""
    server = LiveServer(
        tmp_path_factory.mktemp("guarded"),
        {**SMALL, "MLSDM_ENV": "production", "API_KEY": KEY, "MLSDM_RESOURCES__DRAIN_PERIOD": "0"},
    )
    yield server.start()
    server.stop()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY.lower()}"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}, Bearer {KEY}"},
        {"X-API-Key": "wrong"},
        {"X-API-Key": ""},
        {"X-API-Key": "\xff\xfe"},
        {"X_API_Key": KEY},
        {"Authorization": "Bearer wrong", "X-API-Key": KEY},
    ],
)
def test_without_the_key_every_route_but_health_is_401(guarded: LiveServer, headers: dict[str, str]) -> None:
    """RFC 9110 §11.6.1: a 401 says which scheme would do. Whether a route exists is not told either."""
    for method, path in CLOSED:
        answer = guarded.request(method, path, headers=headers)
        document = problem(answer)
        assert (answer.status, document["code"]) == (401, "unauthorised"), (method, path)
        assert answer.headers["www-authenticate"] == 'Bearer realm="mlsdm"'
        assert KEY not in document["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {KEY}"},
        {"Authorization": f"BEARER   {KEY}  "},
        {"X-API-Key": KEY},
        {"x-api-key": f" {KEY} "},
        {"Authorization": "Basic dXNlcjpwYXNz", "X-API-Key": KEY},
    ],
)
def test_the_key_opens_every_route(guarded: LiveServer, headers: dict[str, str]) -> None:
    """As a bearer token (the scheme in any case, RFC 9110 §11.1), or in a field of its own beside a proxy's scheme."""
    event = of_json({"event_vector": [0.5] * 8, "moral_value": 1.0})
    memory_id = sent(guarded, "/event", Body(event.content, event.headers | headers))["memory_id"]

    for method, path in (
        ("GET", f"/memories/{memory_id}"),
        ("DELETE", f"/memories/{memory_id}"),
        ("GET", "/decisions"),
        ("GET", "/state"),
    ):
        assert guarded.request(method, path, headers=headers).status == 200


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_scrapes_need_no_key(guarded: LiveServer, path: str) -> None:
    """A rotated secret must not restart a healthy server."""

    assert guarded.get(path).status in (200, 503)
    assert guarded.request("HEAD", path).status in (200, 503)


def test_a_refused_event_is_not_decided(guarded: LiveServer) -> None:
    """The key is asked for before the body is looked at."""
    key = {"X-API-Key": KEY}
    before = guarded.get("/state", **key).json

    refusals = [
        post(guarded, "/event", of_json({"event_vector": EXAMPLE, "moral_value": 1.0})).status,
        post(guarded, "/event", of_json(b"no json")).status,
    ]

    assert refusals == [401, 401]
    after = guarded.get("/state", **key).json
    assert after["total_events_processed"] == before["total_events_processed"]


def test_the_key_is_in_no_log_line(guarded: LiveServer) -> None:
    """Not at start, when the configuration is logged, and not when it is used or guessed."""

    assert KEY not in guarded.log


def test_production_limits_rates_and_says_so(guarded: LiveServer) -> None:
    """On by default in production only; /health/detailed tells an operator."""
    limits = guarded.get("/health/detailed").json["rate_limiting"]

    assert limits == {"enabled": True, "requests_per_second": 5.0, "burst_capacity": 10}


@pytest.mark.parametrize("key", [None, "", " \n"])
def test_production_without_a_key_does_not_start(tmp_path: Path, key: str | None) -> None:
    """One sentence that names the variable, an exit status that stops a rollout, and no traceback."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    environ = {**kept, **SMALL, "PORT": str(free_port()), "MLSDM_ENV": "production"}
    if key is not None:
        environ["API_KEY"] = key

    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "app.main:app"],
        cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert ended.returncode != 0
    assert "API_KEY is not set: expected a secret key, because MLSDM_ENV is production" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_development_needs_no_key(still_server: LiveServer) -> None:
    """Without a configured key everything is open, and a key that is sent anyway does no harm."""

    assert still_server.get("/state").status == 200
    assert still_server.get("/state", Authorization="Bearer anything").status == 200

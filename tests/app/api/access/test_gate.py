"""The gate: ways to send a key, trusted proxies, several authenticators, and production without a key.

Which route needs which role is tests/app/api/access/test_role_matrix.py.
"""

import http.client
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import falcon
import falcon.testing
import pytest

from app.api.access.client import Client
from app.api.access.gate import Authenticator, Gate, KeyAuthenticator, is_loopback, token_of, unauthorised
from app.api.operation import Operation
from app.api.problem import Problem
from app.httpd.request import CLIENT, RAISED
from app.httpd.socket_address import peer_of
from app.main import Application
from app.processes.startup_message import log_configuration
from core.access.keys import Key, Keyring, Role, token_digest
from core.settings.proxies import UNIX, networks
from core.startup import load
from testing import keys
from testing.bodies import EXAMPLE, Body, of_json, post, problem, sent
from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, LiveServer, free_port
from tests.app.api.problem_serialiser import serialise
from tests.conftest import SMALL, Serve

KEY = "a-Key~with+signs/42="
CLOSED = [
    ("POST", "/event"), ("POST", "/events"), ("POST", "/recall"), ("GET", "/memories/1"), ("DELETE", "/memories/1"),
    ("GET", "/decisions"), ("GET", "/state"), ("GET", "/nope"), ("OPTIONS", "/event"), ("PUT", "/state"),
    ("GET", "/healthy"), ("POST", "/"), ("GET", "/governor"), ("POST", "/governor/stop"),
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


def environ_of(headers: dict[str, str]) -> dict[str, str]:
    """Return header fields as the worker hands them on: without those that have an underscore."""
    return {
        "HTTP_" + name.upper().replace("-", "_"): value.strip() for name, value in headers.items() if "_" not in name
    }


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer  \t"},
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
    ],
)
def test_without_the_key_every_route_but_health_is_401(guarded: LiveServer, headers: dict[str, str]) -> None:
    """RFC 9110 §11.6.1: a 401 says which scheme would do, and RFC 6750 §3.1 when a token was no good. Whether a route
    exists is not told either.
    """
    for method, path in CLOSED:
        answer = guarded.request(method, path, headers=headers)
        document = problem(answer)
        assert (answer.status, document["code"]) == (401, "unauthorised"), (method, path)
        error = ', error="invalid_token"' if token_of(environ_of(headers)) else ""
        assert answer.headers["www-authenticate"] == 'Bearer realm="mlsdm"' + error
        assert document["detail"].startswith("The API key is unknown or has expired" if error else "This route needs")
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
    """As a bearer token (the scheme in any case, RFC 9110 §11.1), or in its own field next to a proxy's scheme."""
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
    """The key is checked before the body is decoded."""
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


def test_production_enables_rate_limits(guarded: LiveServer) -> None:
    """They are on by default in production only; /health/detailed shows them."""
    limits = guarded.get("/health/detailed").json["rate_limiting"]

    assert (limits["enabled"], limits["requests_per_second"], limits["burst_capacity"]) == (True, 5.0, 10)


def test_a_short_key_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """In the log, at the start and at each reload, as a warning; neither the key nor its length."""
    log_configuration(load(None, {"API_KEY": "k7k7"}))
    log_configuration(load(None, {"API_KEY": KEY}))

    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("API_KEY is too short: expected at least 12 characters")
    assert "k7k7" not in caplog.text


@pytest.mark.parametrize("key", [None, "", " \n"])
def test_production_without_a_key_does_not_start(tmp_path: Path, key: str | None) -> None:
    """One sentence that names the variable, an exit status that stops a rollout, and no traceback."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    environ = {**kept, **SMALL, "PORT": str(free_port()), "MLSDM_ENV": "production"}
    if key is not None:
        environ["API_KEY"] = key

    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "app.main:app"],
        cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG_SECONDS,
        check=False,
    )  # fmt: skip

    assert ended.returncode != 0
    assert "API_KEY is not set: expected a secret key, because MLSDM_ENV is production" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_development_needs_no_key(still_server: LiveServer) -> None:
    """Without a configured key everything is open, and a key that is sent anyway does no harm."""

    assert still_server.get("/state").status == 200
    assert still_server.get("/state", Authorization="Bearer anything").status == 200


# -- trusted proxies --------------------------------------------------------------------------------------------------

PROXIES = networks("10.0.0.0/8, 192.0.2.1, fd00::/8, 2001:db8::7")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # a stranger says whatever it likes
        ("203.0.113.9", "10.0.0.1", "203.0.113.9"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),  # what stands left of it may be invented
        ("10.0.0.1", "1.1.1.1,198.51.100.1,10.2.2.2,192.0.2.1", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.1, ", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "_hidden, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, garbage", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, garbage, 10.0.0.9", "10.0.0.9"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "2001:DB8:0::1", "2001:db8::1"),
        ("fd00::1", "1.1.1.1, 2001:db8::1, 2001:db8::7", "2001:db8::1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),  # a dual-stack socket sees IPv4 like that
        ("::ffff:203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.1", "::FFFF:203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "2001:db8::ffff:1.2.3.4", "2001:db8::ffff:102:304"),
        ("10.0.0.1", "198.51.100.1, ::ffff:10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "fe80::1%" + "z" * 4000, "10.0.0.1"),  # a scope may be any text
        ("10.0.0.1", "256.1.1.1", "10.0.0.1"),
        ("10.0.0.1", "010.1.1.1", "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1\x00", "10.0.0.1"),
        ("10.0.0.1", "\xb2.1.1.1", "10.0.0.1"),
        ("10.0.0.1", ", ".join(["1.1.1.1", *["10.9.9.9"] * 100]), "1.1.1.1"),
        ("10.0.0.1", "," * 8000, "10.0.0.1"),
        ("unix", "198.51.100.1", "unix"),  # a Unix socket is trusted only if it is listed
    ],
)
def test_forwarding_headers_count_from_trusted_proxies_only(peer: str, forwarded: str | None, expected: str) -> None:
    """The address is the first from the right that is not a trusted proxy: the last that a trusted proxy saw."""
    environ = {"REMOTE_ADDR": peer_of((peer, 1))[0]} | (
        {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}
    )

    assert Gate((), PROXIES).address_of(environ) == expected


def test_a_proxy_on_a_unix_socket_is_trusted_if_it_is_listed() -> None:
    environ = {"REMOTE_ADDR": UNIX, "HTTP_X_FORWARDED_FOR": "203.0.113.7, 198.51.100.1"}

    assert Gate((), networks("unix")).address_of(environ) == "198.51.100.1"
    assert Gate((), networks("198.51.100.1, unix")).address_of(environ) == "203.0.113.7"


def test_without_trusted_proxies_forwarding_headers_are_ignored() -> None:
    """By default a header that any client may send has no effect."""
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "198.51.100.1"}

    assert Gate(()).address_of(environ) == "127.0.0.1"


@pytest.mark.parametrize("proxies", [(), PROXIES])
@pytest.mark.parametrize(
    ("peer", "expected"), [("::ffff:192.0.2.9", "192.0.2.9"), ("2001:db8::9", "2001:db8::9"), ("::1", "::1")]
)
def test_a_client_without_a_key_is_named_by_its_plain_address(proxies: Any, peer: str, expected: str) -> None:
    """A socket for both families shows IPv4 within IPv6: a client has one name, whatever the server listens on."""
    environ: dict[str, Any] = {"REMOTE_ADDR": peer_of((peer, 1))[0]}

    Gate((), proxies).check(environ, Role.READ)

    assert (environ[CLIENT].id, environ[CLIENT].is_address) == (expected, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"])
def test_loopback_is_found_in_any_spelling(host: str) -> None:
    """Then a name of another host is refused."""

    assert is_loopback(host)
    assert not is_loopback(
        host.replace("127", "128").replace("::1", "::2").replace("host", "hose").replace("HOST", "X")
    )


# -- the gate alone ---------------------------------------------------------------------------------------------------


class FakeResource:
    """A resource that declares operations and has a responder for a router, which is never called."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self.operations = operations

    def on_get(self, _request: falcon.Request, _response: falcon.Response) -> None:
        """Do nothing."""


class AdminResource:
    """A resource for administrators."""

    operations: ClassVar[Mapping[str, Operation]] = {"GET": Operation("Test.", Role.ADMIN, dict[str, Any], cost=3)}

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        response.media = {}


Ask = Callable[..., falcon.testing.Result]


def gated(
    keyring: Keyring,
    charged: list[int] | None = None,
    now: float = 0.0,
    others: Sequence[Authenticator] = (),
) -> Ask:
    """Return how to ask an application with one route behind a gate: by method and headers."""

    class ChargeRecorder:
        """Quotas that note what they are asked for."""

        def charge(self, _environ: dict[str, Any], tokens: int) -> None:
            if charged is not None:
                charged.append(tokens)

    first = () if keyring.is_open else (KeyAuthenticator(keyring, lambda: now),)
    quotas: Any = ChargeRecorder()
    gate: Any = Gate((*first, *others), quotas=quotas, clock=lambda: now)
    api = falcon.App(middleware=[gate])
    api.set_error_serializer(serialise)
    api.add_route("/admin", AdminResource())
    client = falcon.testing.TestClient(api)

    def ask(method: str = "GET", **headers: str) -> falcon.testing.Result:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.simulate_request(method, "/admin", headers=fields, extras={"REMOTE_ADDR": "127.0.0.1"})

    return ask


def test_a_key_opens_until_the_second_in_which_it_expires() -> None:
    """From that second on it is refused, by the clock of the gate."""
    keyring = Keyring(keys=[Key("a", Role.ADMIN, "standard", token_digest("a.token"), expires=1000.0)])

    assert gated(keyring, now=999.9)(X_API_Key="a.token").status_code == 200
    assert gated(keyring, now=1000.0)(X_API_Key="a.token").status_code == 401


def test_only_admitted_requests_are_charged() -> None:
    """401 and 403 cost nothing, and neither do methods that the route does not have."""
    keys = [Key(name, role, "standard", token_digest(f"{name}.x"), float("inf")) for name, role in (
        ("admin", Role.ADMIN), ("writer", Role.WRITE),
    )]  # fmt: skip
    charged: list[int] = []
    ask = gated(Keyring(keys=keys), charged)

    statuses = [
        ask(method, X_API_Key=token).status_code
        for method, token in (
            ("GET", ""), ("GET", "x"), ("GET", "writer.x"), ("OPTIONS", "admin.x"), ("PUT", "admin.x"),
            ("GET", "admin.x"),
        )
    ]  # fmt: skip

    assert (statuses, charged) == ([401, 401, 403, 204, 405, 200], [3])


def test_a_ring_of_expired_keys_is_closed() -> None:
    """It is not open: an operator who names a key file does not want every client."""
    keyring = Keyring(keys=[Key("a", Role.ADMIN, "standard", token_digest("a.x"), expires=-1.0)])

    assert gated(keyring)().status_code == 401


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:8000", 200),
        ("https://127.0.0.1:8000", 200),  # who ends TLS in front of it changes the scheme
        ("HTTP://127.0.0.1:8000", 200),
        ("http://127.0.0.1", 403),
        ("http://127.0.0.1:8001", 403),
        ("http://evil.example", 403),
        ("http://evil.example:8000", 403),
        ("http://127.0.0.1:8000.evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_an_open_server_refuses_pages_of_other_origins(origin: str | None, status: int) -> None:
    """A page that a developer looks at must not stop the server at 127.0.0.1 behind it."""
    headers = {"Host": "127.0.0.1:8000"} | ({} if origin is None else {"Origin": origin})

    answer = gated(Keyring())(**headers)

    assert answer.status_code == status
    if status == 403:
        assert answer.json["code"] == "other_origin"


def test_with_keys_any_origin_may_ask() -> None:
    """No browser adds a key by itself, so a page that sends one was given it."""
    answer = gated(Keyring("the-key"))(X_API_Key="the-key", Origin="http://elsewhere.example")

    assert answer.json["code"] == "forbidden"  # the role, not the origin


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LocalHost:8000", 200), ("127.0.0.1", 200), ("10.1.2.3:80", 200), ("[::1]:8000", 200),
        ("evil.example", 421), ("evil.example:8000", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil", 421),
    ],
)  # fmt: skip
def test_an_open_loopback_server_refuses_host_names(small_server: LiveServer, host: str, status: int) -> None:
    """A page whose name was rebound to 127.0.0.1 sends that name, with an Origin or without."""
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        assert small_server.request("GET", "/state", headers=headers).status == status
        assert small_server.request("GET", "/health/liveness", headers=headers).status == 200


def test_a_body_is_wanted_only_from_a_client_that_may_call_the_operation() -> None:
    """A refusal that is certain before the body arrives is kept, and answered instead of reading the body."""
    application = Application()
    application._gate = Gate([KeyAuthenticator(ring("writer"))])
    operations = {"POST": Operation("", Role.WRITE, None), "PUT": Operation("", Role.ADMIN, None),
                  "GET": Operation("", None, None)}  # fmt: skip
    application._router.add_route("/route", FakeResource(operations))

    def wants_body(method: str, token: str) -> tuple[bool, str | None]:
        environ = {
            "REMOTE_ADDR": "", "PATH_INFO": "/route", "QUERY_STRING": "", "REQUEST_METHOD": method,
            "HTTP_X_API_KEY": token,
        }  # fmt: skip
        wanted = application.wants_body(environ)
        raised = environ.get(RAISED)
        return wanted, raised.problem_code if isinstance(raised, Problem) else None

    assert wants_body("POST", "writer.x") == (True, None)
    assert wants_body("POST", "stranger") == (False, "unauthorised")
    assert wants_body("PUT", "writer.x") == (False, "forbidden")
    assert wants_body("GET", "writer.x") == (False, None)  # an open operation reads no body
    assert wants_body("DELETE", "writer.x") == (False, None)  # no such operation


# -- several authenticators -------------------------------------------------------------------------------------------

USER = "Bearer user-token"


class UserAuthenticator:
    """Recognises Authorization: Bearer user-...; `outcome` is its answer, `asked` counts how often it was asked."""

    def __init__(self, outcome: Client | Exception | None) -> None:
        self.outcome = outcome
        self.asked = 0

    def identify(self, environ: dict[str, Any]) -> Client | None:
        self.asked += 1
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("Bearer user-"):
            return None
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def ring(*names: str) -> Keyring:
    """Return a keyring with keys whose tokens are NAME.x, of the role write."""
    return Keyring(keys=[Key(name, Role.WRITE, "standard", token_digest(f"{name}.x"), float("inf")) for name in names])


def user(role: Role = Role.ADMIN, **members: Any) -> Client:
    """Return a client of another kind than a key's."""
    return Client("user:ann", role, "standard", **members)


def client_of(gate: Gate, **environ: str) -> Client:
    """Return the client that the gate finds in a request."""
    request: dict[str, Any] = {"REMOTE_ADDR": "192.0.2.1", **environ}
    gate.check(request, Role.READ)
    client: Client = request[CLIENT]
    return client


def test_the_first_authenticator_that_knows_a_credential_decides() -> None:
    """Keys first; an authenticator that returns None leaves the decision to the next."""
    users, later = UserAuthenticator(user()), UserAuthenticator(Client("user:bob", Role.READ, "standard"))
    gate = Gate([KeyAuthenticator(ring("writer")), users])
    gate.add(later)

    assert client_of(gate, HTTP_X_API_KEY="writer.x").id == "writer"
    assert (users.asked, later.asked) == (0, 0)
    assert client_of(gate, HTTP_AUTHORIZATION=USER).id == "user:ann"
    assert (users.asked, later.asked) == (1, 0)
    users.outcome = None
    assert client_of(gate, HTTP_AUTHORIZATION=USER).id == "user:bob"


def test_a_credential_that_no_authenticator_knows_is_401() -> None:
    """With the same challenge as for an unknown key."""
    ask = gated(ring("writer"), others=[UserAuthenticator(user())])

    for headers, error in (({}, ""), ({"Authorization": "Bearer who"}, ', error="invalid_token"')):
        answer = ask(**headers)
        assert (answer.status_code, answer.json["code"]) == (401, "unauthorised")
        assert answer.headers["www-authenticate"] == 'Bearer realm="mlsdm"' + error


def test_an_authenticator_alone_closes_the_service() -> None:
    """Without keys, a server with another authenticator is not open; one that gets it later is closed from then on."""
    assert gated(Keyring(), others=[UserAuthenticator(user())])().status_code == 401

    gate = Gate(())
    assert client_of(gate).is_address
    gate.add(UserAuthenticator(user()))
    with pytest.raises(Problem) as refused:
        client_of(gate)
    assert refused.value.problem_code == "unauthorised"


def test_a_refused_credential_is_not_passed_to_the_next_authenticator() -> None:
    """A bad signature stays bad, whatever authenticators come later."""
    later = UserAuthenticator(user())
    ask = gated(ring("writer"), others=[UserAuthenticator(unauthorised(has_token=True)), later])

    assert ask(Authorization=USER).status_code == 401
    assert later.asked == 0


def test_an_error_of_an_authenticator_is_an_error_and_opens_nothing() -> None:
    """The request fails, before and after the body, and no later authenticator is asked."""
    later = UserAuthenticator(user())
    gate = Gate([KeyAuthenticator(ring("writer")), UserAuthenticator(ZeroDivisionError()), later])
    application = Application()
    application._gate = gate
    application._router.add_route("/admin", FakeResource(AdminResource.operations))
    environ: dict[str, Any] = {"REMOTE_ADDR": "", "PATH_INFO": "/admin", "REQUEST_METHOD": "GET",
                               "HTTP_AUTHORIZATION": USER}  # fmt: skip

    with pytest.raises(ZeroDivisionError):
        gate.admit(environ, AdminResource.operations["GET"])
    assert (CLIENT in environ, later.asked) == (False, 0)
    assert application.wants_body(environ) is False
    assert isinstance(environ[RAISED], ZeroDivisionError)


def test_a_role_that_is_too_low_is_403_for_every_kind_of_client() -> None:
    """It pays nothing, and learns which role is needed."""
    charged: list[int] = []
    answer = gated(ring("writer"), charged, others=[UserAuthenticator(user(Role.WRITE))])(Authorization=USER)

    assert (answer.status_code, answer.json["code"], charged) == (403, "forbidden", [])
    assert answer.json["detail"] == "This route needs the role admin; client user:ann has the role write."
    assert answer.headers["www-authenticate"].endswith('error="insufficient_scope", scope="admin"')


def test_a_client_is_cached_as_long_as_its_authenticator_allows() -> None:
    """Not by default, never beyond `cached_until`, and no longer once the authenticator has lowered that."""
    now = 0.0
    users = UserAuthenticator(user())
    gate = Gate([users], clock=lambda: now)

    def asked(times: int) -> int:
        before = users.asked
        for _ in range(times):
            client_of(gate, HTTP_AUTHORIZATION=USER)
        return users.asked - before

    assert asked(3) == 3
    users.outcome = user(cached_until=1000.0)
    assert asked(3) == 1
    now = 999.9
    assert asked(3) == 0
    now = 1000.0
    assert asked(3) == 3
    users.outcome = withdrawn = user(cached_until=2000.0)
    assert asked(3) == 1
    withdrawn.cached_until = 0.0
    assert asked(3) == 3


def test_a_client_without_a_header_of_its_own_is_never_cached() -> None:
    """A credential elsewhere, in a cookie for example, is not part of what the cache compares."""

    class CookieAuthenticator:
        def identify(self, environ: dict[str, Any]) -> Client | None:
            return Client("user:" + environ["HTTP_COOKIE"], Role.READ, "standard", cached_until=math.inf)

    gate = Gate([CookieAuthenticator()])

    assert [client_of(gate, HTTP_COOKIE=name).id for name in ("ann", "bob", "ann")] == [
        "user:ann",
        "user:bob",
        "user:ann",
    ]


def test_the_cache_of_clients_is_bounded() -> None:
    """A full cache is emptied, and all clients are authenticated again."""
    names = [f"k{number}" for number in range(3_000)]
    gate = Gate([KeyAuthenticator(ring(*names))])

    assert [client_of(gate, HTTP_X_API_KEY=f"{name}.x").id for name in names] == names


# -- keys over the life of a server -----------------------------------------------------------------------------------


def test_a_reload_takes_keys_in_and_away(serve: Serve, tmp_path: Path) -> None:
    """HUP: a new key opens, one that was taken out does not, but for one more request on an open connection; with
    a broken file the old keys stay.
    """
    path = keys.write(tmp_path / "keys.yaml", "reader", "admin")
    server = serve(MLSDM_SECURITY__KEYS_PATH=str(path), WORKERS="1")

    def statuses() -> list[int]:
        return [server.get("/state", **keys.bearer(name)).status for name in ("reader", "writer")]

    def asked_again(connection: http.client.HTTPConnection) -> int:
        try:
            return server.request("GET", "/state", headers=keys.bearer("reader"), connection=connection).status
        except (OSError, http.client.HTTPException):
            return 0

    assert statuses() == [200, 401]
    kept = server.connect()
    assert asked_again(kept) == 200
    keys.write(path, "writer", "admin")
    server.reload()
    assert statuses() == [401, 200]
    assert [asked_again(kept) in (0, 200), asked_again(kept) in (0, 401)] == [True, True]
    kept.close()

    path.write_text("keys:\n  - {id: reader, digest: " + keys.TOKENS["reader"] + ", role: king}\n")
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: "the old one stays" in server.log)

    assert statuses() == [401, 200]
    assert keys.leaked(server) == []


def test_a_client_without_a_key_is_refused_before_it_sends_its_body(guarded: LiveServer) -> None:
    """Expect: 100-continue without a key gets the 401 and no 100; with it, the 100."""
    for key, first in (("", b"HTTP/1.1 401 "), (f"X-API-Key: {KEY}\r\n", b"HTTP/1.1 100 ")):
        connection = guarded.connect()
        connection.sock.sendall(
            b"POST /event HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            + key.encode()
            + b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.sock.recv(13) == first
        connection.close()


def test_a_duplicate_of_a_key_field_opens_nothing(guarded: LiveServer) -> None:
    """Two Authorization fields are refused by the connection, two X-API-Key are one wrong token."""
    for field, value in (("Authorization", f"Bearer {KEY}"), ("X-API-Key", KEY)):
        connection: http.client.HTTPConnection = guarded.connect()
        connection.putrequest("GET", "/state")
        connection.putheader(field, value)
        connection.putheader(field, value)
        connection.endheaders()
        answer = connection.getresponse()
        code = json.loads(answer.read())["code"]
        assert (answer.status, code) in ((400, "duplicate_field"), (401, "unauthorised"))
        connection.close()

"""Role matrix: every route × every method × every credential; access follows from the role alone.

The routes are those of the application's router, so the matrix contains a new route as soon as it exists.
"""

import asyncio
import http.client
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

import falcon.inspect
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api.access.audit_log import AuditLog
from app.api.access.gate import Gate
from app.api.context import Context
from app.api.operation import operation_of
from app.lifecycle.context import make_context
from app.lifecycle.contract import Module, ModuleContext, NoSettings
from app.lifecycle.loader import BUILT_IN, load_modules
from app.lifecycle.registry import Registry
from app.lifecycle.report import NO_MODULES, Board
from app.main import Application
from app.processes.lock_backoff import LockBackoff
from app.routes.table import routes
from core.access.keys import Role
from core.settings.config import Config
from shm.recall import Recall
from shm.store import Store
from testing import keys
from testing.block_fixture import SMALL, Formed
from testing.bodies import problem
from testing.keys import API_KEY, TOKENS, bearer
from testing.live_server import Answer, LiveServer

# Every kind: defined on some route, known to the framework but on none, unknown to it.
METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE",
)  # fmt: skip
UNKNOWN_METHODS: Final = frozenset({"PURGE"})
READER, WRITER, ADMIN = (TOKENS[name] for name in ("reader", "writer", "admin"))


class Credential(NamedTuple):
    """What a client sends, and the role that it has with it."""

    name: str
    headers: Mapping[str, str]
    role: Role | None


CREDENTIALS: Final = (
    Credential("none", {}, None),
    Credential("bearer-without-token", {"Authorization": "Bearer"}, None),
    Credential("bearer-with-blank", {"Authorization": "Bearer "}, None),
    Credential("unknown-bearer", {"Authorization": "Bearer wrong"}, None),
    Credential("basic", {"Authorization": f"Basic {ADMIN}"}, None),
    Credential("token-without-scheme", {"Authorization": ADMIN}, None),
    Credential("two-bearers", {"Authorization": f"Bearer {ADMIN}, Bearer {ADMIN}"}, None),
    Credential("token-and-more", {"Authorization": f"Bearer {ADMIN} x"}, None),
    Credential("token-cut", {"Authorization": f"Bearer {ADMIN[:-1]}"}, None),
    Credential("token-upper-case", {"Authorization": f"Bearer {ADMIN.upper()}"}, None),
    Credential("digest", {"Authorization": f"Bearer {sha256(ADMIN.encode()).hexdigest()}"}, None),
    Credential("id-only", {"Authorization": "Bearer admin"}, None),
    Credential("id-with-the-secret-of-another", {"Authorization": f"Bearer admin.{READER.partition('.')[2]}"}, None),
    Credential("id-of-API_KEY", {"Authorization": "Bearer API_KEY"}, None),
    Credential("expired-bearer", {"Authorization": f"Bearer {TOKENS['expired']}"}, None),
    Credential("expired-header", {"X-API-Key": TOKENS["expired"]}, None),
    Credential("empty-header", {"X-API-Key": ""}, None),
    Credential("two-tokens-in-one-header", {"X-API-Key": f"{ADMIN},{ADMIN}"}, None),
    Credential("underscore-header", {"X_API_Key": ADMIN}, None),
    Credential("cookie", {"Cookie": f"Authorization=Bearer {ADMIN}"}, None),
    Credential("empty-bearer-beside-admin-header", {"Authorization": "Bearer ", "X-API-Key": ADMIN}, None),
    Credential("reader", bearer("reader"), Role.READ),
    Credential("reader-in-both", bearer("reader") | {"X-API-Key": READER}, Role.READ),
    Credential("reader-beside-empty-header", bearer("reader") | {"X-API-Key": " "}, Role.READ),
    Credential("reader-header-beside-basic", {"Authorization": "Basic dTpw", "X-API-Key": READER}, Role.READ),
    Credential("writer", bearer("writer"), Role.WRITE),
    Credential("writer-header", {"X-API-Key": WRITER}, Role.WRITE),
    Credential("API_KEY-with-lower-case-scheme", {"Authorization": f"bearer {API_KEY}"}, Role.WRITE),
    Credential("API_KEY-header", {"X-API-Key": API_KEY}, Role.WRITE),
    Credential("admin", bearer("admin"), Role.ADMIN),
)
TRICKY: Final = (
    "//event", "///event", "/event/", "/event//", "/./event", "/x/../event", "/health/../event", "/health/%2e%2e/event",
    "/livez/../event", "/livez/%2E%2E/event", "/livez%2f..%2fevent", "/livez;/event", "/livez%00/event", "/livez%20",
    "/METRICS", "/Livez", "/livez/", "/health/liveness/", "/health", "/health/", "/healthz", "/metrics/x", "/%65vent",
    "/event%00", "/event;x=/livez", "/event%3f/livez", "/", "//", "/%2f", "/..", "/favicon.ico", "/docs/..%2fevent",
    "/governor/stop/", "//governor/stop", "/governor//stop", "/governor/stop%2f", "/GOVERNOR", "/memories/../livez",
    "http://livez/event", "http://127.0.0.1/governor", "/%c3%a9",
)  # fmt: skip


class Route(NamedTuple):
    """A route of the router: a path to ask for, its methods as the router has them, the role each of them needs."""

    path: str
    methods: frozenset[str]
    roles: Mapping[str, Role | None]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Route]]:
    """The routes of the application, as its router knows them."""
    formed = Formed()
    config = Config(dimension=SMALL.dimension, capacity=SMALL.capacity)
    store = Store(formed.block)
    latency: Any = None  # nothing is counted
    context = Context(config, store, Recall(formed.block), latency, formed.now, is_stopping=lambda: False, workers=1)
    application = Application()
    application._gate = Gate(())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path_factory.mktemp("metrics")))
        application._routes = routes(context, AuditLog(), NO_MODULES)
    for loaded in load_modules(tuple(BUILT_IN)):
        assert loaded.module is not None
        application._routes |= loaded.module.routes(make_context(loaded.module, "worker", NoSettings(), config))
    application._modules = Registry(
        (), Board((), 0), 0, migrations={}, context_of=_no_context, routes={}, wake=lambda: None
    )
    application._lock_backoff = LockBackoff(formed.block, asyncio.new_event_loop())
    api = application._make_falcon_app()
    found = []
    for info in falcon.inspect.inspect_routes(api):
        methods = frozenset(method.method for method in info.methods if not method.internal)
        path = info.path.replace("{memory_id}", "999999999")
        assert "{" not in path, f"say here what {path} is to be asked for"
        resource: Any = api._router.find(path)[0]
        operations = {method: operation_of(resource, method) for method in METHODS}
        roles = {method: operation.role if operation else Role.READ for method, operation in operations.items()}
        found.append(Route(path, methods, roles))
    yield found
    del application, api, context, store
    formed.close()


def _no_context(_module: Module) -> ModuleContext:
    """Never called: there is no module."""
    raise AssertionError


def allowed(has: Role | None, needs: Role | None) -> bool:
    """Whether a role is enough."""
    return needs is None or (has is not None and has >= needs)


def ask(
    server: LiveServer, method: str, path: str, headers: Mapping[str, str], connection: http.client.HTTPConnection
) -> Answer:
    """Send a request without a body; its answer shows nothing of any key."""
    answer = server.request(method, path, None, headers, connection)
    shown = repr(answer.headers).encode() + answer.body
    assert not [secret for secret in keys.SECRETS if secret.encode() in shown]
    return answer


def refusals(server: LiveServer) -> dict[str, float]:
    """Return the refusals that were counted, by code."""
    families = text_string_to_metric_families(server.get("/metrics").body.decode())
    return {
        sample.labels["code"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "mlsdm_refusals_total"
    }


def test_the_router_and_the_server_name_the_same_methods(table: list[Route], keyed_server: LiveServer) -> None:
    """The running server names the same methods for each of these paths; nothing is missing here."""
    found = {}
    for route in table:
        answer = keyed_server.request("OPTIONS", route.path, headers=bearer("reader"))
        found[route.path] = frozenset(answer.headers["allow"].split(", "))

    assert {route.path: route.methods | {"OPTIONS"} for route in table} == found
    assert len(table) >= 17


def test_allow_is_the_same_for_options_and_405(table: list[Route], keyed_server: LiveServer) -> None:
    """Allow is the same in the answer to OPTIONS and in each 405, and nowhere else; no body means no media type."""
    connection = keyed_server.connect()
    for route in [*table, Route("/nope", frozenset(), {})]:
        listed = ", ".join([*sorted(route.methods), "OPTIONS"])
        for method in sorted({*METHODS} - UNKNOWN_METHODS - route.methods):
            answer = ask(keyed_server, method, route.path, bearer("reader"), connection)
            status = 404 if not route.methods else 204 if method == "OPTIONS" else 405
            assert (answer.status, answer.headers.get("allow")) == (status, listed if route.methods else None)
            media = None if status == 204 else "application/problem+json"
            assert answer.headers.get("content-type") == media
            assert bool(answer.body) == (status != 204 and method != "HEAD")
    connection.close()


@pytest.mark.parametrize("credential", [pytest.param(credential, id=credential.name) for credential in CREDENTIALS])
def test_access_follows_from_the_role(table: list[Route], keyed_server: LiveServer, credential: Credential) -> None:
    """401 without a key that opens something, 403 below the role, and otherwise never either of them; all counted."""
    _, headers, role = credential
    before, cells, seen = refusals(keyed_server), 0, {401: 0, 403: 0}
    connections = [keyed_server.connect() for _ in range(2)]

    for route in table:
        for method in METHODS:
            cells += 1
            answer = ask(keyed_server, method, route.path, headers, connections[cells % 2])
            what = (method, route.path, answer.status)
            needs = route.roles[method]
            assert (answer.status in seen) == (not allowed(role, needs)), what
            if answer.status in seen:
                assert answer.status == (401 if role is None else 403), what
                seen[answer.status] += 1
                check_refusal(answer, needs, head=method == "HEAD")
            elif method == "OPTIONS":
                assert answer.status == 204, what
            elif method not in route.methods:
                assert answer.status == (501 if method in UNKNOWN_METHODS else 405), what
            else:
                assert answer.status in (200, 307, 400, 404, 422, 503), what
    for connection in connections:
        connection.close()

    after = refusals(keyed_server)
    keyed_server.request("POST", "/governor/resume", headers=bearer("admin"))
    assert seen == {
        401: after.get("unauthorised", 0) - before.get("unauthorised", 0),
        403: after.get("forbidden", 0) - before.get("forbidden", 0),
    }


@pytest.mark.parametrize("token", [READER, "wrong", f"{ADMIN}x"], ids=["reader", "wrong", "longer"])
def test_two_different_credentials_are_refused(table: list[Route], keyed_server: LiveServer, token: str) -> None:
    """Whichever of the two is valid, and on every route that needs one; a request that is refused changes nothing."""
    both = ({"X-API-Key": token, **bearer("admin")}, {"X-API-Key": ADMIN, "Authorization": f"bearer  {token} "})
    connection = keyed_server.connect()

    for route in [*table, Route("/nope", frozenset(), dict.fromkeys(METHODS, Role.READ))]:
        for method in METHODS:
            for headers in both:
                answer = ask(keyed_server, method, route.path, headers, connection)
                if route.roles[method] is None:  # open: reads no credential
                    assert answer.status in (200, 307, 503)
                else:
                    assert answer.status == 400, (method, route.path)
                    if method != "HEAD":
                        assert problem(answer)["code"] == "credentials_conflict"
    connection.close()


def check_refusal(answer: Answer, needs: Role | None, *, head: bool) -> None:
    """A 401 says which scheme would do, a 403 which role is missing (RFC 9110 §11.6.1, RFC 6750 §3)."""
    assert needs is not None
    challenge = answer.headers["www-authenticate"]
    assert challenge.startswith('Bearer realm="mlsdm"')
    if answer.status == 403:
        assert challenge.endswith(f'error="insufficient_scope", scope="{needs.name.lower()}"')
    if head:
        assert answer.body == b""
        return
    document = problem(answer)
    assert document["code"] == {401: "unauthorised", 403: "forbidden"}[answer.status]
    if answer.status == 403:
        assert f"needs the role {needs.name.lower()}" in document["detail"]


def test_without_keys_every_client_may_call_every_route(table: list[Route], still_server: LiveServer) -> None:
    """An open server reads no token at all: a wrong one does no harm either."""
    connection, cells = still_server.connect(), 0

    for route in table:
        for method in METHODS:
            for _, headers, _ in CREDENTIALS[::4]:
                cells += 1
                answer = ask(still_server, method, route.path, headers, connection)
                assert answer.status not in (401, 403, 500), (method, route.path, headers)
    connection.close()

    still_server.request("POST", "/governor/resume")
    print(f"open: {cells}")


@pytest.mark.parametrize("path", TRICKY)
def test_no_spelling_of_a_path_gets_past_the_gate(table: list[Route], keyed_server: LiveServer, path: str) -> None:
    """What a path runs is what is protected: a stranger gets 401, or reaches a probe that is open anyway."""
    probes = {b'{"status":"alive"}'}
    connection = keyed_server.connect()
    before = keyed_server.request("GET", "/state", headers=bearer("reader")).json["position"]

    for method in METHODS:
        for _, headers, role in CREDENTIALS[:6]:
            assert role is None
            answer = ask(keyed_server, method, path, headers, connection)
            home = path in ("/", "//", "/%2f") and answer.headers.get("location") == "docs"
            assert answer.status == 401 or answer.body in probes or home, (method, headers, answer)
        reader = ask(keyed_server, method, path, bearer("reader"), connection)
        assert reader.status not in (401, 500), (method, reader)
    connection.close()

    page = keyed_server.request("GET", f"/decisions?after={before}", headers=bearer("reader")).json
    assert [entry["kind"] for entry in page["entries"] if entry["kind"] != "tick"] == []
    assert len(table) > 0


def test_the_server_as_a_whole_is_behind_the_gate(keyed_server: LiveServer) -> None:
    """OPTIONS * (RFC 9112 §3.2.4) names no route, and needs a key like any unknown path."""

    assert keyed_server.request("OPTIONS", "*").status == 401
    assert keyed_server.request("OPTIONS", "*", headers=bearer("reader")).status == 204

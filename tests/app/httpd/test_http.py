"""HTTP as clients of the whole server see it, and docs/http.md, which describes it."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core import limits
from core.limits import Limit
from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT, LiveServer
from tests.app.httpd.test_guards import GUARDS

DOCUMENT = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
ROWS = [line for line in DOCUMENT.splitlines() if line.startswith("| ")]


def exchange(server: LiveServer, request: bytes) -> bytes:
    """Send bytes and return everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANG_SECONDS) as client:
        client.sendall(request)
        received = b""
        while piece := client.recv(65_536):
            received += piece
        return received


def status_of(server: LiveServer, method: str, target: str) -> int:
    answer = exchange(server, f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "target",
    [
        "/health/../state",
        "/./state",
        "/health/..%2Fstate",
        "/health/%2e%2e/state",
        "/x/../state",
        "/health%2F..%2Fstate",
    ],
)
def test_dot_segments_are_taken_literally(small_server: LiveServer, target: str) -> None:
    """A target with dot segments, in any spelling, reaches no route and avoids no check."""
    assert status_of(small_server, "GET", target) == 404


def test_percent_encoding_is_decoded_once(small_server: LiveServer) -> None:
    """%73 is an s; %2573 is the text %73, not an s (RFC 3986 §2.4)."""
    assert status_of(small_server, "GET", "/%73tate") == 200
    assert status_of(small_server, "GET", "/%2573tate") == 404


def test_options_lists_the_methods_of_a_route(small_server: LiveServer) -> None:
    """OPTIONS of a route lists its methods; OPTIONS * asks about the whole server (RFC 9110 §9.3.7)."""
    answer = exchange(small_server, b"OPTIONS /state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = answer.split(b"\r\n\r\n")[0].lower()

    assert answer.startswith(b"HTTP/1.1 204 ")
    assert b"allow: get" in head
    assert b"content-" not in head.replace(b"content-security-policy", b"").replace(b"x-content-type-options", b"")
    assert status_of(small_server, "OPTIONS", "*") == 204


def test_default_headers_of_the_server(small_server: LiveServer) -> None:
    """Answers of routes, of unknown routes and refusals of the connection carry each default header once."""
    for request in (
        b"GET /state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        head = exchange(small_server, request).split(b"\r\n\r\n")[0].lower()
        for name in (
            b"x-content-type-options: nosniff", b"cache-control: no-store", b"x-frame-options: deny",
            b"referrer-policy: no-referrer", b"content-security-policy: ", b"x-request-id: ",
        ):  # fmt: skip
            assert head.count(b"\r\n" + name) == 1, (name, head)
        assert b"\r\nserver:" not in head


def test_long_page_of_the_log_is_complete(small_server: LiveServer) -> None:
    """A page that is generated in pieces is complete. HEAD gets no length, because no page is generated for it."""
    for _ in range(120):
        small_server.event([0.1] * 8, 0.9)
    newest = small_server.get("/decisions?limit=1").json["newest"]
    page = small_server.get(f"/decisions?limit=1000&after={newest - 120}")
    head = small_server.request("HEAD", f"/decisions?limit=1000&after={newest - 120}")

    assert 200 == page.status == head.status
    assert len(page.json["entries"]) >= 120
    assert set(page.headers) - {"content-length"} == set(head.headers)


# -- the document ----------------------------------------------------------------------------------------------------


def collected(session: pytest.Session) -> set[str]:
    """Return the ids of every test in the cited files. PERF: a run of all tests has them, which saves 4 s of CPU."""
    options = session.config.option
    if {Path(arg).resolve() for arg in session.config.args} == {ROOT / "tests"} and not options.keyword:
        return {item.nodeid for item in session.items}
    files = sorted({name.partition("::")[0] for name in named()})
    command = [sys.executable, "-m", "pytest", "--collect-only", *files]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    return {line for line in ended.stdout.splitlines() if "::" in line}


def named() -> list[str]:
    """Return the test ids that the document cites."""
    return re.findall(r"`(tests/[^`]+)`", DOCUMENT)


def test_every_test_of_the_document_exists(request: pytest.FixtureRequest) -> None:
    """Every cited test id is collected by pytest; brackets contain one of the parameters."""
    functions: dict[str, set[str]] = {}
    for test in collected(request.session):
        function, _, parameters = test.partition("[")
        functions.setdefault(function, set()).add(parameters[:-1])
    missing = [
        name
        for name in named()
        for function, _, parameter in [name.partition("[")]
        if not any(parameter[:-1] in parameters for parameters in functions.get(function, ()))
    ]

    assert missing == []
    assert len(named()) > 100


@pytest.mark.parametrize("name", GUARDS)
def test_every_guard_has_a_row(name: str) -> None:
    """Every guard has a row with a citation."""
    rows = [row for row in ROWS if f"::test_guard[{name}]`" in row]

    assert rows
    assert re.search(r"RFC \d{4} §|limit", rows[0])


@pytest.mark.parametrize("name", [name for name, value in vars(limits).items() if isinstance(value, Limit)])
def test_every_limit_has_a_row(name: str) -> None:
    """Every limit has a row with its value, unit, code and test."""
    limit: Limit = getattr(limits, name)
    rows = [row for row in ROWS if f"`{limit.code}`" in row and f"{limit.value:,} {limit.unit}" in row]

    assert rows
    assert "`tests/" in rows[0]

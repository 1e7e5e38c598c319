"""GET /docs: one self-contained page in which every link resolves and every command works."""

import html
import os
import re
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest

from core import limits
from core.limits import Limit
from modules.openapi.html import Markup, element, prose
from modules.openapi.page import page
from testing.eventually import HANG_SECONDS
from testing.keys import bearer
from testing.live_server import LiveServer
from tests.conftest import SMALL
from tests.programs import needs

VOID: Final = {"meta"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of its own, which the commands may change: 8 dimensions, no key."""
    server = LiveServer(tmp_path_factory.mktemp("docs"), dict(SMALL))
    yield server.start()
    server.stop()


class Reader(HTMLParser):
    """What is in a page: anchors, links, elements, attributes, commands. Asserts that it is well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.style = ""
        self.commands: list[str] = []
        self._open: list[str] = []
        self._in_shell = False
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.add(tag)
        self.attributes |= set(given)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name == "href" and value]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "pre":
            self._in_shell = given.get("class") == "shell"
            self.commands += [""] * self._in_shell

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._in_shell = self._in_shell and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        if self._in_shell:
            self.commands[-1] += data


@pytest.fixture(scope="module")
def text(server: LiveServer) -> str:
    """The page."""
    answer = server.get("/docs")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    return answer.body.decode()


@pytest.fixture(scope="module")
def read(text: str) -> Reader:
    """The page, read."""
    return Reader(text)


def test_every_link_leads_to_one_place_in_the_page(read: Reader) -> None:
    """All anchors resolve, none is there twice, and nothing leads out."""

    assert len(set(read.ids)) == len(read.ids)
    assert {link for link in read.links if link.removeprefix("#") not in read.ids} == set()
    assert all(link.startswith("#") for link in read.links)


def test_the_page_fetches_nothing(read: Reader, text: str) -> None:
    """No script, picture, font, frame or foreign style; no handler and no inline style attribute."""

    assert not read.elements & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    assert read.attributes <= {"lang", "charset", "name", "content", "class", "id", "href", "scope", "tabindex"}
    assert "url(" not in read.style
    assert "@import" not in read.style
    assert text.startswith("<!doctype html>\n")


def test_the_policy_allows_the_style_and_nothing_else(server: LiveServer, read: Reader) -> None:
    """The hash in the one Content-Security-Policy is that of the style in the page (CSP 3 §2.3.1)."""
    digest = b64encode(sha256(read.style.encode()).digest()).decode()

    assert (
        server.get("/docs").headers["content-security-policy"] == f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def test_every_operation_type_code_and_limit_is_there(server: LiveServer, read: Reader, text: str) -> None:
    """What the document has, the page has."""
    document = server.get("/openapi.json").json
    named = {operation["operationId"] for methods in document["paths"].values() for operation in methods.values()}
    types = {f"type-{name}" for name in document["components"]["schemas"]}
    codes = {f"code-{code['code']}" for code in document["components"]["schemas"]["Code"]["x-codes"]}

    assert named | types | codes <= set(read.ids)
    for name, limit in vars(limits).items():
        if isinstance(limit, Limit):
            assert name.lower().replace("_", " ") in text
            assert html.escape(limit.reason) in text


def test_every_command_works(server: LiveServer, read: Reader, tmp_path: Path) -> None:
    """Pasted into a shell in the order of the page, without a key: none is answered with a problem document."""
    environ = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    operations = sum(len(methods) for methods in server.get("/openapi.json").json["paths"].values())

    for command in read.commands:
        ended = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", "API_KEY=\n" + command],
            cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG_SECONDS,
            check=False,
        )  # fmt: skip

        assert (ended.returncode, ended.stderr) == (0, ""), command
        assert ended.stdout
        assert '"type":"about:blank"' not in ended.stdout.replace(" ", "").partition("<html")[0][:300], command
    assert operations + 3 == len(read.commands)  # three of them also with plain bytes
    assert f"http://127.0.0.1:{server.port}/event" in read.commands[0]


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("api.example:81", "http://api.example:81"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("a'$(id)", "http://127.0.0.1:8000"),
        ("a&lt;b", "http://127.0.0.1:8000"),
    ],
)
def test_the_address_in_the_examples_is_that_of_the_request_when_it_is_plain(
    keyed_server: LiveServer, host: str, shown: str
) -> None:
    """Nobody's Host field becomes part of a command that is pasted into a shell."""
    text = keyed_server.get("/docs", Host=host, **bearer("reader")).body.decode()

    assert f"curl -s {shown}/event " in text
    assert host == shown.removeprefix("http://") or host not in text


def test_markup_in_text_is_escaped() -> None:
    """Whatever stands in the document, no element and no attribute comes of it."""
    evil = '<script>alert("x")</script>`</code><img src=x onerror=1>`'
    document: dict[str, Any] = {
        "info": {"title": evil, "version": evil, "description": f"{evil}\n\n## {evil}\n\n{evil}"},
        "tags": [{"name": "t", "description": evil}],
        "paths": {
            f"/{evil}": {
                "post": {
                    "operationId": "x",
                    "tags": ["t"],
                    "summary": evil,
                    "security": [],
                    "parameters": [
                        {"name": evil, "in": "query", "description": evil, "schema": {"type": evil, "examples": [evil]}}
                    ],
                    "responses": {
                        "200": {
                            "headers": {},
                            "content": {"application/json": {"schema": {"enum": [evil]}, "example": evil}},
                        }
                    },
                }
            }
        },
        "components": {
            "responses": {},
            "schemas": {
                "Vector": {"description": evil, "examples": [[1, 2]], "oneOf": [{"const": evil}]},
                "Code": {"x-codes": [{"code": evil, "meaning": evil, "status": 400}]},
            },
        },
    }

    read = Reader(page(document))

    assert not read.elements & {"script", "img"}
    assert "onerror" not in read.attributes


def test_markup_escapes_what_is_no_markup() -> None:
    """Content, attributes, and code in prose."""

    assert element("p", "a < b", Markup("<b>c</b>"), class_='">') == '<p class="&quot;&gt;">a &lt; b<b>c</b></p>'
    assert prose("a `<b>` c") == "a <code>&lt;b&gt;</code> c"


@pytest.mark.parametrize(("is_open", "status"), [("true", 200), ("false", 401)])
def test_a_browser_needs_no_key_unless_the_operator_wants_it(serve: Any, is_open: str, status: int) -> None:
    """The documents hold nothing secret; what they say of access is true in both cases."""
    server = serve(API_KEY="a-key", MLSDM_SECURITY__DOCS_OPEN=is_open)
    key = {"X-API-Key": "a-key"}

    for path in ("/docs", "/openapi.json"):
        assert (server.get(path).status, server.get(path, **key).status) == (status, 200)
        assert server.request("HEAD", path).status == status
        assert server.request("POST", path).status == 401
        operation = server.get("/openapi.json", **key).json["paths"][path]["get"]
        assert (operation["security"] == []) == (is_open == "true")
        assert ("401" in operation["responses"]) == (is_open == "false")
    home = server.get("/", **key)
    assert (home.status, home.headers["location"], home.body) == (307, "docs", b"")
    assert server.get("/").status == (307 if is_open == "true" else 401)
    assert "/" not in server.get("/openapi.json", **key).json["paths"]


@needs("chromium")
def test_a_browser_reports_no_error(keyed_server: LiveServer, tmp_path: Path) -> None:
    """It is led from `/` to the page, without a key. The style applies, and the console stays empty: no violation of
    the policy, nothing that was not found.
    """
    ended = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--virtual-time-budget=2000",
            "--dump-dom", f"http://127.0.0.1:{keyed_server.port}/",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip

    assert ended.returncode == 0
    assert "<h1>mlsdm" in ended.stdout
    assert re.findall(r".*(?:CONSOLE|Content.Security.Policy).*", ended.stderr) == []

"""Page: the documentation of this server as one page for people.

It is the OpenAPI document (`modules.openapi.document`) made readable, and the table of limits (`core.limits`).

Invariants: the page needs nothing else: no script, font or picture that a browser must fetch, so it can be read, saved
and printed without internet access. Its inline style is named by its SHA-256 in the Content-Security-Policy of the
response, which allows nothing else (CSP 3 §2.3.1): foreign text in the page stays text.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from core import limits
from core.limits import Limit
from modules.openapi.html import Markup, element, joined, link, prose, table
from modules.openapi.operation_section import Articles, each, signature
from modules.openapi.type_phrase import phrase

STYLE: Final = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(document: Mapping[str, Any]) -> Markup:
    """Return the complete page of an OpenAPI document."""
    info = document["info"]
    purpose, *topics = _topics(info["description"])
    articles = Articles(document)
    groups = [(tag["name"], tag["description"]) for tag in document["tags"]]
    return element(
        "html",
        element(
            "head",
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", f"{info['title']} {info['version']}: API"),
            element("style", Markup(STYLE)),
        ),
        element(
            "body",
            element(
                "header",
                element("h1", info["title"], " ", element("small", info["version"])),
                *purpose[1],
                id="top",
            ),
            _navigation(document, groups, topics),
            element(
                "main",
                *[element("section", _heading("h2", title), *content, id=_anchor(title)) for title, content in topics],
                *[_group(document, articles, name, meaning) for name, meaning in groups],
                _types(document, articles),
                _codes(document, articles),
                _limits(),
            ),
        ),
        lang="en",
    )


def _topics(description: str) -> Iterator[tuple[str, list[Markup]]]:
    """Yield (title, paragraphs) of the introduction; the first part has no title."""
    for part in f"\n{description}".split("\n## "):
        title, _, text = part.partition("\n")
        yield title, [element("p", prose(paragraph)) for paragraph in text.strip().split("\n\n")]


def _navigation(
    document: Mapping[str, Any], groups: list[tuple[str, str]], topics: list[tuple[str, list[Markup]]]
) -> Markup:
    parts = [element("ul", *[element("li", link(_anchor(title), title)) for title, _ in topics])]
    for name, _ in groups:
        own = [
            element("li", link(operation["operationId"], *signature(path, method)))
            for path, method, operation in each(document)
            if name in operation["tags"]
        ]
        parts += [element("b", link(f"group-{name}", name.capitalize())), element("ul", *own)]
    rest = [("types", "Types"), ("type-Code", "Codes"), ("limits", "Limits")]
    parts.append(element("ul", *[element("li", link(anchor, title)) for anchor, title in rest]))
    return element("nav", *parts)


def _group(document: Mapping[str, Any], articles: Articles, name: str, meaning: str) -> Markup:
    return element(
        "section",
        _heading("h2", name.capitalize(), f"group-{name}"),
        element("p", prose(meaning)),
        *[articles.article(*entry) for entry in each(document) if name in entry[2]["tags"]],
        id=f"group-{name}",
    )


def _types(document: Mapping[str, Any], articles: Articles) -> Markup:
    parts = []
    for name, schema in document["components"]["schemas"].items():
        if name == "Code":  # has a table of its own
            continue
        parts.append(
            element(
                "section",
                _heading("h3", name, f"type-{name}"),
                element("p", prose(schema.get("description", ""))),
                articles.members(schema) if "properties" in schema else element("p", phrase(schema)),
                id=f"type-{name}",
            )
        )
    return element("section", _heading("h2", "Types"), *parts, id="types")


def _codes(document: Mapping[str, Any], articles: Articles) -> Markup:
    codes = sorted(document["components"]["schemas"]["Code"]["x-codes"], key=lambda code: code["status"])
    rows = [
        (
            element("code", code["code"], id=f"code-{code['code']}"),
            str(code["status"]),
            joined(prose(code["meaning"]), element("i", " To any request.") if code["code"] in articles.common else ""),
        )
        for code in codes
    ]
    return element(
        "section",
        _heading("h2", "Codes", "type-Code"),
        element("p", "Values of ", element("code", "code"), " in a problem document, by status."),
        table(("code", "status", "meaning"), rows),
        id="type-Code",
    )


def _limits() -> Markup:
    rows = [
        (
            name.lower().replace("_", " "),
            f"{limit.value:,} {limit.unit}" if limit.value else "by tier",
            joined(str(limit.status), " ", element("code", limit.code))
            if limit.status
            else "the connection is closed or waits",
            prose(limit.reason),
        )
        for name, limit in vars(limits).items()
        if isinstance(limit, Limit)
    ]
    return element(
        "section",
        _heading("h2", "Limits"),
        element("p", "Limits of every server of this version, whatever its configuration."),
        table(("limit", "value", "when it is passed", "reason"), rows),
        id="limits",
    )


def _heading(name: str, title: str, anchor: str = "") -> Markup:
    return element(name, link(anchor or _anchor(title), title))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")

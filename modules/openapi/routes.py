"""GET /openapi.json and GET /docs, and `/`, which leads a browser to the latter.

They hold nothing secret, and a browser has no way to send a key, so they need none unless the configuration says so
(`security.docs_open`). Both are built at the first request, on the thread pool, because that takes milliseconds. They
are kept as bytes until the routes of the worker change. Their code is imported then, so a worker without such a request
spends no memory on it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import falcon

from app.api.codec.media_types import JSON
from app.api.operation import Operation
from app.lifecycle.contract import ModuleContext
from core.access.keys import Role

HTML: Final = "text/html; charset=utf-8"
_UNAVAILABLE: Final = ("module_unavailable",)
# An address that is a plain host and port, and may therefore be repeated in the page's examples.
_PLAIN: Final = re.compile(r"https?://[A-Za-z0-9.\-]+(?::[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


class DocumentResource:
    """The OpenAPI document."""

    def __init__(self, context: ModuleContext) -> None:
        role = role_of(context)
        self.operations: Mapping[str, Operation] = {
            "GET": Operation(
                "Return this API as an OpenAPI 3.1 document.",
                role,
                dict[str, Any],
                refusals=_UNAVAILABLE,
                compressed=True,
                blocks=True,
            )
        }
        self._context = context
        self._routes_count = 0
        self._text = b""

    def text(self) -> bytes:
        """Return the document as JSON."""
        routes = self._context.operations()
        if len(routes) != self._routes_count:  # routes are only ever added
            from modules.openapi.document import OpenApiDocument  # noqa: PLC0415 - not needed before

            document = OpenApiDocument(routes, self._context.config).document()
            self._text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
            self._routes_count = len(routes)
        return self._text

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Return the document; runs on the pool."""
        response.content_type = JSON
        response.data = self.text()

    on_head = on_get  # RFC 9110 §9.1: every GET has a HEAD; the server omits the body


class PageResource:
    """The page. Only the address in its examples is that of the request, so that they can be pasted."""

    def __init__(self, context: ModuleContext, document: DocumentResource) -> None:
        role = role_of(context)
        self.operations: Mapping[str, Operation] = {
            "GET": Operation(
                "Return this API as a page for people.",
                role,
                HTML,
                refusals=_UNAVAILABLE,
                compressed=True,
                blocks=True,
            )
        }
        self._document = document
        self._made_of = b""
        self._page = b""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the page; runs on the pool."""
        from modules.openapi.operation_section import ORIGIN  # noqa: PLC0415 - as above
        from modules.openapi.page import POLICY, page  # noqa: PLC0415

        text = self._document.text()
        if text is not self._made_of:
            self._page, self._made_of = b"<!doctype html>\n" + page(json.loads(text)).encode(), text
        origin = request.prefix if _PLAIN.fullmatch(request.prefix) else ORIGIN
        response.content_type = HTML
        response.set_header("Content-Security-Policy", POLICY)
        response.data = self._page.replace(ORIGIN.encode(), origin.encode())

    on_head = on_get


class HomeResource:
    """`/`, which leads to the page."""

    def __init__(self, context: ModuleContext) -> None:
        self.operations: Mapping[str, Operation] = {
            "GET": Operation("Lead to the page.", role_of(context), HTML, refusals=_UNAVAILABLE, documented=False)
        }

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Redirect to the page. The reference is relative (RFC 9110 §10.2.2), so it keeps the prefix of a proxy."""
        response.status = falcon.HTTP_307
        response.set_header("Location", "docs")

    on_head = on_get


def role_of(context: ModuleContext) -> Role | None:
    """Return the role that the documents need; None when they are open."""
    return None if context.config.security.docs_open else Role.READ

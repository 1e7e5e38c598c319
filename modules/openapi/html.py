"""HTML: elements whose content is escaped unless it is Markup.

An element is a function call. Its content is text, which is escaped, or Markup, which such a call has made. Void
elements and optional end tags have no rules here: the page has no void element but `meta`.
"""

import re
from collections.abc import Sequence
from html import escape
from typing import Final

_CODE: Final = re.compile(r"`([^`]+)`")


class Markup(str):
    """A piece of finished HTML."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str) -> Markup:
    """Return an element. An attribute's trailing underscore is dropped: `class_` is `class`."""
    given = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{joined(*content)}</{name}>")


def joined(*content: str) -> Markup:
    """Return pieces one after another, text escaped."""
    return Markup("".join(piece if isinstance(piece, Markup) else escape(piece) for piece in content))


def prose(text: str) -> Markup:
    """Return a line of CommonMark; only `code` is supported."""
    parts = _CODE.split(text)  # text and code in turn
    return joined(*(element("code", part) if number % 2 else part for number, part in enumerate(parts)))


def link(anchor: str, *content: str) -> Markup:
    """Return a link to a place in the same page."""
    return element("a", *content, href="#" + anchor)


def listed(pieces: Sequence[Markup], word: str = "") -> Markup:
    """Return pieces with commas between them, or with `word` before the last: `a, b or c`."""
    last = f" {word} " if word else ", "
    between = [", "] * (len(pieces) - 2) + [last] * (len(pieces) > 1) + [""]
    return joined(*(part for pair in zip(pieces, between, strict=True) for part in pair)) if pieces else Markup()


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Markup:
    """Return a table in a frame that scrolls sideways when it is too wide for the screen. The first cell of a row is
    its head.
    """
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    return element(
        "div", element("table", element("thead", head), element("tbody", *body)), class_="wide", tabindex="0"
    )

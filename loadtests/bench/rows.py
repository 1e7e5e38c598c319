"""The rows of the benchmark: which side is compared with which. A side is a server and its traffic.

There are two figures. A *share* is the reference's processor time per request divided by the subject's: 1 means equal
cost, 0.5 twice the cost. A *gain* is the subject's vectors per second divided by the reference's on the same core.

Rows that need the same servers are adjacent, because a server runs from the first row that names it to the last.
"""

from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Final, Literal, NamedTuple


class Side(NamedTuple):
    """A server and its traffic, both by name."""

    server: str
    traffic: str


class Row(NamedTuple):
    """One comparison: its name, the reference in words, the two sides, and the figure."""

    name: str
    against: str
    subject: Side
    reference: Side
    figure: Literal["share", "gain"] = "share"

    @property
    def servers(self) -> frozenset[str]:
        """The servers that the row needs."""
        return frozenset({self.subject.server, self.reference.server})


def _over_floor(name: str, traffic: str) -> Row:
    return Row(name, "floor", Side("product", traffic), Side("floor", traffic))


def _without(name: str, server: str) -> Row:
    return Row(f"/event raw with {name}", f"without {name}", Side("product", "event raw"), Side(server, "event raw"))


_RAW: Final = Side("product", "event raw")
_JSON: Final = Side("product", "event JSON")
_RECALL: Final = Side("recall", "recall")
_RECALL_JSON: Final = Side("recall", "recall JSON")  # what the peers take

ROWS: Final = (
    _over_floor("/event raw", "event raw"),
    _over_floor("/event base64", "event base64"),
    _over_floor("/event JSON", "event JSON"),
    _over_floor("/event msgpack", "event msgpack"),
    _over_floor("/events raw × 100", "batch"),
    Row("vectors of /events raw × 100", "/event raw", Side("product", "batch"), _RAW, "gain"),
    _over_floor("/state", "state"),
    _over_floor("/livez", "livez"),
    Row("floor", "ASGI floor", Side("floor", "event raw"), Side("asgi", "event raw")),
    Row("/event raw, 2 workers", "1 worker", Side("two workers", "event raw"), _RAW),
    _without("auth", "open"),
    _without("limiter", "unlimited"),
    _without("metrics", "unmetered"),
    _without("limiter and metrics", "bare"),
    Row("/event raw, request log", "no request log", Side("verbose", "event raw"), _RAW),
    Row("/event JSON against FastAPI", "FastAPI", _JSON, Side("plain", "event JSON"), "gain"),
    Row(
        "/event JSON against Chroma", "Chroma add", Side("product", "event JSON"), Side("chroma", "chroma add"), "gain"
    ),
    Row("/recall", "brute force", _RECALL, Side("brute", "recall"), "gain"),
    Row("/recall JSON against FastAPI", "FastAPI", _RECALL_JSON, Side("plain", "recall JSON"), "gain"),
    Row("/recall JSON against Chroma", "Chroma query", _RECALL_JSON, Side("chroma recall", "chroma query"), "gain"),
    Row("/recall, identical vectors", "brute force", Side("identical", "recall"), Side("brute identical", "recall")),
)


def chosen(patterns: Iterable[str]) -> list[Row]:
    """Return the rows that match any pattern; all rows without a pattern.

    A pattern is a row's name, or a part of the names of several, in which * stands for anything.
    """
    wanted = list(patterns)
    return [row for row in ROWS if not wanted or any(_named(row.name, word) for word in wanted)]


def _named(name: str, word: str) -> bool:
    return name == word if any(row.name == word for row in ROWS) else fnmatch(name, f"*{word}*")

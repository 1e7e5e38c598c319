"""The rules of deploy/ as data: alerts, recordings, and the metrics that an expression needs.

A parser of PromQL finds the selectors, so that names in strings, labels of `by` and functions do not count as metrics.
A selector's label matchers are kept, because a metric without the label is as useless as none.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import promql_parser
import yaml

from testing.live_server import ROOT

PROMETHEUS: Final = ROOT / "deploy/prometheus"
RULE_FILES: Final = sorted((PROMETHEUS / "rules").glob("*.yml"))
TEST_FILES: Final = sorted((PROMETHEUS / "tests").glob("*.yml"))
# Prometheus makes these itself: of each scrape, and of the state of alerts.
OF_PROMETHEUS: Final = {"up", "ALERTS"}


class Matcher(NamedTuple):
    """What a selector asks of one label. `sign` is one of = != =~ !~."""

    label: str
    sign: str
    value: str


class Selector(NamedTuple):
    """A metric's name, and what is asked of its labels."""

    name: str
    matchers: tuple[Matcher, ...]


_SIGNS: Final = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}


def rules() -> Iterator[dict[str, Any]]:
    """Yield every rule of every file."""
    for path in RULE_FILES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


@cache
def alerts() -> dict[str, dict[str, Any]]:
    """Return the alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


@cache
def recordings() -> dict[str, str]:
    """Return the expressions of recordings by the name that they record."""
    return {rule["record"]: str(rule["expr"]) for rule in rules() if "record" in rule}


@cache
def selectors(expression: str) -> tuple[Selector, ...]:
    """Return every selector of an expression, in order. Raises ValueError for what is not PromQL."""
    found: list[Selector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = tuple(
                Matcher(one.name, _SIGNS[str(one.op).rpartition(".")[2]], one.value) for one in node.matchers.matchers
            )
            assert node.name is not None, f"a selector without a name in {expression}"
            found.append(Selector(node.name, matchers))

    promql_parser.walk(promql_parser.parse(expression), visit)
    return tuple(found)


def measured(expression: str) -> set[str]:
    """Return the names of the metrics that an expression comes down to, through every recording."""
    recorded, names = recordings(), set[str]()
    for selector in selectors(expression):
        names |= measured(recorded[selector.name]) if selector.name in recorded else {selector.name}
    return names

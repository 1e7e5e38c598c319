"""The rules in a real Prometheus that scrapes a real server: every name that they use exists.

promtool checks the syntax; it does not know that a metric was renamed, and an alert on a missing name stays silent. So
every selector of every rule is compared with the server's metrics: the name, its labels, and known label values.
"""

import re
from collections.abc import Iterator

import pytest

from app.telemetry.series import WATCHED
from testing.eventually import eventually
from tests.deploy.rulebook import OF_PROMETHEUS, Selector, alerts, recordings, selectors
from tests.deploy.watched import PROBES, Watched
from tests.programs import needs

pytestmark = needs("promtool", "prometheus")

EXPRESSIONS = {**recordings(), **{name: str(rule["expr"]) for name, rule in alerts().items()}}
# The labels that Prometheus gives every series of a target; in Kubernetes, `namespace` too.
OF_TARGET = {"job", "instance", "namespace"}


def selected() -> Iterator[tuple[str, Selector]]:
    """Yield every selector of every rule that asks the server for something, with the rule's name."""
    for name, expression in EXPRESSIONS.items():
        for selector in selectors(expression):
            if selector.name not in OF_PROMETHEUS | recordings().keys():
                yield name, selector


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    """All rules are loaded, and Prometheus reports no error."""
    groups = watched.prometheus.asked("rules")["groups"]

    health = {rule["name"]: (rule["health"], rule.get("lastError", "")) for group in groups for rule in group["rules"]}
    assert dict.fromkeys(EXPRESSIONS, ("ok", "")) == health


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_metric_that_a_rule_reads_is_in_the_scrape(watched: Watched, name: str) -> None:
    """The server exports it under this name."""
    missing = [one.name for rule, one in selected() if rule == name and not watched.prometheus.series(one.name)]

    assert missing == []


def test_every_label_of_a_rule_exists(watched: Watched) -> None:
    """A matcher on a missing label never matches, or always."""
    for name, selector in selected():
        series = [one["metric"] for one in watched.prometheus.series(selector.name)]
        for matcher in selector.matchers:
            if matcher.label not in OF_TARGET:
                assert all(matcher.label in labels for labels in series), (name, matcher)


def test_every_label_value_of_a_rule_exists(watched: Watched) -> None:
    """Buckets, reasons, kinds and the codes of rules are exported from the start."""
    codes: set[str] = set()
    for name, selector in selected():
        series = [one["metric"] for one in watched.prometheus.series(selector.name)]
        for label, sign, asked in selector.matchers:
            if label == "code":
                codes |= set(asked.split("|"))
                assert codes <= {labels["code"] for labels in series}, name
            elif sign == "=":
                assert asked in {labels[label] for labels in series}, (name, label)
    assert codes == set(WATCHED)


def test_the_error_budget_excludes_only_probes_and_scrapes(watched: Watched) -> None:
    """Availability is measured by the requests of callers."""
    patterns = {
        matcher.value
        for _, selector in selected()
        for matcher in selector.matchers
        if matcher.label == "route" and matcher.sign == "!~"
    }
    routes = {one["metric"]["route"] for one in watched.prometheus.series("mlsdm_requests_total")}

    [pattern] = patterns
    left_out = {route for route in routes if re.fullmatch(pattern, route)}
    assert left_out == {*PROBES, "/health/metrics"}
    assert {"/event", "/recall", "/governor/stop"} <= routes - left_out


@pytest.mark.parametrize("name", recordings())
def test_every_recording_records_something(watched: Watched, name: str) -> None:
    """After every kind of request no recording is empty; the hour before is evaluated as in five minutes."""
    ahead_seconds = 300 if "offset" in recordings()[name] else 0

    assert eventually(lambda: watched.prometheus.series(recordings()[name], ahead_seconds))


def test_a_healthy_service_has_no_critical_alert(watched: Watched) -> None:
    """None is pending, except the one for failed requests: one of a hundred was refused.

    On a busy machine a scrape may take longer than its second, so that one is pending until the next scrape.
    """

    def is_calm() -> bool:
        active = watched.prometheus.asked("alerts")["alerts"]
        critical = {alert["labels"]["alertname"] for alert in active if alert["labels"]["severity"] == "critical"}
        return critical <= {"AvailabilityBurnsFast", "LatencyBurnsFast"}

    eventually(is_calm)


def test_an_operators_stop_makes_its_alert_pending(watched: Watched) -> None:
    """Nothing between the order and the pending alert is simulated."""
    eventually(lambda: watched.order("stop") == 200)
    try:
        pending = 'ALERTS{alertname="AdmissionsStopped", alertstate="pending"}'
        [alert] = eventually(lambda: watched.prometheus.series(pending))
    finally:
        eventually(lambda: watched.order("resume") == 200)

    assert alert["metric"]["instance"] == f"127.0.0.1:{watched.server.port}"
    eventually(lambda: not watched.prometheus.series(pending))

"""The Prometheus rules, tested by promtool and for completeness.

deploy/prometheus/tests has promtool's tests of when each alert fires and when it stays silent. This file runs them,
and ensures that every alert has both. test_prometheus.py ensures that the metrics exist.
"""

import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.eventually import HANG_SECONDS
from testing.live_server import ROOT
from tests.deploy.rulebook import (
    PROMETHEUS,
    RULE_FILES,
    TEST_FILES,
    Matcher,
    Selector,
    alerts,
    measured,
    recordings,
    rules,
    selectors,
)
from tests.programs import needs

pytestmark = needs("promtool")

RUNBOOK = "https://github.com/neuron7x/mlsdm/blob/main/docs/runbook.md"


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        ["promtool", *map(str, words)], env={**os.environ, "GOGC": "400"},  # PERF: a seventh less CPU
        capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
    )  # fmt: skip


def cases() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return every case of an alert with the test that it stands in."""
    tests = [test for path in TEST_FILES for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]]
    return [(test, case) for test in tests for case in test.get("alert_rule_test", [])]


def names_of(test: dict[str, Any]) -> set[str]:
    """Return the names of the series that a test puts in."""
    return {series["series"].partition("{")[0] for series in test["input_series"]}


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.stem)
def test_promtool_accepts_the_rules(path: Path) -> None:
    """The syntax is valid, and no rule is duplicated."""
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", path)

    assert (checked.returncode, checked.stderr) == (0, "")


def test_promtool_accepts_the_configuration() -> None:
    """It loads all rule files by relative paths."""
    checked = promtool("check", "config", PROMETHEUS / "prometheus.yml")

    assert checked.returncode == 0, checked.stderr
    assert f"{len(RULE_FILES)} rule files found" in checked.stdout


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_promtools_rule_tests_pass(path: Path) -> None:
    """`promtool test rules` compares every label and annotation."""
    tested = promtool("test", "rules", path)

    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_test_that_fires_it_and_one_that_does_not() -> None:
    """A silent test counts when it has all series of the alert: without them it would be silent anyway."""
    fired, silent = set(), set()
    of_alerts = {name: measured(rule["expr"]) for name, rule in alerts().items()}
    for test, case in cases():
        name = case["alertname"]
        if case["exp_alerts"]:
            fired.add(name)
        elif of_alerts[name] <= names_of(test):
            silent.add(name)

    assert (set(of_alerts), set(of_alerts)) == (fired, silent)


# Each takes something away that an alert is useless without. (alert, what stands there, what is put there instead)
WEAKENED = [
    ("HighRejectionRate", "- instance:mlsdm_events_rejected:ratio_rate1h_offset5m > 0.2", "> 0.2"),
    ("HighRejectionRate", "and rate(total_events_processed[5m]) >= 30 / 300", ""),
    ("HighRejectionRate", "instance:mlsdm_events_rejected:ratio_rate5m > 0.5\n", "vector(1)\n"),
    ("HighRejectionRate", "for: 5m", "for: 0m"),
    ("MetricsAbsent", "== 1 unless", "unless"),
    ("AvailabilityBurnsFast", "and job:mlsdm_requests_failed:increase6h > 2.5", ""),
    ("AvailabilityBurnsFast", "and job:mlsdm_requests_failed:ratio_rate5m > 14.4 * 0.001", ""),
    ("AvailabilityBurnsFast", "14.4", "1"),
    ("LatencyBurnsFast", "6 * 0.01", "1 * 0.01"),
    ("MoralThresholdAtBound", "and rate(total_events_processed[15m]) > 0", ""),
    ("MoralThresholdAtBound", "and mlsdm_threshold_min < mlsdm_threshold_max", ""),
    ("ScrubStalled", "and mlsdm_memories > 0", ""),
    ("WorkersMissing", "< mlsdm_workers_configured", "< quantile_over_time(0.9, mlsdm_workers[1h])"),
    ("WorkersMissing", "< mlsdm_workers_configured", "!= mlsdm_workers_configured"),
    ("WorkersMissing", "for: 5m", "for: 0m"),
    ("HighCpuUsage", "avg_over_time(cpu_usage_percent[15m])", "cpu_usage_percent"),
    ("HighCpuUsage", "avg_over_time(cpu_usage_percent[15m])", "min_over_time(cpu_usage_percent[15m])"),
    ("HighCpuUsage", "and cpu_usage_percent offset 15m", ""),
    ("InstanceNotReady", "avg_over_time(mlsdm_ready[5m])", "mlsdm_ready"),
    ("InstanceNotReady", "< 0.5", "< 1"),
    ("InstanceNotReady", "for: 2m", "for: 0m"),
    ("NoInstanceReady", "sum by (job, namespace)", "min by (job, namespace)"),
    ("NoInstanceReady", "for: 2m", "for: 0m"),
    ("InstancesMissing", "quantile_over_time(0.1,", "quantile_over_time(0.5,"),
    ("InstancesMissing", " offset 1h", ""),
    ("InstancesMissing", "for: 5m", "for: 0m"),
    ("EmergenciesRecur", "> 2.5", "> 2"),
    ("WorkerChurn", "6 + 2 * mlsdm_workers", "2"),
    ("ControllerDown", "for: 1m", "for: 0m"),
    ("ChildDown", "for: 5m", "for: 0m"),
    ("ChildDown", '{child!="controller"}', ""),
    ("ChildRestarting", '{child!="controller"}', ""),
    ("ChildRestarting", "> 3", "> 1"),
    ("RateLimitedClients", "and sum by", "or sum by"),
    ("InternalErrors", "[15m]) > 0", "[15m]) >= 0"),
    ("InternalErrors", "increase(", "max_over_time("),
]


@pytest.mark.parametrize(("alert", "there", "instead"), WEAKENED)
def test_the_tests_notice_when_an_alert_is_weakened(alert: str, there: str, instead: str, tmp_path: Path) -> None:
    """The guards against false alarms are tested as well."""
    for folder in ("rules", "tests"):
        shutil.copytree(PROMETHEUS / folder, tmp_path / folder)
    [path] = [path for path in (tmp_path / "rules").iterdir() if f"alert: {alert}\n" in path.read_text()]
    before, named, after = path.read_text().partition(f"alert: {alert}\n")
    rule, next_one, rest = after.partition("- alert:")
    assert there in rule
    path.write_text(before + named + rule.replace(there, instead) + next_one + rest)
    assert promtool("check", "rules", path).returncode == 0
    keep_rule(path, alert)

    tests = tmp_path / "tests" / path.name
    keep_cases(tests, lambda _test, case: case["alertname"] == alert)

    tested = promtool("test", "rules", tests)

    assert tested.returncode != 0
    assert f"alertname: {alert}," in tested.stdout + tested.stderr


def keep_rule(path: Path, alert: str) -> None:
    """Keep of a file of rules only an alert and the recordings that its expression comes down to.

    PERF: the tests of weakened rules took 26 s of CPU with all rules of the file, this way 10 s.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    of_file = [rule for group in document["groups"] for rule in group["rules"]]
    [weakened] = [rule for rule in of_file if rule.get("alert") == alert]
    recorded = {rule["record"]: rule["expr"] for rule in of_file if "record" in rule}
    needed, open_expressions = set[str](), [weakened["expr"]]
    while open_expressions:
        names = {selector.name for selector in selectors(open_expressions.pop())} & recorded.keys() - needed
        needed |= names
        open_expressions += [recorded[name] for name in names]
    for group in document["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule is weakened or rule.get("record") in needed]
    document["groups"] = [group for group in document["groups"] if group["rules"]]
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


def keep_cases(path: Path, proves: Callable[[dict[str, Any], dict[str, Any]], bool]) -> None:
    """Keep of a file of tests only the cases of alerts that `proves` chooses, by their test and themselves.

    PERF: running all of them for each weakened rule took 103 s of CPU, this way 32 s.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for test in document["tests"]:
        test["alert_rule_test"] = [case for case in test.get("alert_rule_test", []) if proves(test, case)]
        test.pop("promql_expr_test", None)
    document["tests"] = [test for test in document["tests"] if test["alert_rule_test"]]
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


@pytest.mark.parametrize(
    ("there", "instead", "series"),
    [
        ("/health.*|/livez|/readyz|/metrics", "/metrics", 'route="/health/readiness"'),
        ('status!~"4..", ', "", 'status="429"'),
    ],
)
def test_probes_and_4xx_are_excluded_from_the_budget(there: str, instead: str, series: str, tmp_path: Path) -> None:
    """An unready instance is no failure, and 4xx would dilute the failures."""
    for folder in ("rules", "tests"):
        shutil.copytree(PROMETHEUS / folder, tmp_path / folder)
    path = tmp_path / "rules/slo.yml"
    assert there in path.read_text()
    path.write_text(path.read_text().replace(there, instead))
    keep_cases(tmp_path / "tests/slo.yml", lambda test, _case: series in str(test["input_series"]))

    assert promtool("test", "rules", tmp_path / "tests/slo.yml").returncode != 0


def test_the_runbooks_alerts_have_its_names_severities_and_durations() -> None:
    """An operator's silences and routes depend on them."""
    there = {name: (rule["labels"]["severity"], rule["for"]) for name, rule in alerts().items() if "for" in rule}

    expected = {
        "HighRejectionRate": ("warning", "5m"),
        "HighLatency": ("warning", "5m"),
        "HighMemoryUsage": ("critical", "5m"),
        "ServiceDown": ("critical", "1m"),
    }
    assert {name: there[name] for name in expected} == expected


def test_the_runbooks_expressions_are_in_force_as_written() -> None:
    """Three are alerts; the fourth, which would always fire at the governor's set point, is a recording."""
    expressions = {name: rule["expr"] for name, rule in alerts().items()}

    assert (
        expressions["HighLatency"] == "histogram_quantile(0.95, rate(process_event_latency_seconds_bucket[5m])) > 0.1"
    )
    assert expressions["HighMemoryUsage"] == "memory_usage_bytes > 1.8e9"
    assert expressions["ServiceDown"] == 'up{job="mlsdm-api"} == 0'
    ratio = "rate(rejected_events_count[5m]) / rate(total_events_processed[5m])"
    assert ratio == recordings()["instance:mlsdm_events_rejected:ratio_rate5m"]
    assert recordings()["instance:moral_filter_threshold:delta1h"] == "delta(moral_filter_threshold[1h])"


def test_every_alert_has_summary_remedy_and_link() -> None:
    """It has three annotations in sentences, and a severity that Alertmanager routes."""
    for name, rule in alerts().items():
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}, name
        assert notes["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert not notes["summary"].endswith("."), name
        assert notes["description"].endswith("."), name


def test_the_runbook_has_a_section_for_every_alert() -> None:
    """The link's anchor is the heading's."""
    lines = (ROOT / "docs/runbook.md").read_text(encoding="utf-8").splitlines()
    headings = {line.lstrip("#").strip() for line in lines if line.startswith("#")}

    assert set(alerts()) - headings == set()


def test_names_of_alerts_and_recordings_are_unique() -> None:
    """A second one would hide the first."""
    count: dict[str, int] = defaultdict(int)
    for rule in rules():
        count[rule.get("alert") or rule["record"]] += 1

    assert dict.fromkeys(count, 1) == count


def test_selectors_are_found_by_parsing() -> None:
    """Names in strings, labels of `by` and functions are no metrics; recordings resolve to their metrics."""
    expression = 'sum by (job) (rate(a_total{code="b", route!~"c|d"}[5m] offset 1m)) > on (job) max(e) or absent(f)'

    found = selectors(expression)

    assert [selector.name for selector in found] == ["a_total", "e", "f"]
    assert Selector("a_total", (Matcher("code", "=", "b"), Matcher("route", "!~", "c|d"))) == found[0]
    assert measured(alerts()["HighRejectionRate"]["expr"]) == {"rejected_events_count", "total_events_processed"}

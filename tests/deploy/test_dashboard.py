"""The Grafana dashboard: every query returns data, and every panel describes its remedy.

Grafana is not run. Its structure (identifiers, positions, data sources, variables, references of provisioning) is
checked in the file. Each query runs in a real Prometheus that scrapes a real server, with the variables filled in as
by Grafana.
"""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.eventually import eventually
from testing.live_server import ROOT
from tests.deploy.rulebook import OF_PROMETHEUS, recordings, selectors
from tests.deploy.watched import Watched
from tests.programs import needs

GRAFANA = ROOT / "deploy/grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards/mlsdm.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
WIDTH = 24  # columns of Grafana's grid
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}
# An hour before exists after five minutes, restarts and alerts when there were any: no data is what they should show.
QUIET = ("ratio_rate1h_offset5m", "changes(mlsdm_process_start_time_seconds", "ALERTS{job=")


def filled(expression: str) -> str:
    """Return an expression with its variables filled in, those for every instance."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def queries() -> Iterator[tuple[str, str]]:
    """Yield every query with the title of what shows it: panels and annotations."""
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((note["name"], note["expr"]) for note in DASHBOARD["annotations"]["list"])


def provisioned(folder: str) -> Any:
    """Return the only provisioning file of a kind."""
    [path] = (GRAFANA / "provisioning" / folder).iterdir()
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@needs("prometheus")
@pytest.mark.parametrize(("title", "expression"), list(queries()), ids=lambda part: re.sub(r"\W+", "-", part)[:60])
def test_every_query_returns_data(watched: Watched, title: str, expression: str) -> None:
    """Each name is a metric of the scrape or a recording, and the expression has a result."""
    asked = filled(expression)
    known = OF_PROMETHEUS | recordings().keys()
    missing = {
        one.name for one in selectors(asked) if one.name not in known and not watched.prometheus.series(one.name)
    }

    assert missing == set(), title
    if any(part in expression for part in QUIET):
        watched.prometheus.series(asked)
    else:
        assert eventually(lambda: watched.prometheus.series(asked)), title


@needs("prometheus")
def test_the_variable_offers_every_instance(watched: Watched) -> None:
    """Grafana asks for the values of a label; here it is one instance."""
    [variable] = [one for one in DASHBOARD["templating"]["list"] if one["name"] == "instance"]
    [(metric, label)] = re.findall(r"^label_values\((\w+), (\w+)\)$", variable["definition"])

    values = {one["metric"][label] for one in watched.prometheus.series(metric)}
    assert values == {f"127.0.0.1:{watched.server.port}"}
    assert variable["definition"] == variable["query"]["query"]


def test_every_panel_describes_its_remedy() -> None:
    """A description has more than one sentence: what the panel shows, and what to do."""
    for panel in PANELS:
        assert panel["description"].count(". ") + panel["description"].count(": ") >= 1, panel["title"]
        assert panel["description"].endswith("."), panel["title"]


def test_panels_are_valid_for_grafana() -> None:
    """Panels have one of two types, unique ids and titles; each target has a letter, a legend and the data source."""
    assert {panel["type"] for panel in PANELS} == {"stat", "timeseries"}
    for of_one in ("id", "title"):
        values = [panel[of_one] for panel in DASHBOARD["panels"]]
        assert len(set(values)) == len(values)
    for panel in PANELS:
        source = {"type": "prometheus", "uid": "${datasource}"}
        letters = [chr(ord("A") + number) for number in range(len(panel["targets"]))]
        assert letters == [target["refId"] for target in panel["targets"]]
        assert all(target["legendFormat"] for target in panel["targets"])
        assert [source] * (1 + len(letters)) == [panel["datasource"], *(one["datasource"] for one in panel["targets"])]
        assert panel["fieldConfig"]["defaults"]["unit"]
        steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert steps[0] is None
        assert sorted(steps[1:]) == steps[1:]


def test_panels_fill_the_grid_and_do_not_overlap() -> None:
    """Grafana would push an overlapping panel out of sight."""
    places = [(one["title"], one["gridPos"]) for one in DASHBOARD["panels"]]

    assert all(0 <= place["x"] and place["x"] + place["w"] <= WIDTH for _, place in places)
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one, other)


def test_queries_per_instance_use_the_variable() -> None:
    """A panel without it would show all instances, not the selected one alone."""
    for title, expression in queries():
        for selector in selectors(filled(expression)):
            of_service = selector.name.startswith("job:") or selector.name in OF_PROMETHEUS
            instances = [matcher.value for matcher in selector.matchers if matcher.label == "instance"]
            assert ([] if of_service else [".*"]) == instances, title


def test_variables_are_the_data_source_and_the_instance() -> None:
    """Every variable that a query uses is one of them, or Grafana's own."""
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))

    assert {one["name"] for one in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}
    assert used == {"datasource", "instance", "__rate_interval", "__all"}


def test_provisioning_names_existing_files() -> None:
    """It has a default data source of the dashboard's type, and a folder for the files."""
    [source] = provisioned("datasources")["datasources"]
    [provider] = provisioned("dashboards")["providers"]

    assert (source["type"], source["isDefault"], source["url"]) == ("prometheus", True, "http://prometheus:9090")
    assert DASHBOARD["templating"]["list"][0]["query"] == "prometheus"
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")
    assert [Path(path.name) for path in (GRAFANA / "dashboards").iterdir()] == [Path("mlsdm.json")]


def test_grafana_knows_the_scrape_interval() -> None:
    """A rate over less than two intervals would be empty."""
    [source] = provisioned("datasources")["datasources"]
    configuration = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))

    assert configuration["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]

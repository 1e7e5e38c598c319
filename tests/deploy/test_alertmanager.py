"""Alertmanager's configuration: routing, and inhibition by worse alerts.

amtool tests the routes. An inhibition rule is only a list of names, so every name is compared with the existing
alerts.
"""

import re
import subprocess

import pytest
import yaml

from testing.live_server import ROOT
from tests.deploy.rulebook import alerts
from tests.programs import needs

CONFIGURATION = ROOT / "deploy/alertmanager/alertmanager.yml"


@needs("amtool")
def test_amtool_accepts_the_configuration() -> None:
    """Syntax, receivers and matchers are valid."""
    checked = subprocess.run(["amtool", "check-config", CONFIGURATION], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs("amtool")
@pytest.mark.parametrize(("severity", "receiver"), [("critical", "page"), ("warning", "ticket")])
def test_the_severity_selects_the_receiver(severity: str, receiver: str) -> None:
    """Critical alerts page somebody; the others wait for the morning."""
    words = ["amtool", "config", "routes", "test", f"--config.file={CONFIGURATION}", f"severity={severity}"]

    routed = subprocess.run(words, capture_output=True, text=True, check=True)

    assert receiver == routed.stdout.strip()


def test_inhibitions_name_alerts_that_exist() -> None:
    """An alert that was renamed would neither inhibit nor be inhibited."""
    rules = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))["inhibit_rules"]
    matchers = [matcher for rule in rules for side in ("source_matchers", "target_matchers") for matcher in rule[side]]
    values = [re.sub(r'^alertname (=~|!=|=) "?|"$', "", one) for one in matchers if one.startswith("alertname")]

    assert len(values) == 2 * len(rules)
    assert {name for value in values for name in value.split("|")} - alerts().keys() == set()

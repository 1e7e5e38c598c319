"""Alertmanager's configuration: who hears of what, and what is silent while a worse alert says it all.

Routes are asked of amtool. Inhibitions are only names until something compares them with the alerts that exist: here
every name that a rule of inhibition knows is that of an alert.
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
def test_amtool_accepts_it() -> None:
    """Syntax, receivers and matchers."""
    checked = subprocess.run(["amtool", "check-config", CONFIGURATION], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs("amtool")
@pytest.mark.parametrize(("severity", "receiver"), [("critical", "page"), ("warning", "ticket")])
def test_who_hears_of_an_alert_follows_from_its_severity(severity: str, receiver: str) -> None:
    """Critical ones wake somebody, the rest waits for the morning."""
    words = ["amtool", "config", "routes", "test", f"--config.file={CONFIGURATION}", f"severity={severity}"]

    routed = subprocess.run(words, capture_output=True, text=True, check=True)

    assert receiver == routed.stdout.strip()


def test_inhibitions_name_alerts_that_exist() -> None:
    """One that has been renamed would no longer be held back, nor hold back."""
    rules = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))["inhibit_rules"]
    matchers = [matcher for rule in rules for side in ("source_matchers", "target_matchers") for matcher in rule[side]]
    values = [re.sub(r'^alertname (=~|!=|=) "?|"$', "", one) for one in matchers if one.startswith("alertname")]

    assert len(values) == 2 * len(rules)
    assert {name for value in values for name in value.split("|")} - alerts().keys() == set()

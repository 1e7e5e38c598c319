"""The environment of a runbook: a real server in trouble, a real Prometheus that scrapes it, and a shell.

Commands in the shell are real (curl, jq, grep, python, mlsdm), with these exceptions: `api` and `localhost:8000` lead
to the server; `kubectl` and `docker` are cluster.py and engine.py; `watch` runs its command once.

The server has a history: accepted and rejected events, a client over its rate limit, a refused configuration, debug
lines, a saved configuration. So a grep that finds nothing is an error of the runbook or of the server. With `strict`,
for our own runbooks, the cluster counts as large and busy: the searched log lines are not among the last ones, and
misleading commands fail (cluster.py).
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import yaml

from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, LiveServer
from tests.app.calm_machine import APPLICATION, calm
from tests.runbook.book import Line, without_placeholders
from tests.runbook.cluster import BIN, CONFIG, IMAGES, LOG, NOTES, PID, POD, SELECTED_LINES, STRICT, VARIABLES
from tests.scraped import scraped

API_KEY: Final = "a-key-for-the-runbook"
ADMIN_KEY: Final = "ops." + "k" * 43
PLACEHOLDERS: Final = {"pod-name": POD, "secret": API_KEY}
DATA_SECONDS_MAX = 120.0  # until an expression has data: it needs two scrapes; a busy machine is no fault of a runbook
WATCH: Final = """#!/bin/sh
while case "$1" in -n) shift 2;; -*) shift;; *) false;; esac do :; done
exec sh -c "$*"
"""


class Outcome(NamedTuple):
    """What came of a line: whether it held, how that was found out, and what there was to see."""

    held: bool
    how: str
    seen: str


def check_out(folder: Path) -> None:
    """Make an empty folder look like a checkout. What commands may edit is a copy, everything else a link."""
    for entry in ROOT.iterdir():
        if entry.name == "deploy":
            shutil.copytree(entry, folder / entry.name)
        elif not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)


class Stage:
    """A server, a Prometheus and a shell."""

    def __init__(self, directory: Path, strict: bool = False) -> None:
        self.directory = directory
        self.strict = strict
        self.configuration = directory / "config.yaml"
        shutil.copy(ROOT / "config/production-ready.yaml", self.configuration)
        environ = {
            "API_KEY": API_KEY,
            "MLSDM_ENV": "production",
            "HOST": "127.0.0.1",
            "LOG_LEVEL": "DEBUG",
            "CONFIG_PATH": str(self.configuration),
            "MLSDM_SECURITY__KEYS_PATH": str(self._keys()),
            "MLSDM_SECURITY__API_KEY_TIER": "standard",  # so that a few requests exceed its rate
        }
        self.server = LiveServer(directory, {**environ, **calm(directory)}, application=APPLICATION)
        self.environ = self._shell()

    @contextmanager
    def playing(self) -> Iterator["Stage"]:
        """Start everything, make the trouble, and end everything."""
        self.server.start()
        self.environ[PID] = str(self.server.pid)
        try:
            with scraped(self.server, self.directory) as self.prometheus:
                self._trouble()
                yield self
        finally:
            self.server.stop()

    # -- setting it up -------------------------------------------------------------------------------------------------

    def _keys(self) -> Path:
        """Write a keys file with one key, for the commands of the governor."""
        path = self.directory / "keys.yaml"
        digest = hashlib.sha256(ADMIN_KEY.encode()).hexdigest()
        path.write_text(
            yaml.safe_dump({"keys": [{"id": "ops", "digest": digest, "role": "admin", "tier": "standard"}]})
        )
        path.chmod(0o600)
        return path

    def _shell(self) -> dict[str, str]:
        """Make the folder in which commands run and the words that mean something else there; returns the variables."""
        self.folder = self.directory / "checkout"
        programs = self.directory / "bin"
        for made in (self.folder, self.folder / "backup", programs):
            made.mkdir()
        check_out(self.folder)
        self._backup()
        for name, module in (("kubectl", "cluster"), ("docker", "engine")):
            self._program(programs / name, f'#!/bin/sh\nexec {sys.executable} -m tests.runbook.{module} "$@"\n')
        self._program(programs / "watch", WATCH)
        hosts = [f'connect-to = "{name}:127.0.0.1:{self.server.port}"' for name in ("api:80", "localhost:8000")]
        (self.directory / ".curlrc").write_text("\n".join([*hosts, "fail", "silent", "show-error"]) + "\n")
        return {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "CURL_HOME": str(self.directory),
            "PYTHONPATH": str(ROOT),
            "API_KEY": API_KEY,
            "ADMIN_KEY": ADMIN_KEY,
            BIN: str(programs),
            NOTES: str(self.directory / "notes"),
            LOG: str(self.server.log_path),
            CONFIG: str(self.configuration),
            IMAGES: str(self.directory / "images"),
            **({STRICT: "1"} if self.strict else {}),
        }

    def _backup(self) -> None:
        """Leave what an operator has saved before: the ConfigMap and the Secret."""
        settings = (ROOT / "config/production-ready.yaml").read_text()
        for name, kind, held, content in (
            ("config", "ConfigMap", "mlsdm-config", {"data": {"config.yaml": settings}}),
            ("secrets", "Secret", "mlsdm-secrets", {"stringData": {"API_KEY": API_KEY}}),
        ):
            metadata = {"name": held, "namespace": "mlsdm-production"}
            saved = {"apiVersion": "v1", "kind": kind, "metadata": metadata, **content}
            (self.folder / f"backup/{name}-latest.yaml").write_text(yaml.safe_dump(saved))

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def _trouble(self) -> None:
        """Have the server live through what a runbook is for."""
        key = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/octet-stream"}
        vector = np.ones(384, "<f4").tobytes()
        for moral in ("0.95", "0.1") * 2:
            assert self.server.request("POST", "/event", vector, {**key, "Moral-Value": moral}).status == 200
        batch = np.array([0.95, 0.1] * 5).tobytes() + 10 * vector  # a burst: two of them are too many on any machine
        answer = eventually(
            lambda: (answer := self.server.request("POST", "/events", batch, key)).status != 200 and answer
        )
        assert answer.status == 429, answer.body
        assert self.server.get("/state", Authorization="Bearer of-no-key-at-all").status == 401
        good = self.configuration.read_text()
        self.configuration.write_text(good.replace("capacity: 20000", "capacity: many"))
        os.kill(self.server.pid, signal.SIGHUP)
        eventually(lambda: "configuration not reloaded" in self.server.log)
        self.configuration.write_text(good)
        os.kill(self.server.pid, signal.SIGHUP)
        eventually(lambda: self.server.log.count("Configuration loaded") == 2)
        eventually(lambda: self.prometheus.series("up == 1") and self.prometheus.series("total_events_processed > 0"))

    # -- playing -------------------------------------------------------------------------------------------------------

    def play(self, line: Line) -> Outcome:
        """Do what a line says, or look up what it names."""
        if line.language == "promql":
            return self._expression(line.text)
        if line.language == "yaml":
            return self._alerts(line.text)
        if line.language == "bash" and "=" in line.text.split(maxsplit=1)[0] and "#" in line.text:
            return self._variable(line.text)
        if line.language == "bash":
            return self._command(line.text)
        return self._named(line.text)

    def _command(self, text: str) -> Outcome:
        notes = Path(self.environ[NOTES])
        notes.write_text("")
        if self.strict and "kubectl logs" in text:
            for _ in range(2 * SELECTED_LINES):
                self.server.get("/livez")
        try:
            ended = subprocess.run(
                ["bash", "-o", "pipefail", "-c", without_placeholders(text, PLACEHOLDERS)],
                cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                check=False, timeout=HANG_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome(False, "run", f"did not end within {HANG_SECONDS:g} s")
        seen = (ended.stdout + ended.stderr).strip()
        how = "; ".join(notes.read_text().splitlines()) or "run"
        empty = "| jq" in text and ended.stdout.strip() in ("", "null")
        # 1 is a problem of the server, which this command is there to print; a busy machine has some.
        well = (0, 1) if "mlsdm stat" in text and ended.stdout.strip() else (0,)
        return Outcome(ended.returncode in well and not empty, how, seen)

    def _named(self, text: str) -> Outcome:
        """An endpoint, or the name of a metric, with what it is behind a dash."""
        name = text.strip().removeprefix("- ").split("  ")[0]
        words = name.split()
        if words[0] in ("GET", "POST"):
            key = {"Authorization": f"Bearer {API_KEY}"}
            status = self.server.request(words[0], words[1], headers=key).status
            return Outcome(status not in (404, 405), "asked", f"{status}")
        if words[0].endswith(":") or name.endswith(":"):
            return Outcome(True, "a heading", "")
        scrape = self.server.get("/health/metrics").body.decode()
        found = any(sample.startswith(words[0]) for sample in scrape.splitlines())
        return Outcome(found, "looked for in the scrape", words[0])

    @staticmethod
    def _variable(text: str) -> Outcome:
        name = text.partition("=")[0]
        return Outcome(name in VARIABLES, "looked for among the variables", name)

    def _expression(self, text: str) -> Outcome:
        try:
            result = eventually(lambda: self.prometheus.series(text), DATA_SECONDS_MAX)
        except AssertionError:
            return Outcome(False, "asked Prometheus", "no data")
        return Outcome(True, "asked Prometheus", json.dumps(result[:1]))

    def _alerts(self, text: str) -> Outcome:
        """Each alert's expression is understood, and an alert of that name is among the rules in force, as severe."""
        in_force = {
            rule["name"]: rule["labels"]["severity"]
            for group in self.prometheus.asked("rules")["groups"]
            for rule in group["rules"]
            if rule["type"] == "alerting"
        }
        alerts = [one for one in yaml.safe_load(text) if "alert" in one]
        for alert in alerts:
            self.prometheus.series(alert["expr"])
        severities = {alert["alert"]: alert.get("severity") or alert["labels"]["severity"] for alert in alerts}
        missing = {name: severity for name, severity in severities.items() if in_force.get(name) != severity}
        return Outcome(not missing, "asked Prometheus", f"missing: {missing}" if missing else ", ".join(severities))

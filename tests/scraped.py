"""A real Prometheus that scrapes a server, with the configuration of deploy/ except for target and intervals.

Rules, job and path are those in force. The target is the server under test, and every interval is a second, so that
tests need not wait for minutes. There is no Alertmanager: the state of alerts is read from Prometheus. Its data is in
a directory of the test and is removed with the block.
"""

import json
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from testing.eventually import HANG_SECONDS, eventually
from testing.live_server import ROOT, LiveServer, free_port

CONFIGURATION: Final = ROOT / "deploy/prometheus/prometheus.yml"


class QueryError(Exception):
    """What Prometheus has against an expression, in its own words."""


class Prometheus:
    """One that runs, at `port` of 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.port = port

    def asked(self, path: str, **parameters: str) -> Any:
        """Return `data` of an answer of its API. Raises QueryError for what it refuses, OSError without an answer."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=HANG_SECONDS) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as refused:
            with refused:
                raise QueryError(json.load(refused)["error"]) from None

    def series(self, expression: str, ahead_seconds: float = 0.0) -> list[Any]:
        """Return what an expression is now, or will be if nothing more comes in: labels and value of each series."""
        when = {"time": str(time.time() + ahead_seconds)} if ahead_seconds else {}
        return list(self.asked("query", query=expression, **when)["result"])

    def is_ready(self) -> bool:
        """Return whether it answers and its rules have been evaluated once."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=HANG_SECONDS):
                pass
        except OSError:  # that it is not ready yet is an HTTPError, which is one
            return False
        groups = self.asked("rules")["groups"]
        return all(rule["health"] != "unknown" for group in groups for rule in group["rules"])


@contextmanager
def scraped(server: LiveServer, directory: Path) -> Iterator[Prometheus]:
    """Run one that scrapes `server` every second; `directory` is for its files."""
    configuration = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    del configuration["alerting"]
    configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(path) for path in _hurried(configuration["rule_files"], directory)]
    [ours] = [job for job in configuration["scrape_configs"] if job["job_name"] == "mlsdm-api"]
    ours["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    configuration["scrape_configs"] = [ours]
    path, port = directory / "prometheus.yml", free_port()
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    with (directory / "prometheus.log").open("wb") as log, subprocess.Popen(
        [
            "prometheus", f"--config.file={path}", f"--storage.tsdb.path={directory}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            prometheus = Prometheus(port)
            eventually(prometheus.is_ready)
            yield prometheus
        finally:
            process.send_signal(signal.SIGTERM)


def _hurried(patterns: list[str], directory: Path) -> Iterator[Path]:
    """Yield copies of the rule files in which no group has an interval of its own."""
    for path in sorted(path for pattern in patterns for path in CONFIGURATION.parent.glob(pattern)):
        rules = yaml.safe_load(path.read_text(encoding="utf-8"))
        for group in rules["groups"]:
            group.pop("interval", None)
        copy = directory / f"rules-{path.name}"
        copy.write_text(yaml.safe_dump(rules), encoding="utf-8")
        yield copy

"""Logging setup: one line per event, whatever its text, as JSON or text; and its configuration in Gunicorn."""

import json
import logging
import logging.config
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.telemetry.logging_setup import JsonFormatter, TextFormatter, logging_config
from testing import keys
from testing.bodies import EXAMPLE
from testing.eventually import eventually
from testing.live_server import LiveServer
from tests.conftest import Serve
from tests.programs import needs

AWKWARD = 'a "quoted"\n{"level": "forged"}\r\n\x00\x1b[31m \x7f\x85\x9b31m\u2028\u202e ü ✓'


def record(message: str, *arguments: Any, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    """Return a log record."""
    made = logging.LogRecord("mlsdm.test", level, __file__, 1, message, arguments, None)
    vars(made).update(extra)
    return made


def test_a_json_line_has_the_documented_members() -> None:
    """Time in UTC, upper-case level, the message as `event`, and the members of `extra`."""
    line = json.loads(JsonFormatter().format(record("slot %d is torn", 7, level=logging.WARNING, memory_id=7)))

    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo == UTC
    assert line.pop("pid") > 0
    assert line == {"level": "WARNING", "logger": "mlsdm.test", "event": "slot 7 is torn", "memory_id": 7}


def test_a_json_line_is_one_line_whatever_it_says() -> None:
    """A client cannot write a line of its own choice into the log."""
    line = JsonFormatter().format(record("path %s", AWKWARD, also=AWKWARD))

    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["event"] == "path " + AWKWARD
    assert json.loads(line)["also"] == AWKWARD


def test_a_json_line_takes_what_json_lacks() -> None:
    """An object without a JSON form is written as text, without an exception."""

    assert json.loads(JsonFormatter().format(record("x", peer=object)))["peer"] == str(object)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_an_exception_comes_with_its_traceback(formatter: logging.Formatter) -> None:
    """In a member of its own, or below the line."""
    try:
        raise ValueError("no good")
    except ValueError:
        made = record("failed", level=logging.ERROR)
        made.exc_info = sys.exc_info()

    text = formatter.format(made)

    if isinstance(formatter, JsonFormatter):
        assert "\n" not in text
        text = json.loads(text)["exception"]
    assert "Traceback (most recent call last)" in text
    assert "ValueError: no good" in text


def test_a_text_line_is_for_people() -> None:
    """Level, logger, process and message; a carriage return cannot overwrite what stands before it."""
    made = record("hello %s", "wor\rld")

    line = TextFormatter().format(made)

    assert line.endswith(f"INFO     mlsdm.test[{made.process}] hello wor\\rld")


def test_a_text_line_has_the_members_of_extra() -> None:
    """As name=value behind it, on the same line."""
    line = TextFormatter().format(record("Request", status=200, request_id="r\n1"))

    assert line.endswith("] Request status=200 request_id=r\n    1")


@pytest.fixture
def restored() -> Iterator[None]:
    """Put logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("style", ["json", "text"])
def test_the_configuration_sends_every_logger_to_stderr(capfd: Any, style: Any) -> None:
    """Gunicorn's own loggers as well, at the level that was asked for."""
    logging.config.dictConfig(logging_config("WARNING", style))

    for name in ("mlsdm.worker", "gunicorn.error", "anything"):
        logging.getLogger(name).info("quiet")
        logging.getLogger(name).warning("loud")

    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 3
    assert all(("loud" in line) and (line.startswith("{") == (style == "json")) for line in err.splitlines())


def test_a_server_logs_json_when_told_to(serve: Callable[..., LiveServer]) -> None:
    """Every line of a start, whoever writes it, is one JSON object with a level."""
    server = serve(MLSDM_OBSERVABILITY__LOGGING__FORMAT="json", LOG_LEVEL="DEBUG")
    server.get("/nope%0A%7B%7D")

    lines = [json.loads(line) for line in server.log.splitlines()]

    assert {line["level"] for line in lines} <= {"DEBUG", "INFO", "WARNING", "ERROR"}
    assert {"mlsdm.worker"} <= {line["logger"] for line in lines}
    warnings = [line["event"] for line in lines if line["level"] in ("WARNING", "ERROR")]
    where = f"127.0.0.1:{server.port}"
    assert warnings == [
        f"no API key is set: everybody who can connect to {where} may do everything, stopping the server included"
    ]


# -- what an operator greps for ----------------------------------------------------------------------------------------


def grepped(server: LiveServer, *arguments: str) -> list[str]:
    """Return what grep finds in a server's log."""
    found = subprocess.run(["grep", *arguments, server.log_path], capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr
    return found.stdout.splitlines()


@pytest.mark.parametrize("style", ["json", "text"])
@needs("grep")
def test_a_log_answers_the_greps_of_an_operator(serve: Serve, tmp_path: Path, style: str) -> None:
    """Refused clients, the configuration, errors and requests are found by the words that stand in runbooks."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text(
        f"""
        security:
          keys_path: {keys.write(tmp_path / "keys.yaml")}
          rate_limiting: {{enabled: true, requests_per_second: 0.01, burst_capacity: 3}}
        observability: {{logging: {{format: {style}}}}}
        """
    )
    server = serve(CONFIG_PATH=str(path), LOG_LEVEL="DEBUG", API_KEY=keys.API_KEY)
    for _ in range(5):
        server.post("/event", {"event_vector": EXAMPLE, "moral_value": 0.9}, **keys.bearer("slow"))
    path.write_text("capacity: none")
    os.kill(server.pid, 1)  # SIGHUP, with a configuration that is no good
    eventually(lambda: "not reloaded" in server.log)

    refused = [json.loads(line) for line in grepped(server, "rate_limit_exceeded") if '"logger": "mlsdm.audit"' in line]
    assert [line["client_id"] for line in refused] == ["slow", "slow"]
    assert all(line["level"] == "WARNING" and line["request_id"] and line["address"] for line in refused)
    [loaded] = grepped(server, "Configuration loaded")
    assert str(path) in loaded
    assert "burst_capacity" in loaded
    assert any("configuration not reloaded" in line for line in grepped(server, "ERROR"))
    requests = [line for line in grepped(server, "DEBUG") if "POST" in line and "/event" in line]
    assert len(requests) == 5
    assert all(
        word in line
        for line in requests
        for word in ("client_id", "slow", "request_id", "duration_ms", "route", "status")
    )
    assert len(grepped(server, "-A", "5", "client_id")) >= 5
    assert keys.leaked(server) == []


def test_the_configuration_in_force_is_logged_as_values(serve: Serve, tmp_path: Path) -> None:
    """The line has every value in force, from whichever source; keys are counted, not shown."""
    path = tmp_path / "mlsdm.yaml"
    path.write_text("capacity: 999\nobservability: {logging: {format: json}}\n")
    server = serve(CONFIG_PATH=str(path), API_KEY=keys.API_KEY, MLSDM_CAPACITY="500")

    [line] = [json.loads(line) for line in server.log.splitlines() if "Configuration loaded" in line]

    assert line["level"] == "INFO"
    assert line["event"] == f"Configuration loaded from {path}"
    assert (line["environment"], line["keys"]) == ("development", 1)
    assert line["settings"]["capacity"] == 500
    assert line["settings"]["observability"]["logging"] == {"level": "INFO", "format": "json", "sample_ratio": 1.0}
    assert keys.API_KEY not in server.log


def test_a_request_has_its_line_at_debug(serve: Serve) -> None:
    """Method, route, status, how long, under which names, and for whom; by the same members at every route."""
    server = serve(MLSDM_OBSERVABILITY__LOGGING__FORMAT="json", LOG_LEVEL="DEBUG", API_KEY=keys.API_KEY, WORKERS="1")
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    names = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "X-API-Key": keys.API_KEY}
    asked = [
        ("POST", "/event", "/event"), ("GET", "/memories/7", "/memories/{memory_id}"), ("GET", "//state", "/state"),
        ("GET", "/health/liveness", "/health/liveness"), ("GET", "/nowhere", None),
    ]  # fmt: skip
    for number, (method, path, _) in enumerate(asked):
        server.request(method, path, headers={**names, "X-Request-ID": f"ask-{number}"})

    lines = [json.loads(line) for line in server.log.splitlines() if '"event": "Request"' in line]
    found = {line["request_id"]: line for line in lines}
    for number, (method, path, route) in enumerate(asked):
        line = found[f"ask-{number}"]
        assert (method, path, route) == (line["method"], line["path"], line.get("route"))
        assert (line["level"], line["trace_id"], line["address"]) == ("DEBUG", trace_id, "127.0.0.1")
        assert line["client_id"] == ("127.0.0.1" if "liveness" in path else "API_KEY")  # probes show no key
        assert line["duration_ms"] >= 0
        assert line["bytes"] > 0
    assert [found[f"ask-{number}"]["status"] for number in range(len(asked))] == [400, 404, 200, 200, 404]


def test_nothing_below_the_level_is_written(serve: Serve) -> None:
    """At CRITICAL neither a start nor a request is logged, not even that no key is set."""
    server = serve(MLSDM_OBSERVABILITY__LOGGING__FORMAT="json", LOG_LEVEL="CRITICAL", WORKERS="0")
    server.get("/state")

    assert server.log.splitlines() == []

"""The log: one line per event, whatever it says, in JSON or text; and its configuration as Gunicorn applies it."""

import json
import logging
import logging.config
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from app.logs import JsonFormatter, TextFormatter, configuration
from loadtests.live import LiveServer

AWKWARD = 'a "quoted"\n{"level": "forged"}\r\n\x00\x1b[31m \x7f\x85\x9b31m\u2028\u202e ü ✓'


def record(message: str, *arguments: Any, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    """Return a log record."""
    made = logging.LogRecord("mlsdm.test", level, __file__, 1, message, arguments, None)
    vars(made).update(extra)
    return made


def test_a_json_line_has_the_documented_members() -> None:
    """Time in UTC, upper-case level, the message as `event`, and whatever was passed beside it."""
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
    """An object without a JSON form is written as text, not raised about."""

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


def test_a_text_line_carries_what_was_passed_beside_the_message() -> None:
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
def test_the_configuration_sends_every_logger_to_stderr(capsys: Any, style: Any) -> None:
    """Gunicorn's own loggers as well, at the level that was asked for."""
    logging.config.dictConfig(configuration("WARNING", style))

    for name in ("mlsdm.worker", "gunicorn.error", "anything"):
        logging.getLogger(name).info("quiet")
        logging.getLogger(name).warning("loud")

    out, err = capsys.readouterr()
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
    assert warnings == [
        "no API key is set: everybody who can connect to 127.0.0.1 may do everything, stopping the service included"
    ]

"""Logging setup: one line per event, as JSON for machines or as text for people, to standard error.

The arbiter, the controller and the workers share one configuration, because they are forks of the process that set it
up. Gunicorn's own messages go through it as well.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object per record; the members of `extra` become members. JSON escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            "pid": record.process,
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII only: some readers take U+009B and U+2028 as control characters


class TextFormatter(logging.Formatter):
    """One record for a terminal: the message, followed by the members of `extra`.

    Further lines of a message are indented, so that none can be mistaken for a record.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s[%(process)d] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Return the record as text, without the traceback of an exception."""
        extra = "".join(f" {name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        return (super().formatMessage(record) + extra).replace("\r", "\\r").replace("\n", "\n    ")


def logging_config(level: str, style: Literal["json", "text"]) -> dict[str, Any]:
    """Return the dictConfig for Gunicorn's logconfig_dict."""
    formatter = JsonFormatter if style == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}, "audit": {"()": JsonFormatter}},
        "handlers": {
            name: {"class": "app.telemetry.stderr_sink.StderrHandler", "formatter": lines}
            for name, lines in (("stderr", "line"), ("audit", "audit"))
        },
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level, "handlers": [], "propagate": True},
            "gunicorn.access": {"level": level, "handlers": [], "propagate": True},
            # The audit log (app/api/access/audit_log.py): JSON in either format, at any level.
            "mlsdm.audit": {"level": "INFO", "handlers": ["audit"], "propagate": False},
        },
    }

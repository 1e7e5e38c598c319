"""Logging: one line per event, JSON for machines or text for people, everything to stderr.

One configuration serves arbiter, controller and workers, because all of them are forks of the process that set it up.
Gunicorn's own messages go through it as well.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object per record; what was passed as `extra` becomes members.

    Control characters are escaped by JSON.
    """

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
        return json.dumps(line, default=str)  # ASCII only: U+009B and U+2028 are control characters to somebody


class TextFormatter(logging.Formatter):
    """One record for a terminal: the message, and what was passed as `extra` behind it. Further lines of a message are
    indented, so that none can pass for a record.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(name)s[%(process)d] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Return the line without an exception's traceback."""
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
            # Security events, for machines in either format and at any level: app/api/access/audit_log.py.
            "mlsdm.audit": {"level": "INFO", "handlers": ["audit"], "propagate": False},
        },
    }

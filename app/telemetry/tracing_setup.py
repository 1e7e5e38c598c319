"""Tracing: whether a process tells a collector what it does. Off unless it is configured, and then it costs nothing.

Nothing of OpenTelemetry is imported before it is known to be wanted, and what serves requests is wrapped once, when the
process begins, instead of asking at each request whether it should be traced. Each process has its own tracer, made
after the fork that made the process: it has a thread that sends, and threads do not survive a fork.

A tracer that cannot be made is an ERROR in the log and nothing more. Memories are worth more than what is told of them.
"""

import importlib
import logging
from typing import TYPE_CHECKING

from core.settings.config import Config

if TYPE_CHECKING:
    from app.telemetry.spans import Spans

log = logging.getLogger("mlsdm.tracing")


def import_tracing(config: Config) -> None:
    """Import what tracing needs, in the arbiter: its children share it, and a controller, which has a second until it
    is missed, does not spend its first half on that. Never raises.
    """
    if config.observability.tracing.enabled:
        try:
            importlib.import_module("app.telemetry.spans")
        except Exception:
            log.exception("nothing will be traced")


def start_tracing(config: Config, boot_id: str, part: str) -> "Spans | None":
    """Return the tracer of this process, which is that `part` of the service; None when none is wanted, or possible."""
    if not config.observability.tracing.enabled:
        return None
    try:
        from app.telemetry.spans import Spans  # noqa: PLC0415 - not wanted before

        return Spans(config.observability.tracing, boot_id, part)
    except Exception:
        log.exception("nothing is traced here")
        return None

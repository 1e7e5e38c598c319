"""Tracing setup: starts the tracer of a process, if tracing is configured. Otherwise it costs nothing.

Nothing of OpenTelemetry is imported unless it is wanted, and the application is wrapped once, when the process starts,
instead of asking for each request whether to trace it. Each process makes its own tracer after its fork, because the
tracer has a thread that sends, and threads do not survive a fork.

Invariants: a tracer that cannot be made is an ERROR in the log and nothing more; the server runs without it.
"""

import importlib
import logging
from typing import TYPE_CHECKING

from core.settings.config import Config
from shm.block import Block

if TYPE_CHECKING:
    from app.telemetry.spans import Spans

log = logging.getLogger("mlsdm.tracing")


def import_tracing(config: Config) -> None:
    """Import what tracing needs, in the arbiter. Never raises.

    Its children share the modules. A controller without a heartbeat for 1.5 s is replaced, and the import takes 0.5 s.
    """
    if config.observability.tracing.enabled:
        try:
            importlib.import_module("app.telemetry.spans")
        except Exception:
            log.exception("nothing will be traced")


def start_tracing(config: Config, block: Block, part: str) -> "Spans | None":
    """Return the tracer of this process (`part`: worker or controller); None if not configured, or not possible."""
    if not config.observability.tracing.enabled:
        return None
    try:
        from app.telemetry.spans import Spans  # noqa: PLC0415 - imported only if tracing is configured

        return Spans(config.observability.tracing, block, part)
    except Exception:
        log.exception("nothing is traced here")
        return None

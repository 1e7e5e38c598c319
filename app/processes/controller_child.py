"""The controller as a supervised child: the first one, with write access to the block."""

from typing import Final

from app.processes.child import CONTROLLER, Access, Child, ChildContext
from app.telemetry import tracing_setup
from core.controller.controller import Controller, run
from core.settings.config import Config
from shm.block import Block

START_SECONDS: Final = 2.0  # it needs about 10 ms, and waits for the lock at most 10 ms a round
SILENCE_SECONDS: Final = 1.5  # replaced within 2 s, after which readiness calls it silent (core/heartbeat.py)
# Everything but the rows of workers and the token buckets, because it repairs the block.
_WRITES: Final = (
    "header", "lock", "commit", "states", "levels", "vitals", "command", "slots", "codes", "shadow", "vectors",
    "payloads", "links", "lists", "index", "log", "receipts", "chains",
)  # fmt: skip


def controller_child(block: Block, config: Config) -> Child:
    """Declare the controller of a block. A reload replaces it when the settings of logging or tracing have changed; it
    takes all other settings from the block.
    """

    def run_controller(context: ChildContext) -> int:
        spans = tracing_setup.start_tracing(context.config, block, CONTROLLER)
        try:
            return run(block, context.config, context.arbiter, spans.wrap_steps if spans else _without_spans)
        finally:
            if spans is not None:
                spans.close()

    return Child(
        CONTROLLER, run_controller, Access.write(*_WRITES), SILENCE_SECONDS, START_SECONDS,
        settings=config.observability,
    )  # fmt: skip


def _without_spans(_controller: Controller) -> None:
    """Trace nothing."""
